"""The mean of the steps that count in the file: in int16, with the number of these steps looked up.

If n of T steps count, each of them is weighted by sqrt(T / n), and the mean of all T steps by the same
again. So no result in between is much smaller than the range that its int16 codes have to hold.
"""

from __future__ import annotations

import math

import numpy as np

from lqconvert.exporting.int16_builder import LAST, Int16Builder, limits_of
from lqconvert.exporting.step_masks import StepMasks
from lqconvert.keras_loader.recurrent_layers import MaskedMean
from lqconvert.tflite.graph import Graph, Operator, Quantization


def put_masked_mean(masks: StepMasks, placeholder: Operator, layer: MaskedMean) -> None:
    """Replaces a placeholder, and the slice in front of it, by the operators of a masked mean."""
    graph = masks.model.main
    (first, *_), (output,) = placeholder.inputs, placeholder.outputs
    slice_ = next(operator for operator in graph.operators if first in operator.outputs)
    builder = _Builder(masks.model, Graph(graph.tensors))
    _, mask = layer.input
    builder.masked_mean(slice_.inputs[0], masks.ones(builder, mask._keras_history.layer), output)
    place = graph.operators.index(placeholder)
    graph.operators[place : place + 1] = builder.graph.operators
    graph.operators.remove(slice_)


class _Builder(Int16Builder):
    def masked_mean(self, source: int, ones: int, output: int) -> None:
        """Puts the mean of a sequence [1, T, n] into an output [1, n].

        Args:
            ones: 1 for each step that counts and 0 for the others, int32 [1, T, 1].
        """
        steps, channels = self.graph.tensors[source].shape[1:]
        reach = max(map(abs, limits_of(self.graph.tensors[source])))
        counts = self.cast(ones, "INT16", Quantization.one(1.0))
        number = self.cast(self.mean(counts, 1 / steps), "INT32")
        roots = np.sqrt(steps / np.maximum(np.arange(steps + 1), 1))
        root = self.shaped(self.looked_up(roots, self.shaped(number, (1, 1))), (1, 1, 1))
        weights = self.elementwise("MUL", counts, root, scale=math.sqrt(steps) / LAST)
        scale = math.sqrt(steps) * reach / LAST
        weighted = self.elementwise("MUL", self.widened(source), weights, scale=scale)
        mean = self.mean(weighted, reach / LAST)
        result = self.elementwise("MUL", mean, root, scale=reach / LAST)
        self.quantize(self.shaped(result, (1, channels)), output)
