"""Keras layers that quantize: learned scales for weights, learned ranges for activations.

They work in any tf_keras model, trained or not::

    layer = QuantizedLayer(
        tf_keras.layers.Dense(10),
        {"kernel": WeightQuantizer(LSQ(limit=7), kept_axes=(1,))},
    )
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras.utils import register_keras_serializable

from lqconvert.errors import LqError
from lqconvert.keras_loader.recurrent_layers import AnyStep, RecurrentStates, StepMask
from lqconvert.quantization.schemes import EPSILON, Scheme, scheme_from_config

#: Scales that are trained directly never fall below this (it is also the thesis's starting value).
MINIMUM_SCALE = 100 * EPSILON
#: Lower bound for log-trained scales. It keeps the scales of int32 biases representable in float32.
LEAST_SCALE = 1e-15
#: Activations with a smaller range are constantly zero.
LEAST_RANGE = 1e-20
#: The largest int16 result of TFLite's softmax, sigmoid and tanh, whose scale is 1/32768.
INT16_UNIT = 32767 / 32768

ROUNDINGS = {"nearest": tf.round, "floor": tf.floor}


class _ScaleFloor(tf_keras.constraints.Constraint):
    def __call__(self, scale):
        return tf.maximum(scale, MINIMUM_SCALE)


@register_keras_serializable("lqconvert")
class WeightQuantizer(tf_keras.layers.Layer):
    """Maps float weights ``P`` to ``q * s`` with integer codes ``q = round(P / s)``.

    The scale ``s`` is the only weight of the layer. Its shape is that of ``P`` on ``kept_axes`` and 1 on
    all others, so the axes define the granularity: ``()`` is one scale for the tensor, ``(3,)`` one for each
    output channel of a Conv2D kernel. The gradient of ``P`` is the upstream gradient (0 where the scheme's
    ``limit`` clips a code). The gradient of ``s`` is defined by the scheme.

    Args:
        scheme: how the scale is learned.
        kept_axes: axes of the weights that have a scale each.
        rounding: "nearest" or "floor".
        start: a starting value for every scale. None: ``max|P| / limit`` of its group, refined by
            calibration.
        log_scale: train log(s) instead of s, so that an optimizer's step is a ratio. The published
            schemes train s itself.
        share: weight of this tensor's penalty in the sum over the model: the number of its parameters
            divided by the number in all quantized tensors.
    """

    def __init__(
        self,
        scheme: Scheme | dict[str, Any],
        kept_axes: tuple[int, ...] = (),
        rounding: str = "nearest",
        start: float | None = None,
        log_scale: bool = True,
        share: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.scheme = scheme if isinstance(scheme, Scheme) else scheme_from_config(scheme)
        self.kept_axes = tuple(kept_axes)
        self.rounding = rounding
        self.start = start
        self.log_scale = log_scale
        self.share = share

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "scheme": self.scheme.get_config(),
            "kept_axes": self.kept_axes,
            "rounding": self.rounding,
            "start": self.start,
            "log_scale": self.log_scale,
            "share": self.share,
        }

    def build(self, shape: Any) -> None:
        start = MINIMUM_SCALE if self.start is None else self.start
        self.scale_weight = self.add_weight(
            "log_scale" if self.log_scale else "scale",
            shape=[length if axis in self.kept_axes else 1 for axis, length in enumerate(shape)],
            initializer=tf_keras.initializers.Constant(np.log(start) if self.log_scale else start),
            constraint=None if self.log_scale else _ScaleFloor(),
        )
        super().build(shape)

    @property
    def scale(self) -> tf.Tensor:
        """The scales, float32, broadcastable to the weights."""
        scale = tf.convert_to_tensor(self.scale_weight)
        if not self.log_scale:
            return scale
        if self.scheme.scales_an_octave:
            step = np.float32(np.log(2) / self.scheme.scales_an_octave)
            scale += tf.stop_gradient(tf.round(scale / step) * step - scale)
        return tf.exp(scale)

    def on_grid(self, scale: np.ndarray, *, up: bool = False) -> np.ndarray:
        """What :attr:`scale` is after :meth:`set_scale`: rounded to the scheme's scales, or rounded up."""
        octave = self.scheme.scales_an_octave
        if not (self.log_scale and octave):
            return scale
        return np.exp2((np.ceil if up else np.round)(np.log2(scale) * octave) / octave)

    def set_scale(self, scale: np.ndarray) -> None:
        scale = np.maximum(scale, LEAST_SCALE if self.log_scale else MINIMUM_SCALE)
        self.scale_weight.assign(np.log(scale) if self.log_scale else scale)

    def codes(self, weights: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """The integer codes of the weights, as whole float32 numbers."""
        codes = ROUNDINGS[self.rounding](weights / scale)
        limit = self.scheme.limit
        return codes if limit is None else tf.clip_by_value(codes, -limit, limit)

    def call(self, weights: tf.Tensor) -> tf.Tensor:
        scale = self.scale
        penalty = self.scheme.penalty(weights, scale)
        if penalty is not None:
            self.add_loss(self.share * penalty)

        @tf.custom_gradient
        def quantize(weights, scale):
            codes = self.codes(weights, scale)

            def gradient(upstream):
                to_scale = self.scheme.scale_gradient(upstream, weights, scale, codes)
                limit = self.scheme.limit
                if limit is None:
                    return upstream, to_scale
                # One step of slack, because floor(P/s) is within the limit for all P/s in [-limit, limit +
                # 1).
                inside = tf.abs(weights) <= (limit + 1) * scale
                return tf.where(inside, upstream, 0.0), to_scale

            return codes * scale, gradient

        return quantize(tf.convert_to_tensor(weights), scale)


@register_keras_serializable("lqconvert")
class QuantizedLayer(tf_keras.layers.Wrapper):
    """A layer that computes with quantized copies of its weights.

    Args:
        layer: the float layer; its weights stay float and trainable.
        quantizers: the :class:`WeightQuantizer` of each quantized weight, by the weight's attribute name
            ("kernel", "bias", ...).
    """

    def __init__(self, layer: Any, quantizers: dict[str, WeightQuantizer], **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        self.quantizers = {
            name: quantizer
            if isinstance(quantizer, WeightQuantizer)
            else tf_keras.layers.deserialize(quantizer, {"WeightQuantizer": WeightQuantizer})
            for name, quantizer in quantizers.items()
        }

    def get_config(self) -> dict[str, Any]:
        quantizers = {
            name: {"class_name": "WeightQuantizer", "config": quantizer.get_config()}
            for name, quantizer in self.quantizers.items()
        }
        return super().get_config() | {"quantizers": quantizers}

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        for name, quantizer in self.quantizers.items():
            with tf.name_scope(name):
                quantizer.build(getattr(self.layer, name).shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        # Set without Keras's attribute tracking, which would drop the variables from layer.weights.
        attributes: dict[str, Any] = self.layer.__dict__
        floats = {name: attributes[name] for name in self.quantizers}
        if isinstance(self.layer, RecurrentStates):
            attributes["quantizer"] = self._quantizer_behind()
        try:
            for name, quantizer in self.quantizers.items():
                attributes[name] = quantizer(floats[name])
            return self.layer.call(inputs)
        finally:
            attributes.update(floats)

    def _quantizer_behind(self) -> ActivationQuantizer | None:
        """The quantizer of this layer's output; None while the model is being built."""
        layers = (node.outbound_layer for node in self.outbound_nodes)
        return next((layer for layer in layers if isinstance(layer, ActivationQuantizer)), None)


def scale_and_zero_point(low: Any, high: Any, bits: int = 8) -> tuple[float, int]:
    """The quantization of a range that contains 0 to int8 or, symmetrically, to int16.

    int8 is rounded as TensorFlow's fake_quant does ("nudge").

    Raises:
        LqError: if the range is empty or not finite.
    """
    low, high = np.float32(low), np.float32(high)
    with np.errstate(over="ignore", invalid="ignore"):
        if bits == 16:
            scale = np.float32(max(-low, high) / np.float32(32767))
        else:
            scale = np.float32((high - low) / np.float32(255))
    if not 0 < scale < np.inf:
        raise LqError(f"activations range from {low:g} to {high:g}, which int{bits} cannot hold")
    if bits == 16:
        return float(scale), 0
    zero_point = np.floor(np.clip(-low / scale, 0, 255) + np.float32(0.5))
    return float(scale), int(zero_point) - 128


@register_keras_serializable("lqconvert")
class ActivationQuantizer(tf_keras.layers.Layer):
    """Fake quantization of activations to int8: x -> (q - zero_point) * scale, q in -128..127.

    With 16 bits, q is in -32768..32767 and the zero point is 0, as in TFLite's 16x8 quantization.

    The learned weights are the range's ends, in units of the calibrated range, so that an optimizer's step
    means the same for every tensor. Scale and zero point follow from them as in TFLite. Until
    :meth:`set_range` is called, the range follows the training data (a moving average, as in
    quantization-aware training from scratch).

    Args:
        fixed: (low, high) if TFLite prescribes the range (softmax, sigmoid, tanh) or it is known from the
            data (raw pixels). Then nothing is learned.
        inference_only: do not quantize in training. For final probabilities: rounded to multiples of 1/256,
            they would give no gradient for small errors.
        covered: (low, high) that the learned range always contains, in the units of the activations.
        bits: 8 or 16. With 16, a ``fixed`` range is one that TFLite prescribes for int8.
    """

    MOMENTUM = 0.9

    def __init__(
        self,
        fixed: tuple[float, float] | None = None,
        inference_only: bool = False,
        covered: tuple[float, float] | None = None,
        bits: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.bits = bits
        self.fixed, self.covered = (
            None if limits is None else (float(limits[0]), float(limits[1])) for limits in (fixed, covered)
        )
        self.inference_only = inference_only
        self.enabled = True  # False while calibration observes float values
        self.follows = True  # whether the range follows the training data, until it is calibrated

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "fixed": self.fixed,
            "inference_only": self.inference_only,
            "covered": self.covered,
            "bits": self.bits,
        }

    def build(self, input_shape: Any) -> None:
        learned = self.fixed is None
        self.limits = self.add_weight(
            "range",
            shape=(2,),
            initializer=tf_keras.initializers.Constant([-1.0, 1.0] if self.fixed is None else self.fixed),
            trainable=learned,
        )
        if learned:
            self.unit = self.add_weight("unit", shape=(), initializer="ones", trainable=False)
            self.calibrated = self.add_weight(
                "calibrated", shape=(), dtype=tf.bool, initializer="zeros", trainable=False
            )
        super().build(input_shape)

    def set_range(self, low: float, high: float) -> None:
        """Sets the starting range, widened to contain 0 (which TFLite's zero point requires)."""
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        if high - low < LEAST_RANGE:  # constantly zero: any range will do
            high = low + 1.0
        unit = max(high, -low)
        self.unit.assign(unit)
        self.limits.assign([low / unit, high / unit])
        self.calibrated.assign(True)

    @property
    def range(self) -> tuple[tf.Tensor, tf.Tensor]:
        """(low, high) in the units of the activations."""
        if self.fixed is not None and self.bits == 16:
            return tf.constant(-INT16_UNIT), tf.constant(INT16_UNIT)
        if self.fixed is not None:
            return self.limits[0], self.limits[1]
        low = tf.minimum(self.limits[0], 0.0)
        high = tf.maximum(tf.maximum(self.limits[1], 0.0), low + 1e-6)
        low, high = low * self.unit, high * self.unit
        if self.covered is None:
            return low, high
        return tf.minimum(low, self.covered[0]), tf.maximum(high, self.covered[1])

    @property
    def scale_and_zero_point(self) -> tuple[float, int]:
        """The quantization for the current range."""
        return scale_and_zero_point(*self.range, self.bits)

    @property
    def limits_of_codes(self) -> tuple[tf.Tensor, tf.Tensor]:
        """The range, with 16 bits widened to be symmetric, as the codes are."""
        low, high = self.range
        if self.bits == 8:
            return low, high
        high = tf.maximum(-low, high)
        return -high * (32768 / 32767), high

    def rounded(self, inputs: tf.Tensor) -> tf.Tensor:
        """The inputs on the grid of the current range, with the gradients of TensorFlow's fake_quant."""
        low, high = self.limits_of_codes
        return tf.quantization.fake_quant_with_min_max_vars(inputs, low, high, num_bits=self.bits)

    def _follow(self, inputs: tf.Tensor) -> tf.Tensor:
        batch = tf.stack([tf.minimum(tf.reduce_min(inputs), 0.0), tf.maximum(tf.reduce_max(inputs), 1e-6)])
        momentum = tf.where(tf.reduce_all(self.limits == [-1.0, 1.0]), 0.0, self.MOMENTUM)
        return self.limits.assign(momentum * self.limits + (1 - momentum) * batch)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if not self.enabled or (training and self.inference_only):
            return inputs
        if training and self.fixed is None and self.follows:
            tf.cond(self.calibrated, lambda: tf.identity(self.limits), lambda: self._follow(inputs))
        return self.rounded(inputs)


def quantizer_in_front(tensor: Any) -> ActivationQuantizer | None:
    """The nearest quantizer in front of a tensor of a functional model.

    In between are layers with one input, or with masks besides.
    """
    while True:
        layer = tensor._keras_history.layer
        if isinstance(layer, ActivationQuantizer):
            return layer
        if isinstance(layer, tf_keras.layers.InputLayer):
            return None
        tensor, *others = layer.input if isinstance(layer.input, list) else [layer.input]
        if any(not isinstance(other._keras_history.layer, (StepMask, AnyStep)) for other in others):
            return None


@register_keras_serializable("lqconvert")
class FollowingQuantizer(tf_keras.layers.Layer):
    """Rounds to the grid of the nearest :class:`ActivationQuantizer` in front of it in a functional model.

    For operations whose results lie between the steps of their input's scale, which TFLite also uses for the
    output: average pooling, for example. It has no weights.
    """

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if hasattr(inputs, "_keras_history"):
            layer = quantizer_in_front(inputs)
            assert layer is not None, "nothing to follow"
            # In a closure: Keras would count an attribute as a part of this layer.
            self.source = lambda: layer
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        source = self.source()
        if not source.enabled:
            return inputs
        return source.rounded(inputs)
