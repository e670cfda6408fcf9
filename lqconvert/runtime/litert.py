"""Runs .tflite files in LiteRT. Files that may come from strangers run in processes of their own."""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import IO, Any

import numpy as np

from lqconvert.errors import CannotRun
from lqconvert.tflite.interface import LARGEST_INPUT, Detail, Interface, Scale, split
from lqconvert.utils.worker import ended_by, started

#: LiteRT's sets of kernels: XNNPACK's (the default) and its built-in ones.
KERNELS = {"XNNPACK": "AUTO", "built-in": "BUILTIN_WITHOUT_DEFAULT_DELEGATES"}
#: Memory limit for the data of a process that runs a file: this many bytes plus a multiple of the file's
#: size.
WORKER_BYTES, WORKER_COPIES = 1 << 30, 6
#: A process that does nothing for this many seconds is ended. Its own limits are of processor time.
WORKER_SECONDS = 120
#: The longest line in which a process announces what it sends.
LARGEST_LINE = 1 << 22


class Runner(Interface):
    """A .tflite file in LiteRT that takes real values.

    Args:
        tflite: the file's bytes.
        kernels: one of KERNELS.
        keeps_all: also keep intermediate results (only with the built-in kernels).
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
        for detail in self.inputs:  # uninitialized memory may be no valid index
            self.interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))

    def run_one(self, example: np.ndarray) -> None:
        """Computes the outputs of an example [...] in the file's own types."""
        self.interpreter.reset_all_variables()  # an LSTM starts each example with a state of zeros
        parts = split(example[np.newaxis], [detail["shape"] for detail in self.inputs])
        for part, detail in zip(parts, self.inputs, strict=True):
            self.interpreter.set_tensor(detail["index"], part.astype(detail["dtype"], copy=False))
        self.interpreter.invoke()

    def results(self) -> np.ndarray:
        """The outputs [...] of the last example, in the file's own types."""
        results = [self.interpreter.get_tensor(detail["index"])[0] for detail in self.outputs]
        return results[0] if len(results) == 1 else np.concatenate([y.ravel() for y in results])

    def values_of(self, tensors: Sequence[int]) -> np.ndarray:
        """The real values (float64, flat) of some tensors for the last example. Needs ``keeps_all``."""
        details = {detail["index"]: detail for detail in self.interpreter.get_tensor_details()}
        parts = []
        for index in tensors:
            (scale, zero_point), raw = details[index]["quantization"], self.interpreter.get_tensor(index)
            values = raw.astype(np.float64).ravel()
            parts.append((values - zero_point) * scale if scale else values)
        return np.concatenate(parts)

    def invoke(self, examples: Iterable[np.ndarray]) -> np.ndarray:
        """Outputs [n, ...] for inputs [n, ...], both in the file's own types."""
        outputs = []
        for example in examples:
            self.run_one(example)
            outputs.append(self.results())
        return np.stack(outputs)

    def run(self, batches: Iterable[np.ndarray | Sequence[np.ndarray]]) -> np.ndarray:
        """Outputs (float32, [n, ...]) for batches of real inputs, preprocessed as for the float model."""
        return self.dequantize(np.concatenate([self.invoke(self.quantize(batch)) for batch in batches]))

    def latency(
        self,
        runs: int = 100,
        *,
        seconds: float = math.inf,
        watch: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> float:
        """Median seconds of an inference, over at most this many inferences and seconds."""
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < runs + 10 and (not times or time.perf_counter() - begin < seconds):
            with watch():
                start = time.perf_counter()
                self.interpreter.invoke()
                times.append(time.perf_counter() - start)
        return median(times[10:] or times)


class Isolated(Interface):
    """A .tflite file in LiteRT in its own process. :func:`isolated` makes it.

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
            raise CannotRun("LiteRT cannot run the file: its process sent an invalid description") from error
        super().__init__(inputs, outputs)

    def invoke_all(self, examples: np.ndarray) -> dict[str, np.ndarray]:
        """For each set of kernels, outputs [n, ...] for inputs [n, ...], both in the file's own types.

        If tensors were asked for: their real values instead, float64 [n, total].

        Raises:
            CannotRun: if the kernels cannot run the file, or it takes too long or too much memory.
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
        """Outputs (float32, [n, ...]) for batches of real inputs, preprocessed as for the float model."""
        return self.dequantize(np.concatenate([self.invoke(self.quantize(batch)) for batch in batches]))

    def _array(self, count: int) -> np.ndarray:
        header = self._header()
        try:
            shape, dtype = tuple(map(int, header["shape"])), np.dtype(header["dtype"])
            size = math.prod(shape) * dtype.itemsize
            if shape[0] != count or min(shape) < 0 or dtype.kind not in "iufb":
                raise ValueError
            if math.prod(shape[1:]) > 4 * LARGEST_INPUT:
                raise CannotRun(f"LiteRT cannot run the file: it has {math.prod(shape[1:]):,} output values")
        except (LookupError, TypeError, ValueError) as error:
            raise CannotRun("LiteRT cannot run the file: its process sent invalid outputs") from error
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
        """The error with which the process ended."""
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
    """A context in which a .tflite file runs in its own process. It has already run once, on zeros.

    LiteRT may crash on a damaged file, and a stranger's file may run forever or take all memory.

    Args:
        kernels: names in KERNELS.
        tensors: return the values of these tensors instead of the outputs (built-in kernels only).

    Raises:
        LqError: if the file is damaged.
        CannotRun: if LiteRT cannot run it.
    """
    from lqconvert.tflite.flatbuffer import read  # the process that runs the file does not need it

    read(tflite)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
        model = Path(folder) / "model.tflite"
        model.write_bytes(tflite)
        limit = WORKER_BYTES + WORKER_COPIES * len(tflite)
        arguments = model, limit, ",".join(kernels), ",".join(map(str, tensors))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        with started("runtime.litert_worker", *arguments, **pipes) as child:
            yield Isolated(child, errors, kernels)


def check_loads(tflite: bytes) -> None:
    """Runs a file once, on zeros, in its own process. Raises the errors of :func:`isolated`."""
    with isolated(tflite):
        pass


def _told(detail: dict[str, Any]) -> Detail:
    """A checked description of an input or output: the process that sent it has run a stranger's file."""
    scale, zero_point = detail["quantization"]
    shape, dtype = np.array(detail["shape"], np.int32), np.dtype(detail["dtype"])
    if dtype.kind not in "iufb" or min(shape, default=0) < 0 or math.prod(map(int, shape)) > LARGEST_INPUT:
        raise ValueError
    quantization = Scale(float(scale), int(zero_point))
    return {"name": str(detail["name"]), "shape": shape, "dtype": dtype.type, "quantization": quantization}
