"""The noise of each layer: how much its outputs in two .tflite files of one network differ."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from lqconvert.runtime.litert import isolated
from lqconvert.tflite.flatbuffer import read
from lqconvert.tflite.graph import OPERANDS, Operator, text_of

#: Endings of converters' tensor names, from the surest sign of a layer to the weakest.
_OPERATIONS = r"(Conv2D|MatMul|depthwise|conv2d_transpose)"
_SIGNS = (rf"{_OPERATIONS}1$", "BiasAdd$", rf"{_OPERATIONS}$", "")
_RELU = ("RELU", "RELU6", "RELU_N1_TO_1")


@dataclass(frozen=True)
class LayerNoise:
    """The noise of a layer's output in one file, compared with another file."""

    name: str  # the layer's name if the reference has it, otherwise the operator and its place
    kind: str  # the operator's name
    shape: tuple[int, ...]  # of the output in the reference, without the batch axis
    snr_db: float | None  # None if the other file has no such layer, infinite if there is no noise


@dataclass(frozen=True)
class _Layer:
    name: str
    kind: str
    output: int  # the index of the output tensor
    shape: tuple[int, ...]
    weights: int

    @property
    def size(self) -> tuple[int, int]:
        """Sizes of output and kernel. They stay when packing replaces FULLY_CONNECTED by CONV_2D."""
        return math.prod(self.shape), self.weights


def layer_noise(
    reference: bytes,
    other: bytes,
    inputs: np.ndarray | Sequence[np.ndarray],
    other_inputs: np.ndarray | Sequence[np.ndarray] | None = None,
) -> list[LayerNoise]:
    """The signal-to-noise ratio of every linear layer's output, in the order of the reference's graph.

    It is 10 log10 of the sum of the reference's squares over the sum of the squared differences, over all
    values of all examples. Layers (with a ReLU directly behind them) are matched in order, by the sizes of
    outputs and kernels, because names differ between tools. A layer without a match, for example after
    channels were removed, has no ratio. Both files run in LiteRT's built-in kernels, which keep intermediate
    results.

    Args:
        reference, other: .tflite files that LiteRT runs.
        inputs: real values [n, ...] as for the reference, preprocessed; a list for several inputs.
        other_inputs: the same examples for the other file, if its preprocessing differs.
    """
    ours, theirs = _layers(reference), _layers(other)
    matcher = SequenceMatcher(None, [layer.size for layer in ours], [layer.size for layer in theirs], False)
    pairs = {
        block.a + step: theirs[block.b + step]
        for block in matcher.get_matching_blocks()
        for step in range(block.size)
    }
    signal, noise = np.zeros(len(ours)), np.zeros(len(ours))
    numbers = sorted(pairs)
    sides = zip(
        _outputs(reference, inputs, [ours[number] for number in numbers]),
        _outputs(other, inputs if other_inputs is None else other_inputs, [pairs[n] for n in numbers]),
        strict=True,
    )
    for true, found in sides:
        for number, a, b in zip(numbers, true, found, strict=True):
            signal[number] += np.sum(a**2)
            noise[number] += np.sum((a - b) ** 2)
    return [
        LayerNoise(layer.name, layer.kind, layer.shape, decibels(signal[n], noise[n]) if n in pairs else None)
        for n, layer in enumerate(ours)
    ]


def decibels(signal: float, noise: float) -> float:
    """The ratio of two sums of squares; infinite if one of them is 0.

    >>> decibels(signal=1000.0, noise=1.0)
    30.0
    """
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _layers(tflite: bytes) -> list[_Layer]:
    """The linear layers of a file, each with the output tensor of its activation."""
    graph, found = read(tflite).main, []
    readers: dict[int, list[Operator]] = {}
    for operator in graph.operators:
        for index in operator.inputs:
            readers.setdefault(index, []).append(operator)
    for place, operator in enumerate(graph.operators):
        kind = operator.name
        if kind not in OPERANDS:
            continue
        output = operator.outputs[0]
        behind = readers.get(output, [])
        if len(behind) == 1 and behind[0].name in _RELU:
            output = behind[0].outputs[0]
        shape = graph.tensors[output].shape[1:]
        kernel = graph.tensors[operator.inputs[OPERANDS[kind][1]]]
        # The name of the model's last tensor has no layer in it, but the kernel's name does.
        named = [graph.tensors[i] for i in (operator.outputs[0], *operator.inputs[1:]) if i >= 0]
        name = next(filter(None, (_name(tensor.name) for tensor in named)), f"{kind} {place}")
        found.append(_Layer(name, kind, output, shape, math.prod(kernel.shape)))
    return found


def _name(text: bytes | None) -> str:
    """The layer in a converter's tensor name: "dense" in "model/re_lu/Relu;model/dense/BiasAdd"."""
    paths = [path for path in text_of(text).split(";") if "/" in path]
    for sign in _SIGNS:
        for path in paths:
            if re.search(sign, path):
                return path.split("/")[-2]
    return ""


def _outputs(
    tflite: bytes, inputs: np.ndarray | Sequence[np.ndarray], layers: list[_Layer]
) -> Iterator[list[np.ndarray]]:
    """For each example, the real values (float64) of the layers' outputs."""
    ends = np.cumsum([math.prod(layer.shape) for layer in layers])
    if not layers:
        return
    with isolated(tflite, ("built-in",), [layer.output for layer in layers]) as file:
        for example in file.quantize(inputs):
            yield np.split(file.invoke(example[np.newaxis])[0], ends[:-1])
