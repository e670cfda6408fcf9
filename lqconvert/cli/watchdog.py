"""A small second process that ends lqconvert for certain. It shares neither interpreter nor memory with it.

    python -I -S watchdog.py PID SECONDS MESSAGE_2 MESSAGE_15

Native code may hold Python's interpreter for as long as it likes, so that no handler and no thread runs. But
Python's C code still writes the number of each signal into a pipe: this process's stdin. It passes the
numbers on to stdout, where a thread of lqconvert reads them and ends the command in an orderly way. If that
does not happen, this process sends the signal again, and then the kernel ends lqconvert (see ``signals``). A
0 on stdin means that the message has been printed. The end of stdin means that lqconvert has ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

#: Seconds after a second signal, and between two attempts to end the process.
AT_ONCE = 1.0


def main(parent: int, seconds: float, messages: dict[int, str]) -> None:
    seen: list[int] = []
    deadline, attempts, said = None, 0, False
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if select.select([0], [], [], left)[0]:
            data = os.read(0, 64)
            if not data:
                break
            said |= 0 in data
            numbers = [number for number in data if number in messages]
            if attempts:
                continue  # sent by this process itself
            with contextlib.suppress(OSError):
                os.write(1, bytes(numbers))
            seen += numbers
            wait = AT_ONCE if len(seen) > 1 else seconds if signal.SIGTERM in seen else None
            if numbers and wait is not None:
                end = time.monotonic() + wait
                deadline = end if deadline is None else min(deadline, end)
            continue
        attempts += 1
        deadline = time.monotonic() + AT_ONCE / 2
        with contextlib.suppress(OSError):
            os.kill(parent, seen[-1] if attempts < 4 else signal.SIGKILL)
    if seen and not said:
        with contextlib.suppress(OSError):
            os.write(2, f"{messages[seen[-1]]}\n".encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), {2: sys.argv[3], 15: sys.argv[4]})
