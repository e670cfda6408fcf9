"""The kinds of file that the commands write, and how one of lqconvert's own is told from another's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: So many bytes of a file are looked at.
HEAD = 1 << 13


@dataclass(frozen=True)
class Kind:
    """What a file is called, and what it begins with.

    Args:
        suffixes: its name ends in one of them, in lower case.
        begins: says whether a file that begins so was written by lqconvert, or by a tool of the same trade.
        holds: of a folder: says whether a name in it is one of lqconvert's.
    """

    suffixes: tuple[str, ...] = ()
    begins: Callable[[bytes], bool] | None = None
    holds: Callable[[str], bool] | None = None

    def is_own(self, path: Path) -> bool:
        """Whether nothing is lost where a file or folder of this kind takes the path."""
        try:
            if self.holds is not None:
                names = [each.name for each in path.iterdir()]
                return not names or any(map(self.holds, names))
            if path.exists() and not path.is_file():
                return False
            with path.open("rb") as file:
                head = file.read(HEAD)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return not head or (self.begins is not None and self.begins(head))


def _is_baseline(head: bytes) -> bool:
    try:
        fields = json.loads(head)
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and {"target", "size", "deflated_bytes"} <= set(fields)


TFLITE = Kind((".tflite",), lambda head: head[4:8] == b"TFL3")
PAGE = Kind((".html", ".htm"), lambda head: b"lqconvert</title>" in head)
LOG = Kind((".jsonl", ".json", ".log"), lambda head: head.startswith(b'{"time": '))
BASELINE = Kind((".json",), _is_baseline)
JUNIT = Kind((".xml",), lambda head: b'name="lqconvert check"' in head)
SOURCE = Kind((".h", ".cc"), lambda head: b"made by lqconvert" in head or b"const unsigned char g_" in head)
SUMMARIES = Kind(holds=lambda name: name.startswith("events.out.tfevents"))
SWEEP = Kind(holds=lambda name: name in ("sweep.csv", "study.db", ".study.lock"))
