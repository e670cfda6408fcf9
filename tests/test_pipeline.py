"""Runs of other kinds than a plain classifier's, interruptions, and repeatability."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from click.testing import CliRunner
from page import Page
from tf_keras import layers

from lqconvert import LSQ, Budget, Interrupted, Rate, evaluate, load_data, load_model, quantize, rewrite
from lqconvert.cli.main import main
from lqconvert.data.preprocessing import PREPROCESSINGS
from lqconvert.errors import CannotRun
from lqconvert.quantization.fold_batchnorm import fold
from lqconvert.runtime.litert import Runner
from lqconvert.training.augmentation import Augmentation
from lqconvert.training.trainer import RelativeAdam, Trainer

RNG = np.random.default_rng(0)


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_cycles")]


def sequential(shape, *each):
    tf_keras.utils.set_random_seed(0)
    return tf_keras.Sequential([layers.Input(shape), *each])


def trained(model, x, y, loss):
    model.compile(tf_keras.optimizers.Adam(1e-2), loss)
    model.fit(x, y, epochs=30, batch_size=64, verbose=0)
    return model


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A model of one layer that knows the digits, and its data."""
    x, y = load_data("digits", (8, 8, 1), 10).train.arrays()
    model = sequential((8, 8, 1), layers.Flatten(), layers.Dense(10, "softmax", name="dense"))
    path = tmp_path_factory.mktemp("digits") / "digits.h5"
    trained(model, x, y, "sparse_categorical_crossentropy").save(path)
    return path, "digits"


FEATURES = RNG.normal(size=(600, 8)).astype(np.float32)
TARGETS = np.sin(FEATURES[:, :2]).astype(np.float32)
SIDES = (FEATURES.sum(axis=1) > 0).astype(np.int64)


def test_regression(tmp_path):
    model = sequential((8,), layers.Dense(16, "relu"), layers.Dense(2))
    trained(model, FEATURES, TARGETS, "mse").save(tmp_path / "model.h5")
    np.savez(tmp_path / "data.npz", x=FEATURES, y=TARGETS)
    job = tmp_path / "model.h5", str(tmp_path / "data.npz"), tmp_path / "m.tflite"
    report = quantize(*job, report=tmp_path / "m.html")
    page = Page(tmp_path / "m.html")
    assert f"{report.files[0].score:.4g}" in page.text
    assert "Classes" not in page.headings
    assert [score.metric for score in report.int8.scores] == ["R²", "MAE", "RMSE"]
    assert 0.5 < report.float_.score < 1
    assert report.int8.score >= report.float_.score - 0.01
    outputs = Runner((tmp_path / "m.tflite").read_bytes()).run([load_data(job[1], (8,), 2).test.arrays()[0]])
    errors = outputs - load_data(job[1], (8,), 2).test.y
    assert report.int8.scores[1].value == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    assert report.int8.scores[2].value == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-5)
    assert report.agreement_with_graph is None
    assert report.max_lsb_from_graph <= 2.01


def test_several_outputs_whose_preprocessing_is_found(tmp_path):
    pixels = RNG.integers(0, 256, (600, 8)).astype(np.float32)
    x = layers.Input((8,))
    flat = layers.Flatten(name="flatten")(layers.Dense(8, activation="relu")(x))
    model = tf_keras.Model(x, [layers.Dense(2)(flat), layers.Dense(3)(flat)])
    model.save(tmp_path / "m.h5")
    y = np.concatenate(model.predict(pixels / 127.5 - 1, verbose=0), axis=1)
    np.savez(tmp_path / "data.npz", x=pixels, y=y)
    job = tmp_path / "m.h5", str(tmp_path / "data.npz")
    report = quantize(*job, tmp_path / "m.tflite", scheme=LSQ(), epochs=1)
    assert str(report.settings.preprocess) == "-1-1"
    assert [score.metric for score in report.int8.scores] == 2 * ["R²", "MAE", "RMSE"]
    assert all(score.value > 0.99 for score in report.int8.scores if score.metric == "R²")


