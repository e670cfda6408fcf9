"""Reading, editing and writing .tflite files: what exporting, removal and packing have in common."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import flatbuffers
import flatbuffers.table
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.errors import LqError

#: For each linear operator, the places of its input, kernel and bias among its inputs.
OPERANDS = {
    "CONV_2D": (0, 1, 2),
    "DEPTHWISE_CONV_2D": (0, 1, 2),
    "FULLY_CONNECTED": (0, 1, 2),
    "TRANSPOSE_CONV": (2, 1, 3),
}
_NAMES = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
_TENSOR_TYPES = {value for value in vars(schema.TensorType).values() if isinstance(value, int)}
DTYPES = {
    schema.TensorType.INT8: np.int8,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.UINT8: np.uint8,
    schema.TensorType.INT16: np.int16,
    schema.TensorType.INT64: np.int64,
    schema.TensorType.FLOAT32: np.float32,
}


#: Tables of a file (operators, tensors, buffers, ...): a large network has some thousands.
MOST_TABLES = 200_000
#: All vectors that are read come to so many times the file's bytes, and to this beside.
VECTOR_READS, SHARED_BYTES = 4, 4 << 20


def read(tflite: bytes) -> Any:
    """A file as a tree of the schema's objects (``ModelT``).

    Raises:
        LqError: if the bytes are no .tflite file, are damaged, or refer to what is not there.
    """
    return _read(_Source(tflite))


@dataclass
class Touched:
    """Where in a file its tree lies: the start of every table, and (start, end) of all else that is read."""

    tables: list[int] = field(default_factory=list)
    texts: list[tuple[int, int]] = field(default_factory=list)
    vectors: list[tuple[int, int]] = field(default_factory=list)  # of numbers, without their lengths
    links: list[tuple[int, int]] = field(default_factory=list)  # lengths of vectors, and what these refer by
    source: bytes = b""  # the copy of the file that the tree's arrays are views of


def read_places(tflite: bytes) -> tuple[Any, Touched]:
    """As :func:`read`, and where it all lies."""
    source = _Source(tflite)
    return _read(source), replace(source.touched, source=source)


class _Source(bytes):
    """A file's bytes while they are read: what the tree may still take, and where it was found."""

    def __init__(self, data: bytes) -> None:
        self.touched = Touched()
        self.left = {"tables": min(MOST_TABLES, len(data) // 4), "text": len(data)}
        # Many tables may refer to one vector: writers share equal ones, and a stranger may share a huge one.
        self.left["vectors"] = VECTOR_READS * len(data) + SHARED_BYTES

    def take(self, kind: str, amount: int) -> None:
        self.left[kind] -= amount
        if self.left[kind] < 0:
            raise LqError(f"the .tflite file is damaged (more {kind} than it has room for)")


class _Table(flatbuffers.table.Table):
    """A table of a :class:`_Source`, which counts what is read of it."""

    def __init__(self, data: bytes, position: int) -> None:
        super().__init__(data, position)
        if isinstance(data, _Source):
            data.take("tables", 1)
            if not 0 <= position < len(data):
                raise LqError("the .tflite file is damaged (a table lies outside it)")
            data.touched.tables.append(position)

    def String(self, offset: int) -> bytes:
        text = super().String(offset)
        self.Bytes.take("text", len(text))
        start = super().Indirect(offset)
        self.Bytes.touched.texts.append((start, start + 4 + len(text) + 1))  # its length, itself, a zero
        return text

    def VectorLen(self, offset: int) -> int:
        start = self.Vector(offset)
        self.Bytes.touched.links.append((start - 4, start))
        return int(super().VectorLen(offset))

    def Indirect(self, offset: int) -> int:
        self.Bytes.touched.links.append((offset, offset + 4))
        return int(super().Indirect(offset))

    def GetVectorAsNumpy(self, flags: Any, offset: int) -> np.ndarray:
        array = super().GetVectorAsNumpy(flags, offset)
        self.Bytes.take("vectors", array.nbytes)
        start = self.Vector(offset)
        self.Bytes.touched.vectors.append((start, start + array.nbytes))
        return array


def _counting_schema() -> Any:
    """A copy of the generated reader that makes tables of our kind; the one others import stays as it is.

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
    except Exception as error:  # whatever wild offsets make the schema's reader raise
        raise LqError(f"the .tflite file is damaged ({type(error).__name__})") from error
    return flat


def _refuse_dangling(flat: Any) -> None:
    """Refuses a file in which an index refers to nothing, or a length or an operator is impossible."""

    def within(indices: Any, count: int, lowest: int = 0) -> None:
        indices = np.atleast_1d(np.asarray([] if indices is None else indices, np.int64))
        if indices.size and (indices.min() < lowest or indices.max() >= count):
            raise LqError("the .tflite file is damaged (an index in it refers to nothing)")

    if not flat.subgraphs or not flat.buffers:
        raise LqError("the .tflite file has no graph")
    for code in flat.operatorCodes or []:
        if max(code.builtinCode, code.deprecatedBuiltinCode) not in _NAMES:
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
        within([operator.opcodeIndex for operator in graph.operators], len(flat.operatorCodes or []))
        within([tensor.buffer for tensor in graph.tensors], len(flat.buffers))
        for tensor in graph.tensors:
            if tensor.type not in _TENSOR_TYPES:
                raise LqError(f"the .tflite file has a tensor of the unknown type {tensor.type}")
            if min([] if tensor.shape is None else tensor.shape, default=0) < 0:
                raise LqError("the .tflite file is damaged (a tensor with a negative length)")
    for signature in flat.signatureDefs or []:
        signature.inputs, signature.outputs = signature.inputs or [], signature.outputs or []
        entries = [*signature.inputs, *signature.outputs]
        within(signature.subgraphIndex, len(flat.subgraphs))
        within([entry.tensorIndex for entry in entries], len(flat.subgraphs[signature.subgraphIndex].tensors))


def text_of(name: bytes | str | None) -> str:
    """A name in the schema as text, whatever bytes a stranger gave it."""
    return name.decode(errors="replace") if isinstance(name, bytes) else name or ""


class _Builder(flatbuffers.Builder):
    """Writes equal vectors once, and data for kernels on 16-byte boundaries, as TFLite Micro wants it."""

    def __init__(self) -> None:
        super().__init__(1 << 20)
        self.written: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        data = np.ascontiguousarray(x).tobytes()
        key = x.dtype.str, data
        if key not in self.written:
            self.StartVector(x.itemsize, x.size, 16 if x.dtype == np.uint8 else x.itemsize)
            self.head -= len(data)
            self.Bytes[self.head : self.head + len(data)] = data
            self.written[key] = self.EndVector()
        return self.written[key]


def write(flat: Any) -> bytes:
    """The smallest file of a model: without what nothing refers to, and nothing in it twice."""
    _drop_unused(flat)
    builder = _Builder()
    builder.Finish(flat.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _drop_unused(flat: Any) -> None:
    """Renumbers tensors, buffers and operator codes to those in use; equal buffers become one."""
    buffers, known = [schema.BufferT()], {b"": 0}
    for number, graph in enumerate(flat.subgraphs):
        groups = (graph, *graph.operators)
        signatures = [each for each in flat.signatureDefs or [] if each.subgraphIndex == number]
        entries = [entry for each in signatures for entry in (*each.inputs, *each.outputs)]
        used = {int(i) for group in groups for i in (*group.inputs, *group.outputs) if i >= 0}
        used |= {entry.tensorIndex for entry in entries}
        places = {old: new for new, old in enumerate(sorted(used))} | {-1: -1}
        graph.tensors = [graph.tensors[old] for old in sorted(used)]
        for group in groups:
            group.inputs = np.array([places[int(index)] for index in group.inputs], np.int32)
            group.outputs = np.array([places[int(index)] for index in group.outputs], np.int32)
        for entry in entries:
            entry.tensorIndex = places[entry.tensorIndex]
        for tensor in graph.tensors:
            data = flat.buffers[tensor.buffer].data
            data = b"" if data is None else np.asarray(data, np.uint8).tobytes()
            if data not in known:
                known[data] = len(buffers)
                buffers.append(_buffer(data))
            tensor.buffer = known[data]
            # An empty list would be written as no shape at all, which LiteRT takes for an unknown one.
            tensor.shape = np.asarray([] if tensor.shape is None else tensor.shape, np.int32)
    flat.buffers = buffers
    operators = [operator for graph in flat.subgraphs for operator in graph.operators]
    codes = sorted({operator.opcodeIndex for operator in operators})
    for operator in operators:
        operator.opcodeIndex = codes.index(operator.opcodeIndex)
    flat.operatorCodes = [flat.operatorCodes[old] for old in codes]


def _buffer(data: bytes) -> Any:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(data, np.uint8)
    return buffer


def operator_name(flat: Any, operator: Any) -> str:
    """The schema's name of an operator, such as CONV_2D."""
    code = flat.operatorCodes[operator.opcodeIndex]
    return _NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]


def values(flat: Any, index: int) -> np.ndarray | None:
    """A constant tensor's values in its shape; None for one that is computed or has no such type."""
    tensor = flat.subgraphs[0].tensors[index]
    data = flat.buffers[tensor.buffer].data
    if data is None or not len(data) or tensor.type not in DTYPES:
        return None
    try:
        return np.asarray(data, np.uint8).view(DTYPES[tensor.type]).reshape(np.asarray(tensor.shape, int))
    except ValueError as error:
        raise LqError("the .tflite file is damaged (a constant does not fill its shape)") from error


def set_values(flat: Any, tensor: Any, array: np.ndarray) -> None:
    """Gives a tensor a buffer of its own (others may share its old one) and the array's shape."""
    tensor.buffer = len(flat.buffers)
    tensor.shape = np.array(array.shape, np.int32)
    flat.buffers.append(_buffer(np.ascontiguousarray(array).tobytes()))


def add_tensor(flat: Any, kind: int, shape: tuple[int, ...], quantization: Any = None) -> int:
    """A new tensor of a schema.TensorType that an operator computes; returns its index."""
    tensor = schema.TensorT()
    tensor.type, tensor.shape, tensor.quantization = kind, np.array(shape, np.int32), quantization
    tensor.buffer = 0
    flat.subgraphs[0].tensors.append(tensor)
    return len(flat.subgraphs[0].tensors) - 1


def add_constant(flat: Any, array: np.ndarray, quantization: Any = None) -> int:
    """A new constant tensor; returns its index."""
    kind = next(kind for kind, dtype in DTYPES.items() if dtype == array.dtype)
    index = add_tensor(flat, kind, array.shape, quantization)
    set_values(flat, flat.subgraphs[0].tensors[index], array)
    return index


def new_operator(
    flat: Any,
    name: str,
    inputs: list[int],
    outputs: list[int],
    options: Any = None,
    *,
    version: int = 1,
    custom: str | None = None,
) -> Any:
    """An operator that is not in the graph yet; its code is found or added. ``custom`` names a custom one."""
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, name)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version, code.customCode = version, custom
    operator = schema.OperatorT()
    operator.opcodeIndex = len(flat.operatorCodes)
    for index, known in enumerate(flat.operatorCodes):
        custom_name = known.customCode.decode() if isinstance(known.customCode, bytes) else known.customCode
        if (known.builtinCode, known.version, custom_name) == (code.builtinCode, version, custom):
            operator.opcodeIndex = index
    if operator.opcodeIndex == len(flat.operatorCodes):
        flat.operatorCodes.append(code)
    operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
    if options is not None:
        operator.builtinOptions = options
        kind = type(options).__name__.removesuffix("T")
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
    return operator


