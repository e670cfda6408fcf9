"""The report as a page: what it says, for every kind of model, and that nothing is loaded or run."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import CYCLE
from page import Page

from lqconvert import LqError, quantize
from lqconvert.budget import Point
from lqconvert.cli import main
from lqconvert.codes import Codes, LayerCodes, TensorCodes
from lqconvert.html_report import Evidence, as_pictures, most_different, render
from lqconvert.noise import LayerNoise
from lqconvert.proving import KernelRow, Proven
from lqconvert.report import Measured, Report, TargetFile, layer_rows, versions
from lqconvert.tasks import Score
from lqconvert.text import printable

HOSTILE = (
    "</title></svg><script>alert(1)</script>\"'><img src=http://example.com/x onerror=alert(2)> $x_1$ {{7*7}}"
    "\x1b[31m\0\u202e\ud800"
)
RNG = np.random.default_rng(0)


def made_up(layers=2, name="layer", metric="accuracy", **evidence):
    """A report and its evidence, of so many layers, without a run."""
    rng = np.random.default_rng(0)
    kernels = [TensorCodes(rng.integers(-90, 90, (3, 3, 8, 16)), rng.random((1, 1, 1, 16)) + 0.1)]
    kernels += [
        TensorCodes(rng.integers(-3, 4, (20 + n, 10)), np.full((1, 1), 0.1)) for n in range(layers - 1)
    ]
    codes = Codes({f"{name}{n}": LayerCodes(f"{name}{n}", "Dense", k, None) for n, k in enumerate(kernels)})
    rows = [
        KernelRow(f"{name}{n}", "FULLY_CONNECTED", k.codes.shape, "sparse", k.codes.size, 50, 60, 7)
        for n, k in enumerate(kernels)
    ]
    size = 4000 * layers
    proven = Proven(
        "tflm", size, size, "runtime", 9, {"x": 0}, 1e-3, 1e-3, 5000, 4000, size, ["CONV_2D"], rows, [name]
    )  # fmt: skip
    looks = [
        Point(
            n * 100, (0.5,), (0.45 if metric == "accuracy" else 0.5,), (0.1,), 0.3, size + 900 - n, 9, 9, 1.0
        )
        for n in range(5)
    ]
    scores = [(Score("", metric, value),) for value in (0.9, 0.8)]
    measured = Measured(10 * size, size, scores[0], 1e-4)
    report = Report(
        model=name,
        data=name,
        splits={"train": 9, "validation": 9, "test": 9},
        settings={"scheme": {"name": name}, "budget": {"max_drop": 0.0, "max_size": 9000}, "start": None},
        tasks={name: "a task"},
        criteria=[metric],
        float_=measured,
        int8=measured,
        files=[TargetFile(f"{name}.tflite", scores[1], scores[0], 9, proven)],
        agreement_with_graph=None,
        agreement_with_float=None,
        max_lsb_from_graph=0.0,
        inputs={name: (0.1, 0), "other": (0.0, 0)},
        input_shift=None,
        outputs={name: (0.1, 0)},
        float_layers={name: "LSTM"},
        layers=layer_rows(codes),
        classes=[],
        bar=[0.45],
        best=looks[-1],
        curve=looks,
        finished=False,
        warning=None,
        versions=versions(),
    )
    given = {
        "noise": [
            LayerNoise(name, "CONV_2D", (8, 8), ratio) for ratio in (30.0, -3.0, np.inf, -np.inf, None)
        ],
        "classifies": True,
        "class_names": [],
        "labels": np.arange(9) % 3,
        "float_outputs": np.eye(3, dtype=np.float32)[np.arange(9) % 3],
        "outputs": np.eye(3, dtype=np.float32)[(np.arange(9) + (np.arange(9) < 2)) % 3],
        "pictures": None,
    } | evidence
    different = most_different(given["float_outputs"], given["outputs"])
    numbers = np.arange(len(given["labels"])) + 100
    return report, Evidence(codes=codes, numbers=numbers, different=different, **given)


def page(*args, **kwargs):
    return Page(render(*made_up(*args, **kwargs)))


@pytest.fixture(scope="module")
def digits(tmp_path_factory, samples):
    folder = tmp_path_factory.mktemp("digits")
    model, output = folder / "<img src=x onerror=alert(1)>.h5", str(folder / "digits.tflite")
    shutil.copy(samples / "digits_cnn.h5", model)
    command = ["quantize", str(model), "--data", "digits", "-o", output]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lqconvert.finetuning.MINIMUM_CYCLE", CYCLE)
        result = CliRunner().invoke(main, [*command, "--report", str(folder / "pages" / "digits.html")])
    assert result.exit_code == 0, result.output
    return Page(folder / "pages" / "digits.html"), json.loads((folder / "digits.report.json").read_text())


def test_the_page_says_what_the_json_says(digits):
    seen, report = digits
    assert report["model"] in seen.text
    (file,) = report["files"]
    assert seen.headings == [
        "Side by side", "Bytes by layer", "Fine-tuning", "Codes and scales", "Error by layer", "Classes",
        "Where file and float model differ most", "The file", "Settings and versions",
    ]  # fmt: skip
    sizes = f"{report['float']['size']:,} → {file['proven']['size']:,} bytes"
    assert sizes in seen.text
    assert f"{file['float_score']:.2%} → {file['score']:.2%}" in seen.text
    assert f"{report['best']['score']:.2%} at step {report['best']['step']:,}" in seen.text
    cells = seen.text_of("td", "th").splitlines()
    for kernel in file["proven"]["kernels"]:
        assert f"{kernel['stored_bytes'] + kernel['added_bytes']:,}" in cells[cells.index(kernel["layer"]) :]
    for layer in report["layers"]:
        assert f"{np.prod(layer['shape']):,} weights, {layer['codes']} different codes" in seen.text


def test_the_page_has_words_for_its_pictures(digits):
    seen, report = digits
    figures = [attributes for tag, attributes in seen.elements if attributes.get("role") == "img"]
    assert len(figures) == 4 + len(report["layers"])
    assert all(len(attributes["aria-label"]) > 20 for attributes in figures)
    assert all(attributes["alt"] for tag, attributes in seen.elements if tag == "img")
    assert all("scope" in attributes for tag, attributes in seen.elements if tag == "th")
    assert 1 <= seen.count("img") <= 12


def test_strangers_names_stay_text():
    seen = page(name=HOSTILE, class_names=[HOSTILE] * 3)
    harmless = page(class_names=["a"] * 3)
    assert [tag for tag, _ in seen.elements] == [tag for tag, _ in harmless.elements]
    assert seen.text.count(printable(HOSTILE)) > 10
    assert not set("\x1b\0\u202e\ud800") & set(seen.text)
    assert "49" not in seen.text_of("h1", "title")


@pytest.mark.parametrize(
    ("metric", "evidence", "absent"),
    [
        ("accuracy", {}, set()),
        (
            "accuracy",
            {"labels": np.arange(9) % 2, "float_outputs": RNG.random((9, 1)), "outputs": RNG.random((9, 1))},
            set(),
        ),
        (
            "R²",
            {"classifies": False, "labels": RNG.random((9, 3)), "outputs": RNG.random((9, 3))},
            {"Classes"},
        ),
        ("R² to float", {"labels": np.zeros((9, 0))}, {"Classes"}),
        (
            "R² to float",
            {
                "classifies": False,
                "labels": np.zeros((9, 0)),
                "float_outputs": RNG.random((9, 4, 4, 2)),
                "outputs": RNG.random((9, 4, 4, 2)),
            },
            {"Classes"},
        ),
        (
            "accuracy",
            {"outputs": np.eye(3)[np.arange(9) % 3], "noise": []},
            {"Error by layer", "Where file and float model differ most"},
        ),
    ],
    ids=["classes", "one sigmoid", "regression", "no labels", "no labels, images out", "no difference"],
)
def test_every_kind_of_model_has_a_page(metric, evidence, absent):
    seen = page(metric=metric, **evidence)
    known = {"Error by layer", "Classes", "Where file and float model differ most"}
    assert known - set(seen.headings) == absent


def test_answers_that_changed_sides():
    seen = page(class_names=["cat", "dog", "cow"])
    assert "Of 9 test examples 2 went from right to wrong and 0 from wrong to right" in seen.text
    assert "dog (1)" in seen.text
    assert "now wrong 100" in " ".join(seen.text.split())


def test_large_models_and_images_make_small_pages():
    pictures = RNG.integers(0, 256, (9, 300, 400, 3)).astype(np.uint8)
    seen = page(layers=60, pictures=pictures)
    assert "36 more are in the .codes.npz" in seen.text
    assert len(seen.source) < 1_000_000


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((784,), np.uint8, (28, 28, 1)),
        ((783,), np.uint8, None),
        ((784,), np.float32, None),
        ((28, 20), np.uint8, (28, 20, 1)),
        ((28, 20), np.float32, None),
        ((28, 20, 3), np.float32, (28, 20, 3)),
        ((28, 20, 5), np.uint8, None),
        ((2, 2, 3), np.uint8, None),
    ],
)
def test_what_is_an_image(shape, dtype, expected):
    pictures = as_pictures(np.zeros((5, *shape), dtype))
    assert (pictures is None) if expected is None else (pictures.shape == (5, *expected))


@pytest.mark.parametrize("value", [0.0, -7.5])
def test_flat_images_are_drawn(value):
    assert page(pictures=np.full((9, 8, 8, 1), value, np.float32)).count("img") == 2


def test_a_run_without_a_budget():
    report, evidence = made_up()
    free = report.settings | {"budget": {"max_drop": None, "max_size": None}}
    assert "Asked for" not in render(dataclasses.replace(report, settings=free, bar=None), evidence)


@pytest.mark.parametrize(
    ("html", "output", "message"),
    [
        ("page.json", "m.tflite", "ends in .html"),
        ("folder.html", "m.tflite", "is a folder"),
        ("/sys/no/page.html", "m.tflite", "cannot be written"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_first(html, output, message, tmp_path):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(LqError, match=message):
        quantize("no such model", "no such data", tmp_path / output, html=tmp_path / html)
