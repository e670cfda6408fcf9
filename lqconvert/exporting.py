"""From a fine-tuned model to an integer-only .tflite whose weights are exactly the learned codes.

TFLite's converter has its own mind about weight scales, so it is given *fingerprints* in place of the
weights: random codes, different for every layer, that it keeps bit for bit. In the file that it makes each
weight tensor is recognized by its fingerprint, which proves layer and layout, and is overwritten with the
learned codes and scales.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from lqconvert.codes import Codes, LayerCodes, TensorCodes, native
from lqconvert.errors import LqError
from lqconvert.granularity import KEPT_AXES, class_name, kernel_name
from lqconvert.quantizers import (
    ActivationQuantizer,
    FollowingQuantizer,
    QuantizedLayer,
    scale_and_zero_point,
)
from lqconvert.rescaling import fold_input_scales

#: For each linear TFLite operator, the places of its input, kernel and bias among its inputs.
OPERANDS = {
    "CONV_2D": (0, 1, 2),
    "DEPTHWISE_CONV_2D": (0, 1, 2),
    "FULLY_CONNECTED": (0, 1, 2),
    "TRANSPOSE_CONV": (2, 1, 3),
}


@dataclass
class Exported:
    """An exported file and what it holds.

    ``codes`` are the codes in the file; where TFLite cannot hold the learned granularity they are recoded,
    with the deviation beside them.
    """

    tflite: bytes
    codes: Codes
    input_scale: float
    input_zero_point: int
    output_scale: float
    output_zero_point: int


def learned_codes(model: tf_keras.Model) -> Codes:
    """The integer codes, scales and activation parameters of a rewritten model as they stand."""
    codes = Codes({})
    for layer in model.layers:
        if isinstance(layer, QuantizedLayer):
            tensors = {}
            for name, quantizer in layer.quantizers.items():
                weights = getattr(layer.layer, name)
                scale = quantizer.scale
                integers = quantizer.codes(tf.convert_to_tensor(weights), scale).numpy()
                tensors[name] = TensorCodes(
                    integers.astype(np.int32), scale.numpy(), _granularity(layer.layer, quantizer.kept_axes)
                )
            bias = layer.layer.bias.numpy() if layer.layer.use_bias else None
            if "bias" in tensors:
                bias = tensors["bias"].values
            kernel = tensors[kernel_name(layer.layer)]
            kind = class_name(layer.layer)
            codes.layers[layer.name] = LayerCodes(layer.name, kind, kernel, bias, tensors.get("bias"))
        elif isinstance(layer, ActivationQuantizer):
            codes.activations[layer.name] = layer.scale_and_zero_point
    return codes


def _granularity(layer: Any, kept_axes: tuple[int, ...]) -> str:
    names = [name for name, kept in KEPT_AXES.items() if kept[class_name(layer)] == kept_axes]
    return "output-channel-wise" if "output-channel-wise" in names else names[0]


def tflite_layout(kind: str, kernel: np.ndarray) -> np.ndarray:
    """A Keras kernel of a layer of this class as TFLite stores it."""
    if kind == "Dense":
        return kernel.T
    if kind == "DepthwiseConv2D":
        return kernel.reshape(1, *kernel.shape[:2], -1)
    if kind == "Conv2DTranspose":
        return kernel.transpose(2, 0, 1, 3)
    if kind == "Conv1D":
        kernel = kernel[np.newaxis]
    return kernel.transpose(3, 0, 1, 2)


def convert(model: tf_keras.Model, *, integer: bool) -> bytes:
    """Runs TFLite's converter on a model with batch size 1."""
    call = tf.function(lambda *x: model(list(x) if len(x) > 1 else x[0], training=False))
    signature = [tf.TensorSpec((1, *x.shape[1:]), x.dtype) for x in model.inputs]
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [call.get_concrete_function(*signature)], model
    )
    if integer:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    try:
        return converter.convert()
    except Exception as error:  # the converter raises bare Exceptions
        raise LqError(
            f"TFLite's converter refused the model: {str(error).strip().splitlines()[0]}"
        ) from error


