"""From a float model to one whose weights and activations pass through learned quantizers.

Both steps are graph rewrites done with tfmot's ModelTransformer: :func:`fold` turns the float model into
an equal one made of the operations that TFLite has, and :func:`rewrite` inserts the quantizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.graph_transformations.model_transformer import (  # noqa: E501
    ModelTransformer,
)
from tensorflow_model_optimization.python.core.quantization.keras.graph_transformations.transforms import (
    LayerNode,
    LayerPattern,
    Transform,
)

from lqconvert.errors import LqError
from lqconvert.loading import HardSwish
from lqconvert.quantizers import ActivationQuantizer, FollowingQuantizer, QuantizedLayer, WeightQuantizer
from lqconvert.schemes import LSQ, Scheme

#: The axes of each kernel that have a scale each. Conv1D is a Conv2D of height 1. A Dense kernel has no
#: spatial axes: its input axis is its row and its input channel.
KEPT_AXES: dict[str, dict[str, tuple[int, ...]]] = {
    "scalar": dict.fromkeys(("Dense", "Conv1D", "Conv2D", "DepthwiseConv2D", "Conv2DTranspose"), ()),
    "row-wise": {
        "Dense": (0,),
        "Conv1D": (),
        "Conv2D": (0,),
        "DepthwiseConv2D": (0,),
        "Conv2DTranspose": (0,),
    },
    "column-wise": {
        "Dense": (1,),
        "Conv1D": (0,),
        "Conv2D": (1,),
        "DepthwiseConv2D": (1,),
        "Conv2DTranspose": (1,),
    },
    "channel-wise": {
        "Dense": (0,),
        "Conv1D": (1,),
        "Conv2D": (2,),
        "DepthwiseConv2D": (2,),
        "Conv2DTranspose": (3,),
    },
    "output-channel-wise": {
        "Dense": (1,),
        "Conv1D": (2,),
        "Conv2D": (3,),
        "DepthwiseConv2D": (2, 3),
        "Conv2DTranspose": (2,),
    },
}
GRANULARITIES = tuple(KEPT_AXES)
LINEAR = tuple(KEPT_AXES["scalar"])

#: Operations whose TFLite kernels want the same scale in and out: no quantizer of their own behind them.
SAME_SCALE = {
    "InputLayer",
    "MaxPooling1D",
    "MaxPooling2D",
    "AveragePooling1D",
    "AveragePooling2D",
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "Flatten",
    "Reshape",
    "Permute",
    "ZeroPadding1D",
    "ZeroPadding2D",
    "Cropping1D",
    "Cropping2D",
    "UpSampling1D",
    "UpSampling2D",
}
#: Of these, those whose results are rounded to that scale.
ROUNDED = {"AveragePooling1D", "AveragePooling2D", "UpSampling2D"}
#: Operations whose output range TFLite prescribes: scale 1/256 or 1/128.
FIXED_RANGES = {"softmax": (0.0, 255 / 256), "sigmoid": (0.0, 255 / 256), "tanh": (-1.0, 127 / 128)}
LEARNED_RANGES = {
    *LINEAR,
    "Add",
    "Subtract",
    "Multiply",
    "Average",
    "Concatenate",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "ReLU",
    "LeakyReLU",
    "HardSwish",
}
#: A ReLU or ReLU6 right behind one of these becomes part of its kernel: one quantizer for both.
FUSES_RELU = {*LINEAR, "Add", "Subtract", "Multiply"}


def class_name(layer: Any) -> str:
    """A layer's class without the package it is registered under."""
    name = layer["class_name"] if isinstance(layer, dict) else type(layer).__name__
    return str(name).split(">")[-1]


def kernel_name(layer: Any) -> str:
    """The attribute that holds a linear layer's kernel."""
    return "depthwise_kernel" if class_name(layer) == "DepthwiseConv2D" else "kernel"


def _node(cls: type, config: dict[str, Any], weights: dict[str, np.ndarray], *inputs: LayerNode) -> LayerNode:
    """A new layer in a replacement graph."""
    layer = {"class_name": cls.__name__, "name": config["name"], "config": config, "inbound_nodes": []}
    return LayerNode(layer, weights, list(inputs))


