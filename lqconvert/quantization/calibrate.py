"""Starting scales and ranges, before anything is learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from lqconvert.keras_loader.custom_layers import AttentionMask
from lqconvert.keras_loader.layer_kinds import class_name
from lqconvert.keras_loader.recurrent_layers import RecurrentStates, StepMask
from lqconvert.quantization.granularity import KEPT_AXES, kernel_name
from lqconvert.quantization.layers import (
    LEAST_SCALE,
    MINIMUM_SCALE,
    ActivationQuantizer,
    QuantizedLayer,
    WeightQuantizer,
    quantizer_in_front,
)
from lqconvert.quantization.model_outputs import traced
from lqconvert.quantization.walk import activation_bytes
from lqconvert.tasks import Heads

#: A smaller range than this, also relative to the ranges of other layers, comes from a dead layer.
DEAD = 1e-6
#: About the most memory for the activations from which ranges are calibrated.
PART_BYTES = 1 << 30


def calibrate(model: tf_keras.Model, batches: Iterable[np.ndarray]) -> None:
    """Sets the starting value of every learned scale and range, from the model's weights and from data.

    Args:
        model: a model from :func:`lqconvert.rewrite`. It is changed in place.
        batches: a few batches of inputs, preprocessed as for the float model.
    """
    for layer in model.layers:
        if isinstance(layer, QuantizedLayer):
            for name, quantizer in layer.quantizers.items():
                if quantizer.start is None and quantizer.scheme.limit is not None:
                    quantizer.set_scale(best_scale(quantizer, getattr(layer.layer, name).numpy()))
    learned = [x for x in model.layers if isinstance(x, ActivationQuantizer) and x.fixed is None]
    batches = list(batches)
    if learned:
        _calibrate_ranges(model, learned, batches)
    for layer in model.layers:
        states = getattr(layer, "layer", None)
        if isinstance(states, RecurrentStates) and states.has_limit:
            _calibrate_states(model, layer, batches)
    for layer in model.layers:
        if isinstance(layer, QuantizedLayer):
            make_room_for_bias(layer)


def _calibrate_ranges(
    model: tf_keras.Model, learned: list[ActivationQuantizer], batches: Iterable[np.ndarray]
) -> None:
    observe = tf_keras.Model(model.inputs, [quantizer.input for quantizer in learned])
    masks = [_mask_value(quantizer) for quantizer in learned]

    @traced
    def extremes(x):
        outputs = observe(x, training=False)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        counted = [
            y if value is None else tf.where(tf.reduce_any(y != value, -1, keepdims=True), y, 0.0)
            for y, value in zip(outputs, masks, strict=True)
        ]
        return tf.stack([[tf.reduce_min(y), tf.reduce_max(y)] for y in counted])

    # All activations of a part are in memory at once.
    size = max(1, PART_BYTES // activation_bytes(observe))
    # Traced while the quantizers pass values through, so that the ranges are those of the float graph.
    for quantizer in learned:
        quantizer.enabled = False
    try:
        seen = np.stack([extremes(part).numpy() for batch in batches for part in _parts(batch, size)])
    finally:
        for quantizer in learned:
            quantizer.enabled = True
    lows, highs = np.minimum(seen[:, :, 0].min(0), 0), np.maximum(seen[:, :, 1].max(0), 0)
    computed = np.array(
        [not isinstance(x.input._keras_history.layer, tf_keras.layers.InputLayer) for x in learned]
    )
    # The tiny outputs of a dead layer are no signal. The model's inputs may have any unit, so they count
    # always.
    least = DEAD * min(1.0, np.max((highs - lows)[computed], initial=0.0))
    margins = {id(each.quantizer()): each.margin for each in model.layers if isinstance(each, AttentionMask)}
    lows -= [margins.get(id(quantizer), 0.0) for quantizer in learned]
    for quantizer, low, high, dead, value in zip(
        learned, lows, highs, computed & (highs - lows < least), masks, strict=True
    ):
        if value is not None and not low <= value <= high:  # one step outside means masked
            step = (high - low) / 254
            low, high = (low - step, high) if value < low else (low, high + step)
        quantizer.set_range(*((0.0, 0.0) if dead else (low, high)))


def _parts(batch: Any, size: int) -> Iterator[Any]:
    """A batch in parts of at most this many examples."""
    for start in range(0, len(tf.nest.flatten(batch)[0]), size):
        stop = start + size
        yield tf.nest.map_structure(lambda x, start=start, stop=stop: x[start:stop], batch)


def _mask_value(quantizer: ActivationQuantizer) -> float | None:
    """The value of masked steps behind a quantizer, if there are any."""
    readers = [node.outbound_layer for node in quantizer.outbound_nodes]
    return next((reader.value for reader in readers if isinstance(reader, StepMask)), None)


def _calibrate_states(model: tf_keras.Model, wrapper: QuantizedLayer, batches: Sequence[np.ndarray]) -> None:
    """Sets a loop's limit to the power of two that leaves room for twice the largest state."""
    gates, states = tf_keras.Model(model.inputs, wrapper.input), wrapper.layer
    largest = traced(lambda x: tf.reduce_max(tf.abs(states.unbounded(gates(x, training=False)))))
    most = max(float(largest(batch)) for batch in batches)
    states.limit.assign(2.0 ** np.clip(np.ceil(np.log2(2 * max(most, 1e-9))), -3, 15))


