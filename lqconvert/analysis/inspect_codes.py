"""What a .codes.npz contains: the codes of every layer, and their packed size on each target."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from lqconvert.analysis.inspect_tflite import dimensions
from lqconvert.errors import LqError
from lqconvert.exporting.codes import Int8File, TensorCodes
from lqconvert.tflite.flatbuffer import read
from lqconvert.tflite.packing import INT8, Kernel, kernels
from lqconvert.tflite.targets import RUNTIMES, Target
from lqconvert.utils.npz import load_npz
from lqconvert.utils.terminal import Shown, Table, narrow


@dataclass(frozen=True)
class CodesRow:
    """The learned codes of a layer's kernel."""

    layer: str
    shape: tuple[int, ...]  # in Keras's layout
    scales: int
    axes: tuple[int, ...]  # along which every index has its own scale
    integers: int  # the number of different integers
    smallest: int
    largest: int
    entropy: float  # bits per weight
    zeros: float  # the share of zeros
    packed: dict[str, tuple[str, int]]  # by target: the smallest packing, and its bytes


@dataclass(frozen=True)
class CodesInspection(Shown):
    file: str
    layers: list[CodesRow]
    weights: int
    entropy_bytes: int
    packed_bytes: dict[str, int]  # by target: of all kernels, before dead channels are removed
    int8_bytes: int | None  # of the int8 file in it; None without such a file
    folds: ClassVar[bool] = True

    def shown(self) -> Iterator[str | Table]:
        stored = "".join(
            f", about {size:,} packed for {target}" for target, size in self.packed_bytes.items()
        )
        yield f"{self.weights:,} weights: {self.entropy_bytes:,} bytes at their entropy{stored}"
        if self.int8_bytes is None:
            yield "no int8 file in it: lqconvert export makes no files of it"
        else:
            yield f"int8 file in it: {self.int8_bytes:,} bytes"
        yield ""
        columns = ["layer", "shape", "scales", "codes", "range", "zeros", "bits/w", *self.packed_bytes]
        table = narrow(*columns)
        for row in self.layers:
            packed = (f"{row.packed[target][1]:,} {row.packed[target][0]}" for target in self.packed_bytes)
            table.add_row(
                row.layer,
                dimensions(row.shape),
                str(row.scales),
                str(row.integers),
                f"{row.smallest}..{row.largest}",
                f"{row.zeros:.1%}",
                f"{row.entropy:.2f}",
                *packed,
            )
        yield table


def inspect_codes(path: Path) -> CodesInspection:
    foreign = LqError(f"{path}: not the .codes.npz that lqconvert quantize writes")
    arrays = load_npz(path)
    int8_file = Int8File.load(path) if "int8.tflite" in arrays else None
    layers = [name.removesuffix("/codes") for name in arrays if name.endswith("/codes")]
    for layer in layers:
        codes = arrays[f"{layer}/codes"]
        if f"{layer}/scale" not in arrays or codes.dtype.kind != "i" or not codes.size:
            raise foreign
    found = [] if int8_file is None else kernels(read(int8_file.tflite))
    order = [] if int8_file is None else int8_file.layers
    if not layers or len(order) != len(found):
        raise foreign
    by_layer = dict(zip(order, found, strict=True))
    rows = [
        _codes_row(layer, arrays[f"{layer}/codes"], arrays[f"{layer}/scale"], by_layer.get(layer))
        for layer in layers
    ]
    targets = [name for name in RUNTIMES if all(name in row.packed for row in rows)]
    return CodesInspection(
        str(path),
        rows,
        sum(math.prod(row.shape) for row in rows),
        round(sum(math.prod(row.shape) * row.entropy for row in rows) / 8),
        {name: sum(row.packed[name][1] for row in rows) for name in targets},
        None if int8_file is None else len(int8_file.tflite),
    )


def _codes_row(layer: str, integers: np.ndarray, scale: np.ndarray, kernel: Kernel | None) -> CodesRow:
    codes = TensorCodes(integers, scale)
    return CodesRow(
        layer,
        integers.shape,
        scale.size,
        tuple(axis for axis, length in enumerate(scale.shape) if length > 1),
        codes.code_count,
        int(integers.min()),
        int(integers.max()),
        codes.entropy,
        float(np.mean(integers == 0)),
        {} if kernel is None else {target.name: _packed(kernel, target) for target in RUNTIMES.values()},
    )


def _packed(kernel: Kernel, target: Target) -> tuple[str, int]:
    """The packing for a target that stores a kernel in the fewest bytes, and these bytes."""
    fitting = [packing.encode(kernel) for packing in target.packings if packing.fits(kernel)]
    sizes = [(stored.packing, stored.size) for stored in fitting if stored is not None]
    return min([(INT8.name, kernel.codes.size), *sizes], key=lambda each: each[1])
