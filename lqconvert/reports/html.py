"""The report as one HTML file. It loads nothing, runs nothing, and shows strangers' names as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lqconvert.exporting.codes import Codes
from lqconvert.keras_loader.layer_kinds import LAYERS, OTHER
from lqconvert.metrics import Metric
from lqconvert.reports import charts, task_figures
from lqconvert.reports.evidence import COLOURS, LEAST_POINTS, Evidence
from lqconvert.reports.page_parts import Drawing
from lqconvert.reports.report import Report, TargetFile, notes, npu_rows
from lqconvert.runtime.layer_snr import LayerNoise
from lqconvert.tasks import Heads, metric_named
from lqconvert.tflite.packing import INT8
from lqconvert.utils.text import printable

#: The largest number of tensors shown, so that a report can be read and sent by mail.
MOST_TENSORS, MOST_CRITERIA = 24, 4


@dataclass(frozen=True)
class Weights:
    """A layer's bytes in the float32 file and in a target's file."""

    layer: str
    kind: str
    shape: tuple[int, ...]
    packing: str
    bits: float | None  # per weight, as stored
    before: int
    after: int


@dataclass(frozen=True)
class NoiseRow:
    """A layer's signal-to-noise ratio, with the start and the length of its bar in percent."""

    layer: LayerNoise
    ratio: str
    start: float
    length: float


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
    colours = task_figures.tones(evidence)
    return environment.from_string(source).render(
        report=report,
        file_name=Path(report.files[0].path).name,
        cards=[(file, _score_cards(report, file, colours)) for file in report.files],
        sections=task_figures.sections(report.files[0], evidence, colours),
        colours=COLOURS,
        comparisons=_comparisons(report),
        weights=[(file, _weights(report, file)) for file in report.files],
        learning=_learning(report, evidence.heads),
        tensors=_tensors(evidence.codes),
        left_out=max(0, len(evidence.codes.layers) - MOST_TENSORS),
        noise=_noise(evidence.noise),
        notes={file.path: notes(file, report.settings.plain) for file in report.files},
        feeding=report.feeding(),
        settings=_flat(report.settings.to_dict()),
    )


def _comparisons(report: Report) -> list[list[list[str]]]:
    """The tables of files side by side, each as rows, the header first."""
    verified = [file.proven for file in report.files]
    npus = [npu_rows(each.int8_npu, each.npu) for each in verified if each.npu and each.int8_npu]
    return [report.comparison(), *npus]


def _printable(value: Any) -> Any:
    """A value as the page shows it. Markup is only our own."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@dataclass(frozen=True)
class ScoreCard:
    """A score of a file, the float model's score, and the difference in points."""

    label: str
    before: str
    after: str
    change: str
    tone: str  # from :func:`lqconvert.reports.task_figures.tones`


def _score_cards(report: Report, file: TargetFile, colours: dict[str, str]) -> list[ScoreCard]:
    """The scores that budgets limit."""
    before = {score.label: score for score in file.float_scores}
    cards = []
    for score in file.scores:
        if score.label in report.criteria:
            was = before.get(score.label)
            points = 100 * (score.value - was.value) if was is not None else 0.0
            told = was is not None and not metric_named(score.metric).error
            change = f"{points:+.2f} points" if told else ""
            # Only the first file has results for each example. Outputs of others may differ by rounding.
            tone = colours.get(score.label, "") if abs(points) > LEAST_POINTS else ""
            cards.append(ScoreCard(score.label, was.text if was else "", score.text, change, tone))
    return cards


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one flat list. Settings without a value are left out."""
    lines: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            lines |= _flat(value, f"{prefix}{name}: ")
        elif value is not None:
            several = isinstance(value, (list, tuple))
            lines[f"{prefix}{name}".replace("_", " ")] = ", ".join(map(str, value)) if several else value
    return lines


def _weights(report: Report, file: TargetFile) -> list[Weights]:
    """The bytes of every layer's kernel, of everything else, and of the whole file."""
    rows = []
    for layer in report.layers:
        kernels = [kernel for kernel in file.proven.kernels if kernel.layer == layer.name]
        stored = sum(kernel.stored_bytes + kernel.added_bytes for kernel in kernels)
        count = math.prod(layer.shape)
        packing = ", ".join(dict.fromkeys(kernel.packing for kernel in kernels)) or "removed"
        kind = LAYERS.get(layer.kind, OTHER).kernel
        if not kernels and kind is not None and not kind.outputs:  # in a loop, where kernels are not packed
            packing, stored = INT8.name, count
        shape = kernels[0].shape if len(kernels) == 1 else layer.shape
        rows.append(Weights(layer.name, layer.kind, shape, packing, 8 * stored / count, 4 * count, stored))
    before = report.float_.size - sum(row.before for row in rows)
    after = file.proven.size - sum(row.after for row in rows)
    rows.append(Weights("all else", "graph, biases, scales", (), "", None, before, after))
    return rows


