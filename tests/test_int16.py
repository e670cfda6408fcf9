"""16-bit activations: files compute what their graphs compute, in both runtimes, and finer than int8."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import zoo
from click.testing import CliRunner
from tf_keras import layers

from lqconvert import LqError, calibrate, export, load_model, rewrite
from lqconvert.cli.main import main
from lqconvert.keras_loader.load import random_inputs
from lqconvert.runtime.litert import Runner
from lqconvert.runtime.tflm import run_micro
from lqconvert.tflite.dead_channels import remove_dead_channels
from lqconvert.tflite.flatbuffer import read, write

RNG = np.random.default_rng(0)
#: What rounding at every operator comes to in the last, in steps of the output: 1/256 of int8's.
STEPS = 4.01


def exported(model):
    """A model with 16-bit activations, its file, and the inputs that it was calibrated on."""
    quantized = rewrite(model, activations=16)
    inputs = random_inputs(model, 64)
    batch = inputs[0] if len(inputs) == 1 else inputs
    calibrate(quantized, [batch])
    return quantized, export(quantized, [batch]), batch


def flat(outputs):
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return np.concatenate([np.asarray(y).reshape(len(y), -1) for y in outputs], axis=1)


def upscaled(api):
    """With an operator that has no int16 kernel, and is replaced."""
    x = api.Input((6, 5, 2))
    y = tf.nn.depth_to_space(api.layers.Conv2D(8, 3, padding="same")(x), 2)
    return api.Model(x, api.layers.Conv2D(3, 3)(y))


MODELS = {name: zoo.ZOO[name].build for name in ("sigmoid", "tanh", "transposed", "branches", "constants")}
MODELS |= {"depth_to_space": upscaled}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_file_computes_what_its_graph_computes(name, tmp_path):
    pytest.importorskip("tflite_micro", reason="TFLite Micro's interpreter is for Linux only")
    tf_keras.utils.set_random_seed(0)
    MODELS[name](tf_keras).save(tmp_path / "model.h5")
    quantized, made, batch = exported(load_model(tmp_path / "model.h5"))
    graph = read(made.tflite).main
    assert {tensor.type for tensor in graph.tensors} <= {"INT16", "INT8", "INT32", "INT64"}
    assert {graph.tensors[index].type for index in (*graph.inputs, *graph.outputs)} == {"INT16"}
    runner = Runner(made.tflite)
    codes = runner.quantize(batch)
    outputs = runner.invoke(codes)
    truth = flat(quantized(batch, training=False)) / made.output_scale
    assert np.abs(flat(outputs) - truth).max() <= STEPS
    micro = run_micro(made.tflite, codes).outputs
    assert np.abs(micro.astype(int) - outputs).max() <= 2


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("gelu", "gelu"),
        ("prelu", "PReLU"),
        ("gru", "Recurrent"),
        ("embedding", "Embedding"),
        ("unit length", "L2Normalize"),
    ],
)
def test_layers_without_kernels_are_named(name, what, tmp_path):
    zoo.ZOO[name].build(tf_keras).save(tmp_path / "model.h5")
    with pytest.raises(LqError, match=rf"layer '\w+' \({what}\) has no kernel for 16-bit activations"):
        exported(load_model(tmp_path / "model.h5"))


@pytest.mark.parametrize("bits", [True, 4])
def test_other_bits_are_refused(bits):
    model = tf_keras.Sequential([layers.Input((4,)), layers.Dense(2)])
    with pytest.raises(LqError, match="not 8 or 16 bits"):
        rewrite(model, activations=bits)


def test_dead_units_leave_the_file():
    dense = layers.Dense(8, "relu", name="hidden")
    model = tf_keras.Sequential([layers.Input((4,)), dense, layers.Dense(2, name="out")])
    kernel, bias = RNG.normal(size=(4, 8)), RNG.normal(size=8)
    kernel[:, :5], bias[:5] = 0, -1  # a positive constant may be rounded in two ways
    dense.set_weights([kernel, bias])
    _, made, batch = exported(load_model(model))
    smaller = write(remove_dead_channels(read(made.tflite)))
    assert len(smaller) < len(made.tflite)
    (first, _) = (each for each in read(smaller).main.operators if each.name == "FULLY_CONNECTED")
    assert read(smaller).main.tensors[first.inputs[1]].shape == (3, 4)
    codes = Runner(made.tflite).quantize(batch)
    assert np.array_equal(Runner(made.tflite).invoke(codes), Runner(smaller).invoke(codes))


# The command


@pytest.fixture(scope="module")
def wavy(tmp_path_factory):
    """A regression that int8 outputs are too coarse for. Its weights have no error."""
    folder = tmp_path_factory.mktemp("wavy")
    x = RNG.uniform(-3, 3, size=(1200, 2)).astype(np.float32)
    knots = np.linspace(-3, 3, 16).astype(np.float32)
    model = tf_keras.Sequential(
        [layers.Input((2,)), layers.Dense(32, "relu", name="knots"), layers.Dense(1, name="height")]
    )
    kernel = np.zeros((2, 32))
    kernel[0, :16] = kernel[1, 16:] = 1
    heights = 30 * RNG.choice([-1, 1], 32)
    model.set_weights([kernel, -np.tile(knots, 2), heights[:, np.newaxis], np.zeros(1)])
    model.save(folder / "model.h5")
    y = model.predict(x, verbose=0)[:, 0]
    y += 0.005 * y.std() * RNG.normal(size=len(y)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=y)
    return folder


def run(folder, *options):
    return CliRunner().invoke(main, [str(each) for each in options])


def made(folder, name, *options):
    """The report of a run without training."""
    command = ["quantize", folder / "model.h5", "--data", folder / "data.npz", "-o", folder / name]
    result = run(folder, *command, "--epochs", 0, *options)
    assert result.exit_code == 0, result.output
    return json.loads((folder / name).with_suffix(".report.json").read_text())


@pytest.mark.slow
def test_a_regression_is_finer_on_both_runtimes(wavy):
    pytest.importorskip("tflite_micro", reason="TFLite Micro's interpreter is for Linux only")

    def errors(report):
        return [
            score["value"]
            for file in (report["float"], *report["files"])
            for score in file["scores"]
            if score["metric"] == "RMSE"
        ]

    both = "--target", "litert", "--target", "tflm", "--scheme", "lsq"  # whose scales are exact
    floats, *narrow = errors(made(wavy, "narrow.tflite", *both))
    report = made(wavy, "wide.tflite", *both, "--activations", 16)
    _, *wide = errors(report)
    assert max(wide) < 1.1 * floats < min(narrow)
    assert report["settings"]["activations"] == 16
    assert set(report["input_types"].values()) == {"int16"}
    assert [file["proven"]["refused"] for file in report["files"]] == [[], []]
    # The codes make the same file again, and one with float32 inputs.
    again = run(wavy, "export", wavy / "wide.codes.npz", "-o", wavy / "again.tflite")
    assert again.exit_code == 0, again.output
    assert (wavy / "again.tflite").read_bytes() == (wavy / "wide.tflite").read_bytes()
    command = ["export", wavy / "wide.codes.npz", "--io", "float32", "-o", wavy / "floats.tflite"]
    assert run(wavy, *command).exit_code == 0
    result = run(wavy, "evaluate", wavy / "floats.tflite", "--data", wavy / "data.npz", "--json")
    assert result.exit_code == 0, result.output
    scores = {score["metric"]: score["value"] for score in json.loads(result.stdout)["scores"]}
    assert scores["RMSE"] == pytest.approx(wide[0], rel=0.01)


@pytest.mark.parametrize("io", ["int8", "uint8"])
def test_a_narrow_border_is_refused(io, wavy):
    command = ["quantize", wavy / "model.h5", "--data", wavy / "data.npz", "-o", wavy / "no.tflite"]
    result = run(wavy, *command, "--activations", 16, "--io", io)
    assert result.exit_code == 1
    assert f"error: io '{io}': too narrow for 16-bit activations; choose int16 or float32" in result.stderr
    assert not (wavy / "no.tflite").exists()
