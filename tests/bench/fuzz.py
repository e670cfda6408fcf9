"""Tries thousands of damaged and hostile files, and prints the results.

    python tests/bench/fuzz.py [COUNT] [FIRST]

Ends with 1 if any of them made a traceback, a hang, more than 2 GB or a stray file.
"""

import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fuzzing import Worker, make_seeds, mutants, remove


def main(count: int = 2400, first: int = 0) -> int:
    reasons: Counter[tuple[str, str, str]] = Counter()
    slowest = peak = wrong = 0.0
    worker, start = Worker(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        seeds, files = Path(name) / "seeds", Path(name) / "files"
        seeds.mkdir()
        files.mkdir()
        for path, number in mutants(make_seeds(seeds), files, count, first):
            outcome = worker.take(path)
            slowest, peak = max(slowest, outcome.seconds), max(peak, outcome.peak)
            reason = re.sub(r"'[^']*'|[0-9][0-9,.]*|\(.*\)", "_", outcome.text.replace(f"{path}: ", ""))
            reason = re.sub(r"(?<=cannot load the model): .*", "", reason)
            suffix = "".join(path.suffixes[-2:]) if path.suffix == ".npz" else path.suffix
            reasons[suffix, outcome.kind, reason[:70]] += 1
            if not outcome.right:
                wrong += 1
                print(f"WRONG {number} {path.name}: {outcome.text} {outcome.seconds:.1f} s\n{outcome.where}")
            remove(path)
            if left := [*files.iterdir(), *worker.left_behind()]:
                wrong += 1
                print(f"WRONG {number} {path.name}: left {left}")
                break
        worker.stop()
    for (suffix, kind, reason), number in sorted(reasons.items(), key=lambda item: (item[0][0], -item[1])):
        print(f"{number:5}  {suffix:11}{kind:10}{reason}")
    kinds = Counter(kind for _, kind, _ in reasons.elements())
    print(
        f"{count} files: {dict(kinds)}, {wrong:.0f} wrong; slowest {slowest:.1f} s, peak {peak / 1e9:.2f} GB"
    )
    print(f"{time.monotonic() - start:.0f} seconds")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
