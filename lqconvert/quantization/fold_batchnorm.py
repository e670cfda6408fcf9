"""Rewrites a float model into an equal one made of the operations that TFLite has.

Activations become layers of their own, separable convolutions are split, BatchNormalization is folded.
The graph rewrites, here and in :mod:`lqconvert.quantization.rewrite`, are tfmot transforms.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf
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
from lqconvert.keras_loader.custom_layers import CUSTOM_LAYERS
from lqconvert.keras_loader.layer_kinds import class_name, kind_of
from lqconvert.keras_loader.load import outputs_of, random_inputs
from lqconvert.quantization.granularity import FOLDABLE, KEPT_AXES, kernel_name


def node(cls: type, config: dict[str, Any], weights: dict[str, np.ndarray], *inputs: LayerNode) -> LayerNode:
    """A new layer for a replacement graph."""
    layer = {"class_name": cls.__name__, "name": config["name"], "config": config, "inbound_nodes": []}
    return LayerNode(layer, weights, list(inputs))


def any_of(*names: str) -> str:
    """A pattern for any of these whole names, also those of our own layers, which have our package in front.

    tfmot adds ^ and $, which bind more tightly than |.
    """
    return f"(lqconvert>)?({'|'.join(names)})"


class GraphTransform(Transform):
    """A rewrite, given by a pattern and a function that replaces the matched node."""

    def custom_objects(self) -> dict[str, type]:
        return dict(CUSTOM_LAYERS)


class SplitActivation(GraphTransform):
    """Dense(activation="relu") -> Dense, ReLU."""

    def pattern(self):
        return LayerPattern(any_of(*FOLDABLE, "SeparableConv2D"), {"activation": "(?!(linear|None)$).*"})

    def replacement(self, match_layer):
        config = match_layer.layer["config"]
        activation, config["activation"] = config["activation"], "linear"
        if not isinstance(activation, str):
            raise LqError(f"layer '{config['name']}': activation {activation} is not known")
        name = f"{config['name']}_{activation}"
        if activation == "relu":
            return node(tf_keras.layers.ReLU, {"name": name}, {}, match_layer)
        return node(tf_keras.layers.Activation, {"name": name, "activation": activation}, {}, match_layer)


class NameActivation(GraphTransform):
    """Activation("relu") and Activation("softmax") -> ReLU and Softmax, so that each has only one form."""

    def pattern(self):
        return LayerPattern("Activation", {"activation": any_of("relu", "softmax")})

    def replacement(self, match_layer):
        config = match_layer.layer["config"]
        cls = {"relu": tf_keras.layers.ReLU, "softmax": tf_keras.layers.Softmax}[config["activation"]]
        return node(cls, {"name": config["name"]}, {})


class SplitSeparable(GraphTransform):
    """SeparableConv2D -> DepthwiseConv2D, Conv2D 1x1."""

    def pattern(self):
        return LayerPattern("SeparableConv2D", {"activation": any_of("linear", "None")})

    def replacement(self, match_layer):
        config, weights = match_layer.layer["config"], dict(match_layer.weights)
        shared = ("padding", "strides", "dilation_rate", "kernel_size", "depth_multiplier")
        depthwise = node(
            tf_keras.layers.DepthwiseConv2D,
            {"name": f"{config['name']}_depthwise", "use_bias": False} | {key: config[key] for key in shared},
            {"depthwise_kernel:0": weights.pop("depthwise_kernel:0")},
        )
        weights["kernel:0"] = weights.pop("pointwise_kernel:0")
        pointwise = {"name": config["name"], "filters": config["filters"], "kernel_size": 1}
        return node(tf_keras.layers.Conv2D, pointwise | {"use_bias": config["use_bias"]}, weights, depthwise)


def _multiply_add(batch_norm: LayerNode) -> tuple[np.ndarray, np.ndarray]:
    """The factor and the offset per channel that a BatchNormalization applies in inference."""
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
    """The linear layer with another kernel, and with ``bias`` added to its bias."""
    name = f"{kernel_name(linear.layer)}:0"
    old_bias = linear.weights.get("bias:0", np.zeros(channels))
    linear.layer["config"]["use_bias"] = True
    linear.weights = {name: kernel.astype(np.float32), "bias:0": (old_bias + bias).astype(np.float32)}
    return linear


def _output_axes(layer: dict[str, Any]) -> tuple[int, ...]:
    return KEPT_AXES["output-channel-wise"][class_name(layer)]


class FoldBatchNorm(GraphTransform):
    """Linear, BatchNormalization -> Linear."""

    def pattern(self):
        return LayerPattern(
            "BatchNormalization",
            {},
            [LayerPattern(any_of(*FOLDABLE), {"activation": any_of("linear", "None")})],
        )

    def replacement(self, match_layer):
        linear = match_layer.input_layers[0]
        factor, offset = _multiply_add(match_layer)
        kernel = linear.weights[f"{kernel_name(linear.layer)}:0"]
        axes = _output_axes(linear.layer)
        along = [kernel.shape[axis] if axis in axes else 1 for axis in range(kernel.ndim)]
        bias = linear.weights.get("bias:0", np.zeros_like(factor))
        return _with_bias(linear, kernel * factor.reshape(along), bias * factor + offset - bias, len(factor))


class FoldBatchNormForward(GraphTransform):
    """BatchNormalization, (Flatten,) Dense, RecurrentInputs or unpadded Conv2D -> without the first."""

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
        # Flatten puts the channels last, so they repeat along the flat axis.
        repeats = kernel.shape[-2] // len(factor)
        factor, offset = np.tile(factor, repeats), np.tile(offset, repeats)
        bias = np.tensordot(offset, kernel, axes=(0, kernel.ndim - 2))
        bias = bias.reshape(-1, kernel.shape[-1]).sum(axis=0)
        if self.flatten:
            match_layer.input_layers[0].input_layers = []
        else:
            match_layer.input_layers = []
        return _with_bias(match_layer, kernel * factor[:, np.newaxis], bias, kernel.shape[-1])


# ModelTransformer remembers matches by the name of the transform's class, so each has its own.
class FoldIntoDense(FoldBatchNormForward):
    pass


class FoldIntoFlatDense(FoldBatchNormForward):
    pass


class FoldIntoConv(FoldBatchNormForward):
    pass


class BatchNormToDepthwise(GraphTransform):
    """A BatchNormalization that cannot be folded -> DepthwiseConv2D 1x1: a multiply-add in integers.

    Each channel has one weight and one scale, so its codes are +-127 and exact.
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
            return node(tf_keras.layers.DepthwiseConv2D, config, weights)
        if None in shape:
            raise LqError(f"layer '{name}': BatchNormalization over an unknown shape {shape}")
        image = (math.prod(shape[:-1]), 1, shape[-1])  # type: ignore[arg-type]
        reshape = node(tf_keras.layers.Reshape, {"name": f"{name}_image", "target_shape": image}, {})
        depthwise = node(tf_keras.layers.DepthwiseConv2D, config, weights, reshape)
        return node(tf_keras.layers.Reshape, {"name": f"{name}_shape", "target_shape": shape}, {}, depthwise)


