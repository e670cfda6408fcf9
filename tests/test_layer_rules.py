"""What rules make of unusual settings: the same outputs, or a refusal that names the setting."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from lqconvert import LqError, load_model

T, K = tf_keras.layers, keras.layers


def model_of(function, shape, api=tf_keras):
    x = api.Input(shape)
    return api.Model(x, function(x))


def masked(api, layer, **mask):
    """A model that calls a layer with its input and a mask."""
    x, given = api.Input((4, 3)), api.Input((4,), dtype="bool")
    (name,) = mask
    return api.Model([x, given], layer(x, **{name: given}))


def with_masks():
    x, mask = keras.Input((4, 3)), keras.Input((4,), dtype="bool")
    return keras.Model([x, mask], K.Attention()([x, x], mask=[mask, mask]))


def recurrent_inside():
    part = tf_keras.Sequential([T.Input((2, 4)), T.LSTM(3)])
    return tf_keras.Sequential([T.Input((3, 2, 4)), T.TimeDistributed(part)])


REFUSED = {
    "mask of an LSTM": (lambda: masked(tf_keras, T.LSTM(3), mask=1), "called with mask"),
    "mask of attention": (with_masks, "called with mask"),
    "a recurrent model for each step": (recurrent_inside, "TimeDistributed of a recurrent model"),
    "mask of no number": (
        lambda: tf_keras.Sequential([T.Input((6, 3)), T.Masking(float("nan")), T.LSTM(3)]),
        "Masking of the value nan",
    ),
    "softmax of masked steps": (
        lambda: tf_keras.Sequential([T.Input((6,)), T.Embedding(9, 6, mask_zero=True), T.Softmax()]),
        "Softmax of masked steps",
    ),
    "time major": (lambda: tf_keras.Sequential([T.Input((6, 3)), T.LSTM(3, time_major=True)]), "time_major"),
    "a steep slope": (lambda: model_of(T.LeakyReLU(4096.0), (4,)), "slope of 4096"),
    "no pixel": (lambda: model_of(T.Resizing(7, 2, crop_to_aspect_ratio=True), (3, 11, 2)), "to nothing"),
    "limits": (lambda: model_of(lambda x: tf.clip_by_value(x, -1.0, [1.0, 2.0]), (2,)), "two numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    build, message = REFUSED[name]
    with pytest.raises(LqError, match=message):
        load_model(build())


@pytest.mark.parametrize("setting", [{"use_gate": True}, {"sliding_window": 3}])
@pytest.mark.parametrize(
    ("kind", "sizes"), [("MultiHeadAttention", (2, 4)), ("GroupQueryAttention", (4, 2, 1))]
)
def test_attention_of_newer_versions_is_refused(kind, sizes, setting):
    layer = getattr(K, kind)
    if not {*setting} <= {*inspect.signature(layer.__init__).parameters}:
        pytest.skip("this Keras has no such setting")
    with pytest.raises(LqError, match=f"{kind} with a gate or a sliding window"):
        load_model(model_of(lambda x: layer(*sizes, **setting)(x, x), (9, 8), keras))


LOADED = {
    "logarithm": lambda: model_of(lambda x: T.Dense(2)(tf.math.log(x + 1e-6)), (5,)),
    "root": lambda: model_of(lambda x: T.Dense(2)(x**0.5), (5,)),
    "logarithm of Keras 3": lambda: model_of(lambda x: K.Dense(2)(keras.ops.log1p(x)), (5,), keras),
    "array": lambda: model_of(lambda x: x * np.arange(6, dtype=np.float32).reshape(6, 1), (6, 3), keras),
    "size of a tensor": lambda: model_of(
        lambda x: tf.image.resize(T.Conv2D(3, 2, 2)(x), tf.shape(x)[1:3]), (8, 8, 2)
    ),
    "constant of many": lambda: model_of(lambda x: tf.maximum(x, np.full((6, 3), 0.1, np.float32)), (6, 3)),
    "group norm": lambda: model_of(T.GroupNormalization(4), (5, 6, 8)),
    "random crop": lambda: keras.Sequential([K.Input((7, 5, 2)), K.RandomCrop(3, 4)]),
}


@pytest.mark.parametrize("name", LOADED)
def test_loaded_as_an_equal_model(name):
    model = LOADED[name]()
    rebuilt = load_model(model)
    x = np.random.default_rng(0).uniform(0.1, 2, (4, *model.input_shape[1:])).astype(np.float32)
    np.testing.assert_allclose(rebuilt(x, training=False), model(x, training=False), atol=1e-4)


def test_group_norm_takes_memory_for_its_channels_only():
    """Not for their square: a config of 8 KB would take gigabytes."""
    from lqconvert.keras_loader.custom_layers import GroupNorm

    function = tf.function(GroupNorm(4)).get_concrete_function(tf.TensorSpec((1, 2, 2, 4096)))
    sizes = [np.prod(t.shape.as_list()) for op in function.graph.get_operations() for t in op.outputs]
    assert max(sizes) <= 4 * 4096
