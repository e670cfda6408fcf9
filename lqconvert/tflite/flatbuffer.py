"""Reads a .tflite file into a :class:`lqconvert.tflite.graph.Model`, and writes one.

Only this module knows the classes that flatbuffers generates, which have no types.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, TypeVar

import flatbuffers
import flatbuffers.table
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.errors import LqError
from lqconvert.tflite.editing import drop_unused
from lqconvert.tflite.graph import (
    OPERATOR_NAMES,
    TYPE_NAMES,
    TYPE_NUMBERS,
    Buffer,
    Graph,
    Model,
    Operator,
    OperatorCode,
    Port,
    Quantization,
    Signature,
    Tensor,
)

_T = TypeVar("_T")

#: The limit for tables of a file (operators, tensors, buffers, ...). A large network has some thousands.
MOST_TABLES = 200_000
#: The limit for the bytes of all vectors that are read: this many times the file's bytes, plus a constant.
VECTOR_READS, SHARED_BYTES = 4, 4 << 20


def read(tflite: bytes) -> Model:
    """Reads a file as a model. Its arrays are views of a copy of the file.

    Raises:
        LqError: if the bytes are no .tflite file, are damaged, or have an index that refers to nothing.
    """
    return _model(_read(_Source(tflite)))


@dataclass
class Touched:
    """The places of a file's content: the start of every table, and (start, end) of everything else."""

    tables: list[int] = field(default_factory=list)
    texts: list[tuple[int, int]] = field(default_factory=list)
    vectors: list[tuple[int, int]] = field(default_factory=list)  # of numbers, without their lengths
    links: list[tuple[int, int]] = field(default_factory=list)  # lengths of vectors, and their references
    source: bytes = b""  # the copy of the file; the model's arrays are views of it


def read_places(tflite: bytes) -> tuple[Model, Touched]:
    """Reads a file as :func:`read` does, and returns also the places of its content."""
    source = _Source(tflite)
    return _model(_read(source)), replace(source.touched, source=source)


