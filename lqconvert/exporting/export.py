"""Exports a fine-tuned model as an integer-only .tflite whose weights are exactly the learned codes.

TFLite's converter chooses weight scales itself. So it gets *fingerprints* instead of the weights: random
codes, different for every layer, that it keeps bit for bit. In the converted file, each weight tensor is
found by its fingerprint, which identifies the layer and the memory layout, and is replaced by the learned
codes and scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from lqconvert.errors import LqError, first_line
from lqconvert.exporting.attention_mask import put_attention_mask, put_zeros
from lqconvert.exporting.codes import Codes, LayerCodes, TensorCodes, native
from lqconvert.exporting.fold_channel_scales import fold_input_scales
from lqconvert.exporting.int16 import CODE_STEPS, activation_bits, check_layers, widen
from lqconvert.exporting.lookup import number_of, placeholder_slope, put_lookup
from lqconvert.exporting.loop import Loop, fill_loop, is_loop, put_loop
from lqconvert.exporting.lstm import FusedLSTM, fill_lstm, put_lstm
from lqconvert.exporting.masked_mean import put_masked_mean
from lqconvert.exporting.normalization import put_normalization
from lqconvert.exporting.recurrent import First, Placeholder, with_keras_layers
from lqconvert.exporting.step_masks import StepMasks
from lqconvert.keras_loader.custom_layers import AttentionMask, Constant, Elementwise, Slice, ZeroMasked
from lqconvert.keras_loader.layer_kinds import LAYERS, class_name, kind_of
from lqconvert.keras_loader.recurrent_layers import (
    LSTMStates,
    MaskedInputs,
    MaskedMean,
    RecurrentInputs,
    RecurrentStates,
    states_behind,
)
from lqconvert.quantization.granularity import KEPT_AXES, KERNELS, kernel_name
from lqconvert.quantization.layers import (
    ActivationQuantizer,
    FollowingQuantizer,
    QuantizedLayer,
    scale_and_zero_point,
)
from lqconvert.quantization.model_outputs import traced
from lqconvert.quantization.rewrite import float_layers, quantized_output
from lqconvert.tflite.editing import repeat_by_adding, strip
from lqconvert.tflite.flatbuffer import read, write
from lqconvert.tflite.graph import (
    LSTM,
    LSTM_INPUT_KERNELS,
    OPERANDS,
    Graph,
    Model,
    Operator,
    Port,
    Quantization,
    Signature,
    Tensor,
    text_of,
)
from lqconvert.tflite.interface import Scale


@dataclass
class Exported:
    """An exported file and its content.

    ``codes`` are the codes in the file. If TFLite cannot hold the learned granularity, they are recoded, and
    each tensor has its deviation. ``order`` is the layers' names in the order of the file's kernels.
    """

    tflite: bytes
    codes: Codes
    order: list[str]
    input_scale: float
    input_zero_point: int
    output_scale: float
    output_zero_point: int


def learned_codes(model: tf_keras.Model) -> Codes:
    """The current integer codes, scales and activation parameters of a rewritten model."""
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
    if not kept_axes:
        return "scalar"
    names = [name for name, kept in KEPT_AXES.items() if kept[class_name(layer)] == kept_axes]
    return "output-channel-wise" if "output-channel-wise" in names else names[0]


def tflite_layout(kind: str, kernel: np.ndarray) -> np.ndarray:
    """The kernel of a Keras layer of class ``kind`` in TFLite's memory layout."""
    if KERNELS[kind].is_matrix:
        return kernel.T
    if kind == "DepthwiseConv2D":
        return kernel.reshape(1, *kernel.shape[:2], -1)
    if kind == "Conv2DTranspose":
        return kernel.transpose(2, 0, 1, 3)
    if kind == "Conv1D":
        kernel = kernel[np.newaxis]
    return kernel.transpose(3, 0, 1, 2)


