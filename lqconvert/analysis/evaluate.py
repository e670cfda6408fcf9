"""Measures a file, a .tflite of any tool or a float model, in the runtime that executes it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lqconvert.analysis.inspect_tflite import dimensions
from lqconvert.analysis.runnable import Runnable, aligned, open_file, plain_name
from lqconvert.data.arrays import DataLike, data_name
from lqconvert.data.dataset import Data, as_numpy
from lqconvert.data.preprocessing import PREPROCESSINGS, Choice, Preprocessing, choose_preprocessing
from lqconvert.data.sources import load_data
from lqconvert.errors import LqError
from lqconvert.keras_loader.in_memory import ModelLike
from lqconvert.runtime.verify import examples_in
from lqconvert.tasks import Score, Wishes
from lqconvert.tflite.flatbuffer import read
from lqconvert.tflite.interface import code_range
from lqconvert.utils.compression import deflated
from lqconvert.utils.terminal import Shown, Table
from lqconvert.utils.text import to_json

#: Operators that look up rows, and the position of the indices among their inputs.
LOOKUPS = {"GATHER": 1, "EMBEDDING_LOOKUP": 0}


@dataclass(frozen=True)
class Evaluation(Shown):
    """The measurements of a file. Latency and arena are those of this machine."""

    file: str
    target: str
    runtime: str  # package and version
    size: int  # bytes of the .tflite; for a Keras model, of its float32 .tflite
    deflated_bytes: int
    scores: tuple[Score, ...]  # on the test split; empty without labels
    examples: int  # the number of examples that it was scored on
    preprocess: str
    latency_s: float
    arena_bytes: int | None  # None for LiteRT, which has no arena of a fixed size

    @property
    def score(self) -> float | None:
        """The first score."""
        return self.scores[0].value if self.scores else None

    def to_json(self) -> str:
        """As JSON. The first score has an entry of its own, for scripts."""
        first = {"score": self.score, "score_name": self.scores[0].label if self.scores else ""}
        return to_json(dataclasses.asdict(self) | first)

    def shown(self) -> Iterator[str | Table]:
        table = Table("", self.file)
        table.add_row("bytes", f"{self.size:,}")
        table.add_row("download", f"{self.deflated_bytes:,}")
        for score in self.scores:
            table.add_row(f"test {score.label}", score.text)
        table.add_row("of test examples", f"{self.examples:,}")
        table.add_row("preprocessing", self.preprocess)
        table.add_row("latency here", f"{1e3 * self.latency_s:.3f} ms")
        if self.arena_bytes:
            table.add_row("tensor arena", f"{self.arena_bytes:,}")
        table.add_row("runtime", self.runtime)
        yield table


def evaluate(
    file: ModelLike,
    data: DataLike,
    *,
    target: str | None = None,
    preprocess: Preprocessing | None = None,
    wishes: Wishes | None = None,
    input_shape: tuple[int, ...] | None = None,
    trust_model: bool = False,
) -> Evaluation:
    """Measures a .tflite, or the float32 .tflite of a Keras model, on the test split.

    Args:
        file: a .tflite of any tool, or a Keras model: its file, or one in memory.
        data: labelled data, see :func:`lqconvert.load_data`.
        target: "litert" or "tflm". By default litert, unless only TFLite Micro can run the file.
        preprocess: the model's preprocessing. By default, for a quantized input the one with which pixels
            fill its range; otherwise the one with the best score on the validation split. None is used if the
            data are no pixels and every preprocessing is no better than chance.
        wishes: the user's choices of tasks and metrics.
        input_shape, trust_model: see :func:`lqconvert.load_model`.

    Raises:
        LqError: if the file or the data cannot be read, do not fit together, or the target cannot run the
            file.
    """
    (opened,) = aligned([open_file(file, target=target, input_shape=input_shape, trust_model=trust_model)])
    loaded = data_for([opened], data, wishes)
    if not loaded.labelled:
        raise LqError(f"{data_name(data)}: has no labels to score by")
    preprocess = preprocess or preprocessing_of(opened, loaded)
    return measure(opened, loaded, preprocess, shared_examples([opened], loaded))[0]


def data_for(files: Sequence[Runnable], data: DataLike, wishes: Wishes | None = None) -> Data:
    """The data set, loaded for files with equal inputs and outputs."""
    first, *others = files
    for other in others:
        if _ports(other) != _ports(first):
            raise LqError(
                f"{other.name} has {_ports(other)}, {first.name} has {_ports(first)}: no data fit both"
            )
    shapes = {plain_name(name): shape for name, shape in first.interface.input_shapes.items()}
    if len(shapes) < len(first.interface.inputs):
        raise LqError(f"{first.name}: its inputs have no names, so the data cannot be assigned to them")
    loaded = load_data(data, shapes, first.outputs, wishes)
    if any(head.task == "reconstruction" for head in loaded.heads):
        loaded = loaded.retargeted(_choose(first, loaded).target)
    return loaded


def _ports(file: Runnable) -> str:
    """A file's inputs and outputs, in words. Names count if there are several inputs."""
    shapes = file.interface.input_shapes
    inputs = [
        f"{plain_name(name)} {dimensions(shape)}" if len(shapes) > 1 else dimensions(shape)
        for name, shape in shapes.items()
    ]
    return f"inputs {', '.join(inputs)} and {file.interface.output_units} outputs"