def test_a_classifier_whose_answers_have_axes_of_length_1(digits, tmp_path):
    model = load_model(digits[0])
    tf_keras.Model(model.inputs, layers.Reshape((1, 1, 10))(model.output)).save(tmp_path / "m.h5")
    job = tmp_path / "m.h5", "digits", tmp_path / "m.tflite"
    report = quantize(*job, scheme=LSQ(), epochs=1, report=tmp_path / "m.html")
    assert report.int8.score > 0.9
    assert report.agreement_with_float > 0.95
    assert report.files[0].score == report.int8.score
    assert Runner(job[2].read_bytes()).output_shape == (1, 1, 10)


def test_pixels_are_learned_as_they_are_fed(digits, tmp_path):
    """With a shift of half a step, each pixel is between two codes. All must use the same one."""
    model = load_model(digits[0])
    x = layers.Input((8, 8, 1))
    wrapped = tf_keras.Model(x, model(layers.Rescaling(8.0, 8.0)(x)))  # what -1-1 made of 0..16 and more
    wrapped.save(tmp_path / "m.h5")
    data = load_data("digits", (8, 8, 1), 10)
    x, y = (np.concatenate(each) for each in zip(data.train.arrays(), data.test.arrays(), strict=True))
    raw = np.clip(np.round(x.astype(np.float32) * 255 / 16), 0, 255).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x=raw, y=y)
    job = tmp_path / "m.h5", str(tmp_path / "data.npz")
    settings = {"scheme": LSQ(), "epochs": 1, "preprocess": PREPROCESSINGS["-1-1"]}
    report = quantize(*job, tmp_path / "m.tflite", **settings)
    test_x, test_y = load_data(job[1], (8, 8, 1), 10).test.arrays()
    runner = Runner((tmp_path / "m.tflite").read_bytes())
    fed = runner.invoke(test_x.astype(np.int16) - 128)
    assert np.mean(fed.argmax(axis=1) == test_y) == report.int8.score > 0.9
    assert report.feeding()[0].startswith("input: int8 = pixel - 128 ")
    found = evaluate(tmp_path / "m.tflite", job[1])
    assert (found.score, found.preprocess) == (report.int8.score, "-1-1")


@pytest.mark.usefixtures("brief")
def test_binary_classifier_of_one_sigmoid(tmp_path):
    model = sequential((8,), layers.Dense(1, "sigmoid"))
    model.set_weights([np.full((8, 1), 4.0), np.zeros(1)])
    model.save(tmp_path / "model.h5")
    np.savez(tmp_path / "data.npz", x=FEATURES, y=SIDES)
    report = quantize(tmp_path / "model.h5", str(tmp_path / "data.npz"), tmp_path / "m.tflite")
    assert report.score_name == "accuracy"
    assert report.float_.score > 0.9
    assert report.int8.score >= report.float_.score - 0.01
    assert report.agreement_with_graph >= 0.99


def test_without_labels_the_float_model_teaches(tmp_path):
    model = sequential((8,), layers.Dense(16, "relu"), layers.Dense(2))
    model.save(tmp_path / "model.h5")
    np.save(tmp_path / "x.npy", FEATURES)
    job = tmp_path / "model.h5", str(tmp_path / "x.npy"), tmp_path / "m.tflite"
    report = quantize(*job)
    assert report.int8.scores[0].metric == "R² to float"
    assert report.float_.score == 1
    outputs, truth = Runner((tmp_path / "m.tflite").read_bytes()).run([FEATURES]), model(FEATURES).numpy()
    assert np.mean((outputs - truth) ** 2) < 0.005 * truth.var()  # a budget of no drop allows half of it


