"""Functions of single values as tables of 256 results, which stock operators look up.

TFLite has integer kernels for a few functions. All others become three operators that both runtimes execute:
CAST (to int32), ADD (128, so that no index is negative) and GATHER (from the table).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from lqconvert.keras_loader.custom_layers import Elementwise
from lqconvert.tflite.editing import add_constant, add_tensor, new_operator
from lqconvert.tflite.graph import Model, Operator, Tensor

#: A placeholder for the converter is a LeakyReLU. Its slope is this plus a number: no network has such a one.
FIRST_SLOPE = 4096.0


def placeholder_slope(number: int) -> float:
    """The slope of the placeholder for the function of this number."""
    return FIRST_SLOPE + number


def number_of(operator: Operator) -> int | None:
    """The number of the function for which an operator is a placeholder, if it is one."""
    if operator.name != "LEAKY_RELU":
        return None
    slope = float(getattr(operator.options, "alpha", 0.0))
    return round(slope - FIRST_SLOPE) if slope >= FIRST_SLOPE else None


def table_of(layer: Elementwise, source: Tensor, output: Tensor) -> np.ndarray:
    """The codes (int8 [256]) of a function's results for the codes -128 to 127 of its input.

    Each is the code nearest to the result in the output's scale.
    """
    codes = np.arange(-128, 128)
    real = ((codes - source.zero_point) * np.float64(source.scales[0])).astype(np.float32)
    results = layer.call(tf.constant(real)).numpy().astype(np.float64)
    steps = np.round(results / np.float64(output.scales[0])) + output.zero_point
    return np.clip(np.nan_to_num(steps), -128, 127).astype(np.int8)


def put_lookup(model: Model, placeholder: Operator, layer: Any) -> None:
    """Replaces a placeholder by the lookup of a function."""
    graph = model.main
    (source, *_), (output, *_) = placeholder.inputs, placeholder.outputs
    tensors, shape = graph.tensors, graph.tensors[source].shape
    table = table_of(layer, tensors[source], tensors[output])
    indices, shifted = add_tensor(model, "INT32", shape), add_tensor(model, "INT32", shape)
    offset = add_constant(model, np.array([128], np.int32))
    values = add_constant(model, table, tensors[output].quantization)
    cast = schema.CastOptionsT()
    cast.inDataType, cast.outDataType = schema.TensorType.INT8, schema.TensorType.INT32
    place = graph.operators.index(placeholder)
    graph.operators[place : place + 1] = [
        new_operator(model, "CAST", [source], [indices], cast),
        new_operator(model, "ADD", [indices, offset], [shifted], schema.AddOptionsT()),
        new_operator(model, "GATHER", [values, shifted], [output], schema.GatherOptionsT()),
    ]