def reshape(flat: Any, source: int, target: int) -> Any:
    """A RESHAPE of one tensor into another, whose shape is in the options: a tensor of it costs more."""
    options = schema.ReshapeOptionsT()
    options.newShape = np.asarray(flat.subgraphs[0].tensors[target].shape, np.int32)
    return new_operator(flat, "RESHAPE", [source], [target], options)


def merge_reshapes(flat: Any) -> None:
    """Drops RESHAPEs that another RESHAPE follows, and those that change nothing."""
    graph = flat.subgraphs[0]
    makers = {int(o.outputs[0]): o for o in graph.operators if operator_name(flat, o) == "RESHAPE"}
    for operator in makers.values():
        maker = makers.get(int(operator.inputs[0]))
        if maker is not None:
            operator.inputs = np.array([maker.inputs[0], *operator.inputs[1:]], np.int32)
    outputs = {int(index) for index in graph.outputs}
    for index, operator in makers.items():
        source = int(operator.inputs[0])
        before, after = graph.tensors[source], graph.tensors[index]
        same = np.array_equal(before.shape, after.shape)
        # What a lookup makes has no scale yet: a RESHAPE gives it its kernel's.
        same = same and np.array_equal(_scales(before), _scales(after))
        if same and index not in outputs:
            for other in graph.operators:
                other.inputs = np.where(np.asarray(other.inputs) == index, source, other.inputs)
    read_ = {int(index) for operator in graph.operators for index in operator.inputs} | outputs
    graph.operators = [o for o in graph.operators if int(o.outputs[0]) not in makers.keys() - read_]


