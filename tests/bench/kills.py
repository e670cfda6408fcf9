"""Kills runs at random moments, continues with --resume, and compares the codes with an undisturbed run's.

    python tests/bench/kills.py 20

Moments are spread over the whole run, from the first import to the last file written. Nothing that a killed
run leaves may be a broken .tflite, and (on Linux) none of its processes may live on for 5 seconds.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lqconvert.utils.worker import PARENT

MODEL = Path(__file__).parents[2] / "sample_models" / "digits_cnn.h5"
RUN = "from lqconvert.cli.main import main; main()"


def start(output: Path, *options: str) -> subprocess.Popen[bytes]:
    arguments = ["quantize", str(MODEL), "--data", "digits", "-o", str(output), "--report", f"{output}.html"]
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def alive_after(process: int, seconds: float) -> list[str]:
    """The commands of a killed process's children that are there after so many seconds; Linux alone tells."""
    end, mark = time.monotonic() + seconds, f"{PARENT}={process}".encode()
    while True:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:  # it has ended meanwhile
                continue
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.1)


def finished(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run ended in {process.returncode}: {errors.decode()}")


def codes(output: Path) -> dict[str, bytes]:
    with np.load(output.with_suffix(".codes.npz")) as arrays:
        return {name: arrays[name].tobytes() for name in arrays.files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = Path(folder) / "undisturbed.tflite"
        began = time.monotonic()
        finished(start(undisturbed))
        seconds = time.monotonic() - began
        print(f"undisturbed: {seconds:.1f} s")
        print("| killed after | files it left | same codes and file |\n| --- | --- | --- |")
        broken = different = living = 0
        for number in range(arguments.kills):
            output = Path(folder) / str(number) / "model.tflite"
            process, moment = start(output), rng.uniform(0, seconds)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            for command in alive_after(process.pid, 5):
                print(f"STILL ALIVE: {command}")
                living += 1
            left = sorted(path.name for path in output.parent.glob("*")) if output.parent.exists() else []
            if output.exists():
                broken += output.read_bytes() != undisturbed.read_bytes()
            finished(start(output, "--resume"))
            same = codes(output) == codes(undisturbed) and output.read_bytes() == undisturbed.read_bytes()
            json.loads(output.with_suffix(".report.json").read_text())
            different += not same
            print(f"| {moment:.1f} s | {', '.join(left)} | {'yes' if same else 'NO'} |", flush=True)
    kills = f"{arguments.kills} kills: {different} ended otherwise"
    print(f"{kills}, {broken} left a broken file, {living} a process")
    raise SystemExit(bool(different or broken or living))


if __name__ == "__main__":
    main()
