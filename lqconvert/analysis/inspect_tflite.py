"""What a .tflite contains: operators, constants, their packing and their bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from lqconvert.errors import LqError
from lqconvert.keras_loader.limits import LARGEST_TENSOR
from lqconvert.tflite import encoding
from lqconvert.tflite import graph as tflite_graph
from lqconvert.tflite.flatbuffer import read
from lqconvert.tflite.graph import Graph, Operator, shown
from lqconvert.tflite.packing import DECODE
from lqconvert.utils.compression import deflated
from lqconvert.utils.input_files import read_bytes
from lqconvert.utils.terminal import Shown, Table, narrow

_MODES = {encoding.LUT: "lut", encoding.HUFFMAN: "huffman", encoding.PRUNING: "pruning"}


def dimensions(shape: tuple[int | None, ...] | None) -> str:
    return "" if shape is None else "x".join(str(n or "?") for n in shape) or "scalar"


@dataclass(frozen=True)
class Tensor:
    """A tensor of a .tflite."""

    index: int
    name: str  # empty where the file has none
    shape: tuple[int, ...]
    type: str
    scales: int
    smallest_scale: float | None
    largest_scale: float | None
    zero_point: int | None

    @property
    def text(self) -> str:
        return f"{dimensions(self.shape)} {self.type.lower()}"

    @property
    def quantization(self) -> str:
        if not self.scales:
            return ""
        scale = f"{self.smallest_scale:.4g}"
        if self.scales > 1:
            scale = f"{self.scales}: {scale}..{self.largest_scale:.4g}"
        return f"{scale}, zero {self.zero_point}" if self.zero_point else scale


@dataclass(frozen=True)
class OperatorRow:
    index: int
    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]


@dataclass(frozen=True)
class ConstantRow:
    """A constant that an operator computes with: what the file stores of it, and what unpacks it."""

    tensor: Tensor
    reader: str  # the operator
    packing: str
    elements: int
    stored_bytes: int
    entropy_bytes: int | None  # of its codes; None if codes have more than 8 bits


@dataclass(frozen=True)
class TfliteInspection(Shown):
    file: str
    bytes: int
    deflated_bytes: int
    constant_bytes: int
    overhead_bytes: int  # of everything but constants
    inputs: list[Tensor]
    outputs: list[Tensor]
    integer_only: bool
    float_operators: list[str]
    operators: list[OperatorRow]
    constants: list[ConstantRow]
    folds: ClassVar[bool] = True

    def shown(self) -> Iterator[str | Table]:
        floats = ", ".join(self.float_operators)
        yield f"integer only: {'yes' if self.integer_only else f'no ({floats})'}"
        yield (
            f"{self.bytes:,} bytes ({self.deflated_bytes:,} deflated): {self.constant_bytes:,} of constants, "
            f"{self.overhead_bytes:,} of overhead"
        )
        for side, tensors in (("input", self.inputs), ("output", self.outputs)):
            for tensor in tensors:
                scale = f", scale {tensor.smallest_scale:.6g}" if tensor.scales else ""
                point = f", zero point {tensor.zero_point}" if tensor.scales else ""
                yield f"{side}: {tensor.text}{scale}{point}"
        yield ""
        table = narrow("", "operator", "inputs", "outputs", whole=("", "operator"))
        for operator in self.operators:
            sides = (", ".join(each.text for each in side) for side in (operator.inputs, operator.outputs))
            table.add_row(str(operator.index), operator.name, *sides)
        yield table
        yield ""
        table = narrow("constant of", "tensor", "scales", "packing", "stored", "entropy")
        for row in self.constants:
            table.add_row(
                row.reader,
                row.tensor.text,
                row.tensor.quantization,
                row.packing,
                f"{row.stored_bytes:,}",
                "-" if row.entropy_bytes is None else f"{row.entropy_bytes:,}",
            )
        yield table


def inspect_tflite(path: Path) -> TfliteInspection:
    tflite = read_bytes(path)
    try:
        model = read(tflite)
    except LqError as error:
        raise LqError(f"{path}: {error}") from error
    rows = [row for graph in model.graphs for row in _operator_rows(graph)]
    floats = [
        f"{row.index} {row.name}"
        for row in rows
        if any("FLOAT" in tensor.type for tensor in (*row.inputs, *row.outputs))
    ]
    stored = [tensor for graph in model.graphs for tensor in graph.tensors if tensor.is_constant]
    constant_bytes, allowance = _stored_bytes(stored), Allowance(tflite)
    return TfliteInspection(
        file=str(path),
        bytes=len(tflite),
        deflated_bytes=deflated(tflite),
        constant_bytes=constant_bytes,
        overhead_bytes=len(tflite) - constant_bytes,
        inputs=[_row(model.main, index) for index in model.main.inputs],
        outputs=[_row(model.main, index) for index in model.main.outputs],
        integer_only=not floats,
        float_operators=floats,
        operators=rows,
        constants=[row for graph in model.graphs for row in Constants(graph, allowance).rows()],
    )


def _operator_rows(graph: Graph) -> list[OperatorRow]:
    return [
        OperatorRow(
            place,
            operator.code.shown_name,
            [_row(graph, index) for index in operator.operands],
            [_row(graph, index) for index in operator.outputs],
        )
        for place, operator in enumerate(graph.operators)
    ]


def _row(graph: Graph, index: int) -> Tensor:
    tensor = graph.tensors[index]
    scales, points = tensor.scales.tolist(), tensor.zero_points.tolist()
    return Tensor(
        index=index,
        name=shown(tensor.name),
        shape=tensor.shape,
        type=tensor.type,
        scales=len(scales),
        smallest_scale=min(scales, default=None),
        largest_scale=max(scales, default=None),
        zero_point=points[0] if scales and points else None,
    )


def stored_arrays(tensors: list[tflite_graph.Tensor]) -> list[np.ndarray]:
    """The stored data of constants: each buffer once, with the indices of sparse ones."""
    buffers = dict.fromkeys(tensor.buffer for tensor in tensors)
    places = [array for tensor in tensors for array in tensor.index_arrays()]
    return [*(buffer.data for buffer in buffers), *places]


def _stored_bytes(tensors: list[tflite_graph.Tensor]) -> int:
    return sum(array.nbytes for array in stored_arrays(tensors))


class Allowance:
    """The limit for bits of constants that are read. Many tensors of a hostile file may share one buffer."""

    #: For each byte of the file. A code takes at least a bit, except zeros of sparse kernels.
    BITS = 32

    def __init__(self, tflite: bytes) -> None:
        self.left = LARGEST_TENSOR + self.BITS * len(tflite)

    def take(self, bits: int) -> bool:
        if bits > self.left:
            return False
        self.left -= bits
        return True


class Constants:
    """The constants of a graph, including those that operators unpack from other constants.

    An operator is not followed if its result depends on more than MOST_PARTS constants or operators, or if it
    makes more than MOST_MADE tensors: no packing is like that.
    """

    MOST_PARTS, MOST_MADE = 16, 1024

    def __init__(self, graph: Graph, allowance: Allowance) -> None:
        self.graph, self.allowance = graph, allowance
        #: For each constant tensor, the stored constants and the operators that it is made from.
        self.sources: dict[int, list[int]] = {}
        self.makers: dict[int, list[Operator]] = {}
        for index, tensor in enumerate(graph.tensors):
            if tensor.is_constant:
                self.sources[index], self.makers[index] = [index], []
        self.readers = []
        for place, operator in enumerate(graph.operators):
            inputs, outputs = operator.operands, operator.outputs
            known = inputs and all(index in self.sources for index in inputs)
            if not known or len(outputs) > self.MOST_MADE:
                self.readers.append((place, operator))
                continue
            for number, output in enumerate(outputs):
                # A DECODE may make several tensors, each from two inputs.
                own = inputs[2 * number :][:2] if operator.code.shown_name == DECODE else inputs
                # Each once: every operator in a long chain may read a tensor twice.
                sources = dict.fromkeys(source for index in own for source in self.sources[index])
                makers = dict.fromkeys(maker for index in own for maker in self.makers[index])
                if max(len(sources), len(makers) + 1) > self.MOST_PARTS:
                    self.readers.append((place, operator))
                    break
                self.sources[output], self.makers[output] = list(sources), [*makers, operator]

    def rows(self) -> list[ConstantRow]:
        rows: dict[int, ConstantRow] = {}
        for place, operator in self.readers:
            for index in operator.operands:
                if index in self.sources and index not in rows:
                    rows[index] = self.row(index, f"{place} {operator.code.shown_name}")
        return list(rows.values())

    def row(self, index: int, reader: str) -> ConstantRow:
        tensor = self.graph.tensors[index]
        elements = math.prod(tensor.shape)
        stored_bytes = _stored_bytes([self.graph.tensors[source] for source in self.sources[index]])
        looks = self.allowance.take(max(elements, 8 * stored_bytes))
        codes = self._codes(index, elements) if looks else None
        return ConstantRow(
            tensor=_row(self.graph, index),
            reader=reader,
            packing=self._packing(index),
            elements=elements,
            stored_bytes=stored_bytes,
            entropy_bytes=None if codes is None else round(encoding.entropy_bits(codes) / 8),
        )

    def _packing(self, index: int) -> str:
        """The name of a constant's packing, as quantize calls it."""
        tensor = self.graph.tensors[index]
        names = [maker.code.shown_name for maker in self.makers[index]]
        if tensor.sparsity is not None or "DENSIFY" in names:
            return "sparse"
        if DECODE in names and "GATHER" in names:
            return "huffman-blocks"
        if DECODE in names:
            return _MODES.get(self._stored(self.sources[index][1])[0], DECODE)
        return " ".join(names) or tensor.type.lower()

    def _stored(self, index: int) -> np.ndarray:
        return self.graph.tensors[index].buffer.data

    def _codes(self, index: int, elements: int) -> np.ndarray | None:
        """The codes of a constant, in any order; None if they are wider than a byte or not understood."""
        sources = [self.graph.tensors[source] for source in self.sources[index]]
        if elements > LARGEST_TENSOR:  # the shapes of a damaged or hostile file may claim anything
            return None
        packing, stored = self._packing(index), self._stored(self.sources[index][0])
        kind = sources[0].type
        if packing == "sparse" and kind == "INT8":
            return np.pad(stored.view(np.int8), (0, max(0, elements - stored.size)))
        if packing in ("int4", "int2"):
            return encoding.unpack_bits(stored, int(packing[3:]))[:elements]
        if packing in ("int8", "uint8"):
            return stored.view(packing)
        if packing in _MODES.values():
            return encoding.decode(encoding.Encoded(stored.tobytes(), self._ancillary(index)), elements)
        if packing == "huffman-blocks":
            return self._blocks(index)
        return None

    def _ancillary(self, index: int) -> bytes:
        return self._stored(self.sources[index][1]).tobytes()

    def _blocks(self, index: int) -> np.ndarray | None:
        """The rows of a codebook that GATHER looks up, with numbers that DECODE makes."""
        named = {maker.code.shown_name: maker for maker in self.makers[index]}
        (book,) = set(self.sources[index]) & set(named["GATHER"].operands)
        count = math.prod(self.graph.tensors[named[DECODE].outputs[0]].shape)
        stream, ancillary = (self._stored(source).tobytes() for source in named[DECODE].inputs[:2])
        if count * math.prod(self.graph.tensors[book].shape[1:]) > LARGEST_TENSOR:
            return None
        numbers = encoding.decode(encoding.Encoded(stream, ancillary), count)
        rows = self._stored(book).view(np.int8).reshape(self.graph.tensors[book].shape)
        return None if numbers is None else rows[numbers]
