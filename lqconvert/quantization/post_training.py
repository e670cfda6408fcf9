"""Quantization without training: all layers are rounded for the least damage, at one price of a bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras

from lqconvert.quantization.calibrate import make_room_for_bias
from lqconvert.quantization.granularity import kernel_name
from lqconvert.quantization.layers import QuantizedLayer
from lqconvert.quantization.moments import Layout, Moments, importance_of, mean_output, moments_of
from lqconvert.quantization.rounding import Curvature, rounded, step_of_least_cost
from lqconvert.quantization.walk import (
    as_many_as_fit,
    dependent_layers,
    examples_of,
    inputs_in_both,
    inputs_of_layers,
)
from lqconvert.tasks import Heads


@dataclass(frozen=True)
class _Layer:
    wrapper: QuantizedLayer
    layout: Layout
    weights: np.ndarray  # the float model's, float64 [groups, inputs, outputs]
    bias: np.ndarray | None
    wanted: np.ndarray  # the best weights for the layer's inputs, before rounding
    curvature: Curvature
    importance: np.ndarray  # [groups, outputs]
    mean: np.ndarray  # mean of the inputs, [groups, inputs]
    float_mean: np.ndarray  # the same in the float model
    calibrated: np.ndarray  # the quantizer's scales after calibration

    @property
    def quantizer(self) -> Any:
        return self.wrapper.quantizers[kernel_name(self.wrapper.layer)]

    def after(self, moments: Moments) -> _Layer:
        """The layer for inputs that differ from the float model's. Its weights compensate (least squares)."""
        assert moments.float_mean is not None
        return dataclasses.replace(
            self,
            wanted=moments.adapted(self.weights, self.bias is not None),
            curvature=Curvature.of(moments.second),
            mean=moments.mean,
            float_mean=moments.float_mean,
        )

    def scale(self, multiplier: float) -> np.ndarray:
        """The scales (in the quantizer's shape) where bits and damage balance; calibrated ones at price 0."""
        quantizer = self.quantizer
        if not multiplier:
            return self.calibrated
        kernel = self.layout.as_kernel(self.weights)
        axes = tuple(axis for axis in range(kernel.ndim) if axis not in quantizer.kept_axes)
        largest = np.abs(kernel).max(axis=axes, keepdims=True)
        # The importance of a shared scale is the mean over its outputs.
        curvature = np.broadcast_to(
            (self.importance * self.curvature.mean[:, None])[:, None], self.weights.shape
        )
        curvature = self.layout.as_kernel(curvature).mean(axis=axes, keepdims=True)
        step = step_of_least_cost(curvature, multiplier)
        largest = np.maximum(largest, 1e-12)
        least = quantizer.on_grid(largest / (quantizer.scheme.limit or 127), up=True)
        return np.clip(step, least, np.maximum(largest, least))


class PostTraining:
    """A calibrated model of quantized layers that can be rounded at any price of a bit.

    Args:
        quantized: a calibrated model from :func:`lqconvert.rewrite`. Rounding changes it in place.
        folded: the float model from :func:`.fold_batchnorm.fold`, from which it was made.
        heads: the tasks of its outputs.
        batches: unlabelled inputs, preprocessed.
    """

    def __init__(
        self, quantized: tf_keras.Model, folded: tf_keras.Model, heads: Heads, batches: Sequence[Any]
    ) -> None:
        self.quantized, self.folded = quantized, folded
        wrappers = {layer.name: layer for layer in quantized.layers if isinstance(layer, QuantizedLayer)}
        importance = importance_of(folded, wrappers, heads, batches)
        found = _moments(quantized, wrappers, batches)
        self.layers = {
            name: _layer(wrapper, found.pop(name), importance[name]) for name, wrapper in wrappers.items()
        }
        self._kept = as_many_as_fit(quantized, batches)
        self._dependent = dependent_layers(quantized, self.layers)
        self._adapted: dict[str, _Layer] = {}  # other layers, adapted to their inputs: these never change

    def round(self, price: float) -> None:
        """Rounds every layer for the inputs that the float weights give.

        Args:
            price: the price of a bit, in nats of an example's log-likelihood.
        """
        for layer in self.layers.values():
            _round(layer, price)

    def round_in_order(self, price: float) -> None:
        """Rounds every layer for the inputs that the rounded layers before it give.

        Each layer also compensates the errors of the layers before it, as far as its inputs allow: Li et al.,
        "GPTAQ", arXiv 2504.02692. This takes longer than :meth:`round`.
        """
        for name, xs, floats in inputs_in_both(self.quantized, self.folded, self.layers, self._kept):
            layer = self._adapted.get(name)
            if layer is None:
                layer = self.layers[name]
                layer = layer.after(
                    moments_of(layer.wrapper.layer, xs, floats, examples=examples_of(self._kept))
                )
            if name not in self._dependent:
                self._adapted[name] = layer
            _round(layer, price)


def _moments(
    model: tf_keras.Model, wrappers: dict[str, QuantizedLayer], batches: Sequence[Any]
) -> dict[str, Moments]:
    """The moments of each layer's inputs, measured batch by batch."""
    found: dict[str, Moments] = {}
    for batch in batches:
        for name, xs in inputs_of_layers(model, wrappers, [batch]):
            more = moments_of(wrappers[name].layer, xs, examples=examples_of(batches))
            found[name] = found[name] + more if name in found else more
    return found


def _layer(wrapper: QuantizedLayer, moments: Moments, importance: np.ndarray) -> _Layer:
    layout = Layout.of(wrapper.layer)
    kernel = getattr(wrapper.layer, kernel_name(wrapper.layer)).numpy().astype(np.float64)
    bias = wrapper.layer.bias.numpy().astype(np.float64) if wrapper.layer.use_bias else None
    weights = layout.matrices(kernel)
    return _Layer(
        wrapper,
        layout,
        weights,
        bias,
        weights,
        Curvature.of(moments.second),
        layout.by_output(importance),
        moments.mean,
        moments.mean,
        wrapper.quantizers[kernel_name(wrapper.layer)].scale.numpy(),
    )


def _round(layer: _Layer, price: float) -> None:
    quantizer, inner = layer.quantizer, layer.wrapper.layer
    quantizer.set_scale(layer.scale(price))
    if layer.bias is not None:
        inner.bias.assign(layer.bias)
        make_room_for_bias(layer.wrapper)
    scale = quantizer.scale.numpy().astype(np.float64)
    scales = layer.layout.matrices(np.broadcast_to(scale, layer.layout.kernel))[:, :1]
    codes = rounded(
        layer.wanted,
        scales,
        layer.curvature,
        layer.importance,
        price,
        limit=quantizer.scheme.limit or 127,
    )
    values = codes * scales
    getattr(inner, kernel_name(inner)).assign(layer.layout.as_kernel(values))
    if layer.bias is not None:
        missing = mean_output(layer.float_mean, layer.weights) - mean_output(layer.mean, values)
        inner.bias.assign(layer.bias + layer.layout.by_channel(missing))
