"""Runs modules of lqconvert in their own processes: a crash, a hang or a lack of memory ends only these.

A child process ends with its parent, even if the parent is killed. It sets its own limits before it reads any
data (:func:`confine`, :class:`Stopwatch`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

#: The environment variable with the parent's process number.
PARENT = "LQCONVERT_PARENT"
#: Linux's prctl(PR_SET_PDEATHSIG, ...).
_PARENT_DEATH_SIGNAL = 1


@contextmanager
def started(name: str, *arguments: object, **pipes: Any) -> Iterator[subprocess.Popen[Any]]:
    """Starts ``lqconvert.NAME`` with arguments; paths must be absolute. The block's end kills the process.

    It runs in an empty folder: Python imports from the working folder first, and a stranger's files may be
    there. The block must end in the thread that began it: on Linux a child is killed when that thread ends.
    """
    command = [sys.executable, "-m", f"lqconvert.{name}", *map(str, arguments)]
    paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in paths if path),
        "OPENBLAS_NUM_THREADS": "1",  # threads reserve address space
        PARENT: str(os.getpid()),
    }
    with tempfile.TemporaryDirectory() as empty:
        child = subprocess.Popen(command, cwd=empty, env=environment, **pipes)
        try:
            yield child
        finally:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout, child.stderr):
                _close(pipe)


def _close(pipe: IO[Any] | None) -> None:
    if pipe is not None:
        with suppress(OSError):  # unwritten data have no reader
            pipe.close()


def run_module(name: str, *arguments: object, timeout: float) -> subprocess.CompletedProcess[str]:
    """Runs ``lqconvert.NAME`` to its end; see :func:`started`.

    Raises:
        subprocess.TimeoutExpired: after ``timeout`` seconds. Then the process is ended.
    """
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(name, *arguments, errors="replace", text=True, **streams) as child:
        stdout, stderr = child.communicate(timeout=timeout)
        return subprocess.CompletedProcess(child.args, child.returncode, stdout, stderr)


def confine(memory: int) -> None:
    """Makes this child process end with its parent, and limits its memory for data.

    What a platform does not support is left out: Windows supports neither, macOS has no memory limit.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != int(os.environ.get(PARENT, os.getppid())):  # the parent has died already
            os._exit(1)
    try:
        import resource
    except ImportError:
        return
    for kind, limit in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_CORE, 0)):
        _, most = resource.getrlimit(kind)
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(kind, (limit, most))


class Stopwatch:
    """Ends this process, by SIGPROF, if a step of its work takes too much processor time.

    The first step, on inputs that lqconvert chose, sets the limits. Each later step may take twenty times as
    long plus a second. On average, later steps may take ten times as long, plus half a minute in all.

    Args:
        first: the limit in seconds of the first step.
    """

    def __init__(self, first: float) -> None:
        self.step, self.left = first, first
        self.first = True

    @contextmanager
    def __call__(self) -> Iterator[None]:
        start = time.process_time()
        self._arm(max(min(self.step, self.left), 1e-3))
        try:
            yield
        finally:
            self._arm(0)
        took = time.process_time() - start
        if self.first:
            self.first, self.took = False, took
            self.step, self.left = min(self.step, 1 + 20 * took), 30.0
        self.left += 10 * self.took - took

    @staticmethod
    def _arm(seconds: float) -> None:
        if hasattr(signal, "setitimer"):  # not on Windows
            signal.setitimer(signal.ITIMER_PROF, seconds)


def took_too_long(returncode: int) -> bool:
    """Whether a :class:`Stopwatch` ended a child."""
    return hasattr(signal, "SIGPROF") and returncode == -signal.SIGPROF


def ended_by(returncode: int) -> str:
    """How a child ended that was ended by a signal."""
    if took_too_long(returncode):
        return "it ran for too long (over 20 times its first run on zeros, or that run took too long)"
    return f"it ended with signal {-returncode}"
