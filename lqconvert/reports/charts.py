"""Charts of the HTML report: inline SVG by matplotlib. Text and colours follow the page's style."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

from lqconvert.exporting.codes import TensorCodes
from lqconvert.utils.plotting import defaults
from lqconvert.utils.text import printable

#: Colours that are replaced by variables of the page's style sheet, which has a light and a dark mode.
INK, FAINT, BEFORE, AFTER, MARK = "#010101", "#020202", "#030303", "#040404", "#050505"
VARIABLES = {INK: "ink", FAINT: "line", BEFORE: "before", AFTER: "after", MARK: "mark"}
STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "font.size": 8,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "svg.hashsalt": "lqconvert",
    "text.color": INK,
    "xtick.color": INK,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.color": INK,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
#: Inches: as wide as a phone, on which the text is legible.
CURVE, TENSOR = (3.8, 2.2), (3.4, 1.5)
#: The largest number of points of a line. More could not be distinguished.
MOST_POINTS = 256
#: The number of characters of a stranger's name that fit into a chart.
MOST_OF_A_LABEL = 32


@defaults(STYLE)
def curve(
    steps: Sequence[int],
    values: Sequence[float],
    label: str,
    exported: tuple[int, float],
    dashed: tuple[str, Sequence[float]] | None = None,
    *,
    unit: str = "step",
    bytes_: bool = False,
) -> str:
    """Values by step of fine-tuning, or another unit, with the exported one marked. Others are dashed."""
    figure, axis = new_figure()
    axis.plot(steps, values, "o-", color=AFTER, label=shown(label))
    if dashed is not None:
        axis.plot(steps, dashed[1], "s--", color=BEFORE, label=shown(dashed[0]))
    axis.plot(*exported, "o", label="exported", **ring())
    axis.set(xlabel=unit, ylabel=shown(label))
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if bytes_:
        axis.yaxis.set_major_formatter(EngFormatter(sep=" "))
        axis.set_ylim(0, 1.1 * max(values))
    axis.legend(fontsize="small")
    return as_svg(figure)


@defaults(STYLE)
def budget_curve(
    sizes: Sequence[int],
    qualities: Sequence[float],
    exported: tuple[int, float],
    floor: float | None,
    most_bytes: int | None,
    label: str,
) -> str:
    """Validation quality against bytes: all evaluations, the exported one, and the budget."""
    figure, axis = new_figure()
    axis.plot(sizes, qualities, "o", color=AFTER, label="evaluated")
    axis.plot(*exported, "o", label="exported", **ring())
    if floor is not None:
        axis.axhline(floor, color=MARK, linestyle="--", label="budget")
    if most_bytes is not None:
        axis.axvline(most_bytes, color=MARK, linestyle="--", label="budget")
    axis.set(xlabel="bytes of the file", ylabel=shown(label))
    axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.legend(fontsize="small")
    return as_svg(figure)


@defaults(STYLE)
def codes_and_scales(kernel: TensorCodes) -> str:
    """The frequency of each code, and the sorted scales if there are several."""
    scales = np.sort(kernel.scale.ravel().astype(np.float64))[::-1]
    columns = 2 if len(scales) > 1 else 1
    figure = Figure(figsize=TENSOR, layout="constrained")
    left, *right = figure.subplots(1, columns, squeeze=False, width_ratios=[3, 2][:columns])[0]
    _histogram(left, kernel.codes)
    for axis in right:
        channels = np.linspace(0, len(scales) - 1, min(len(scales), MOST_POINTS)).round().astype(int)
        axis.plot(channels + 1, scales[channels], color=BEFORE)
        axis.set(xlabel="channel, by scale", title="scales")
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_locator(MaxNLocator(4))
        axis.yaxis.set_major_formatter(lambda scale, _: f"{scale:.2g}")
        axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    return as_svg(figure)


def _histogram(axis: Axes, codes: np.ndarray) -> None:
    low, high = int(codes.min()), int(codes.max())
    counts = np.bincount((codes - low).ravel())
    edges = np.arange(low, high + 2) - 0.5
    axis.stairs(np.maximum(counts, 0.5), edges, baseline=0.5, fill=True, color=AFTER)
    axis.set(xlabel="code", title="weights", yscale="log")
    axis.set_ylim(0.5, 2 * counts.max())
    axis.yaxis.set_major_formatter(EngFormatter(sep=" "))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))


def new_figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=CURVE, layout="constrained")
    return figure, figure.subplots()


def shown(name: str) -> str:
    """A name as charts show it."""
    return printable(name, MOST_OF_A_LABEL)


def ring() -> dict[str, Any]:
    return {"markersize": 8, "markerfacecolor": "none", "color": MARK, "linestyle": "none"}


def as_svg(figure: Figure) -> str:
    """The chart as an <svg> element: as wide as its place, without external files, with unique ids."""
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Type", "Format"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)  # type: ignore[arg-type]
    drawn = buffer.getvalue()
    root = ElementTree.fromstring(drawn)
    for attribute in ("width", "height", "version"):
        del root.attrib[attribute]
    root.set("aria-hidden", "true")  # the page says in words what the chart shows
    for parent in list(root.iter()):
        for style in parent.findall(f"{{{SVG}}}style"):  # it would apply to the whole page
            parent.remove(style)
    digest = hashlib.sha256(drawn.encode()).hexdigest()[:8]
    referred = set(re.findall(r"#([mp][0-9a-f]{10})\b", drawn))
    for element in root.iter():
        name = element.attrib.pop("id", "")
        if name in referred:
            element.set("id", f"{digest}-{name}")
        for key, value in element.attrib.items():
            value = re.sub(r"#([mp][0-9a-f]{10})\b", rf"#{digest}-\1", value)
            value = re.sub(r"\s+", " ", value)
            value = re.sub(r"font-family: [^;]*;?", "", value)
            value = re.sub(r"#0[1-5]0[1-5]0[1-5]", lambda match: f"var(--{VARIABLES[match[0]]})", value)
            element.set(key, re.sub(r"(\.\d\d)\d+", r"\1", value))
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")
