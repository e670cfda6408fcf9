"""Quantization without training: all layers are rounded for the least damage, at one price of a bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras

from lqconvert.quantization.granularity import kernel_name
from lqconvert.quantization.layers import QuantizedLayer
from lqconvert.quantization.moments import Layout, importance_of, moments_of
from lqconvert.quantization.rounding import Curvature, rounded, step_of_least_cost
from lqconvert.tasks import Heads


@dataclass(frozen=True)
class _Layer:
    wrapper: QuantizedLayer
    layout: Layout
    weights: np.ndarray  # float64 [groups, inputs, outputs]
    bias: np.ndarray | None
    curvature: Curvature
    importance: np.ndarray  # [groups, outputs]
    mean: np.ndarray  # mean of the inputs, [groups, inputs]
    calibrated: np.ndarray  # the quantizer's scales after calibration

    @property
    def quantizer(self) -> Any:
        return self.wrapper.quantizers[kernel_name(self.wrapper.layer)]

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
        return np.clip(step, largest / (quantizer.scheme.limit or 127), np.maximum(largest, 1e-12))


class PostTraining:
    """A calibrated model of quantized layers that can be rounded at any price of a bit.

    The moments of the inputs and the importance of the outputs are measured once, with the float weights.
    They are the same for every price.

    Args:
        quantized: a calibrated model from :func:`lqconvert.rewrite`. :meth:`round` changes it in place.
        folded: the float model from :func:`.fold_batchnorm.fold`, from which it was made.
        heads: the tasks of its outputs.
        batches: unlabelled inputs, preprocessed.
    """

    def __init__(
        self, quantized: tf_keras.Model, folded: tf_keras.Model, heads: Heads, batches: Sequence[Any]
    ) -> None:
        wrappers = [layer for layer in quantized.layers if isinstance(layer, QuantizedLayer)]
        moments = moments_of(quantized, batches)
        importance = importance_of(folded, [layer.name for layer in wrappers], heads, batches)
        self.layers = [
            _layer(wrapper, moments[wrapper.name], importance[wrapper.name]) for wrapper in wrappers
        ]

    def round(self, multiplier: float) -> None:
        """Rounds every layer. A bit costs ``multiplier`` nats of an example's log-likelihood."""
        for layer in self.layers:
            _round(layer, multiplier)


def _layer(wrapper: QuantizedLayer, moments: Any, importance: np.ndarray) -> _Layer:
    layout = Layout.of(wrapper.layer)
    kernel = getattr(wrapper.layer, kernel_name(wrapper.layer)).numpy().astype(np.float64)
    bias = wrapper.layer.bias.numpy().astype(np.float64) if wrapper.layer.use_bias else None
    return _Layer(
        wrapper,
        layout,
        layout.matrices(kernel),
        bias,
        Curvature.of(moments.second),
        layout.by_output(importance),
        moments.mean,
        wrapper.quantizers[kernel_name(wrapper.layer)].scale.numpy(),
    )


def _round(layer: _Layer, multiplier: float) -> None:
    quantizer, inner = layer.quantizer, layer.wrapper.layer
    quantizer.set_scale(layer.scale(multiplier))
    scale = quantizer.scale.numpy().astype(np.float64)
    scales = layer.layout.matrices(np.broadcast_to(scale, layer.layout.kernel))[:, :1]
    codes = rounded(
        layer.weights,
        scales,
        layer.curvature,
        layer.importance,
        multiplier,
        limit=quantizer.scheme.limit or 127,
    )
    values = codes * scales
    getattr(inner, kernel_name(inner)).assign(layer.layout.as_kernel(values))
    if layer.bias is not None:
        missing = np.einsum("gi,gio->go", layer.mean, layer.weights - values)
        inner.bias.assign(layer.bias + layer.layout.by_channel(missing))
