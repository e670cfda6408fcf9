"""The report as one HTML file: nothing is loaded, nothing is run, and strangers' names stay text."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.image import imsave

from lqconvert import drawing
from lqconvert.budget import Budget
from lqconvert.codes import Codes
from lqconvert.metrics import guesses
from lqconvert.noise import LayerNoise
from lqconvert.plotting import defaults
from lqconvert.report import Report, TargetFile, notes
from lqconvert.tasks import metric_named
from lqconvert.text import printable

#: More of these are not shown: a report is to be read, and sent by mail.
MOST_TENSORS, MOST_CLASSES, MOST_EXAMPLES, MOST_VALUES = 24, 40, 12, 4
#: Pictures are thinned out to this many pixels a side.
LARGEST_PICTURE = 96


@dataclass(frozen=True)
class Evidence:
    """What a run showed example by example and code by code, beside the figures of its report.

    The examples are those of the test split that the first target's file was scored on.
    """

    codes: Codes  # of the int8 file
    noise: Sequence[LayerNoise]  # of the int8 file against the float32 .tflite
    classifies: bool
    class_names: Sequence[str]  # none where the data have none
    labels: np.ndarray  # int64 [n], float32 targets [n, k], or [n, 0]
    float_outputs: np.ndarray  # float32 [n, ...]
    outputs: np.ndarray  # float32 [n, ...], of the first target's file
    numbers: np.ndarray  # int64 [n], the examples' places in the test split
    different: np.ndarray  # places in the above, as :func:`most_different` gives them
    pictures: np.ndarray | None  # of these, uint8 or float32 [k, height, width, 1 or 3]; None if no images


@dataclass(frozen=True)
class Drawing:
    """A figure and what it shows, in words."""

    title: str
    svg: Markup
    note: str = ""
    spoken: str = ""  # for those who do not see it, beside title and note

    @classmethod
    def of(cls, title: str, svg: str, note: str = "", spoken: str = "") -> Drawing:
        return cls(title, Markup(svg), note, spoken)  # matplotlib's, of numbers and our own words


@dataclass(frozen=True)
class Weights:
    """A layer's bytes in the float32 file and in a target's."""

    layer: str
    kind: str
    shape: tuple[int, ...]
    packing: str
    bits: float | None  # a weight, as stored
    before: int
    after: int


@dataclass(frozen=True)
class NoiseRow:
    """A layer's signal-to-noise ratio, and where its bar begins and how long it is, in percent."""

    layer: LayerNoise
    ratio: str
    start: float
    length: float


@dataclass(frozen=True)
class ClassRow:
    """How a class fares: the share that is answered right, and which examples changed sides."""

    name: str
    examples: int
    before: float
    after: float
    lost: list[int]  # numbers of the examples that were right and are wrong
    gained: list[int]
    taken_for: str  # what those that were lost are taken for


@dataclass(frozen=True)
class Example:
    """A test example on which the file differs from the float model."""

    number: int
    label: str
    before: str
    after: str
    verdict: str  # "good" or "bad" where the answer changed sides
    distance: float
    picture: str  # a data: URI; empty where the input is no image