class _Transform(Transform):
    """A rewrite given by a pattern and a function of the matched node."""

    def custom_objects(self) -> dict[str, type]:
        return {
            cls.__name__: cls
            for cls in (HardSwish, ActivationQuantizer, FollowingQuantizer, QuantizedLayer, WeightQuantizer)
        }


class SplitActivation(_Transform):
    """Dense(activation="relu") -> Dense, ReLU."""

    def pattern(self):
        return LayerPattern("|".join([*LINEAR, "SeparableConv2D"]), {"activation": "(?!linear|None).*"})

    def replacement(self, match_layer):
        config = match_layer.layer["config"]
        activation, config["activation"] = config["activation"], "linear"
        if not isinstance(activation, str):
            raise LqError(f"layer '{config['name']}': activation {activation} is not known")
        name = f"{config['name']}_{activation}"
        if activation == "relu":
            return _node(tf_keras.layers.ReLU, {"name": name}, {}, match_layer)
        return _node(tf_keras.layers.Activation, {"name": name, "activation": activation}, {}, match_layer)


class NameActivation(_Transform):
    """Activation("relu") and Activation("softmax") -> ReLU and Softmax, so that each has one name."""

    def pattern(self):
        return LayerPattern("Activation", {"activation": "relu|softmax"})

    def replacement(self, match_layer):
        config = match_layer.layer["config"]
        cls = {"relu": tf_keras.layers.ReLU, "softmax": tf_keras.layers.Softmax}[config["activation"]]
        return _node(cls, {"name": config["name"]}, {})


class SplitSeparable(_Transform):
    """SeparableConv2D -> DepthwiseConv2D, Conv2D 1x1."""

    def pattern(self):
        return LayerPattern("SeparableConv2D", {"activation": "linear|None"})

    def replacement(self, match_layer):
        config, weights = match_layer.layer["config"], dict(match_layer.weights)
        shared = ("padding", "strides", "dilation_rate", "kernel_size", "depth_multiplier")
        depthwise = _node(
            tf_keras.layers.DepthwiseConv2D,
            {"name": f"{config['name']}_depthwise", "use_bias": False} | {key: config[key] for key in shared},
            {"depthwise_kernel:0": weights.pop("depthwise_kernel:0")},
        )
        weights["kernel:0"] = weights.pop("pointwise_kernel:0")
        pointwise = {"name": config["name"], "filters": config["filters"], "kernel_size": 1}
        return _node(tf_keras.layers.Conv2D, pointwise | {"use_bias": config["use_bias"]}, weights, depthwise)


def _multiply_add(batch_norm: LayerNode) -> tuple[np.ndarray, np.ndarray]:
    """The factor and the offset per channel that a BatchNormalization comes to in inference."""
    config, weights = batch_norm.layer["config"], batch_norm.weights
    mean = weights["moving_mean:0"].astype(np.float64)
    factor = 1.0 / np.sqrt(weights["moving_variance:0"].astype(np.float64) + config["epsilon"])
    if config["scale"]:
        factor = factor * weights["gamma:0"]
    offset = -mean * factor
    if config["center"]:
        offset = offset + weights["beta:0"]
    return factor, offset


def _with_bias(linear: LayerNode, kernel: np.ndarray, bias: np.ndarray, channels: int) -> LayerNode:
    """The linear layer with another kernel, and with its bias or a new one raised by ``bias``."""
    name = f"{kernel_name(linear.layer)}:0"
    old_bias = linear.weights.get("bias:0", np.zeros(channels))
    linear.layer["config"]["use_bias"] = True
    linear.weights = {name: kernel.astype(np.float32), "bias:0": (old_bias + bias).astype(np.float32)}
    return linear


def _output_axes(layer: dict[str, Any]) -> tuple[int, ...]:
    return KEPT_AXES["output-channel-wise"][class_name(layer)]


