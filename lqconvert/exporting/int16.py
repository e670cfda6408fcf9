"""Widens the activations of a converted int8 file to int16, as TFLite's 16x8 quantization has them.

Weights stay int8, zero points become 0 and biases int64. Only the types and scales of tensors change: the
int8 file was converted with scales of :data:`CODE_STEPS` int16 steps and zero points of 0, or with those that
TFLite prescribes for int8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import tf_keras
from ai_edge_litert import schema_py_generated as schema

from lqconvert.errors import LqError
from lqconvert.keras_loader.layer_kinds import class_name, kind_of
from lqconvert.quantization.layers import ActivationQuantizer
from lqconvert.tflite.editing import add_constant, add_tensor, new_operator, reshape
from lqconvert.tflite.graph import OPERANDS, Model, Operator, Quantization, Tensor, shown

#: An int8 step is this many int16 steps.
CODE_STEPS = 256
#: The scale of probabilities: prescribed by TFLite for int8 (with the zero point -128) and for int16.
PROBABILITY, WIDE_PROBABILITY = 1 / 256, 1 / 32768
#: The operators that LiteRT computes with int16.
OPERATORS = {
    *OPERANDS,
    *("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "BATCH_MATMUL", "SUM"),
    *("AVERAGE_POOL_2D", "MAX_POOL_2D", "MEAN", "REDUCE_MAX"),
    *("SOFTMAX", "LOGISTIC", "TANH", "RELU", "RELU6", "LEAKY_RELU", "QUANTIZE"),
    *("CONCATENATION", "PAD", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "STRIDED_SLICE", "SLICE"),
    *("SPLIT", "SPLIT_V", "PACK", "UNPACK", "TILE", "RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"),
}


def activation_bits(model: tf_keras.Model) -> int:
    """The bits of a rewritten model's activations; 8 if it quantizes none."""
    return next((each.bits for each in model.layers if isinstance(each, ActivationQuantizer)), 8)


def check_layers(model: tf_keras.Model) -> None:
    """Raises an LqError for a layer of a rewritten model that no runtime computes with 16-bit activations."""
    for layer in model.layers:
        inner = getattr(layer, "layer", layer)
        if kind_of(inner).only_int8:
            what = getattr(inner, "function", class_name(inner).removesuffix("Inputs"))
            _refuse(layer.name.removesuffix("_inputs"), what)


def widen(model: Model, constants: Iterable[tuple[np.ndarray, float]] = ()) -> None:
    """Gives every int8 activation of the main graph the type int16. Kernels and biases are filled in later.

    Args:
        constants: values in the graph that are no weights of a linear layer, and their int16 scales.

    Raises:
        LqError: if an operator has no int16 kernel.
    """
    graph = model.main
    known = {_narrow(values, scale).tobytes(): _codes(values, scale, 16) for values, scale in constants}
    for operator in list(graph.operators):
        if operator.name == "DEPTH_TO_SPACE":
            _transposed(model, operator)
    kernels = {each.inputs[OPERANDS[each.name][1]] for each in graph.operators if each.name in OPERANDS}
    for operator in graph.operators:
        if any(graph.tensors[index].type == "INT8" for index in {*operator.outputs} - kernels):
            _check(operator, graph.tensors[operator.outputs[0]])
    for index in range(len(graph.tensors)):
        if graph.tensors[index].type == "INT8" and index not in kernels:
            _widen(graph.tensors[index], known)
    for operator in graph.operators:
        if operator.name in OPERANDS:
            _widen_bias(operator, graph.tensors)


def _check(operator: Operator, output: Tensor) -> None:
    if operator.name not in OPERATORS:
        _refuse(shown(output.name).split(";")[0], operator.name)


def _refuse(name: str, what: str) -> None:
    raise LqError(f"layer '{name}' ({what}) has no kernel for 16-bit activations", hint="activations")


def _codes(values: np.ndarray, scale: float, bits: int) -> np.ndarray:
    limit = 1 << (bits - 1)
    codes = np.clip(np.round(values / np.float32(scale)), -limit, limit - 1)
    return codes.astype(np.int8 if bits == 8 else np.int16)


def _narrow(values: np.ndarray, scale: float) -> np.ndarray:
    return _codes(values, scale * CODE_STEPS, 8)


def _widen(tensor: Tensor, known: Mapping[bytes, np.ndarray]) -> None:
    zero_point, scale = tensor.zero_point, tensor.scales[0]
    if zero_point:
        assert (zero_point, scale) == (-128, PROBABILITY), (zero_point, scale)
        scale = WIDE_PROBABILITY
    else:
        scale = scale / np.float32(CODE_STEPS)
    codes = tensor.values()
    tensor.type, tensor.quantization = "INT16", Quantization.one(scale)
    if codes is not None:
        coarse = codes.astype(np.int16) * np.int16(CODE_STEPS)
        tensor.set_values(known.get(codes.tobytes(), coarse).reshape(codes.shape))


def _widen_bias(operator: Operator, tensors: list[Tensor]) -> None:
    source, kernel, bias = OPERANDS[operator.name]
    for index in operator.inputs[bias:]:
        if index >= 0 and tensors[index].type == "INT32":
            tensor = tensors[index]
            scales = tensors[operator.inputs[source]].scales[0] * tensors[operator.inputs[kernel]].scales
            tensor.type, tensor.quantization = "INT64", Quantization(scales, np.zeros(len(scales), np.int64))
            tensor.set_values(np.zeros(tensor.shape, np.int64))


def _transposed(model: Model, operator: Operator) -> None:
    """Puts a TRANSPOSE between two RESHAPEs in the place of a DEPTH_TO_SPACE, which has no int16 kernel."""
    graph, block = model.main, operator.option("blockSize")
    (source,), (output,) = operator.inputs, operator.outputs
    tensor = graph.tensors[source]
    count, height, width, channels = tensor.shape
    rows, parts = count * height, channels // block
    split = add_tensor(model, "INT8", (rows, width, block, parts), tensor.quantization)
    moved = add_tensor(model, "INT8", (rows, block, width, parts), tensor.quantization)
    order = add_constant(model, np.array([0, 2, 1, 3], np.int32))
    place = graph.operators.index(operator)
    graph.operators[place : place + 1] = [
        reshape(model, source, split),
        new_operator(model, "TRANSPOSE", [split, order], [moved], schema.TransposeOptionsT()),
        reshape(model, moved, output),
    ]