def _learning(report: Report, heads: Heads) -> list[Drawing]:
    """The curves of fine-tuning, and of accuracy against bytes."""
    points, best, steps = report.curve, report.best, [point.step for point in report.curve]
    drawings = []
    for place, (_, metric) in enumerate(heads.criteria[:MOST_CRITERIA]):
        drawings += _criterion(report, place, metric)
    for title, field, note in (
        ("Loss on validation data", "loss", ""),
        ("Size of the file", "bytes", f"Exported: about {best.bytes:,} bytes."),
    ):
        values = [getattr(point, field) for point in points]
        exported = best.step, getattr(best, field)
        unit = _unit(report)
        svg = charts.curve(steps, values, field, exported, unit=unit, bytes_=field == "bytes")
        drawings.append(Drawing.of(title, svg, note, _spoken(steps, values, unit)))
    return drawings


def _criterion(report: Report, place: int, metric: Metric) -> list[Drawing]:
    """A judged score over the steps of fine-tuning, and against bytes."""
    points, best, name = report.curve, report.best, report.criteria[place]
    steps, sizes = [point.step for point in points], [point.bytes for point in points]
    scores, qualities = [p.scores[place] for p in points], [p.qualities[place] for p in points]
    differ = scores != qualities
    of = f" of {name}" if len(report.criteria) > 1 else ""
    exported, dashed = (best.step, best.scores[place]), ("quality", qualities) if differ else None
    came = charts.curve(steps, scores, name, exported, dashed, unit=_unit(report))
    budget = report.settings.budget
    floor = report.bar[place] if report.bar else None
    exported = best.bytes, best.qualities[place]
    judged = f"quality ({name})" if differ else name
    bought = charts.budget_curve(sizes, qualities, exported, floor, budget.max_size, judged)
    asked = f"Budget: {budget}" if budget.steers else ""
    if budget.max_drop is not None:
        asked += ", minus an allowance for the sampling error"
    offers = zip(qualities, sizes, strict=True)
    return [
        Drawing.of(
            f"Score on validation data{of}",
            came,
            f"Exported: {name} {metric.text(best.scores[place])} at {_unit(report)} {best.step:,}.",
            _spoken(steps, scores, _unit(report)),
        ),
        Drawing.of(
            f"Quality against bytes{of}",
            bought,
            asked,
            "; ".join(f"{quality:.4g} at {size:,} bytes" for quality, size in offers),
        ),
    ]


def _unit(report: Report) -> str:
    """What the evaluations of a run come after: steps of fine-tuning, or trials of rounding."""
    return "step" if report.settings.epochs else "trial"


def _spoken(steps: Sequence[int], values: Sequence[float], unit: str) -> str:
    return "; ".join(f"{value:.4g} at {unit} {step}" for step, value in zip(steps, values, strict=True))


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
        note += f"{abs(kernel.entropy):.2f} bits of entropy each{scale}"
        drawn.append(Drawing.of(name, charts.codes_and_scales(kernel), note))
    return drawn


def _noise(layers: Sequence[LayerNoise]) -> list[NoiseRow]:
    """The layers that both files have, with bars that begin at 0 dB."""
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
