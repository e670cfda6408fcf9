"""Compares files on the same examples, each in its own runtime."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lqconvert.analysis.evaluate import (
    Evaluation,
    data_for,
    fed,
    measure,
    preprocessing_of,
    shared_examples,
)
from lqconvert.analysis.inspect_tflite import dimensions
from lqconvert.analysis.runnable import Runnable, aligned, open_file
from lqconvert.data.arrays import DataLike
from lqconvert.data.dataset import Data, as_numpy
from lqconvert.data.preprocessing import Preprocessing
from lqconvert.errors import LqError
from lqconvert.keras_loader.in_memory import ModelLike
from lqconvert.metrics import agreement
from lqconvert.runtime.layer_snr import LayerNoise, decibels, layer_noise
from lqconvert.tasks import Wishes
from lqconvert.utils.terminal import Shown, Table
from lqconvert.utils.text import to_json

#: The number of examples on which the noise of layers is measured.
NOISE_EXAMPLES = 64


@dataclass(frozen=True)
class Compared:
    """The measurements of a file, and its differences from the first file."""

    evaluation: Evaluation
    agreement: float | None  # share of equal top classes; None without classes, and for the first
    snr_db: float | None  # of the outputs, with the first file's as the signal; None for the first file
    layers: list[LayerNoise]  # of the first file's layers; empty if one of both runs in TFLite Micro only


@dataclass(frozen=True)
class Comparison(Shown):
    """The result of :func:`compare`, in the order of the files."""

    data: str
    files: list[Compared]

    def to_json(self) -> str:
        """As JSON, with an infinite ratio as "inf"."""
        return to_json(_finite(dataclasses.asdict(self)))

    def shown(self) -> Iterator[str | Table]:
        first, files = self.files[0].evaluation, [each.evaluation for each in self.files]
        table = Table("", *(file.file for file in files))
        for column in table.columns:
            column.overflow = "fold"
        table.add_row("bytes", *(f"{file.size:,}" for file in files))
        table.add_row("ratio", *(f"{first.size / file.size:.1f}x" for file in files))
        table.add_row("download", *(f"{file.deflated_bytes:,}" for file in files))
        for place, score in enumerate(first.scores):
            table.add_row(score.label, *(file.scores[place].text for file in files))
        table.add_row("agrees", *map(_likeness, self.files))
        table.add_row("latency", *(f"{1e3 * file.latency_s:.3f} ms" for file in files))
        if any(file.arena_bytes for file in files):
            arenas = (f"{file.arena_bytes:,}" if file.arena_bytes else "" for file in files)
            table.add_row("arena", *arenas)
        yield table
        for table in self._layers():
            yield table
        yield f"on {first.examples:,} test examples of {self.data}; preprocessing and runtime:"
        for each in self.files:
            yield f"  {each.evaluation.file}: {each.evaluation.preprocess}, {each.evaluation.runtime}"

    def _layers(self) -> list[Table]:
        """The noise of the layers, with a column for each file that has it."""
        numbered = [(number, each) for number, each in enumerate(self.files, 1) if each.layers]
        if not numbered:
            return []
        table = Table(
            "layer",
            "output",
            *(f"file {number}" for number, _ in numbered),
            title="dB of signal to noise, against file 1",
            title_justify="left",
        )
        for place, layer in enumerate(numbered[0][1].layers):
            ratios = (_text(each.layers[place].snr_db) for _, each in numbered)
            table.add_row(layer.name, dimensions(layer.shape), *ratios)
        return [table]


def compare(
    files: Sequence[ModelLike],
    data: DataLike,
    *,
    preprocess: Preprocessing | None = None,
    wishes: Wishes | None = None,
    input_shape: tuple[int, ...] | None = None,
    trust_model: bool = False,
) -> Comparison:
    """Measures files on the same test examples, and compares each with the first.

    Args:
        files: two or more .tflite files of any tools, or Keras models, files or in memory (which run as
            float32 .tflite).
        data: see :func:`lqconvert.load_data`. Without labels there are no scores.
        preprocess: for all files. By default it is detected for each file (see :func:`lqconvert.evaluate`).
        wishes, input_shape, trust_model: see :func:`lqconvert.evaluate`.

    Raises:
        LqError: if a file or the data cannot be read or run, or do not fit together.
    """
    opened = aligned([open_file(file, input_shape=input_shape, trust_model=trust_model) for file in files])
    loaded = data_for(opened, data, wishes)
    examples = shared_examples(opened, loaded)
    wanted = [preprocess or preprocessing_of(file, loaded) for file in opened]
    measured = [measure(file, loaded, how, examples) for file, how in zip(opened, wanted, strict=True)]
    reference = measured[0][1]
    classifies = loaded.heads.single is not None and loaded.heads.single.classifies
    compared = []
    for number, (evaluation, outputs) in enumerate(measured):
        if outputs.shape != reference.shape:
            raise LqError(f"the outputs of {opened[number].name} and {opened[0].name} have different shapes")
        both = [(opened[0], wanted[0]), (opened[number], wanted[number])]
        compared.append(
            Compared(
                evaluation,
                agreement(outputs, reference) if number and classifies else None,
                decibels(np.sum(reference**2), np.sum((reference - outputs) ** 2)) if number else None,
                _noise(both, loaded, examples[:NOISE_EXAMPLES]) if number else [],
            )
        )
    return Comparison(loaded.name, compared)


def _noise(
    pair: Sequence[tuple[Runnable, Preprocessing]], data: Data, examples: np.ndarray
) -> list[LayerNoise]:
    if any(file.target.is_micro for file, _ in pair):
        return []
    part = data.test.pick(examples)
    inputs = [
        as_numpy(x)
        for file, how in pair
        for _, x, _ in part.batches(NOISE_EXAMPLES, preprocessing=fed(file, data, how))
    ]
    return layer_noise(pair[0][0].tflite, pair[1][0].tflite, *inputs)


def _likeness(file: Compared) -> str:
    """The similarity to the first file's outputs: the share of equal answers, or a ratio in decibels."""
    if file.agreement is not None:
        return f"{file.agreement:.2%}"
    if file.snr_db is None or file.snr_db == math.inf:
        return _text(file.snr_db)
    return f"{_text(file.snr_db)} dB"


def _text(snr: float | None) -> str:
    if snr is None:
        return ""
    return "same" if snr == math.inf else f"{snr:.1f}"


def _finite(value: object) -> object:
    """The same value, with text for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
