"""The report as a page: its contents for every kind of model, and that it loads and runs nothing."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import run_lengths
from page import Page

from lqconvert import Budget, LqError, Rate, quantize
from lqconvert.cli.main import main
from lqconvert.data.preprocessing import Preprocessing
from lqconvert.exporting.codes import Codes, LayerCodes, TensorCodes
from lqconvert.reports.answer_charts import precision_and_recall
from lqconvert.reports.evidence import Evidence, tone_of_counts
from lqconvert.reports.html import render
from lqconvert.reports.pictures import as_pictures
from lqconvert.reports.report import Measured, Report, TargetFile, layer_rows, versions
from lqconvert.reports.settings import RunSettings
from lqconvert.runtime.layer_snr import LayerNoise
from lqconvert.runtime.verify import KernelRow, Limits, Verified
from lqconvert.tasks import TASKS, Head, Heads, Output
from lqconvert.training.augmentation import Augmentation
from lqconvert.training.budget import Point
from lqconvert.utils.text import printable

HOSTILE = (
    "</title></svg><script>alert(1)</script>\"'><img src=http://example.com/x onerror=alert(2)> $x_1$ {{7*7}}"
    "\x1b[31m\0\u202e\ud800"
)
RNG = np.random.default_rng(0)
N = 64
CLASSES = RNG.integers(0, 3, N)
LOOK = "Where file and float model differ most"


@dataclasses.dataclass(frozen=True)
class Answers:
    """An output's labels, and the outputs of the float model and of the file."""

    head: Head
    labels: np.ndarray
    before: np.ndarray
    after: np.ndarray


def answers(
    task, shape, labels=None, *, activation="", noise=0.0, shift=0.0, before=None, name="out", **settings
):
    """Made-up outputs: the float model's are near the labels, and the file's near those."""
    rng = np.random.default_rng(1)
    shape = shape if isinstance(shape, tuple) else (shape,)
    given = np.zeros((N, 0), np.float32) if labels is None else labels
    columns = given.reshape(N, -1).shape[1]
    head = Head(
        Output(name, shape, activation),
        task,
        columns,
        judged=settings.pop("judged", TASKS[task][:1]),
        **settings,
    )
    if before is None:
        before = rng.random((N, *shape))
    after = before + shift + noise * rng.normal(size=before.shape)
    if activation:
        before, after = (np.clip(each, 0, 1) for each in (before, after))
    return Answers(head, given, before.astype(np.float32), after.astype(np.float32))


def of_classes(labels, count, share=0.8):
    """Probabilities [..., count] that are mostly of the labels."""
    return share * np.eye(count)[labels] + (1 - share) * RNG.dirichlet(np.ones(count), labels.shape)


def three(**settings):
    """A classifier of three classes. The file has the first two examples wrong."""
    before = of_classes(CLASSES, 3)
    made = answers("classification", 3, CLASSES, before=before, activation="softmax", **settings)
    made.after[:2] = np.roll(made.after[:2], 1, axis=1)
    return made


