"""Masks of steps in the file: int8 [1, steps, 1], with the zero point as the code of masked steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.errors import LqError
from lqconvert.exporting.int16_builder import Int16Builder
from lqconvert.keras_loader.custom_layers import Slice
from lqconvert.keras_loader.recurrent_layers import StepMask, inputs_and_mask
from lqconvert.quantization.layers import ActivationQuantizer
from lqconvert.tflite.builder import Builder
from lqconvert.tflite.graph import DTYPES, Graph, Model, Operator, Quantization


@dataclass
class StepMasks:
    """The masks that a file has, by the name of their layer and whether the last step comes first.

    Attributes:
        inputs: the names of the model's inputs, in the file's order.
    """

    model: Model
    inputs: list[str]
    found: dict[tuple[str, bool], int] = field(default_factory=dict)

    def put(self, placeholder: Operator, inputs: Any, states: Any) -> int | None:
        """The mask of a recurrent layer; None if it has none. Its operators are put before a placeholder.

        Args:
            inputs, states: the layers of the rewritten model.
        """
        _, tensor = inputs_and_mask(states)
        if tensor is None:
            return None
        layer = tensor._keras_history.layer
        backward = isinstance(layer, Slice)
        mask = layer.input._keras_history.layer if backward else layer
        graph = self.model.main
        builder = Int16Builder(self.model, Graph(graph.tensors))
        if (mask.name, backward) not in self.found:
            if (mask.name, not backward) in self.found:
                found = _reversed(builder, self.found[mask.name, not backward])
            elif mask.input.dtype == "int32":
                # LiteRT compares only codes with a scale below 1.
                found = builder.cast(self.ones(builder, mask), "INT8", Quantization.one(0.5))
                found = _reversed(builder, found) if backward else found
            else:
                source, turned = self._source(placeholder, inputs, mask)
                found = _distances(builder, source, mask)
                found = _reversed(builder, found) if backward != turned else found
            self.found[mask.name, backward] = found
        place = graph.operators.index(placeholder)
        graph.operators[place:place] = builder.graph.operators
        return self.found[mask.name, backward]

    def _source(self, placeholder: Operator, inputs: Any, mask: StepMask) -> tuple[int, bool]:
        """The tensor that a mask compares, and whether its last step comes first."""
        given = self._given(mask)
        if given is not None:
            return given, False
        read = inputs.input
        turned = isinstance(read._keras_history.layer, Slice)
        if (read._keras_history.layer.input if turned else read) is not mask.input:
            raise _hidden(mask)
        return placeholder.inputs[0], turned

    def _given(self, mask: StepMask) -> int | None:
        """The input of the model that a mask compares, if it is one."""
        layer = mask.input._keras_history.layer
        source = layer.input._keras_history.layer if isinstance(layer, ActivationQuantizer) else layer
        return self.model.main.inputs[self.inputs.index(source.name)] if source.name in self.inputs else None

    def ones(self, builder: Int16Builder, mask: StepMask) -> int:
        """1 for every step that counts and 0 for the others: int32 [1, steps, 1]."""
        source, shape = self._given(mask), (1, mask.input.shape[1], 1)
        if source is None:
            raise _hidden(mask)
        if mask.input.dtype == "int32":
            if mask.value:
                raise LqError(f"layer '{mask.name}': a mask of the index {mask.value:g}")
            numbers = builder.shaped(source, shape)
        elif builder.graph.tensors[source].type == "INT16":
            numbers = builder.cast(_wide_distances(builder, source, mask), "INT32")
        else:
            codes, offset = _distances(builder, source, mask), builder.constant(np.array([128], np.int32))
            numbers = builder.cast(codes, "INT32")
            numbers = builder.operator(
                "ADD", [numbers, offset], [builder.tensor("INT32", shape)], schema.AddOptionsT()
            )
        one, result = builder.constant(np.array([1], np.int32)), builder.tensor("INT32", shape)
        return builder.operator("MINIMUM", [numbers, one], [result], schema.MaximumMinimumOptionsT())


def _hidden(mask: StepMask) -> LqError:
    return LqError(
        f"layer '{mask.name}': other layers stand between it and the layer that reads the mask; "
        "put it directly behind an input of the model"
    )


def _distances(builder: Builder, source: int, mask: StepMask) -> int:
    """The largest squared distance of a step's values from the mask's, in steps of their scale."""
    tensor, code = builder.graph.tensors[source], _code(builder, source, mask)
    steps, width = _steps_and_width(mask)
    # LiteRT compares only codes with a scale below 1. A RESHAPE keeps the codes.
    unit = Quantization.one(0.5, tensor.zero_point)
    value = builder.constant(code, unit)
    x = builder.reshaped(source, builder.tensor("INT8", (1, steps, width), unit))
    distance = Quantization.one(0.25, -128)
    squares = builder.tensor("INT8", (1, steps, width), distance)
    options = schema.SquaredDifferenceOptionsT()
    builder.operator("SQUARED_DIFFERENCE", [x, value], [squares], options, version=2)
    reducer, axis = schema.ReducerOptionsT(), builder.constant(np.array([2], np.int32))
    reducer.keepDims = True
    result = builder.tensor("INT8", (1, steps, 1), distance)
    return builder.operator("REDUCE_MAX", [squares, axis], [result], reducer, version=2)


def _wide_distances(builder: Int16Builder, source: int, mask: StepMask) -> int:
    """The sum of a step's squared distances from the mask's value, in steps of int16: only 0 if all are 0.

    TensorFlow Lite Micro has neither SQUARED_DIFFERENCE nor REDUCE_MAX for int16.
    """
    tensor, code = builder.graph.tensors[source], _code(builder, source, mask)
    scale, (steps, width) = float(tensor.scales[0]), _steps_and_width(mask)
    x, value = builder.shaped(source, (1, steps, width)), builder.constant(code, tensor.quantization)
    distances = builder.elementwise("SUB", x, value, scale=scale)
    squares = builder.elementwise("MUL", distances, distances, scale=scale**2)
    return builder.mean(squares, scale**2 / width, axis=2)


def _steps_and_width(mask: StepMask) -> tuple[int, int]:
    """The number of steps, and of a step's values."""
    _, steps, width = (*mask.input.shape, 1)[:3]
    return steps, width


def _code(builder: Builder, source: int, mask: StepMask) -> np.ndarray:
    """The code of a masked step's values, [1]."""
    tensor = builder.graph.tensors[source]
    lowest, highest = (-128, 127) if tensor.type == "INT8" else (-32768, 32767)
    code = np.round(mask.value / tensor.scales[0]) + tensor.zero_point
    return np.clip([code], lowest, highest).astype(DTYPES[tensor.type])


def _reversed(builder: Builder, mask: int) -> int:
    tensor = builder.graph.tensors[mask]
    steps = tensor.shape[1]
    options = schema.StridedSliceOptionsT()
    options.beginMask = options.endMask = 0b111
    bounds = [builder.constant(np.array(each, np.int32)) for each in ([0, 0, 0], [1, steps, 1], [1, -1, 1])]
    result = builder.tensor("INT8", tensor.shape, tensor.quantization)
    return builder.operator("STRIDED_SLICE", [mask, *bounds], [result], options)
