"""Our own tf_keras layers, which the rules in :mod:`lqconvert.keras_loader.layer_rules` make.

TFLite's converter makes one operator, or few, of each of them.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras.utils import register_keras_serializable

#: Our own layers, by the names that they have in configs.
CUSTOM_LAYERS: dict[str, type] = {}


def custom_layer(cls: type) -> Any:
    """Registers one of our own layers."""
    CUSTOM_LAYERS[cls.__name__] = cls
    return register_keras_serializable("lqconvert")(cls)


@custom_layer
class HardSwish(tf_keras.layers.Layer):
    """x * relu6(x + 3) / 6, in the form that TFLite's converter recognizes for its HARD_SWISH kernel."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs * tf.nn.relu6(inputs + 3.0) * (1.0 / 6.0)


@custom_layer
class L2Normalize(tf_keras.layers.Layer):
    """x divided by its length along the last axis. The converter makes an L2_NORMALIZATION of it."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.math.l2_normalize(inputs, axis=-1)


#: Functions that are not defined at 0 or below have their value (and no gradient) at this number instead.
LEAST = 1e-7


def _erf(x: tf.Tensor) -> tf.Tensor:
    """The error function, with an error of at most 1.5e-7: TFLite has none. Abramowitz and Stegun, 7.1.26."""
    t = 1 / (1 + 0.3275911 * tf.abs(x))
    series = 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429
    polynomial = sum(factor * t ** (power + 1) for power, factor in enumerate(series))
    return tf.sign(x) * (1 - polynomial * tf.exp(-x * x))


def _off_zero(x: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.abs(x) < LEAST, LEAST, x)


def _power(x: tf.Tensor, exponent: float) -> tf.Tensor:
    x = x if float(exponent).is_integer() else tf.maximum(x, LEAST)
    return tf.pow(_off_zero(x) if exponent < 0 else x, exponent)


@custom_layer
class Elementwise(tf_keras.layers.Layer):
    """A function of each value. The exported file looks its 256 results up in a table.

    Args:
        function: its name in FUNCTIONS.
        parameter: of the function, if it has one: ELU's alpha, or an exponent.
    """

    FUNCTIONS: ClassVar[dict[str, Callable[[tf.Tensor, float], tf.Tensor]]] = {
        "elu": lambda x, alpha: tf.where(x > 0, x, alpha * tf.math.expm1(tf.minimum(x, 0))),
        "celu": lambda x, alpha: tf.where(x > 0, x, alpha * tf.math.expm1(tf.minimum(x, 0) / alpha)),
        "selu": lambda x, _: tf.nn.selu(x),
        "thresholded_relu": lambda x, theta: tf.where(x > theta, x, 0.0),
        "softplus": lambda x, _: tf.nn.softplus(x),
        "softsign": lambda x, _: tf.nn.softsign(x),
        "mish": lambda x, _: x * tf.tanh(tf.nn.softplus(x)),
        "gelu": lambda x, _: tf.nn.gelu(x, approximate=False),
        "gelu_tanh": lambda x, _: tf.nn.gelu(x, approximate=True),
        "log_sigmoid": lambda x, _: tf.math.log_sigmoid(x),
        "tanh_shrink": lambda x, _: x - tf.tanh(x),
        "squareplus": lambda x, b: (x + tf.sqrt(x * x + b)) / 2,
        "exp": lambda x, _: tf.exp(x),
        "log": lambda x, _: tf.math.log(tf.maximum(x, LEAST)),
        "log1p": lambda x, _: tf.math.log1p(tf.maximum(x, LEAST - 1)),
        "expm1": lambda x, _: tf.math.expm1(x),
        "sqrt": lambda x, _: tf.sqrt(tf.maximum(x, LEAST**2)),
        "rsqrt": lambda x, _: tf.math.rsqrt(tf.maximum(x, LEAST)),
        "reciprocal": lambda x, _: 1 / _off_zero(x),
        "power": _power,
        "sin": lambda x, _: tf.sin(x),
        "cos": lambda x, _: tf.cos(x),
        "erf": lambda x, _: _erf(x),
    }

    def __init__(self, function: str, parameter: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function, self.parameter = function, float(parameter)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"function": self.function, "parameter": self.parameter}

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.FUNCTIONS[self.function](inputs, self.parameter)


@custom_layer
class Constant(tf_keras.layers.Layer):
    """A constant [1, ...] for each example of its input, of which only the number counts."""

    def __init__(self, shape: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.constant_shape = tuple(shape)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"shape": self.constant_shape}

    @classmethod
    def of(cls, values: Any, like: Any, name: str) -> Any:
        """A tensor with these values [...] for each example of the tensor ``like``."""
        values = np.asarray(values, np.float32)
        layer = cls((1, *values.shape), name=name)
        y = layer(like)
        layer.set_weights([values[np.newaxis]])
        return y

    def build(self, shape: Any) -> None:
        self.values = self.add_weight("values", shape=self.constant_shape, trainable=False)
        super().build(shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.repeat(self.values, tf.shape(inputs)[0], axis=0)


@custom_layer
class Resize(tf_keras.layers.Layer):
    """Images of another size: "bilinear" or "nearest", without antialiasing."""

    def __init__(self, height: int, width: int, method: str = "bilinear", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.height, self.width, self.method = height, width, method

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"height": self.height, "width": self.width, "method": self.method}

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.image.resize(inputs, (self.height, self.width), self.method)


@custom_layer
class DepthToSpace(tf_keras.layers.Layer):
    """Blocks of channels as blocks of pixels: [b, h, w, n * n * c] as [b, h * n, w * n, c]."""

    def __init__(self, block: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block = block

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"block": self.block}

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.nn.depth_to_space(inputs, self.block)


@custom_layer
class MergeSteps(tf_keras.layers.Layer):
    """[b, steps, ...] as [b * steps, ...]: the next layers treat each step as an example."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.reshape(inputs, (-1, *inputs.shape[2:]))


