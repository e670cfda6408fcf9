"""Columns of different ranges: the scaling in front of the quantized model, in the file or in the program."""

import json
import shutil
import subprocess

import keras
import numpy as np
import pytest
import tf_keras
from click.testing import CliRunner

import lqconvert
from lqconvert import export_codes
from lqconvert.cli.main import main
from lqconvert.cli.messages import passed_on
from lqconvert.errors import LqError
from lqconvert.exporting.codes import Int8File
from lqconvert.runtime.litert import Runner
from lqconvert.runtime.tflm import run_micro

pytestmark = pytest.mark.slow

pytest.importorskip("tflite_micro", reason="TFLite Micro's interpreter is for Linux only")

APIS = {"tf_keras": tf_keras, "keras": keras}
TARGETS = [lqconvert.target("litert"), lqconvert.target("tflm")]
#: Also a column that never changes, and one far from 0.
SCALES = np.array([1e-3, 1e-2, 0.1, 1.0, 10.0, 1e5, 0.0, 50.0])
OFFSETS = np.array([0.001, 0.0, -0.2, 0.0, 3.0, 1e5, 5.0, 20_000.0])
DEVIATIONS = np.where(SCALES, SCALES, 1.0)
#: Of the scaled columns in the targets.
WEIGHTS = np.array([1.0, 0.5, 0.7, 1.0, 0.5, -1.0, 0.0, 0.5])
TRAINED = 1500


def table():
    """x float32 [n, 8] and targets float32 [n, 1], a sum of all columns but the constant one."""
    z = np.random.default_rng(0).normal(size=(2000, 8))
    x, y = z * SCALES + OFFSETS, 100 * (z @ WEIGHTS) + 300
    return x.astype(np.float32), y[:, np.newaxis].astype(np.float32)


def regression(api, begin, path, deviations=1.0, offsets=0.0):
    """Saves a model that computes the targets to a path. ``begin`` makes its first layers from (api, input).

    What they leave of the columns' deviations and offsets is in its kernel.
    """
    inputs = api.Input((8,))
    hidden, last = api.layers.Dense(16, activation="relu"), api.layers.Dense(1)
    model = api.Model(inputs, last(hidden(begin(api, inputs))))
    kernel = np.hstack([np.eye(8), -np.eye(8)]) / np.broadcast_to(deviations, 8)[:, np.newaxis]
    hidden.set_weights([kernel, -np.broadcast_to(offsets, 8) @ kernel])
    last.set_weights([100 * np.concatenate([WEIGHTS, -WEIGHTS])[:, np.newaxis], np.array([300.0])])
    model.save(path)
    return path


def normalized(api, inputs):
    norm = api.layers.Normalization(name="normalization")  # whatever was made before
    norm.adapt(table()[0][:TRAINED])
    return norm(inputs)


def saved(path, x, y):
    train, test = slice(TRAINED), slice(TRAINED, None)
    np.savez(path, x_train=x[train], y_train=y[train], x_test=x[test], y_test=y[test])
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("table") / "table.npz", *table())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: regression(api, normalized, folder / f"{name}.keras") for name, api in APIS.items()}


def quantized(model, data, output, **settings):
    """The report, and what was said."""
    said = []
    # Learning differs between machines, and is not what these tests are about.
    learned = {"scheme": lqconvert.LSQ(), "epochs": 1, "learning_rate": 1e-6, "steer_on": "validation"}
    settings = {"targets": TARGETS} | learned | settings
    with passed_on("lqconvert", said.append):
        return lqconvert.quantize(model, str(data), output, **settings), said


@pytest.fixture(scope="module")
def made(models, data, tmp_path_factory):
    """The run of the tf_keras model for both targets, and its folder."""
    folder = tmp_path_factory.mktemp("made")
    return *quantized(models["tf_keras"], data, folder / "m.tflite"), folder


def r2(outputs):
    _, y = table()
    y = y[TRAINED:]
    return 1 - np.mean((outputs.reshape(y.shape) - y) ** 2) / np.var(y)


def holds(report):
    """Whether every file's R² is within 0.01 of the float model's."""
    float_ = report.float_.score
    return float_ > 0.7 and all(file.score > float_ - 0.01 for file in report.files)


def test_a_normalization_stays_in_front(made):
    report, said, folder = made
    assert holds(report)
    assert any("'normalization' stays before the quantized part: int8" in line for line in said)
    assert list(report.input_types.values()) == ["float32"]
    assert report.settings.io == "float32"
    x = table()[0][TRAINED:]
    tflite = (folder / "m.tflite").read_bytes()
    runners = Runner(tflite), Runner(tflite, "built-in")
    assert np.int8 in {detail["dtype"] for detail in runners[0].interpreter.get_tensor_details()}
    assert abs(r2(runners[0].run([x])) - r2(runners[1].run([x]))) < 1e-3


def test_the_files_are_run_like_others(made, data):
    report = made[0]
    for file in report.files:
        assert set(file.proven.deviation.values()) == {0}
        evaluation = lqconvert.evaluate(file.path, str(data), target=file.proven.target)
        assert evaluation.score == pytest.approx(file.score)
    result = CliRunner().invoke(main, ["check", report.files[0].path, "--max-size", "100KB"])
    assert result.exit_code == 0, result.output
    compared = lqconvert.compare([file.path for file in report.files], str(data))
    assert compared.files[1].snr_db > 40
    assert {"SUB", "MUL", "QUANTIZE", "DEQUANTIZE"} <= set(report.files[1].proven.operators)


