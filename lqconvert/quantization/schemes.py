"""Ways of learning the scale of a weight tensor.

A scheme answers two questions about one float tensor ``P`` with scales ``s`` (broadcastable to ``P``; an
axis of length 1 in ``s`` is one that a group of weights shares a scale along):

* ``scale_gradient``: what is dL/ds, given the upstream gradient dL/dP_r of the quantized tensor P_r = q*s?
* ``penalty``: which differentiable term f(P, s) is added to the loss, times ``gamma``?

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
    """The axes of the weights along which one scale is shared."""
    return [axis for axis, length in enumerate(scale.shape) if length == 1]


@dataclass(frozen=True)
class Scheme:
    """Base of all schemes: scales that stay where calibration put them."""

    name: ClassVar[str] = "fixed"
    #: The epochs, learning rate and granularity that suit the scheme.
    recipe: ClassVar[Recipe] = Recipe()
    #: Codes become coarser as it learns: its last weights count, not those of the best score on the way.
    coarsens: ClassVar[bool] = True
    #: The largest code that calibration starts from, where the scheme wants a coarser start than its limit.
    start_code: ClassVar[int | None] = None
    #: Scales are this many steps an octave apart, or anywhere: a few different ones cost fewer bytes.
    scales_an_octave: ClassVar[int | None] = None
    #: Largest absolute code, or None where codes are unbounded.
    limit: int | None = 127

    def scale_gradient(
        self, upstream: tf.Tensor, weights: tf.Tensor, scale: tf.Tensor, codes: tf.Tensor
    ) -> tf.Tensor:
        """dL/ds, in the shape of ``scale``; the other three have the shape of the weights."""
        return tf.zeros_like(scale)

    def penalty(self, weights: tf.Tensor, scale: tf.Tensor) -> tf.Tensor | None:
        """The loss term of one tensor (a scalar, gamma included), or None."""
        return None

    def damping(self, layers: int) -> float:
        """By what factor weights and ranges learn slower than scales in a model of so many linear layers."""
        return 1.0

    def scaled(self, factor: float) -> Scheme:
        """The scheme with its penalty (gamma, or the threshold) multiplied; itself where it has none."""
        penalties = {"gamma", "threshold"} & {field.name for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: factor * getattr(self, name) for name in penalties})

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class GradientThreshold(Scheme):
    """Weights whose relative gradient is below ``threshold`` (lambda) vote for a coarser scale."""

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
    """Penalizes the distance between a weight and its unrounded code."""

    name: ClassVar[str] = "difference"
    recipe: ClassVar[Recipe] = RECIPES["difference"]
    gamma: float = 1e-7

    def penalty(self, weights, scale):
        return self.gamma * tf.reduce_mean(tf.abs(weights - weights / scale))


@dataclass(frozen=True)
class Rate(Scheme):
    """Penalizes the bits that a variable-length code spends on the codes.

    The estimate is ``log2(1 + |P| / s)`` bits a weight, up to a factor that the penalty takes up. The scale
    follows the task too, by the straight-through derivative of q * s, undamped so that it weighs against the
    penalty as the weights do. Learns fast at a high rate: weights have far to go to 0.

    A weight also costs ``unit_bits`` whatever its code (a Huffman code has one bit at least), unless its
    input or its output channel is all zero: then it leaves the file. A channel counts as
    ``1 - exp(-m / 0.1)`` of one, ``m`` being its mean |P| / s: those that are nearly empty are drawn to 0.
    """

    name: ClassVar[str] = "rate"
    recipe: ClassVar[Recipe] = RECIPES["rate"]
    start_code: ClassVar[int | None] = 15
    scales_an_octave: ClassVar[int | None] = 8
    EMPTY: ClassVar[float] = 0.1
    gamma: float = 0.5
    unit_bits: float = 1.0

    def damping(self, layers):
        # What a step changes in every layer adds up: ResNets of 10 layers collapsed undamped.
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
    """Learned step size at a fixed width: ``limit`` is 2**(bits-1) - 1."""

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
    """The scheme that :meth:`Scheme.get_config` described."""
    config = dict(config)
    return SCHEMES[config.pop("name")](**config)
