"""Causal attention in the file: a MINIMUM of scores and a constant, the lowest code for later steps."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.keras_loader.custom_layers import CausalMask
from lqconvert.tflite.editing import add_constant, new_operator
from lqconvert.tflite.graph import DTYPES, Model, Operator


def put_causal_mask(model: Model, placeholder: Operator, layer: CausalMask) -> None:
    """Replaces a placeholder by the mask. Scores that count keep their codes."""
    graph = model.main
    (source, *_), (output, *_) = placeholder.inputs, placeholder.outputs
    scores = graph.tensors[source]
    graph.tensors[output].quantization = scores.quantization  # the placeholder's may differ by a rounding
    lowest, highest = (-128, 127) if scores.type == "INT8" else (-32767, 32767)
    codes = np.where(layer.allowed(*scores.shape[-2:]), highest, lowest).astype(DTYPES[scores.type])
    codes = codes.reshape((1,) * (len(scores.shape) - 2) + codes.shape)
    mask = add_constant(model, codes, scores.quantization)
    graph.operators[graph.operators.index(placeholder)] = new_operator(
        model, "MINIMUM", [source, mask], [output], schema.MaximumMinimumOptionsT(), version=2
    )