class _Source(bytes):
    """A file's bytes while they are read, with the limits that are left and the places that were read."""

    def __init__(self, data: bytes) -> None:
        self.touched = Touched()
        self.left = {"tables": min(MOST_TABLES, len(data) // 4), "text": len(data)}
        # Many tables may refer to one vector: writers share equal vectors, and a stranger may share a huge
        # one.
        self.left["vectors"] = VECTOR_READS * len(data) + SHARED_BYTES

    def take(self, kind: str, amount: int) -> None:
        self.left[kind] -= amount
        if self.left[kind] < 0:
            raise LqError(f"the .tflite file is damaged (more {kind} than fit in it)")


class _Table(flatbuffers.table.Table):
    """A table of a :class:`_Source`. It counts what is read."""

    def __init__(self, data: bytes, position: int) -> None:
        super().__init__(data, position)
        if isinstance(data, _Source):
            data.take("tables", 1)
            if not 0 <= position < len(data):
                raise LqError("the .tflite file is damaged (a table lies outside it)")
            data.touched.tables.append(position)

    def String(self, offset: int) -> bytes:
        text: bytes = super().String(offset)
        self.Bytes.take("text", len(text))
        start = super().Indirect(offset)
        self.Bytes.touched.texts.append((start, start + 4 + len(text) + 1))  # length, text, a zero
        return text

    def VectorLen(self, offset: int) -> int:
        start = self.Vector(offset)
        self.Bytes.touched.links.append((start - 4, start))
        return int(super().VectorLen(offset))

    def Indirect(self, offset: int) -> int:
        self.Bytes.touched.links.append((offset, offset + 4))
        return int(super().Indirect(offset))

    def GetVectorAsNumpy(self, flags: Any, offset: int) -> np.ndarray:
        array: np.ndarray = super().GetVectorAsNumpy(flags, offset)
        self.Bytes.take("vectors", array.nbytes)
        start = self.Vector(offset)
        self.Bytes.touched.vectors.append((start, start + array.nbytes))
        return array


def _counting_schema() -> Any:
    """A copy of the generated reader that makes our tables. The module that others import does not change.

    The generated code takes its table class from the module ``flatbuffers``. Replacing it there would change
    every reader in the process, those in other threads too.
    """
    spec = importlib.util.find_spec(schema.__name__)
    assert spec is not None
    assert spec.loader is not None
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    own.__dict__["flatbuffers"] = SimpleNamespace(
        **{**vars(flatbuffers), "table": SimpleNamespace(Table=_Table)}
    )
    return own


_SCHEMA = _counting_schema()


def _read(source: _Source) -> Any:
    if len(source) < 8 or source[4:8] != b"TFL3":
        raise LqError("not a .tflite file (it does not begin as one)")
    try:
        flat = _SCHEMA.ModelT.InitFromPackedBuf(source, 0)
        _refuse_dangling(flat)
    except LqError:
        raise
    except Exception as error:  # damaged offsets make the generated reader raise anything
        raise LqError(f"the .tflite file is damaged ({type(error).__name__})") from error
    return flat


def _refuse_dangling(flat: Any) -> None:
    """Refuses a file with an index that refers to nothing, or an impossible length or operator."""

    def within(indices: Any, count: int, lowest: int = 0) -> None:
        indices = np.atleast_1d(np.asarray([] if indices is None else indices, np.int64))
        if indices.size and (indices.min() < lowest or indices.max() >= count):
            raise LqError("the .tflite file is damaged (an index in it refers to nothing)")

    if not flat.subgraphs or not flat.buffers:
        raise LqError("the .tflite file has no graph")
    for code in flat.operatorCodes or []:
        if max(code.builtinCode, code.deprecatedBuiltinCode) not in OPERATOR_NAMES:
            raise LqError(f"the .tflite file has the unknown operator {code.builtinCode}")
    for graph in flat.subgraphs:
        graph.tensors, graph.operators = graph.tensors or [], graph.operators or []
        count = len(graph.tensors)
        for group in (graph, *graph.operators):
            group.inputs, group.outputs = (
                np.zeros(0, np.int32) if indices is None else indices
                for indices in (group.inputs, group.outputs)
            )
            within(group.inputs, count, -1)
            within(group.outputs, count)
        within([place for each in graph.operators for place in _numbers(each.intermediates)], count)
        within([operator.opcodeIndex for operator in graph.operators], len(flat.operatorCodes or []))
        within([tensor.buffer for tensor in graph.tensors], len(flat.buffers))
        for tensor in graph.tensors:
            if tensor.type not in TYPE_NAMES:
                raise LqError(f"the .tflite file has a tensor of the unknown type {tensor.type}")
            if min([] if tensor.shape is None else tensor.shape, default=0) < 0:
                raise LqError("the .tflite file is damaged (a tensor with a negative length)")
    for signature in flat.signatureDefs or []:
        signature.inputs, signature.outputs = signature.inputs or [], signature.outputs or []
        entries = [*signature.inputs, *signature.outputs]
        within(signature.subgraphIndex, len(flat.subgraphs))
        within([entry.tensorIndex for entry in entries], len(flat.subgraphs[signature.subgraphIndex].tensors))


def _model(tree: Any) -> Model:
    """The view of a tree in which every index refers to something."""
    buffers = [
        Buffer(_NOTHING if raw.data is None else np.asarray(raw.data, np.uint8)) for raw in tree.buffers
    ]
    codes = [
        OperatorCode(raw.builtinCode, raw.deprecatedBuiltinCode, raw.version, raw.customCode, raw)
        for raw in tree.operatorCodes or []
    ]
    signatures = tree.signatureDefs
    return Model(
        graphs=[_graph(raw, codes, buffers) for raw in tree.subgraphs],
        codes=codes,
        buffers=buffers,
        signatures=None if signatures is None else [_signature(raw) for raw in signatures],
        metadata=tree.metadata,
        description=tree.description,
        stored=tree,
    )


_NOTHING = np.zeros(0, np.uint8)


def _graph(raw: Any, codes: Sequence[OperatorCode], buffers: Sequence[Buffer]) -> Graph:
    operators = [
        Operator(
            code=codes[each.opcodeIndex],
            inputs=_numbers(each.inputs),
            outputs=_numbers(each.outputs),
            options=each.builtinOptions,
            intermediates=_numbers(each.intermediates),
            stored=each,
        )
        for each in raw.operators
    ]
    tensors = [_tensor(each, buffers) for each in raw.tensors]
    return Graph(tensors, operators, _numbers(raw.inputs), _numbers(raw.outputs), raw)


def _tensor(raw: Any, buffers: Sequence[Buffer]) -> Tensor:
    each, quantization = raw.quantization, None
    if each is not None:
        quantization = Quantization(
            scales=each.scale,
            zero_points=each.zeroPoint,
            axis=each.quantizedDimension,
            low=each.min,
            high=each.max,
            stored=each,
        )
    return Tensor(
        type=TYPE_NAMES[raw.type],
        shape=_numbers(raw.shape),
        buffer=buffers[raw.buffer],
        quantization=quantization,
        name=raw.name,
        sparsity=raw.sparsity,
        variable=raw.isVariable,
        stored=raw,
    )


def _signature(raw: Any) -> Signature:
    inputs, outputs = (
        [Port(entry.name, entry.tensorIndex, entry) for entry in side] for side in (raw.inputs, raw.outputs)
    )
    return Signature(raw.subgraphIndex, inputs, outputs, raw.signatureKey, raw)


def _numbers(vector: Any) -> tuple[int, ...]:
    return () if vector is None else tuple(np.asarray(vector).tolist())


def write(model: Model) -> bytes:
    """The smallest file of a model: without unused parts, and without duplicates."""
    return serialize(_dense(model))


def size_of(model: Model) -> int:
    """The size of the file that :func:`write` makes of a model, computed without copying its data."""
    model = _dense(model)
    builder = _Builder(_all_buffers(model), measures=True)
    return len(_finished(builder, model)) + builder.left_out


def _dense(model: Model) -> Model:
    dense = model.copy()
    drop_unused(dense)
    return dense


def serialize(model: Model) -> bytes:
    """The file of a model, unchanged."""
    return bytes(_finished(_Builder(_all_buffers(model)), model))


class _Builder(flatbuffers.Builder):
    """Writes equal vectors once, and aligns data for kernels to 16 bytes, as TFLite Micro needs it.

    Args:
        buffers: the buffers of the model.
        measures: leave out most bytes of every vector, but keep the alignment of everything else.
    """

    #: The largest alignment. If a vector is shorter by a multiple of it, the padding elsewhere does not
    #: change.
    ALIGNMENT = 16

    def __init__(self, buffers: Sequence[Buffer], *, measures: bool = False) -> None:
        self.contents = {id(buffer.data): buffer.content for buffer in buffers}
        self.measures, self.left_out = measures, 0
        # When it is full, it doubles and copies everything.
        super().__init__((1 << 16) + (0 if measures else sum(map(len, self.contents.values()))))
        self.written: dict[tuple[str, bytes], int] = {}
        self.tables: dict[object, int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        data = self.contents.get(id(x))
        if data is None:
            data = np.ascontiguousarray(x).tobytes()
        key = x.dtype.str, data
        if key not in self.written:
            if self.measures:
                self.left_out += len(data) - len(data) % self.ALIGNMENT
                data = data[: len(data) % self.ALIGNMENT]
            alignment = self.ALIGNMENT if x.dtype == np.uint8 else x.itemsize
            self.StartVector(x.itemsize, len(data) // x.itemsize, alignment)
            self.head -= len(data)
            self.Bytes[self.head : self.head + len(data)] = data
            self.written[key] = self.EndVector()
        return self.written[key]


@dataclass(frozen=True)
class _Shared:
    """One of the schema's objects whose table is written once for all equal ones."""

    raw: Any
    key: object

    def Pack(self, builder: _Builder) -> int:
        if self.key not in builder.tables:
            builder.tables[self.key] = self.raw.Pack(builder)
        return builder.tables[self.key]


def _finished(builder: _Builder, model: Model) -> memoryview:
    builder.Finish(_tree(model).Pack(builder), b"TFL3")
    return memoryview(builder.Bytes)[builder.head :]


def _all_buffers(model: Model) -> list[Buffer]:
    """The model's buffers, of which the first is empty, and the buffers of its new constants."""
    return _with_new(model.buffers, [tensor.buffer for graph in model.graphs for tensor in graph.tensors])


def _all_codes(model: Model) -> list[OperatorCode]:
    return _with_new(model.codes, [each.code for graph in model.graphs for each in graph.operators])


def _with_new(known: Sequence[_T], used: Sequence[_T]) -> list[_T]:
    return [*dict.fromkeys([*known, *used])]


def _tree(model: Model) -> Any:
    """The schema's objects for a model. The objects that it was read from do not change."""
    buffers, codes = _all_buffers(model), _all_codes(model)
    buffer_places = {buffer: place for place, buffer in enumerate(buffers)}
    code_places = {code: place for place, code in enumerate(codes)}
    tree = _copied(model.stored, schema.ModelT)
    tree.buffers = [_raw_buffer(buffer) for buffer in buffers]
    tree.operatorCodes = [_raw_code(code) for code in codes]
    tree.subgraphs = [_raw_graph(graph, buffer_places, code_places) for graph in model.graphs]
    signatures = model.signatures
    tree.signatureDefs = None if signatures is None else [_raw_signature(each) for each in signatures]
    tree.metadata, tree.description = model.metadata, model.description
    return tree


def _copied(stored: object, kind: type) -> Any:
    """A copy of one of the schema's objects, or a new object of this class if there is none."""
    return kind() if stored is None else copy.copy(stored)


def _raw_buffer(buffer: Buffer) -> Any:
    raw = schema.BufferT()
    raw.data = buffer.data if len(buffer.data) else None
    return raw


def _raw_code(code: OperatorCode) -> Any:
    raw = _copied(code.stored, schema.OperatorCodeT)
    raw.builtinCode, raw.deprecatedBuiltinCode = code.builtin, code.deprecated
    raw.version, raw.customCode = code.version, code.custom
    return raw


def _raw_graph(graph: Graph, buffers: dict[Buffer, int], codes: dict[OperatorCode, int]) -> Any:
    raw = _copied(graph.stored, schema.SubGraphT)
    raw.tensors = [_raw_tensor(tensor, buffers[tensor.buffer]) for tensor in graph.tensors]
    raw.operators = [_raw_operator(operator, codes[operator.code]) for operator in graph.operators]
    raw.inputs, raw.outputs = np.array(graph.inputs, np.int32), np.array(graph.outputs, np.int32)
    return raw


def _raw_tensor(tensor: Tensor, buffer: int) -> Any:
    raw, quantization = _copied(tensor.stored, schema.TensorT), tensor.quantization
    raw.type, raw.buffer, raw.name = TYPE_NUMBERS[tensor.type], buffer, tensor.name
    # LiteRT takes a missing shape for an unknown one.
    raw.shape, raw.sparsity = np.array(tensor.shape, np.int32), tensor.sparsity
    raw.isVariable = tensor.variable
    raw.quantization = None
    if quantization is not None:
        each = raw.quantization = _copied(quantization.stored, schema.QuantizationParametersT)
        each.scale, each.zeroPoint = quantization.scales, quantization.zero_points
        each.quantizedDimension, each.min, each.max = quantization.axis, quantization.low, quantization.high
        if quantization.scales is not None and not each.detailsType and each.min is None and each.max is None:
            key = tensor.scales.tobytes(), tensor.zero_points.tobytes(), quantization.axis
            raw.quantization = _Shared(each, key)
    return raw


def _raw_operator(operator: Operator, code: int) -> Any:
    raw = _copied(operator.stored, schema.OperatorT)
    raw.opcodeIndex = code
    raw.inputs, raw.outputs = np.array(operator.inputs, np.int32), np.array(operator.outputs, np.int32)
    if operator.intermediates:
        raw.intermediates = np.array(operator.intermediates, np.int32)
    options = operator.options
    kind = type(options).__name__.removesuffix("T")
    if options is not raw.builtinOptions:
        raw.builtinOptions, raw.builtinOptionsType = options, getattr(schema.BuiltinOptions, kind)
    if options is not None and all(isinstance(each, (int, float)) for each in vars(options).values()):
        raw.builtinOptions = _Shared(options, (kind, *vars(options).values()))
    return raw


def _raw_signature(signature: Signature) -> Any:
    raw = _copied(signature.stored, schema.SignatureDefT)
    raw.subgraphIndex, raw.signatureKey = signature.graph, signature.key
    raw.inputs = [_raw_port(port) for port in signature.inputs]
    raw.outputs = [_raw_port(port) for port in signature.outputs]
    return raw


def _raw_port(port: Port) -> Any:
    raw = _copied(port.stored, schema.TensorMapT)
    raw.name, raw.tensorIndex = port.name, port.tensor
    return raw
