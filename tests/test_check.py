"""Budgets that hold, budgets that are missed by a byte, and files side by side."""

import functools
import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import small_tasks
import tensorflow as tf
import tf_keras
from click.testing import CliRunner

from lqconvert import LqError, Preprocessing, check, compare, evaluate, load_data, load_model
from lqconvert.cli.main import main
from lqconvert.exporting.export import convert
from lqconvert.tflite.flatbuffer import read, write
from lqconvert.tflite.graph import Buffer


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def accuracies(samples, int8):
    """The digits sample's: of the float model and of the int8 file."""
    return [evaluate(file, "digits").score for file in (samples / "digits_cnn.h5", int8)]


def test_compare_finds_a_file_close_to_its_float_model(samples, int8, accuracies):
    model = samples / "digits_cnn.h5"
    result = run("compare", model, int8, model, "--data", "digits", "--json")
    floats, small, same = json.loads(result.stdout)["files"]
    x, y = load_data("digits", (8, 8, 1), 10).test.arrays()
    answers = load_model(model).predict(x.astype("float32"), verbose=0).argmax(axis=1)
    assert [file["evaluation"]["scores"][0]["value"] for file in (floats, small)] == accuracies
    assert accuracies[0] == np.mean(answers == y)
    assert small["evaluation"]["size"] == int8.stat().st_size < floats["evaluation"]["size"] / 3
    assert small["agreement"] > 0.97
    assert same["agreement"] == 1
    assert floats["layers"] == []
    assert [layer["name"] for layer in small["layers"]] == ["conv2d", "conv2d_1", "conv2d_2", "dense"]
    assert all(layer["snr_db"] > 15 for layer in small["layers"])
    assert [layer["snr_db"] for layer in same["layers"]] == ["inf"] * 4


def test_a_byte_too_much_fails(int8):
    size = int8.stat().st_size
    assert run("check", int8, "--max-size", size).exit_code == 0
    result = run("check", int8, "--max-size", size - 1)
    assert result.exit_code == 1
    assert result.output.strip() == f"FAIL size  {size:,} bytes, at most {size - 1:,}"


def test_several_files(int8, tmp_path):
    size, large = int8.stat().st_size, tmp_path / "large.tflite"
    large.write_bytes(int8.read_bytes() + b"\0")
    result = run("check", large, int8, "--max-size", size)
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        f"{large}:",
        f"FAIL size  {size + 1:,} bytes, at most {size:,}",
        f"{int8}:",
        f"ok   size  {size:,} bytes, at most {size:,}",
    ]
    tables = run("check", large, int8, "--max-size", size, "--markdown").output.split("\n\n")
    assert [f"`{file}`" in table for file, table in zip((large, int8), tables, strict=False)] == [True, True]


@pytest.mark.parametrize(
    "options", [["--json"], ["--against", "x"], ["--save-baseline", "x"], ["--junit", "x"]]
)
def test_what_is_of_a_single_file(options, int8):
    result = run("check", int8, int8, "--max-size", "1MB", *options)
    assert result.exit_code == 2
    assert "take a single file" in result.output


def test_colour_is_for_terminals(int8):
    """Output into a pipe has no escape sequences."""
    pty = pytest.importorskip("pty", reason="needs a terminal")
    command = [sys.executable, "-c", "from lqconvert.cli.main import main; main()"]
    command += ["check", str(int8), "--max-size", "1KB"]
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment = plain | {"TERM": "xterm-256color"}
    terminal, inside = pty.openpty()
    subprocess.run(command, stdout=inside, env=environment, check=False)
    os.close(inside)
    assert b"\x1b" in os.read(terminal, 1000)
    os.close(terminal)
    piped = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=False)
    assert piped.returncode == 1
    assert piped.stdout.startswith(b"FAIL size")
    assert b"\x1b" not in piped.stdout