@custom_layer
class SplitSteps(tf_keras.layers.Layer):
    """[b * steps, ...] as [b, steps, ...]."""

    def __init__(self, steps: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps = steps

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"steps": self.steps}

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.reshape(inputs, (-1, self.steps, *inputs.shape[1:]))


@custom_layer
class Slice(tf_keras.layers.Layer):
    """inputs[:, start:stop:step, ...], with (start, stop, step) for each axis except the batch axis."""

    def __init__(self, slices: Sequence[Sequence[int | None]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.slices = [tuple(part) for part in slices]

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"slices": self.slices}

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs[(slice(None), *(slice(*part) for part in self.slices))]


@custom_layer
class Reduce(tf_keras.layers.Layer):
    """Mean, sum or maximum over axes. The batch axis is counted, but is not among them."""

    FUNCTIONS: ClassVar[dict[str, Callable[..., tf.Tensor]]] = {
        "mean": tf.reduce_mean,
        "sum": tf.reduce_sum,
        "max": tf.reduce_max,
    }

    def __init__(self, function: str, axes: Sequence[int], keepdims: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function, self.axes, self.keepdims = function, list(axes), keepdims

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "function": self.function,
            "axes": self.axes,
            "keepdims": self.keepdims,
        }

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.FUNCTIONS[self.function](inputs, self.axes, self.keepdims)


@custom_layer
class MatMul(tf_keras.layers.Layer):
    """The matrix product of two tensors along their last two axes."""

    def __init__(self, transpose_b: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.transpose_b = transpose_b

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"transpose_b": self.transpose_b}

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        return tf.matmul(inputs[0], inputs[1], transpose_b=self.transpose_b)


class ReadsRange(tf_keras.layers.Layer):
    """A layer that computes with the range of its first input, in a quantized model.

    Attributes:
        quantizer: returns the quantizer in front; None in a float model.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.quantizer: Callable[[], Any] = lambda: None

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        first = inputs[0] if isinstance(inputs, (list, tuple)) else inputs
        source: Any = getattr(getattr(first, "_keras_history", None), "layer", None)
        # Layers that keep their input's scale may stand between.
        while source is not None and not hasattr(source, "scale_and_zero_point"):
            given = None if isinstance(source, tf_keras.layers.InputLayer) else source.input
            source = getattr(getattr(given, "_keras_history", None), "layer", None)
        if source is not None:
            # In a closure: Keras would count an attribute as a part of this layer.
            self.quantizer = lambda: source
        return super().__call__(inputs, *args, **kwargs)


@custom_layer
class AttentionMask(ReadsRange):
    """The scores of attention [b, ..., steps, others], without those that are masked.

    These get -1e9, about as in Keras, or the low end of the range in a quantized model. Calibration puts this
    end so far below the scores (``margin``) that softmax gives all masked ones of a step together e^-8 of the
    weight of the step's lowest other score. If all scores of a step are masked, they have the same weight.

    It reads the scores alone, or the scores and several :class:`.StepMask`.

    Args:
        causal: no step reads a later one.
        queries: how many of the masks are of the steps [b, steps, 1]. The others are of the steps that are
            read: [b, others, 1].
    """

    def __init__(self, causal: bool = False, queries: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.causal, self.queries = causal, queries

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"causal": self.causal, "queries": self.queries}

    @staticmethod
    def earlier(steps: int, others: int) -> np.ndarray:
        """Whether a score is not of a later step, bool [steps, others]."""
        return np.tri(steps, others, dtype=bool)

    @property
    def scores_and_masks(self) -> tuple[Any, list[Any], list[Any]]:
        """The inputs: the scores, the masks of the steps, and those of the steps that are read."""
        return self._parts(self.input)

    def _parts(self, inputs: Any) -> tuple[Any, list[Any], list[Any]]:
        scores, *masks = inputs if isinstance(inputs, (list, tuple)) else (inputs,)
        return scores, masks[: self.queries], masks[self.queries :]

    @property
    def margin(self) -> float:
        """The distance of the range's low end from the lowest score."""
        return 8.0 + math.log(self.scores_and_masks[0].shape[-1])

    def call(self, inputs: Any) -> tf.Tensor:
        scores, queries, keys = self._parts(inputs)
        counts = tf.constant(True)
        for mask in [*queries, *(tf.transpose(mask, (0, 2, 1)) for mask in keys)]:
            counts = tf.logical_and(counts, mask > 0)
        if scores.shape.rank == 4 and counts.shape.rank == 3:  # the same for all heads
            counts = counts[:, tf.newaxis]
        if self.causal:
            counts = tf.logical_and(counts, self.earlier(*scores.shape[-2:]))
        quantizer = self.quantizer()
        if quantizer is None or not quantizer.enabled:
            return tf.where(counts, scores, -1e9)
        return tf.where(counts, scores, tf.stop_gradient(quantizer.range[0]))


@custom_layer
class ZeroMasked(tf_keras.layers.Layer):
    """A sequence [b, steps, n] and a :class:`.StepMask` as the sequence with 0 in the masked steps."""

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        x, counts = inputs
        return tf.where(counts > 0, x, 0.0)


class Norm(tf_keras.layers.Layer):
    """A normalization, with a factor and (if it subtracts the mean) an offset for each channel."""

    centers = True

    def __init__(self, epsilon: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"epsilon": self.epsilon}

    def build(self, shape: Any) -> None:
        self.gamma = self.add_weight("gamma", shape=(shape[-1],), initializer="ones")
        if self.centers:
            self.beta = self.add_weight("beta", shape=(shape[-1],), initializer="zeros")
        super().build(shape)

    @property
    def offsets(self) -> Any:
        return self.beta if self.centers else tf.zeros_like(self.gamma)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.normalized(inputs, [-1]) * self.gamma + self.offsets

    def normalized(self, x: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
        """x over its root mean square along some axes, behind the subtraction of its mean."""
        if self.centers:
            x -= tf.reduce_mean(x, axes, keepdims=True)
        return x * tf.math.rsqrt(tf.reduce_mean(x * x, axes, keepdims=True) + self.epsilon)


@custom_layer
class LayerNorm(Norm):
    """LayerNormalization over the last axis."""


@custom_layer
class RMSNorm(Norm):
    """RMSNormalization over the last axis."""

    centers = False


@custom_layer
class GroupNorm(Norm):
    """GroupNormalization of the last axis of images or sequences."""

    def __init__(self, groups: int, epsilon: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(epsilon, **kwargs)
        self.groups = groups

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"groups": self.groups}

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        places, channels = math.prod(inputs.shape[1:-1]), inputs.shape[-1]
        x = tf.reshape(inputs, (-1, places, self.groups, channels // self.groups))
        y = tf.reshape(self.normalized(x, [1, 3]), (-1, *inputs.shape[1:]))
        return y * self.gamma + self.offsets


@custom_layer
class TrustedFunction(tf_keras.layers.Layer):
    """The function of a Lambda layer of a trusted file. Configs have the function's number in this process.

    Layers own their functions, and copies of a layer find them. When the last copy is deleted, so is the
    function.
    """

    FUNCTIONS: ClassVar[weakref.WeakValueDictionary[int, Any]] = weakref.WeakValueDictionary()
    NUMBERS: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, number: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.number = number
        self.function = self.FUNCTIONS[number]

    @classmethod
    def of(cls, function: Callable[..., Any], name: str) -> TrustedFunction:
        number = next(cls.NUMBERS)
        cls.FUNCTIONS[number] = function
        return cls(number, name=name)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"number": self.number}

    def call(self, inputs: Any) -> Any:
        return self.function(inputs)