def convert(model: tf_keras.Model, *, integer: bool, outputs: Sequence[str] = ()) -> bytes:
    """Runs TFLite's converter on a model with batch size 1.

    Several inputs or outputs are in the model's order. They have the names of the model's, or the names in
    ``outputs``.

    Raises:
        LqError: if the converter refuses the model.
    """
    model = model if integer else with_keras_layers(model)
    call = traced(lambda *x: model(list(x) if len(x) > 1 else x[0], training=False))
    signature = [tf.TensorSpec((1, *x.shape[1:]), x.dtype) for x in model.inputs]
    # With a Keras model, the converter would trace and save the functions of every layer, which takes long.
    # So does writing and reading a SavedModel, without which it does not recognize recurrent layers.
    variables = tf.Module()
    variables.all = model.variables
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [call.get_concrete_function(*signature)], variables
    )
    recurrent = any(isinstance(layer, tf_keras.layers.RNN) for layer in model.layers)
    converter.experimental_lower_to_saved_model = recurrent
    if integer:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    try:
        tflite = converter.convert()
    except Exception as error:  # the converter raises bare Exceptions
        raise LqError(f"TFLite's converter refused the model: {first_line(error)}") from error
    edited = read(tflite)
    if not recurrent:
        edited.signatures = [_numbered(edited.main)]
    for operator in edited.main.operators:
        if operator.name == LSTM:
            operator.set_option("cellClip", 0.0)  # the converter sets 10, which Keras's layer has not
    if len(model.inputs) > 1 or len(model.outputs) > 1:
        _put_in_order(edited, model.input_names, outputs or model.output_names)
    return write(edited)


def export(model: tf_keras.Model, batches: Iterable[np.ndarray] = ()) -> Exported:
    """Converts a rewritten (and trained) model to an integer-only .tflite.

    Args:
        model: a calibrated or trained model from :func:`lqconvert.rewrite`.
        batches: a few batches of inputs, preprocessed as for the model. With them, scales of input channels
            are folded into the layer in front if that is exact. Otherwise these kernels are recoded.

    Raises:
        LqError: if the model has no integer-only form, or a tensor of the file fits no layer.
    """
    codes, batches = learned_codes(model), list(batches)
    if batches:
        codes, ranges = fold_input_scales(model, codes, batches)
        codes.activations |= {
            name: scale_and_zero_point(*limits, model.get_layer(name).bits) for name, limits in ranges.items()
        }
    template = Template.of(model, _native_codes(codes))
    tflite = template.fill(codes)
    graph = read(tflite).main
    first, last = (_scale(graph.tensors[indices[0]]) for indices in (graph.inputs, graph.outputs))
    return Exported(
        tflite,
        _native_codes(codes),
        template.order,
        *first,
        *last,
    )


def _scale(tensor: Tensor) -> Scale:
    """Scale and zero point of a tensor; (1, 0) for indices, which are not quantized."""
    return Scale(float(tensor.scales[0]), tensor.zero_point) if len(tensor.scales) else Scale(1.0, 0)