MANY, FLAGS = np.arange(N) % 30, RNG.integers(0, 2, (N, 4)).astype(np.float32)
MAPS = RNG.integers(0, 3, (N, 64))
TARGETS = RNG.normal(size=(N, 6)).astype(np.float32)
IMAGES = RNG.random((N, 64)).astype(np.float32)
USUAL = np.concatenate([IMAGES, (np.arange(N) % 4 == 0)[:, np.newaxis]], axis=1).astype(np.float32)
UNKNOWN = np.concatenate([IMAGES, np.full((N, 1), np.nan, np.float32)], axis=1)
ONE = (CLASSES > 0).astype(np.int64)
CASES = {
    "few classes": ([three()], ["Scores", "Confusion", "Classes", LOOK]),
    "many classes": (
        [answers("classification", 30, MANY, before=of_classes(MANY, 30, 0.5), noise=0.2)],
        ["Scores", "Most confused", "Classes", LOOK],
    ),
    "one sigmoid": (
        [answers("binary", 1, ONE, activation="sigmoid", noise=0.1, judged=("accuracy", "AUC"), uneven=True)],
        ["Scores", "Confusion", "Classes", LOOK],
    ),
    "two classes": (
        [answers("binary", 2, ONE, before=of_classes(ONE, 2), noise=0.1, threshold=0.7)],
        ["Scores", "Confusion", "Classes", LOOK],
    ),
    "no positives": (
        [answers("binary", 1, 0 * ONE, before=TARGETS[:, :1] - 9, judged=("balanced accuracy", "AUC"))],
        ["Scores", "Confusion", "Classes"],
    ),
    "none found by the file": (
        [answers("binary", 1, ONE, before=ONE[:, np.newaxis] * 9 - 4, shift=-9)],
        ["Scores", "Confusion", "Classes", LOOK],
    ),
    "multi-label": (
        [answers("multi-label", 4, FLAGS, activation="sigmoid", noise=0.1)],
        ["Scores", "Labels", LOOK],
    ),
    "segmentation": (
        [answers("segmentation", (8, 8, 3), MAPS, before=of_classes(MAPS, 3).reshape(N, 8, 8, 3), noise=0.3)],
        ["Scores", "Classes", "Masks, where file and float model differ most"],
    ),
    "masks of one class": (
        [answers("segmentation", (8, 8, 1), MAPS % 2, activation="sigmoid", noise=0.1)],
        ["Scores", "Classes", "Masks, where file and float model differ most"],
    ),
    "classes along a line": (
        [answers("segmentation", (64, 3), MAPS, before=of_classes(MAPS, 3), noise=0.3)],
        ["Scores", "Classes"],
    ),
    "regression": (
        [answers("regression", 1, TARGETS[:, :1], before=TARGETS[:, :1], noise=0.1)],
        ["Scores", LOOK],
    ),
    "regression of columns": (
        [answers("regression", 6, TARGETS, before=TARGETS + 0.1, noise=0.1)],
        ["Scores", "Columns", LOOK],
    ),
    "reconstruction": (
        [answers("reconstruction", (8, 8, 1), UNKNOWN, before=IMAGES.reshape(N, 8, 8, 1), noise=0.1)],
        ["Scores", "Worst reconstructions"],
    ),
    "anomalies": (
        [answers("reconstruction", 64, USUAL, before=IMAGES, noise=0.1)],
        ["Scores", "Worst reconstructions"],
    ),
    "embedding": ([answers("embedding", 16, activation="l2", noise=0.1)], ["Scores", LOOK]),
    "no labels": ([answers("raw", 3, activation="softmax", noise=0.1)], ["Scores", LOOK]),
    "no labels, images out": ([answers("raw", (4, 4, 2), noise=0.1)], ["Scores", LOOK]),
    "no difference": ([answers("raw", 3)], ["Scores"]),
    "several outputs": (
        [
            three(name="kind"),
            answers("regression", 1, TARGETS[:, :1], before=TARGETS[:, :1], noise=0.1, name="size"),
            answers("embedding", 5, noise=0.1, name="place"),
        ],
        ["Scores", "Confusion", "Classes", LOOK, "Scores", LOOK, "Scores", LOOK],
    ),
}  # fmt: skip
FIGURES = {
    "one sigmoid": "Precision and recall",
    "two classes": "at the threshold of 0.7",
    "multi-label": "Precision and recall, all labels together",
    "regression": "Residuals",
    "regression of columns": "Residuals of abcd",
    "reconstruction": "Errors of reconstruction",
    "anomalies": "file, anomalies",
    "embedding": "Cosine similarity",
    "no labels": "File against float",
}


def joined(parts):
    """Outputs of several heads lie flat, one behind the other."""
    flat = [part.reshape(N, -1) for part in parts]
    return parts[0] if len(parts) == 1 else np.concatenate(flat, axis=1).astype(np.float32)


SETTINGS = RunSettings(
    scheme=Rate(),
    budget=Budget(max_drop=0.0, max_size=9000),
    io="int8",
    granularity="mixed",
    rounding="nearest",
    start=None,
    activations=8,
    preprocess=Preprocessing(),
    tasks={},
    judged={},
    weights={},
    threshold=0.5,
    steer_on="validation",
    limits=Limits(),
    augmentation=Augmentation(),
    epochs=20,
    max_minutes=None,
    batch_size=128,
    learning_rate=3e-3,
    seed=0,
)


