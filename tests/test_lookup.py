"""Functions of single values are looked up in a table: exact, and the same in both runtimes."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras

from lqconvert.exporting.lookup import put_lookup, table_of
from lqconvert.keras_loader.custom_layers import Elementwise
from lqconvert.runtime.verify import execute
from lqconvert.tflite.editing import add_tensor, new_operator
from lqconvert.tflite.flatbuffer import write
from lqconvert.tflite.graph import Model, Quantization
from lqconvert.tflite.targets import LITERT, TFLM

#: Codes of every value, in an image.
CODES = np.arange(-128, 128, dtype=np.int8).reshape(1, 16, 16, 1)
INPUT, PARAMETERS = (0.03, -17), {"power": 3.0, "elu": 0.5, "celu": 1.5, "squareplus": 4.0}


def file_of(layer: Elementwise, scale: float, zero_point: int) -> tuple[Model, np.ndarray]:
    """A file of this function alone, and its table."""
    model = Model.empty()
    x, y = (
        add_tensor(model, "INT8", CODES.shape, Quantization.one(*each))
        for each in (INPUT, (scale, zero_point))
    )
    model.main.inputs, model.main.outputs = (x,), (y,)
    placeholder = new_operator(model, "LEAKY_RELU", [x], [y])
    model.main.operators.append(placeholder)
    put_lookup(model, placeholder, layer)
    return model, table_of(layer, model.main.tensors[x], model.main.tensors[y])


@pytest.mark.parametrize("function", sorted(Elementwise.FUNCTIONS))
def test_every_result_is_the_nearest_code_in_both_runtimes(function):
    layer = Elementwise(function, PARAMETERS.get(function, 1.0))
    real = (CODES.astype(np.float64) - INPUT[1]) * INPUT[0]
    results = layer(real.astype(np.float32)).numpy().astype(np.float64)
    low, high = min(np.quantile(results, 0.1), 0), max(np.quantile(results, 0.9), 0)
    scale = (high - low) / 255
    zero_point = round(-128 - low / scale)
    model, codes = file_of(layer, scale, zero_point)
    table = codes.astype(np.int64)
    outputs = {}
    for target in (LITERT, TFLM):
        outputs |= execute(write(model), target, CODES).outputs
    assert len(outputs) == 3
    for found in outputs.values():
        np.testing.assert_array_equal(found.ravel(), table)
    within = (results >= low) & (results <= high)
    errors = np.abs((table.reshape(CODES.shape) - zero_point) * scale - results)[within]
    assert within.sum() > 100
    assert errors.max() <= scale * 0.5001 + 1e-6
    assert np.isin(table.reshape(CODES.shape)[~within], (-128, 127)).all()


@pytest.mark.parametrize(
    ("function", "theirs"),
    [
        (name, getattr(tf_keras.activations, name))
        for name in ("elu", "selu", "softplus", "softsign", "mish", "gelu")
    ],
)
def test_functions_are_keras_s(function, theirs):
    x = np.linspace(-8, 8, 1001, dtype=np.float32)
    np.testing.assert_allclose(Elementwise(function)(x), theirs(x), atol=2e-6)


def test_the_error_function():
    import tensorflow as tf

    x = np.linspace(-5, 5, 2001, dtype=np.float32)
    np.testing.assert_allclose(Elementwise("erf")(x), tf.math.erf(x), atol=5e-7)
