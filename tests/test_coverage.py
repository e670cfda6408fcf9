"""Every feature of the zoo converts, names what stays float, or is refused with its reason."""

import numpy as np
import pytest
import zoo

from lqconvert import LqError, calibrate, export, load_model, rewrite
from lqconvert.flatbuffer import operator_name, read
from lqconvert.loading import random_inputs
from lqconvert.rewriting import float_layers
from lqconvert.runtime import Runner

#: How far the file may be from the graph that was trained, in steps of the output's scale: what rounding at
#: every operator comes to in the last.
STEPS = 2.01


@pytest.mark.parametrize(("name", "api"), zoo.CASES, ids=[f"{name}-{api}" for name, api in zoo.CASES])
def test_zoo(name, api, tmp_path):
    feature, (package, suffix) = zoo.ZOO[name], zoo.APIS[api]
    path = tmp_path / f"model{suffix}"
    package.utils.set_random_seed(0)
    feature.build(package).save(path)
    if feature.refused:
        with pytest.raises(LqError, match=feature.refused):
            rewrite(load_model(path))
        return
    model = load_model(path)
    quantized = rewrite(model)
    inputs = random_inputs(model, 64)
    batch = inputs[0] if len(inputs) == 1 else inputs
    calibrate(quantized, [batch])
    exported = export(quantized, [batch])
    assert set(float_layers(quantized).values()) == ({feature.floats} if feature.floats else set())
    flat = read(exported.tflite)
    if not feature.floats:
        assert "DEQUANTIZE" not in {operator_name(flat, each) for each in flat.subgraphs[0].operators}
    outputs = Runner(exported.tflite).run([batch])
    difference = np.abs(outputs - _flat(quantized(batch, training=False), outputs.shape))
    assert difference.max() <= STEPS * exported.output_scale
    # What 8 bits cost stays far under what the outputs differ by from example to example.
    truth = _flat(model(batch, training=False), outputs.shape)
    assert np.sqrt(np.mean((outputs - truth) ** 2)) < 0.1 * truth.std(axis=0).mean()


def _flat(outputs, shape):
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return np.concatenate([np.asarray(y).reshape(len(y), -1) for y in outputs], axis=1).reshape(shape)