def export(model: tf_keras.Model, batches: Iterable[np.ndarray] = ()) -> Exported:
    """Writes a rewritten (and trained) model as an integer-only .tflite.

    Args:
        model: what :func:`lqconvert.rewrite` gives, calibrated or trained.
        batches: a few batches of inputs, preprocessed as for the model. With them, scales of input channels
            are folded into the layer in front where that is exact; without, all are recoded.

    Raises:
        LqError: if the model has no integer-only form, or a tensor cannot be proved to be a layer's.
    """
    from ai_edge_litert import schema_py_generated as schema

    codes, batches = learned_codes(model), list(batches)
    if batches:
        codes, ranges = fold_input_scales(model, codes, batches)
        codes.activations |= {name: scale_and_zero_point(*limits) for name, limits in ranges.items()}
    codes = _native_codes(codes)
    plain, fingerprints = _fingerprinted(model, codes)
    flat = schema.ModelT.InitFromPackedBuf(convert(plain, integer=True), 0)
    graph = flat.subgraphs[0]
    _refuse_float(flat, schema)
    unwritten = dict(fingerprints)
    for operator in graph.operators:
        kind = _operator_name(flat, operator, schema)
        if kind not in OPERANDS:
            continue
        input_, kernel, bias = OPERANDS[kind]
        tensor = graph.tensors[operator.inputs[kernel]]
        name = _identify(flat, tensor, unwritten)
        del unwritten[name]
        layer = codes.layers[name]
        integers = tflite_layout(layer.kind, layer.kernel.codes)
        _write(flat, tensor, integers.astype(np.int8))
        scales = layer.kernel.scale.astype(np.float32).ravel()
        tensor.quantization.scale = scales
        tensor.quantization.zeroPoint = np.zeros(len(scales), np.int64)
        tensor.quantization.min = tensor.quantization.max = None
        if kind == "DEPTHWISE_CONV_2D":
            tensor.quantization.quantizedDimension = 3
        if len(operator.inputs) > bias and operator.inputs[bias] >= 0:
            source = graph.tensors[operator.inputs[input_]]
            bias_scales = (np.float32(source.quantization.scale[0]) * scales).astype(np.float32)
            floats = np.zeros(_outputs(layer)) if layer.bias is None else layer.bias
            integers = np.round(floats.astype(np.float64) / bias_scales)
            if np.abs(integers).max() >= 2**31:
                raise LqError(f"layer '{name}': its bias does not fit int32 on the grid of its scales")
            bias_tensor = graph.tensors[operator.inputs[bias]]
            _write(flat, bias_tensor, integers.astype(np.int32))
            bias_tensor.quantization.scale = bias_scales
            bias_tensor.quantization.zeroPoint = np.zeros(len(scales), np.int64)
        elif layer.bias is not None:
            raise LqError(f"layer '{name}': the converter left no place for its bias")
    if unwritten:
        raise LqError(f"layers not found in the converted file: {', '.join(unwritten)}")
    _strip(flat)
    tflite = _pack(flat)
    first, last = graph.tensors[graph.inputs[0]].quantization, graph.tensors[graph.outputs[0]].quantization
    return Exported(
        tflite,
        codes,
        float(first.scale[0]),
        int(first.zeroPoint[0]),
        float(last.scale[0]),
        int(last.zeroPoint[0]),
    )


def _outputs(layer: LayerCodes) -> int:
    shape = tflite_layout(layer.kind, layer.kernel.codes).shape
    return shape[-1] if layer.kind == "DepthwiseConv2D" else shape[0]


def _native_codes(codes: Codes) -> Codes:
    layers = {}
    for name, layer in codes.layers.items():
        kernel = native(layer.kernel, KEPT_AXES["output-channel-wise"][layer.kind])
        layers[name] = LayerCodes(name, layer.kind, kernel, layer.bias, layer.bias_codes)
    return Codes(layers, codes.activations)


