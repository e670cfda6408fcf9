"""What a run would do: answered before it trains, and without writing anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lqconvert.analysis.inspect import ModelInspection, describe, quantized_rows
from lqconvert.analysis.inspect_tflite import dimensions
from lqconvert.exporting.export import learned_codes
from lqconvert.keras_loader.config_checks import read_config
from lqconvert.pipeline.prepare import prepare
from lqconvert.utils.terminal import Shown, Table


@dataclass(frozen=True)
class PlannedFile:
    """A file that would be written, and whether there is one of that name to be replaced."""

    path: str
    exists: bool


@dataclass(frozen=True)
class Plan(Shown):
    """What :func:`lqconvert.quantize` would do."""

    model: ModelInspection
    data: str
    splits: dict[str, int]
    tasks: dict[str, str]  # of the outputs, in words
    inputs: dict[str, tuple[int, ...]]  # their shapes, without the batch
    budget: str  # of the file, in words, and what it may take on its targets
    limits: str
    settings: dict[str, Any]  # as the report will have them
    steps: int
    targets: list[str]
    resumes: str | None  # the checkpoint of an interrupted run that it goes on from
    discards: str | None  # or that it starts over without
    files: list[PlannedFile]

    def shown(self) -> Iterator[str | Table]:
        yield from self.model.shown()
        splits = ", ".join(f"{size:,} {name}" for name, size in self.splits.items())
        yield f"data: {self.data}, {splits} examples"
        for name, task in self.tasks.items():
            yield f"output {name}: {task}"
        for name, shape in self.inputs.items():
            yield f"input {name}: {dimensions(shape)}"
        settings = self.settings
        yield f"preprocessing: {settings['preprocess']}, augmentation: {settings['augmentation']}"
        yield f"budget: {self.budget}; limits: {self.limits}; target: {', '.join(self.targets)}"
        scheme = f"scheme: {settings['scheme']['name']}, scales: {settings['granularity']}"
        minutes = settings["max_minutes"]
        until = "" if minutes is None else f", {minutes:g} minutes at most"
        yield f"{scheme}, epochs: {settings['epochs']}, steps: {self.steps:,}{until}"
        if self.resumes:
            yield f"goes on from {self.resumes}"
        if self.discards:
            yield f"starts over, and loses {self.discards}; --resume goes on from it"
        for file in self.files:
            yield f"{'replaces' if file.exists else 'writes'} {file.path}"


def plan(
    model_path: str | Path,
    data_spec: str,
    output: str | Path,
    **settings: Any,
) -> Plan:
    """Says what :func:`lqconvert.quantize` would do, without training and without writing.

    Args:
        settings: those of :func:`lqconvert.quantize`.

    Raises:
        LqError: where quantize would refuse before training.
    """
    ready = prepare(model_path, data_spec, output, **settings)
    data, paths, model = ready.data, ready.paths, ready.model
    rows = quantized_rows(ready.quantized, model, read_config(Path(model_path))[0])
    tflite = ready.template.fill(learned_codes(ready.quantized))
    checkpoint = str(paths.checkpoint) if paths.checkpoint.exists() else None
    return Plan(
        model=describe(Path(model_path), model, rows, tflite),
        data=data.name,
        splits=data.sizes,
        tasks={head.output.name: head.describe() for head in data.heads},
        inputs={name: tuple(x.shape[1:]) for name, x in zip(model.input_names, model.inputs, strict=True)},
        budget=str(ready.budget),
        limits=str(ready.limits),
        settings=ready.settings,
        steps=ready.steps,
        targets=list(dict.fromkeys(paths.targets)),
        resumes=checkpoint if ready.checkpoint else None,
        discards=None if ready.checkpoint else checkpoint,
        files=[PlannedFile(str(path), path.exists()) for path in paths.all()],
    )
