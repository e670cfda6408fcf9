"""LayerNormalization, GroupNormalization and RMSNormalization in integers.

int8 is too coarse for means and squares. So the input is widened to int16, stock operators compute in int16,
and the result is narrowed to int8. How large each intermediate result can be follows from the scales of the
input and the output; nothing has to be calibrated. 1 / sqrt(x) is looked up in a table, which all layers
share: LiteRT 2.3's RSQRT gives up to 3.7 times the right result for int16 codes below 512.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.exporting.int16_builder import LAST, MOST_SUMMED, Int16Builder, limits_of
from lqconvert.keras_loader.custom_layers import Norm
from lqconvert.tflite.graph import Graph, Model, Operator, Quantization

#: The table's index of a code is min(code, FINE) + code / COARSE.
FINE, COARSE = 1024, 32


def put_normalization(model: Model, placeholder: Operator, layer: Norm) -> None:
    """Replaces a placeholder by the operators of a normalization."""
    tensors, operators = model.main.tensors, model.main.operators
    builder = _Builder(model, Graph(tensors))
    (source, *_), (output,) = placeholder.inputs, placeholder.outputs
    shape = tensors[source].shape
    groups, rows = getattr(layer, "groups", None), math.prod(shape[:-1])
    gamma, beta = (np.asarray(values, np.float64) for values in (layer.gamma, layer.offsets))
    # What a result is before the offset, if it is not clipped behind it; and before the factor.
    low, high = limits_of(tensors[output])
    scaled = np.maximum(np.abs(low - beta), np.abs(high - beta))
    unscaled = float(np.max(scaled / np.maximum(np.abs(gamma), 1e-12)))

    x = builder.shaped(builder.widened(source), (rows, shape[-1]))
    if groups is not None:
        x = builder.by_group(x, groups)
    least, most = limits_of(tensors[source])
    y = builder.normalized(x, layer, most - least if layer.centers else max(-least, most), unscaled)
    if groups is not None:
        y = builder.by_place(y, rows, groups)
    if np.any(gamma != 1):
        y = builder.elementwise("MUL", y, builder.vector(gamma), scale=scaled.max() / LAST)
    if np.any(beta):
        y = builder.elementwise("ADD", y, builder.vector(beta), scale=max(-low, high) / LAST)
    builder.quantize(builder.shaped(y, shape), output)
    place = operators.index(placeholder)
    operators[place : place + 1] = builder.graph.operators


@functools.cache
def _table() -> np.ndarray:
    """1 / sqrt(code) for each index."""
    codes = np.arange(1, LAST + 1)
    index = np.minimum(codes, FINE) + np.round(codes / COARSE).astype(int)
    count = np.bincount(index)
    # Kernels that round in another way may come to an index between two of these.
    places, known = np.arange(len(count)), np.flatnonzero(count)
    return np.interp(places, known, np.bincount(index, codes**-0.5)[known] / count[known])


class _Builder(Int16Builder):
    """Adds the parts of a normalization to a graph."""

    def normalized(self, x: int, layer: Norm, reach: float, largest: float) -> int:
        """Rows [rows, n] over their root mean square, behind the subtraction of their mean.

        Args:
            reach: the largest size of what is squared.
            largest: results beyond it need not be right.
        """
        tensor = self.graph.tensors[x]
        count, scale = tensor.shape[1], float(tensor.scales[0])
        if layer.centers:
            x = self.elementwise("SUB", x, self.row_mean(x, scale), scale=reach / LAST)
        squares = self.elementwise("MUL", x, x, scale=reach**2 / LAST)
        # A variance is at most a quarter of the squared range.
        least = ((reach**2 / 4 if layer.centers else reach**2) + layer.epsilon) / LAST
        square = self.row_mean(squares, least)
        if layer.epsilon > least / 2:
            square = self.elementwise("ADD", square, self.vector(np.array([layer.epsilon])), scale=least)
        factor = self.inverse_root(square)
        return self.elementwise("MUL", x, factor, scale=min(math.sqrt(count), largest) / LAST)

    def inverse_root(self, x: int) -> int:
        """1 / sqrt(x) of [rows, 1]. Of 0, it is that of the smallest code."""
        scale = float(self.graph.tensors[x].scales[0])
        last = self.constant(np.array([FINE], np.int16), Quantization.one(scale))
        fine = self.elementwise("MINIMUM", x, last, scale=scale)
        coarse = self.elementwise("MUL", x, self.vector(np.array([1 / COARSE])), scale=scale)
        total = self.elementwise("ADD", fine, coarse, scale=scale)
        return self.looked_up(scale**-0.5 * _table(), self.cast(total, "INT32"))

    def row_mean(self, x: int, scale: float) -> int:
        """The mean of each row, whatever its length: [rows, n] as [rows, 1]."""
        rows, count = self.graph.tensors[x].shape
        divisors = (parts for parts in range(1, count + 1) if count % parts == 0)
        parts = next(parts for parts in divisors if count // parts <= MOST_SUMMED)
        if parts > 1:
            x = self.shaped(x, (rows * parts, count // parts))
            x = self.shaped(self.row_mean(x, scale), (rows, parts))
        return self.mean(x, scale)

    def by_group(self, x: int, groups: int) -> int:
        """Rows of channels as rows of groups, each with all places: [places, channels] as [groups, n]."""
        places, channels = self.graph.tensors[x].shape
        if groups > 1:
            x = self.transposed(self.shaped(x, (places, groups, channels // groups)))
        return self.shaped(x, (groups, places * channels // groups))

    def by_place(self, x: int, places: int, groups: int) -> int:
        """The inverse of :meth:`by_group`."""
        size = self.graph.tensors[x].shape[1] // places
        if groups > 1:
            x = self.transposed(self.shaped(x, (groups, places, size)))
        return self.shaped(x, (places, groups * size))

    def transposed(self, x: int) -> int:
        """[a, b, c] as [b, a, c]."""
        tensor = self.graph.tensors[x]
        a, b, c = tensor.shape
        order = self.constant(np.array([1, 0, 2], np.int32))
        result = self.wide(float(tensor.scales[0]), b, a, c)
        return self.operator("TRANSPOSE", [x, order], [result], schema.TransposeOptionsT(), version=4)
