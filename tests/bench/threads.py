"""Asks eight threads for what one thread was asked for, on good and damaged files, and compares the answers.

    python tests/bench/threads.py [CALLS]

Ends with 1 where an answer differs.
"""

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from fuzzing import make_seeds, mutants

from lqconvert import LqError, check, explain, inspect

THREADS, DAMAGED = 8, 40


def answer(call: tuple[Callable[[Path], Any], Path]) -> str:
    """The result of a call for a file, or its error."""
    work, path = call
    try:
        return str(work(path).to_json())
    except LqError as error:
        return f"{type(error).__name__}: {error}"


def main(calls: int = 2000) -> int:
    def checked(path: Path) -> Any:
        return check(path, max_size=10_000)

    with tempfile.TemporaryDirectory() as name:
        folders = Path(name) / "seeds", Path(name) / "damaged"
        for folder in folders:
            folder.mkdir()
        known = (".tflite", ".codes.npz", ".h5", ".keras")
        seeds = [path for path in make_seeds(folders[0]) if path.name.endswith(known)]
        paths = [*seeds, *(path for path, _ in mutants(seeds, folders[1], DAMAGED))]
        work = [(each, path) for path in paths for each in (inspect, checked, explain)]
        start = time.monotonic()
        alone = [answer(call) for call in work]
        print(f"one thread: {len(work)} calls, {time.monotonic() - start:.0f} s", flush=True)
        places = [number % len(work) for number in range(calls)]
        start = time.monotonic()
        with ThreadPoolExecutor(THREADS) as pool:
            together = list(pool.map(answer, [work[place] for place in places]))
    differ = Counter(
        work[place] for place, found in zip(places, together, strict=True) if found != alone[place]
    )
    for (each, path), count in differ.items():
        print(f"DIFFERS {count} times: {each.__name__} {path.name}")
    refused = sum(found.startswith("LqError: ") for found in together)
    took = time.monotonic() - start
    print(f"{THREADS} threads: {calls} calls, {refused} refused, {differ.total()} differ, {took:.0f} s")
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
