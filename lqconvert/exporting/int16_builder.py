"""Builds graphs that compute in int16 what is too fine for int8, of operators that both runtimes have."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.exporting.int16 import CODE_STEPS
from lqconvert.tflite.builder import Builder
from lqconvert.tflite.graph import Quantization, Tensor

#: The largest code of int16.
LAST = 2**15 - 1
#: MEAN's kernels have int32 sums, which hold this many int16 codes.
MOST_SUMMED = 2**16
#: The largest result in a table: 127 in its high byte.
LAST_FOUND = 127 * 256


def limits_of(tensor: Tensor) -> tuple[float, float]:
    """The smallest and the largest number that a tensor can hold."""
    codes = np.iinfo(np.int8 if tensor.type == "INT8" else np.int16)
    low, high = ((code - tensor.zero_point) * float(tensor.scales[0]) for code in (codes.min, codes.max))
    return low, high


class Int16Builder(Builder):
    """Adds operators in int16 to a graph. Methods return the index of a tensor."""

    def quantize(self, source: int, output: int) -> int:
        return self.operator("QUANTIZE", [source], [output], schema.QuantizeOptionsT())

    def widened(self, index: int) -> int:
        """A tensor as int16, exactly."""
        tensor = self.graph.tensors[index]
        if tensor.type == "INT16":
            return index
        step = float(tensor.scales[0]) / (CODE_STEPS // 2)  # codes minus zero points have nine bits
        return self.quantize(index, self.wide(step, *tensor.shape))

    def vector(self, values: np.ndarray) -> int:
        """A constant for each channel."""
        scale = float(np.abs(values).max()) / LAST
        return self.constant(np.round(values / scale).astype(np.int16), Quantization.one(scale))

    def mean(self, x: int, scale: float, axis: int = 1) -> int:
        """The mean along an axis, which stays with length 1."""
        shape = list(self.graph.tensors[x].shape)
        shape[axis] = 1
        options, axes = schema.ReducerOptionsT(), self.constant(np.array([axis], np.int32))
        options.keepDims = True
        return self.operator("MEAN", [x, axes], [self.wide(scale, *shape)], options, version=2)

    def looked_up(self, values: np.ndarray, index: int) -> int:
        """Results from a table of numbers, none below 0, for indices (int32 [rows, 1]): [rows, 1]."""
        rows, largest = self.graph.tensors[index].shape[0], float(values.max())
        found = np.round(LAST_FOUND * values / largest).astype(int)
        high = (found + 128) // 256
        parts = np.stack([high, found - 256 * high], axis=1).astype(np.int8)
        # TensorFlow Lite Micro's GATHER takes int8. The mean of the two bytes' values is the result.
        step = 2 * largest / LAST_FOUND
        table = self.constant(parts, Quantization.one(256 * step))
        both = self.tensor("INT8", (rows, 1, 2), Quantization.one(256 * step))
        self.operator("GATHER", [table, index], [both], schema.GatherOptionsT())
        halves = self.elementwise("MUL", self.widened(both), self.vector(np.array([1, 1 / 256])), scale=step)
        return self.mean(self.shaped(halves, (rows, 2)), step / 2)
