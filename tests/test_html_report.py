"""The page of a run: its figures are those of report.json, it loads nothing, and it trusts no name."""

import json
import re
import shutil

import numpy as np
import pytest
import tf_keras
from click.testing import CliRunner
from tf_keras import layers

from lqconvert.cli import main

RNG = np.random.default_rng(0)


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_loads_nothing(page):
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    assert not re.findall(r"url\((?!#|['\"]?data:)[^)]*\)|@import", page)


def test_figures_are_those_of_the_report(samples, tmp_path):
    hostile = tmp_path / "<img src=x onerror=alert(1)>.h5"
    shutil.copy(samples / "digits_cnn.h5", hostile)
    output, html = tmp_path / "m.tflite", tmp_path / "m.html"
    result = run("quantize", hostile, "--data", "digits", "-o", output, "--report", html, "--epochs", 1)
    assert result.exit_code == 0, result.output
    page, report = html.read_text(), json.loads((tmp_path / "m.report.json").read_text())
    assert_loads_nothing(page)
    assert "<img src=x" not in page
    assert f"{report['float']['size']:,}" in page
    assert f"{report['files'][0]['proven']['size']:,}" in page
    for layer in report["layers"]:
        assert layer["name"] in page
    assert len(page) < 1_000_000


@pytest.mark.parametrize("labelled", [True, False])
def test_models_that_do_not_classify_get_a_page(labelled, tmp_path):
    x = RNG.normal(size=(200, 6)).astype(np.float32)
    model = tf_keras.Sequential([layers.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(2)])
    model.save(tmp_path / "model.h5")
    arrays = {"x": x, "y": model(x).numpy()} if labelled else {"x": x}
    np.savez(tmp_path / "data.npz", **arrays)
    html = tmp_path / "m.html"
    job = tmp_path / "model.h5", "--data", tmp_path / "data.npz", "-o", tmp_path / "m.tflite"
    result = run("quantize", *job, "--scheme", "lsq", "--report", html)
    assert result.exit_code == 0, result.output
    assert_loads_nothing(html.read_text())


@pytest.mark.parametrize("name", ["page.txt", "folder.html"])
def test_a_page_that_cannot_be_written_is_refused_first(name, samples, tmp_path):
    (tmp_path / "folder.html").mkdir()
    job = samples / "digits_cnn.h5", "--data", "nowhere", "-o", tmp_path / "m.tflite"
    result = run("quantize", *job, "--report", tmp_path / name)
    assert result.exit_code == 1
    assert name in result.output
