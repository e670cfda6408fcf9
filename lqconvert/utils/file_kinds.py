"""The kinds of files that the commands write, and how lqconvert recognizes its own files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: The number of bytes at the beginning of a file that are read for this.
HEAD = 1 << 13


@dataclass(frozen=True)
class Kind:
    """A kind of file: its suffixes, and how it begins.

    Args:
        suffixes: the possible endings of its name, in lower case.
        begins: whether a file with this beginning was written by lqconvert, or by a tool of this kind.
        holds: for folders: whether a file of this name in it is lqconvert's.
    """

    suffixes: tuple[str, ...] = ()
    begins: Callable[[bytes], bool] | None = None
    holds: Callable[[str], bool] | None = None

    def is_own(self, path: Path) -> bool:
        """Whether nothing is lost if a file or folder of this kind replaces what is at the path."""
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
