"""The schemes' gradients and penalties against plain NumPy versions of their formulas."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from lqconvert.quantization.calibrate import best_scale
from lqconvert.quantization.layers import MINIMUM_SCALE, WeightQuantizer
from lqconvert.quantization.schemes import (
    EPSILON,
    LSQ,
    SCHEMES,
    Difference,
    GradientThreshold,
    Inverse,
    MaxBin,
    Rate,
)

SHAPES = {  # weights, kept axes
    "dense scalar": ((6, 5), ()),
    "dense row-wise": ((6, 5), (0,)),
    "dense column-wise": ((6, 5), (1,)),
    "conv channel-wise": ((3, 3, 4, 5), (2,)),
    "conv output-channel-wise": ((3, 3, 4, 5), (3,)),
    "bias": ((5,), ()),
}


def quantized(scheme, shape, kept_axes, *, rounding="floor", log_scale=False, start=0.05):
    """(quantizer, weights, upstream, P_r, dL/dP, dL/ds) for random weights and a random upstream gradient."""
    rng = np.random.default_rng(1)
    weights = rng.normal(0, 0.3, shape).astype(np.float32)
    upstream = (rng.normal(size=shape) * 10.0 ** rng.integers(-12, 0, shape)).astype(np.float32)
    quantizer = WeightQuantizer(scheme, kept_axes, rounding, start, log_scale)
    variable = tf.Variable(weights)
    with tf.GradientTape() as tape:
        result = quantizer(variable)
        loss = tf.reduce_sum(result * upstream)
    to_weights, to_scale = tape.gradient(loss, [variable, quantizer.scale_weight])
    return quantizer, weights, upstream, result.numpy(), to_weights.numpy(), to_scale.numpy()


def groups(kept_axes, ndim):
    return tuple(axis for axis in range(ndim) if axis not in kept_axes)


@pytest.mark.parametrize("threshold", [1e-11, 1e-6, 1e-2, 0.0])
@pytest.mark.parametrize(("shape", "kept_axes"), SHAPES.values(), ids=SHAPES)
def test_gradient_threshold(shape, kept_axes, threshold):
    scheme = GradientThreshold(limit=None, threshold=threshold)
    quantizer, weights, upstream, result, to_weights, to_scale = quantized(scheme, shape, kept_axes)
    scale = quantizer.scale.numpy()
    codes = np.floor(weights / scale)
    np.testing.assert_array_equal(result, codes * scale)
    np.testing.assert_array_equal(to_weights, upstream)
    r = np.abs(upstream) / np.maximum(EPSILON, np.abs(codes * scale))
    axes = groups(kept_axes, len(shape))
    g = -np.tanh(threshold - r) * (r < threshold)
    g = np.where(np.all(r >= threshold, axis=axes, keepdims=True), -np.tanh(threshold), g)
    expected = g.mean(axis=axes, keepdims=True) * np.abs(codes).max(axis=axes, keepdims=True)
    np.testing.assert_allclose(to_scale, expected, rtol=1e-4, atol=1e-12)


def rate(p, s, axes):
    """Bits of the codes, and one more for each weight with both its input and its output channel in use."""
    r = np.abs(p) / s
    outputs = 1 - np.exp(-r.reshape(-1, r.shape[-1]).mean(axis=0) / 0.1)
    r = r[np.newaxis] if r.ndim == 1 else r
    inputs = 1 - np.exp(-np.moveaxis(r, -2, 0).reshape(r.shape[-2], -1).mean(axis=1) / 0.1)
    return np.mean(np.log2(1 + r)) + inputs.mean() * outputs.mean()


PENALTIES = {
    "maxbin": (MaxBin(gamma=0.5), lambda p, s, axes: np.mean(np.abs(p).max(axis=axes, keepdims=True) / s)),
    "inverse": (Inverse(gamma=0.5), lambda p, s, axes: np.mean(1 / s)),
    "rate": (Rate(gamma=0.5), rate),
    "difference": (Difference(gamma=0.5), lambda p, s, axes: np.mean(np.abs(p - p / s))),
}


@pytest.mark.parametrize(("scheme", "formula"), PENALTIES.values(), ids=PENALTIES)
@pytest.mark.parametrize(("shape", "kept_axes"), SHAPES.values(), ids=SHAPES)
def test_penalties(scheme, formula, shape, kept_axes):
    quantizer, weights, *_, to_scale = quantized(scheme, shape, kept_axes)
    assert not to_scale.any() or scheme.name == "rate", "the scale learns from the penalty alone"
    axes, scale = groups(kept_axes, len(shape)), quantizer.scale.numpy().astype(np.float64)
    weights = weights.astype(np.float64)
    (loss,) = quantizer.losses
    np.testing.assert_allclose(loss, 0.5 * formula(weights, scale, axes), rtol=1e-5)
    with tf.GradientTape() as tape:
        penalty = scheme.penalty(tf.constant(weights, tf.float32), quantizer.scale)
    gradient = tape.gradient(penalty, quantizer.scale_weight).numpy()
    for index in np.ndindex(scale.shape):
        step = np.zeros_like(scale)
        step[index] = 1e-6
        slope = (formula(weights, scale + step, axes) - formula(weights, scale - step, axes)) / 2e-6
        np.testing.assert_allclose(gradient[index], 0.5 * slope, rtol=1e-3)


@pytest.mark.parametrize(("shape", "kept_axes"), SHAPES.values(), ids=SHAPES)
def test_lsq(shape, kept_axes):
    quantizer, weights, upstream, result, _, to_scale = quantized(
        LSQ(limit=7), shape, kept_axes, rounding="nearest"
    )
    scale = quantizer.scale.numpy()
    ratio = weights / scale
    codes = np.clip(np.round(ratio), -7, 7)
    np.testing.assert_array_equal(result, codes * scale)
    step = np.where(np.abs(ratio) <= 7, codes - ratio, np.sign(ratio) * 7)
    axes = groups(kept_axes, len(shape))
    expected = (upstream * step).sum(axis=axes, keepdims=True) / np.sqrt(weights.size / scale.size * 7)
    np.testing.assert_allclose(to_scale, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("shape", "kept_axes"), SHAPES.values(), ids=SHAPES)
def test_rate_scales_follow_the_task(shape, kept_axes):
    quantizer, weights, upstream, result, _, to_scale = quantized(
        Rate(limit=7), shape, kept_axes, rounding="nearest"
    )
    scale = quantizer.scale.numpy()
    ratio = weights / scale
    codes = np.clip(np.round(ratio), -7, 7)
    np.testing.assert_array_equal(result, codes * scale)
    step = np.where(np.abs(ratio) <= 7, codes - ratio, codes)
    expected = (upstream * step).sum(axis=groups(kept_axes, len(shape)), keepdims=True)
    np.testing.assert_allclose(to_scale, expected, rtol=1e-4, atol=1e-9)


def test_log_scale_gradient_is_that_of_the_scale_times_the_scale():
    plain = quantized(LSQ(limit=7), (6, 5), (1,), rounding="nearest")
    log = quantized(LSQ(limit=7), (6, 5), (1,), rounding="nearest", log_scale=True)
    np.testing.assert_allclose(log[-1], plain[-1] * 0.05, rtol=1e-4)


def test_scale_never_falls_below_the_floor():
    quantizer = quantized(Inverse(), (6, 5), ())[0]
    optimizer = tf_keras.optimizers.SGD(1.0)
    optimizer.apply_gradients([(tf.ones_like(quantizer.scale_weight), quantizer.scale_weight)])
    np.testing.assert_allclose(quantizer.scale.numpy(), MINIMUM_SCALE)


@pytest.mark.parametrize("name", SCHEMES)
def test_config_round_trip(name):
    quantizer = WeightQuantizer(SCHEMES[name](), (1,), "floor", 0.1, False, 0.25)
    assert WeightQuantizer.from_config(quantizer.get_config()).get_config() == quantizer.get_config()


@pytest.mark.parametrize("limit", [1, 3, 7, 15, 127])
def test_coarse_starts_are_within_the_limit(limit):
    weights = np.random.default_rng(0).normal(size=(200, 50)).astype(np.float32)
    scale = best_scale(WeightQuantizer(Rate(limit=limit), ()), weights)
    if limit > Rate.start_code:
        assert scale == pytest.approx(np.abs(weights).max() / Rate.start_code)
    else:  # nothing is coarser than the limit: it is the scale of least error among eight an octave
        best = best_scale(WeightQuantizer(LSQ(limit=limit), ()), weights)
        assert scale == pytest.approx(best, rel=2 ** (1 / 8) - 1)
