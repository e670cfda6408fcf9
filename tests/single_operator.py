"""Int8 files of one linear operator with any codes, made without TensorFlow."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from lqconvert.tflite.editing import add_constant, add_tensor, new_operator
from lqconvert.tflite.flatbuffer import write
from lqconvert.tflite.graph import OPERANDS, Model, Quantization

runtime = pytest.importorskip("tflite_micro", reason="TFLite Micro's interpreter is for Linux only").runtime

#: The shapes of kernel, input and output, for the numbers of taps, inputs and outputs.
SHAPES = {
    "CONV_2D": lambda k, i, o: ((o, k, k, i), (1, 7, 7, i), (1, 8 - k, 8 - k, o)),
    "DEPTHWISE_CONV_2D": lambda k, i, o: ((1, k, k, i), (1, 7, 7, i), (1, 8 - k, 8 - k, i)),
    "FULLY_CONNECTED": lambda k, i, o: ((o, i * k), (1, i * k), (1, o)),
    "TRANSPOSE_CONV": lambda k, i, o: ((o, k, k, i), (1, 4, 4, i), (1, 3 + k, 3 + k, o)),
}
VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 5, "TRANSPOSE_CONV": 3}


def quantization(scales, zero_point=0, axis=0):
    scales = np.asarray(scales, np.float32)
    return Quantization(scales, np.full(len(scales), zero_point, np.int64), axis)


def options_of(operator):
    kinds = {
        "CONV_2D": schema.Conv2DOptionsT,
        "DEPTHWISE_CONV_2D": schema.DepthwiseConv2DOptionsT,
        "FULLY_CONNECTED": schema.FullyConnectedOptionsT,
        "TRANSPOSE_CONV": schema.TransposeConvOptionsT,
    }
    options = kinds[operator]()
    if operator != "FULLY_CONNECTED":
        options.padding = schema.Padding.VALID
        options.strideH = options.strideW = 1
    if operator == "DEPTHWISE_CONV_2D":
        options.depthMultiplier = 1
    return options


def single_operator(operator: str, codes: np.ndarray, per_channel: bool, *, k: int, rng) -> bytes:
    """A file whose kernel has these codes; scales, bias and zero points are drawn."""
    taps = 1 if operator == "FULLY_CONNECTED" else k
    _, input_shape, output_shape = SHAPES[operator](taps, codes.shape[-1], codes.shape[0])
    model = Model.empty()
    graph = model.main
    axis = 3 if operator == "DEPTHWISE_CONV_2D" else 0
    scales = rng.uniform(0.005, 0.02, codes.shape[axis] if per_channel else 1).astype(np.float32)
    source = add_tensor(model, "INT8", input_shape, quantization([0.05], int(rng.integers(-128, 128))))
    kernel = add_constant(model, codes, quantization(scales, axis=axis if per_channel else 0))
    bias = rng.integers(-500, 500, codes.shape[axis]).astype(np.int32)
    offset = add_constant(model, bias, quantization(np.float32(0.05) * scales))
    result = add_tensor(model, "INT8", output_shape, quantization([0.1], int(rng.integers(-100, 100))))
    places = OPERANDS[operator]
    inputs = [-1] * (max(places) + 1)
    for place, index in zip(places, (source, kernel, offset), strict=True):
        inputs[place] = index
    if operator == "TRANSPOSE_CONV":
        inputs[0] = add_constant(model, np.array(output_shape, np.int32))
    graph.inputs, graph.outputs = (source,), (result,)
    graph.operators = [
        new_operator(model, operator, inputs, [result], options_of(operator), version=VERSIONS[operator])
    ]
    return write(model)


def in_litert(tflite: bytes, inputs: np.ndarray, kernels: str = "AUTO") -> np.ndarray:
    interpreter = Interpreter(
        model_content=tflite, experimental_op_resolver_type=getattr(OpResolverType, kernels)
    )
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for example in inputs:
        interpreter.set_tensor(source["index"], example[np.newaxis])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(result["index"]).copy())
    return np.concatenate(outputs)


def in_micro(tflite: bytes, inputs: np.ndarray) -> np.ndarray:
    interpreter = runtime.Interpreter.from_bytes(tflite, arena_size=1 << 22)
    outputs = []
    for example in inputs:
        interpreter.set_input(example[np.newaxis], 0)
        interpreter.invoke()
        outputs.append(interpreter.get_output(0).copy())
    return np.concatenate(outputs)
