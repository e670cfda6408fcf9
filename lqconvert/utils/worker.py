"""Modules of lqconvert in processes of their own: what may crash, hang or take all memory does so alone.

A child ends with its parent, even where that is killed, and has limits that it sets itself before it looks at
anything (:func:`confine`, :class:`Stopwatch`).
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

#: The parent's process number, for children that watch it.
PARENT = "LQCONVERT_PARENT"
#: Linux's prctl(PR_SET_PDEATHSIG, ...).
_PARENT_DEATH_SIGNAL = 1


@contextmanager
def started(name: str, *arguments: object, **pipes: Any) -> Iterator[subprocess.Popen[Any]]:
    """Starts ``lqconvert.NAME`` with arguments, of which paths are to be absolute; the block's end kills it.

    In an empty folder: Python imports from the working folder first, where a stranger's files may lie. The
    block must end in the thread that began it: on Linux a child is killed when that thread ends.
    """
    command = [sys.executable, "-m", f"lqconvert.{name}", *map(str, arguments)]
    paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in paths if path),
        "OPENBLAS_NUM_THREADS": "1",  # threads claim address space
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
        with suppress(OSError):  # what was still to be written has no reader
            pipe.close()


def run_module(name: str, *arguments: object, timeout: float) -> subprocess.CompletedProcess[str]:
    """Runs ``lqconvert.NAME`` to its end; see :func:`started`.

    Raises:
        subprocess.TimeoutExpired: after so many seconds; the process is ended then.
    """
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(name, *arguments, errors="replace", text=True, **streams) as child:
        stdout, stderr = child.communicate(timeout=timeout)
        return subprocess.CompletedProcess(child.args, child.returncode, stdout, stderr)


def confine(memory: int) -> None:
    """Ties this process, a child, to its parent's life and to so many bytes of memory for data.

    What a platform does not offer is left out: Windows has neither, macOS has no bound on memory.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != int(os.environ.get(PARENT, os.getppid())):  # it died before
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
    """Ends this process, by SIGPROF, where a step of its work takes too much processor time.

    The first step, on inputs that the tool chose, says what later ones may take: twenty times as much and a
    second, and ten times as much on average and half a minute.

    Args:
        first: seconds for the first step.
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
    """How a child ended that did not end by itself."""
    if took_too_long(returncode):
        return "it ran for too long (over 20 times its first run on zeros, or that run over its limit)"
    return f"it ended with signal {-returncode}"
