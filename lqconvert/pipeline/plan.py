"""What a run would do, without training and without writing a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lqconvert.analysis.inspect import ModelInspection, describe, quantized_rows
from lqconvert.analysis.inspect_tflite import dimensions
from lqconvert.data.arrays import DataLike
from lqconvert.exporting.export import learned_codes
from lqconvert.keras_loader.in_memory import ModelLike, default_output, model_name
from lqconvert.keras_loader.load import model_config
from lqconvert.pipeline.prepare import input_shapes, prepare
from lqconvert.pipeline.settings import Settings
from lqconvert.reports.settings import RunSettings
from lqconvert.utils.terminal import Shown, Table
from lqconvert.utils.text import to_json

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lqconvert.pipeline.settings import QuantizeKeywords


@dataclass(frozen=True)
class PlannedFile:
    """A file that would be written, and whether it would replace an existing one."""

    path: str
    exists: bool


@dataclass(frozen=True)
class Plan(Shown):
    """What :func:`lqconvert.quantize` would do."""

    model: ModelInspection
    data: str
    splits: dict[str, int]
    tasks: dict[str, str]  # of the outputs, in words
    inputs: dict[str, tuple[int, ...]]  # their shapes, without the batch axis
    budget: str  # the budget, in words
    limits: str
    settings: RunSettings  # as in the report
    steps: int
    targets: list[str]
    resumes: str | None  # the checkpoint of the interrupted run that would be continued
    discards: str | None  # or the checkpoint that would be lost
    files: list[PlannedFile]

    def to_json(self) -> str:
        return to_json(dataclasses.asdict(self) | {"settings": self.settings.to_dict()})

    def shown(self) -> Iterator[str | Table]:
        yield from self.model.shown()
        splits = ", ".join(f"{size:,} {name}" for name, size in self.splits.items())
        yield f"data: {self.data}, {splits} examples"
        for name, task in self.tasks.items():
            yield f"output {name}: {task}"
        for name, shape in self.inputs.items():
            yield f"input {name}: {dimensions(shape)}"
        settings = self.settings
        yield f"preprocessing: {settings.preprocess}, augmentation: {settings.augmentation}"
        yield f"budget: {self.budget}; limits: {self.limits}; target: {', '.join(self.targets)}"
        scheme = f"scheme: {settings.scheme.name}, scales: {settings.granularity}"
        minutes = settings.max_minutes
        until = "" if minutes is None else f", {minutes:g} minutes at most"
        yield f"{scheme}, epochs: {settings.epochs}, steps: {self.steps:,}{until}"
        if self.resumes:
            yield f"continues from {self.resumes}"
        if self.discards:
            yield f"starts over and loses {self.discards}, from which resume would continue"
        for file in self.files:
            yield f"{'replaces' if file.exists else 'writes'} {file.path}"


def plan(
    model: ModelLike,
    data: DataLike,
    output: str | Path | None = None,
    *,
    settings: Settings | None = None,
    resume: bool = False,
    **keywords: Unpack[QuantizeKeywords],
) -> Plan:
    """Returns what :func:`lqconvert.quantize` would do, without training and without writing a file.

    Args: those of :func:`lqconvert.quantize`.

    Raises:
        LqError: if quantize would refuse the arguments before training.
    """
    output = default_output(model, ".tflite") if output is None else output
    ready = prepare(model, data, output, Settings.of(keywords, settings), resume=resume)
    paths, loaded = ready.paths, ready.model
    rows = quantized_rows(ready.quantized, loaded, model_config(model))
    tflite = ready.template.fill(learned_codes(ready.quantized))
    checkpoint = str(paths.checkpoint) if paths.checkpoint.exists() else None
    return Plan(
        model=describe(model_name(model), loaded, rows, tflite),
        data=ready.data.name,
        splits=ready.data.sizes,
        tasks={head.output.name: head.describe() for head in ready.data.heads},
        inputs=input_shapes(loaded),
        budget=str(ready.settings.budget),
        limits=str(ready.settings.limits),
        settings=ready.settings,
        steps=ready.finetuning.steps,
        targets=list(dict.fromkeys(paths.targets)),
        resumes=checkpoint if ready.checkpoint else None,
        discards=None if ready.checkpoint else checkpoint,
        files=[PlannedFile(str(path), path.exists()) for path in paths.all()],
    )