def _scales(tensor: Any) -> Any:
    return None if tensor.quantization is None else tensor.quantization.scale


@dataclass(frozen=True)
class Needless:
    """What a file can do without, besides inner names and the converter's notes.

    Args:
        signature: it and the names of inputs and outputs, which programs may find these by.
        bias_scales: those of biases of convolutions. Nobody computes with them, but XNNPACK compares them.
    """

    signature: bool = False
    bias_scales: bool = False


def strip(flat: Any, needless: Needless = Needless()) -> None:
    """Drops what no runtime reads: inner names and the converter's notes, and what else is needless."""
    graph = flat.subgraphs[0]
    kept = set() if needless.signature else {*graph.inputs, *graph.outputs}
    if needless.signature:
        flat.signatureDefs = None
    for operator in graph.operators if needless.bias_scales else ():
        name = operator_name(flat, operator)
        if name in ("CONV_2D", "DEPTHWISE_CONV_2D") and len(operator.inputs) > 2 and operator.inputs[2] >= 0:
            graph.tensors[operator.inputs[2]].quantization = None
    for index, tensor in enumerate(graph.tensors):
        if index not in kept:
            tensor.name = None
        if tensor.quantization is not None:
            tensor.quantization.min = tensor.quantization.max = None
    flat.metadata = None
    flat.description = None
