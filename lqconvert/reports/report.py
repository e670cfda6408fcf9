"""The report of a run: sizes, accuracy and latency, measured on the exported files."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lqconvert.data.preprocessing import Front
from lqconvert.exporting.codes import Codes
from lqconvert.reports.settings import RunSettings
from lqconvert.runtime.ethos_u import NpuFigures
from lqconvert.runtime.verify import Verified
from lqconvert.tasks import Score, metric_named
from lqconvert.tflite.packing import DECODE
from lqconvert.training.budget import Point
from lqconvert.utils.compression import deflated
from lqconvert.utils.terminal import Shown, Table
from lqconvert.utils.text import to_json

#: With more classes, the class table is only in the JSON and on the page.
MOST_CLASSES = 20
#: The row or column of latencies, which are measured on this machine.
LATENCY = "latency here"
#: How each type takes pixels whose int8 codes are the pixels minus 128.
PIXELS = {"int8": "pixel - 128", "uint8": "pixel"}
_FRONT_CODE = ["the report's front_code does it in C, Python and Kotlin; x is preprocessed as for the model"]


@dataclass(frozen=True)
class Measured:
    """A .tflite: its size, its deflated size, its test scores, and the median seconds of an inference."""

    size: int
    deflated_bytes: int
    scores: tuple[Score, ...]
    latency_s: float

    @classmethod
    def of(cls, tflite: bytes, scores: tuple[Score, ...], latency: float) -> Measured:
        return cls(len(tflite), deflated(tflite), scores, latency)

    @property
    def score(self) -> float:
        """The first score; NaN if the examples do not define it."""
        return self.scores[0].value if self.scores else math.nan


@dataclass(frozen=True)
class ClassRecall:
    """The share of a class's test examples that are predicted correctly."""

    output: str  # "" if there is only one
    name: str
    examples: int
    float_recall: float
    recall: float  # of the first target's file


@dataclass(frozen=True)
class LayerRow:
    """One weight tensor of the exported file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    granularity: str
    smallest_code: int
    largest_code: int
    codes: int
    entropy: float  # bits per weight
    share_of_bytes: float
    deviation: float  # relative rms error; 0 if the file has the learned codes themselves


@dataclass(frozen=True)
class TargetFile:
    """A file for a target, with its scores on ``examples`` test examples, in the target's runtime."""

    path: str
    scores: tuple[Score, ...]  # empty without data
    float_scores: tuple[Score, ...]  # the float model's on the same examples; empty without a float model
    examples: int
    proven: Verified

    @property
    def score(self) -> float | None:
        """The first score."""
        return self.scores[0].value if self.scores else None

    @property
    def float_score(self) -> float | None:
        return self.float_scores[0].value if self.float_scores else None


@dataclass(frozen=True)
class Exports(Shown):
    """The files made from an earlier run's codes."""

    codes: str
    int8_size: int
    files: list[TargetFile]
    front_code: dict[str, str] | None  # as in a report
    written: list[str]  # all files

    def to_json(self) -> str:
        """As JSON. The first score of each file has an entry of its own, for scripts."""
        fields = dataclasses.asdict(self)
        for file, made in zip(fields["files"], self.files, strict=True):
            file |= {"score": made.score, "float_score": made.float_score}
        return to_json(fields)

    def shown(self) -> Iterator[str | Table]:
        columns = ["target", "bytes", "of int8", "download", LATENCY, "tensor arena"]
        table = Table(*columns, *(f"test {score.label}" for score in self.files[0].scores))
        for file in self.files:
            verified = file.proven
            table.add_row(
                verified.target,
                f"{verified.size:,}",
                f"{verified.size / self.int8_size:.1%}",
                f"{verified.deflated_bytes:,}",
                _latency(verified),
                _arena(verified),
                *(score.text for score in file.scores),
            )
        for file in self.files:
            yield file_table(file.proven)
        yield table
        for file in self.files:
            yield from notes(file)
        if self.front_code is not None:
            yield "your program has to scale the columns of the input: front_code in the JSON has the code"
        yield f"wrote {', '.join(self.written)}"


def _latency(verified: Verified) -> str:
    return _milliseconds(verified.latency_s) + _estimated(verified)


def _milliseconds(seconds: float | None) -> str:
    return "not measured" if seconds is None else f"{1e3 * seconds:.3f} ms"


def _arena(verified: Verified) -> str:
    return f"{verified.arena_bytes:,}{_estimated(verified)}" if verified.arena_bytes else ""