def made_up(outputs=None, layers=2, name="layer", pictures=None, noise=None):
    """A report and its evidence with these outputs and this number of layers, without a run."""
    outputs = outputs or [three()]
    heads = Heads(tuple(each.head for each in outputs))
    labels = heads.join_labels([each.labels for each in outputs])
    before, after = joined([each.before for each in outputs]), joined([each.after for each in outputs])
    criteria = heads.criterion_labels
    scores, float_scores = heads.scores(after, labels, before), heads.scores(before, labels, before)
    rng = np.random.default_rng(0)
    kernels = [TensorCodes(rng.integers(-90, 90, (3, 3, 8, 16)), rng.random((1, 1, 1, 16)) + 0.1)]
    kernels += [
        TensorCodes(rng.integers(-3, 4, (20 + n, 10)), np.full((1, 1), 0.1)) for n in range(layers - 1)
    ]
    codes = Codes({f"{name}{n}": LayerCodes(f"{name}{n}", "Dense", k, None) for n, k in enumerate(kernels)})
    rows = [
        KernelRow(f"{name}{n}", "FULLY_CONNECTED", k.codes.shape, "sparse", k.codes.size, 50, 60, 7, 0)
        for n, k in enumerate(kernels)
    ]
    size = 4000 * layers
    verified = Verified(
        "tflm", size, size, "runtime", 9, {"x": 0}, 1e-3, 1e-3, 5000, 4000, size, ["CONV_2D"], rows, [name]
    )  # fmt: skip
    half, less = (0.5,) * len(criteria), (0.45,) * len(criteria)
    evaluations = [Point(n * 100, half, less, less, 0.3, size + 900 - n, 1.0) for n in range(5)]
    measured = Measured(10 * size, size, float_scores, 1e-4)
    report = Report(
        model=name,
        data=name,
        splits={"train": 9, "validation": 9, "test": 9},
        settings=dataclasses.replace(SETTINGS, tasks={name: name}),
        tasks={name: "a task"},
        criteria=criteria,
        float_=measured,
        int8=measured,
        files=[TargetFile(f"{name}.tflite", scores, float_scores, N, verified)],
        agreement_with_graph=None,
        agreement_with_float=None,
        max_lsb_from_graph=0.0,
        input_types={name: "int8", "other": "int32"},
        inputs={name: (0.1, 0), "other": (0.0, 0)},
        front=None,
        front_code=None,
        input_shift=None,
        outputs={name: (0.1, 0)},
        float_layers={name: "LSTM"},
        layers=layer_rows(codes),
        classes=[],
        bar=[0.45] * len(criteria),
        best=evaluations[-1],
        curve=evaluations,
        finished=False,
        warning=None,
        versions=versions(),
    )
    if noise is None:
        ratios = (30.0, -3.0, np.inf, -np.inf, None)
        noise = [LayerNoise(name, "CONV_2D", (8, 8), ratio) for ratio in ratios]
    numbers = np.arange(N) + 100
    fetch = (lambda places: None) if pictures is None else (lambda places: pictures[places])
    return report, Evidence(codes, noise, heads, labels, before, after, numbers, fetch)


def page(*args, **kwargs):
    return Page(render(*made_up(*args, **kwargs)))


@pytest.fixture(scope="module")
def digits(tmp_path_factory, samples):
    folder = tmp_path_factory.mktemp("digits")
    model, output = folder / "<img src=x onerror=alert(1)>.h5", str(folder / "digits.tflite")
    shutil.copy(samples / "digits_cnn.h5", model)
    command = ["quantize", str(model), "--data", "digits", "-o", output]
    with run_lengths(epochs=1):
        result = CliRunner().invoke(main, [*command, "--report", str(folder / "pages" / "digits.html")])
    assert result.exit_code == 0, result.output
    return Page(folder / "pages" / "digits.html"), json.loads((folder / "digits.report.json").read_text())


