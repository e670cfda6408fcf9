"""Runs a .tflite in LiteRT, as its own process: if the file crashes or hangs, only this process ends.

    python -m lqconvert.runtime.litert_worker MODEL BYTES KERNELS[,KERNELS...] [TENSOR,...]

Loads the file with a memory limit of BYTES and runs it on zeros. Then writes a line of JSON: its inputs and
outputs, and the median seconds of an inference. Then, for each line of JSON on stdin (dtype and shape of
examples [n, ...], followed by their bytes) and each set of kernels, writes such a line and the bytes of the
outputs [n, ...]. If tensors are given, it writes their real values instead (float64 [n, total]).
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np

from lqconvert.errors import first_line

#: Processor seconds to load the file and run it on zeros.
FIRST_SECONDS = 10
#: The latency is measured over at most this many inferences and seconds.
RUNS, MEASURED_SECONDS = 100, 2.0


def main(model: str, limit: str, kernels: str, tensors: str = "") -> None:
    from lqconvert.utils.worker import Stopwatch, confine

    confine(int(limit))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # messages that libraries print go to stderr
    from lqconvert.runtime.litert import Runner

    watch = Stopwatch(FIRST_SECONDS)
    kept = [int(index) for index in tensors.split(",") if index]
    with watch():
        with open(model, "rb") as file:
            tflite = file.read()
        runners = [Runner(tflite, name, keeps_all=bool(kept)) for name in kernels.split(",")]
        for runner in runners:
            runner.run_one(np.zeros(runner.example_shape, np.int8))
    first = runners[0]
    latency = first.latency(RUNS, seconds=MEASURED_SECONDS, watch=watch)
    header = {"inputs": _plain(first.inputs), "outputs": _plain(first.outputs), "latency": latency}
    _send(answers, header)
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        shape, dtype = asked["shape"], np.dtype(asked["dtype"])
        results: list[list[np.ndarray]] = [[] for _ in runners]
        for _ in range(shape[0]):
            data = sys.stdin.buffer.read(int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize)
            example = np.frombuffer(data, dtype).reshape(shape[1:])
            for runner, found in zip(runners, results, strict=True):
                with watch():
                    runner.run_one(example)
                found.append(runner.values_of(kept) if kept else runner.results())
        for found in results:
            array = np.ascontiguousarray(np.stack(found))
            _send(answers, {"shape": array.shape, "dtype": array.dtype.str}, array.tobytes())


def _plain(details: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """LiteRT's details of inputs or outputs, as JSON values."""
    return [
        {
            "name": detail["name"],
            "shape": [int(n) for n in detail["shape"]],
            "dtype": np.dtype(detail["dtype"]).str,
            "quantization": [float(detail["quantization"][0]), int(detail["quantization"][1])],
        }
        for detail in details
    ]


def _send(stream: IO[bytes], header: dict[str, Any], data: bytes = b"") -> None:
    stream.write(json.dumps(header).encode() + b"\n" + data)
    stream.flush()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (RuntimeError, ValueError, MemoryError) as error:  # LiteRT's errors
        sys.exit(first_line(error))
