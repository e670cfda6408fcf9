"""--dry-run shows what a run would do, and does nothing; --quiet and --json."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_tasks
import tf_keras
from click.testing import CliRunner

from lqconvert import LqError, plan
from lqconvert.cli.main import main
from lqconvert.pipeline.prepare import prepare
from lqconvert.pipeline.settings import DEFAULTS
from lqconvert.training.checkpoint import Checkpoint


def quantize(model, output, *options):
    arguments = ["quantize", model, "--data", "digits", "-o", output, *options]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_run_does_as_planned(digits_run, samples, tmp_path):
    folder, run = digits_run
    output = tmp_path / "new" / "digits.tflite"
    planned = quantize(samples / "digits_cnn.h5", output, "--dry-run", "--quiet", "--json")
    assert planned.exit_code == 0, planned.output
    assert list(tmp_path.iterdir()) == []
    assert run.stderr == planned.stderr == ""
    expected, report = json.loads(planned.stdout), json.loads(run.stdout)
    files = {Path(file["path"]) for file in expected["files"]}
    assert files == {output.parent / path.name for path in folder.iterdir()}
    assert not any(file["exists"] for file in expected["files"])
    for same in ("settings", "splits", "data"):
        assert expected[same] == report[same]
    assert expected["steps"] == report["curve"][-1]["step"]
    assert [row["name"] for row in expected["model"]["layers"] if row["codes"]] == [
        layer["name"] for layer in report["layers"]
    ]
    assert expected["model"]["int8_bytes"] == pytest.approx(report["int8"]["size"], rel=0.01)
    assert expected["tasks"] == {"dense": "classification of 10 classes, judged by accuracy"}


def test_json_is_the_report(digits_run):
    folder, run = digits_run
    assert run.stdout == (folder / "digits.report.json").read_text()


def test_export_gives_json_too(digits_run, tmp_path):
    folder, run = digits_run
    output = tmp_path / "again" / "digits.tflite"
    command = ["export", folder / "digits.codes.npz", "-o", output, "--data", "digits", "--json"]
    result = CliRunner().invoke(main, list(map(str, command)))
    (file,), (first,) = json.loads(result.stdout)["files"], json.loads(run.stdout)["files"]
    assert (file["path"], file["score"]) == (str(output), first["score"])
    assert file["proven"]["size"] == output.stat().st_size == first["proven"]["size"]


def test_another_run_into_the_same_folder(digits_run, samples, tmp_path):
    pytest.importorskip("tflite_micro", reason="TFLite Micro's interpreter is for Linux only")
    folder = Path(shutil.copytree(digits_run[0], tmp_path / "out"))
    checkpoint = folder / "digits.resume.npz"
    checkpoint.touch()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    targets = ["--target", "litert", "--target", "tflm", "--c-array", "--max-ram", "100KB"]
    page = folder / "digits.html"
    result = quantize(
        samples / "digits_cnn.h5", folder / "digits.tflite", *targets, "--report", page, "--dry-run"
    )
    planned = [line.split() for line in result.stdout.splitlines() if line.startswith(("writes", "replaces"))]
    assert planned == [
        ["replaces", str(folder / "digits.tflite")],
        ["writes", str(folder / "digits.tflm.tflite")],
        ["writes", str(folder / "digits.tflm.h")],
        ["writes", str(folder / "digits.tflm.cc")],
        ["replaces", str(folder / "digits.codes.npz")],
        ["writes", str(page)],
        ["replaces", str(folder / "digits.report.json")],
    ]
    assert f"loses {checkpoint}, from which resume" in result.stdout.replace("\n", "")
    assert "budget: a drop of at most 0 points; limits: at most 100,000 bytes of arena" in result.stdout
    assert "1,079 train, 359 validation, 359 test examples" in result.stdout
    assert "output dense: classification of 10 classes" in result.stdout
    assert "preprocessing: none" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_an_interrupted_run(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    job = *small_tasks.made("regression", tmp_path), folder / "m.tflite"
    path = folder / "m.resume.npz"
    Checkpoint(600, [], [], [], [], 0, 0, 300).save(path, prepare(*job, DEFAULTS).identity)
    resumed = plan(*job, resume=True)
    assert (resumed.resumes, resumed.discards) == (str(path), None)
    assert list(folder.iterdir()) == [path]


def refused(case: str, folder: Path, sample: Path) -> tuple[list[str], str]:
    """The arguments of an impossible run, and its error."""
    model, data, options, reason = str(sample), "digits", [], ""
    if case == "no folder":
        options, reason = ["-o", "/sys/no/m.tflite"], "cannot be written"
    elif case == "a folder":
        (folder / "m.codes.npz").mkdir()
        options, reason = ["-o", str(folder / "m.tflite")], "m.codes.npz: is a folder"
    elif case == "the model":
        model = str(folder / "model.tflite")
        Path(model).write_bytes(sample.read_bytes())
        options, reason = ["-o", model], "is the model itself"
    elif case == "code":
        layers = [tf_keras.layers.Input((8, 8, 1)), tf_keras.layers.Lambda(lambda x: x)]
        model, reason = str(folder / "model.h5"), "'lambda'"
        tf_keras.Sequential([*layers, tf_keras.layers.Dense(10)]).save(model)
    else:
        data, reason = str(folder / "x.npz"), "inputs of shape (5, 5)"
        np.savez(data, x=np.zeros((40, 5, 5), np.uint8), y=np.arange(40) % 10)
    return ["quantize", model, "--data", data, "-o", str(folder / "m.tflite"), *options], reason


@pytest.mark.parametrize("case", ["no folder", "a folder", "the model", "code", "data"])
def test_what_a_run_would_refuse(case, samples, tmp_path):
    arguments, reason = refused(case, tmp_path, samples / "digits_cnn.h5")
    before = sorted(tmp_path.iterdir())
    result = CliRunner().invoke(main, [*arguments, "--dry-run"])
    assert result.exit_code == 1
    assert reason in result.stderr
    assert result.stdout == ""
    assert sorted(tmp_path.iterdir()) == before


def test_a_plan_takes_the_settings_of_a_run(samples, tmp_path):
    with pytest.raises(TypeError, match="epoch"):
        plan(samples / "digits_cnn.h5", "digits", tmp_path / "m.tflite", epoch=1)
    with pytest.raises(LqError, match="no C sources for LiteRT"):
        plan(samples / "digits_cnn.h5", "digits", tmp_path / "m.tflite", c_array=True)


@pytest.mark.parametrize(
    ("options", "steps"), [([], 6), (["--effort", "fast"], 0), (["--effort", "high"], 7200)]
)
def test_effort_is_the_length_of_a_run(options, steps, tmp_path, monkeypatch):
    """On the command line it has priority over the project's epochs."""
    model, data = small_tasks.made("regression", tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.lqconvert.quantize]\nepochs = 2\n")
    monkeypatch.chdir(tmp_path)
    arguments = ["quantize", str(model), "--data", str(data), *options]
    result = CliRunner().invoke(main, [*arguments, "--dry-run", "--json"])
    assert json.loads(result.stdout)["steps"] == steps
    if options:
        both = CliRunner().invoke(main, [*arguments, "--epochs", "3"])
        assert both.exit_code == 2
        assert "exclude one another" in both.stderr
