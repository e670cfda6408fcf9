"""Ctrl-C and SIGTERM: the first one ends a command in an orderly way, a second one at once.

After a SIGTERM, the time for that is limited: schedulers send SIGKILL a little later.
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

#: Seconds after a SIGTERM. The watchdog gives Python some more.
SECONDS, MORE = 4.0, 2.0
#: Seconds that a thread waits for the message of another one.
AT_ONCE = 0.5
NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Guard:
    """The signals that a command received, and their message, which is printed once.

    Args:
        left: what remains if the command is interrupted.
    """

    def __init__(self, left: str) -> None:
        self.received: list[int] = []
        self.messages = {
            int(signal.SIGINT): f"interrupted: {left}",
            int(signal.SIGTERM): f"terminated: {left}",
        }
        self._saying, self._said = threading.Lock(), threading.Event()
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._stderr = -1

    def first_to_say(self) -> bool:
        """Whether the caller is to print the message, because nobody has printed it yet."""
        first = self._saying.acquire(blocking=False)
        if first and self._watchdog is not None and self._watchdog.stdin is not None:
            with contextlib.suppress(OSError):
                os.write(self._watchdog.stdin.fileno(), b"\0")
        return first

    def handle(self, number: int, _: object) -> None:
        """Python's signal handler: it runs between two instructions of the main thread."""
        self.received.append(number)
        if len(self.received) > 1:
            self.end(number)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def start(self) -> None:
        """Starts the watchdog, and a thread that ends the command more orderly while Python runs.

        If no process can be started, there is neither. Then signals wait until native code returns.
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
        """Called when the command has ended. After a signal the watchdog stays, until Python has ended."""
        if self.received:
            self.first_to_say()  # nothing more is to be printed
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
        """Ends the process at once, with one line. Does nothing within another program.

        Python's own exit would wait for TensorFlow's threads, which may wait for each other.
        """
        if self._watchdog is None:
            return
        if self.first_to_say():
            clear = "\r\x1b[2K\x1b[?25h" if os.isatty(self._stderr) else ""  # remove a bar, show the cursor
            with contextlib.suppress(OSError):
                os.write(self._stderr, f"{clear}{self.messages[number]}\n".encode())
            self._said.set()
        else:  # another thread is about to print it
            self._said.wait(AT_ONCE)
        output_files.discard()
        os._exit(128 + number)


@contextlib.contextmanager
def guarded(left: str) -> Iterator[Guard]:
    """Handles signals while a command runs, and prints a line on what remains if one ends it.

    Does nothing in a thread. Within another program there is no watchdog.
    """
    guard = Guard(left)
    if threading.current_thread() is not threading.main_thread():
        yield guard
        return
    before = {number: signal.getsignal(number) for number in NUMBERS}
    tell, sys.unraisablehook = sys.unraisablehook, _untold(sys.unraisablehook)
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # nohup ignores signals
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
    """Leaves out tracebacks of signals that came where Python cannot pass on an exception."""

    def hook(what: sys.UnraisableHookArgs) -> None:
        if not issubclass(what.exc_type, (KeyboardInterrupt, Terminated)):
            tell(what)

    return hook


def _is_the_program() -> bool:
    """Whether this process is the program itself, and not a test that calls a command."""
    try:
        return sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):  # stderr is captured
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
    """Sets Python's handler of a signal once more. The signal after that ends the process in the kernel.

    So a second signal ends the process even if native code blocks Python. If Python runs, the thread calls
    this again before another signal can come.
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
