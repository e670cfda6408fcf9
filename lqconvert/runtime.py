"""Runs .tflite files in LiteRT and in TFLite Micro, those of strangers in processes of their own."""

from __future__ import annotations

import json
import math
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any

import numpy as np

from lqconvert.children import ended_by, run_module, started, took_too_long
from lqconvert.errors import CannotRun, LqError
from lqconvert.flatbuffer import DTYPES, read, text_of

#: LiteRT's sets of kernels: XNNPACK's, its default, and its own.
KERNELS = {"XNNPACK": "AUTO", "built-in": "BUILTIN_WITHOUT_DEFAULT_DELEGATES"}
#: TFLite Micro's interpreter gets this much memory at first, and four times as much until it suffices.
FIRST_ARENA, LARGEST_ARENA = 1 << 20, 1 << 30
#: Its own sum of allocations may not suffice: it is raised by this, twice this, ... until the model runs.
ARENA_STEP = 256
#: Seconds after which a run is given up.
TIMEOUT = 900
#: A process that runs a file may take so many bytes for data, and so many times the file's own.
WORKER_BYTES, WORKER_COPIES = 1 << 30, 6
#: Seconds after which one is ended that does nothing: its own limits are of processor time.
WORKER_SECONDS = 120
#: Bytes of the line in which one says what it is about to send.
LARGEST_LINE = 1 << 22

#: Values of an input or output of a file for TFLite Micro, which is read before it is run.
LARGEST_INPUT = 1 << 24


class _NoArenaHelps(CannotRun):
    """TFLite Micro lacks an operator, or took too long. Every other failure may be want of an arena."""