def _estimated(verified: Verified) -> str:
    return "" if verified.npu is None else " (Vela)"


def npu_rows(before: NpuFigures, after: NpuFigures) -> list[list[str]]:
    """The plain int8 file and a file, compiled for an NPU, side by side; the header first."""
    figures = before, after
    return [
        [f"for {after.accelerator}, as Vela reckons", "plain int8", "file"],
        ["compiled file", *(f"{each.size:,}" for each in figures)],
        ["encoded weights", *(f"{each.weight_bytes:,}" for each in figures)],
        ["constants (flash)", *(f"{each.constant_bytes:,}" for each in figures)],
        ["arena (SRAM)", *(f"{each.arena_bytes:,}" for each in figures)],
        ["cycles", *(f"{each.cycles:,}" for each in figures)],
        ["inference", *(f"{1e3 * each.seconds:.3f} ms" for each in figures)],
        ["on the CPU", *(", ".join(each.on_cpu) or "nothing" for each in figures)],
    ]


def file_table(verified: Verified) -> Table:
    """What takes a file's bytes: its kernels, or the parts that an NPU's compiler names."""
    if verified.npu is None or verified.int8_npu is None:
        return kernel_table(verified)
    header, *rows = npu_rows(verified.int8_npu, verified.npu)
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    return table


def kernel_table(verified: Verified) -> Table:
    """How each kernel is stored, with the entropy bound that no code of single weights can beat."""
    columns = ["kernel", "shape", "packing", "int8", "entropy", "stored", "overhead"]
    unpacked = verified.arena_bytes is not None and any(row.unpacked_bytes for row in verified.kernels)
    columns += ["RAM"] if unpacked else []
    table = Table(*columns, title=f"bytes of kernels for {verified.target}", title_justify="left")
    # An LSTM layer has a kernel for each gate.
    for layer, rows in itertools.groupby(verified.kernels, lambda row: row.layer):
        kernels = list(rows)
        shape = "x".join(map(str, kernels[0].shape))
        table.add_row(
            layer,
            shape if len(kernels) == 1 else f"{len(kernels)} of {shape}",
            ", ".join(dict.fromkeys(row.packing for row in kernels)),
            f"{sum(row.int8_bytes for row in kernels):,}",
            f"{sum(row.entropy_bytes for row in kernels):,}",
            f"{sum(row.stored_bytes for row in kernels):,}",
            f"{sum(row.added_bytes for row in kernels):,}",
            *([f"{sum(row.unpacked_bytes for row in kernels):,}"] if unpacked else []),
        )
    return table


def notes(file: TargetFile, plain: str = "int8") -> list[str]:
    """Notes on a file, a line each. ``plain`` is what it is called before it is packed."""
    verified = file.proven
    if not verified.examples:
        return [
            f"{file.path}: not verified in TFLite Micro on this machine, which has no interpreter for it",
            f"  scores are those of the {plain} file in LiteRT",
            f"  operators: {', '.join(verified.operators)}",
        ]
    differ = ", ".join(
        f"{steps} steps with {kernels} kernels" for kernels, steps in verified.deviation.items() if steps
    )
    same = f"outputs differ from the {plain} file by up to {differ}"
    same = same if differ else f"same outputs as the {plain} file"
    lines = [f"{file.path}: {same} on {verified.examples} examples in {verified.runtime}"]
    if file.examples:
        lines[0] += f", scored on {file.examples:,}"
    if verified.npu is not None:
        lines.append(
            f"  compiled by {verified.npu.compiler} for {verified.npu.accelerator}, with the same codes"
        )
    elif verified.arena_bytes is not None:
        lines.append(
            f"  arena: measured on a 64-bit computer, {verified.int8_arena_bytes:,} bytes for plain {plain}"
        )
        lines.append(f"  operators: {', '.join(verified.operators)}")
        if DECODE in verified.operators:
            lines.append(f"  {DECODE} needs a TFLite Micro of 2026 or later: resolver.AddDecode()")
    lines += [f"  not used: {refused}" for refused in verified.refused]
    return lines