def transform(model: tf_keras.Model, *steps: Transform, only: set[str] | None = None) -> Any:
    transformer = ModelTransformer(model, list(steps), only)
    # Without AutoGraph, which takes longer than all the rest.
    transformed, _ = tf.autograph.experimental.do_not_convert(transformer.transform)()
    return transformed


def _check_batch_norm_axes(model: tf_keras.Model) -> None:
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            axis = layer.axis[0] if isinstance(layer.axis, (list, tuple)) else layer.axis
            if axis not in (-1, len(layer.input_shape) - 1):
                raise LqError(f"layer '{layer.name}': BatchNormalization over axis {axis}, not the last one")


def fold(model: tf_keras.Model) -> tf_keras.Model:
    """Rewrites a model into an equal one of TFLite's operations, with BatchNormalization folded.

    Args:
        model: a flat functional or Sequential float model, as from
            :func:`lqconvert.keras_loader.load.load_model`. A folded model is returned as it is.

    Raises:
        LqError: if a layer cannot be expressed, or the folded model's outputs differ on random inputs.
    """
    if hasattr(model, "given_outputs"):
        return model
    if isinstance(model, tf_keras.Sequential):  # its layers lack the input
        model = tf_keras.Model(model.inputs, model.outputs, name=model.name)
    _check_batch_norm_axes(model)
    folded = transform(
        model,
        SplitActivation(),
        NameActivation(),
        SplitSeparable(),
        FoldBatchNorm(),
        FoldIntoDense(any_of("Dense", "RecurrentInputs"), {}, flatten=False),
        FoldIntoFlatDense("Dense", {}, flatten=True),
        FoldIntoConv(any_of("Conv2D", "Conv1D"), {"padding": "valid", "groups": 1}, flatten=False),
    )
    layers = [layer for layer in folded.layers if class_name(layer) != "InputLayer"]
    if any(class_name(layer) == "BatchNormalization" for layer in layers):
        shapes = {layer.name: layer.output_shape[1:] for layer in layers}
        folded = transform(folded, BatchNormToDepthwise(shapes))
    inputs = random_inputs(model, batch=4)
    for before, after in zip(_outputs(model, inputs), _outputs(folded, inputs), strict=True):
        # float32 rounds sums in another order differently. Relative to the largest output.
        difference = np.max(np.abs(before - after)) / (np.max(np.abs(before)) + 1e-6)
        if not difference <= 1e-3:
            raise LqError(f"folding BatchNormalization changed the outputs by {difference:.2g} (relative)")
    # A split-off activation is an output under the name of its layer, also in files.
    folded.given_outputs = tuple(model.output_names)
    folded.multiply_adds = frozenset(
        layer.name for layer in model.layers if class_name(layer) == "BatchNormalization"
    )
    return folded


def _outputs(model: tf_keras.Model, inputs: list[np.ndarray]) -> list[np.ndarray]:
    loops = any(isinstance(layer, tf_keras.layers.RNN) or kind_of(layer).loops for layer in model.layers)
    return outputs_of(model, inputs if len(inputs) > 1 else inputs[0], loops=loops)