@pytest.mark.parametrize(("filters", "activation"), [(1, "linear"), (3, "softmax")])
def test_answers_for_every_place_are_learned_place_by_place(filters, activation, tmp_path):
    hidden = layers.Conv2D(8, 3, padding="same", activation="relu")
    last = layers.Conv2D(filters, 3, padding="same"), layers.Activation(activation)
    model = sequential((6, 6, 1), hidden, *last)
    model.save(tmp_path / "model.h5")
    x = RNG.normal(size=(200, 6, 6, 1)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    settings = {"scheme": LSQ(), "learning_rate": 0.01, "minimum_steps": 100}
    report = quantize(tmp_path / "model.h5", str(tmp_path / "x.npy"), tmp_path / "m.tflite", **settings)
    assert report.agreement_with_graph is None or report.agreement_with_graph > 0.95
    assert report.int8.score > 0.99


@pytest.mark.parametrize(("blend", "alike"), [(False, False), (True, True)])
def test_labels_count_unless_images_are_blended(blend, alike, digits):
    model, data = load_model(digits[0]), load_data("digits", (8, 8, 1), 10)
    wrong = replace(data, train=replace(data.train, y=9 - data.train.y))

    def loss(data):
        settings = {"batch_size": 64, "learning_rate": 0.0, "augmentation": Augmentation(True, blend=blend)}
        quantized = rewrite(model, Rate())
        return Trainer.of(quantized, fold(model), data, PREPROCESSINGS["none"], **settings).run(1, 0.0)

    assert (loss(data) == loss(wrong)) is alike


def test_same_seed_same_file_other_seed_another(tmp_path):
    model = sequential((8, 8, 1), layers.Conv2D(10, 8), layers.Flatten(), layers.Softmax())

    def run(seed):
        settings = {"scheme": Rate(), "epochs": 1, "preprocess": PREPROCESSINGS["none"], "seed": seed}
        quantize(model, "digits", tmp_path / "m.tflite", **settings)
        return (tmp_path / "m.tflite").read_bytes()

    assert run(1) == run(1) != run(2)


def test_steps_are_in_proportion_and_damped_but_for_scales(samples):
    quantized = rewrite(load_model(samples / "digits_cnn.h5"), Rate())
    layer = quantized.get_layer("dense")
    scale, kernel, bias = layer.quantizers["kernel"].scale_weight, layer.layer.kernel, layer.layer.bias
    kernel.assign(np.where(RNG.random(kernel.shape) < 0.5, 0.02, -0.02))  # of rms 0.02
    before = [v.numpy() for v in (scale, kernel, bias)]
    optimizer = RelativeAdam(quantized, learning_rate=0.01, damping=0.5)
    optimizer.apply_gradients([(tf.ones_like(v), v) for v in (scale, kernel, bias)])
    moved = [b - v.numpy() for b, v in zip(before, (scale, kernel, bias), strict=True)]
    for step, expected in zip(moved, (0.01, 0.01 * 0.5 * 0.02 / 0.1, 0.01 * 0.5), strict=True):
        np.testing.assert_allclose(step, expected, rtol=1e-3)


def test_undamped_steps_are_those_of_adam():
    variables, plain = ([tf.Variable([[0.02, -0.02]]), tf.Variable([0.5])] for _ in range(2))
    own = RelativeAdam(tf_keras.Sequential(), learning_rate=0.01, damping=1.0)
    adam = tf_keras.optimizers.Adam(0.01)
    for _ in range(20):
        gradients = [RNG.normal(size=v.shape).astype(np.float32) for v in variables]
        own.apply_gradients(zip(gradients, variables, strict=True))
        adam.apply_gradients(zip(gradients, plain, strict=True))
    for a, b in zip(variables, plain, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)


def test_adam_restarts_as_if_it_were_new():
    one, other = (tf.Variable([[0.02, -0.02]]) for _ in range(2))
    used, new = (RelativeAdam(tf_keras.Sequential(), learning_rate=0.01, damping=1.0) for _ in range(2))
    for _ in range(50):
        used.apply_gradients([(tf.fill((1, 2), 100.0), one)])
    used.restart(30)
    assert used.iterations == 30
    one.assign(other)
    for _ in range(5):
        gradient = tf.constant(RNG.normal(size=(1, 2)).astype(np.float32))
        used.apply_gradients([(gradient, one)])
        new.apply_gradients([(gradient, other)])
    np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5)


class Interrupt:
    """A progress callback that presses Ctrl-C at its n-th call."""

    def __init__(self, at):
        self.left = at

    def __call__(self, _):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("brief")
def test_interrupted_before_the_first_step(digits, tmp_path, said):
    """There is a file, but nothing to go on from."""
    report = quantize(*digits, tmp_path / "m.tflite", progress=Interrupt(1))
    assert any("--resume" in line for line in said)
    assert report.int8.score > 0.9
    assert not (tmp_path / "m.resume.npz").exists()


