"""Folds scales of input channels, which TFLite does not have, into the layer in front.

The layer computes ``y = sum_i x_i s_i q_i``. The layer in front that computes ``x_i`` computes ``x_i s_i``
instead. This is exact if everything between them commutes with a positive factor. The codes of both layers
stay as learned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import tf_keras

from lqconvert.exporting.codes import Codes, LayerCodes
from lqconvert.keras_loader.layer_kinds import kind_of
from lqconvert.quantization.granularity import KEPT_AXES, KERNELS
from lqconvert.quantization.layers import ActivationQuantizer, FollowingQuantizer, QuantizedLayer


def fold_input_scales(
    model: tf_keras.Model, codes: Codes, batches: Iterable[np.ndarray]
) -> tuple[Codes, dict[str, tuple[float, float]]]:
    """Moves scales of input channels into the layers in front, if that is exact.

    Args:
        model: a rewritten model.
        codes: its codes from :func:`lqconvert.exporting.export.learned_codes`.
        batches: inputs, preprocessed as for the model. The new activation ranges are measured on them.

    Returns:
        The codes with the moved scales (others stay), and the new (low, high) of every
        :class:`ActivationQuantizer` whose range changes.
    """
    layers = dict(codes.layers)
    factors: dict[str, np.ndarray] = {}
    for name in reversed(layers):
        kernel, kind = layers[name].kernel, layers[name].kind
        axis = KERNELS[kind].summed
        if axis is None or kernel.scale.shape[axis] == 1:
            continue
        producer, between = _path(model.get_layer(name), set(model.output_names))
        if producer is None:
            continue
        channels = np.moveaxis(kernel.scale, axis, 0)
        channels = channels.reshape(len(channels), -1)[:, 0]
        groups = getattr(model.get_layer(name).layer, "groups", 1)  # all groups have the same scales
        factor = np.tile(channels / channels.max(), groups)
        folded = replace(
            kernel,
            scale=np.take(kernel.scale, [channels.argmax()], axis=axis),
            granularity=f"{kernel.granularity}, folded into {producer}",
        )
        layers[name] = replace(layers[name], kernel=folded)
        layers[producer] = _multiplied(layers[producer], factor)
        factors |= {layer.name: factor for layer in between if isinstance(layer, ActivationQuantizer)}
    return Codes(layers, codes.activations), _ranges(model, factors, batches)


def _path(layer: Any, given: set[str]) -> tuple[str | None, list[Any]]:
    """The linear layer in front, if all layers between commute and feed only this one; and these layers.

    None if one of their outputs is in ``given``, which means that it is also an output of the model.
    """
    between: list[Any] = []
    while True:
        tensor = layer.input
        if isinstance(tensor, list):
            return None, []
        layer = tensor._keras_history.layer
        if len(layer.outbound_nodes) != 1 or layer.name in given:
            return None, []
        if isinstance(layer, QuantizedLayer):
            return layer.name, between
        bent = any(getattr(layer, name, None) for name in ("max_value", "threshold", "fixed"))
        commutes = kind_of(layer).commutes or isinstance(layer, (ActivationQuantizer, FollowingQuantizer))
        if bent or not commutes:
            return None, []
        between.append(layer)


def _multiplied(layer: LayerCodes, factor: np.ndarray) -> LayerCodes:
    """The layer with each output channel multiplied by a factor."""
    shape = [1] * layer.kernel.codes.ndim
    axes = KEPT_AXES["output-channel-wise"][layer.kind]
    for axis in axes:
        shape[axis] = layer.kernel.codes.shape[axis]
    kernel = replace(layer.kernel, scale=(layer.kernel.scale * factor.reshape(shape)).astype(np.float32))
    bias = None if layer.bias is None else (layer.bias * factor).astype(np.float32)
    return replace(layer, kernel=kernel, bias=bias)


def _ranges(
    model: tf_keras.Model, factors: dict[str, np.ndarray], batches: Iterable[np.ndarray]
) -> dict[str, tuple[float, float]]:
    """The ranges of activations after their channels are multiplied."""
    if not factors:
        return {}
    observe = tf_keras.Model(model.inputs, {name: model.get_layer(name).output for name in factors})
    ranges = dict.fromkeys(factors, (0.0, 0.0))
    for batch in batches:
        for name, outputs in observe(batch, training=False).items():
            values = outputs.numpy() * factors[name]
            low, high = ranges[name]
            ranges[name] = min(low, float(values.min())), max(high, float(values.max()))
    return ranges
