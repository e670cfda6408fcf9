"""The types of a file's inputs and outputs: operators around an int8 file that convert them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from lqconvert.data.preprocessing import Front
from lqconvert.errors import LqError
from lqconvert.tflite.editing import add_constant, add_tensor, new_operator
from lqconvert.tflite.flatbuffer import read, write
from lqconvert.tflite.graph import Model, Port, Quantization, Tensor
from lqconvert.tflite.interface import Interface, coded, real

#: The possible types of inputs and outputs with real values.
TYPES = ("int8", "uint8", "int16", "float32")
#: An int8 step is this many steps of an int16 border. So all int8 codes have exact int16 codes at zero point
#: 0.
INT16_STEPS = 128
#: The largest rounding error of float32, as a share of an int8 or int16 step.
FLOAT_NOISE = 1e-2


@dataclass(frozen=True)
class Border:
    """Gives an int8 or int16 file inputs and outputs of another type. Indices stay as they are.

    Args:
        io: one of TYPES. "int8" leaves the file as it is, and so does "int16" one with 16-bit activations.
        front: a scaling of a float32 input before it is quantized, if the model begins behind a front.
    """

    io: str = "int8"
    front: Front | None = None

    def __post_init__(self) -> None:
        if self.io not in TYPES:
            raise LqError(f"io '{self.io}': not one of {', '.join(TYPES)}")

    def around(self, tflite: bytes) -> bytes:
        """The file with this border. Inputs and outputs keep their names."""
        if self.io == "int8":
            return tflite
        model = read(tflite)
        graph = model.main
        entering = {index: self._passed(model, index, inward=True) for index in dict.fromkeys(graph.inputs)}
        leaving = {index: self._passed(model, index, inward=False) for index in dict.fromkeys(graph.outputs)}
        graph.inputs = tuple(entering[index] for index in graph.inputs)
        graph.outputs = tuple(leaving[index] for index in graph.outputs)
        for signature in model.signatures or []:
            signature.inputs = _moved(signature.inputs, entering)
            signature.outputs = _moved(signature.outputs, leaving)
        return write(model)

    def _passed(self, model: Model, inner: int, *, inward: bool) -> int:
        """Adds operators between an input or output and a new outer tensor, whose index it returns.

        A tensor that has the border's type, or that is not quantized, is its own outer tensor.
        """
        graph = model.main
        tensor = graph.tensors[inner]
        if tensor.type not in ("INT8", "INT16") or tensor.type == self.io.upper():
            return inner
        outer = add_tensor(model, self.io.upper(), tensor.shape, self._quantization(tensor))
        graph.tensors[outer].name, tensor.name = tensor.name, None
        if not inward:
            name = "DEQUANTIZE" if self.io == "float32" else "QUANTIZE"
            graph.operators.append(new_operator(model, name, [inner], [outer]))
            return outer
        operators, last = [], outer
        if self.front is not None:
            center, factor = self.front.arrays
            for name, constant, options in (
                ("SUB", center, schema.SubOptionsT()),
                ("MUL", factor, schema.MulOptionsT()),
            ):
                result = add_tensor(model, "FLOAT32", tensor.shape)
                operands = [last, add_constant(model, constant)]
                operators.append(new_operator(model, name, operands, [result], options))
                last = result
        graph.operators[:0] = [*operators, new_operator(model, "QUANTIZE", [last], [inner])]
        return outer

    def _quantization(self, inner: Tensor) -> Quantization | None:
        """The quantization of the outer tensor of an int8 tensor."""
        if self.io == "float32":
            return None
        if self.io == "uint8":
            return Quantization.one(inner.scales[0], inner.zero_point + 128)
        return Quantization.one(inner.scales[0] / INT16_STEPS)


def _moved(ports: list[Port], moved: dict[int, int]) -> list[Port]:
    return [replace(port, tensor=moved.get(port.tensor, port.tensor)) for port in ports]


def border_of(front: Front | None, io: str | None = None, bits: int = 8) -> Border:
    """The border of a model behind a front. By default float32 with a front in it, and integers without.

    Args:
        bits: of the activations, 8 or 16.

    Raises:
        LqError: if the type is too narrow for the activations.
    """
    io = io or (f"int{bits}" if front is None else "float32")
    if bits == 16 and io in ("int8", "uint8"):
        raise LqError(f"io '{io}': too narrow for 16-bit activations; choose int16 or float32")
    return Border(io, front if io == "float32" else None)


class Passage:
    """Converts examples between the outside and the inside of a file's border.

    Attributes:
        inner, outer: the inputs and outputs of the int8 file, and of the file with the border.
    """

    def __init__(self, border: Border, tflite: bytes) -> None:
        self.border = border
        self.inner, self.outer = Interface.of(tflite), Interface.of(border.around(tflite))

    def into(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Outer inputs [n, ...] close to these int8 ones, and the int8 inputs that the file makes of them."""
        if self.border.io == "int8":
            return codes, codes
        front, parts = self.border.front, real(codes, self.inner.inputs)
        outside = coded(parts if front is None else [front.undone(parts[0])], self.outer.inputs)
        parts = real(outside, self.outer.inputs)
        return outside, coded(parts if front is None else [front(parts[0])], self.inner.inputs)

    def out_of(self, outputs: np.ndarray) -> np.ndarray:
        """The int8 outputs [n, ...] that are converted to these outer ones.

        Raises:
            LqError: if no int8 outputs are, within a step of the border.
        """
        if self.border.io == "int8":
            return outputs
        parts = real(outputs, self.outer.outputs)
        codes = coded(parts, self.inner.outputs)
        exact = real(codes, self.inner.outputs)
        for part, same, inner, outer in zip(
            parts, exact, self.inner.outputs, self.outer.outputs, strict=True
        ):
            step = outer["quantization"][0] or FLOAT_NOISE * inner["quantization"][0]
            if np.abs(part - same).max(initial=0) > 1.001 * step:
                raise LqError(f"its {self.border.io} outputs fit no int8 outputs")
        return codes
