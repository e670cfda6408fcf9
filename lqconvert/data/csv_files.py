"""Tables in a .csv: a row for each example, with columns for inputs and labels."""

from __future__ import annotations

import csv
import io
import itertools
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lqconvert.errors import LqError
from lqconvert.utils.input_files import read_bytes

#: The size limit. A larger table should be an .npz, which takes a tenth of the memory to read.
LARGEST_TABLE = 64 << 20
#: Possible names of the label column, if no column has the name of an output.
LABELS = ("y", "target", "label", "class")


def load_csv(path: Path, inputs: int, outputs: list[str]) -> tuple[np.ndarray, Any, tuple[str, ...]]:
    """The examples of a table.

    Labels are the columns that have the names of outputs. Without such columns, they are the column called y,
    target, label or class, or else the columns after the inputs.

    Args:
        inputs: the number of input values of the model.
        outputs: the names of its outputs.

    Returns:
        x float32 [n, inputs]; the labels [n] or [n, k], by output if there are several, or None; and a line
        that names the label columns.

    Raises:
        LqError: if the table cannot be read, or has another number of columns.
    """
    text = read_bytes(path, LARGEST_TABLE).decode("utf-8-sig", "replace")
    reader = csv.reader(io.StringIO(text))
    try:
        return _Table(path, reader, inputs, outputs).read()
    except csv.Error as error:
        raise LqError(f"{path}: not a readable .csv ({error})") from error


class _Table:
    """The rows of a table while they are read. Little more than their numbers is kept in memory."""

    def __init__(self, path: Path, reader: Iterator[list[str]], inputs: int, outputs: list[str]) -> None:
        self.path, self.reader, self.inputs, self.outputs = path, reader, inputs, outputs
        self.values: array[float] = array("f")
        self.cells: list[list[str]] = []
        self.known: dict[str, str] = {}  # labels repeat, so each text is stored once

    def read(self) -> tuple[np.ndarray, Any, tuple[str, ...]]:
        first = next((row for row in self.reader if row), None)
        if first is None:
            raise LqError(f"{self.path}: an empty table")
        names = [name.strip() for name in first]
        has_header = not all(map(_is_number, names))
        targets = _targets(names, has_header, self.inputs, self.outputs)
        columns = [place for place in range(len(names)) if place not in targets]
        if len(columns) != self.inputs:
            has = f"{len(names)} columns, {len(targets)} of them labels"
            way = "name the labels y, or as the output"
            raise LqError(f"{self.path}: {has}, but the model takes {self.inputs} values; {way}")
        self.cells = [[] for _ in targets]
        count = 0
        for row in self.reader if has_header else itertools.chain([first], self.reader):
            if row:
                count += 1
                self._take(row, count + has_header, len(names), columns, targets)
        x = np.frombuffer(self.values, np.float32).reshape(count, self.inputs)
        labels = {names[place]: _labels(cells) for place, cells in zip(targets, self.cells, strict=True)}
        note = f"{self.path}: labels are the columns {', '.join(labels)}"
        notes = (note,) if labels and has_header else ()
        if len(self.outputs) > 1 and set(labels) & set(self.outputs):
            return x, labels, notes
        several = list(labels.values())
        if len(several) > 1:
            return x, np.stack(several, axis=1), notes
        return x, several[0] if several else None, notes

    def _take(self, row: list[str], number: int, width: int, columns: list[int], targets: list[int]) -> None:
        if len(row) != width:
            raise LqError(f"{self.path}: row {number} has {len(row)} columns, the first has {width}")
        for place in columns:
            try:
                self.values.append(float(row[place]))
            except (ValueError, OverflowError) as error:
                cell = f"{row[place][:40]!r} instead of a number"
                raise LqError(f"{self.path}: row {number} has {cell}") from error
        for cells, place in zip(self.cells, targets, strict=True):
            cells.append(self.known.setdefault(row[place], row[place]))


def _targets(names: list[str], has_header: bool, inputs: int, outputs: list[str]) -> list[int]:
    """The indices of the label columns."""
    if has_header:
        for wanted in (set(outputs), set(LABELS)):
            found = [place for place, name in enumerate(names) if name in wanted or name.lower() in wanted]
            if found:
                return found
    return list(range(inputs, len(names)))


def _labels(cells: list[str]) -> np.ndarray:
    """Labels as integers, as floats, or as names."""
    for kind in (int, float):
        try:
            return np.array([kind(cell) for cell in cells])
        except (ValueError, OverflowError):
            continue
    return np.array([cell.strip() for cell in cells])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