@dataclass(frozen=True)
class Report(Shown):
    """All measurements of a run. Scores are of the test split."""

    model: str
    data: str
    splits: dict[str, int]
    settings: RunSettings
    tasks: dict[str, str]  # of the outputs, in words
    criteria: list[str]  # the metrics that the budget limits, in the order of a point's qualities
    float_: Measured
    int8: Measured  # the plain int8 file, from which the others are made, in LiteRT
    files: list[TargetFile]
    agreement_with_graph: float | None  # share of equal top classes; None for models that do not classify
    agreement_with_float: float | None
    max_lsb_from_graph: float  # largest difference from the quantized graph, in steps of the output's scale
    input_types: dict[str, str]  # by name
    inputs: Mapping[str, tuple[float, int]]  # scale and zero point by name; (0, 0) for indices and float32
    front: Front | None  # the scaling of input columns before they are quantized
    front_code: dict[str, str] | None  # code that does it, by language, if the files do not contain the front
    input_shift: float | None  # in pixel steps; 0 is exact, None if the input is not raw pixels
    outputs: Mapping[str, tuple[float, int]]
    float_layers: dict[str, str]  # the layers that compute in float, by name, with a description
    layers: list[LayerRow]
    classes: list[ClassRecall]
    bar: list[float] | None  # the validation qualities that an accuracy budget requires
    best: Point  # the point of the curve that was exported
    curve: list[Point]
    finished: bool  # False if Ctrl-C ended fine-tuning early
    warning: str | None  # if the file is far worse than the float model
    versions: dict[str, str]

    @property
    def ratio(self) -> float:
        """The size of the float32 .tflite divided by that of the first target's file."""
        return self.float_.size / self.files[0].proven.size

    def to_json(self) -> str:
        fields = dataclasses.asdict(self) | {"settings": self.settings.to_dict()}
        fields["float"] = fields.pop("float_")
        # For scripts: the first of several.
        for file, measured in ((fields["float"], self.float_), (fields["int8"], self.int8)):
            file["score"] = measured.score
        for file, made in zip(fields["files"], self.files, strict=True):
            file |= {"score": made.score, "float_score": made.float_score}
        for point in (fields["best"], *fields["curve"]):
            point |= {"score": point["scores"][0], "quality": point["qualities"][0]}
        return to_json(fields | {"score_name": self.score_name, "size_ratio": self.ratio}) + "\n"

    @property
    def score_name(self) -> str:
        """The name of the first score."""
        return self.float_.scores[0].label if self.float_.scores else self.criteria[0]

    def shown(self) -> Iterator[str | Table]:
        layers = Table("layer", "shape", "scales", "codes", "range", "entropy", "share")
        for row in self.layers:
            scales = row.granularity.removesuffix("-wise")
            scales += f", recoded ({row.deviation:.2%} error)" if row.deviation else ""
            layers.add_row(
                row.name,
                "x".join(map(str, row.shape)),
                scales,
                str(row.codes),
                f"{row.smallest_code}..{row.largest_code}",
                f"{row.entropy:.2f}",
                f"{row.share_of_bytes:.1%}",
            )
        yield layers
        for file in self.files:
            yield file_table(file.proven)
        header, *lines = self.comparison()
        table = Table(*header)
        for cells in lines:
            table.add_row(*cells)
        yield table
        recalls = self.class_table()
        if recalls is not None:
            yield recalls
        for file in self.files:
            yield from notes(file, self.settings.plain)
        examples = f"{self.splits['test']:,} test examples"
        graph = "fine-tuned model" if self.settings.epochs else "quantized model"
        if self.agreement_with_graph is not None:
            yield (
                f"{self.settings.plain} gives the same class as the {graph} for "
                f"{self.agreement_with_graph:.2%}, and as the float model for "
                f"{self.agreement_with_float:.2%}, of {examples}"
            )
        else:
            steps = f"{self.max_lsb_from_graph:.1f} steps"
            yield (
                f"{self.settings.plain} differs from the {graph} by at most {steps} of the output's scale, "
                f"on {examples}"
            )
        for name, what in self.float_layers.items():
            yield f"computes in float: '{name}' ({what})"
        yield from self.feeding()
        if any(row.kind == "LSTMStates" for row in self.layers):
            yield from _RESETS

    def comparison(self) -> list[list[str]]:
        """Float, plain int8 and every target's file side by side: a table's rows, the header first."""
        plain = self.settings.plain
        rows = [["", "float32 .tflite", plain, *(file.proven.target for file in self.files)]]
        both, verified = [self.float_, self.int8], [file.proven for file in self.files]
        sizes = [*(each.size for each in both), *(each.size for each in verified)]
        rows.append(["bytes", *(f"{size:,}" for size in sizes)])
        rows.append(["", "", *(f"{self.float_.size / size:.1f}x smaller" for size in sizes[1:])])
        deflated_sizes = [
            *(each.deflated_bytes for each in both),
            *(each.deflated_bytes for each in verified),
        ]
        rows.append(["download", *(f"{size:,}" for size in deflated_sizes)])
        rows += self._score_rows()
        counts = [self.splits["test"]] * 2 + [file.examples for file in self.files]
        if len(set(counts)) > 1:
            rows.append(["of test examples", *(f"{count:,}" for count in counts)])
        times = (f"{1e3 * each.latency_s:.3f} ms" for each in both)
        rows.append([LATENCY, *times, *map(_latency, verified)])
        if any(each.arena_bytes for each in verified):  # not the runtime of the int8 column
            int8_latencies = (f"{plain}: {_milliseconds(each.int8_latency_s)}" for each in verified)
            rows.append(["", "", "", *int8_latencies])
            rows.append(["tensor arena", "", "", *map(_arena, verified)])
        return rows

    def _score_rows(self) -> list[list[str]]:
        """A row for each score. Rows of judged scores have the change in points."""
        rows = []
        for score in self.float_.scores:
            metric, label = metric_named(score.metric), score.label
            scores = self.int8.scores, *(file.scores for file in self.files)
            files = [value_of(label, each) for each in scores]
            floats = [score.value, *(value_of(label, file.float_scores) for file in self.files)]
            rows.append([f"test {label}", score.text, *map(metric.text, files)])
            if label in self.criteria and not metric.error:
                drops = (100 * (after - before) for after, before in zip(files, floats, strict=True))
                rows.append(["", "", *("" if math.isnan(drop) else f"{drop:+.2f} points" for drop in drops)])
        return rows

    def class_table(self) -> Table | None:
        """The recall of each class. Only if classes are uneven, because accuracy does not show it."""
        uneven = any(label.endswith("balanced accuracy") for label in self.criteria)
        if not uneven or len(self.classes) > MOST_CLASSES:
            return None
        table = Table("class", "examples", "float", "file", title="recall", title_justify="left")
        for row in self.classes:
            name = f"{row.output} {row.name}".strip()
            table.add_row(name, f"{row.examples:,}", f"{row.float_recall:.2%}", f"{row.recall:.2%}")
        return table

    def feeding(self) -> list[str]:
        """How to feed the file, with a line for each input."""
        (first, *others), (kind, *_) = self.inputs.items(), self.input_types.values()
        if self.input_shift is not None and kind in PIXELS:
            scale, zero_point = first[1]
            shift = f"; pixels are {abs(self.input_shift):.2g} steps off" if self.input_shift else ""
            return [f"input: {kind} = {PIXELS[kind]} (scale {scale:.6g}, zero point {zero_point}{shift})"]
        if self.front_code is not None:
            return [f"input: {kind}, each column scaled by your program", *_FRONT_CODE]
        lines = []
        for name, (scale, zero_point) in self.inputs.items():
            label, kind = f"input {name}" if others else "input", self.input_types[name]
            shift = f" + {zero_point}" if zero_point else ""
            how = f"{kind} = round(x / {scale:.6g}){shift}" if scale else kind
            how += ", x preprocessed as for the model"
            lines.append(f"{label}: {how if kind != 'int32' else 'indices as they are, int32'}")
        return lines


