"""Charts of a model's outputs, float model and file together; see :mod:`lqconvert.reports.charts`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lqconvert.reports.charts import (
    AFTER,
    BEFORE,
    CURVE,
    INK,
    MARK,
    MOST_POINTS,
    STYLE,
    as_svg,
    new_figure,
    ring,
)
from lqconvert.utils.plotting import defaults

#: The number of bins in a histogram.
BINS = 32
#: Values that differ by more than this factor are shown on a logarithmic axis.
WIDE = 20.0


@dataclass(frozen=True)
class Ranked:
    """Precision and recall for scores [n] of positive (1) and negative (0) examples, with a threshold."""

    name: str
    scores: np.ndarray
    labels: np.ndarray
    precision: float  # at the threshold; NaN if no example is predicted as positive
    recall: float


def precision_and_recall(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall [k] at each of the k different scores, the highest score first.

    >>> precision_and_recall(np.array([0.9, 0.5, 0.5, 0.1]), np.array([1, 1, 0, 1]))[0].round(2).tolist()
    [1.0, 0.67, 0.75]
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]), 1.0))
    found = np.cumsum(labels[order] == 1)[ends]
    return found / (ends + 1), found / max(found[-1], 1)


@defaults(STYLE)
def precision_recall_curve(before: Ranked, after: Ranked) -> str:
    """Precision against recall for the float model and for the file, with the threshold marked."""
    figure, axis = new_figure()
    for ranked, color, style in ((before, BEFORE, "--"), (after, AFTER, "-")):
        precision, recall = precision_and_recall(ranked.scores, ranked.labels)
        thinned = _thinned(len(recall))
        axis.plot(recall[thinned], precision[thinned], style, color=color, label=ranked.name)
        axis.plot(ranked.recall, ranked.precision, "o", color=color, markersize=5)
    axis.plot(after.recall, after.precision, "o", label="at the threshold", **ring())
    axis.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axis.legend(fontsize="small", loc="lower left")
    return as_svg(figure)


@defaults(STYLE)
def residuals(panels: Sequence[tuple[str, np.ndarray, np.ndarray]], target: str) -> str:
    """Errors [n] against targets [n], in a panel for each (name, target, error), with equal axes."""
    figure = Figure(figsize=CURVE, layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    colors = [BEFORE, AFTER][-len(panels) :]
    for axis, color, (name, targets, errors) in zip(axes, colors, panels, strict=True):
        chosen = _some(len(targets))
        axis.axhline(0.0, color=INK, linewidth=0.8)
        axis.plot(targets[chosen], errors[chosen], "o", color=color, markersize=2.5, alpha=0.6)
        axis.set(xlabel=target, title=name)
        axis.xaxis.set_major_locator(MaxNLocator(4))
    axes[0].set_ylabel("output minus target" if len(panels) > 1 else "file minus float")
    return as_svg(figure)


@defaults(STYLE)
def histogram(
    filled: Sequence[tuple[str, np.ndarray]], outlined: Sequence[tuple[str, np.ndarray]], label: str
) -> str:
    """The distribution of values over examples: bars for the file, dashed lines for the float model."""
    figure, axis = new_figure()
    values = np.concatenate([each for _, each in (*filled, *outlined)])
    edges = _edges(axis, values)
    colors = [AFTER, MARK]
    for (name, each), color in zip(filled, colors, strict=False):
        counts, _ = np.histogram(each, edges)
        axis.stairs(counts, edges, fill=True, color=color, alpha=0.55, label=name)
    for (name, each), color in zip(outlined, [INK, BEFORE], strict=False):
        counts, _ = np.histogram(each, edges)
        axis.stairs(counts, edges, color=color, linestyle="--", label=name)
    axis.set(xlabel=label, ylabel="examples")
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.legend(fontsize="small")
    return as_svg(figure)


@defaults(STYLE)
def profile(target: np.ndarray, before: np.ndarray, after: np.ndarray) -> str:
    """Values [k] of an example: the target, and the outputs of the float model and of the file."""
    figure, axis = new_figure()
    for values, name, color, style in (
        (target, "input", INK, "-"),
        (before, "float", BEFORE, "--"),
        (after, "file", AFTER, "-"),
    ):
        thinned = _thinned(len(values))
        axis.plot(thinned, values[thinned], style, color=color, label=name, linewidth=1.0)
    axis.set(xlabel="place")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.legend(fontsize="small")
    return as_svg(figure)


def _edges(axis: Axes, values: np.ndarray) -> np.ndarray:
    """The edges of bins. Makes the axis logarithmic if the values differ by a large factor."""
    low, high = float(values.min()), float(values.max())
    if low > 0 and high > WIDE * low:
        axis.set_xscale("log")
        return np.geomspace(low, high, BINS + 1)
    room = 1e-3 * max(abs(low), abs(high), 1e-3) if high - low < 1e-6 * max(abs(low), abs(high), 1e-6) else 0
    return np.linspace(low - room, high + room, BINS + 1)


def _thinned(count: int) -> np.ndarray:
    """Indices of at most MOST_POINTS values, evenly spaced."""
    return np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int)


def _some(count: int) -> np.ndarray:
    """Indices of at most MOST_POINTS values, drawn at random, but the same ones each time."""
    return np.random.default_rng(0).permutation(count)[:MOST_POINTS]
