"""A typed view of .tflite files for reading, packing, removing channels, inspecting and C sources.

:func:`lqconvert.tflite.flatbuffer.read` makes a :class:`Model` of a file, and ``write`` makes a file of a
model. What the view has no fields for stays in ``stored``, the schema's own object, and is written as it was
read.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.errors import LqError
from lqconvert.utils.text import MOST_OF_A_NAME, printable

#: For each linear operator, the positions of its input, kernel and bias among its inputs.
OPERANDS = {
    "CONV_2D": (0, 1, 2),
    "DEPTHWISE_CONV_2D": (0, 1, 2),
    "FULLY_CONNECTED": (0, 1, 2),
    "TRANSPOSE_CONV": (2, 1, 3),
}
LSTM = "UNIDIRECTIONAL_SEQUENCE_LSTM"
#: The positions of its kernels for inputs and for the hidden state, and of its biases: gates i, f, c, o.
LSTM_INPUT_KERNELS, LSTM_STATE_KERNELS, LSTM_BIASES = slice(1, 5), slice(5, 9), slice(12, 16)


def _names(enumeration: object) -> dict[int, str]:
    """The names of the values of one of the schema's enumerations."""
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


OPERATOR_NAMES = _names(schema.BuiltinOperator)
TYPE_NAMES = _names(schema.TensorType)
TYPE_NUMBERS = {name: number for number, name in TYPE_NAMES.items()}
_ACTIVATION_NAMES = _names(schema.ActivationFunctionType)
#: The types of values that are read and written.
DTYPES: dict[str, type[np.generic]] = {
    "INT8": np.int8,
    "INT32": np.int32,
    "UINT8": np.uint8,
    "INT16": np.int16,
    "INT64": np.int64,
    "FLOAT32": np.float32,
}


def text_of(name: bytes | None) -> str:
    """A stored name as text, whatever bytes it has; empty if there is none."""
    return (name or b"").decode(errors="replace")


def shown(name: bytes | None) -> str:
    """A stored name as it is shown, shortened: a tensor's name is shown for each operator that reads it."""
    return printable(name or "", MOST_OF_A_NAME)


@dataclass(eq=False)
class Buffer:
    """The bytes of a constant. They never change: a constant that changes gets another buffer.

    Attributes:
        data: uint8, one-dimensional; empty for computed tensors.
    """

    data: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray) -> Buffer:
        """A buffer with a copy of an array's bytes."""
        content = array.tobytes()
        buffer = cls(np.frombuffer(content, np.uint8))
        buffer.content = content
        return buffer

    @cached_property
    def content(self) -> bytes:
        """The data as bytes. Python keeps their hash, by which equal buffers are found."""
        return self.data.tobytes()


@dataclass(frozen=True, eq=False)
class Quantization:
    """The conversion of codes to real values: (code - zero point) * scale.

    Attributes:
        scales: float32, one, or as many as the tensor's length along ``axis``; None if the file has none.
        zero_points: int64, as many as scales.
        low, high: the converter's notes of the range (min and max). No runtime reads them.
    """

    scales: np.ndarray | None = None
    zero_points: np.ndarray | None = None
    axis: int = 0
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    stored: object = None

    @classmethod
    def one(cls, scale: float | np.floating, zero_point: int = 0) -> Quantization:
        """One scale and zero point for the whole tensor."""
        return cls(np.array([scale], np.float32), np.array([zero_point], np.int64))


@dataclass(eq=False)
class Tensor:
    """A tensor: a constant, the result of an operator, or an input.

    Attributes:
        type: the schema's name, such as INT8.
        shape: no length is negative.
        name: as stored; :func:`text_of` makes text of it.
        sparsity: the schema's description of a sparse constant.
        variable: it keeps its values from one run to the next, until the program resets it.
    """

    type: str
    shape: tuple[int, ...]
    buffer: Buffer
    quantization: Quantization | None = None
    name: bytes | None = None
    sparsity: schema.SparsityParametersT | None = None
    variable: bool = False
    stored: object = None

    @property
    def is_constant(self) -> bool:
        return len(self.buffer.data) > 0

    @property
    def scales(self) -> np.ndarray:
        """Its scales; empty if it has none."""
        scales = None if self.quantization is None else self.quantization.scales
        return np.zeros(0, np.float32) if scales is None else scales

    @property
    def zero_points(self) -> np.ndarray:
        """Its zero points; empty if it has none."""
        points = None if self.quantization is None else self.quantization.zero_points
        return np.zeros(0, np.int64) if points is None else points

    @property
    def zero_point(self) -> int:
        """The code for 0: the first zero point, if there are several."""
        return int(self.zero_points[0]) if len(self.zero_points) else 0

    def values(self) -> np.ndarray | None:
        """A constant's values in its shape. None for a computed tensor, or a type that is not in DTYPES.

        Raises:
            LqError: if the file does not have as many bytes as the shape needs.
        """
        if not self.is_constant or self.type not in DTYPES:
            return None
        try:
            return self.buffer.data.view(DTYPES[self.type]).reshape(self.shape)
        except ValueError as error:
            raise LqError("the .tflite file is damaged (a constant does not fill its shape)") from error

    def set_values(self, array: np.ndarray) -> None:
        """Gives the tensor a new buffer (others may share the old one) and the array's shape."""
        self.buffer, self.shape = Buffer.of(array), array.shape

    def index_arrays(self) -> list[np.ndarray]:
        """The indices of a sparse constant's codes, as the file stores them."""
        dimensions = [] if self.sparsity is None else self.sparsity.dimMetadata
        vectors = [
            vector
            for dimension in ([] if dimensions is None else dimensions)
            for vector in (dimension.arraySegments, dimension.arrayIndices)
        ]
        return [np.asarray(v.values) for v in vectors if v is not None and v.values is not None]


