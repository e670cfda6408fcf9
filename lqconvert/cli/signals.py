"""Ctrl-C and SIGTERM: the first one ends a command in good order, a second one at once.

After a SIGTERM there are so many seconds for that: schedulers send SIGKILL after some more.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lqconvert.cli import watchdog
from lqconvert.errors import Terminated
from lqconvert.utils import output_files

#: After a SIGTERM; the watchdog gives Python some more.
SECONDS, MORE = 4.0, 2.0
NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Guard:
    """The signals that came to a command, and what is said of them, once.

    Args:
        left: what a command leaves that did not come to its end.
    """

    def __init__(self, left: str) -> None:
        self.received: list[int] = []
        self.messages = {
            int(signal.SIGINT): f"interrupted: {left}",
            int(signal.SIGTERM): f"terminated: {left}",
        }
        self._saying = threading.Lock()
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._stderr = -1

    def first_to_say(self) -> bool:
        """Whether the caller is to print the message: nobody else has."""
        first = self._saying.acquire(blocking=False)
        if first and self._watchdog is not None and self._watchdog.stdin is not None:
            with contextlib.suppress(OSError):
                os.write(self._watchdog.stdin.fileno(), b"\0")
        return first

    def handle(self, number: int, _: object) -> None:
        """Python's handler: runs between two instructions of the main thread."""
        self.received.append(number)
        if len(self.received) > 1:
            self.end(number)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def start(self) -> None:
        """Starts the watchdog, and the thread that does its work in better order while Python runs.

        Without a process to spare there is neither, and signals wait for native code to return.
        """
        here, there = os.pipe()
        self._stderr = os.dup(2)
        os.set_blocking(there, False)
        messages = [self.messages[number] for number in NUMBERS]
        command = [sys.executable, "-I", "-S", str(Path(watchdog.__file__)), str(os.getpid())]
        command += [str(SECONDS + MORE), *messages]
        try:
            self._watchdog = subprocess.Popen(
                command, stdin=here, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError:
            os.close(there)
            return
        finally:
            os.close(here)
        self._watchdog.stdin = os.fdopen(there, "wb", buffering=0)
        signal.set_wakeup_fd(there, warn_on_full_buffer=False)
        for number in NUMBERS:
            _kernel_takes_the_next(number)
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        """The command has ended. One that was signalled has yet to leave Python: the watchdog stays."""
        if self.received:
            self.first_to_say()  # it has said what it had to
        if self._watchdog is None or self.received:
            return
        signal.set_wakeup_fd(-1)
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._watchdog.wait(1)

    def _watch(self) -> None:
        assert self._watchdog is not None
        assert self._watchdog.stdout is not None
        signals, deadline, count = self._watchdog.stdout.fileno(), None, 0
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([signals], [], [], left)[0]:
                self.end(signal.SIGTERM)
            numbers = os.read(signals, 64)
            if not numbers:
                return
            count += len(numbers)
            if count > 1:
                self.end(numbers[-1])
            for number in numbers:
                _kernel_takes_the_next(number)
                if number == signal.SIGTERM:
                    deadline = time.monotonic() + SECONDS

    def end(self, number: int) -> None:
        """Ends the process, whatever it does, with one line. Within another program it does nothing.

        Python would wait for threads of TensorFlow's, and those that end it for each other.
        """
        if self._watchdog is None:
            return
        if self.first_to_say():
            clear = "\r\x1b[2K\x1b[?25h" if os.isatty(self._stderr) else ""  # a bar, and the cursor it hides
            with contextlib.suppress(OSError):
                os.write(self._stderr, f"{clear}{self.messages[number]}\n".encode())
        output_files.discard()
        os._exit(128 + number)


@contextlib.contextmanager
def guarded(left: str) -> Iterator[Guard]:
    """Handles signals while a command runs; what it leaves if one ends it is told in a line.

    In a thread nothing is done, and within another program there is no watchdog.
    """
    guard = Guard(left)
    if threading.current_thread() is not threading.main_thread():
        yield guard
        return
    before = {number: signal.getsignal(number) for number in NUMBERS}
    tell, sys.unraisablehook = sys.unraisablehook, _untold(sys.unraisablehook)
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, guard.handle)
    if os.name == "posix" and _is_the_program():
        guard.start()
    try:
        yield guard
    finally:
        guard.stop()
        sys.unraisablehook = tell
        if not guard.received:
            for number, handler in before.items():
                signal.signal(number, handler)


def _untold(tell: Callable[[sys.UnraisableHookArgs], object]) -> Callable[[sys.UnraisableHookArgs], object]:
    """Leaves out tracebacks of signals that came where Python cannot pass an exception on."""

    def hook(what: sys.UnraisableHookArgs) -> None:
        if not issubclass(what.exc_type, (KeyboardInterrupt, Terminated)):
            tell(what)

    return hook


def _is_the_program() -> bool:
    """Whether this is a process of its own, and not a test's call."""
    try:
        return sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):  # a captured stderr
        return False


class _SigAction(ctypes.Structure):
    """``struct sigaction`` of Linux's C libraries."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * (1024 // (8 * ctypes.sizeof(ctypes.c_ulong)))),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


SA_RESETHAND = 0x80000000


def _kernel_takes_the_next(number: int) -> None:
    """Sets Python's handler of a signal for one time more: the next signal ends the process in the kernel.

    So a second one ends it even where native code keeps Python from doing anything. Where Python runs, the
    thread calls this again before anybody can send another.
    """
    if sys.platform != "linux" or signal.getsignal(number) in (signal.SIG_IGN, signal.SIG_DFL, None):
        return
    libc, action = ctypes.CDLL(None), _SigAction()
    with _once:
        if libc.sigaction(number, None, ctypes.byref(action)) == 0 and action.handler:
            _handlers.setdefault(number, action.handler)
        action.handler = _handlers.get(number)
        action.flags = ctypes.c_int(action.flags | SA_RESETHAND).value
        if action.handler:
            libc.sigaction(number, ctypes.byref(action), None)


_once = threading.Lock()
_handlers: dict[int, int] = {}
