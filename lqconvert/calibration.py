"""Starting scales and ranges, before anything is learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import tensorflow as tf
import tf_keras

from lqconvert.quantizers import (
    LEAST_SCALE,
    MINIMUM_SCALE,
    ActivationQuantizer,
    QuantizedLayer,
    WeightQuantizer,
)


def calibrate(model: tf_keras.Model, batches: Iterable[np.ndarray]) -> None:
    """Starts every learned scale and range of a rewritten model from its weights and from data.

    Args:
        model: what :func:`lqconvert.rewrite` gives; changed in place.
        batches: a few batches of inputs, preprocessed as the float model wants them.
    """
    for layer in model.layers:
        if isinstance(layer, QuantizedLayer):
            for name, quantizer in layer.quantizers.items():
                if quantizer.start is None and quantizer.scheme.limit is not None:
                    quantizer.set_scale(best_scale(quantizer, getattr(layer.layer, name).numpy()))
    learned = [x for x in model.layers if isinstance(x, ActivationQuantizer) and x.fixed is None]
    if not learned:
        return
    observe = tf_keras.Model(model.inputs, [quantizer.input for quantizer in learned])

    @tf.function
    def extremes(x):
        outputs = observe(x, training=False)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        return tf.stack([[tf.reduce_min(y), tf.reduce_max(y)] for y in outputs])

    # Traced while the quantizers pass values through: the ranges are those of the float graph.
    for quantizer in learned:
        quantizer.enabled = False
    try:
        seen = np.stack([extremes(batch).numpy() for batch in batches])
    finally:
        for quantizer in learned:
            quantizer.enabled = True
    for quantizer, low, high in zip(learned, seen[:, :, 0].min(0), seen[:, :, 1].max(0), strict=True):
        quantizer.set_range(low, high)


def best_scale(
    quantizer: WeightQuantizer, weights: np.ndarray, candidates: int = 40, *, full_width: bool = False
) -> np.ndarray:
    """For each group of weights the scale of least squared error, between 0.2 and 1 x max|P| / limit.

    A scheme whose ``start_code`` is within the limit starts at max|P| / start_code instead, unless all codes
    are to be used.
    """
    axes = tuple(axis for axis in range(weights.ndim) if axis not in quantizer.kept_axes)
    limit = quantizer.scheme.limit or 127
    largest = np.max(np.abs(weights), axis=axes, keepdims=True)
    # A dead channel takes its neighbours' scale: a tiny one would overflow its int32 bias.
    largest = np.maximum(largest, largest.max() * 1e-3)
    if not largest.max():  # any scale will do that leaves room for a bias
        return np.full(largest.shape, MINIMUM_SCALE, np.float32)
    start_code = quantizer.scheme.start_code
    if start_code is not None and start_code < limit and not full_width:
        return (largest / start_code).astype(np.float32)
    best, least = largest / limit, np.full(largest.shape, np.inf)
    for fraction in np.linspace(0.2, 1.0, candidates):
        scale = np.maximum(largest * fraction / limit, LEAST_SCALE)
        codes = quantizer.codes(weights, scale.astype(np.float32)).numpy()
        error = np.sum((codes * scale - weights) ** 2, axis=axes, keepdims=True)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best.astype(np.float32)


@contextmanager
def at_full_width(model: tf_keras.Model) -> Iterator[None]:
    """Within it, scales that started coarse (at a scheme's ``start_code``) use all codes up to the limit."""
    coarse = [
        (quantizer, getattr(layer.layer, name).numpy(), quantizer.scale.numpy())
        for layer in model.layers
        if isinstance(layer, QuantizedLayer)
        for name, quantizer in layer.quantizers.items()
        if quantizer.scheme.start_code is not None and quantizer.start is None
    ]
    for quantizer, weights, _ in coarse:
        quantizer.set_scale(best_scale(quantizer, weights, full_width=True))
    yield
    for quantizer, _, scale in coarse:
        quantizer.set_scale(scale)