@dataclass(frozen=True, eq=False)
class OperatorCode:
    """A kind of operator that a file uses.

    Attributes:
        builtin, deprecated: numbers in the schema. Files of old converters have only the second.
        custom: the name of a custom operator.
    """

    builtin: int
    deprecated: int
    version: int = 1
    custom: bytes | None = None
    stored: object = None

    @property
    def name(self) -> str:
        """The schema's name, such as CONV_2D."""
        return OPERATOR_NAMES[max(self.builtin, self.deprecated)]

    @property
    def shown_name(self) -> str:
        """The schema's name, or a custom operator's own name, made printable."""
        return shown(self.custom) if self.name == "CUSTOM" else self.name


@dataclass(eq=False)
class Operator:
    """An operator of a graph.

    Attributes:
        inputs: indices of tensors in its graph, or -1 for an optional input that is missing.
        outputs: indices of tensors in its graph.
        options: its settings, as in the schema.
        intermediates: indices of tensors whose scales it needs for results inside it.
    """

    code: OperatorCode
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: object = None
    intermediates: tuple[int, ...] = ()
    stored: object = None

    @property
    def name(self) -> str:
        """The schema's name, such as CONV_2D."""
        return self.code.name

    @property
    def operands(self) -> list[int]:
        """The inputs that are not missing."""
        return [index for index in self.inputs if index >= 0]

    @property
    def activation(self) -> str:
        """The schema's name of the fused activation: NONE, RELU, ...; a number if it has no name."""
        number = self.option("fusedActivationFunction")
        return _ACTIVATION_NAMES.get(number, str(number))

    def option(self, name: str) -> int:
        """A number in its options, by the schema's name."""
        return int(getattr(self.options, name))

    def set_option(self, name: str, value: object) -> None:
        """Changes one of its options, without changing other models that share them."""
        self.options = copy.copy(self.options)
        setattr(self.options, name, value)


@dataclass(eq=False)
class Graph:
    """The main graph, or one that an operator of control flow calls. Operators are in execution order."""

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    stored: object = None

    def copy(self) -> Graph:
        tensors, operators = map(replace, self.tensors), map(replace, self.operators)
        return replace(self, tensors=list(tensors), operators=list(operators))


@dataclass(frozen=True)
class Port:
    """An input or output, with the name by which programs find it."""

    name: bytes | None
    tensor: int  # index in the signature's graph
    stored: object = None


@dataclass(eq=False)
class Signature:
    """The names of a graph's inputs and outputs."""

    graph: int  # index
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    key: bytes | None = None
    stored: object = None


@dataclass(eq=False)
class Model:
    """A .tflite file. Every index in it refers to something, and there is at least one graph.

    Attributes:
        graphs: the main one first.
        codes: of operators, in the file's order. Those of new operators are added when it is written.
        buffers: in the file's order. Those of new constants are added when it is written.
        signatures, metadata: None if the file has no such list, which differs from an empty list.
    """

    graphs: list[Graph]
    codes: list[OperatorCode] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    signatures: list[Signature] | None = None
    metadata: list[schema.MetadataT] | None = None
    description: bytes | None = None
    stored: object = None

    @classmethod
    def empty(cls) -> Model:
        """A file with one empty graph."""
        stored = schema.ModelT()
        stored.version = 3
        return cls([Graph()], buffers=[Buffer.of(np.zeros(0, np.uint8))], stored=stored)

    @property
    def main(self) -> Graph:
        """The graph that programs run."""
        return self.graphs[0]

    def copy(self) -> Model:
        """A copy that can be edited. Both share what never changes, such as buffers."""
        signatures = self.signatures and [
            replace(each, inputs=[*each.inputs], outputs=[*each.outputs]) for each in self.signatures
        ]
        graphs = [graph.copy() for graph in self.graphs]
        return replace(
            self, graphs=graphs, codes=[*self.codes], buffers=[*self.buffers], signatures=signatures
        )
