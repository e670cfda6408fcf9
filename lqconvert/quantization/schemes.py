"""Schemes: ways to learn the scale of a weight tensor.

A scheme answers two questions about a float tensor ``P`` with scales ``s``. (``s`` broadcasts to ``P``: along
an axis of length 1, the weights share a scale.)

* ``scale_gradient``: what is dL/ds, given the upstream gradient dL/dP_r of the quantized tensor P_r = q*s?
* ``penalty``: which differentiable term f(P, s), times ``gamma``, is added to the loss?

The formulas of the first four are those of A. Chinbat, "Learned Quantization Schemes for Data-centric ML
Pipelines", thesis, TU Berlin, 2025; ``lsq`` is Esser et al., "Learned Step Size Quantization", ICLR 2020.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from lqconvert.quantization.recipes import RECIPES, Recipe

EPSILON = float(np.finfo(np.float32).eps)


def group_axes(scale: tf.Tensor) -> list[int]:
    """The axes of the weights along which weights share a scale."""
    return [axis for axis, length in enumerate(scale.shape) if length == 1]


@dataclass(frozen=True)
class Scheme:
    """Base class of schemes. Its scales keep their calibrated values."""

    name: ClassVar[str] = "fixed"
    #: The default epochs, learning rate and granularity.
    recipe: ClassVar[Recipe] = Recipe()
    #: Codes become coarser during training: keep the last weights, not those with the best score.
    coarsens: ClassVar[bool] = True
    #: The largest code after calibration, if the scheme starts with coarser scales than its limit allows.
    start_code: ClassVar[int | None] = None
    #: Scales are rounded to this many steps an octave; None: not rounded. Few different scales take fewer
    #: bytes.
    scales_an_octave: ClassVar[int | None] = None
    #: The largest absolute code, or None if codes are unbounded.
    limit: int | None = 127

    def scale_gradient(
        self, upstream: tf.Tensor, weights: tf.Tensor, scale: tf.Tensor, codes: tf.Tensor
    ) -> tf.Tensor:
        """dL/ds, in the shape of ``scale``. The other three arguments have the shape of the weights."""
        return tf.zeros_like(scale)

    def penalty(self, weights: tf.Tensor, scale: tf.Tensor) -> tf.Tensor | None:
        """The loss term of a tensor (a scalar that includes gamma), or None."""
        return None

    def damping(self, layers: int) -> float:
        """The factor on the learning rate of weights and ranges in a model with this many linear layers."""
        return 1.0

    def scaled(self, factor: float) -> Scheme:
        """The scheme with its penalty (gamma, or the threshold) multiplied. Unchanged if it has none."""
        penalties = {"gamma", "threshold"} & {field.name for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: factor * getattr(self, name) for name in penalties})

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class GradientThreshold(Scheme):
    """Weights with a relative gradient below ``threshold`` (lambda) vote for a coarser scale."""

    name: ClassVar[str] = "gradient-threshold"
    recipe: ClassVar[Recipe] = RECIPES["gradient-threshold"]
    threshold: float = 1e-10

    def scale_gradient(self, upstream, weights, scale, codes):
        axes = group_axes(scale)
        sensitivity = tf.abs(upstream) / tf.maximum(EPSILON, tf.abs(codes * scale))
        insensitive = sensitivity < self.threshold
        votes = tf.where(insensitive, -tf.tanh(self.threshold - sensitivity), 0.0)
        abstained = ~tf.reduce_any(insensitive, axes, keepdims=True)
        votes = tf.where(abstained, -math.tanh(self.threshold), votes)
        code_range = tf.reduce_max(tf.abs(codes), axes, keepdims=True)
        return tf.reduce_mean(votes, axes, keepdims=True) * code_range


@dataclass(frozen=True)
class MaxBin(Scheme):
    """Penalizes the largest code of every group."""

    name: ClassVar[str] = "maxbin"
    recipe: ClassVar[Recipe] = RECIPES["maxbin"]
    gamma: float = 1e-8

    def penalty(self, weights, scale):
        largest = tf.reduce_max(tf.abs(weights), group_axes(scale), keepdims=True)
        return self.gamma * tf.reduce_mean(largest / scale)


@dataclass(frozen=True)
class Inverse(Scheme):
    """Penalizes fine scales."""

    name: ClassVar[str] = "inverse"
    recipe: ClassVar[Recipe] = RECIPES["inverse"]
    gamma: float = 1e-9

    def penalty(self, weights, scale):
        return self.gamma * tf.reduce_mean(1.0 / scale)


@dataclass(frozen=True)
class Difference(Scheme):
    """Penalizes the distance between a weight and its code before rounding."""

    name: ClassVar[str] = "difference"
    recipe: ClassVar[Recipe] = RECIPES["difference"]
    gamma: float = 1e-7

    def penalty(self, weights, scale):
        return self.gamma * tf.reduce_mean(tf.abs(weights - weights / scale))


@dataclass(frozen=True)
class Rate(Scheme):
    """Penalizes the bits that a variable-length code needs for the codes.

    The estimate is ``log2(1 + |P| / s)`` bits a weight, up to a factor that is part of the penalty weight.
    The scale follows the task, too, with the straight-through derivative of q * s, undamped, so that task and
    penalty have the same influence on it as on the weights. The learning rate is high, because weights have a
    long way to 0.

    A weight also costs ``unit_bits`` with any code (a Huffman code has at least one bit), unless its input
    channel or its output channel is all zero: then it is removed from the file. A channel counts as
    ``1 - exp(-m / 0.1)``, where ``m`` is its mean |P| / s. So nearly empty channels are drawn to 0.
    """

    name: ClassVar[str] = "rate"
    recipe: ClassVar[Recipe] = RECIPES["rate"]
    start_code: ClassVar[int | None] = 15
    scales_an_octave: ClassVar[int | None] = 8
    EMPTY: ClassVar[float] = 0.1
    gamma: float = 0.5
    unit_bits: float = 1.0

    def damping(self, layers):
        # The changes in all layers add up: without damping, ResNets of 10 layers collapsed.
        return min(1.0, 4 / layers)

    def scale_gradient(self, upstream, weights, scale, codes):
        ratio = weights / scale
        step = tf.where(tf.abs(ratio) <= (self.limit or 127), codes - ratio, codes)
        return tf.reduce_sum(upstream * step, group_axes(scale), keepdims=True)

    def penalty(self, weights, scale):
        magnitudes = tf.abs(weights) / scale
        bits = tf.reduce_mean(tf.math.log1p(magnitudes)) / math.log(2.0)
        left = self.unit_bits
        for unit_axis in (weights.shape.rank - 2, weights.shape.rank - 1):
            others = [axis for axis in range(weights.shape.rank) if axis != unit_axis]
            left *= tf.reduce_mean(1 - tf.exp(-tf.reduce_mean(magnitudes, others) / self.EMPTY))
        return self.gamma * (bits + left)


@dataclass(frozen=True)
class LSQ(Scheme):
    """Learned step size with a fixed number of bits: ``limit`` is 2**(bits-1) - 1."""

    name: ClassVar[str] = "lsq"
    recipe: ClassVar[Recipe] = RECIPES["lsq"]
    coarsens: ClassVar[bool] = False

    def scale_gradient(self, upstream, weights, scale, codes):
        axes = group_axes(scale)
        assert self.limit is not None
        ratio = weights / scale
        step = tf.where(tf.abs(ratio) <= self.limit, codes - ratio, codes)
        group_size = tf.size(weights) / tf.size(scale)
        damping = tf.math.rsqrt(tf.cast(group_size, tf.float32) * self.limit)
        return tf.reduce_sum(upstream * step, axes, keepdims=True) * damping


SCHEMES: dict[str, type[Scheme]] = {
    scheme.name: scheme for scheme in (Scheme, GradientThreshold, MaxBin, Inverse, Difference, Rate, LSQ)
}


def scheme_from_config(config: dict[str, Any]) -> Scheme:
    """The scheme from a config of :meth:`Scheme.get_config`."""
    config = dict(config)
    return SCHEMES[config.pop("name")](**config)
