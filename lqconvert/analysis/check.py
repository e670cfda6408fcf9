"""Checks whether a file holds its budgets, so that a build can fail if it does not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from rich.text import Text

from lqconvert.data.arrays import DataLike, data_name
from lqconvert.errors import CannotRun, LqError, about, without
from lqconvert.keras_loader.in_memory import ModelLike
from lqconvert.tasks import Score, Wishes, metric_named
from lqconvert.tflite.flatbuffer import read
from lqconvert.tflite.targets import LITERT, TFLM
from lqconvert.utils.compression import deflated
from lqconvert.utils.input_files import read_bytes, read_text
from lqconvert.utils.terminal import Shown
from lqconvert.utils.text import markdown, to_json, xml

if TYPE_CHECKING:
    from lqconvert.analysis.runnable import Runnable
    from lqconvert.data.preprocessing import Preprocessing


@dataclass(frozen=True)
class Verdict:
    """The result for one budget: the measured value and the limit."""

    budget: str
    value: float | None  # bytes, or a metric; None if there is only a reason
    limit: float | None
    holds: bool
    text: str  # value and limit in words


@dataclass(frozen=True)
class Measurements:
    """The measurements of a file that were asked for. Later files are compared with them."""

    target: str
    size: int  # bytes of the .tflite
    deflated_bytes: int
    arena_bytes: int | None = None
    scores: dict[str, float] = field(default_factory=dict)  # on the test split, by label
    examples: int | None = None  # the number of test examples that were run

    def to_json(self) -> str:
        return to_json(dataclasses.asdict(self)) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Measurements:
        """Reads what :meth:`to_json` wrote.

        Raises:
            LqError: if there is no such file, or its content is something else.
        """
        try:
            text = read_text(path)
        except LqError as error:
            raise LqError(str(error), hint="save_baseline") from error
        kinds = {"target": str, "size": int, "deflated_bytes": int}
        optional = {"arena_bytes": int, "examples": int}
        try:
            fields = json.loads(text)
            required = {name: fields[name] for name in kinds}
            rest = {name: fields.get(name) for name in optional}
            scores = dict(fields.get("scores") or {})
            if fields.get("accuracy") is not None:  # written by an older version
                scores["accuracy"] = fields["accuracy"]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise LqError(f"{path}: not a file of saved measurements", hint="save_baseline") from error
        typed = [isinstance(required[name], kind) for name, kind in kinds.items()]
        typed += [rest[name] is None or isinstance(rest[name], kind) for name, kind in optional.items()]
        typed += [isinstance(score, float) for score in scores.values()]
        if not all(typed):
            raise LqError(f"{path}: not a file of saved measurements", hint="save_baseline")
        return cls(**required, **rest, scores=scores)


@dataclass(frozen=True)
class Check(Shown):
    """What :func:`check` found."""

    file: str
    measured: Measurements
    verdicts: list[Verdict]

    @property
    def holds(self) -> bool:
        """Whether all budgets hold. True if there are none."""
        return all(verdict.holds for verdict in self.verdicts)

    def shown(self) -> Iterator[Text]:
        width = max((len(verdict.budget) for verdict in self.verdicts), default=0)
        for verdict in self.verdicts:
            word, style = ("ok  ", "green") if verdict.holds else ("FAIL", "bold red")
            line = Text(f"{word} {verdict.budget:{width}}  {verdict.text}")
            line.stylize(style, 0, len(word))
            yield line

    def to_json(self) -> str:
        return to_json({"holds": self.holds} | dataclasses.asdict(self))

    def to_markdown(self) -> str:
        """A table, for example for a job summary."""
        rows = [
            f"| {'✅' if each.holds else '❌'} | {markdown(each.budget)} | {markdown(each.text)} |"
            for each in self.verdicts
        ]
        return "\n".join([f"| | {markdown(self.file, code=True)} | |", "| --- | --- | --- |", *rows])

    def to_junit(self) -> str:
        """XML for CI servers, with a test case for each budget."""
        failed = sum(not verdict.holds for verdict in self.verdicts)
        counts = {"tests": str(len(self.verdicts)), "failures": str(failed)}
        suite = ElementTree.Element("testsuite", {"name": "lqconvert check"} | counts)
        for verdict in self.verdicts:
            case = ElementTree.SubElement(suite, "testcase", classname=xml(self.file), name=verdict.budget)
            if verdict.holds:
                ElementTree.SubElement(case, "system-out").text = xml(verdict.text)
            else:
                ElementTree.SubElement(case, "failure", message=xml(verdict.text))
        ElementTree.indent(suite)
        # Not "unicode": ElementTree would declare the locale's encoding.
        return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True).decode() + "\n"


def check(
    file: str | Path,
    *,
    target: str | None = None,
    max_size: int | None = None,
    max_ram: int | None = None,
    limits: dict[str, float] | None = None,
    max_drop: float | None = None,
    baseline: ModelLike | None = None,
    against: Measurements | None = None,
    data: DataLike | None = None,
    preprocess: Preprocessing | None = None,
    wishes: Wishes | None = None,
) -> Check:
    """Checks a .tflite against budgets. Imports TensorFlow only if the file is scored.

    Args:
        file: a .tflite of any tool.
        target: "litert" or "tflm". If given, it is also a budget that this runtime can run the file. By
            default tflm if there is a budget of RAM, and otherwise the default of :func:`lqconvert.evaluate`.
        max_size: bytes of the file.
        max_ram: bytes of TFLite Micro's tensor arena, measured on this machine.
        limits: limits of metrics on the test split, by name ({"accuracy": 0.97, "MAE": 3.0}): lower limits,
            or upper limits for errors. They hold for each output that has the metric.
        max_drop: how many points each judged metric (:mod:`lqconvert.tasks`) may be below ``baseline`` on the
            same examples, or below the value in ``against``.
        baseline: a float model, its file or one in memory, or a .tflite.
        against: the measurements of an earlier file. Size and arena must not have grown since.
        data: labelled data; see :func:`lqconvert.load_data`.
        preprocess, wishes: see :func:`lqconvert.evaluate`.

    Raises:
        LqError: if a file or the data cannot be read, or a budget cannot be checked with them.
    """
    path, tflite = Path(file), _read(file)
    if max_ram is not None or (against is not None and against.arena_bytes is not None):
        target = target or TFLM.name
    least = limits or {}
    _refuse(target, max_ram, least, max_drop, baseline, against, data)
    measured, verdicts = Measurements(target or LITERT.name, len(tflite), deflated(tflite)), []
    if max_size is not None:
        verdicts.append(_at_most("size", len(tflite), max_size, "bytes"))
    if against is not None:
        verdicts.append(_at_most("growth", len(tflite), against.size, "bytes"))
    if target is not None or data is not None:
        # Imported here because it needs TensorFlow, which a check of bytes does not need.
        from lqconvert.analysis.runnable import open_file

        try:
            opened = open_file(path, target=target)
        except CannotRun as error:
            reason = without(path, error)
            return Check(str(path), measured, [*verdicts, Verdict("runs", None, None, False, reason)])
        measured = dataclasses.replace(measured, target=opened.target.name, arena_bytes=opened.arena_bytes)
        if target is not None:
            verdicts.append(Verdict("runs", None, None, True, f"on {target}"))
    if measured.arena_bytes is not None:
        arenas = {"ram": max_ram, "ram growth": None if against is None else against.arena_bytes}
        verdicts += [
            _at_most(name, measured.arena_bytes, arena, "bytes of arena")
            for name, arena in arenas.items()
            if arena is not None
        ]
    if data is not None:
        files = [opened] if baseline is None else [opened, open_file(baseline)]
        # On as many examples as the other file was scored on, if it is compared with that.
        count = (
            against.examples if against is not None and max_drop is not None and baseline is None else None
        )
        asked = bool(least) or max_drop is not None
        scored = _scored(files, data, preprocess, count, wishes, asked=asked)
        if scored is not None:
            own = {score.label: score.value for score in scored.scores[0]}
            measured = dataclasses.replace(measured, scores=own, examples=scored.examples)
            verdicts += _of_limits(least, scored)
        if max_drop is not None and scored is not None:
            before = against.scores if against else {}
            if baseline is not None:
                before = {score.label: score.value for score in scored.scores[1]}
            verdicts += _of_drops(max_drop, before, scored)
    return Check(str(path), measured, verdicts)


def _read(path: str | Path) -> bytes:
    path = Path(path)
    if path.suffix != ".tflite":
        raise LqError(f"{path}: only a .tflite can be checked; lqconvert quantize makes one")
    tflite = read_bytes(path)
    try:
        read(tflite)
    except LqError as error:
        raise LqError(about(path, error)) from error
    return tflite


def _refuse(
    target: str | None,
    max_ram: int | None,
    least: dict[str, float],
    max_drop: float | None,
    baseline: ModelLike | None,
    against: Measurements | None,
    data: DataLike | None,
) -> None:
    """Raises an LqError for a budget that cannot be checked with these arguments."""
    if max_ram is not None and target == LITERT.name:
        raise LqError("RAM cannot be limited on LiteRT: its arena has no fixed size", hint="tflm")
    if against is not None and target not in (None, against.target):
        raise LqError(
            f"the earlier measurements are for {against.target}, not for {target}", hint="save_baseline"
        )
    if data is None and (least or max_drop is not None):
        raise LqError("limits of metrics need data to score the file on", hint="data")
    if max_drop is not None and baseline is None and against is None:
        raise LqError("max_drop needs a model or measurements to compare with", hint="baseline")


@dataclass(frozen=True)
class _Scored:
    """The scores of files on the same test examples."""

    scores: list[tuple[Score, ...]]
    examples: int
    judged: list[str]  # labels of the scores that budgets limit


def _scored(
    files: list[Runnable],
    data: DataLike,
    preprocess: Preprocessing | None,
    count: int | None,
    wishes: Wishes | None,
    *,
    asked: bool,
) -> _Scored | None:
    """The files' scores on the same test examples (``count`` of them, if given).

    Outputs without labels are compared with the second file's outputs. If there is no second file, and no
    score is limited, there are no scores: a project may set its data for all commands.
    """
    from lqconvert.analysis.evaluate import data_for, measure, preprocessing_of, shared_examples
    from lqconvert.analysis.runnable import aligned

    files = aligned(files)
    loaded, name = data_for(files, data, wishes), data_name(data)
    if not loaded.labelled and len(files) == 1:
        if not asked:
            return None
        raise LqError(f"{name}: has no labels to score by")
    if count is not None and count > loaded.test.size:
        what = f"are of {count:,} test examples, but {name} has {loaded.test.size:,}"
        raise LqError(f"the earlier measurements {what}", hint="save_baseline")
    examples = shared_examples(files, loaded, count)
    ways = [preprocess or preprocessing_of(each, loaded) for each in files]
    outputs = [measure(each, loaded, way, examples)[1] for each, way in zip(files, ways, strict=True)]
    teacher = outputs[1] if len(files) > 1 else None  # outputs without labels are compared with it
    scores = [loaded.heads.scores(each, loaded.test.y[examples], teacher) for each in outputs]
    return _Scored(scores, len(examples), loaded.heads.criterion_labels)


def _of_limits(limits: dict[str, float], scored: _Scored) -> list[Verdict]:
    verdicts, on = [], f"(on {scored.examples:,} test examples)"
    for name, limit in limits.items():
        metric = metric_named(name)
        own = [score for score in scored.scores[0] if score.metric == name]
        if not own:
            there = ", ".join(score.label for score in scored.scores[0])
            raise LqError(f"{name} is not measured on such data, but {there}")
        for score in own:
            words = f"{score.text}, at {'most' if metric.error else 'least'} {metric.text(limit)} {on}"
            # Scores of the same examples differ by whole examples, so a rounded limit is no drop.
            holds = score.value <= limit + 1e-9 if metric.error else score.value >= limit - 1e-9
            verdicts.append(Verdict(score.label, score.value, limit, holds, words))
    return verdicts


def _of_drops(max_drop: float, before: dict[str, float], scored: _Scored) -> list[Verdict]:
    verdicts, several = [], len(scored.judged) > 1
    known = {score.label: score for score in scored.scores[0]}
    for label in scored.judged:
        if label not in known:
            raise LqError(
                f"the drop of {label} cannot be measured: the data have no labels for it",
                hint="baseline_model",
            )
        score = known[label]
        if score.label not in before:
            raise LqError(f"the earlier measurements have no {score.label}", hint="save_data")
        metric, was = metric_named(score.metric), before[score.label]
        if metric.error:
            raise LqError(
                f"{score.metric} has no percentage points, so its drop has no limit", hint=metric.option
            )
        least = was - max_drop / 100
        words = f"at most {max_drop:g} points under {metric.text(was)} (on {scored.examples:,} test examples)"
        name = f"drop of {score.label}" if several else "drop"
        verdicts.append(
            Verdict(name, score.value, least, score.value >= least - 1e-9, f"{score.text}, {words}")
        )
    return verdicts


def _at_most(budget: str, value: int, limit: int, unit: str) -> Verdict:
    return Verdict(budget, value, limit, value <= limit, f"{value:,} {unit}, at most {limit:,}")