@pytest.mark.slow
def test_accuracy_and_drop(samples, int8, accuracies):
    before, accuracy = accuracies
    result = check(
        int8,
        data="digits",
        limits={"accuracy": accuracy + 1e-6},
        max_drop=100 * max(0, before - accuracy),
        baseline=samples / "digits_cnn.h5",
        preprocess=Preprocessing(),
    )
    assert [(each.budget, each.holds) for each in result.verdicts] == [("accuracy", False), ("drop", True)]
    assert result.measured.scores["accuracy"] == accuracy


def test_a_drop_since_a_baseline_is_of_the_same_examples(int8, accuracies, tmp_path):
    command = ["check", int8, "--data", "digits", "--max-drop", "100", "--against", tmp_path / "b.json"]
    before = {"target": "litert", "size": 10**6, "deflated_bytes": 1, "accuracy": accuracies[1]}
    (tmp_path / "b.json").write_text(json.dumps(before | {"examples": 100}))
    assert "(on 100 test examples)" in run(*command).output
    (tmp_path / "b.json").write_text(json.dumps(before | {"examples": 10**4}))
    result = run(*command)
    assert result.exit_code == 1
    assert "are of 10,000 test examples, but digits has 359" in result.output


def test_data_of_a_project_may_have_no_classes(int8, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((40, 8, 8, 1), np.float32))
    command = ["check", int8, "--data", tmp_path / "x.npy"]
    assert run(*command, "--max-size", "1MB").exit_code == 0
    result = run(*command, "--max-size", "1MB", "--min-accuracy", "0.5")
    assert result.exit_code == 1
    assert "has no labels to score by" in result.output


