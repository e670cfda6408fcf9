"""What is in a .tflite: operators, constants, how they are packed, and what they come to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.errors import LqError
from lqconvert.keras_loader.limits import LARGEST_TENSOR
from lqconvert.tflite import encoding
from lqconvert.tflite.flatbuffer import operator_name, read
from lqconvert.tflite.packing import DECODE
from lqconvert.utils.compression import deflated
from lqconvert.utils.input_files import read_bytes
from lqconvert.utils.terminal import Shown, Table, narrow
from lqconvert.utils.text import MOST_OF_A_NAME, printable

_TYPES = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
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
    """A constant that an operator computes with: of what the file stores, and of all that unpacks it."""

    tensor: Tensor
    reader: str  # the operator
    packing: str
    elements: int
    stored_bytes: int
    entropy_bytes: int | None  # of its codes; None for other than codes of 8 bits or less


@dataclass(frozen=True)
class TfliteInspection(Shown):
    file: str
    bytes: int
    deflated_bytes: int
    constant_bytes: int
    overhead_bytes: int  # all beside constants
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
            f"{self.overhead_bytes:,} beside them"
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
        flat = read(tflite)
    except LqError as error:
        raise LqError(f"{path}: {error}") from error
    graph = flat.subgraphs[0]
    rows = [row for each in flat.subgraphs for row in _operator_rows(flat, each)]
    floats = [
        f"{row.index} {row.name}"
        for row in rows
        if any("FLOAT" in tensor.type for tensor in (*row.inputs, *row.outputs))
    ]
    stored = [
        tensor for each in flat.subgraphs for tensor in each.tensors if data_of(flat, tensor) is not None
    ]
    constant_bytes, allowance = _stored_bytes(flat, stored), Allowance(tflite)
    return TfliteInspection(
        str(path),
        len(tflite),
        deflated(tflite),
        constant_bytes,
        len(tflite) - constant_bytes,
        [_tensor(graph, index) for index in graph.inputs],
        [_tensor(graph, index) for index in graph.outputs],
        not floats,
        floats,
        rows,
        [row for each in flat.subgraphs for row in Constants(flat, each, allowance).rows()],
    )


def name_of(flat: Any, operator: Any) -> str:
    """An operator's name in the schema; a custom one's own."""
    name = operator_name(flat, operator)
    custom = flat.operatorCodes[operator.opcodeIndex].customCode
    return _text(custom) if name == "CUSTOM" else name


def _text(text: Any) -> str:
    """A name; each operator that reads a tensor tells its one."""
    return printable(text or "", MOST_OF_A_NAME)


def _operator_rows(flat: Any, graph: Any) -> list[OperatorRow]:
    return [
        OperatorRow(
            place,
            name_of(flat, operator),
            [_tensor(graph, index) for index in present(operator.inputs)],
            [_tensor(graph, index) for index in present(operator.outputs)],
        )
        for place, operator in enumerate(as_list(graph.operators))
    ]


def as_list(vector: Any) -> list[Any]:
    """A vector of the schema, which is None where the file has none."""
    return [] if vector is None else list(vector)


def present(indices: Any) -> list[int]:
    """The operands that are there: -1 stands for one that is left out."""
    return [int(index) for index in as_list(indices) if index >= 0]


def _tensor(graph: Any, index: int) -> Tensor:
    tensor = graph.tensors[index]
    scales = [] if tensor.quantization is None else as_list(tensor.quantization.scale)
    points = [] if tensor.quantization is None else as_list(tensor.quantization.zeroPoint)
    return Tensor(
        int(index),
        _text(tensor.name),
        _shape(tensor),
        _TYPES[tensor.type],
        len(scales),
        float(min(scales)) if scales else None,
        float(max(scales)) if scales else None,
        int(points[0]) if scales and points else None,
    )


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in as_list(tensor.shape))


def data_of(flat: Any, tensor: Any) -> np.ndarray | None:
    """The bytes of a constant; None for what is computed."""
    data = flat.buffers[tensor.buffer].data
    return None if data is None or not len(data) else np.asarray(data, np.uint8)


def stored_arrays(flat: Any, tensors: list[Any]) -> list[np.ndarray]:
    """What the file holds of constants: a buffer once, and the places in sparse ones with it."""
    places = [
        vector.values
        for tensor in tensors
        for dimension in (as_list(tensor.sparsity.dimMetadata) if tensor.sparsity is not None else [])
        for vector in (dimension.arraySegments, dimension.arrayIndices)
        if vector is not None and vector.values is not None
    ]
    buffers = dict.fromkeys(tensor.buffer for tensor in tensors)
    return [*(np.asarray(flat.buffers[buffer].data) for buffer in buffers), *map(np.asarray, places)]


def _stored_bytes(flat: Any, tensors: list[Any]) -> int:
    return sum(array.nbytes for array in stored_arrays(flat, tensors))


class Allowance:
    """How many bits of constants are looked at: many tensors of a hostile file may share a large buffer."""

    #: For each byte of the file: no code takes less than a bit but zeros of sparse kernels.
    BITS = 32

    def __init__(self, tflite: bytes) -> None:
        self.left = LARGEST_TENSOR + self.BITS * len(tflite)

    def take(self, bits: int) -> bool:
        if bits > self.left:
            return False
        self.left -= bits
        return True


class Constants:
    """The constants of a graph, and what its operators make of constants alone: packed ones, unpacked.

    An operator is not followed where a constant would be made of more than MOST_PARTS others, or by as many
    operators, or where it makes more than MOST_MADE: no packing is like that.
    """

    MOST_PARTS, MOST_MADE = 16, 1024

    def __init__(self, flat: Any, graph: Any, allowance: Allowance) -> None:
        self.flat, self.graph, self.allowance = flat, graph, allowance
        #: For each constant tensor the stored ones that it is made of, and the operators that make it.
        self.sources: dict[int, list[int]] = {}
        self.makers: dict[int, list[Any]] = {}
        for index, tensor in enumerate(graph.tensors):
            if data_of(flat, tensor) is not None:
                self.sources[index], self.makers[index] = [index], []
        self.readers = []
        for place, operator in enumerate(as_list(graph.operators)):
            inputs = present(operator.inputs)
            outputs = present(operator.outputs)
            known = inputs and all(index in self.sources for index in inputs)
            if not known or len(outputs) > self.MOST_MADE:
                self.readers.append((place, operator))
                continue
            for number, output in enumerate(outputs):
                # A DECODE may make several tensors, each of two inputs.
                own = inputs[2 * number :][:2] if name_of(flat, operator) == DECODE else inputs
                # Each once: a tensor may be read twice by every one of a long row of operators.
                sources = dict.fromkeys(source for index in own for source in self.sources[index])
                makers = {id(maker): maker for index in own for maker in self.makers[index]}
                if max(len(sources), len(makers) + 1) > self.MOST_PARTS:
                    self.readers.append((place, operator))
                    break
                self.sources[output], self.makers[output] = list(sources), [*makers.values(), operator]

    def rows(self) -> list[ConstantRow]:
        rows: dict[int, ConstantRow] = {}
        for place, operator in self.readers:
            for index in present(operator.inputs):
                if index in self.sources and index not in rows:
                    rows[index] = self.row(index, f"{place} {name_of(self.flat, operator)}")
        return list(rows.values())

    def row(self, index: int, reader: str) -> ConstantRow:
        tensor = self.graph.tensors[index]
        elements = math.prod(_shape(tensor))
        stored_bytes = _stored_bytes(
            self.flat, [self.graph.tensors[source] for source in self.sources[index]]
        )
        looks = self.allowance.take(max(elements, 8 * stored_bytes))
        codes = self._codes(index, elements) if looks else None
        return ConstantRow(
            _tensor(self.graph, index),
            reader,
            self._packing(index),
            elements,
            stored_bytes,
            None if codes is None else round(encoding.entropy_bits(codes) / 8),
        )

    def _packing(self, index: int) -> str:
        """How a constant is packed, by the name that quantize has for it."""
        tensor = self.graph.tensors[index]
        names = [name_of(self.flat, maker) for maker in self.makers[index]]
        if tensor.sparsity is not None or "DENSIFY" in names:
            return "sparse"
        if DECODE in names and "GATHER" in names:
            return "huffman-blocks"
        if DECODE in names:
            return _MODES.get(self._stored(self.sources[index][1])[0], DECODE)
        return " ".join(names) or _TYPES[tensor.type].lower()

    def _stored(self, index: int) -> np.ndarray:
        return np.asarray(self.flat.buffers[self.graph.tensors[index].buffer].data, np.uint8)

    def _codes(self, index: int, elements: int) -> np.ndarray | None:
        """The codes of a constant, in any order; None where they are wider than a byte or not understood."""
        sources = [self.graph.tensors[source] for source in self.sources[index]]
        if elements > LARGEST_TENSOR:  # of a damaged or hostile file, whose shapes promise what it has not
            return None
        packing, stored = self._packing(index), self._stored(self.sources[index][0])
        kind = _TYPES[sources[0].type]
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
        """What GATHER looks up: the rows of a codebook whose numbers DECODE makes."""
        named = {name_of(self.flat, maker): maker for maker in self.makers[index]}
        (book,) = set(self.sources[index]) & set(present(named["GATHER"].inputs))
        count = math.prod(_shape(self.graph.tensors[named[DECODE].outputs[0]]))
        stream, ancillary = (self._stored(int(source)).tobytes() for source in named[DECODE].inputs[:2])
        if count * math.prod(_shape(self.graph.tensors[book])[1:]) > LARGEST_TENSOR:
            return None
        numbers = encoding.decode(encoding.Encoded(stream, ancillary), count)
        rows = self._stored(book).view(np.int8).reshape(_shape(self.graph.tensors[book]))
        return None if numbers is None else rows[numbers]