def most_different(float_outputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """The places of the examples [n, ...] whose outputs lie farthest apart, the farthest first."""
    return np.argsort(-_distances(float_outputs, outputs), kind="stable")[:MOST_EXAMPLES]


def as_pictures(inputs: np.ndarray) -> np.ndarray | None:
    """Raw inputs [n, ...] as images [n, height, width, 1 or 3], or None where they have no such form."""
    shape = inputs.shape[1:]
    if len(shape) == 1 and inputs.dtype == np.uint8:  # a flat model of square images, such as MNIST's
        side = math.isqrt(shape[0])
        shape = (side, side) if side * side == shape[0] else ()
    if len(shape) == 2 and inputs.dtype == np.uint8:
        shape = (*shape, 1)
    if len(shape) != 3 or shape[-1] not in (1, 3) or min(shape[:2]) < 4:
        return None
    return inputs.reshape(len(inputs), *shape)


def render(report: Report, evidence: Evidence) -> str:
    """The report as the text of an HTML file that loads nothing."""
    environment = Environment(
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": "{:,}".format, "percent": "{:.2%}".format, "shape": _shape}
    source = files("lqconvert").joinpath("templates/report.html").read_text(encoding="utf-8")
    classes = _classes(evidence) if evidence.labels.ndim == 1 else []
    return environment.from_string(source).render(
        report=report,
        file_name=Path(report.files[0].path).name,
        cards=[(file, _score_cards(report, file)) for file in report.files],
        comparison=report.comparison(),
        weights=[(file, _weights(report, file)) for file in report.files],
        learning=_learning(report),
        tensors=_tensors(evidence.codes),
        left_out=max(0, len(evidence.codes.layers) - MOST_TENSORS),
        noise=_noise(evidence.noise),
        classes=classes,
        most_classes=MOST_CLASSES,
        examples=_examples(evidence),
        scored=len(evidence.labels),
        notes={file.path: notes(file) for file in report.files},
        feeding=report.feeding(),
        settings=_flat(report.settings),
    )


def _printable(value: Any) -> Any:
    """What the page shows of a value; Markup is our own."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@dataclass(frozen=True)
class ScoreCard:
    """A score of a file beside the float model's, and by how many points it changed."""

    label: str
    before: str
    after: str
    change: str
    worse: bool  # by more than half a point


def _score_cards(report: Report, file: TargetFile) -> list[ScoreCard]:
    """The scores that budgets judge."""
    before = {score.label: score for score in file.float_scores}
    cards = []
    for score in file.scores:
        if score.label in report.criteria:
            was = before.get(score.label)
            metric = metric_named(score.metric)
            points = 100 * (score.value - was.value) if was is not None and not metric.error else None
            change = "" if points is None else f"{points:+.2f} points"
            worse = points is not None and points < -0.5
            cards.append(ScoreCard(score.label, was.text if was else "", score.text, change, worse))
    return cards


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings within settings as lines of one list; what was not set is left out."""
    lines: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            lines |= _flat(value, f"{prefix}{name}: ")
        elif value is not None:
            lines[f"{prefix}{name}".replace("_", " ")] = value
    return lines


def _weights(report: Report, file: TargetFile) -> list[Weights]:
    """The bytes of every layer's kernel, of all else, and of the whole."""
    rows = []
    for layer in report.layers:
        kernels = [kernel for kernel in file.proven.kernels if kernel.layer == layer.name]
        stored = sum(kernel.stored_bytes + kernel.added_bytes for kernel in kernels)
        count = math.prod(layer.shape)
        packing = ", ".join(dict.fromkeys(kernel.packing for kernel in kernels)) or "removed"
        shape = kernels[0].shape if len(kernels) == 1 else layer.shape
        rows.append(Weights(layer.name, layer.kind, shape, packing, 8 * stored / count, 4 * count, stored))
    before = report.float_.size - sum(row.before for row in rows)
    after = file.proven.size - sum(row.after for row in rows)
    rows.append(Weights("all else", "graph, biases, scales", (), "", None, before, after))
    return rows


def _learning(report: Report) -> list[Drawing]:
    """The curves of fine-tuning, and of what was to be had for how many bytes."""
    points, best = report.curve, report.best
    differs = any(point.quality != point.score for point in points)
    quality = ("quality", "quality") if differs else None
    budget = Budget(**report.settings["budget"])

    def along(
        title: str, field: str, label: str, note: str = "", extra: tuple[str, str] | None = None
    ) -> Drawing:
        spoken = "; ".join(f"{getattr(point, field):.4g} at step {point.step}" for point in points)
        return Drawing.of(title, drawing.curve(points, field, label, best, extra), note, spoken)

    named = zip(report.criteria, best.scores, strict=True)
    # A criterion ends with the name of its metric, which may be the user's own.
    metrics = [score.metric for score in report.float_.scores if score.label in report.criteria]
    texts = [
        f"{label} {metric_named(metric).text(value)}"
        for (label, value), metric in zip(named, metrics, strict=True)
    ]
    exported = f"Exported: {', '.join(texts)} at step {best.step:,}."
    asked = f"Asked for: {budget}" if budget.steers else ""
    if budget.max_drop is not None:
        asked += ", which a look may miss by what its sampling error allows"
    judged = f"quality ({report.criteria[0]})" if quality else report.score_name
    bought = drawing.budget_curve(points, best, report.bar or [], budget, judged)
    return [
        along("Score on validation data", "score", report.score_name, exported, quality),
        along("Loss on validation data", "loss", "loss"),
        along("Size of the file", "bytes", "bytes", f"Exported: about {best.bytes:,} bytes."),
        Drawing.of(
            "What could be had for how many bytes",
            bought,
            asked,
            "; ".join(f"{point.quality:.4g} at {point.bytes:,} bytes" for point in points),
        ),
    ]


def _tensors(codes: Codes) -> list[Drawing]:
    """Codes and scales of the largest kernels, in the order of the graph."""
    sizes = {name: layer.kernel.codes.size for name, layer in codes.layers.items()}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:MOST_TENSORS]
    drawn = []
    for name in (name for name in sizes if name in largest):
        kernel = codes.layers[name].kernel
        zeros = np.mean(kernel.codes == 0)
        scale = f", scale {kernel.scale.ravel()[0]:.4g}" if kernel.scale.size == 1 else ""
        note = f"{kernel.codes.size:,} weights, {kernel.code_count} different codes, {zeros:.0%} are 0, "
        note += f"{kernel.entropy:.2f} bits of entropy each{scale}"
        drawn.append(Drawing.of(name, drawing.codes_and_scales(kernel), note))
    return drawn


def _noise(layers: Sequence[LayerNoise]) -> list[NoiseRow]:
    """The layers that both files have, with bars from 0 dB on."""
    known = {place: layer.snr_db for place, layer in enumerate(layers) if layer.snr_db is not None}
    finite = [ratio for ratio in known.values() if math.isfinite(ratio)]
    low, high = min([0.0, *finite]), max([1.0, *finite])
    rows = []
    for place, ratio in known.items():
        end = min(max(ratio, low), high)
        start, length = (100 * part / (high - low) for part in (min(end, 0.0) - low, abs(end)))
        text = f"{ratio:.1f} dB" if math.isfinite(ratio) else "exact" if ratio > 0 else "no signal"
        rows.append(NoiseRow(layers[place], text, start, length))
    return rows


def _classes(evidence: Evidence) -> list[ClassRow]:
    """The classes, those that lost most first."""
    before, after = guesses(evidence.float_outputs), guesses(evidence.outputs)
    rows = []
    for label in np.unique(evidence.labels):
        of = evidence.labels == label
        lost = of & (before == label) & (after != label)
        gained = of & (before != label) & (after == label)
        row = ClassRow(
            _class_name(evidence, label),
            int(of.sum()),
            float(np.mean(before[of] == label)),
            float(np.mean(after[of] == label)),
            sorted(evidence.numbers[lost].tolist()),
            sorted(evidence.numbers[gained].tolist()),
            ", ".join(
                f"{_class_name(evidence, guess)} ({count})"
                for guess, count in Counter(after[lost].tolist()).most_common()
            ),
        )
        rows.append(row)
    return sorted(rows, key=lambda row: len(row.gained) - len(row.lost))


def _examples(evidence: Evidence) -> list[Example]:
    """The examples that differ most, with what is said of them."""
    different = evidence.different
    distances = _distances(evidence.float_outputs[different], evidence.outputs[different])
    pictures: Sequence[str] = [""] * len(different)
    if evidence.pictures is not None:
        pictures = [_data_uri(picture) for picture in _stretched(evidence.pictures)]
    return [
        Example(
            int(evidence.numbers[place]),
            _label(evidence, place),
            _answer(evidence, evidence.float_outputs[place]),
            _answer(evidence, evidence.outputs[place]),
            _verdict(evidence, place),
            float(distance),
            picture,
        )
        for place, distance, picture in zip(different, distances, pictures, strict=True)
        if distance
    ]


def _label(evidence: Evidence, place: int) -> str:
    label = evidence.labels[place]
    if evidence.labels.ndim == 1:
        return _class_name(evidence, label)
    return _listed(label) if label.size else ""


def _answer(evidence: Evidence, output: np.ndarray) -> str:
    """What a model says of an example: the class and its value, or the values."""
    if not evidence.classifies or output.ndim != 1:
        return _listed(output)
    (guess,) = guesses(output[np.newaxis])
    value = output[guess] if len(output) > 1 else output[0]
    return f"{_class_name(evidence, guess)} ({value:.2f})"


def _verdict(evidence: Evidence, place: int) -> str:
    if evidence.labels.ndim != 1:
        return ""
    was, is_ = (
        guesses(outputs[[place]])[0] == evidence.labels[place]
        for outputs in (evidence.float_outputs, evidence.outputs)
    )
    return "" if was == is_ else "good" if is_ else "bad"


def _listed(values: np.ndarray) -> str:
    values = values.ravel()
    more = ", …" if len(values) > MOST_VALUES else ""
    return ", ".join(f"{value:.3g}" for value in values[:MOST_VALUES]) + more


def _class_name(evidence: Evidence, label: int) -> str:
    return evidence.class_names[label] if label < len(evidence.class_names) else str(label)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean((a - b).reshape(len(a), -1).astype(np.float64) ** 2, axis=1))


def _stretched(pictures: np.ndarray) -> np.ndarray:
    """Images of any range in 0..255; those that fill half of it are left as they are."""
    low, high = float(pictures.min()), float(pictures.max())
    if pictures.dtype == np.uint8 and high > 127:
        return pictures
    return np.round((pictures - low) * (255 / (high - low or 1.0))).astype(np.uint8)


@defaults()
def _data_uri(picture: np.ndarray) -> str:
    step = -(-max(picture.shape[:2]) // LARGEST_PICTURE)
    buffer = io.BytesIO()
    imsave(buffer, np.repeat(picture[::step, ::step], 3 // picture.shape[-1], axis=-1), format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