def _fingerprinted(
    model: tf_keras.Model, codes: Codes
) -> tuple[tf_keras.Model, dict[str, tuple[np.ndarray, float]]]:
    """The model as the converter is to see it, and for each layer its fingerprint and that one's scale."""

    def plain(layer: Any) -> Any:
        if isinstance(layer, QuantizedLayer):
            return type(layer.layer).from_config(layer.layer.get_config() | {"name": layer.name})
        if isinstance(layer, ActivationQuantizer):
            scale, zero_point = (np.float64(number) for number in codes.activations[layer.name])
            limits = (-128 - zero_point) * scale, (127 - zero_point) * scale
            return ActivationQuantizer(fixed=limits, name=layer.name)
        if isinstance(layer, FollowingQuantizer):
            return tf_keras.layers.Activation("linear", name=layer.name)
        return type(layer).from_config(layer.get_config())

    clone = tf_keras.models.clone_model(model, clone_function=plain)
    for layer in clone.layers:
        if isinstance(layer, ActivationQuantizer):
            layer.limits.assign(layer.fixed)
    rng = np.random.default_rng(0)
    fingerprints = {}
    for number, (name, layer) in enumerate(codes.layers.items()):
        pattern = rng.integers(-127, 128, layer.kernel.codes.shape)
        pattern = _reach_127(layer.kind, pattern)
        scale = 2.0**-10 * (1 + number / 1024)
        weights = [(pattern * scale).astype(np.float32)]
        if layer.bias is not None:
            weights.append(rng.normal(size=layer.bias.shape).astype(np.float32))
        clone.get_layer(name).set_weights(weights)
        fingerprints[name] = (tflite_layout(layer.kind, pattern).astype(np.int8), scale)
    return clone, fingerprints


def _reach_127(kind: str, pattern: np.ndarray) -> np.ndarray:
    """The pattern with 127 as the first weight of every output channel."""
    pattern = pattern.copy()
    axes = KEPT_AXES["output-channel-wise"][kind]
    pattern[tuple(slice(None) if axis in axes else 0 for axis in range(pattern.ndim))] = 127
    return pattern


def _operator_name(flat: Any, operator: Any, schema: Any) -> str:
    code = flat.operatorCodes[operator.opcodeIndex].builtinCode
    return next(name for name, value in vars(schema.BuiltinOperator).items() if value == code)


def _refuse_float(flat: Any, schema: Any) -> None:
    for operator in flat.subgraphs[0].operators:
        for index in (*operator.inputs, *operator.outputs):
            if index >= 0 and flat.subgraphs[0].tensors[index].type == schema.TensorType.FLOAT32:
                kind = _operator_name(flat, operator, schema)
                name = flat.subgraphs[0].tensors[operator.outputs[0]].name.decode()
                raise LqError(f"'{name}' ({kind}) has no integer kernel: the file would compute in float")


def _identify(flat: Any, tensor: Any, fingerprints: dict[str, tuple[np.ndarray, float]]) -> str:
    stored = np.asarray(flat.buffers[tensor.buffer].data, np.uint8).view(np.int8)
    for name, (pattern, scale) in fingerprints.items():
        if (
            pattern.size == stored.size
            and np.allclose(tensor.quantization.scale, scale, rtol=1e-5)
            and np.array_equal(pattern.ravel(), stored)
        ):
            return name
    raise LqError(
        f"tensor '{tensor.name.decode()}' of the converted file is no layer's: cannot write its codes"
    )


def _write(flat: Any, tensor: Any, values: np.ndarray) -> None:
    """Gives a tensor a buffer of its own: the converter may share one between tensors."""
    from ai_edge_litert import schema_py_generated as schema

    users = sum(other.buffer == tensor.buffer for other in flat.subgraphs[0].tensors)
    if users > 1:
        tensor.buffer = len(flat.buffers)
        flat.buffers.append(schema.BufferT())
    flat.buffers[tensor.buffer].data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)


def _strip(flat: Any) -> None:
    """Drops what no runtime reads: names except those of inputs and outputs, and the converter's notes."""
    graph = flat.subgraphs[0]
    kept = {*graph.inputs, *graph.outputs}
    for index, tensor in enumerate(graph.tensors):
        if index not in kept:
            tensor.name = None
        if tensor.quantization is not None:
            tensor.quantization.min = tensor.quantization.max = None
    for entry in flat.metadata or []:
        flat.buffers[entry.buffer].data = None
    flat.metadata = None


def _pack(flat: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(flat.Pack(builder), b"TFL3")
    return bytes(builder.Output())
