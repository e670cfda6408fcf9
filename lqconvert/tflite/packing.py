"""Packs an int8 .tflite, tensor by tensor: the smallest file that a runtime executes with equal results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.errors import LqError
from lqconvert.tflite import encoding
from lqconvert.tflite.editing import (
    COMPUTED,
    Needless,
    add_constant,
    add_tensor,
    drop_flattening,
    merge_reshapes,
    new_operator,
    reshape,
    strip,
)
from lqconvert.tflite.flatbuffer import size_of, write
from lqconvert.tflite.graph import (
    LSTM,
    LSTM_INPUT_KERNELS,
    LSTM_STATE_KERNELS,
    OPERANDS,
    Buffer,
    Graph,
    Model,
    Operator,
    Quantization,
    text_of,
)

#: The custom operator that TFLite Micro registers with AddDecode().
DECODE = "TFLM_DECODE"
#: No packing has more overhead than this in a file, so an encoding that is larger by more cannot win.
MOST_OVERHEAD = 800


@dataclass(frozen=True)
class Kernel:
    """A weight tensor of an int8 file.

    Attributes:
        tensor: its index in the main graph.
        operator: the first one that reads it, by the schema's name.
        buffer: the buffer of its codes.
        codes: int8, in the shape of the tensor.
        scales: the number of its scales.
        consumers: the number of operators that read it.
        name: of its layer, if names were given to the file.
    """

    tensor: int
    operator: str
    buffer: Buffer = field(repr=False)
    codes: np.ndarray = field(repr=False)
    scales: int
    consumers: int
    name: str = ""


@dataclass(frozen=True, eq=False)
class Stored:
    """A kernel as a packing stores it. The base class is for int8: one byte a code.

    Attributes:
        packing: the packing's name.
        size: the bytes of the stored codes, with tables.
    """

    packing: str
    size: int

    def write(self, model: Model, kernel: Kernel) -> None:
        """Changes a model in place, so that it stores the kernel in this way."""

    def unpacked_bytes(self, kernel: Kernel) -> int:
        """The memory that a microcontroller needs to unpack the kernel in each inference, in bytes."""
        return 0


@dataclass(frozen=True)
class Packing:
    """A way to store a kernel. The base class stores it as int8: one byte a code.

    Args:
        operators: those whose kernels the runtime executes in this form.
    """

    operators: Collection[str] = tuple(OPERANDS)
    name: ClassVar[str] = "int8"

    def fits(self, kernel: Kernel) -> bool:
        return kernel.operator in self.operators

    def encode(self, kernel: Kernel) -> Stored | None:
        """The encoded kernel, or None if the codes have no such form."""
        return as_int8(kernel)


def as_int8(kernel: Kernel) -> Stored:
    """A kernel as int8."""
    return Stored(INT8.name, kernel.codes.nbytes)


@dataclass(frozen=True, eq=False)
class NarrowCodes(Stored):
    """Codes of 4 or 2 bits."""

    type: str
    codes: np.ndarray  # uint8

    def write(self, model: Model, kernel: Kernel) -> None:
        tensor = model.main.tensors[kernel.tensor]
        tensor.set_values(self.codes)
        tensor.shape, tensor.type = kernel.codes.shape, self.type

    def unpacked_bytes(self, kernel: Kernel) -> int:
        return kernel.codes.size


@dataclass(frozen=True)
class Narrow(Packing):
    """INT4 or INT2 tensors: two or four codes a byte.

    Args:
        per_channel: operators that the runtime executes with one scale for each channel.
        per_tensor: whether the runtime executes them with one scale.
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
        # If rows do not fill their bytes, XNNPACK leaves them to other kernels, which round differently.
        rows = kernel.operator != "FULLY_CONNECTED" or kernel.codes.shape[-1] % (8 // self.bits) == 0
        return super().fits(kernel) and scales and rows and -half <= low and high < half

    def encode(self, kernel: Kernel) -> NarrowCodes:
        codes = encoding.pack_bits(kernel.codes, self.bits)
        return NarrowCodes(self.name, codes.nbytes, f"INT{self.bits}", codes)


class _Unpacked(Packing):
    """Base class of packings that an operator in front of the kernel's consumer unpacks."""

    def fits(self, kernel: Kernel) -> bool:
        return super().fits(kernel) and kernel.consumers == 1


def _consumer(graph: Graph, kernel: Kernel) -> int:
    """The index of the first operator that reads a kernel."""
    return next(place for place, each in enumerate(graph.operators) if kernel.tensor in each.inputs)


def _insert(model: Model, kernel: Kernel, operators: Sequence[Operator]) -> None:
    """Inserts operators in front of a kernel's consumer. The last one makes the kernel."""
    graph = model.main
    graph.tensors[kernel.tensor].buffer = COMPUTED
    place = _consumer(graph, kernel)
    graph.operators[place:place] = operators


@dataclass(frozen=True, eq=False)
class SparseCodes(Stored):
    """The codes that are not zero, and their indices along an axis.

    Attributes:
        axis: of the kernel.
        segments: for each row of the axis, the index of its first code, and finally the number of codes.
        indices: for each code, its index in its row.
        codes: the codes that are not zero, row by row.
    """

    axis: int
    segments: np.ndarray
    indices: np.ndarray
    codes: np.ndarray

    def write(self, model: Model, kernel: Kernel) -> None:
        axis, graph = self.axis, model.main
        if kernel.operator == "FULLY_CONNECTED":
            _as_convolution(model, kernel)
            axis = 3 * axis  # [out, in] is [out, 1, 1, in] now
        tensor = graph.tensors[kernel.tensor]
        packed = add_constant(model, self.codes, tensor.quantization)
        graph.tensors[packed].shape = tensor.shape
        graph.tensors[packed].sparsity = self._sparsity(tensor.shape, axis)
        densify = new_operator(model, "DENSIFY", [packed], [kernel.tensor], schema.DensifyOptionsT())
        _insert(model, kernel, [densify])

    def _sparsity(self, shape: tuple[int, ...], axis: int) -> schema.SparsityParametersT:
        order = [*(other for other in range(len(shape)) if other != axis), axis]
        sparsity = schema.SparsityParametersT()
        sparsity.traversalOrder = np.array(order, np.int32)
        sparsity.dimMetadata = [_dense(shape[other]) for other in order[:-1]]
        compressed = schema.DimensionMetadataT()
        compressed.format = schema.DimensionType.SPARSE_CSR
        compressed.arraySegmentsType, compressed.arraySegments = _index_vector(self.segments)
        compressed.arrayIndicesType, compressed.arrayIndices = _index_vector(self.indices)
        sparsity.dimMetadata.append(compressed)
        return sparsity


@dataclass(frozen=True)
class Sparse(_Unpacked):
    """The codes that are not zero and their indices in the rows of one axis, for LiteRT's DENSIFY.

    The kernel is unpacked once, when the file is loaded. XNNPACK fails to prepare a FULLY_CONNECTED operator
    behind DENSIFY (it looks for the kernel in the file), so that operator becomes an equal CONV_2D of one
    pixel.
    """

    name: ClassVar[str] = "sparse"

    def encode(self, kernel: Kernel) -> SparseCodes | None:
        """The encoding along the axis that takes the fewest bytes."""
        kept = int(np.count_nonzero(kernel.codes))
        if not kept or 2 * kept >= kernel.codes.size:  # DENSIFY needs one; each takes two bytes
            return None
        mask = kernel.codes != 0
        axis = min(range(mask.ndim), key=lambda axis: _sparse_bytes(mask, kept, axis))
        rows = np.moveaxis(mask, axis, -1)
        rows = np.ascontiguousarray(rows).reshape(-1, rows.shape[-1])
        segments = _narrowest(np.concatenate([[0], np.cumsum(np.count_nonzero(rows, axis=1))]))
        indices = _narrowest(np.nonzero(rows)[1])
        codes = np.ascontiguousarray(np.moveaxis(kernel.codes, axis, -1)).reshape(rows.shape)[rows]
        size = segments.nbytes + indices.nbytes + codes.nbytes
        return SparseCodes(self.name, size, axis, segments, indices, codes)


def _sparse_bytes(mask: np.ndarray, kept: int, axis: int) -> int:
    """The bytes of segments and indices along an axis."""
    others = tuple(other for other in range(mask.ndim) if other != axis)
    largest, rows = np.flatnonzero(mask.any(axis=others))[-1:], mask.size // mask.shape[axis]
    return int((rows + 1) * _narrowest(np.array([kept])).itemsize + kept * _narrowest(largest).itemsize)


def _size(stored: Stored) -> int:
    return stored.size


def _as_convolution(model: Model, kernel: Kernel) -> None:
    """Replaces a FULLY_CONNECTED operator by a CONV_2D of one pixel, between two RESHAPEs."""
    graph, (outputs, inputs) = model.main, kernel.codes.shape
    place = _consumer(graph, kernel)
    connected = graph.operators[place]
    source, result = connected.inputs[0], connected.outputs[0]
    graph.tensors[kernel.tensor].shape = (outputs, 1, 1, inputs)
    rows = int(np.prod(graph.tensors[source].shape)) // inputs
    pixels = [
        add_tensor(model, "INT8", (rows, 1, 1, channels), graph.tensors[index].quantization)
        for index, channels in ((source, inputs), (result, outputs))
    ]
    options = schema.Conv2DOptionsT()
    options.padding = schema.Padding.VALID
    options.strideH = options.strideW = 1
    options.fusedActivationFunction = connected.option("fusedActivationFunction")
    operands = [pixels[0], kernel.tensor, *connected.inputs[2:]]
    graph.operators[place : place + 1] = [
        reshape(model, source, pixels[0]),
        new_operator(model, "CONV_2D", operands, [pixels[1]], options, version=3),
        reshape(model, pixels[1], result),
    ]


def _narrowest(numbers: np.ndarray) -> np.ndarray:
    largest = numbers.max(initial=0)
    return numbers.astype(np.uint8 if largest < 256 else np.uint16 if largest < 65536 else np.int32)


def _dense(size: int) -> schema.DimensionMetadataT:
    metadata = schema.DimensionMetadataT()
    metadata.format, metadata.denseSize = schema.DimensionType.DENSE, size
    return metadata


def _index_vector(numbers: np.ndarray) -> tuple[int, object]:
    kind = {1: "Uint8Vector", 2: "Uint16Vector", 4: "Int32Vector"}[numbers.itemsize]
    vector = getattr(schema, f"{kind}T")()
    vector.values = numbers
    return getattr(schema.SparseIndexVector, kind), vector


@dataclass(frozen=True, eq=False)
class DecodedCodes(Stored):
    """The inputs of TFLite Micro's DECODE."""

    encoded: encoding.Encoded

    def write(self, model: Model, kernel: Kernel) -> None:
        tensor = model.main.tensors[kernel.tensor]
        # DECODE refuses another axis, even if the scales have length 1 along it.
        if kernel.scales == 1 and tensor.quantization is not None:
            tensor.quantization = replace(tensor.quantization, axis=0)
        _insert(model, kernel, [decode(model, self.encoded, kernel.tensor)])

    def unpacked_bytes(self, kernel: Kernel) -> int:
        return kernel.codes.size


def decode(model: Model, encoded: encoding.Encoded, output: int) -> Operator:
    """A DECODE operator that makes a tensor."""
    inputs = [
        add_constant(model, np.frombuffer(data, np.uint8)) for data in (encoded.stream, encoded.ancillary)
    ]
    return new_operator(model, "CUSTOM", inputs, [output], custom=DECODE)


@dataclass(frozen=True)
class Lut(_Unpacked):
    """Indices of 1 to 7 bits into a table of values."""

    name: ClassVar[str] = "lut"

    def encode(self, kernel: Kernel) -> DecodedCodes | None:
        encoded = encoding.encode_lut(kernel.codes)
        return None if encoded is None else DecodedCodes(self.name, encoded.size, encoded)


@dataclass(frozen=True)
class Huffman(_Unpacked):
    """One word of a Huffman code for each code."""

    name: ClassVar[str] = "huffman"

    def encode(self, kernel: Kernel) -> DecodedCodes:
        encoded = encoding.encode_huffman(kernel.codes.ravel())
        return DecodedCodes(self.name, encoded.size, encoded)


@dataclass(frozen=True)
class Pruning(_Unpacked):
    """A bitmap and the codes that are not zero."""

    name: ClassVar[str] = "pruning"

    def encode(self, kernel: Kernel) -> DecodedCodes:
        encoded = encoding.encode_pruning(kernel.codes)
        return DecodedCodes(self.name, encoded.size, encoded)


@dataclass(frozen=True, eq=False)
class BlockCodes(Stored):
    """The encoded block numbers for DECODE, and the codebook for GATHER.

    Attributes:
        book: int8 [blocks, codes].
    """

    stream: encoding.Encoded
    book: np.ndarray

    def write(self, model: Model, kernel: Kernel) -> None:
        count, quantization = kernel.codes.size // self.book.shape[1], Quantization.one(1.0)
        numbers = add_tensor(model, "INT8" if len(self.book) <= 128 else "INT16", (count,))
        indices = add_tensor(model, "INT32", (count,))
        blocks = add_tensor(model, "INT8", (count, self.book.shape[1]), quantization)
        table = add_constant(model, self.book, quantization)
        operators = [
            decode(model, self.stream, numbers),
            new_operator(model, "CAST", [numbers], [indices]),
            new_operator(model, "GATHER", [table, indices], [blocks]),
            reshape(model, blocks, kernel.tensor),
        ]
        _insert(model, kernel, operators)

    def unpacked_bytes(self, kernel: Kernel) -> int:
        return kernel.codes.size + 4 * int(kernel.codes.size // self.book.shape[1])


@dataclass(frozen=True)
class HuffmanBlocks(_Unpacked):
    """One word of a Huffman code for each block of codes: less than a bit a code if most are zero.

    DECODE makes the block numbers, and GATHER looks them up in a codebook. At run time this takes four bytes
    of memory for each number, in addition to the kernel.
    """

    name: ClassVar[str] = "huffman-blocks"
    LENGTHS: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 8)

    def encode(self, kernel: Kernel) -> BlockCodes | None:
        found = encoding.encode_blocks(kernel.codes, self.LENGTHS)
        if found is None:
            return None
        stream, book = found
        return BlockCodes(self.name, stream.size + book.nbytes, stream, book)


INT8 = Packing()


def kernels(model: Model) -> list[Kernel]:
    """The constant int8 kernels of the linear operators, in the order of the graph."""
    graph = model.main
    found: dict[int, Kernel] = {}
    readers = Counter(index for operator in graph.operators for index in {*operator.inputs})
    for operator, index in ((each, index) for each in graph.operators for index in _kernels(each)):
        codes = graph.tensors[index].values()
        if codes is None or codes.dtype != np.int8 or index in found:
            continue
        tensor = graph.tensors[index]
        found[index] = Kernel(
            tensor=index,
            operator=operator.name,
            buffer=tensor.buffer,
            codes=codes,
            scales=len(tensor.scales),
            consumers=readers[index],
            name=text_of(tensor.name),
        )
    return list(found.values())


def _kernels(operator: Operator) -> tuple[int, ...]:
    """The tensors of an operator's kernels."""
    if operator.name == LSTM:
        indices = (*operator.inputs[LSTM_INPUT_KERNELS], *operator.inputs[LSTM_STATE_KERNELS])
    else:
        place = OPERANDS[operator.name][1] if operator.name in OPERANDS else len(operator.inputs)
        indices = operator.inputs[place : place + 1]
    return tuple(index for index in indices if index >= 0)


def only_for_micro(model: Model) -> bool:
    """Whether only TFLite Micro loads a file: it has DECODE, or one zero point for several scales."""
    tensors = [tensor for graph in model.graphs for tensor in graph.tensors]
    shared = any(0 < len(tensor.zero_points) < len(tensor.scales) for tensor in tensors)
    return shared or any(code.custom == DECODE.encode() for code in model.codes)


def name_kernels(model: Model, layers: Sequence[str]) -> None:
    """Names the kernels after their layers, so that they can be found after other kernels were removed."""
    found = kernels(model)
    if len(found) != len(layers):
        raise LqError(f"the file has {len(found)} kernels, but {len(layers)} names of layers are given")
    for kernel, layer in zip(found, layers, strict=True):
        model.main.tensors[kernel.tensor].name = layer.encode()


class Encodings:
    """The encodings of kernels, each computed once while the kernel's codes stay the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[Packing, Buffer, tuple[int, ...], str], Stored | None] = {}

    def of(self, kernel: Kernel, packing: Packing) -> Stored | None:
        key = packing, kernel.buffer, kernel.codes.shape, kernel.name
        if key not in self._known:
            self._known[key] = packing.encode(kernel)
        return self._known[key]


@dataclass(frozen=True, eq=False)
class Packed:
    """A packed file: its kernels, and how each of them is stored.

    Attributes:
        source: the int8 file.
        size: of the packed file, in bytes.
    """

    source: Model
    kernels: list[Kernel]
    chosen: list[Stored]
    needless: Needless
    size: int

    @cached_property
    def tflite(self) -> bytes:
        return write(assemble(self.source, self.kernels, self.chosen, self.needless))

    @property
    def packings(self) -> list[str]:
        return [stored.packing for stored in self.chosen]

    @cached_property
    def _size_with_names(self) -> int:
        return size_of(assemble(self.source, self.kernels, self.chosen))

    def bytes_of(self, number: int) -> tuple[int, int]:
        """The bytes of a kernel's stored codes, with tables, and of its overhead elsewhere in the file."""
        kernel, stored = self.kernels[number], self.chosen[number]
        plain = [*self.chosen[:number], as_int8(kernel), *self.chosen[number + 1 :]]
        gained = size_of(assemble(self.source, self.kernels, plain)) - self._size_with_names
        return stored.size, kernel.codes.size - gained - stored.size


def pack(
    model: Model,
    packings: Sequence[Packing],
    forbidden: Mapping[str, Collection[str]] = MappingProxyType({}),
    *,
    needless: Needless = Needless(),  # noqa: B008
    encodings: Encodings | None = None,
    least_gain: float = 0.0,
    room: int | None = None,
) -> Packed:
    """The smallest file: every kernel is stored in the way for which the whole file has the fewest bytes.

    Args:
        model: an int8 file.
        packings: those that the runtime executes.
        forbidden: by kernel name, the names of packings that it may not have.
        needless: what else the file can do without.
        encodings: of files that have most kernels in common with this one.
        least_gain: the share of the file that a packing has to save if unpacking takes memory.
        room: the memory for unpacking a kernel, in bytes, if it is limited.
    """
    found, encodings = kernels(model), encodings or Encodings()
    options = [
        _options(kernel, packings, forbidden.get(kernel.name, ()), encodings, room) for kernel in found
    ]
    chosen = [as_int8(kernel) for kernel in found]
    best = size_of(assemble(model, found, chosen, needless))
    # Twice, because the first kernel with an operator pays for the operator's entry in the file.
    for _ in range(2):
        for n in sorted(range(len(found)), key=lambda n: -found[n].codes.size):
            for stored in options[n]:
                if stored is chosen[n] or stored.size > chosen[n].size + MOST_OVERHEAD:
                    continue
                trial = [*chosen[:n], stored, *chosen[n + 1 :]]
                size = size_of(assemble(model, found, trial, needless))
                costs = stored.unpacked_bytes(found[n]) > chosen[n].unpacked_bytes(found[n])
                if size < best * (1 - least_gain if costs else 1):
                    best, chosen = size, trial
    return Packed(model, found, chosen, needless, best)


def _options(
    kernel: Kernel,
    packings: Sequence[Packing],
    forbidden: Collection[str],
    encodings: Encodings,
    room: int | None,
) -> list[Stored]:
    """The ways to store a kernel in fewer bytes than as int8, the smallest one first."""
    allowed = [packing for packing in packings if packing.name not in forbidden and packing.fits(kernel)]
    stored = [encodings.of(kernel, packing) for packing in allowed]
    smaller = [each for each in stored if each is not None and each.size < kernel.codes.size]
    if room is not None:
        smaller = [each for each in smaller if each.unpacked_bytes(kernel) <= room]
    return sorted(smaller, key=_size)


def assemble(
    model: Model,
    found: Sequence[Kernel],
    chosen: Sequence[Stored],
    needless: Needless = Needless(),  # noqa: B008
) -> Model:
    """A copy of an int8 file with its kernels stored as chosen, without needless parts."""
    packed = model.copy()
    for kernel, stored in zip(found, chosen, strict=True):
        stored.write(packed, kernel)
    merge_reshapes(packed)
    if needless.flattening:
        drop_flattening(packed)
    strip(packed, needless)
    return packed
