"""Masks of attention in the file: a MINIMUM of scores and a mask, the lowest code for masked ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from lqconvert.exporting.int16_builder import Int16Builder
from lqconvert.exporting.step_masks import StepMasks
from lqconvert.keras_loader.custom_layers import AttentionMask, ZeroMasked
from lqconvert.keras_loader.recurrent_layers import AnyStep
from lqconvert.tflite.graph import DTYPES, Graph, Operator, Quantization, Tensor


def put_attention_mask(masks: StepMasks, placeholder: Operator, layer: AttentionMask) -> None:
    """Replaces a placeholder by the mask. Scores that count keep their codes."""
    builder, source, output = _begun(masks, placeholder)
    scores = builder.graph.tensors[source]
    lowest, highest = (-128, 127) if scores.type == "INT8" else (-32767, 32767)
    _, queries, keys = layer.scores_and_masks
    steps, others = scores.shape[-2:]

    def codes(mask: Any, shape: tuple[int, ...]) -> int:
        ones = masks.ones(builder, mask._keras_history.layer)
        numbers = builder.integers("MUL", ones, highest - lowest)
        numbers = builder.integers("ADD", numbers, lowest)
        return builder.shaped(builder.cast(numbers, scores.type, scores.quantization), shape)

    parts = [codes(mask, (1, steps, 1)) for mask in queries] + [codes(mask, (1, 1, others)) for mask in keys]
    if layer.causal:
        earlier = np.where(layer.earlier(steps, others), highest, lowest)
        parts.append(builder.constant(earlier[np.newaxis].astype(DTYPES[scores.type]), scores.quantization))
    mask = builder.least(parts)
    shape = (1,) * (len(scores.shape) - 3) + builder.graph.tensors[mask].shape
    builder.minimum(source, builder.shaped(mask, shape), output)
    _put(masks, placeholder, builder)


def put_zeros(masks: StepMasks, placeholder: Operator, layer: ZeroMasked) -> None:
    """Replaces a placeholder by a product with 1 for each step that counts and 0 for the others."""
    builder, source, output = _begun(masks, placeholder)
    mask, kind = layer.input[1]._keras_history.layer, builder.graph.tensors[source].type
    counts = builder.any_step(masks, mask) if isinstance(mask, AnyStep) else masks.ones(builder, mask)
    factor = builder.cast(counts, kind, Quantization.one(1.0))
    builder.operator("MUL", [source, factor], [output], schema.MulOptionsT(), version=2)
    _put(masks, placeholder, builder)


class _Builder(Int16Builder):
    def integers(self, name: str, x: int, number: int) -> int:
        """An operation of an int32 tensor and a number."""
        options = schema.MulOptionsT() if name == "MUL" else schema.AddOptionsT()
        result = self.tensor("INT32", self.graph.tensors[x].shape)
        return self.operator(name, [x, self.constant(np.array([number], np.int32))], [result], options)

    def any_step(self, masks: StepMasks, layer: AnyStep) -> int:
        """Whether any step counts: int8 [1, 1, 1]."""
        given = tf.nest.flatten(layer.input)
        ones = [masks.ones(self, mask._keras_history.layer) for mask in given]
        counts = self.least([self.cast(each, "INT8", Quantization.one(1.0)) for each in ones])
        result = self.tensor("INT8", (1, 1, 1), Quantization.one(1.0))
        options, axis = schema.ReducerOptionsT(), self.constant(np.array([1], np.int32))
        options.keepDims = True
        return self.operator("REDUCE_MAX", [counts, axis], [result], options, version=2)

    def least(self, tensors: Sequence[int]) -> int:
        """The smallest code of several tensors [1, n, m], in each of which both axes may have length 1."""
        found, *others = tensors
        for each in others:
            shapes = [self.graph.tensors[index].shape for index in (found, each)]
            shape = tuple(max(lengths) for lengths in zip(*shapes, strict=True))
            tensor = self.graph.tensors[found]
            found = self.minimum(found, each, self.tensor(tensor.type, shape, tensor.quantization))
        return found

    def minimum(self, x: int, y: int, output: int) -> int:
        return self.operator("MINIMUM", [x, y], [output], schema.MaximumMinimumOptionsT(), version=2)


def _begun(masks: StepMasks, placeholder: Operator) -> tuple[_Builder, int, int]:
    """A builder, and the tensors that a placeholder reads and computes, with the same quantization."""
    tensors: list[Tensor] = masks.model.main.tensors
    (source, *_), (output, *_) = placeholder.inputs, placeholder.outputs
    tensors[output].quantization = tensors[source].quantization  # the placeholder's may differ by a rounding
    return _Builder(masks.model, Graph(tensors)), source, output


def _put(masks: StepMasks, placeholder: Operator, builder: _Builder) -> None:
    """Puts the operators of a builder in the place of a placeholder."""
    operators = masks.model.main.operators
    place = operators.index(placeholder)
    operators[place : place + 1] = builder.graph.operators
