"""Causal attention: no step reads a later one, in either runtime."""

import keras
import numpy as np
import pytest
import tf_keras

import lqconvert
from lqconvert.runtime.litert import Runner
from lqconvert.runtime.tflm import invoke_micro
from lqconvert.tflite.targets import TFLM

STEPS, WIDTH, SEEN = 12, 8, 6


def attention(api, name, x, others):
    of = api.layers
    if name == "MultiHeadAttention":
        return of.MultiHeadAttention(2, 4)(x, others, use_causal_mask=True)
    if name == "GroupQueryAttention":
        return of.GroupQueryAttention(4, 4, 2)(x, others, use_causal_mask=True)
    return getattr(of, name)(use_scale=True)([x, others], use_causal_mask=True)


@pytest.mark.parametrize(
    ("api", "name", "length", "bits"),
    [
        (tf_keras, "MultiHeadAttention", STEPS, 8),
        (keras, "MultiHeadAttention", 9, 8),
        (keras, "MultiHeadAttention", STEPS, 16),
        (keras, "GroupQueryAttention", STEPS, 8),
        (tf_keras, "Attention", 9, 8),
        (keras, "AdditiveAttention", STEPS, 8),
    ],
)
def test_no_step_reads_a_later_one(api, name, length, bits):
    tf_keras.utils.set_random_seed(0)
    keras.utils.set_random_seed(0)
    x, others = api.Input((STEPS, WIDTH), name="x"), api.Input((length, WIDTH), name="others")
    model = api.Model([x, others], api.layers.Dense(3)(attention(api, name, x, others)))
    rng = np.random.default_rng(0)
    batch = [2 * rng.normal(size=(64, n, WIDTH)).astype(np.float32) for n in (STEPS, length)]
    expected = np.asarray(model.predict(batch, verbose=0))
    loaded = lqconvert.load_model(model)
    np.testing.assert_allclose(loaded.predict(batch, verbose=0), expected, atol=1e-5)
    quantized = lqconvert.rewrite(loaded, activations=bits)
    lqconvert.calibrate(quantized, [batch])
    tflite = lqconvert.export(quantized).tflite
    file = Runner(tflite)
    assert np.mean((file.run([batch]) - expected) ** 2) < 0.005 * np.var(expected)  # 23 dB
    later = [batch[0], np.concatenate([batch[1][:, :SEEN], batch[1][:, SEEN:] + 3], axis=1)]
    runtimes = [file.invoke, *([lambda codes: invoke_micro(tflite, codes)] if TFLM.is_installed else [])]
    for run in runtimes:
        before, after = (run(file.quantize(each)[:8]).astype(int) for each in (batch, later))
        changes = np.abs(after - before).reshape(8, STEPS, 3)
        # A softmax of 16 bits also shows e^-8.
        assert changes[:, :SEEN].max() <= (0 if bits == 8 else 16)
        assert changes[:, SEEN:].max() > 16
