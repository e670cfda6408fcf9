"""Runs .tflite files in TFLite Micro, in their own processes."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lqconvert.errors import CannotRun, LqError
from lqconvert.tflite.flatbuffer import read
from lqconvert.utils.worker import ended_by, run_module, took_too_long

#: TFLite Micro's interpreter gets this much memory first, and four times as much until it is enough.
FIRST_ARENA, LARGEST_ARENA = 1 << 20, 1 << 30


#: The sum of its allocations may not be enough: it is raised by this, twice this, ... until the model runs.
ARENA_STEP = 256


#: Seconds after which a run is ended.
TIMEOUT = 900


class _NoArenaHelps(CannotRun):
    """TFLite Micro lacks an operator, or took too long. Every other error may come from a small arena."""


@dataclass(frozen=True)
class MicroRun:
    """A run in TFLite Micro: outputs [n, ...] in the file's own types, latency and arena.

    Latency and arena are those of this machine. A microcontroller's pointers are half as long.
    """

    outputs: np.ndarray
    latency_s: float
    arena_bytes: int


def run_micro(tflite: bytes, inputs: np.ndarray) -> MicroRun:
    """Runs a file in TFLite Micro, and finds the smallest arena that it runs in.

    Args:
        inputs: [n, ...] in the file's own types: int8, uint8, int16 or float32 (or indices).

    Raises:
        CannotRun: if it cannot run the file. The message has its reason.
    """
    ran, arena = _in_any_arena(tflite, inputs)
    needed, step = ran.arena_bytes, ARENA_STEP
    while True:
        try:
            _child(tflite, inputs[:1], needed)
            return dataclasses.replace(ran, arena_bytes=needed)
        except LqError:
            needed, step = needed + step, 2 * step
            if needed > arena:
                raise


def invoke_micro(tflite: bytes, inputs: np.ndarray) -> np.ndarray:
    """The outputs of :func:`run_micro`, without the search for an arena."""
    ran, _ = _in_any_arena(tflite, inputs)
    return ran.outputs


def _in_any_arena(tflite: bytes, inputs: np.ndarray) -> tuple[MicroRun, int]:
    """A run, with the sum of its allocations as ``arena_bytes``, and the size of the arena that it got."""
    arena = FIRST_ARENA
    while True:
        try:
            return _child(tflite, inputs, arena), arena
        except _NoArenaHelps:
            raise
        except LqError:
            if arena >= LARGEST_ARENA:
                raise
            arena *= 4


def _child(tflite: bytes, inputs: np.ndarray, arena: int) -> MicroRun:
    """A run in an arena of this size, in its own process."""
    with tempfile.TemporaryDirectory() as name:
        model, examples, outputs = (Path(name) / file for file in ("model", "inputs.npy", "outputs.npy"))
        model.write_bytes(tflite)
        np.save(examples, inputs)
        graph = read(tflite).main
        counts = len(graph.inputs), len(graph.outputs)
        try:
            child = run_module(
                "runtime.tflm_worker", model, examples, outputs, arena, *counts, timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired as error:
            raise _NoArenaHelps(f"TFLite Micro did not finish in {TIMEOUT} seconds") from error
        total = re.search(r"Arena allocation total (\d+)", child.stderr)
        if child.returncode or total is None:
            lines = [line.strip() for line in child.stderr.splitlines() if line.strip()]
            ended = [ended_by(child.returncode)] if child.returncode < 0 else []
            said = next((line for line in lines if "Traceback" not in line), "")
            reason = said or (ended[0] if ended else "no reason given")
            ended = ended if said else []
            if "DENSIFY" in reason:
                reason += "; it is packed for LiteRT (quantize and export make files for tflm, too)"
            late = took_too_long(child.returncode)
            kind = _NoArenaHelps if late or "Didn't find op" in child.stderr else CannotRun
            raise kind(f"TFLite Micro cannot run the file: {'; '.join([reason, *ended])}")
        return MicroRun(np.load(outputs), float(child.stdout.split()[-1]), -(-int(total[1]) // 16) * 16)