_RESETS = (
    "The file keeps the state of its LSTM from one run to the next. Reset it before each sequence:",
    "reset_all_variables() in LiteRT, Reset() of TensorFlow Lite Micro's interpreter.",
)


def value_of(label: str, scores: Sequence[Score]) -> float:
    """The score with this label; NaN if there is none because the examples do not define it."""
    return next((score.value for score in scores if score.label == label), math.nan)


def layer_rows(codes: Codes) -> list[LayerRow]:
    sizes = {name: layer.kernel.codes.size for name, layer in codes.layers.items()}
    return [
        LayerRow(
            name,
            layer.kind,
            layer.kernel.codes.shape,
            layer.kernel.granularity,
            int(layer.kernel.codes.min()),
            int(layer.kernel.codes.max()),
            layer.kernel.code_count,
            layer.kernel.entropy,
            sizes[name] / math.fsum(sizes.values()),
            layer.kernel.deviation,
        )
        for name, layer in codes.layers.items()
    ]


def versions() -> dict[str, str]:
    packages = (
        "lqconvert",
        "tensorflow",
        "tf_keras",
        "tensorflow-model-optimization",
        "ai-edge-litert",
        "numpy",
    )
    installed = {name: importlib.metadata.version(name) for name in packages if name != "numpy"}
    return {"python": platform.python_version(), "numpy": np.__version__} | installed