class Interface:
    """The inputs and outputs of a .tflite file, and what real values are in them.

    Where a file has several inputs or outputs, an example is all of them, flattened, one behind the other.

    Attributes:
        inputs, outputs: of each its name, shape (with the batch axis), dtype and quantization (scale, zero
            point; scale 0 where the values are no codes), as LiteRT's interpreter tells them.
    """

    def __init__(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        self.inputs, self.outputs = inputs, outputs

    @classmethod
    def of(cls, tflite: bytes) -> Interface:
        """That of a file which LiteRT may not run: one for TFLite Micro.

        Raises:
            LqError: if the file is damaged.
        """
        graph = read(tflite).subgraphs[0]
        return cls(*([_detail(graph.tensors[i]) for i in side] for side in (graph.inputs, graph.outputs)))

    @property
    def example_shape(self) -> tuple[int, ...]:
        """The shape of an example as :meth:`invoke` takes it."""
        shapes = [tuple(int(n) for n in detail["shape"][1:]) for detail in self.inputs]
        return shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """The inputs' names and shapes, without the batch axis."""
        return {d["name"]: tuple(int(n) for n in d["shape"][1:]) for d in self.inputs}

    @property
    def input_types(self) -> dict[str, str]:
        """The inputs' names and types: "int8", "int32", ..."""
        return {d["name"]: np.dtype(d["dtype"]).name for d in self.inputs}

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of what an example gives; of several outputs all values together."""
        shapes = [tuple(int(n) for n in detail["shape"][1:]) for detail in self.outputs]
        return shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)

    @property
    def output_units(self) -> int:
        """The last axis of that."""
        return self.output_shape[-1] if self.output_shape else 1

    @property
    def quantizations(self) -> tuple[dict[str, tuple[float, int]], dict[str, tuple[float, int]]]:
        """(scale, zero point) of the inputs and of the outputs, by name; (0, 0) of what is not quantized."""
        inputs, outputs = (
            {d["name"]: (float(d["quantization"][0]), int(d["quantization"][1])) for d in side}
            for side in (self.inputs, self.outputs)
        )
        return inputs, outputs

    @property
    def output_steps(self) -> np.ndarray:
        """The scale of the output; of several outputs that of each value of an example."""
        scales = [detail["quantization"][0] for detail in self.outputs]
        if len(scales) == 1:
            return np.array(scales[0], np.float32)
        return np.repeat(scales, [int(np.prod(detail["shape"][1:])) for detail in self.outputs])

    def random_examples(self, count: int) -> np.ndarray:
        """Inputs as :meth:`Runner.invoke` takes them: any codes or values in 0..1, and 0 or 1 for indices."""
        rng = np.random.default_rng(0)
        shapes = [(count, *(int(n) for n in detail["shape"][1:])) for detail in self.inputs]
        pairs = zip(shapes, self.inputs, strict=True)
        return together([_random(rng, shape, detail) for shape, detail in pairs])

    def quantize(self, x: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Real inputs [n, ...] (of each input, where there are several) as the file takes them."""
        return coded([x] if len(self.inputs) == 1 else x, self.inputs)  # type: ignore[list-item,arg-type]

    def dequantize(self, y: np.ndarray) -> np.ndarray:
        """Outputs of the file as float32, in the same shape."""
        return together(real(y, self.outputs))


class Runner(Interface):
    """A .tflite file in LiteRT, fed with real values.

    Args:
        tflite: the file's bytes.
        kernels: one of KERNELS.
        keeps_all: keep what is computed between inputs and outputs (with the built-in kernels), too.
    """

    def __init__(self, tflite: bytes, kernels: str = "XNNPACK", *, keeps_all: bool = False) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        resolver = getattr(OpResolverType, KERNELS[kernels])
        self.interpreter = Interpreter(
            model_content=tflite,
            num_threads=1,
            experimental_op_resolver_type=resolver,
            experimental_preserve_all_tensors=keeps_all,
        )
        self.interpreter.allocate_tensors()
        super().__init__(self.interpreter.get_input_details(), self.interpreter.get_output_details())
        for detail in self.inputs:  # what lies there by chance may be no index
            self.interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))

    def run_one(self, example: np.ndarray) -> None:
        """Computes an example [...] as the file takes it."""
        parts = split(example[np.newaxis], [detail["shape"] for detail in self.inputs])
        for part, detail in zip(parts, self.inputs, strict=True):
            self.interpreter.set_tensor(detail["index"], part.astype(detail["dtype"], copy=False))
        self.interpreter.invoke()

    def results(self) -> np.ndarray:
        """The outputs [...] of the example that was computed last, as the file has them."""
        results = [self.interpreter.get_tensor(detail["index"])[0] for detail in self.outputs]
        return results[0] if len(results) == 1 else np.concatenate([y.ravel() for y in results])

    def values_of(self, tensors: Sequence[int]) -> np.ndarray:
        """The real values (float64, flat) of some tensors of that example; all must have been kept."""
        details = {detail["index"]: detail for detail in self.interpreter.get_tensor_details()}
        parts = []
        for index in tensors:
            (scale, zero_point), raw = details[index]["quantization"], self.interpreter.get_tensor(index)
            values = raw.astype(np.float64).ravel()
            parts.append((values - zero_point) * scale if scale else values)
        return np.concatenate(parts)

    def invoke(self, examples: Iterable[np.ndarray]) -> np.ndarray:
        """Outputs [n, ...] for inputs [n, ...], both as the file has them."""
        outputs = []
        for example in examples:
            self.run_one(example)
            outputs.append(self.results())
        return np.stack(outputs)

    def run(self, batches: Iterable[np.ndarray | Sequence[np.ndarray]]) -> np.ndarray:
        """Outputs (float32, [n, ...]) for batches of real inputs (preprocessed, as the float model's)."""
        return self.dequantize(np.concatenate([self.invoke(self.quantize(batch)) for batch in batches]))

    def latency(
        self,
        runs: int = 100,
        *,
        seconds: float = math.inf,
        watch: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> float:
        """Median seconds of one inference, of so many or of what fits into so many seconds."""
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < runs + 10 and (not times or time.perf_counter() - begin < seconds):
            with watch():
                start = time.perf_counter()
                self.interpreter.invoke()
                times.append(time.perf_counter() - start)
        return median(times[10:] or times)


def split(examples: np.ndarray, shapes: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Examples [n, total] as the tensors [n, ...] that they hold; the shapes have a batch axis in front."""
    if len(shapes) == 1:
        return [examples]
    ends = np.cumsum([int(np.prod(shape[1:])) for shape in shapes])
    parts = np.split(examples.reshape(len(examples), -1), ends[:-1], axis=1)
    return [part.reshape(len(examples), *shape[1:]) for part, shape in zip(parts, shapes, strict=True)]


def coded(parts: Sequence[np.ndarray], details: Sequence[dict[str, Any]]) -> np.ndarray:
    """Examples with the codes of real values [n, ...] of each input, or output, in one array."""
    return together([_quantized(part, detail) for part, detail in zip(parts, details, strict=True)])


def real(examples: np.ndarray, details: Sequence[dict[str, Any]]) -> list[np.ndarray]:
    """The real values (float32 [n, ...]) of each input, or output, that examples have the codes of."""
    parts = split(examples, [detail["shape"] for detail in details])
    return [_dequantized(part, detail) for part, detail in zip(parts, details, strict=True)]


def together(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Of one input or output as it is; of several flat, one behind the other."""
    return parts[0] if len(parts) == 1 else np.concatenate([x.reshape(len(x), -1) for x in parts], axis=1)


def _random(rng: np.random.Generator, shape: tuple[int, ...], detail: dict[str, Any]) -> np.ndarray:
    dtype = detail["dtype"]
    if dtype in (np.int8, np.uint8) or (dtype == np.int16 and detail["quantization"][0]):
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)
    return rng.random(shape, np.float32) if dtype == np.float32 else rng.integers(0, 2, shape).astype(dtype)


def _detail(tensor: Any) -> dict[str, Any]:
    """A tensor of the schema as LiteRT's interpreter tells of one."""
    name = text_of(tensor.name)
    quantization, scale = tensor.quantization, (0.0, 0)
    if quantization is not None and quantization.scale is not None and len(quantization.scale) == 1:
        points = quantization.zeroPoint
        scale = float(quantization.scale[0]), 0 if points is None else int(points[0])
    shape = np.asarray([] if tensor.shape is None else tensor.shape, np.int32)
    if math.prod(map(int, shape)) > LARGEST_INPUT:
        raise LqError(f"input or output '{name}' has more than {LARGEST_INPUT:,} values")
    if tensor.type not in DTYPES:
        raise LqError(f"input or output '{name}' is of a type that no model here has")
    return {"name": name, "shape": shape, "dtype": DTYPES[tensor.type], "quantization": scale}


def _quantized(x: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    if not scale:  # float, or indices
        return x.astype(detail["dtype"])
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.round(x / scale) + zero_point, limits.min, limits.max).astype(detail["dtype"])


def _dequantized(y: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    return (y.astype(np.float32) - zero_point) * scale if scale else y.astype(np.float32)


class Isolated(Interface):
    """A .tflite file in LiteRT in a process of its own, which :func:`isolated` starts.

    Attributes:
        latency_s: median seconds of an inference with the first set of kernels.
    """

    def __init__(self, child: subprocess.Popen[bytes], errors: IO[bytes], kernels: Sequence[str]) -> None:
        self._child, self._errors, self._kernels = child, errors, kernels
        with self._in_time(WORKER_SECONDS):
            header = self._header()
        try:
            inputs, outputs = ([_told(detail) for detail in header[side]] for side in ("inputs", "outputs"))
            self.latency_s = float(header["latency"])
        except (LookupError, TypeError, ValueError) as error:
            raise CannotRun("LiteRT cannot run the file: what it told of it makes no sense") from error
        super().__init__(inputs, outputs)

    def invoke_all(self, examples: np.ndarray) -> dict[str, np.ndarray]:
        """By set of kernels, outputs [n, ...] for inputs [n, ...], both as the file has them.

        Where tensors were asked for: their values instead, float64 [n, total].

        Raises:
            CannotRun: if the file does not run on them, or takes too long or too much memory.
        """
        examples = np.ascontiguousarray(examples)
        asked = {"shape": examples.shape, "dtype": examples.dtype.str}
        with self._in_time(WORKER_SECONDS + 60 * len(examples) * self.latency_s):
            stdin = self._child.stdin
            assert stdin is not None
            try:
                stdin.write(json.dumps(asked).encode() + b"\n")
                stdin.write(examples.data)
                stdin.flush()
            except OSError as error:
                raise self._ended() from error
            return {kernels: self._array(len(examples)) for kernels in self._kernels}

    def invoke(self, examples: np.ndarray) -> np.ndarray:
        """The outputs of the first set of kernels; see :meth:`invoke_all`."""
        return self.invoke_all(examples)[self._kernels[0]]

    def run(self, batches: Iterable[np.ndarray | Sequence[np.ndarray]]) -> np.ndarray:
        """Outputs (float32, [n, ...]) for batches of real inputs (preprocessed, as the float model's)."""
        return self.dequantize(np.concatenate([self.invoke(self.quantize(batch)) for batch in batches]))

    def _array(self, count: int) -> np.ndarray:
        header = self._header()
        try:
            shape, dtype = tuple(map(int, header["shape"])), np.dtype(header["dtype"])
            size = math.prod(shape) * dtype.itemsize
            if shape[0] != count or min(shape) < 0 or dtype.kind not in "iufb":
                raise ValueError
            if math.prod(shape[1:]) > 4 * LARGEST_INPUT:
                raise CannotRun(f"LiteRT cannot run the file: it gives {math.prod(shape[1:]):,} values")
        except (LookupError, TypeError, ValueError) as error:
            raise CannotRun("LiteRT cannot run the file: what it gave makes no sense") from error
        data = self._child.stdout.read(size)  # type: ignore[union-attr]
        if len(data) < size:
            raise self._ended()
        return np.frombuffer(data, dtype).reshape(shape)

    def _header(self) -> dict[str, Any]:
        line = self._child.stdout.readline(LARGEST_LINE)  # type: ignore[union-attr]
        if not line.endswith(b"\n"):
            raise self._ended()
        header = json.loads(line)
        return header if isinstance(header, dict) else {}

    def _ended(self) -> CannotRun:
        """What the process ended with."""
        code = self._child.wait()
        self._errors.seek(0)
        said = self._errors.read(1 << 16).decode(errors="replace")
        lines = [line.strip() for line in said.splitlines() if line.strip()] or ["no reason given"]
        return CannotRun(f"LiteRT cannot run the file: {ended_by(code) if code < 0 else lines[-1][:200]}")

    @contextmanager
    def _in_time(self, seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, self._child.kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@contextmanager
def isolated(
    tflite: bytes, kernels: Sequence[str] = ("XNNPACK",), tensors: Sequence[int] = ()
) -> Iterator[Isolated]:
    """A .tflite file in a process of its own, for as long as the block takes; it has been run once on zeros.

    LiteRT may crash at a damaged file, and one of a stranger's may never end, or take all memory.

    Args:
        kernels: names in KERNELS.
        tensors: whose values are to be given instead of the outputs (with built-in kernels).

    Raises:
        LqError: if the file is damaged.
        CannotRun: if LiteRT does not run it.
    """
    read(tflite)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
        model = Path(folder) / "model.tflite"
        model.write_bytes(tflite)
        limit = WORKER_BYTES + WORKER_COPIES * len(tflite)
        arguments = model, limit, ",".join(kernels), ",".join(map(str, tensors))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        with started("litert_worker", *arguments, **pipes) as child:
            yield Isolated(child, errors, kernels)


def check_loads(tflite: bytes) -> None:
    """Runs a file once, on zeros, in a process of its own; raises what :func:`isolated` does."""
    with isolated(tflite):
        pass


def _told(detail: dict[str, Any]) -> dict[str, Any]:
    """An input or output as a process told of it, checked: it has run what a stranger made."""
    scale, zero_point = detail["quantization"]
    shape, dtype = np.array(detail["shape"], np.int32), np.dtype(detail["dtype"])
    if dtype.kind not in "iufb" or min(shape, default=0) < 0 or math.prod(map(int, shape)) > LARGEST_INPUT:
        raise ValueError
    quantization = float(scale), int(zero_point)
    return {"name": str(detail["name"]), "shape": shape, "dtype": dtype.type, "quantization": quantization}


@dataclass(frozen=True)
class MicroRun:
    """What TFLite Micro did with a file: outputs [n, ...] as it has them, and what it took.

    Latency and arena are those of this machine: a microcontroller's pointers are half as long.
    """

    outputs: np.ndarray
    latency_s: float
    arena_bytes: int


def run_micro(tflite: bytes, inputs: np.ndarray) -> MicroRun:
    """Runs a file in TFLite Micro, in a process of its own.

    Args:
        inputs: [n, ...] as the file takes them: int8, uint8, int16 or float32 (and indices).

    Raises:
        CannotRun: if it does not run the file; the message has its reason.
    """
    arena, step = FIRST_ARENA, ARENA_STEP
    while True:
        try:
            outputs, latency, needed = _child(tflite, inputs, arena)
            break
        except _NoArenaHelps:
            raise
        except LqError:
            if arena >= LARGEST_ARENA:
                raise
            arena *= 4
    while True:
        try:
            _child(tflite, inputs[:1], needed)
            return MicroRun(outputs, latency, needed)
        except LqError:
            needed, step = needed + step, 2 * step
            if needed > arena:
                raise


def _child(tflite: bytes, inputs: np.ndarray, arena: int) -> tuple[np.ndarray, float, int]:
    with tempfile.TemporaryDirectory() as name:
        model, examples, outputs = (Path(name) / file for file in ("model", "inputs.npy", "outputs.npy"))
        model.write_bytes(tflite)
        np.save(examples, inputs)
        graph = read(tflite).subgraphs[0]
        counts = len(graph.inputs), len(graph.outputs)
        try:
            child = run_module("micro", model, examples, outputs, arena, *counts, timeout=TIMEOUT)
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
                reason += "; it is packed for LiteRT, quantize and export make others with --target tflm"
            late = took_too_long(child.returncode)
            kind = _NoArenaHelps if late or "Didn't find op" in child.stderr else CannotRun
            raise kind(f"TFLite Micro cannot run the file: {'; '.join([reason, *ended])}")
        return np.load(outputs), float(child.stdout.split()[-1]), -(-int(total[1]) // 16) * 16
