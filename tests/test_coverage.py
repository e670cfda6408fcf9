"""Every feature of the zoo converts, names what stays float, or is refused with its reason."""

import os

import numpy as np
import pytest
import zoo
from page import Page

from lqconvert import LqError, calibrate, export, export_codes, load_model, quantize, rewrite, target
from lqconvert.keras_loader.load import random_inputs
from lqconvert.quantization.rewrite import float_layers
from lqconvert.runtime.litert import Runner
from lqconvert.tflite.flatbuffer import read

#: How far the file may be from the graph that was trained, in steps of the output's scale: what rounding at
#: every operator comes to in the last.
STEPS = 2.01
#: Models that compute in float16.
HALVES = ("float16", "mixed precision")


# One Keras each: tests/bench/coverage.py goes through both.
CASES = [
    (name, feature.apis[number % len(feature.apis)]) for number, (name, feature) in enumerate(zoo.ZOO.items())
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "api"), CASES, ids=[f"{name}-{api}" for name, api in CASES])
def test_zoo(name, api, tmp_path):
    if name in HALVES and "ONEDNN_MAX_CPU_ISA" in os.environ:
        pytest.skip("with this setting, oneDNN lacks the float16 kernels that TensorFlow asks it for")
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
    operators = read(exported.tflite).main.operators
    if not feature.floats:
        assert "DEQUANTIZE" not in {operator.name for operator in operators}
    outputs = Runner(exported.tflite).run([batch])
    difference = np.abs(outputs - _flat(quantized(batch, training=False), outputs.shape))
    assert difference.max() <= STEPS * exported.output_scale
    # The error of 8 bits is far smaller than the differences between examples.
    truth = _flat(model(batch, training=False), outputs.shape)
    assert np.sqrt(np.mean((outputs - truth) ** 2)) < 0.1 * truth.std(axis=0).mean()


@pytest.mark.slow
def test_an_application_of_keras(tmp_path):
    """The other families take minutes: tests/bench/coverage.py."""
    zoo.tf_keras.utils.set_random_seed(0)
    settings = {"weights": None, "input_shape": (32, 32, 3), "classes": 10, "alpha": 0.25}
    zoo.tf_keras.applications.MobileNet(**settings).save(tmp_path / "model.h5")
    model = load_model(tmp_path / "model.h5")
    quantized = rewrite(model)
    images = RNG.uniform(-1, 1, (32, 32, 32, 3)).astype(np.float32)
    calibrate(quantized, [images])
    exported = export(quantized, [images])
    operators = read(exported.tflite).main.operators
    assert "DEQUANTIZE" not in {operator.name for operator in operators}
    difference = Runner(exported.tflite).run([images]) - quantized(images, training=False).numpy()
    assert np.abs(difference).mean() <= STEPS * exported.output_scale  # a hundred roundings add up


RNG = np.random.default_rng(0)


def saved(name, folder):
    zoo.tf_keras.utils.set_random_seed(0)
    model = zoo.ZOO[name].build(zoo.tf_keras)
    model.save(folder / "model.h5")
    return model


@pytest.mark.slow
def test_several_inputs_and_outputs_from_model_to_targets(tmp_path):
    model = saved("several", tmp_path)
    a, b = RNG.normal(size=(400, 8)), RNG.normal(size=(400, 4, 3))
    np.savez(tmp_path / "data.npz", a=a, b=b)
    report = quantize(
        tmp_path / "model.h5",
        str(tmp_path / "data.npz"),
        tmp_path / "m.tflite",
        targets=[target("litert"), target("tflm")],
        report=tmp_path / "m.html",
        epochs=1,
    )
    assert {"Bytes by layer, litert", "Bytes by layer, tflm"} <= set(Page(tmp_path / "m.html").headings)
    runner = Runner((tmp_path / "m.tflite").read_bytes())
    assert runner.input_shapes == {"a": (8,), "b": (4, 3)}
    assert [detail["name"] for detail in runner.outputs] == ["first", "second"]
    truth = np.concatenate(model.predict([a, b], verbose=0), axis=1)
    assert np.mean((runner.run([[a, b]]) - truth) ** 2) < 0.01 * truth.var()
    litert, tflm = (file.score for file in report.files)
    assert tflm == pytest.approx(litert, rel=0.05)  # they round in other ways
    again = export_codes(
        tmp_path / "m.codes.npz", tmp_path / "n.tflite", data=None, targets=[target("litert")]
    )
    assert again.files[0].proven.size == report.files[0].proven.size
    np.savez(tmp_path / "less.npz", a=a)
    with pytest.raises(LqError, match="holds a; give a, b"):
        quantize(tmp_path / "model.h5", str(tmp_path / "less.npz"), tmp_path / "o.tflite")


@pytest.mark.slow
def test_indices_are_taken_as_they_are(tmp_path):
    model = saved("embedding", tmp_path)
    words = RNG.integers(0, 300, (400, 8))
    np.savez(tmp_path / "data.npz", x=words)
    quantize(tmp_path / "model.h5", str(tmp_path / "data.npz"), tmp_path / "m.tflite", epochs=1)
    runner = Runner((tmp_path / "m.tflite").read_bytes())
    assert runner.inputs[0]["dtype"] == np.int32
    truth = model.predict(words, verbose=0)
    assert np.mean((runner.run([words]) - truth) ** 2) < 0.05 * truth.var()


@pytest.mark.slow
def test_float_layers_are_named_or_refused(tmp_path):
    model = saved("lstm elu", tmp_path)
    x = RNG.normal(size=(400, *zoo.STEPS)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    job = tmp_path / "model.h5", str(tmp_path / "data.npz"), tmp_path / "m.tflite"
    for options in ({"strict": True}, {"targets": [target("tflm")]}):
        with pytest.raises(LqError, match=r"no integer kernel for 'lstm.*' \(a recurrent layer\)"):
            quantize(*job, **options)
    report = quantize(*job, epochs=1)
    (kept,) = report.float_layers.items()
    assert kept[0].startswith("lstm")
    assert kept[1] == "a recurrent layer"
    truth = model.predict(x, verbose=0)
    outputs = Runner((tmp_path / "m.tflite").read_bytes()).run([x])
    assert np.mean((outputs - truth) ** 2) < 0.02 * truth.var()


def test_an_open_size_is_given(tmp_path):
    saved("open size", tmp_path)
    assert load_model(tmp_path / "model.h5", input_shape=(12, 9, 4)).input_shape == (None, 12, 9, 4)
    for wrong in ((12, 9), (12, 9, 3)):
        with pytest.raises(LqError, match="does not fit"):
            load_model(tmp_path / "model.h5", input_shape=wrong)


def _flat(outputs, shape):
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return np.concatenate([np.asarray(y).reshape(len(y), -1) for y in outputs], axis=1).reshape(shape)