class FoldBatchNorm(_Transform):
    """Linear, BatchNormalization -> Linear."""

    def pattern(self):
        return LayerPattern(
            "BatchNormalization", {}, [LayerPattern("|".join(LINEAR), {"activation": "linear|None"})]
        )

    def replacement(self, match_layer):
        linear = match_layer.input_layers[0]
        factor, offset = _multiply_add(match_layer)
        kernel = linear.weights[f"{kernel_name(linear.layer)}:0"]
        axes = _output_axes(linear.layer)
        along = [kernel.shape[axis] if axis in axes else 1 for axis in range(kernel.ndim)]
        bias = linear.weights.get("bias:0", np.zeros_like(factor))
        return _with_bias(linear, kernel * factor.reshape(along), bias * factor + offset - bias, len(factor))


class FoldBatchNormForward(_Transform):
    """BatchNormalization, (Flatten,) Dense or unpadded Conv2D -> the same without BatchNormalization."""

    def __init__(self, linear: str, config: dict[str, Any], flatten: bool) -> None:
        self.linear, self.config, self.flatten = linear, config, flatten

    def pattern(self):
        inputs = [LayerPattern("BatchNormalization")]
        if self.flatten:
            inputs = [LayerPattern("Flatten", {}, inputs)]
        return LayerPattern(self.linear, self.config, inputs)

    def replacement(self, match_layer):
        batch_norm = match_layer.input_layers[0]
        if self.flatten:
            match_layer.input_layers = [batch_norm]
            batch_norm = batch_norm.input_layers[0]
        factor, offset = _multiply_add(batch_norm)
        kernel = match_layer.weights["kernel:0"]
        # Flatten puts the channels last: they repeat along the flat axis.
        repeats = kernel.shape[-2] // len(factor)
        factor, offset = np.tile(factor, repeats), np.tile(offset, repeats)
        bias = np.tensordot(offset, kernel, axes=(0, kernel.ndim - 2))
        bias = bias.reshape(-1, kernel.shape[-1]).sum(axis=0)
        if self.flatten:
            match_layer.input_layers[0].input_layers = []
        else:
            match_layer.input_layers = []
        return _with_bias(match_layer, kernel * factor[:, np.newaxis], bias, kernel.shape[-1])


# ModelTransformer remembers matches by the name of the transform's class.
class FoldIntoDense(FoldBatchNormForward):
    pass


class FoldIntoFlatDense(FoldBatchNormForward):
    pass


class FoldIntoConv(FoldBatchNormForward):
    pass


class BatchNormToDepthwise(_Transform):
    """A BatchNormalization that nothing can absorb -> DepthwiseConv2D 1x1, TFLite's integer multiply-add.

    One weight a channel and one scale a channel: its codes are +-127 and exact.
    """

    def __init__(self, shapes: dict[str, tuple[int | None, ...]]) -> None:
        self.shapes = shapes

    def pattern(self):
        return LayerPattern("BatchNormalization")

    def replacement(self, match_layer):
        name = match_layer.layer["config"]["name"]
        shape = self.shapes[name]
        factor, offset = _multiply_add(match_layer)
        weights = {
            "depthwise_kernel:0": factor.reshape(1, 1, -1, 1).astype(np.float32),
            "bias:0": offset.astype(np.float32),
        }
        config = {"name": name, "kernel_size": 1}
        if len(shape) == 3:
            return _node(tf_keras.layers.DepthwiseConv2D, config, weights)
        if None in shape:
            raise LqError(f"layer '{name}': BatchNormalization over an unknown shape {shape}")
        image = (math.prod(shape[:-1]), 1, shape[-1])  # type: ignore[arg-type]
        reshape = _node(tf_keras.layers.Reshape, {"name": f"{name}_image", "target_shape": image}, {})
        depthwise = _node(tf_keras.layers.DepthwiseConv2D, config, weights, reshape)
        return _node(tf_keras.layers.Reshape, {"name": f"{name}_shape", "target_shape": shape}, {}, depthwise)


def _transform(model: tf_keras.Model, *steps: Transform, only: set[str] | None = None) -> Any:
    transformed, _ = ModelTransformer(model, list(steps), only).transform()
    return transformed


def _check_batch_norm_axes(model: tf_keras.Model) -> None:
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            axis = layer.axis[0] if isinstance(layer.axis, (list, tuple)) else layer.axis
            if axis not in (-1, len(layer.input_shape) - 1):
                raise LqError(f"layer '{layer.name}': BatchNormalization over axis {axis}, not the last one")


