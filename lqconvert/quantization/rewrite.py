"""Inserts the learned quantizers into a folded model: behind activations, and around layers with weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.graph_transformations.transforms import (
    LayerPattern,
)

from lqconvert.errors import LqError
from lqconvert.keras_loader.custom_layers import CUSTOM_LAYERS
from lqconvert.keras_loader.layer_kinds import ACTIVATIONS, OTHER, LayerKind, Range, class_name, kind_of
from lqconvert.quantization.fold_batchnorm import GraphTransform, any_of, fold, node, transform
from lqconvert.quantization.granularity import GRANULARITIES, KEPT_AXES, LINEAR, kernel_name
from lqconvert.quantization.layers import (
    ActivationQuantizer,
    FollowingQuantizer,
    QuantizedLayer,
    WeightQuantizer,
)
from lqconvert.quantization.schemes import LSQ, Scheme

#: Trained Dense kernels have 0.01 to 0.03. A kernel with a folded BatchNormalization of uneven factors has
#: 0.1.
UNEVEN = 0.04


class _Transform(GraphTransform):
    def custom_objects(self) -> dict[str, type]:
        quantizers = (ActivationQuantizer, FollowingQuantizer, QuantizedLayer, WeightQuantizer)
        return super().custom_objects() | {cls.__name__: cls for cls in quantizers}


class QuantizeWeights(_Transform):
    """Linear -> QuantizedLayer(Linear) of the same name."""

    def __init__(self, quantizers: Callable[[dict[str, Any], Any], dict[str, WeightQuantizer]]) -> None:
        self.quantizers = quantizers

    def pattern(self):
        return LayerPattern(any_of(*LINEAR))

    def replacement(self, match_layer):
        layer, weights = match_layer.layer, match_layer.weights
        kind = class_name(layer)
        cls: Any = CUSTOM_LAYERS.get(kind) or getattr(tf_keras.layers, kind)
        inner = cls.from_config(layer["config"])
        wrapped = QuantizedLayer(inner, self.quantizers(layer, weights), name=layer["config"]["name"])
        return node(QuantizedLayer, wrapped.get_config(), weights)


class QuantizeOutputs(_Transform):
    """Layer -> layer, ActivationQuantizer."""

    def __init__(self, quantizers: dict[str, ActivationQuantizer | FollowingQuantizer]) -> None:
        self.quantizers = quantizers

    def pattern(self):
        return LayerPattern("(?!(ActivationQuantizer|FollowingQuantizer)$).*")

    def replacement(self, match_layer):
        quantizer = self.quantizers.get(match_layer.layer["config"]["name"])
        if quantizer is None:
            return match_layer
        return node(type(quantizer), quantizer.get_config(), {}, match_layer)


def _kind(layer: Any) -> LayerKind:
    """The kind of a layer of a folded model. For an Activation, the kind of its function."""
    if class_name(layer) == "Activation":
        return ACTIVATIONS.get(_function_name(layer), OTHER)
    return kind_of(layer)


def _function_name(layer: Any) -> str:
    return getattr(getattr(layer, "activation", None), "__name__", "")


def _output_range(layer: Any) -> Range | tuple[float, float] | None:
    if class_name(layer) == "Reduce" and layer.function == "max":
        return Range.INPUT
    return _kind(layer).output_range


def float_layers(model: tf_keras.Model) -> dict[str, str]:
    """The layers of a folded or rewritten model that compute in float, by name, with a description."""
    return {layer.name: reason for layer in model.layers if (reason := _kind(layer).stays_float)}


def _consumers(layer: Any) -> list[Any]:
    return [node.outbound_layer for node in layer.outbound_nodes]


def quantized_output(name: str) -> str:
    """The name of the quantizer behind the layer of this name."""
    return f"{name}_quantized"


def _activation_quantizers(
    model: tf_keras.Model, input_range: tuple[float, float] | None, bits: int
) -> dict[str, ActivationQuantizer | FollowingQuantizer]:
    """The quantizers to insert behind layers of a folded model, by the names of these layers."""
    quantizers: dict[str, ActivationQuantizer | FollowingQuantizer] = {}
    outputs = set(model.output_names)
    for layer in model.layers:
        kind, name = class_name(layer), quantized_output(layer.name)
        output_range = _output_range(layer)
        if output_range is Range.INSIDE or (kind == "InputLayer" and layer.dtype == "int32"):
            continue  # int16, or indices into an Embedding
        if kind == "InputLayer":
            quantizers[layer.name] = ActivationQuantizer(fixed=input_range, bits=bits, name=name)
        elif kind_of(layer).fuses_relu and layer.name not in outputs and _fused_relu(layer):
            continue
        elif output_range in (Range.INPUT, Range.INPUT_ROUNDED):
            shared = any(kind_of(each).one_scale for each in _consumers(layer))
            if shared or output_range is Range.INPUT_ROUNDED or kind_of(layer).placeholder:
                quantizers[layer.name] = FollowingQuantizer(name=name)
        elif output_range is Range.LEARNED:
            quantizers[layer.name] = ActivationQuantizer(bits=bits, name=name)
        elif isinstance(output_range, tuple):
            final = layer.name in outputs and not _consumers(layer)
            quantizers[layer.name] = ActivationQuantizer(output_range, final, bits=bits, name=name)
        else:
            what = f"{kind} {_function_name(layer)}".strip()
            raise LqError(f"layer '{layer.name}' ({what}): no integer kernel for it is known")
    return quantizers


def _fused_relu(layer: Any) -> bool:
    consumers = _consumers(layer)
    if len(consumers) != 1 or class_name(consumers[0]) != "ReLU":
        return False
    relu = consumers[0]
    return relu.max_value in (None, 6.0) and not relu.negative_slope and not relu.threshold


def _uneven(kernel: np.ndarray) -> bool:
    """Whether 8 bits with one scale would cost most output channels more than UNEVEN of their rms."""
    channels = kernel.reshape(-1, kernel.shape[-1])
    step = np.abs(channels).max() / 127
    rms = np.sqrt(np.mean(channels**2, axis=0))
    return bool(np.median(step / math.sqrt(12) / np.maximum(rms, 1e-12)) > UNEVEN)


def rewrite(
    model: tf_keras.Model,
    scheme: Scheme | None = None,
    *,
    granularity: str = "output-channel-wise",
    rounding: str = "nearest",
    start: float | None = None,
    log_scale: bool = True,
    biases: bool = False,
    activations: int | None = 8,
    input_range: tuple[float, float] | None = None,
) -> tf_keras.Model:
    """Inserts learned quantizers. The result can be fine-tuned, or trained from scratch, and exported.

    It is an ordinary functional tf_keras model with the same inputs and outputs. Compile and fit it like any
    other model. The schemes' penalties are among its ``losses``.

    Args:
        model: a float tf_keras model, as from :func:`lqconvert.load_model`: functional or Sequential, flat,
            without layers that act in training only. It is folded first (:func:`fold`), if it is not yet.
        scheme: how weight scales are learned; ``LSQ()``, 8 bits, by default.
        granularity: which weights share a scale; one of GRANULARITIES. "mixed" is one scale for a Dense
            kernel, unless the sizes of its output channels differ much, and one for each output channel
            otherwise.
        rounding: "nearest", or "floor" as in the thesis.
        start: a fixed starting scale. By default calibrated (or max|P|/127).
        log_scale: train log(s), so that optimizer steps are ratios. False trains s, as the thesis does.
        biases: also learn a scale for every bias. An exported bias is int32 on the grid s_input * s_kernel
            in any case.
        activations: the bits of activations, 8 or 16. None leaves them float; such a model cannot be
            exported.
        input_range: a fixed range of 8-bit inputs, if it is known ((0, 255) for raw pixels).

    Raises:
        LqError: if a layer has no integer form (the message names it), or the granularity or the number of
            bits does not exist.
    """
    if activations not in (8, 16, None):
        raise LqError(f"activations '{activations}': not 8 or 16 bits, or None")
    if granularity not in GRANULARITIES:
        raise LqError(f"granularity '{granularity}': not one of {', '.join(GRANULARITIES)}")
    scheme = scheme or LSQ()
    folded = fold(model)
    linear = [layer for layer in folded.layers if class_name(layer) in LINEAR]
    multiply_adds = folded.multiply_adds
    if not linear:
        raise LqError("the model has no layer with weights to quantize")
    learned = [layer for layer in linear if layer.name not in multiply_adds]
    total = sum(weight.shape.num_elements() for layer in learned for weight in layer.weights[: 1 + biases])

    def weight_quantizers(layer: dict[str, Any], weights: Any) -> dict[str, WeightQuantizer]:
        kernel, name = kernel_name(layer), layer["config"]["name"]
        if name in multiply_adds:
            return {kernel: WeightQuantizer(LSQ(), KEPT_AXES["output-channel-wise"][class_name(layer)])}
        axes = {kernel: KEPT_AXES[granularity][class_name(layer)]}
        if granularity == "mixed" and _uneven(weights[f"{kernel}:0"]):
            axes = {kernel: KEPT_AXES["output-channel-wise"][class_name(layer)]}
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

    quantizers = _activation_quantizers(folded, input_range, activations) if activations else {}
    # In one go: building the model takes nearly all of the time.
    steps = QuantizeOutputs(quantizers), QuantizeWeights(weight_quantizers)
    only = {*quantizers, *(layer.name for layer in linear)}
    quantized = transform(folded, *steps, only=only)
    quantized.given_outputs = folded.given_outputs
    return quantized
