"""Builds graphs of operators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.tflite.editing import COMPUTED, new_operator
from lqconvert.tflite.graph import DTYPES, Graph, Model, Quantization, Tensor

#: The options of operations of two tensors.
OPTIONS = {
    "ADD": schema.AddOptionsT,
    "SUB": schema.SubOptionsT,
    "MUL": schema.MulOptionsT,
    "MINIMUM": schema.MaximumMinimumOptionsT,
}


class Builder:
    """Adds tensors and operators to a graph. Methods return the index of a tensor."""

    def __init__(self, model: Model, graph: Graph) -> None:
        self.model, self.graph = model, graph

    def tensor(self, kind: str, shape: tuple[int, ...], quantization: Quantization | None = None) -> int:
        self.graph.tensors.append(Tensor(kind, shape, COMPUTED, quantization))
        return len(self.graph.tensors) - 1

    def constant(self, array: np.ndarray, quantization: Quantization | None = None) -> int:
        kind = next(kind for kind, dtype in DTYPES.items() if dtype == array.dtype)
        index = self.tensor(kind, array.shape, quantization)
        self.graph.tensors[index].set_values(array)
        return index

    def operator(
        self,
        name: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: object = None,
        version: int = 1,
    ) -> int:
        operator = new_operator(self.model, name, inputs, outputs, options, version=version)
        self.graph.operators.append(operator)
        return outputs[0]

    def shaped(self, index: int, shape: tuple[int, ...]) -> int:
        """The tensor, or a RESHAPE of it."""
        tensor = self.graph.tensors[index]
        if tensor.shape == shape:
            return index
        return self.reshaped(index, self.tensor(tensor.type, shape, tensor.quantization))

    def reshaped(self, index: int, result: int) -> int:
        """A RESHAPE of one tensor into another."""
        options = schema.ReshapeOptionsT()
        options.newShape = np.array(self.graph.tensors[result].shape, np.int32)
        return self.operator("RESHAPE", [index], [result], options)

    def cast(self, source: int, kind: str, quantization: Quantization | None = None) -> int:
        """The codes of a tensor in another type."""
        tensor, options = self.graph.tensors[source], schema.CastOptionsT()
        options.inDataType = getattr(schema.TensorType, tensor.type)
        options.outDataType = getattr(schema.TensorType, kind)
        return self.operator("CAST", [source], [self.tensor(kind, tensor.shape, quantization)], options)

    def wide(self, scale: float | np.floating, *shape: int) -> int:
        """A new int16 tensor."""
        return self.tensor("INT16", shape, Quantization.one(scale))

    def elementwise(self, name: str, *operands: int, scale: float, activation: str = "NONE") -> int:
        """A function of an int16 tensor, or an operation with another one of its shape or repeated."""
        options = OPTIONS[name]() if name in OPTIONS else None
        if isinstance(options, (schema.AddOptionsT, schema.SubOptionsT)):
            options.potScaleInt16 = False
            options.fusedActivationFunction = getattr(schema.ActivationFunctionType, activation)
        result = self.wide(scale, *self.graph.tensors[operands[0]].shape)
        return self.operator(name, operands, [result], options, version=2)