@dataclass(frozen=True)
class Template:
    """A converted file whose kernels are assigned to layers. It can be filled with codes repeatedly."""

    tflite: bytes
    layers: list[str | FusedLSTM | Loop]  # the layer or layers of each operator with kernels

    @property
    def order(self) -> list[str]:
        """The layers of its kernels."""
        return [name for each in self.layers for name in ([each] if isinstance(each, str) else each.kernels)]

    @cached_property
    def model(self) -> Model:
        """The file's content. It is read once."""
        return read(self.tflite)

    @classmethod
    def of(cls, model: tf_keras.Model, codes: Codes) -> Template:
        """Converts a rewritten model with fingerprints instead of its weights.

        Args:
            codes: codes that TFLite can hold. The file gets their activation scales.
        """
        wide = activation_bits(model) == 16
        if wide:
            check_layers(model)
        plain, fingerprints = _fingerprinted(model, codes)
        names = [name.removesuffix("_quantized") for name in model.output_names]
        converted = read(convert(plain, integer=True, outputs=getattr(model, "given_outputs", names)))
        _quantize_unread(converted, model, codes)
        _refuse_float(converted, float_layers(model))
        layers: list[str | FusedLSTM | Loop] = []
        masks = StepMasks(converted, model.input_names)
        for operator in _linear_operators(converted):
            tensor = converted.main.tensors[operator.inputs[OPERANDS[operator.name][1]]]
            name = _identify(tensor, fingerprints)
            del fingerprints[name]
            layers.append(_replaced(masks, operator, model, model.get_layer(name)))
        if fingerprints:
            raise LqError(f"layers not found in the converted file: {', '.join(fingerprints)}")
        if wide:
            widen(converted, _constants(model, codes))
        repeat_by_adding(converted)
        replaced = _with_placeholder(model)
        for operator in list(converted.main.operators):
            number = number_of(operator)
            if number is not None:
                layer = replaced[number]
                _put_in_place(masks, operator, layer)
        return cls(write(converted), layers)

    def fill(self, codes: Codes) -> bytes:
        """The file with these codes, scales and biases. The activations' scales stay as they are."""
        filled = self.model.copy()
        graph, layers = filled.main, _native_codes(codes).layers
        for operator, name in zip(_linear_operators(filled), self.layers, strict=True):
            if isinstance(name, FusedLSTM):
                fill_lstm(graph, operator, layers[name.inputs], layers[name.states])
                continue
            if isinstance(name, Loop):
                fill_loop(filled, operator, layers[name.inputs], layers[name.states], name)
                continue
            input_, kernel, bias = OPERANDS[operator.name]
            layer = layers[name]
            scales = layer.kernel.scale.astype(np.float32).ravel()
            tensor = graph.tensors[operator.inputs[kernel]]
            axis = 3 if operator.name == "DEPTHWISE_CONV_2D" else None
            _write(tensor, tflite_layout(layer.kind, layer.kernel.codes).astype(np.int8), scales, axis)
            if len(operator.inputs) > bias and operator.inputs[bias] >= 0:
                source = graph.tensors[operator.inputs[input_]]
                bias_scales = (np.float32(source.scales[0]) * scales).astype(np.float32)
                floats = np.zeros(_outputs(layer)) if layer.bias is None else layer.bias
                integers = np.round(floats.astype(np.float64) / bias_scales)
                wide = source.type == "INT16"
                if np.abs(integers).max() >= 2.0 ** (63 if wide else 31):
                    raise LqError(f"layer '{name}': its bias does not fit the grid of its scales")
                kind = np.int64 if wide else np.int32
                _write(graph.tensors[operator.inputs[bias]], integers.astype(kind), bias_scales)
            elif layer.bias is not None:
                raise LqError(f"layer '{name}': the converter left no place for its bias")
        strip(filled)
        return write(filled)


def _replaced(
    masks: StepMasks, operator: Operator, model: tf_keras.Model, layer: Any
) -> str | FusedLSTM | Loop:
    """The layers of an operator, which is replaced if it is a recurrent layer's placeholder."""
    if not isinstance(layer.layer, RecurrentInputs):
        return str(layer.name)
    states = states_behind(layer)
    if isinstance(states.layer, LSTMStates):
        fused = FusedLSTM(layer.name, states.name, float(states.layer.limit))
        put_lstm(masks.model, operator, fused)
        return fused
    loop = Loop.of(layer.name, states, only_last=_only_last(model, states))
    put_loop(masks.model, operator, loop, masks.put(operator, layer, states))
    return loop


def _only_last(model: tf_keras.Model, states: Any) -> bool:
    """Whether only the last step of a layer's output is used."""
    (node,) = states.outbound_nodes
    quantizer = node.outbound_layer
    readers = [each.outbound_layer for each in quantizer.outbound_nodes]
    last = [(-1, None, None), (None, None, None)]
    given = {id(output) for output in model.outputs}
    return id(quantizer.output) not in given and all(
        isinstance(reader, Slice) and reader.slices == last for reader in readers
    )


def _put_in_place(masks: StepMasks, placeholder: Operator, layer: Any) -> None:
    """Replaces a placeholder by the operators of its layer."""
    model = masks.model
    if isinstance(layer, Elementwise):
        put_lookup(model, placeholder, layer)
    elif isinstance(layer, MaskedMean):
        put_masked_mean(masks, placeholder, layer)
    elif isinstance(layer, AttentionMask):
        put_attention_mask(masks, placeholder, layer)
    elif isinstance(layer, ZeroMasked):
        put_zeros(masks, placeholder, layer)
    else:
        put_normalization(model, placeholder, layer)


def _numbered(graph: Graph) -> Signature:
    """The names that the converter gives inputs and outputs: x_0, x_1, ..., output_0, output_1, ..."""
    inputs, outputs = (
        [Port(f"{name}_{number}".encode(), index) for number, index in enumerate(indices)]
        for name, indices in (("x", graph.inputs), ("output", graph.outputs))
    )
    return Signature(0, inputs, outputs, b"serving_default")