def cover_targets(model: tf_keras.Model, heads: Heads, labels: np.ndarray) -> None:
    """Widens the output ranges of regressions to all targets, and keeps them at least as wide in training.

    Args:
        model: a calibrated model. The quantizers of its outputs are changed in place.
        labels: the labels of its outputs, as :class:`lqconvert.tasks.Heads` joins them.
    """
    for head, output, targets in zip(heads, model.outputs, heads.cut_labels(labels), strict=True):
        quantizer = output._keras_history.layer
        if head.task != "regression" or not isinstance(quantizer, ActivationQuantizer) or quantizer.fixed:
            continue
        low, high = (float(limit) for limit in quantizer.range)
        quantizer.covered = min(low, float(targets.min())), max(high, float(targets.max()))


def make_room_for_bias(layer: QuantizedLayer) -> None:
    """Raises scales of a kernel that are so small that the bias would overflow int32 on their grid."""
    name = kernel_name(layer.layer)
    quantizer, source = layer.quantizers[name], quantizer_in_front(layer.input)
    if not layer.layer.use_bias or source is None or quantizer.start is not None:
        return
    if source.bits == 16:  # its bias is int64
        return
    scale, axes = quantizer.scale.numpy(), KEPT_AXES["output-channel-wise"][class_name(layer.layer)]
    shape = [length if axis in axes else 1 for axis, length in enumerate(getattr(layer.layer, name).shape)]
    biases = np.abs(layer.layer.bias.numpy())
    biases = biases.reshape(shape) if axes else biases.max().reshape(shape)
    least = biases / (2.0**30 * source.scale_and_zero_point[0])
    least = least.max(axis=tuple(axis for axis in axes if scale.shape[axis] == 1), keepdims=True)
    if np.any(scale < least):
        quantizer.set_scale(np.maximum(scale, least))


def best_scale(
    quantizer: WeightQuantizer, weights: np.ndarray, candidates: int = 40, *, full_width: bool = False
) -> np.ndarray:
    """For each group of weights, the scale of least squared error, between 0.2 and 1 x max|P| / limit.

    If the scheme has few scales, it is one of these, and may be the next above.

    If the scheme's ``start_code`` is within the limit, the scale is max|P| / start_code instead, except with
    ``full_width``.
    """
    axes = tuple(axis for axis in range(weights.ndim) if axis not in quantizer.kept_axes)
    limit = quantizer.scheme.limit or 127
    largest = np.max(np.abs(weights), axis=axes, keepdims=True)
    # A dead channel gets its neighbours' scale: with a tiny scale, its int32 bias would overflow.
    largest = np.maximum(largest, largest.max() * 1e-3)
    if not largest.max():  # all zero: any scale that leaves room for a bias
        return np.full(largest.shape, MINIMUM_SCALE, np.float32)
    start_code = quantizer.scheme.start_code
    if start_code is not None and start_code < limit and not full_width:
        return (largest / start_code).astype(np.float32)
    best, least = quantizer.on_grid(largest / limit, up=True), np.full(largest.shape, np.inf)
    scales = [largest * fraction / limit for fraction in np.linspace(0.2, 1.0, candidates)]
    for each in (*scales, best):
        scale = quantizer.on_grid(np.maximum(each, LEAST_SCALE))
        codes = quantizer.codes(weights, scale.astype(np.float32)).numpy()
        error = np.sum((codes * scale - weights) ** 2, axis=axes, keepdims=True)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best.astype(np.float32)


@contextmanager
def at_full_width(model: tf_keras.Model) -> Iterator[None]:
    """A context in which scales that started coarse (at a scheme's ``start_code``) use all codes."""
    coarse = [
        (layer, quantizer, getattr(layer.layer, name).numpy(), quantizer.scale.numpy())
        for layer in model.layers
        if isinstance(layer, QuantizedLayer)
        for name, quantizer in layer.quantizers.items()
        if quantizer.scheme.start_code is not None and quantizer.start is None
    ]
    for layer, quantizer, weights, _ in coarse:
        quantizer.set_scale(best_scale(quantizer, weights, full_width=True))
        make_room_for_bias(layer)
    yield
    for _, quantizer, _, scale in coarse:
        quantizer.set_scale(scale)
