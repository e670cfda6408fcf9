"""How much a layer's output differs between two .tflite files of one network, seen from the inside."""

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

#: What a converter's names of tensors end in, the surest sign of the layer first.
_OPERATIONS = r"(Conv2D|MatMul|depthwise|conv2d_transpose)"
_SIGNS = (rf"{_OPERATIONS}1$", "BiasAdd$", rf"{_OPERATIONS}$", "")
_RELU = ("RELU", "RELU6", "RELU_N1_TO_1")


@dataclass(frozen=True)
class LayerNoise:
    """A layer's output in one file against another's."""

    name: str  # of the layer, where the reference says so, else its operator and place
    kind: str  # the operator's name
    shape: tuple[int, ...]  # of the output in the reference, without the batch axis
    snr_db: float | None  # None where the other file has no such layer, infinite where there is no noise


@dataclass(frozen=True)
class _Layer:
    name: str
    kind: str
    output: int  # the tensor
    shape: tuple[int, ...]
    weights: int

    @property
    def size(self) -> tuple[int, int]:
        """What tells a layer from others: packing may make a FULLY_CONNECTED a CONV_2D."""
        return math.prod(self.shape), self.weights


def layer_noise(
    reference: bytes,
    other: bytes,
    inputs: np.ndarray | Sequence[np.ndarray],
    other_inputs: np.ndarray | Sequence[np.ndarray] | None = None,
) -> list[LayerNoise]:
    """The signal-to-noise ratio of every linear layer's output, in the order of the reference's graph.

    10 log10 of the sum of the reference's squares over that of the squared differences, both over all values
    of all examples. Layers (with a ReLU right behind them) are matched in order by the sizes of outputs and
    kernels, as names differ between tools; what has no counterpart, as where channels were removed, gets
    no ratio. Both files run in LiteRT's built-in kernels, which keep what lies between.

    Args:
        reference, other: .tflite files that LiteRT runs.
        inputs: real values [n, ...] as the reference takes them, preprocessed; a list if several.
        other_inputs: the same examples for the other file, where its preprocessing is another.
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
    """The ratio of two sums of squares; infinite where one of them is 0.

    >>> decibels(signal=1000.0, noise=1.0)
    30.0
    """
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _layers(tflite: bytes) -> list[_Layer]:
    """The linear layers of a file, each with the tensor behind its activation."""
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
        # The model's last tensor has no layer's name, but its kernel does.
        named = [graph.tensors[i] for i in (operator.outputs[0], *operator.inputs[1:]) if i >= 0]
        name = next(filter(None, (_name(tensor.name) for tensor in named)), f"{kind} {place}")
        found.append(_Layer(name, kind, output, shape, math.prod(kernel.shape)))
    return found


def _name(text: bytes | None) -> str:
    """The layer in a converter's name of a tensor: "model/re_lu/Relu;model/dense/BiasAdd" is of dense."""
    paths = [path for path in text_of(text).split(";") if "/" in path]
    for sign in _SIGNS:
        for path in paths:
            if re.search(sign, path):
                return path.split("/")[-2]
    return ""


def _outputs(
    tflite: bytes, inputs: np.ndarray | Sequence[np.ndarray], layers: list[_Layer]
) -> Iterator[list[np.ndarray]]:
    """Of each example the real values (float64) that the layers give."""
    ends = np.cumsum([math.prod(layer.shape) for layer in layers])
    if not layers:
        return
    with isolated(tflite, ("built-in",), [layer.output for layer in layers]) as file:
        for example in file.quantize(inputs):
            yield np.split(file.invoke(example[np.newaxis])[0], ends[:-1])
