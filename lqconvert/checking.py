"""Whether a file keeps its budgets, for builds that are to fail where it does not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from rich.text import Text

from lqconvert.deflating import deflated
from lqconvert.errors import CannotRun, LqError, about, without
from lqconvert.flatbuffer import read
from lqconvert.output import Shown
from lqconvert.reading import read_bytes, read_text
from lqconvert.targets import LITERT, TFLM
from lqconvert.text import markdown, to_json, xml

if TYPE_CHECKING:
    from lqconvert.evaluating import Runnable
    from lqconvert.preprocessing import Preprocessing


@dataclass(frozen=True)
class Verdict:
    """One budget: what the file takes or gives, beside what it may or has to."""

    budget: str
    value: float | None  # bytes, or a share; None where there is only a reason
    limit: float | None
    holds: bool
    text: str  # value and limit in words


@dataclass(frozen=True)
class Measurements:
    """What a file measured, as far as it was asked for: what later files are held against."""

    target: str
    size: int  # bytes of the .tflite
    deflated_bytes: int
    arena_bytes: int | None = None
    accuracy: float | None = None  # on the test split
    examples: int | None = None  # of the test split that were run

    def to_json(self) -> str:
        return to_json(dataclasses.asdict(self)) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Measurements:
        """Reads what :meth:`to_json` gave.

        Raises:
            LqError: if the file is not there, or not one of that kind.
        """
        try:
            text = read_text(path)
        except LqError as error:
            raise LqError(f"{error}; --save-baseline writes such a file") from error
        kinds = {"target": str, "size": int, "deflated_bytes": int}
        optional = {"arena_bytes": int, "accuracy": float, "examples": int}
        try:
            fields = json.loads(text)
            required = {name: fields[name] for name in kinds}
            rest = {name: fields.get(name) for name in optional}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise LqError(f"{path}: not what --save-baseline writes") from error
        typed = [isinstance(required[name], kind) for name, kind in kinds.items()]
        typed += [rest[name] is None or isinstance(rest[name], kind) for name, kind in optional.items()]
        if not all(typed):
            raise LqError(f"{path}: not what --save-baseline writes")
        return cls(**required, **rest)


@dataclass(frozen=True)
class Check(Shown):
    """What :func:`check` found."""

    file: str
    measured: Measurements
    verdicts: list[Verdict]

    @property
    def holds(self) -> bool:
        """Whether all budgets hold; so they do where none was given."""
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
        """A table, such as a job summary shows."""
        rows = [
            f"| {'✅' if each.holds else '❌'} | {markdown(each.budget)} | {markdown(each.text)} |"
            for each in self.verdicts
        ]
        return "\n".join([f"| | {markdown(self.file, code=True)} | |", "| --- | --- | --- |", *rows])

    def to_junit(self) -> str:
        """XML as CI servers read it: a test case for each budget."""
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
        # Not "unicode", of which ElementTree says that it is the locale's encoding.
        return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True).decode() + "\n"


def check(
    path: str | Path,
    *,
    target: str | None = None,
    max_size: int | None = None,
    max_ram: int | None = None,
    min_accuracy: float | None = None,
    max_drop: float | None = None,
    baseline: str | Path | None = None,
    against: Measurements | None = None,
    data_spec: str | None = None,
    preprocess: Preprocessing | None = None,
) -> Check:
    """Holds a .tflite against budgets. TensorFlow is imported only where it is scored.

    Args:
        path: a .tflite of any tool.
        target: "litert" or "tflm": that it runs the file is a budget, too, where it is given. By default
            tflm where there is a budget of RAM, and what :func:`lqconvert.evaluate` takes otherwise.
        max_size: bytes of the file.
        max_ram: bytes of TFLite Micro's tensor arena, as measured on this machine.
        min_accuracy: on the test split, 0..1.
        max_drop: points of accuracy that the file may be under ``baseline``, on the same examples, or under
            what ``against`` says.
        baseline: a float model or a .tflite.
        against: what an earlier file measured: neither size nor arena may have grown since.
        data_spec: labelled data; see :func:`lqconvert.load_data`.
        preprocess: see :func:`lqconvert.evaluate`.

    Raises:
        LqError: if a file or the data cannot be read, or a budget cannot be told.
    """
    path, tflite = Path(path), _read(path)
    if max_ram is not None or (against is not None and against.arena_bytes is not None):
        target = target or TFLM.name
    _refuse(target, max_ram, min_accuracy, max_drop, baseline, against, data_spec)
    measured, verdicts = Measurements(target or LITERT.name, len(tflite), deflated(tflite)), []
    if max_size is not None:
        verdicts.append(_at_most("size", len(tflite), max_size, "bytes"))
    if against is not None:
        verdicts.append(_at_most("growth", len(tflite), against.size, "bytes"))
    if target is not None or data_spec is not None:
        # Here, because it takes TensorFlow, which a check of bytes can do without.
        from lqconvert.evaluating import open_file

        try:
            file = open_file(path, target=target)
        except CannotRun as error:
            reason = without(path, error)
            return Check(str(path), measured, [*verdicts, Verdict("runs", None, None, False, reason)])
        measured = dataclasses.replace(measured, target=file.target.name, arena_bytes=file.arena_bytes)
        if target is not None:
            verdicts.append(Verdict("runs", None, None, True, f"on {target}"))
    if measured.arena_bytes is not None:
        limits = {"ram": max_ram, "ram growth": None if against is None else against.arena_bytes}
        verdicts += [
            _at_most(name, measured.arena_bytes, limit, "bytes of arena")
            for name, limit in limits.items()
            if limit is not None
        ]
    if data_spec is not None:
        files = [file] if baseline is None else [file, open_file(baseline)]
        # Of the same examples, where it is held against what another file reached on them.
        count = (
            against.examples if against is not None and max_drop is not None and baseline is None else None
        )
        asked = min_accuracy is not None or max_drop is not None
        accuracies, examples = _accuracies(files, data_spec, preprocess, count, asked=asked)
        if accuracies:
            measured = dataclasses.replace(measured, accuracy=accuracies[0], examples=examples)
        on = f"(on {examples:,} test examples)"
        if min_accuracy is not None:
            words = f"at least {min_accuracy:.2%} {on}"
            verdicts.append(_at_least("accuracy", accuracies[0], min_accuracy, words))
        if max_drop is not None:
            before = accuracies[1] if baseline is not None else against.accuracy if against else None
            if before is None:
                raise LqError("--max-drop: the baseline has no accuracy; save it with --data")
            words = f"at most {max_drop:g} points under {before:.2%} {on}"
            verdicts.append(_at_least("drop", accuracies[0], before - max_drop / 100, words))
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
    min_accuracy: float | None,
    max_drop: float | None,
    baseline: str | Path | None,
    against: Measurements | None,
    data_spec: str | None,
) -> None:
    """Refuses what cannot be told from what was given."""
    if max_ram is not None and target == LITERT.name:
        raise LqError("--max-ram: LiteRT has no arena of a fixed size; it goes with --target tflm")
    if against is not None and target not in (None, against.target):
        raise LqError(f"--against: was saved for {against.target}; save one with --target {target}")
    if data_spec is None and (min_accuracy is not None or max_drop is not None):
        raise LqError("--min-accuracy and --max-drop need --data to score the file on")
    if max_drop is not None and baseline is None and against is None:
        raise LqError(
            "--max-drop: say what from, with --baseline (a model) or --against (of --save-baseline)"
        )


def _accuracies(
    files: list[Runnable],
    data_spec: str,
    preprocess: Preprocessing | None,
    count: int | None,
    *,
    asked: bool,
) -> tuple[list[float], int]:
    """The files' accuracies on the same test examples (``count`` of them, if given), and how many these are.

    Where nobody asked for them there are none without classes: a project may name its data for all commands.
    """
    from lqconvert.evaluating import data_for, measure, preprocessing_of, shared_examples

    data = data_for(files, data_spec)
    if data.labels != "classes":
        if not asked:
            return [], 0
        raise LqError(f"{data_spec}: has no class labels, which accuracy takes")
    if count is not None and count > data.test.size:
        what = f"was scored on {count:,} test examples, {data_spec} has {data.test.size:,}"
        raise LqError(f"--against: {what}; save another with --save-baseline")
    examples = shared_examples(files, data, count)
    scores = [measure(each, data, preprocess or preprocessing_of(each, data), examples)[0] for each in files]
    return [score.score or 0.0 for score in scores], len(examples)


def _at_most(budget: str, value: int, limit: int, unit: str) -> Verdict:
    return Verdict(budget, value, limit, value <= limit, f"{value:,} {unit}, at most {limit:,}")


def _at_least(budget: str, accuracy: float, least: float, words: str) -> Verdict:
    # Shares of the same examples differ by whole examples: what a limit in points rounds to is no drop.
    return Verdict(budget, accuracy, least, accuracy >= least - 1e-9, f"{accuracy:.2%}, {words}")
