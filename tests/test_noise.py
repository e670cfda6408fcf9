"""The noise of layers: noise that is added is measured."""

import math

import numpy as np
import pytest
import tf_keras
from tf_keras import layers

from lqconvert.exporting.export import convert
from lqconvert.runtime.layer_snr import layer_noise

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 8, 8, 3)).astype(np.float32)


def network(widths=(4, 6), activation="relu"):
    tf_keras.utils.set_random_seed(0)
    first = layers.Conv2D(widths[0], 3, activation=activation, name="first")
    second = layers.Conv2D(widths[1], 3, use_bias=False, name="second")
    rest = [layers.BatchNormalization(), layers.Flatten(), layers.Dense(5, name="last")]
    return tf_keras.Sequential([layers.Input((8, 8, 3)), first, second, *rest])


def test_a_file_beside_itself_has_no_noise():
    tflite = convert(network(), integer=False)
    rows = layer_noise(tflite, tflite, X)
    assert [(row.name, row.kind, row.shape) for row in rows] == [
        ("first", "CONV_2D", (6, 6, 4)),
        ("second", "CONV_2D", (4, 4, 6)),
        ("last", "FULLY_CONNECTED", (5,)),
    ]
    assert all(row.snr_db == math.inf for row in rows)


def test_noise_of_a_known_size_is_found_in_its_layer_and_behind_it():
    """A change of a hundredth, which nothing nonlinear is behind, is one of 40 dB."""
    model = network(activation=None)
    before = convert(model, integer=False)
    (kernel,) = model.get_layer("second").get_weights()
    model.get_layer("second").set_weights([kernel * np.float32(1.01)])
    first, second, _ = layer_noise(before, convert(model, integer=False), X)
    assert first.snr_db == math.inf
    assert second.snr_db == pytest.approx(40, abs=0.01)


def test_a_layer_of_another_width_has_no_counterpart():
    narrow, wide = (convert(network((4, n)), integer=False) for n in (6, 7))
    assert [row.snr_db is None for row in layer_noise(narrow, wide, X)] == [False, True, True]


def test_preprocessing_of_each_files_own():
    tflite = convert(network(), integer=False)
    same, halved = layer_noise(tflite, tflite, X, X), layer_noise(tflite, tflite, X, X / 2)
    assert same[0].snr_db == math.inf > halved[0].snr_db
