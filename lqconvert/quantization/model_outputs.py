"""The outputs of a Keras model: names, activations, logits, and their values on data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from lqconvert.data.dataset import Split
from lqconvert.data.preprocessing import Preprocessing
from lqconvert.keras_loader.layer_kinds import class_name
from lqconvert.quantization.layers import ActivationQuantizer
from lqconvert.quantization.walk import LIVE_BYTES, live_bytes
from lqconvert.tasks import Output

#: Activations that turn logits into probabilities.
PROBABILITIES = ("softmax", "sigmoid")


def outputs_of(model: tf_keras.Model) -> list[Output]:
    """The model's outputs in order, as far as they are known."""
    return [
        Output(
            name.removesuffix("_quantized"),
            tuple(int(n or 1) for n in tensor.shape[1:]),
            _before_activation(tensor)[1],
        )
        for name, tensor in zip(model.output_names, model.outputs, strict=True)
    ]


def joined(model: tf_keras.Model) -> tf_keras.Model:
    """The model with one output. Several outputs are flattened and concatenated."""
    return _joined(model, model.outputs)


def logits_of(model: tf_keras.Model) -> tf_keras.Model:
    """The model without a final softmax or sigmoid. Several outputs are joined as by :func:`joined`."""
    logits = [_before_activation(tensor)[0] for tensor in model.outputs]
    if len(logits) == 1 and logits[0] is model.outputs[0]:
        return model
    return _joined(model, logits)


def _joined(model: tf_keras.Model, outputs: list[tf.Tensor]) -> tf_keras.Model:
    if len(outputs) == 1:
        return model if outputs[0] is model.outputs[0] else tf_keras.Model(model.inputs, outputs[0])
    name = "joined"
    while any(layer.name.startswith(name) for layer in model.layers):
        name += "_"
    flat = [tf_keras.layers.Flatten(name=f"{name}_{i}")(output) for i, output in enumerate(outputs)]
    return tf_keras.Model(model.inputs, tf_keras.layers.Concatenate(name=name)(flat))


def _before_activation(tensor: tf.Tensor) -> tuple[tf.Tensor, str]:
    """An output before its final softmax or sigmoid, and that activation's name (or "")."""
    before, layer = tensor, tensor._keras_history.layer
    if isinstance(layer, ActivationQuantizer):
        before = layer.input
        layer = before._keras_history.layer
    activation = getattr(getattr(layer, "activation", None), "__name__", "")
    activation = "softmax" if class_name(layer) == "Softmax" else activation
    if activation in PROBABILITIES and not layer.weights:
        return layer.input, activation
    if class_name(layer) == "L2Normalize":
        return tensor, "l2"
    return tensor, activation if activation in PROBABILITIES else ""


def traced(call: Callable[..., Any], **settings: Any) -> Any:
    """``tf.function`` of code without Python control flow that depends on tensors.

    Nothing in it is converted by AutoGraph, which takes about two seconds for all functions of a run.
    """
    return tf.function(tf.autograph.experimental.do_not_convert(call), autograph=False, **settings)


def inference(model: tf_keras.Model) -> Callable[[Any], tf.Tensor]:
    """The model's output for a batch. Keras's ``predict`` takes longer than a small model does.

    A batch whose activations would take more than ``LIVE_BYTES`` is computed in parts.
    """
    dtypes = [x.dtype for x in model.inputs]
    most = max(1, LIVE_BYTES // live_bytes(model))

    # It is traced once, whatever the batch's size.
    call = traced(
        lambda *x: model(list(x) if len(x) > 1 else x[0], training=False),
        input_signature=[tf.TensorSpec((None, *x.shape[1:]), x.dtype) for x in model.inputs],
    )

    def outputs(x: Any) -> tf.Tensor:
        inputs = [
            tf.cast(*each) for each in zip(x if isinstance(x, (tuple, list)) else (x,), dtypes, strict=True)
        ]
        parts = range(0, len(inputs[0]), most)
        if len(parts) <= 1:
            return call(*inputs)
        return tf.concat([call(*(each[start : start + most] for each in inputs)) for start in parts], 0)

    return outputs


def predict(model: tf_keras.Model, split: Split, preprocessing: Preprocessing) -> np.ndarray:
    """The model's outputs on a split, in the split's order."""
    call = inference(model)
    return np.concatenate([call(x).numpy() for _, x, _ in split.batches(256, preprocessing=preprocessing)])


def size_of(model: tf_keras.Model) -> int:
    """The number of values of all outputs together."""
    return sum(math.prod(output.shape) for output in outputs_of(model))
