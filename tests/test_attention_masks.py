"""Attention of masked steps: as in Keras, and in both runtimes no step reads a masked one."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import lqconvert
from lqconvert.runtime.litert import Runner
from lqconvert.runtime.tflm import invoke_micro
from lqconvert.tflite.targets import TFLM

STEPS, WIDTH = 10, 8
EXAMPLES = 64


def attention(api, name, query, value, key=None, dropout=0.0, **settings):
    of, inputs = api.layers, [query, value] if key is None else [query, value, key]
    if name == "MultiHeadAttention":
        return of.MultiHeadAttention(2, 4, dropout=dropout)(*inputs, **settings)
    if name == "GroupQueryAttention":
        return of.GroupQueryAttention(4, 4, 2, dropout=dropout)(*inputs, **settings)
    return getattr(of, name)(use_scale=True)(inputs, **settings)


def lengths(steps):
    """How many steps of each example count: none, one, all, or any number."""
    return [0, 1, 1, 1, steps, *np.random.default_rng(1).integers(1, steps + 1, EXAMPLES - 5)]


def sequences(steps, seed, front=False):
    """Sequences [64, steps, 8], filled up with zeros behind or in front."""
    x = np.random.default_rng(seed).normal(size=(EXAMPLES, steps, WIDTH)).astype(np.float32)
    for row, length in zip(x, np.roll(lengths(steps), seed), strict=True):
        row[length:] = 0
    return x[:, ::-1].copy() if front else x


def itself(api, name, steps, **settings):
    """Attention of a sequence to itself."""
    x = api.Input((steps, WIDTH))
    y = api.layers.Masking()(x)
    return api.Model(x, api.layers.Dense(3)(attention(api, name, y, y, **settings)))


def another(api, name, steps, masked=("query", "value"), **settings):
    """Attention of a sequence to a longer one. Either may be masked."""
    x, z = api.Input((steps, WIDTH), name="x"), api.Input((steps + 3, WIDTH), name="z")
    query = api.layers.Masking()(x) if "query" in masked else x
    value = api.layers.Masking()(z) if "value" in masked else z
    key = api.layers.Dense(WIDTH)(value) if "key" in masked else None
    return api.Model([x, z], api.layers.Dense(3)(attention(api, name, query, value, key, **settings)))


def data_for(model, front=False):
    data = [sequences(tensor.shape[1], seed, front) for seed, tensor in enumerate(model.inputs)]
    return data if len(data) > 1 else data[0]


def quantized_of(loaded, data, bits=8):
    quantized = lqconvert.rewrite(loaded, activations=bits)
    lqconvert.calibrate(quantized, [data])
    return quantized


BOTH = [
    (api, name)
    for api in (tf_keras, keras)
    for name in ("MultiHeadAttention", "Attention", "AdditiveAttention", "GroupQueryAttention")
    if hasattr(api.layers, name)
]
CASES = {
    "to itself": lambda api, name: itself(api, name, STEPS),
    "causal": lambda api, name: itself(api, name, STEPS, use_causal_mask=True),
    "to another": lambda api, name: another(api, name, STEPS),
    "masked values": lambda api, name: another(api, name, STEPS, ["value"], use_causal_mask=True),
    "masked queries": lambda api, name: another(api, name, STEPS, ["query"]),
    "own keys": lambda api, name: another(api, name, STEPS, ["value", "key"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("api", "name"), BOTH)
def test_masked_steps_as_in_keras(api, name, case):
    api.utils.set_random_seed(0)
    model = CASES[case](api, name)
    loaded = lqconvert.load_model(model)
    for front in (False, True):
        data = data_for(model, front)
        np.testing.assert_allclose(loaded(data).numpy(), np.asarray(model(data)), atol=1e-5)


@pytest.mark.parametrize("masked", [("query", "value"), ("value",), ("query",)])
@pytest.mark.parametrize("name", ["MultiHeadAttention", "GroupQueryAttention"])
def test_with_dropout_keras_3_reads_0_where_all_is_masked(name, masked):
    model = another(keras, name, STEPS, masked, dropout=0.1)
    data = data_for(model)
    loaded = lqconvert.load_model(model)
    expected = np.asarray(model(data))
    np.testing.assert_allclose(loaded(data).numpy(), expected, atol=1e-5)
    quantized = quantized_of(loaded, data)
    file = Runner(lqconvert.export(quantized).tflite)
    assert np.mean((file.run([data]) - expected) ** 2) < 0.01 * np.var(expected)


@pytest.mark.parametrize(
    ("api", "name", "bits", "build"),
    [
        (keras, "MultiHeadAttention", 8, lambda api, name: itself(api, name, STEPS)),
        (keras, "MultiHeadAttention", 16, lambda api, name: itself(api, name, STEPS)),
        (tf_keras, "MultiHeadAttention", 8, lambda api, name: itself(api, name, 200)),
        (keras, "MultiHeadAttention", 16, lambda api, name: itself(api, name, 200, use_causal_mask=True)),
        (tf_keras, "MultiHeadAttention", 8, lambda api, name: another(api, name, STEPS)),
        (keras, "GroupQueryAttention", 8, lambda api, name: itself(api, name, STEPS, use_causal_mask=True)),
        (tf_keras, "Attention", 8, lambda api, name: another(api, name, STEPS)),
        (keras, "Attention", 16, lambda api, name: itself(api, name, STEPS, use_causal_mask=True)),
        (keras, "AdditiveAttention", 8, lambda api, name: itself(api, name, STEPS)),
    ],
)
def test_files_with_masked_steps(api, name, bits, build):
    api.utils.set_random_seed(0)
    model = build(api, name)
    data = data_for(model)
    expected = np.asarray(model(data))
    quantized = quantized_of(lqconvert.load_model(model), data, bits)
    tflite = lqconvert.export(quantized).tflite
    file = Runner(tflite)
    found = file.run([data])
    assert np.mean((found - expected) ** 2) < (0.02 if bits == 8 else 0.0002) * np.var(expected)
    if TFLM.is_installed:
        codes = file.quantize(data)
        apart = np.abs(file.invoke(codes).astype(int) - invoke_micro(tflite, codes))
        assert apart.max() <= (5 if bits == 8 else 8)


def with_numbers(api, name, given):
    """Attention to steps that count if a number, another input, is not 0."""
    x, z, numbers = api.Input((STEPS, WIDTH), name="x"), api.Input((7, WIDTH), name="z"), api.Input((7,))
    counts = tf.not_equal(numbers, 0.0) if api is tf_keras else keras.ops.not_equal(numbers, 0)
    expand = tf.expand_dims if api is tf_keras else keras.ops.expand_dims
    settings = {
        "[:, None]": lambda: {"attention_mask": counts[:, None, :]},
        "[:, None, None]": lambda: {"attention_mask": counts[:, None, None]},
        "expand_dims": lambda: {"attention_mask": expand(counts, 1), "use_causal_mask": True},
        "value_mask": lambda: {"value_mask": counts},
        "mask": lambda: {"mask": [None, counts]},
    }[given]()
    y = attention(api, name, x, z, **settings)
    return api.Model([x, z, numbers], api.layers.Dense(3)(y))


@pytest.mark.parametrize(
    ("api", "name", "given", "bits"),
    [
        (tf_keras, "MultiHeadAttention", "[:, None]", 8),
        (tf_keras, "MultiHeadAttention", "expand_dims", 16),
        (keras, "MultiHeadAttention", "[:, None]", 16),
        (keras, "MultiHeadAttention", "[:, None, None]", 8),
        (keras, "MultiHeadAttention", "value_mask", 8),
        (keras, "GroupQueryAttention", "expand_dims", 8),
        (keras, "Attention", "mask", 8),
    ],
)
def test_no_step_reads_a_masked_one(api, name, given, bits):
    api.utils.set_random_seed(0)
    model = with_numbers(api, name, given)
    numbers = np.random.default_rng(2).integers(1, 9, (EXAMPLES, 7)).astype(np.float32)
    for row, count in zip(numbers, lengths(7), strict=True):
        row[count:] = 0
    numbers[0] = 1  # if no step counts, all are read
    before = np.random.default_rng(3).normal(size=(EXAMPLES, 7, WIDTH)).astype(np.float32)
    after = np.where(numbers[..., np.newaxis] == 0, before[::-1], before)
    x = sequences(STEPS, 0)
    loaded = lqconvert.load_model(model)
    expected = np.asarray(model([x, before, numbers]))
    np.testing.assert_allclose(loaded([x, before, numbers]).numpy(), expected, atol=1e-5)
    quantized = quantized_of(loaded, [x, before, numbers], bits)
    tflite = lqconvert.export(quantized).tflite
    file = Runner(tflite)
    for run in [file.invoke, *([lambda codes: invoke_micro(tflite, codes)] if TFLM.is_installed else [])]:
        found = [run(file.quantize([x, z, numbers])).astype(int) for z in (before, after)]
        assert np.abs(found[1] - found[0]).max() <= (0 if bits == 8 else 8)
        assert np.ptp(found[0]) > 100


@pytest.mark.parametrize("api", [tf_keras, keras])
def test_blocks_of_a_text_model(api):
    """In Keras 3, the second one sees no mask, because the first one takes it from its inputs."""
    api.utils.set_random_seed(0)
    layers, x = api.layers, api.Input((STEPS,), dtype="int32")
    y = layers.Embedding(60, WIDTH, mask_zero=True, embeddings_initializer="he_normal")(x)
    for _ in range(2):
        y = layers.LayerNormalization()(layers.Add()([y, attention(api, "MultiHeadAttention", y, y)]))
    model = api.Model(x, layers.Dense(3)(layers.GlobalAveragePooling1D()(y)))
    words = np.random.default_rng(0).integers(1, 60, (EXAMPLES, STEPS)).astype(np.int32)
    for row, length in zip(words, lengths(STEPS), strict=True):
        row[max(length, 1) :] = 0  # Keras's mean of no step is 0 / 0
    expected = np.asarray(model(words))
    loaded = lqconvert.load_model(model)
    np.testing.assert_allclose(loaded(words).numpy(), expected, atol=1e-5)
    assert sum("masked" in layer.name for layer in loaded.layers) == (2 if api is tf_keras else 1)
    file = Runner(lqconvert.export(quantized_of(loaded, words)).tflite)
    assert np.mean((file.run([words]) - expected) ** 2) < 0.01 * np.var(expected)