def _quantize_unread(converted: Model, model: tf_keras.Model, codes: Codes) -> None:
    """Gives the inputs that only masks read, which the converter leaves float, their quantization."""
    for name, index in zip(model.input_names, converted.main.inputs, strict=True):
        tensor, found = converted.main.tensors[index], codes.activations.get(quantized_output(name))
        read = any(index in operator.inputs for operator in converted.main.operators)
        if found is not None and not read:
            scale, zero_point = found
            wide = model.get_layer(quantized_output(name)).bits == 16
            tensor.type = "INT8"  # until the file is widened
            tensor.quantization = Quantization.one(CODE_STEPS * scale if wide else scale, zero_point)


def _put_in_order(model: Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Puts several inputs or outputs of a converted file into the model's order, with these names.

    The converter chooses their order, and calls them x_0, x_1, ..., output_0, output_1, ...
    """
    graph, (signature,) = model.main, model.signatures or []
    if len(signature.inputs) > 1:
        signature.inputs = _renamed(model, signature.inputs, inputs)
        graph.inputs = tuple(port.tensor for port in signature.inputs)
    if len(signature.outputs) > 1:
        signature.outputs = _renamed(model, signature.outputs, outputs)
        graph.outputs = tuple(port.tensor for port in signature.outputs)


def _renamed(model: Model, ports: Sequence[Port], names: Sequence[str]) -> list[Port]:
    """The ports in the order of the numbers in their names, with these names. Tensors are renamed too."""
    numbered = sorted(ports, key=lambda port: int(text_of(port.name).rsplit("_", 1)[1]))
    renamed = []
    for port, name in zip(numbered, names, strict=True):
        model.main.tensors[port.tensor].name = name.encode()
        renamed.append(replace(port, name=name.encode()))
    return renamed


def _linear_operators(model: Model) -> list[Operator]:
    """The integer operators with kernels, without those inside a layer that stays float."""
    graph = model.main
    places = {name: kernel for name, (_, kernel, _) in OPERANDS.items()} | {LSTM: LSTM_INPUT_KERNELS.start}

    def has_kernels(operator: Operator) -> bool:
        if operator.name not in places:
            return is_loop(graph, operator)
        return graph.tensors[operator.inputs[places[operator.name]]].type == "INT8"

    return [operator for operator in graph.operators if has_kernels(operator)]


def _outputs(layer: LayerCodes) -> int:
    shape = tflite_layout(layer.kind, layer.kernel.codes).shape
    return shape[-1] if layer.kind == "DepthwiseConv2D" else shape[0]


def _constants(model: tf_keras.Model, codes: Codes) -> Iterator[tuple[np.ndarray, float]]:
    """The values of Constant layers, and their scales."""
    for layer in model.layers:
        if isinstance(layer, Constant):
            yield layer.values.numpy(), codes.activations[quantized_output(layer.name)][0]


def _native_codes(codes: Codes) -> Codes:
    layers = {}
    for name, layer in codes.layers.items():
        kernel = native(layer.kernel, KEPT_AXES["output-channel-wise"][layer.kind])
        layers[name] = LayerCodes(name, layer.kind, kernel, layer.bias, layer.bias_codes)
    return Codes(layers, codes.activations)


def _with_placeholder(model: tf_keras.Model) -> list[Any]:
    """The layers for which the converter gets a placeholder."""
    return [layer for layer in model.layers if kind_of(layer).placeholder]


def units_of(layer: Any) -> int:
    """The units of the recurrent layer of which a quantized layer multiplies the inputs."""
    return int(states_behind(layer).layer.units)


def _fingerprinted(
    model: tf_keras.Model, codes: Codes
) -> tuple[tf_keras.Model, dict[str, tuple[np.ndarray, float]]]:
    """The model with fingerprints for the converter, and each layer's fingerprint with its scale."""
    replaced = _with_placeholder(model)

    def plain(layer: Any) -> Any:
        inner = layer.layer if isinstance(layer, QuantizedLayer) else None
        if isinstance(inner, RecurrentInputs):  # a placeholder with the output of the layer behind it
            return tf_keras.layers.Dense(units_of(layer), use_bias=False, name=layer.name)
        if isinstance(inner, RecurrentStates):
            return tf_keras.layers.Activation("linear", name=layer.name)
        if isinstance(layer, MaskedInputs):
            return First(name=layer.name)
        if isinstance(layer, QuantizedLayer):
            return type(layer.layer).from_config(layer.layer.get_config() | {"name": layer.name})
        if layer in replaced:
            slope, first_step = placeholder_slope(replaced.index(layer)), isinstance(layer, MaskedMean)
            return Placeholder(slope, first_step, name=layer.name)
        if isinstance(layer, (ActivationQuantizer, FollowingQuantizer)):
            source = layer.source() if isinstance(layer, FollowingQuantizer) else layer
            scale, zero_point = codes.activations[source.name]
            limits = (-128 - zero_point) * scale, (127 - zero_point) * scale
            if source.bits == 16:  # int8 until the file is widened
                limits = source.fixed or (-128 * CODE_STEPS * scale, 127 * CODE_STEPS * scale)
            return ActivationQuantizer(fixed=limits, name=layer.name)
        return type(layer).from_config(layer.get_config())

    clone = tf_keras.models.clone_model(model, clone_function=plain)
    for layer in clone.layers:
        if isinstance(layer, ActivationQuantizer):
            layer.limits.assign(layer.fixed)
        elif layer.name not in codes.layers and layer.weights:
            layer.set_weights(model.get_layer(layer.name).get_weights())
    rng = np.random.default_rng(0)
    fingerprints = {}
    for number, (name, layer) in enumerate(codes.layers.items()):
        if LAYERS[layer.kind].loops:
            continue  # its RecurrentInputs have a placeholder for both
        placeholder = layer.kind == "RecurrentInputs"
        kind, shape = layer.kind, layer.kernel.codes.shape
        if placeholder:
            kind, shape = "Dense", (shape[0], units_of(model.get_layer(name)))
        pattern = _reach_127(kind, rng.integers(-127, 128, shape))
        scale = 2.0**-10 * (1 + number / 1024)
        weights = [(pattern * scale).astype(np.float32)]
        if layer.bias is not None and not placeholder:
            # A small bias: for one that is too large for int32, the converter would choose another scale.
            weights.append(1e-6 * rng.normal(size=layer.bias.shape).astype(np.float32))
        clone.get_layer(name).set_weights(weights)
        fingerprints[name] = (tflite_layout(kind, pattern).astype(np.int8), scale)
    return clone, fingerprints


def _reach_127(kind: str, pattern: np.ndarray) -> np.ndarray:
    """The pattern with 127 as the first weight of every output channel."""
    pattern = pattern.copy()
    axes = KEPT_AXES["output-channel-wise"][kind]
    pattern[tuple(slice(None) if axis in axes else 0 for axis in range(pattern.ndim))] = 127
    return pattern


def _refuse_float(model: Model, kept: Iterable[str]) -> None:
    """Refuses operators that compute in float, except in layers that are allowed to."""
    graph = model.main
    for operator in graph.operators:
        tensors = [graph.tensors[index] for index in (*operator.operands, *operator.outputs)]
        if all(tensor.type != "FLOAT32" for tensor in tensors):
            continue
        kind, name = operator.name, text_of(graph.tensors[operator.outputs[0]].name)
        moves = kept and kind in ("QUANTIZE", "DEQUANTIZE", "RESHAPE")  # at the borders of these layers
        if not moves and not any(f"/{layer}/" in name for layer in kept):
            raise LqError(f"'{name}' ({kind}) has no integer kernel: the file would compute in float")


def _identify(tensor: Tensor, fingerprints: dict[str, tuple[np.ndarray, float]]) -> str:
    stored = tensor.buffer.data.view(np.int8)
    for name, (pattern, scale) in fingerprints.items():
        if (
            pattern.size == stored.size
            and np.allclose(tensor.scales, scale, rtol=1e-5)
            and np.array_equal(pattern.ravel(), stored)
        ):
            return name
    raise LqError(
        f"tensor '{text_of(tensor.name)}' of the converted file is no layer's: cannot write its codes"
    )


def _write(tensor: Tensor, integers: np.ndarray, scales: np.ndarray, axis: int | None = None) -> None:
    """Replaces a tensor's integers and scales, and the axis of the scales if one is given."""
    tensor.set_values(integers)
    before = tensor.quantization or Quantization()
    zero_points = np.zeros(len(scales), np.int64)
    axis = before.axis if axis is None else axis
    tensor.quantization = replace(before, scales=scales, zero_points=zero_points, axis=axis)