def preprocessing_of(file: Runnable, data: Data) -> Preprocessing:
    """The preprocessing for a file's inputs, see :func:`evaluate`."""
    details = file.interface.inputs
    scale, zero_point = details[0]["quantization"]
    if len(details) > 1 or _index_inputs(file):
        return Preprocessing()
    if scale and data.integer_pixels:
        low, high = ((code - zero_point) * scale for code in code_range(details[0]))
        for known in PREPROCESSINGS.values():
            ends = known.offset, 255 * known.scale + known.offset
            if np.allclose(ends, (low, high), atol=2 * scale):
                return known
    if not data.labelled:
        return Preprocessing()
    try:
        return _choose(file, data).preprocessing
    except LqError:  # no better than chance: perhaps the model is bad, which its score will show
        if data.integer_pixels:
            raise
        return Preprocessing()


def _choose(file: Runnable, data: Data) -> Choice:
    samples = examples_in(file.target, len(PREPROCESSINGS) * file.latency_s, 2000)
    return choose_preprocessing(file.predict, data, samples=samples)


def fed(file: Runnable, data: Data, preprocess: Preprocessing) -> Preprocessing:
    """The preprocessing with which pixels become the codes that devices feed to a quantized input."""
    first = file.interface.inputs[0]
    scale, zero_point = first["quantization"]
    if not data.integer_pixels or not scale or not math.isclose(scale, preprocess.scale, rel_tol=1e-3):
        return preprocess
    return preprocess.off_ties(zero_point, code_range(first)[0])


def _index_inputs(file: Runnable) -> list[str]:
    """The inputs of a file that are looked up, or that take integers without a scale."""
    graph = read(file.tflite).main
    inputs = {index: place for place, index in enumerate(graph.inputs)}  # and the tensors they are cast to
    looked_up = set()
    for operator in graph.operators:
        name, operands = operator.name, operator.inputs
        if name in LOOKUPS and len(operands) > 1 and operands[LOOKUPS[name]] in inputs:
            looked_up.add(inputs[operands[LOOKUPS[name]]])
        elif name in ("CAST", "RESHAPE") and operands and operands[0] in inputs and len(operator.outputs):
            inputs[operator.outputs[0]] = inputs[operands[0]]
    return [
        detail["name"]
        for place, detail in enumerate(file.interface.inputs)
        if place in looked_up
        or (not detail["quantization"][0] and np.issubdtype(detail["dtype"], np.integer))
    ]


def shared_examples(files: Sequence[Runnable], data: Data, count: int | None = None) -> np.ndarray:
    """Indices of this many test examples, or of all on which the files can be scored.

    If one of the files is slow, they are a random part.
    """
    count = count or min(examples_in(file.target, file.latency_s, data.test.size) for file in files)
    return np.sort(np.random.default_rng(0).permutation(data.test.size)[:count])


def measure(
    file: Runnable, data: Data, preprocess: Preprocessing, examples: np.ndarray
) -> tuple[Evaluation, np.ndarray]:
    """The measurements of a file on test examples, and its outputs."""
    preprocess.refuse_indices(_index_inputs(file))
    part = data.test.pick(examples)
    batches = part.batches(256, preprocessing=fed(file, data, preprocess))
    outputs = file.predict(as_numpy(x) for _, x, _ in batches)
    head = data.heads.single
    if head is not None and head.classifies:  # files of other tools may have axes of length 1 in front
        outputs = outputs.reshape(len(outputs), -1)
        if outputs.shape[1] != file.interface.output_units:
            raise LqError(
                f"{file.name}: gives more than one answer for an example; {data.name} has one label"
            )
    evaluation = Evaluation(
        file.name,
        file.target.name,
        file.target.runtime,
        len(file.tflite),
        deflated(file.tflite),
        data.heads.scores(outputs, part.y, None),
        len(examples),
        str(preprocess),
        file.latency_s,
        file.arena_bytes,
    )
    return evaluation, outputs