@pytest.mark.slow
def test_the_page_says_what_the_json_says(digits):
    seen, report = digits
    assert report["model"] in seen.text
    (file,) = report["files"]
    assert seen.headings == [
        "Side by side", "Answers", "Bytes by layer", "Fine-tuning", "Codes and scales", "Error by layer",
        "The file", "Settings and versions",
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


@pytest.mark.slow
def test_the_page_has_words_for_its_pictures(digits):
    seen, report = digits
    figures = [attributes for tag, attributes in seen.elements if attributes.get("role") == "img"]
    assert len(figures) == 4 + len(report["layers"])
    assert all(len(attributes["aria-label"]) > 20 for attributes in figures)
    assert all(attributes["alt"] for tag, attributes in seen.elements if tag == "img")
    assert all("scope" in attributes for tag, attributes in seen.elements if tag == "th")
    assert 1 <= seen.count("img") <= 12


def renamed(case, name):
    """The case's outputs. Their classes have this name, and theirs begin with it."""
    return [
        dataclasses.replace(
            each,
            head=dataclasses.replace(
                each.head,
                class_names=(name,) * 30,
                output=dataclasses.replace(each.head.output, name=name + each.head.output.name),
            ),
        )
        for each in CASES[case][0]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_task_has_its_figures_and_strangers_names_stay_text(case):
    outputs, titles = renamed(case, "abcd"), CASES[case][1]
    report, evidence = made_up(outputs, 1, "abcd")
    harmless, seen = Page(render(report, evidence)), page(renamed(case, HOSTILE), 1, HOSTILE)
    assert harmless.text_of("h3").splitlines()[-len(titles) :] == titles
    assert FIGURES.get(case, "") in harmless.text
    assert harmless.headings.count("Answers" if len(outputs) == 1 else "Answers of abcdplace") == 1
    cells = harmless.text_of("td", "th").splitlines()
    for score in report.files[0].scores:
        at = cells.index(score.metric)
        assert score.text in cells[at : at + 3] or len(outputs) > 1
    assert outside_of_figures(seen) == outside_of_figures(harmless)
    assert seen.text.count(printable(HOSTILE)) > 10
    assert not set("\x1b\0\u202e\ud800") & set(seen.text)
    assert "49" not in seen.text_of("h1", "title")


def outside_of_figures(seen):
    """The elements. The number of a chart's lines depends on the length of its text."""
    return [
        tag for tag, _ in seen.elements if tag not in ("path", "use", "defs", "g", "text", "clipPath", "rect")
    ]


def test_each_output_has_its_scores():
    outputs, _ = CASES["several outputs"]
    seen = page(outputs)
    assert [title for title in seen.headings if "Answers" in title] == [
        "Answers of kind", "Answers of size", "Answers of place",
    ]  # fmt: skip
    assert "Quality against bytes of size R²" in seen.text
    assert {"kind accuracy", "size R²", "place cosine similarity"} <= set(seen.text_of("h3").splitlines())


def test_a_page_without_errors_of_layers():
    assert "Error by layer" not in page(noise=[]).headings


@pytest.mark.parametrize(
    ("case", "pictures", "expected"),
    [
        ("few classes", True, 12),
        ("segmentation", True, 6 * 4),
        ("segmentation", False, 6 * 3),
        ("reconstruction", True, 6 * 3),
        ("reconstruction", False, 0),
        ("regression", True, 12),
    ],
)
def test_examples_are_shown_as_pictures(case, pictures, expected):
    outputs, _ = CASES[case]
    for each in outputs:
        each.after[20:40] += 1e-3
    images = RNG.integers(0, 256, (N, 8, 8, 1)).astype(np.uint8) if pictures else None
    assert page(outputs, pictures=images).count("img") == expected


def test_answers_that_changed_sides():
    outputs = [three(class_names=("cat", "dog", "cow"))]
    seen = page(outputs)
    assert f"Of {N} test examples 2 went from right to wrong and 0 from wrong to right" in seen.text
    taken = ("dog", "cow", "cat")[CLASSES[0]]
    assert f"{taken} (" in seen.text
    assert "now wrong 100" in " ".join(seen.text.split())


@pytest.mark.parametrize(("wrong", "colours"), [(0, 0), (2, 0), (12, 1)])
def test_only_what_chance_does_not_explain_is_coloured(wrong, colours):
    before = of_classes(0 * CLASSES, 3)
    made = answers("classification", 3, 0 * CLASSES, before=before, activation="softmax")
    made.after[:wrong] = np.roll(made.after[:wrong], 1, axis=1)
    seen = page([made])
    bad = [tag for tag, attributes in seen.elements if "bad" in (attributes.get("class") or "").split()]
    assert (bad.count("td"), bad.count("span")) == (2 * colours, colours)


@pytest.mark.parametrize(
    ("case", "figure"),
    [
        ("anomalies", "file, anomalies"),
        ("reconstruction", "Errors of reconstruction"),
        ("regression of columns", r"Residuals of [0-5]\b"),  # columns without names are numbered
    ],
)
def test_errors_are_coloured_as_scores_are(case, figure):
    (made,) = CASES[case][0]
    far = dataclasses.replace(made, after=made.before + RNG.normal(size=made.before.shape).astype(np.float32))
    seen = page([far])
    bad = [attributes for _, attributes in seen.elements if (attributes.get("class") or "").endswith(" bad")]
    assert re.search(figure, seen.text)
    errors = [metric for metric in made.head.metrics if metric.error]
    assert len(bad) >= 1 + 1 + len(errors)  # on the card, and in the table


@pytest.mark.parametrize(
    ("lost", "gained", "colour"),
    [(1, 0, ""), (4, 0, ""), (5, 0, "bad"), (12, 10, ""), (0, 9, "good"), (0, 0, "")],
)
def test_a_class_is_coloured_beyond_chance(lost, gained, colour):
    assert tone_of_counts(lost, gained) == colour


def test_precision_and_recall_count_ties_once():
    scores, labels = np.round(RNG.random(500), 1), RNG.integers(0, 2, 500)
    precision, recall = precision_and_recall(scores, labels)
    for place, level in enumerate(np.unique(scores)[::-1]):
        above = scores >= level
        assert precision[place] == pytest.approx(labels[above].mean())
        assert recall[place] == pytest.approx(labels[above].sum() / labels.sum())


def test_large_models_and_images_make_small_pages():
    pictures = RNG.integers(0, 256, (N, 300, 400, 3)).astype(np.uint8)
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
    assert page(pictures=np.full((N, 8, 8, 1), value, np.float32)).count("img") == 2


def test_a_run_without_a_budget():
    report, evidence = made_up()
    free = dataclasses.replace(report.settings, budget=Budget())
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
        quantize("no such model", "no such data", tmp_path / output, report=tmp_path / html)