def random_inputs(model: tf_keras.Model, batch: int, seed: int = 0) -> list[np.ndarray]:
    """Normal float32 inputs for every input of the model; unknown lengths become 32."""
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(batch, *(n or 32 for n in x.shape[1:]))).astype(np.float32) for x in model.inputs
    ]


def fold(model: tf_keras.Model) -> tf_keras.Model:
    """An equal model of the operations that TFLite has: activations apart, BatchNormalization folded.

    Args:
        model: a flat functional float model, as :func:`lqconvert.loading.load_model` gives it.

    Raises:
        LqError: if a layer cannot be expressed, or the folded model's outputs differ on random inputs.
    """
    _check_batch_norm_axes(model)
    folded = _transform(
        model,
        SplitActivation(),
        NameActivation(),
        SplitSeparable(),
        FoldBatchNorm(),
        FoldIntoDense("Dense", {}, flatten=False),
        FoldIntoFlatDense("Dense", {}, flatten=True),
        FoldIntoConv("Conv2D|Conv1D", {"padding": "valid", "groups": 1}, flatten=False),
    )
    shapes = {
        layer.name: layer.output_shape[1:] for layer in folded.layers if class_name(layer) != "InputLayer"
    }
    folded = _transform(folded, BatchNormToDepthwise(shapes))
    inputs = random_inputs(model, batch=4)
    for before, after in zip(_outputs(model, inputs), _outputs(folded, inputs), strict=True):
        # float32 sums in another order; relative to the largest output.
        difference = np.max(np.abs(before - after)) / (np.max(np.abs(before)) + 1e-6)
        if not difference <= 1e-3:
            raise LqError(f"folding BatchNormalization changed the outputs by {difference:.2g} (relative)")
    return folded


def _outputs(model: tf_keras.Model, inputs: list[np.ndarray]) -> list[np.ndarray]:
    outputs = model(inputs if len(inputs) > 1 else inputs[0], training=False)
    return [np.asarray(y) for y in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]


class QuantizeWeights(_Transform):
    """Linear -> QuantizedLayer(Linear) of the same name."""

    def __init__(self, quantizers: Callable[[dict[str, Any], Any], dict[str, WeightQuantizer]]) -> None:
        self.quantizers = quantizers

    def pattern(self):
        return LayerPattern("|".join(LINEAR))

    def replacement(self, match_layer):
        layer, weights = match_layer.layer, match_layer.weights
        inner = getattr(tf_keras.layers, class_name(layer)).from_config(layer["config"])
        wrapped = QuantizedLayer(inner, self.quantizers(layer, weights), name=layer["config"]["name"])
        return _node(QuantizedLayer, wrapped.get_config(), weights)


class QuantizeOutputs(_Transform):
    """Layer -> layer, ActivationQuantizer."""

    def __init__(self, quantizers: dict[str, ActivationQuantizer | FollowingQuantizer]) -> None:
        self.quantizers = quantizers

    def pattern(self):
        return LayerPattern("(?!ActivationQuantizer|FollowingQuantizer).*")

    def replacement(self, match_layer):
        quantizer = self.quantizers[match_layer.layer["config"]["name"]]
        return _node(type(quantizer), quantizer.get_config(), {}, match_layer)


def _consumers(layer: Any) -> list[Any]:
    return [node.outbound_layer for node in layer.outbound_nodes]


def quantized_output(name: str) -> str:
    """The name of the quantizer behind a layer."""
    return f"{name}_quantized"


