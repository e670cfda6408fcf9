"""Compiles int8 files for Arm's Ethos-U with Arm's compiler Vela, and takes its figures."""

from __future__ import annotations

import csv
import functools
import importlib.metadata
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lqconvert.errors import LqError
from lqconvert.tflite.command_stream import ETHOS_U
from lqconvert.tflite.flatbuffer import read
from lqconvert.tflite.targets import VELA_PACKAGE
from lqconvert.utils.worker import ended_by, run_module

#: Seconds after which Vela is ended.
TIMEOUT = 900


@dataclass(frozen=True)
class NpuFigures:
    """A compiled file, in figures. Cycles and seconds are Vela's estimates for its default system.

    Attributes:
        size: bytes of the compiled file.
        weight_bytes: of the encoded weights.
        constant_bytes: of all constants (encoded weights, biases, scales, tables): Vela's flash.
        arena_bytes: of the memory to compute in: Vela's SRAM.
        cycles, seconds: of an inference.
        on_cpu: the operators that the NPU does not execute.
    """

    accelerator: str
    compiler: str
    size: int
    weight_bytes: int
    constant_bytes: int
    arena_bytes: int
    cycles: int
    seconds: float
    on_cpu: list[str]


@dataclass(frozen=True)
class Compiled:
    """A compiled file and its figures."""

    tflite: bytes
    figures: NpuFigures


@functools.lru_cache(maxsize=8)
def compiled(tflite: bytes, accelerator: str) -> Compiled:
    """An int8 file compiled for an accelerator, by Vela's name of it.

    Raises:
        LqError: with Vela's reason, if it refuses the file.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.tflite"
        model.write_bytes(tflite)
        try:
            child = run_module("runtime.vela_worker", model, folder, accelerator, timeout=TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise LqError(f"Vela did not finish in {TIMEOUT} seconds") from error
        made = folder / "model_vela.tflite"
        tables = list(folder.glob("model_summary_*.csv"))
        if child.returncode or not made.exists() or len(tables) != 1:
            lines = [line.strip() for line in (child.stdout + child.stderr).splitlines() if line.strip()]
            reason = (
                ended_by(child.returncode) if child.returncode < 0 else (lines or ["no reason given"])[-1]
            )
            raise LqError(f"Vela cannot compile the file for {accelerator}: {reason}")
        with tables[0].open(newline="", encoding="utf-8") as file:
            row = next(csv.DictReader(file))
        return Compiled(made.read_bytes(), _figures(made.read_bytes(), accelerator, row))


def _figures(tflite: bytes, accelerator: str, row: dict[str, str]) -> NpuFigures:
    graph = read(tflite).main
    npu = [operator for operator in graph.operators if operator.code.shown_name == ETHOS_U]
    constants = {operator.inputs[1] for operator in npu}
    memories = {index for operator in npu for index in operator.inputs[2:4]}
    return NpuFigures(
        accelerator=accelerator,
        compiler=f"{VELA_PACKAGE} {importlib.metadata.version(VELA_PACKAGE)}",
        size=len(tflite),
        weight_bytes=int(float(row["total_npu_encoded_weights"])),
        constant_bytes=sum(len(graph.tensors[index].buffer.data) for index in constants),
        arena_bytes=sum(sum(graph.tensors[index].shape) for index in memories),
        cycles=int(float(row["cycles_total"])),
        seconds=float(row["inference_time"]),
        on_cpu=sorted({each.code.shown_name for each in graph.operators if each not in npu}),
    )
