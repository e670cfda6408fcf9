"""Models whose activations do not fit into memory for a whole batch are computed in parts."""

import numpy as np
import pytest
import tf_keras
from tf_keras import layers

from lqconvert import Rate, calibrate, load_data, rewrite
from lqconvert.data.preprocessing import PREPROCESSINGS
from lqconvert.quantization.fold_batchnorm import fold
from lqconvert.quantization.model_outputs import inference
from lqconvert.quantization.walk import activation_bytes, live_bytes
from lqconvert.training.augmentation import Augmentation
from lqconvert.training.trainer import Trainer, values


@pytest.fixture
def model():
    tf_keras.utils.set_random_seed(0)
    x = y = layers.Input((8, 8, 1))
    y = layers.Conv2D(4, 3, strides=2, activation="relu")(y)
    return tf_keras.Model(x, layers.Dense(10, "softmax")(layers.Flatten()(y)))


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(mirror=True, blend=True)])
def test_parts_of_a_batch_teach_what_the_batch_does(model, augmentation, monkeypatch):
    data = load_data("digits", (8, 8, 1), 10)

    def learned(parts):
        tf_keras.utils.set_random_seed(0)
        quantized = rewrite(model, Rate())
        calibrate(quantized, [data.train.arrays(256)[0].astype(np.float32)])
        bytes_ = 99 * activation_bytes(quantized) / parts
        monkeypatch.setattr("lqconvert.training.trainer.ACTIVATION_BYTES", int(np.ceil(bytes_)))
        settings = {"batch_size": 99, "learning_rate": 1e-3, "augmentation": augmentation}
        trainer = Trainer.of(quantized, fold(model), data, PREPROCESSINGS["none"], **settings)
        assert trainer.parts == parts
        return [trainer.run(25, 1.0), *values(quantized.variables)]  # with the last batch of a pass

    for whole, added in zip(learned(1), learned(7), strict=True):
        np.testing.assert_allclose(added, whole, atol=1e-4)


def test_outputs_do_not_depend_on_parts(model, monkeypatch):
    x = np.random.default_rng(0).normal(size=(50, 8, 8, 1)).astype(np.float32)
    whole = inference(model)(x).numpy()
    monkeypatch.setattr("lqconvert.quantization.model_outputs.LIVE_BYTES", 7 * live_bytes(model))
    np.testing.assert_allclose(inference(model)(x), whole, atol=1e-6)
