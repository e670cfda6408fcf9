"""Runs .tflite files in LiteRT: the only module that knows interpreters."""

from __future__ import annotations

import time
from collections.abc import Iterable
from statistics import median

import numpy as np


class Runner:
    """A .tflite file in LiteRT (XNNPACK), fed with real values.

    Args:
        tflite: the file's bytes.
        threads: number of threads of the interpreter.
    """

    def __init__(self, tflite: bytes, threads: int = 1) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(model_content=tflite, num_threads=threads)
        self.interpreter.allocate_tensors()
        (self.input,) = self.interpreter.get_input_details()
        (self.output,) = self.interpreter.get_output_details()

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Real inputs as the file takes them: int8, or float32 for a float file."""
        scale, zero_point = self.input["quantization"]
        if not scale:
            return x.astype(np.float32)
        return np.clip(np.round(x / scale) + zero_point, -128, 127).astype(np.int8)

    def dequantize(self, y: np.ndarray) -> np.ndarray:
        scale, zero_point = self.output["quantization"]
        return (y.astype(np.float32) - zero_point) * scale if scale else y

    def run(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        """Outputs (float32, [n, ...]) for batches of real inputs (preprocessed, as the float model's)."""
        outputs = []
        for batch in batches:
            for example in self.quantize(batch):
                self.interpreter.set_tensor(self.input["index"], example[np.newaxis])
                self.interpreter.invoke()
                outputs.append(self.interpreter.get_tensor(self.output["index"])[0])
        return self.dequantize(np.stack(outputs))

    def latency(self, runs: int = 100) -> float:
        """Median seconds of one inference."""
        times = []
        for _ in range(runs + 10):
            start = time.perf_counter()
            self.interpreter.invoke()
            times.append(time.perf_counter() - start)
        return median(times[10:])