def test_a_model_of_several_inputs_beside_its_file(tmp_path, monkeypatch):
    a, b = tf_keras.Input((4,), name="a"), tf_keras.Input((4,), name="b")
    y = tf_keras.layers.Dense(3)(tf_keras.layers.Concatenate()([b, a]))
    model = tf_keras.Model([a, b], [y, tf_keras.layers.Dense(2)(y)])
    model.save(tmp_path / "m.h5")
    x = np.random.default_rng(0).normal(size=(2, 99, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", a=x[0], b=x[1], y=np.concatenate(model.predict(list(x), verbose=0), axis=1))
    assert evaluate(tmp_path / "m.h5", str(tmp_path / "x.npz")).score == pytest.approx(1)
    monkeypatch.setenv("COLUMNS", "300")
    result = run("compare", tmp_path / "m.h5", tmp_path / "m.h5", "--data", tmp_path / "x.npz")
    (agrees,) = (line.split("│")[2:4] for line in result.output.splitlines() if "agrees" in line)
    assert [each.strip() for each in agrees] == ["", "same"]  # in place of the share of like classes


@pytest.mark.slow
def test_preprocessing_of_float_data_is_found_too(int8, samples, tmp_path):
    digits = load_data("digits", (8, 8, 1), 10)
    x, y = (np.concatenate(each) for each in zip(digits.train.arrays(), digits.test.arrays(), strict=True))
    np.savez(tmp_path / "x.npz", x=255 * x.astype(np.float32), y=y)
    for file in (int8, samples / "digits_cnn.h5"):
        found = evaluate(file, str(tmp_path / "x.npz"))
        assert found.preprocess == "0-1"
        assert found.score > 0.95


def test_one_damaged_file_leaves_the_others_checked(int8, tmp_path):
    (tmp_path / "damaged.tflite").write_bytes(int8.read_bytes()[:1000])
    result = run("check", tmp_path / "damaged.tflite", int8, tmp_path / "no.tflite", "--max-size", "1MB")
    assert result.exit_code == 1
    assert result.stdout.count("ok   size") == 1
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["error"] * 2


def test_a_model_that_is_bad_gets_its_score(int8, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(200, 8, 8, 1)), y=rng.integers(0, 10, 200))
    assert evaluate(int8, str(tmp_path / "x.npz")).score < 0.3
    result = run("check", int8, "--data", tmp_path / "x.npz", "--min-accuracy", "0.9", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["holds"] is False


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_a_file_that_looks_its_input_up(dtype, tmp_path):
    x = tf_keras.Input((6,), dtype=dtype)
    embedded = tf_keras.layers.Flatten()(tf_keras.layers.Embedding(500, 4)(x))
    model = tf_keras.Model(x, tf_keras.layers.Dense(3)(embedded))
    (tmp_path / "m.tflite").write_bytes(convert(model, integer=False))
    words = np.random.default_rng(0).integers(0, 500, (99, 6))
    np.savez(tmp_path / "x.npz", x=words, y=model.predict(words, verbose=0))
    found = evaluate(tmp_path / "m.tflite", str(tmp_path / "x.npz"))
    assert found.score == pytest.approx(1)
    assert found.preprocess == "none"


def test_indices_are_taken_as_they_are(tmp_path):
    x = tf_keras.Input((6,), name="words")
    embedded = tf_keras.layers.GlobalAveragePooling1D()(tf_keras.layers.Embedding(50, 4)(x))
    model = tf_keras.Model(x, tf_keras.layers.Dense(3)(embedded))
    model.save(tmp_path / "m.h5")
    words = np.random.default_rng(0).integers(0, 50, (99, 6))
    np.savez(tmp_path / "x.npz", x=words, y=model.predict(words, verbose=0))
    file = tmp_path / "m.tflite"
    file.write_bytes(convert(load_model(tmp_path / "m.h5"), integer=False))
    for path in (tmp_path / "m.h5", file):
        result = run("evaluate", path, "--data", tmp_path / "x.npz", "--json")
        assert json.loads(result.stdout)["score"] == pytest.approx(1)
        result = run("evaluate", path, "--data", tmp_path / "x.npz", "--preprocess", "0-1")
        assert result.exit_code == 1
        assert "takes indices, which are not scaled" in result.stderr
    quantized = "quantize", tmp_path / "m.h5", "--dry-run", "--data"
    result = run(*quantized, tmp_path / "x.npz", "--preprocess", "0-1")
    assert result.exit_code == 1
    assert "input 'words' takes indices, which are not scaled" in result.stderr
    words[40] = 50
    np.savez(tmp_path / "x.npz", x=words)
    result = run(*quantized, tmp_path / "x.npz")
    assert result.exit_code == 1
    assert "index 50 is out of range: layer 'embedding" in result.stderr


def test_growth_since_a_baseline(int8, tmp_path):
    baseline = tmp_path / "baseline.json"
    assert run("check", int8, "--save-baseline", baseline).exit_code == 0
    grown = tmp_path / "grown.tflite"
    grown.write_bytes(int8.read_bytes() + b"\0")
    assert run("check", int8, "--against", baseline).exit_code == 0
    junit = tmp_path / "junit.xml"
    result = run("check", grown, "--against", baseline, "--save-baseline", baseline, "--junit", junit)
    assert result.exit_code == 1
    assert "FAIL growth" in result.output
    assert json.loads(baseline.read_text())["size"] == int8.stat().st_size  # not what failed
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    assert "at most" in suite.find("testcase/failure").get("message")


def test_ram_is_tflite_micros(int8):
    pytest.importorskip("tflite_micro")
    arena = check(int8, max_ram=1).measured.arena_bytes
    verdicts = check(int8, target="tflm", max_ram=arena).verdicts
    assert [(each.budget, each.holds) for each in verdicts] == [("runs", True), ("ram", True)]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Model, data and plain int8 file of a task by its name, each made once."""
    return functools.cache(lambda name: small_tasks.int8(name, tmp_path_factory.mktemp(name)))


#: Without trials of what the preprocessing may be, which take most of the time.
AS_IT_IS = ["--preprocess", "none"]
LIMITS = {
    "regression": ["--max-mae", "1.5", "--max-rmse", "2", "--min-r2", "0.95"],
    "detector": ["--min-balanced-accuracy", "0.8", "--min-auc", "0.9", "--min-recall", "0.7"],
    "segmentation": ["--min-miou", "0.6", "--min-pixel-accuracy", "0.7"],
    "multi_label": ["--min-mean-auc", "0.95", "--min-micro-f1", "0.8"],
    "reconstruction": [
        "--min-reconstruction-r2",
        "0.8",
        "--max-reconstruction-rmse",
        "0.5",
        "--min-anomaly-auc",
        "0.97",
    ],
    "embedding": [],
    "two_outputs": ["--min-accuracy", "0.7", "--max-mae", "2", "--min-r2", "0.9"],
}
JUDGED = {
    "regression": ["drop"],
    "detector": ["drop of balanced accuracy", "drop of AUC"],
    "segmentation": ["drop"],
    "multi_label": ["drop of mean AUC", "drop of micro-F1"],
    "reconstruction": ["drop"],
    "embedding": ["drop"],
    "two_outputs": ["drop of kind accuracy", "drop of age R²"],
}


def of_zeros(path, folder):
    """The file with kernels of zeros."""
    model = read(path.read_bytes())
    for operator in model.main.operators:
        if len(operator.inputs) > 1:
            tensor = model.main.tensors[operator.inputs[1]]
            tensor.buffer = Buffer.of(np.zeros_like(tensor.buffer.data))
    (folder / "zeros.tflite").write_bytes(write(model))
    return folder / "zeros.tflite"


@pytest.mark.slow
@pytest.mark.parametrize("name", small_tasks.TASKS)
def test_each_task_has_budgets_of_its_own(name, task, tmp_path):
    model, data, file = task(name)
    junit, baseline = tmp_path / "junit.xml", tmp_path / "baseline.json"
    command = ["--data", data, *AS_IT_IS, "--max-drop", 1, *LIMITS[name], "--junit", junit]
    result = run("check", file, *command, "--baseline", model, "--save-baseline", baseline)
    assert result.exit_code == 0, result.output
    cases = [case.get("name") for case in ElementTree.parse(junit).getroot()]
    assert cases[-len(JUDGED[name]) :] == JUDGED[name]
    assert len(cases) == len(JUDGED[name]) + len(LIMITS[name]) // 2
    # A file that has forgotten all fails by each of them, but has not grown.
    bar = ["--against", baseline, *(["--baseline", model] if name == "embedding" else [])]  # has no labels
    result = run("check", of_zeros(file, tmp_path), *command, *bar)
    assert result.exit_code == 1
    suite = ElementTree.parse(junit).getroot()
    assert int(suite.get("failures")) == int(suite.get("tests")) - 1 == len(cases), result.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--min-auc", "0.5"], "AUC is not measured on such data, but R², MAE, RMSE"),
        (
            ["--max-drop", "1", "--metric", "MAE"],
            "so its drop has no limit; see --max-mae",
        ),
    ],
)
def test_what_a_regression_has_not(option, message, task):
    model, data, file = task("regression")
    result = run("check", file, "--data", data, *AS_IT_IS, "--baseline", model, *option)
    assert result.exit_code == 1
    assert message in result.output


@pytest.mark.slow
def test_what_has_no_labels_is_held_against_the_baseline(task, tmp_path):
    model, data, file = task("two_outputs")
    with np.load(data) as arrays:
        np.savez(tmp_path / "age.npz", x=arrays["x"], age=arrays["age"])
    command = ["check", file, "--data", tmp_path / "age.npz", *AS_IT_IS, "--max-drop", 1]
    verdicts = json.loads(run(*command, "--baseline", model, "--json").stdout)["verdicts"]
    assert [each["budget"] for each in verdicts] == ["drop of kind R² to float", "drop of age R²"]
    assert all(each["holds"] for each in verdicts)
    before = {"target": "litert", "size": 10**6, "deflated_bytes": 1, "scores": {"age R²": 0.9}}
    (tmp_path / "b.json").write_text(json.dumps(before))
    result = run(*command, "--against", tmp_path / "b.json")
    assert result.exit_code == 1
    assert "the drop of kind R² to float cannot be measured" in result.output


def by_name(model):
    return tf.lite.TFLiteConverter.from_keras_model(model).convert()


def by_number(model):
    """Outputs that are called output_0 and output_1."""
    call = tf.function(lambda x: model(x, training=False)).get_concrete_function(tf.TensorSpec((1, 6)))
    return tf.lite.TFLiteConverter.from_concrete_functions([call], model).convert()


@pytest.mark.slow
@pytest.mark.parametrize("converted", [by_name, by_number])
def test_outputs_of_other_tools_files_are_told_apart(converted, task, tmp_path):
    """Converters choose the order of outputs themselves."""
    model, data, _ = task("two_outputs")
    theirs = tmp_path / "theirs.tflite"
    theirs.write_bytes(converted(load_model(model)))
    for files in ([theirs, model], [model, theirs]):
        one, other = compare(files, str(data), preprocess=Preprocessing()).files
        labels = {score.label for score in one.evaluation.scores}
        assert labels == {"kind accuracy", "age R²", "age MAE", "age RMSE"}
        assert set(other.evaluation.scores) == set(one.evaluation.scores)
        assert other.snr_db > 60


METRICS = """
import numpy as np

def misses(y_true, y_pred):
    assert y_true.shape == (len(y_pred),)
    return -float(np.sum((y_pred[:, 0] <= 0.5) & (y_true == 1)))

def broken(y_true, y_pred):
    raise ValueError("first line\\nsecond line")
"""


@pytest.mark.slow
def test_a_metric_of_the_users_own(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_metrics.py").write_text(METRICS)
    model, data, file = task("detector")
    command = ["check", file, "--data", data, *AS_IT_IS, "--baseline", model, "--max-drop", 100, "--metric"]
    result = run(*command, "my_metrics:misses", "--json")
    assert result.exit_code == 0, result.output
    (verdict,) = json.loads(result.stdout)["verdicts"]
    assert verdict["value"] == int(verdict["value"]) <= 0
    assert verdict["limit"] <= verdict["value"]
    for function, message in (("broken", "first line"), ("no_such", "cannot be imported")):
        result = run(*command, f"my_metrics:{function}")
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert message in line
    assert "is not one of" in run(*command, "no_such").output
    sys.modules.pop("my_metrics")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "no budget to check"),
        (("--max-drop", 1), 1, "give --data"),
        (("--max-drop", 1, "--data", "digits"), 1, "--baseline"),
        (("--max-ram", "1KB", "--target", "litert"), 1, "RAM cannot be limited on LiteRT"),
        (("--against", "nowhere.json"), 1, "nowhere.json"),
        (("--min-accuracy", 97, "--data", "digits"), 2, "not in the range"),
    ],
)
def test_what_cannot_be_told(arguments, code, message, int8):
    result = run("check", int8, *arguments)
    assert result.exit_code == code
    assert message in result.output


def with_input(shape, path, folder):
    """The file with another input shape, which its first operator does not fit."""
    model = read(path.read_bytes())
    model.main.tensors[model.main.inputs[0]].shape = tuple(shape)
    (folder / "edited.tflite").write_bytes(write(model))
    return folder / "edited.tflite"


def test_a_baseline_that_does_not_run_is_not_the_files_fault(int8, tmp_path):
    baseline = with_input((1, 64), int8, tmp_path)
    result = run("check", int8, "--data", "digits", "--max-drop", 1, "--baseline", baseline)
    assert result.exit_code == 1
    assert result.output.startswith(f"error: {baseline}: ")


def test_a_file_that_its_target_does_not_run(int8, tmp_path):
    file = with_input((1, 64), int8, tmp_path)
    verdicts = check(file, target="litert", max_size=10**6).verdicts
    assert [(each.budget, each.holds) for each in verdicts] == [("size", True), ("runs", False)]


def test_an_input_of_a_hostile_size_is_refused_before_it_is_made(int8, tmp_path):
    pytest.importorskip("tflite_micro")
    with pytest.raises(LqError, match=r"edited.tflite: input .* has more than 16,777,216 values"):
        check(with_input((1, 2**30, 8, 1), int8, tmp_path), target="tflm")


def test_axes_of_length_1_in_front_of_the_classes(tmp_path):
    x = tf_keras.Input((4,))
    y = tf_keras.layers.Dense(3, "softmax")(x)
    for name, output in {"flat": y, "deep": tf_keras.layers.Reshape((1, 1, 3))(y)}.items():
        (tmp_path / f"{name}.tflite").write_bytes(convert(tf_keras.Model(x, output), integer=False))
    rng = np.random.default_rng(0)
    data = rng.normal(size=(200, 4)).astype(np.float32), rng.integers(0, 3, 200)
    flat, deep = (
        evaluate(tmp_path / f"{name}.tflite", data, preprocess=Preprocessing()) for name in ("flat", "deep")
    )
    assert flat.scores == deep.scores


def test_a_baseline_of_another_target(int8, tmp_path):
    run("check", int8, "--save-baseline", tmp_path / "baseline.json")
    result = run("check", int8, "--against", tmp_path / "baseline.json", "--target", "tflm")
    assert result.exit_code == 1
    assert "are for litert, not for tflm" in result.output


@pytest.mark.parametrize("text", ["", "[]", '{"size": 1}', '{"target": 1, "size": 1, "deflated_bytes": 1}'])
def test_a_baseline_of_another_kind(text, int8, tmp_path):
    (tmp_path / "baseline.json").write_text(text)
    result = run("check", int8, "--against", tmp_path / "baseline.json")
    assert result.exit_code == 1
    assert "--save-baseline" in result.output


def test_folders_of_what_is_written_are_made(int8, tmp_path):
    report, baseline = tmp_path / "a" / "junit.xml", tmp_path / "b" / "baseline.json"
    command = ["check", int8, "--max-size", "1MB", "--junit", report, "--save-baseline", baseline]
    assert run(*command).exit_code == 0
    assert report.exists()
    assert baseline.exists()


def test_only_a_tflite_is_checked(samples):
    with pytest.raises(LqError, match="lqconvert quantize makes one"):
        check(samples / "digits_cnn.h5", max_size=1)


def test_defaults_of_the_project(int8, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    project = tmp_path / "pyproject.toml"
    project.write_text('[tool.lqconvert.check]\nmax-size = "1KB"\n')
    assert run("check", int8).exit_code == 1
    assert run("check", int8, "--max-size", "1MB").exit_code == 0  # the command line wins


@pytest.mark.slow
def test_defaults_of_the_project_go_by_the_options_names(int8, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [
        "[tool.lqconvert]",
        'target = "tflm"',
        "json = true",
        "[tool.lqconvert.quantize]",
        "max-drop = 0.5",
        'report = "page.html"',
        "[tool.lqconvert.check]",
        "markdown = false",
        'max-size = "1MB"',
    ]
    (tmp_path / "pyproject.toml").write_text("\n".join(lines))
    model, data, _ = task("regression")
    dry = "quantize", model, "--data", data, "--dry-run"
    planned = json.loads(run(*dry).stdout)
    assert planned["targets"] == ["tflm"]
    assert planned["budget"] == "a drop of at most 0.5 points"
    assert any(file["path"] == "page.html" for file in planned["files"])
    # Another budget, and another target, on the command line win.
    planned = json.loads(run(*dry, "--max-size", "64KB", "--target", "litert").stdout)
    assert planned["targets"] == ["litert"]
    assert planned["budget"] == "at most 64,000 bytes"
    checked = json.loads(run("check", int8, "--target", "litert").stdout)
    assert checked["holds"] is True
    assert run("check", int8, "--target", "litert", "--markdown").stdout.startswith("|")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.lqconvert.check]\nmax-sise = 1", "has 'max-sise', which is not an option of this command"),
        ("[tool.lqconvert]\nmax-sise = 1", "not a command or an option"),
        ("[tool.lqconvert]\ncheck = 1", "check is not a table"),
        ("[tool", "cannot be read"),
    ],
)
def test_a_project_that_is_wrong(text, message, int8, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text(text)
    result = run("check", int8)
    assert result.exit_code == 1
    assert message in result.output
