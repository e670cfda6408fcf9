"""Ctrl-C and SIGTERM end a command in an orderly way, and in any case."""

import signal
import subprocess
import sys
import time

import pytest

INT, TERM, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGKILL
#: Work of a command: a loop in C that checks for no signals and lets no other thread run.
AT = {
    "python": "time.sleep(60)",
    "native": "sum(range(10**13))",
    "deaf": "while True:\n        try: time.sleep(60)\n        except BaseException: pass",
}
PROGRAM = """
import time
import lqconvert.cli.signals
from lqconvert.cli.main import main
lqconvert.cli.signals.SECONDS = lqconvert.cli.signals.MORE = 0.5
@main.command()
def work():
    print("ready", flush=True)
    {}
main(["work"])
"""


def ended(at, signals):
    """The exit code of a command that gets signals, what it says, and the seconds since the last of them."""
    command = [sys.executable, "-c", PROGRAM.format(AT[at])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    for number in signals:
        time.sleep(0.5)
        process.send_signal(number)
    began = time.monotonic()
    _, said = process.communicate(timeout=30)  # the watchdog has stderr, too: it has ended then
    return process.returncode, said, time.monotonic() - began


WRITES = """
import time
from pathlib import Path
from lqconvert.training.checkpoint import locked
from lqconvert.cli.main import main
from lqconvert.utils.output_files import write_all
def write(path):
    path.write_text("half")
    print("ready", flush=True)
    while True:
        try: time.sleep(60)
        except BaseException: pass
@main.command()
def work():
    with locked(Path("m.tflite")):
        write_all({Path("m.tflite"): write})
main(["work"])
"""


def test_what_is_half_written_is_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", WRITES], stdout=subprocess.PIPE, cwd=tmp_path)
    process.stdout.readline()
    assert len(list(tmp_path.iterdir())) == 2
    for _ in range(2):
        process.send_signal(INT)
        time.sleep(0.5)
    process.communicate()
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("at", "signals", "code"),
    [
        ("python", [INT], 130),
        ("python", [TERM], 143),
        ("deaf", [TERM], 143),
        ("deaf", [INT, INT], 130),
        ("deaf", [INT, TERM], 143),
        # The kernel ends it: a shell says 130 and 143.
        ("native", [TERM], -TERM),
        ("native", [INT, INT], -INT),
        ("native", [INT, TERM], -TERM),
    ],
)
def test_signals_end_a_command_with_a_line(at, signals, code):
    returned, said, seconds = ended(at, signals)
    word = "terminated" if signals[-1] == TERM else "interrupted"
    assert (returned, said) == (code, f"{word}: nothing was written\n")
    assert seconds < 5


def test_the_watchdog_ends_with_what_it_watches():
    returned, said, seconds = ended("native", [KILL])
    assert (returned, said) == (-KILL, "")
    assert seconds < 5
