"""From an int8 .tflite to the smallest one that a runtime executes with the same result, tensor by tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.errors import LqError
from lqconvert.tflite import encoding
from lqconvert.tflite.flatbuffer import (
    OPERANDS,
    Needless,
    add_constant,
    add_tensor,
    merge_reshapes,
    new_operator,
    operator_name,
    read,
    reshape,
    set_values,
    strip,
    text_of,
    values,
    write,
)

#: The custom operator that TFLite Micro registers with AddDecode().
DECODE = "TFLM_DECODE"
#: No packing adds more to a file beside what it stores: what stores so much more need not be tried.
MOST_BESIDE = 800


@dataclass(frozen=True)
class Kernel:
    """A weight tensor of an int8 file."""

    tensor: int  # index in the graph
    operator: str
    codes: np.ndarray  # int8, in the shape of the tensor
    scales: int
    consumers: int
    name: str = ""  # of its layer, where the file has been given names


@dataclass(frozen=True)
class Packing:
    """A way to store a kernel. The base stores it as it is: a byte a code.

    Args:
        operators: those whose kernels the runtime executes so.
    """

    operators: Collection[str] = tuple(OPERANDS)
    name: ClassVar[str] = "int8"

    def fits(self, kernel: Kernel) -> bool:
        return kernel.operator in self.operators

    def encode(self, kernel: Kernel) -> Any | None:
        """What is to be stored, or None where the codes have no such form."""
        return kernel.codes

    def stored_bytes(self, encoded: Any) -> int:
        return encoded.nbytes

    def write(self, flat: Any, kernel: Kernel, encoded: Any) -> None:
        """Stores the kernel so, in place."""


@dataclass(frozen=True)
class Narrow(Packing):
    """INT4 or INT2 tensors: two or four codes a byte.

    Args:
        per_channel: operators that the runtime executes with a scale for each channel.
        per_tensor: whether it executes them with one scale.
    """

    operators: Collection[str] = ("FULLY_CONNECTED",)
    bits: int = 4
    per_channel: Collection[str] = tuple(OPERANDS)
    per_tensor: bool = True

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"int{self.bits}"

    def fits(self, kernel: Kernel) -> bool:
        low, high = int(kernel.codes.min()), int(kernel.codes.max())
        half = 1 << (self.bits - 1)
        scales = kernel.operator in self.per_channel if kernel.scales > 1 else self.per_tensor
        # XNNPACK leaves rows that do not fill their bytes to other kernels, which round in another way.
        rows = kernel.operator != "FULLY_CONNECTED" or kernel.codes.shape[-1] % (8 // self.bits) == 0
        return super().fits(kernel) and scales and rows and -half <= low and high < half

    def encode(self, kernel: Kernel) -> np.ndarray:
        return encoding.pack_bits(kernel.codes, self.bits)

    def write(self, flat: Any, kernel: Kernel, encoded: np.ndarray) -> None:
        tensor = flat.subgraphs[0].tensors[kernel.tensor]
        set_values(flat, tensor, encoded)
        tensor.shape = np.array(kernel.codes.shape, np.int32)
        tensor.type = schema.TensorType.INT4 if self.bits == 4 else schema.TensorType.INT2


class _Unpacked(Packing):
    """Base of packings that an operator in front of the kernel's consumer undoes."""

    def fits(self, kernel: Kernel) -> bool:
        return super().fits(kernel) and kernel.consumers == 1

    def _insert(self, flat: Any, kernel: Kernel, operators: Sequence[Any]) -> None:
        """Puts operators, the last of which makes the kernel, in front of its consumer."""
        graph = flat.subgraphs[0]
        graph.tensors[kernel.tensor].buffer = 0
        places = [place for place, operator in enumerate(graph.operators) if kernel.tensor in operator.inputs]
        graph.operators[places[0] : places[0]] = operators


