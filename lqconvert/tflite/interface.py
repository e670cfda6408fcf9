"""The inputs and outputs of a .tflite file, and the conversion of their codes to real values.

A process that runs a file imports this module, and starts in two thirds of the time without the modules that
read files. So they are imported where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np

from lqconvert.errors import LqError

if TYPE_CHECKING:
    from lqconvert.tflite.graph import Tensor

#: The largest number of values in an input or output of a file for TFLite Micro, checked before it is run.
LARGEST_INPUT = 1 << 24


class Scale(NamedTuple):
    """The conversion of codes to real values, (code - zero point) * scale. Scale 0: not quantized."""

    scale: float
    zero_point: int


class _Detail(TypedDict):
    name: str
    shape: np.ndarray  # with the batch axis
    dtype: type[np.generic]
    quantization: Scale


class Detail(_Detail, total=False):
    """An input or output, as LiteRT's interpreter describes it."""

    index: int  # of the tensor; only the interpreter gives it


def code_range(detail: Detail) -> tuple[int, int]:
    """The smallest and the largest code of an input or output."""
    limits = np.iinfo(np.dtype(detail["dtype"]).name)
    return limits.min, limits.max


class Interface:
    """The inputs and outputs of a .tflite file, and the conversion of their codes to real values.

    If a file has several inputs or outputs, an example contains all of them, flattened and concatenated.

    Attributes:
        inputs, outputs: as LiteRT's interpreter describes them.
    """

    def __init__(self, inputs: list[Detail], outputs: list[Detail]) -> None:
        self.inputs, self.outputs = inputs, outputs

    @classmethod
    def of(cls, tflite: bytes) -> Interface:
        """The interface of a file that LiteRT may not be able to run: one for TFLite Micro.

        Raises:
            LqError: if the file is damaged.
        """
        from lqconvert.tflite.flatbuffer import read

        graph = read(tflite).main
        inputs, outputs = (
            [_detail(graph.tensors[index]) for index in side] for side in (graph.inputs, graph.outputs)
        )
        return cls(inputs, outputs)

    @property
    def example_shape(self) -> tuple[int, ...]:
        """The shape of an example for :meth:`invoke`."""
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
        """The shape of an example's output; with several outputs, all values together."""
        shapes = [tuple(int(n) for n in detail["shape"][1:]) for detail in self.outputs]
        return shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)

    @property
    def output_units(self) -> int:
        """The last axis of the output."""
        return self.output_shape[-1] if self.output_shape else 1

    @property
    def quantizations(self) -> tuple[dict[str, Scale], dict[str, Scale]]:
        """Scales of the inputs and of the outputs, by name; (0, 0) if they are not quantized."""
        inputs, outputs = (
            {d["name"]: Scale(float(d["quantization"][0]), int(d["quantization"][1])) for d in side}
            for side in (self.inputs, self.outputs)
        )
        return inputs, outputs

    @property
    def output_steps(self) -> np.ndarray:
        """The scale of the output; with several outputs, the scale of each value of an example."""
        scales = [detail["quantization"][0] for detail in self.outputs]
        if len(scales) == 1:
            return np.array(scales[0], np.float32)
        return np.repeat(scales, [int(np.prod(detail["shape"][1:])) for detail in self.outputs])

    def random_examples(self, count: int) -> np.ndarray:
        """Random inputs for :meth:`Runner.invoke`: codes, values in 0..1, and 0 or 1 for indices."""
        rng = np.random.default_rng(0)
        shapes = [(count, *(int(n) for n in detail["shape"][1:])) for detail in self.inputs]
        pairs = zip(shapes, self.inputs, strict=True)
        return together([_random(rng, shape, detail) for shape, detail in pairs])

    def quantize(self, x: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Real inputs [n, ...] (a list for several inputs) in the file's own types."""
        return coded([x] if len(self.inputs) == 1 else x, self.inputs)  # type: ignore[list-item,arg-type]

    def dequantize(self, y: np.ndarray) -> np.ndarray:
        """Outputs of the file as float32, in the same shape."""
        return together(real(y, self.outputs))


def split(examples: np.ndarray, shapes: Sequence[np.ndarray | Sequence[int]]) -> list[np.ndarray]:
    """Examples [n, total], split into their tensors [n, ...]. The shapes begin with a batch axis."""
    if len(shapes) == 1:
        return [examples]
    ends = np.cumsum([int(np.prod(shape[1:])) for shape in shapes])
    parts = np.split(examples.reshape(len(examples), -1), ends[:-1], axis=1)
    return [part.reshape(len(examples), *shape[1:]) for part, shape in zip(parts, shapes, strict=True)]


def coded(parts: Sequence[np.ndarray], details: Sequence[Detail]) -> np.ndarray:
    """Real values [n, ...] of each input or output as codes, in one array of examples."""
    return together([_quantized(part, detail) for part, detail in zip(parts, details, strict=True)])


def real(examples: np.ndarray, details: Sequence[Detail]) -> list[np.ndarray]:
    """The real values (float32 [n, ...]) of each input or output in examples of codes."""
    parts = split(examples, [detail["shape"] for detail in details])
    return [_dequantized(part, detail) for part, detail in zip(parts, details, strict=True)]


def together(parts: Sequence[np.ndarray]) -> np.ndarray:
    """A single input or output as it is; several are flattened and concatenated."""
    return parts[0] if len(parts) == 1 else np.concatenate([x.reshape(len(x), -1) for x in parts], axis=1)


def _random(rng: np.random.Generator, shape: tuple[int, ...], detail: Detail) -> np.ndarray:
    dtype = detail["dtype"]
    if dtype in (np.int8, np.uint8) or (dtype == np.int16 and detail["quantization"][0]):
        low, high = code_range(detail)
        return rng.integers(low, high + 1, shape).astype(dtype)
    return rng.random(shape, np.float32) if dtype == np.float32 else rng.integers(0, 2, shape).astype(dtype)


def _detail(tensor: Tensor) -> Detail:
    from lqconvert.tflite.graph import DTYPES, text_of

    name, scale = text_of(tensor.name), Scale(0.0, 0)
    if len(tensor.scales) == 1:
        scale = Scale(float(tensor.scales[0]), tensor.zero_point)
    if math.prod(tensor.shape) > LARGEST_INPUT:
        raise LqError(f"input or output '{name}' has more than {LARGEST_INPUT:,} values")
    if tensor.type not in DTYPES:
        raise LqError(f"input or output '{name}' has an unsupported type")
    shape = np.array(tensor.shape, np.int32)
    return {"name": name, "shape": shape, "dtype": DTYPES[tensor.type], "quantization": scale}


def _quantized(x: np.ndarray, detail: Detail) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    if not scale:  # float, or indices
        return x.astype(detail["dtype"])
    return np.clip(np.round(x / scale) + zero_point, *code_range(detail)).astype(detail["dtype"])


def _dequantized(y: np.ndarray, detail: Detail) -> np.ndarray:
    scale, zero_point = detail["quantization"]
    return (y.astype(np.float32) - zero_point) * scale if scale else y.astype(np.float32)
