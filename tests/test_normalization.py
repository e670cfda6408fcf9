"""Normalizations in integers: close to the formula, and the same in both runtimes."""

from __future__ import annotations

import numpy as np
import pytest

from lqconvert.exporting.normalization import put_normalization
from lqconvert.keras_loader.custom_layers import GroupNorm, LayerNorm, RMSNorm
from lqconvert.runtime.verify import execute
from lqconvert.tflite.editing import add_tensor, new_operator
from lqconvert.tflite.flatbuffer import write
from lqconvert.tflite.graph import Model, Quantization
from lqconvert.tflite.targets import LITERT, TFLM

RNG = np.random.default_rng(0)


def errors(layer, inputs, *, scale=0.03, zero_point=-17, wide=False):
    """How much a file's outputs differ from the formula's, in steps of int8. Both runtimes give the same.

    The output's scale is that of all results but the largest, as a learned one is.
    """
    kind, code = ("INT16", np.int16) if wide else ("INT8", np.int8)
    limits = np.iinfo(code)
    scale, zero_point = (scale / 256, 0) if wide else (scale, zero_point)
    codes = np.clip(np.round(inputs / scale) + zero_point, limits.min, limits.max).astype(code)
    real = ((codes.astype(np.float64) - zero_point) * scale).astype(np.float32)
    results = layer(real).numpy().astype(np.float64)
    low, high = min(np.quantile(results, 0.001), 0), max(np.quantile(results, 0.999), 0)
    step = max(-low, high) / limits.max if wide else (high - low) / 255
    output = Quantization.one(step, 0 if wide else round(-128 - low / step))
    model = Model.empty()
    x = add_tensor(model, kind, codes[:1].shape, Quantization.one(scale, zero_point))
    y = add_tensor(model, kind, codes[:1].shape, output)
    model.main.inputs, model.main.outputs = (x,), (y,)
    placeholder = new_operator(model, "LEAKY_RELU", [x], [y])
    model.main.operators.append(placeholder)
    put_normalization(model, placeholder, layer)
    outputs = {}
    for target in (LITERT, TFLM):
        outputs |= execute(write(model), target, codes).outputs
    first, *others = outputs.values()
    for other in others:  # means may be rounded in another way
        assert np.mean(first != other) < 0.001
        np.testing.assert_allclose(first.astype(int), other, rtol=0, atol=8 if wide else 1)
    truth = np.clip(np.round(results / step) + output.zero_points[0], limits.min, limits.max)
    return (first.reshape(truth.shape) - truth) / (256 if wide else 1)


def made(layer, channels):
    layer.build((None, channels))
    gamma = RNG.uniform(0.5, 1.5, channels)
    layer.set_weights([gamma, RNG.normal(size=channels)] if layer.centers else [gamma])
    return layer


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (LayerNorm(1e-3), (6, 32)),
        (LayerNorm(1e-6), (4, 4, 200)),
        (LayerNorm(1e-3), (64,)),
        (LayerNorm(1e-5), (2, 3, 4, 5, 16)),
        (RMSNorm(1e-6), (6, 32)),
        (GroupNorm(1, 1e-3), (5, 5, 12)),
        (GroupNorm(4, 1e-3), (5, 5, 12)),
        (GroupNorm(12, 1e-3), (5, 5, 12)),
        (GroupNorm(3, 1e-3), (40, 12)),
    ],
    ids=lambda value: f"{type(value).__name__}-{value.epsilon}" if hasattr(value, "epsilon") else None,
)
def test_results_are_those_of_the_formula(layer, shape, wide):
    sizes = np.exp(RNG.normal(-0.5, 0.5, (60, *([1] * len(shape)))))
    inputs = RNG.normal(0.3, 1, (60, *shape)) * sizes
    found = errors(made(layer, shape[-1]), inputs, wide=wide)
    assert np.sqrt(np.mean(found**2)) < 0.3
    assert np.quantile(np.abs(found), 0.999) <= 2