@dataclass(frozen=True)
class Sparse(_Unpacked):
    """The codes that are not zero and their places in the rows of one axis, for LiteRT's DENSIFY.

    Unpacked once, when the file is loaded. XNNPACK fails to prepare a FULLY_CONNECTED operator behind it (it
    looks for the kernel in the file), so that becomes the CONV_2D of one pixel that it equals.
    """

    name: ClassVar[str] = "sparse"

    def encode(self, kernel: Kernel) -> tuple[int, np.ndarray, np.ndarray, np.ndarray] | None:
        """(axis, segments, indices, codes) of the compressed axis that costs the least."""
        kept = np.count_nonzero(kernel.codes)
        if not kept or 2 * kept >= kernel.codes.size:  # DENSIFY wants some; each takes two bytes at least
            return None
        candidates = []
        for axis in range(kernel.codes.ndim):
            rows = np.moveaxis(kernel.codes, axis, -1)
            places = np.nonzero(rows.reshape(-1, rows.shape[-1]))
            ends = np.cumsum(np.bincount(places[0], minlength=rows.size // rows.shape[-1]))
            segments = _narrowest(np.concatenate([[0], ends]))
            candidates.append((axis, segments, _narrowest(places[1]), rows[rows != 0]))
        return min(candidates, key=self.stored_bytes)

    def stored_bytes(self, encoded: Any) -> int:
        return sum(array.nbytes for array in encoded[1:])

    def write(self, flat: Any, kernel: Kernel, encoded: Any) -> None:
        axis, segments, indices, codes = encoded
        if kernel.operator == "FULLY_CONNECTED":
            _as_convolution(flat, kernel)
            axis = 3 * axis  # [out, in] is [out, 1, 1, in] now
        graph = flat.subgraphs[0]
        shape = [int(n) for n in graph.tensors[kernel.tensor].shape]
        order = [*(other for other in range(len(shape)) if other != axis), axis]
        sparsity = schema.SparsityParametersT()
        sparsity.traversalOrder = np.array(order, np.int32)
        sparsity.dimMetadata = [_dense(shape[other]) for other in order[:-1]]
        compressed = schema.DimensionMetadataT()
        compressed.format = schema.DimensionType.SPARSE_CSR
        compressed.arraySegmentsType, compressed.arraySegments = _index_vector(segments)
        compressed.arrayIndicesType, compressed.arrayIndices = _index_vector(indices)
        sparsity.dimMetadata.append(compressed)
        packed = add_constant(flat, codes, graph.tensors[kernel.tensor].quantization)
        graph.tensors[packed].shape, graph.tensors[packed].sparsity = np.array(shape, np.int32), sparsity
        densify = new_operator(flat, "DENSIFY", [packed], [kernel.tensor], schema.DensifyOptionsT())
        self._insert(flat, kernel, [densify])


def _as_convolution(flat: Any, kernel: Kernel) -> None:
    """Makes a FULLY_CONNECTED operator a CONV_2D of one pixel, between two RESHAPEs."""
    graph, (outputs, inputs) = flat.subgraphs[0], kernel.codes.shape
    place = next(i for i, operator in enumerate(graph.operators) if kernel.tensor in operator.inputs)
    connected = graph.operators[place]
    source, result = int(connected.inputs[0]), int(connected.outputs[0])
    graph.tensors[kernel.tensor].shape = np.array((outputs, 1, 1, inputs), np.int32)
    rows = int(np.prod(graph.tensors[source].shape)) // inputs
    pixels = [
        add_tensor(flat, schema.TensorType.INT8, (rows, 1, 1, channels), graph.tensors[index].quantization)
        for index, channels in ((source, inputs), (result, outputs))
    ]
    options = schema.Conv2DOptionsT()
    options.padding = schema.Padding.VALID
    options.strideH = options.strideW = 1
    options.fusedActivationFunction = connected.builtinOptions.fusedActivationFunction
    operands = [pixels[0], kernel.tensor, *connected.inputs[2:]]
    graph.operators[place : place + 1] = [
        reshape(flat, source, pixels[0]),
        new_operator(flat, "CONV_2D", operands, [pixels[1]], options, version=3),
        reshape(flat, pixels[1], result),
    ]


def _narrowest(numbers: np.ndarray) -> np.ndarray:
    largest = numbers.max(initial=0)
    return numbers.astype(np.uint8 if largest < 256 else np.uint16 if largest < 65536 else np.int32)


def _dense(size: int) -> Any:
    metadata = schema.DimensionMetadataT()
    metadata.format, metadata.denseSize = schema.DimensionType.DENSE, size
    return metadata


def _index_vector(numbers: np.ndarray) -> tuple[int, Any]:
    kind = {1: "Uint8Vector", 2: "Uint16Vector", 4: "Int32Vector"}[numbers.itemsize]
    vector = getattr(schema, f"{kind}T")()
    vector.values = numbers
    return getattr(schema.SparseIndexVector, kind), vector


class _Decoded(_Unpacked):
    """Base of what TFLite Micro's DECODE undoes."""

    def stored_bytes(self, encoded: Any) -> int:
        return encoded.size

    def write(self, flat: Any, kernel: Kernel, encoded: encoding.Encoded) -> None:
        quantization = flat.subgraphs[0].tensors[kernel.tensor].quantization
        if kernel.scales == 1:  # DECODE refuses another axis, even where there is nothing along it
            quantization.quantizedDimension = 0
        self._insert(flat, kernel, [decode(flat, encoded, kernel.tensor)])


def decode(flat: Any, encoded: encoding.Encoded, output: int) -> Any:
    """A DECODE operator that makes a tensor."""
    inputs = [
        add_constant(flat, np.frombuffer(data, np.uint8)) for data in (encoded.stream, encoded.ancillary)
    ]
    return new_operator(flat, "CUSTOM", inputs, [output], custom=DECODE)


@dataclass(frozen=True)
class Lut(_Decoded):
    """Indices of 1 to 7 bits into a table of the values."""

    name: ClassVar[str] = "lut"

    def encode(self, kernel: Kernel) -> encoding.Encoded | None:
        return encoding.encode_lut(kernel.codes)


@dataclass(frozen=True)
class Huffman(_Decoded):
    """A word of a Huffman code for each code."""

    name: ClassVar[str] = "huffman"

    def encode(self, kernel: Kernel) -> encoding.Encoded | None:
        return encoding.encode_huffman(kernel.codes.ravel())


@dataclass(frozen=True)
class Pruning(_Decoded):
    """A bitmap and the codes that are not zero."""

    name: ClassVar[str] = "pruning"

    def encode(self, kernel: Kernel) -> encoding.Encoded | None:
        return encoding.encode_pruning(kernel.codes)


@dataclass(frozen=True)
class HuffmanBlocks(_Decoded):
    """A word of a Huffman code for each block of codes: less than a bit for a code where most are zero.

    DECODE makes the blocks' numbers, GATHER looks them up in a codebook. Takes more memory while it runs:
    four bytes for each number beside the kernel itself.
    """

    name: ClassVar[str] = "huffman-blocks"
    LENGTHS: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 8)

    def encode(self, kernel: Kernel) -> tuple[encoding.Encoded, np.ndarray] | None:  # type: ignore[override]
        found = (encoding.encode_blocks(kernel.codes, length) for length in self.LENGTHS)
        return min((each for each in found if each is not None), key=self.stored_bytes, default=None)

    def stored_bytes(self, encoded: Any) -> int:
        return encoded[0].size + encoded[1].nbytes

    def write(self, flat: Any, kernel: Kernel, encoded: Any) -> None:
        stream, book = encoded
        kinds, count = schema.TensorType, kernel.codes.size // book.shape[1]
        numbers = add_tensor(flat, kinds.INT8 if len(book) <= 128 else kinds.INT16, (count,))
        indices = add_tensor(flat, kinds.INT32, (count,))
        quantization = _unit_quantization()
        blocks = add_tensor(flat, kinds.INT8, (count, book.shape[1]), quantization)
        table = add_constant(flat, book, quantization)
        operators = [
            decode(flat, stream, numbers),
            new_operator(flat, "CAST", [numbers], [indices]),
            new_operator(flat, "GATHER", [table, indices], [blocks]),
            reshape(flat, blocks, kernel.tensor),
        ]
        self._insert(flat, kernel, operators)


def _unit_quantization() -> Any:
    quantization = schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = np.ones(1, np.float32), np.zeros(1, np.int64)
    return quantization


INT8 = Packing()


def kernels(flat: Any) -> list[Kernel]:
    """The constant int8 kernels of the linear operators, in the order of the graph."""
    graph, found = flat.subgraphs[0], {}
    readers = Counter(index for operator in graph.operators for index in {*map(int, operator.inputs)})
    for operator in graph.operators:
        name = operator_name(flat, operator)
        place = OPERANDS[name][1] if name in OPERANDS else len(operator.inputs)
        index = int(operator.inputs[place]) if place < len(operator.inputs) else -1
        codes = values(flat, index) if index >= 0 else None
        if codes is None or codes.dtype != np.int8 or index in found:
            continue
        tensor = graph.tensors[index]
        scales = None if tensor.quantization is None else tensor.quantization.scale
        found[index] = Kernel(
            index, name, codes, 0 if scales is None else len(scales), readers[index], text_of(tensor.name)
        )
    return list(found.values())


def name_kernels(tflite: bytes, layers: Sequence[str]) -> bytes:
    """The file with its kernels named after their layers: whatever is taken out of it, they are known."""
    flat = read(tflite)
    found = kernels(flat)
    if len(found) != len(layers):
        raise LqError(f"the file has {len(found)} kernels, but there are {len(layers)} names of layers")
    for kernel, layer in zip(found, layers, strict=True):
        flat.subgraphs[0].tensors[kernel.tensor].name = layer
    return write(flat)


@dataclass(frozen=True)
class Packed:
    """A packed file: its kernels, and for each how it is stored and what is stored of it."""

    tflite: bytes
    source: bytes = field(repr=False)  # the int8 file
    kernels: list[Kernel] = field(repr=False)
    chosen: list[tuple[Packing, Any]] = field(repr=False)

    @property
    def packings(self) -> list[str]:
        return [packing.name for packing, _ in self.chosen]

    def bytes_of(self, number: int) -> tuple[int, int]:
        """The bytes of a kernel's codes as they are stored, tables included, and what else that adds."""
        kernel, (packing, encoded) = self.kernels[number], self.chosen[number]
        plain = [*self.chosen[:number], (INT8, kernel.codes), *self.chosen[number + 1 :]]
        gained = len(assemble(self.source, self.kernels, plain)) - len(
            assemble(self.source, self.kernels, self.chosen)
        )
        stored = packing.stored_bytes(encoded)
        return stored, kernel.codes.size - gained - stored


def pack(
    tflite: bytes,
    packings: Sequence[Packing],
    forbidden: Mapping[str, Collection[str]] = MappingProxyType({}),
    *,
    needless: Needless = Needless(),  # noqa: B008
) -> Packed:
    """The smallest file: every kernel is stored as it takes the fewest bytes of the whole file.

    Args:
        tflite: an int8 file.
        packings: what the runtime executes.
        forbidden: names of packings that a kernel, by its name, may not have.
        needless: what else the file can do without.
    """
    found = kernels(read(tflite))
    options = [_options(kernel, packings, forbidden.get(kernel.name, ())) for kernel in found]
    chosen: list[tuple[Packing, Any]] = [(INT8, kernel.codes) for kernel in found]
    best = assemble(tflite, found, chosen, needless)
    # Twice: the first kernel to use an operator pays for its entry in the file.
    for _ in range(2):
        for n in sorted(range(len(found)), key=lambda n: -found[n].codes.size):
            for packing, encoded in options[n]:
                now, stored = chosen[n], packing.stored_bytes(encoded)
                if packing is now[0] or stored > now[0].stored_bytes(now[1]) + MOST_BESIDE:
                    continue
                trial = [*chosen[:n], (packing, encoded), *chosen[n + 1 :]]
                file = assemble(tflite, found, trial, needless)
                if len(file) < len(best):
                    best, chosen = file, trial
    return Packed(best, tflite, found, chosen)


def _options(
    kernel: Kernel, packings: Sequence[Packing], forbidden: Collection[str]
) -> list[tuple[Packing, Any]]:
    """The packings that a kernel can have and what they store of it, the smallest first."""
    allowed = [packing for packing in packings if packing.name not in forbidden and packing.fits(kernel)]
    encoded = [(packing, packing.encode(kernel)) for packing in allowed]
    known = [(packing, data) for packing, data in encoded if data is not None]
    smaller = [each for each in known if each[0].stored_bytes(each[1]) < kernel.codes.size]
    return sorted(smaller, key=lambda each: each[0].stored_bytes(each[1]))


def assemble(
    tflite: bytes,
    found: Sequence[Kernel],
    chosen: Sequence[tuple[Packing, Any]],
    needless: Needless = Needless(),  # noqa: B008
) -> bytes:
    """An int8 file with its kernels stored as chosen: for each a packing and what that encoded."""
    flat = read(tflite)
    for kernel, (packing, encoded) in zip(found, chosen, strict=True):
        packing.write(flat, kernel, encoded)
    merge_reshapes(flat)
    strip(flat, needless)
    return write(flat)
