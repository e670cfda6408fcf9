"""The mean of the steps that count is the same in both runtimes, and that of Keras, however few they are."""

import keras
import numpy as np
import pytest
import tf_keras
from single_operator import in_litert, in_micro

import lqconvert
from lqconvert.runtime.litert import Runner

RNG = np.random.default_rng(0)
WIDTH = 5


def words(api, steps, *layers):
    first = [api.layers.Input((steps,), dtype="int32"), api.layers.Embedding(60, WIDTH, mask_zero=True)]
    return api.Sequential([*first, *layers, api.layers.Dense(4)])


def indices(steps):
    """Sentences of every length, padded behind, in front or in between."""
    x = RNG.integers(1, 60, (96, steps)).astype(np.int32)
    for row, count in zip(x, RNG.integers(1, steps + 1, len(x)), strict=True):
        row[RNG.permutation(steps)[count:]] = 0
    x[:2] = 0
    x[0, 0] = x[1, -1] = 7
    return x


def windows(steps):
    x = RNG.normal(size=(96, steps, WIDTH)).astype(np.float32)
    for row, count in zip(x, RNG.integers(1, steps + 1, len(x)), strict=True):
        row[count:] = 0
    return x


CASES = {
    "short": (indices, 6, lambda api: words(api, 6, api.layers.GlobalAveragePooling1D())),
    "long": (indices, 500, lambda api: words(api, 500, api.layers.GlobalAveragePooling1D())),
    "behind Dense": (
        indices,
        40,
        lambda api: words(api, 40, api.layers.Dense(7, "relu"), api.layers.GlobalAveragePooling1D()),
    ),
    "keepdims": (indices, 12, lambda api: words(api, 12, api.layers.GlobalAveragePooling1D(keepdims=True))),
    "behind a GRU": (
        indices,
        9,
        lambda api: words(
            api, 9, api.layers.GRU(4, return_sequences=True), api.layers.GlobalAveragePooling1D()
        ),
    ),
    "of values": (
        windows,
        30,
        lambda api: api.Sequential(
            [
                *(api.layers.Input((30, WIDTH)), api.layers.Masking(), api.layers.GlobalAveragePooling1D()),
                api.layers.Dense(3),
            ]
        ),
    ),
}


@pytest.mark.parametrize("api", [tf_keras, keras])
@pytest.mark.parametrize("case", CASES)
def test_a_mean_of_masked_steps(case, api):
    api.utils.set_random_seed(0)
    inputs, steps, build = CASES[case]
    model, x = build(api), inputs(steps)
    expected = np.asarray(model(x))
    loaded = lqconvert.load_model(model)
    np.testing.assert_allclose(loaded(x).numpy(), expected, atol=1e-5)
    quantized = lqconvert.rewrite(loaded)
    lqconvert.calibrate(quantized, [x])
    tflite = lqconvert.export(quantized).tflite
    file = Runner(tflite)
    apart = np.abs(file.run([x]) - quantized(x).numpy()) / file.output_steps
    assert apart.max() < (4.5 if "GRU" in case else 2.5)
    assert np.mean((file.run([x]) - expected) ** 2) < 0.01 * np.var(expected)
    codes = file.quantize(x)
    runtimes_apart = np.abs(in_litert(tflite, codes).astype(int) - in_micro(tflite, codes))
    assert runtimes_apart.max() <= (3 if "GRU" in case else 1)  # the loop of a GRU differs, too


def test_if_no_step_counts_the_mean_is_0():
    loaded = lqconvert.load_model(words(keras, 6, keras.layers.GlobalAveragePooling1D()))
    quantized = lqconvert.rewrite(loaded)
    lqconvert.calibrate(quantized, [indices(6)])
    file, none = Runner(lqconvert.export(quantized).tflite), np.zeros((1, 6), np.int32)
    assert not file.run([none]).any()
    assert not quantized(none).numpy().any()


def test_a_mask_of_what_is_no_input_is_refused():
    layers = keras.layers
    x = keras.Input((8, WIDTH))
    y = layers.GlobalAveragePooling1D()(layers.Masking()(layers.ReLU()(layers.Dense(4)(x))))
    quantized = lqconvert.rewrite(lqconvert.load_model(keras.Model(x, y)))
    lqconvert.calibrate(quantized, [windows(8)])
    with pytest.raises(lqconvert.LqError, match="put it directly behind an input of the model"):
        lqconvert.export(quantized)
