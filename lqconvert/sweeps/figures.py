"""The figures of a sweep, drawn with matplotlib from the files of its runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from lqconvert.exporting.codes import load_kernels
from lqconvert.sweeps.sensitivity import Sensitivity
from lqconvert.sweeps.study import Run
from lqconvert.utils.output_files import write_all
from lqconvert.utils.plotting import defaults
from lqconvert.utils.text import printable

MARKERS = "osD^vP"


def draw(folder: Path, runs: Sequence[Run], sensitivities: Sequence[Sensitivity]) -> list[Path]:
    """Draws all figures of a sweep into its folder and returns their paths.

    Histograms that are newer than the codes are not drawn again.
    """
    reports = {
        run.name: json.loads((folder / f"{run.name}.report.json").read_text(encoding="utf-8")) for run in runs
    }
    paths = [pareto(folder / "pareto.png", runs, next(iter(reports.values())))]
    paths += [epochs(folder / "epochs.png", runs, reports)]
    for run in runs:
        source, path = (folder / f"{run.name}.codes.{suffix}" for suffix in ("npz", "png"))
        if not path.exists() or path.stat().st_mtime < source.stat().st_mtime:
            codes(path, load_kernels(source))
        paths.append(path)
    if sensitivities:
        paths += [sensitivity(folder / "sensitivity.png", sensitivities)]
    return paths


@defaults()
def pareto(path: Path, runs: Sequence[Run], report: dict[str, Any]) -> Path:
    """Test score against the number of integers and against bytes: a curve per scheme and granularity."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    curves = _curves(runs)
    schemes = list(dict.fromkeys(run.scheme for run in runs))
    granularities = list(dict.fromkeys(run.granularity for run in runs))
    for label, curve in curves.items():
        style = {
            "color": f"C{schemes.index(curve[0].scheme)}",
            "marker": MARKERS[granularities.index(curve[0].granularity)],
            "label": label,
            "markersize": 5,
        }
        for axis, values in zip(
            axes, ([r.integers for r in curve], [r.deflated_bytes for r in curve]), strict=True
        ):
            axis.plot(values, [run.test_score for run in curve], **style)
    for axis, label in zip(
        axes, ("different integers in all kernels", "bytes of the .tflite, deflated"), strict=True
    ):
        axis.axhline(report["float"]["score"], color="0.5", linestyle="--", label="float32")
        axis.set(xlabel=label, xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    axes[1].axvline(report["float"]["deflated_bytes"], color="0.5", linestyle=":")
    axes[0].set_ylabel(f"test {report['score_name']}")
    axes[0].legend(fontsize="small")
    return _save(figure, path)


@defaults()
def epochs(path: Path, runs: Sequence[Run], reports: dict[str, Any]) -> Path:
    """Validation score and loss during fine-tuning: a row per scheme and granularity, a line per penalty."""
    curves = _curves(runs)
    figure = Figure(figsize=(10, 0.6 + 2.4 * len(curves)), layout="constrained")
    axes = figure.subplots(len(curves), 2, sharex="row", squeeze=False)
    for (label, curve), row in zip(curves.items(), axes, strict=True):
        for number, run in enumerate(curve):
            report = reports[run.name]
            per_epoch = report["splits"]["train"] / report["settings"]["batch_size"]
            at = [point["step"] / per_epoch for point in report["curve"]]
            color = colormaps["viridis"](number / max(len(curve) - 1, 1) * 0.9)
            curves_of = (
                [point["scores"][0] for point in report["curve"]],
                [point["loss"] for point in report["curve"]],
            )
            for axis, values in zip(row, curves_of, strict=True):
                axis.plot(at, values, color=color, label=f"penalty x{run.penalty:g}")
        row[0].set(title=label, ylabel=f"validation {report['score_name']}")
        row[1].set(title=label, ylabel="validation loss")
        row[1].legend(fontsize="x-small")
        for axis in row:
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.3)
    return _save(figure, path)


@defaults()
def codes(path: Path, kernels: dict[str, np.ndarray]) -> Path:
    """The frequency of each integer code, for every kernel."""
    columns = min(4, len(kernels))
    rows = -(-len(kernels) // columns)
    figure = Figure(figsize=(3 * columns, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel()[len(kernels) :]:
        axis.remove()
    for axis, (name, kernel) in zip(axes.ravel(), kernels.items(), strict=False):
        values, counts = np.unique(kernel, return_counts=True)
        axis.bar(values, counts / kernel.size, width=1.0)
        zeros = np.mean(kernel == 0)
        axis.set_title(f"{printable(name)}: {kernel.size:,} codes, {zeros:.0%} zero", fontsize="small")
        axis.set(yscale="log", xlabel="code", ylabel="share")
    return _save(figure, path)


@defaults()
def sensitivity(path: Path, rows: Sequence[Sensitivity]) -> Path:
    """The drop of the score when one layer is coarsened: a group of bars for each layer."""
    layers = list(dict.fromkeys(row.layer for row in rows))
    widths = sorted({row.bits for row in rows})
    size = (8, 1 + 0.35 * len(layers) * max(1, len(widths) / 2))
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    height = 0.8 / len(widths)
    for number, bits in enumerate(widths):
        drops = [next(row.drop for row in rows if (row.layer, row.bits) == (layer, bits)) for layer in layers]
        axis.barh(np.arange(len(layers)) + number * height, drops, height, label=f"{bits} bits")
    axis.set_yticks(np.arange(len(layers)) + 0.4 - height / 2, list(map(printable, layers)))
    axis.invert_yaxis()
    axis.set_xlabel("drop of the validation score, one layer coarsened (points)")
    axis.legend()
    axis.grid(alpha=0.3, axis="x")
    return _save(figure, path)


def _curves(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each scheme and granularity, sorted by penalty."""
    ordered = sorted(runs, key=lambda run: (run.scheme, run.granularity, run.penalty))
    grouped = groupby(ordered, lambda run: f"{run.scheme}, {run.granularity}")
    return {label: list(group) for label, group in grouped}


def _save(figure: Any, path: Path) -> Path:
    write_all({path: lambda part: figure.savefig(part, format="png", dpi=110)})
    return path