@pytest.mark.parametrize("with_data", [False, True])
def test_export_makes_the_same_files(with_data, made, data, tmp_path):
    folder = made[2]
    options = ["--target", "litert", "--target", "tflm", "-o", str(tmp_path / "m.tflite")]
    options += ["--data", str(data)] if with_data else []
    result = CliRunner().invoke(main, ["export", str(folder / "m.codes.npz"), *options])
    assert result.exit_code == 0, result.output
    for name in ("m.tflite", "m.tflm.tflite"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("io", ["int8", "uint8", "int16"])
def test_the_front_is_left_to_the_program(io, made, tmp_path):
    paths = tmp_path / "m.tflite", tmp_path / "m.tflm.tflite"
    exports = export_codes(made[2] / "m.codes.npz", paths[0], targets=TARGETS, io=io, c_array=True)
    x = table()[0][TRAINED:]
    space = {"np": np}
    exec(exports.front_code["python"], space)
    codes = space["input_codes"](x)
    runner, within = Runner(paths[0].read_bytes()), Runner((made[2] / "m.tflite").read_bytes())
    for outputs in (runner.invoke(codes), run_micro(paths[1].read_bytes(), codes).outputs):
        assert r2(runner.dequantize(outputs)) == pytest.approx(r2(within.run([x])), abs=0.005)
    header = (tmp_path / "m.tflm.h").read_text()
    assert exports.front_code["c"] in header
    assert f"to{'Short' if io == 'int16' else 'Byte'}()" in exports.front_code["kotlin"]
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    program = f'#include "{tmp_path / "m.tflm.h"}"\n#include <cstdio>\nint main() {{\n  float x;\n'
    program += "  for (int i = 0; fread(&x, 4, 1, stdin) == 1; ++i)\n"
    program += '    printf("%d\\n", (int)g_m_tflm_columns::input_code(x, i % 8));\n}\n'
    (tmp_path / "main.cc").write_text(program)
    command = ["g++", "-Wall", "-Werror", "-O0", tmp_path / "main.cc", "-o", tmp_path / "main"]
    subprocess.run(command, check=True)
    answer = subprocess.run([tmp_path / "main"], input=x.tobytes(), capture_output=True, check=True)
    assert np.abs(np.array(answer.stdout.split(), int).reshape(x.shape) - codes).max() <= 1  # at ties


def test_a_run_says_how_to_scale(models, data, tmp_path):
    settings = {"targets": TARGETS[:1], "io": "int8"}
    report, said = quantized(models["keras"], data, tmp_path / "m.tflite", **settings)
    assert holds(report)
    assert any("'normalization' stays before the quantized part: int8" in line for line in said)
    assert "with int8 inputs your program has to do it; the report says how" in said
    assert "each column scaled by your program" in report.feeding()[0]
    written = json.loads((tmp_path / "m.report.json").read_text())
    assert len(written["front"]["center"]) == len(written["front"]["factor"]) == 8
    assert set(written["front_code"]) == {"c", "python", "kotlin"}


def test_raw_columns_are_scaled_for_a_dense_layer(data, tmp_path):
    """A model that was trained on scaled columns, and has the scaling in its kernel."""
    regression(tf_keras, lambda _, inputs: inputs, tmp_path / "raw.keras", DEVIATIONS, OFFSETS)
    report, said = quantized(tmp_path / "raw.keras", data, tmp_path / "m.tflite", targets=TARGETS[:1])
    assert holds(report)
    assert any("a scaling of the columns stays before the quantized part" in line for line in said)


def test_columns_of_one_range_stay_int8(tmp_path):
    x, y = table()
    data = saved(tmp_path / "even.npz", ((x - OFFSETS) / DEVIATIONS).astype(np.float32), y)
    even = tf_keras.layers.Normalization(mean=[0.1] * 8, variance=[1.5] * 8, name="even")
    regression(tf_keras, lambda _, inputs: even(inputs), tmp_path / "m.keras")
    report, said = quantized(tmp_path / "m.keras", data, tmp_path / "m.tflite", targets=TARGETS[:1])
    assert any("'even' becomes part of the int8 model: int8" in line for line in said)
    assert report.front is None
    assert list(report.input_types.values()) == ["int8"]


def test_outputs_cover_the_targets(made):
    _, y = table()
    file = Runner(Int8File.load(made[2] / "m.codes.npz").tflite)
    ((scale, zero_point),) = file.quantizations[1].values()
    assert (-128 - zero_point) * scale <= y[:TRAINED].min() + scale
    assert (127 - zero_point) * scale >= y[:TRAINED].max() - scale


@pytest.mark.parametrize("front", [np.zeros((2, 3)), np.zeros(3), np.full((2, 8), np.nan), np.array(["a"])])
def test_codes_with_a_damaged_front(front, made, tmp_path):
    arrays = dict(np.load(made[2] / "m.codes.npz"))
    np.savez(tmp_path / "x.codes.npz", **arrays | {"int8.front": front})
    with pytest.raises(LqError, match=r"x.codes.npz: (not the|LiteRT cannot load the int8 file)"):
        export_codes(tmp_path / "x.codes.npz", tmp_path / "m.tflite")
