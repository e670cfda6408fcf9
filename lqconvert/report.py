"""What was gained and what was lost, measured on the exported file."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import platform
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lqconvert.budget import Point
from lqconvert.codes import Codes
from lqconvert.packing import deflated


@dataclass(frozen=True)
class Measured:
    """One .tflite: its bytes as they are and deflated, its test score and median seconds an inference."""

    size: int
    deflated_bytes: int
    score: float
    latency_s: float

    @classmethod
    def of(cls, tflite: bytes, score: float, latency: float) -> Measured:
        return cls(len(tflite), deflated(tflite), score, latency)


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
    deviation: float  # rms, relative; 0 where the file holds the learned codes themselves


@dataclass(frozen=True)
class Report:
    """All that one run measured. Scores are of the test split; errors are negative scores."""

    model: str
    data: str
    splits: dict[str, int]
    settings: dict[str, Any]
    score_name: str
    float_: Measured
    exported: Measured
    agreement_with_graph: float | None  # of the top class; None for models that do not classify
    agreement_with_float: float | None
    max_lsb_from_graph: float  # largest difference from the fine-tuned graph, in steps of the output scale
    input_quantization: tuple[float, int]
    input_shift: float | None  # in pixel steps; 0 is exact, None where the input is not raw pixels
    output_quantization: tuple[float, int]
    layers: list[LayerRow]
    bar: float | None  # the quality on the validation split that a budget of accuracy asked for
    best: Point  # of the curve: the point that was exported
    curve: list[Point]
    finished: bool  # False where Ctrl-C ended fine-tuning early
    versions: dict[str, str]

    @property
    def ratio(self) -> float:
        """How many times smaller the exported file is than the float32 .tflite."""
        return self.float_.size / self.exported.size

    def to_json(self) -> str:
        fields = dataclasses.asdict(self)
        fields["float"] = fields.pop("float_")
        return json.dumps(fields | {"size_ratio": self.ratio}, indent=2) + "\n"

    def print(self, console: Console) -> None:
        layers = Table("layer", "shape", "scales", "codes", "range", "bits/w", "bytes")
        for row in self.layers:
            scales = row.granularity.removesuffix("-wise")
            scales += f", recoded ({row.deviation:.2%} off)" if row.deviation else ""
            layers.add_row(
                row.name,
                "x".join(map(str, row.shape)),
                scales,
                str(row.codes),
                f"{row.smallest_code}..{row.largest_code}",
                f"{row.entropy:.2f}",
                f"{row.share_of_bytes:.1%}",
            )
        table = Table("", "float32 .tflite", "exported", "")
        rate = self.float_.deflated_bytes / self.exported.deflated_bytes
        table.add_row("bytes", f"{self.float_.size:,}", f"{self.exported.size:,}", f"{self.ratio:.2f}x")
        table.add_row(
            "deflated", f"{self.float_.deflated_bytes:,}", f"{self.exported.deflated_bytes:,}", f"{rate:.2f}x"
        )
        before, after = self.float_.score, self.exported.score
        if self.score_name == "accuracy":
            change = f"{100 * (after - before):+.2f} points"
            table.add_row("test accuracy", f"{before:.2%}", f"{after:.2%}", change)
        else:
            table.add_row(self.score_name, f"{-before:.4g}", f"{-after:.4g}", "")
        speed = self.float_.latency_s / self.exported.latency_s
        table.add_row(
            "latency",
            f"{1e3 * self.float_.latency_s:.3f} ms",
            f"{1e3 * self.exported.latency_s:.3f} ms",
            f"{speed:.2f}x",
        )
        console.print(layers)
        console.print(table)
        examples = f"on {self.splits['test']:,} test examples"
        if self.agreement_with_graph is not None:
            console.print(
                f"top-1 agreement with the fine-tuned graph {self.agreement_with_graph:.2%}, "
                f"with the float model {self.agreement_with_float:.2%}, {examples}"
            )
        else:
            console.print(
                f"at most {self.max_lsb_from_graph:.1f} output steps from the fine-tuned graph, {examples}"
            )
        console.print(self._input())

    def _input(self) -> str:
        """How to feed the file."""
        scale, zero_point = self.input_quantization
        if self.input_shift is None:
            return f"input: int8 = round(x / {scale:.6g}) + {zero_point}, x preprocessed as for the model"
        shift = f"; the pixels count as {abs(self.input_shift):.2g} steps off" if self.input_shift else ""
        return f"input: int8 = pixel - 128 (scale {scale:.6g}, zero point {zero_point}{shift})"


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
