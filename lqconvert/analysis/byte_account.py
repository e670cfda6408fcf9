"""The owner of every byte of a .tflite: a layer's weights, biases or scales, the graph, names, padding."""

from __future__ import annotations

import heapq
import itertools
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from lqconvert.analysis.inspect_tflite import Allowance, ConstantRow, Constants, stored_arrays
from lqconvert.tflite.flatbuffer import Touched, read_places
from lqconvert.tflite.graph import LSTM, LSTM_BIASES, OPERANDS, Model, Operator, Tensor

#: The uses of bytes, in the order in which they are shown. Together they are the file.
KINDS = ("weights", "biases", "scales", "unread", "graph", "names", "padding")
#: Rows for bytes that belong to no layer: scales of computed tensors, and the rest.
ACTIVATIONS, UNREAD, GRAPH, NAMES, PADDING = (
    f"({what})" for what in ("activations", "unread", "graph", "names", "padding")
)


#: Assigns arrays of the file to a row, for a kind of use.
_Claim = Callable[[Iterable[np.ndarray], str, str], None]


@dataclass
class Account:
    """The bytes of a file by owner, and the owners' weights and biases."""

    model: Model
    bytes: Counter[tuple[str, str]]  # by (row, kind)
    constants: dict[str, list[ConstantRow]] = field(default_factory=dict)  # the weights of each layer's row
    biases: Counter[str] = field(default_factory=Counter)  # the number of biases of each
    kernels: dict[int, str] = field(default_factory=dict)  # the row of each kernel tensor of the main graph

    def rows(self) -> list[str]:
        return list(dict.fromkeys(row for row, _ in self.bytes))

    def of(self, row: str) -> dict[str, int]:
        """The bytes of a row by kind."""
        return {kind: self.bytes[row, kind] for kind in KINDS if self.bytes[row, kind]}


def account(tflite: bytes, layers: Mapping[int, str] = {}) -> Account:
    """Assigns every byte of a file to an owner. Shared bytes belong to the first owner.

    Args:
        layers: names for operators, by the tensor of their kernel in the main graph. Other operators are
            named by their place and kind.

    Raises:
        LqError: if it is no .tflite file, or damaged.
    """
    model, touched = read_places(tflite)
    found = Account(model, Counter())
    spans: dict[tuple[int, int], tuple[str, str]] = {}
    start = np.frombuffer(touched.source, np.uint8).ctypes.data

    def claim(arrays: Iterable[np.ndarray], row: str, kind: str) -> None:
        for array in arrays:
            if len(array):
                first = array.ctypes.data - start  # the model's arrays are views of it
                spans.setdefault((first, first + array.nbytes), (row, kind))

    allowance = Allowance(tflite)
    for number, graph in enumerate(model.graphs):
        _claim_constants(found, number, layers if number == 0 else {}, allowance, claim)
        for tensor in graph.tensors:
            claim(_quantization(tensor), ACTIVATIONS, "scales")
    places = [each.buffer for each in model.metadata or []]
    notes = [model.buffers[place] for place in places if place < len(model.buffers)]
    claim((buffer.data for buffer in notes), NAMES, "names")
    claim((buffer.data for buffer in model.buffers), UNREAD, "unread")
    for span in touched.texts:
        spans.setdefault(span, (NAMES, "names"))
    for span in [*_tables(tflite, touched), *touched.vectors, *touched.links, (0, 8)]:
        spans.setdefault(span, (GRAPH, "graph"))
    found.bytes = _owned(spans, len(tflite))
    return found


def _claim_constants(
    found: Account, number: int, layers: Mapping[int, str], allowance: Allowance, claim: _Claim
) -> None:
    """Assigns the constants of a graph's operators."""
    graph = found.model.graphs[number]
    constants, seen = Constants(graph, allowance), set()
    for place, operator in constants.readers:
        operands = [index for index in operator.operands if index in constants.sources]
        reader = f"{place} {operator.code.shown_name}" + (f" of graph {number}" if number else "")
        row = next((layers[index] for index in operands if index in layers), reader)
        biases = _biases(operator)
        for index in operands:
            if index in seen:
                continue
            seen.add(index)
            each = constants.row(index, reader)
            kind = "biases" if index in biases else "graph" if _setting(each) else "weights"
            if kind == "biases":
                found.biases[row] += each.elements
            if kind == "weights":
                found.constants.setdefault(row, []).append(each)
                if number == 0:
                    found.kernels[index] = row
            made = [out for maker in constants.makers[index] for out in maker.outputs]
            tensors = [graph.tensors[source] for source in constants.sources[index]]
            claim(stored_arrays(tensors), GRAPH if kind == "graph" else row, kind)
            for tensor in (*tensors, *(graph.tensors[out] for out in made)):
                claim(_quantization(tensor), row, "scales")


def _biases(operator: Operator) -> tuple[int, ...]:
    """The tensors of an operator's biases."""
    if operator.name == LSTM:
        return operator.inputs[LSTM_BIASES]
    place = OPERANDS[operator.name][2] if operator.name in OPERANDS else len(operator.inputs)
    return operator.inputs[place : place + 1]


def _setting(constant: ConstantRow) -> bool:
    """Whether a constant is a shape, an axis or the like, and no weight."""
    return constant.tensor.type in ("INT32", "INT64", "BOOL", "STRING") and not constant.tensor.scales


def _quantization(tensor: Tensor) -> list[np.ndarray]:
    each = tensor.quantization
    arrays = [] if each is None else [each.scales, each.zero_points, each.low, each.high]
    return [array for array in arrays if array is not None]


def _tables(tflite: bytes, touched: Touched) -> Iterable[tuple[int, int]]:
    """The places of tables, and of the lists of their fields, which many tables may share."""
    for table in set(touched.tables):
        fields = table - struct.unpack_from("<i", tflite, table)[0]
        length, size = struct.unpack_from("<HH", tflite, fields)
        yield fields, fields + length
        yield table, table + size


def _owned(spans: Mapping[tuple[int, int], tuple[str, str]], size: int) -> Counter[tuple[str, str]]:
    """The number of bytes of each owner. Shared bytes are the first owner's; the rest is padding."""
    numbered = [(max(first, 0), min(end, size), n) for n, (first, end) in enumerate(spans)]
    starting = sorted(each for each in numbered if each[0] < each[1])
    owners, owned = list(spans.values()), Counter[tuple[str, str]]()
    edges = sorted({edge for first, end, _ in starting for edge in (first, end)} | {0, size})
    open_: list[tuple[int, int]] = []  # (number, end), the first owner on top
    place = 0
    for here, there in itertools.pairwise(edges):
        while place < len(starting) and starting[place][0] == here:
            heapq.heappush(open_, (starting[place][2], starting[place][1]))
            place += 1
        while open_ and open_[0][1] <= here:
            heapq.heappop(open_)
        owned[owners[open_[0][0]] if open_ else (PADDING, "padding")] += there - here
    return owned