@pytest.mark.usefixtures("brief")
def test_interrupted_in_the_command_line_and_resumed(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("lqconvert.training.loggers.JsonLines.progress", Interrupt(4))
    output, checkpoint = tmp_path / "m.tflite", tmp_path / "m.resume.npz"
    arguments = ["quantize", str(digits[0]), "--data", "digits", "-o", str(output)]
    arguments += ["--log", str(tmp_path / "run.jsonl")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 130
    assert "the run was interrupted: the best file so far is written" in result.stderr
    assert "--resume" in result.stderr
    assert f"wrote {output}, " in result.stderr
    assert json.loads((tmp_path / "m.report.json").read_text())["int8"]["scores"][0]["value"] > 0.9
    assert output.exists()
    assert checkpoint.exists()
    result = CliRunner().invoke(main, [*arguments, "--resume"])
    assert result.exit_code == 0, result.output
    assert "continuing from step" in result.stderr
    assert not checkpoint.exists()


def test_an_interrupted_run_whose_file_cannot_be_made_can_be_gone_on_with(digits, tmp_path, monkeypatch):
    def refused(*_):
        raise CannotRun("no")

    monkeypatch.setattr("lqconvert.pipeline.quantize.verify", refused)
    with pytest.raises(CannotRun):
        quantize(*digits, tmp_path / "m.tflite", progress=Interrupt(3))
    assert {path.name for path in tmp_path.iterdir()} == {"m.resume.npz", "m.codes.npz"}


def test_ctrl_c_before_any_codes_hold_the_budget(digits, tmp_path):
    job = *digits, tmp_path / "m.tflite"
    with pytest.raises(Interrupted, match="the run was interrupted: no file of at most 100 bytes"):
        quantize(*job, budget=Budget(max_size=100), progress=Interrupt(3))
    assert Interrupted.exit_code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["m.resume.npz"]


def test_a_broken_image_ends_the_run_in_one_line(samples, tmp_path):
    for number in range(40):
        path = tmp_path / "images" / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = RNG.integers(0, 256, (8, 8, 1), dtype=np.uint8)
        path.write_bytes(tf.io.encode_png(image).numpy() if number != 7 else b"not an image")
    model, output = str(samples / "digits_cnn.h5"), tmp_path / "out" / "m.tflite"
    arguments = [model, "--data", str(tmp_path / "images"), "--preprocess", "none", "-o", str(output)]
    result = CliRunner().invoke(main, ["quantize", *arguments])
    assert result.exit_code == 1
    assert "7.png is not a readable image" in " ".join(result.stderr.split())
    assert not output.parent.exists()


def test_cli_passes_its_settings_on(digits, tmp_path):
    options = ["--scheme", "maxbin", "--penalty", "1e-5", "--granularity", "scalar", "--rounding", "floor"]
    options += ["--bits", "6", "--preprocess", "none", "--epochs", "1", "--batch-size", "64", "--seed", "3"]
    options += ["--learning-rate", "1e-3", "--max-minutes", "5", "-o", str(tmp_path / "m.tflite")]
    result = CliRunner().invoke(main, ["quantize", str(digits[0]), "--data", "digits", *options])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "m.report.json").read_text())
    assert report["settings"] == {
        "scheme": {"name": "maxbin", "limit": 31, "gamma": 1e-5},
        "budget": {"max_drop": None, "max_size": None, "asked": False},
        "tasks": {"dense": "classification"},
        "judged": {"dense": ["accuracy"]},
        "weights": {"dense": 1.0},
        "threshold": 0.5,
        "steer_on": "validation",
        "granularity": "scalar",
        "rounding": "floor",
        "start": None,
        "activations": 8,
        "io": "int8",
        "preprocess": "none",
        "limits": {"max_ram": None, "max_latency": None, "max_flash": None},
        "augmentation": "none",
        "epochs": 1,
        "max_minutes": 5.0,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "seed": 3,
    }
    for layer in report["layers"]:
        assert layer["smallest_code"] >= -31
        assert layer["largest_code"] <= 31
        assert layer["granularity"] == "scalar"