def _activation_quantizers(
    model: tf_keras.Model, input_range: tuple[float, float] | None
) -> dict[str, ActivationQuantizer | FollowingQuantizer]:
    """For each layer of a folded model whose output TFLite quantizes, the quantizer to put behind it."""
    quantizers: dict[str, ActivationQuantizer | FollowingQuantizer] = {}
    outputs = set(model.output_names)
    for layer in model.layers:
        kind, name = class_name(layer), quantized_output(layer.name)
        function = getattr(layer, "activation", None)
        activation = "softmax" if kind == "Softmax" else getattr(function, "__name__", "")
        if kind == "InputLayer":
            quantizers[layer.name] = ActivationQuantizer(fixed=input_range, name=name)
        elif kind in FUSES_RELU and layer.name not in outputs and _fused_relu(layer):
            continue
        elif kind in LEARNED_RANGES:
            quantizers[layer.name] = ActivationQuantizer(name=name)
        elif kind in ("Activation", "Softmax") and activation in FIXED_RANGES:
            final = layer.name in outputs and not _consumers(layer)
            quantizers[layer.name] = ActivationQuantizer(FIXED_RANGES[activation], final, name=name)
        elif kind in ROUNDED:
            quantizers[layer.name] = FollowingQuantizer(name=name)
        elif kind not in SAME_SCALE:
            what = f"{kind} {activation}".strip()
            raise LqError(f"layer '{layer.name}' ({what}): no integer kernel for it is known")
    return quantizers


def _fused_relu(layer: Any) -> bool:
    consumers = _consumers(layer)
    if len(consumers) != 1 or class_name(consumers[0]) != "ReLU":
        return False
    relu = consumers[0]
    return relu.max_value in (None, 6.0) and not relu.negative_slope and not relu.threshold


def rewrite(
    model: tf_keras.Model,
    scheme: Scheme | None = None,
    *,
    granularity: str = "output-channel-wise",
    rounding: str = "nearest",
    start: float | None = None,
    log_scale: bool = True,
    biases: bool = False,
    activations: bool = True,
    input_range: tuple[float, float] | None = None,
) -> tf_keras.Model:
    """Inserts learned quantizers: the model that is fine-tuned, trained from scratch, and exported.

    The result is an ordinary functional tf_keras model with the same inputs and outputs. Compile and fit
    it like any other; the schemes' penalties are among its ``losses``.

    Args:
        model: a float tf_keras model; :func:`fold` is applied first.
        scheme: how weight scales are learned; ``LSQ()``, 8 bits, by default.
        granularity: one of GRANULARITIES: which weights share a scale.
        rounding: "nearest", or "floor" as in the thesis.
        start: a fixed starting scale; calibrated (or max|P|/127) by default.
        log_scale: train log(s), so that optimizer steps are ratios; False trains s as the thesis does.
        biases: learn a scale for every bias too. An exported bias is int32 on the grid
            s_input * s_kernel either way.
        activations: quantize activations too; False leaves them float (such a model cannot be exported).
        input_range: a fixed range of the inputs, where it is known ((0, 255) for raw pixels).

    Raises:
        LqError: if a layer has no integer form; the message names it.
    """
    scheme = scheme or LSQ()
    folded = fold(model)
    multiply_adds = {layer.name for layer in model.layers if class_name(layer) == "BatchNormalization"} & {
        layer.name for layer in folded.layers
    }
    linear = [layer for layer in folded.layers if class_name(layer) in LINEAR]
    if not linear:
        raise LqError("the model has no layer with weights to quantize")
    learned = [layer for layer in linear if layer.name not in multiply_adds]
    total = sum(weight.shape.num_elements() for layer in learned for weight in layer.weights[: 1 + biases])

    def weight_quantizers(layer: dict[str, Any], weights: Any) -> dict[str, WeightQuantizer]:
        kernel, name = kernel_name(layer), layer["config"]["name"]
        if name in multiply_adds:
            return {kernel: WeightQuantizer(LSQ(), KEPT_AXES["output-channel-wise"][class_name(layer)])}
        axes = {kernel: KEPT_AXES[granularity][class_name(layer)]}
        if biases and layer["config"]["use_bias"]:
            axes["bias"] = ()
        return {
            attribute: WeightQuantizer(
                scheme,
                kept,
                rounding,
                start,
                log_scale,
                share=weights[f"{attribute}:0"].size / total,
            )
            for attribute, kept in axes.items()
        }

    quantized = folded
    if activations:
        quantizers = _activation_quantizers(folded, input_range)
        quantized = _transform(folded, QuantizeOutputs(quantizers), only=set(quantizers))
    return _transform(quantized, QuantizeWeights(weight_quantizers), only={layer.name for layer in linear})
