"""The tf_keras layers that do what a layer of either Keras does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras.utils import register_keras_serializable

from lqconvert.errors import LqError

DROPPED = {
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "GaussianNoise",
    "GaussianDropout",
    "ActivityRegularization",
}
LAYERS = {
    *("InputLayer", "Dense", "Conv1D", "Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose"),
    *("Convolution2D", "BatchNormalization", "Activation", "ReLU", "LeakyReLU", "Softmax", "MaxPooling1D"),
    *(
        "MaxPooling2D",
        "AveragePooling1D",
        "AveragePooling2D",
        "GlobalAveragePooling1D",
        "GlobalAveragePooling2D",
    ),
    *("GlobalMaxPooling1D", "GlobalMaxPooling2D", "Add", "Subtract", "Multiply", "Average", "Concatenate"),
    *("Flatten", "Reshape", "Permute", "ZeroPadding1D", "ZeroPadding2D", "Cropping1D", "Cropping2D"),
    *("UpSampling1D", "UpSampling2D", "HardSwish"),
}
#: tf.add and friends between two tensors, as tf_keras and Keras 3 write them into a functional graph.
OPERATIONS = {
    "__operators__.add": "Add",
    "math.add": "Add",
    "__operators__.sub": "Subtract",
    "math.subtract": "Subtract",
    "__operators__.mul": "Multiply",
    "math.multiply": "Multiply",
}
ACTIVATIONS = {"linear", "relu", "sigmoid", "tanh", "softmax"}


@register_keras_serializable("lqconvert")
class HardSwish(tf_keras.layers.Layer):
    """x * relu6(x + 3) / 6, written as TFLite's converter recognizes it for its HARD_SWISH kernel."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs * tf.nn.relu6(inputs + 3.0) * (1.0 / 6.0)


def _activation_name(layer: Any) -> str:
    return getattr(getattr(layer, "activation", None), "__name__", "linear")


def twin(layer: Any, name: str) -> list[tf_keras.layers.Layer]:
    """The tf_keras layers that do what a layer of either Keras does (none for identity)."""
    kind, config = type(layer).__name__, layer.get_config()
    if kind in DROPPED:
        return []
    kind = OPERATIONS.get(config.get("function", ""), kind)
    if kind == "HardSwish":
        return [HardSwish(name=name)]
    activation = _activation_name(layer)
    tail: list[tf_keras.layers.Layer] = []
    if kind == "ReLU" and (config.get("negative_slope") or 0):
        return [tf_keras.layers.LeakyReLU(config["negative_slope"], name=name)]
    if kind == "LeakyReLU":
        return [tf_keras.layers.LeakyReLU(config.get("negative_slope", config.get("alpha")), name=name)]
    if activation == "relu6":
        tail = [tf_keras.layers.ReLU(6.0, name=f"{name}_relu6" if kind != "Activation" else name)]
    elif activation in ("hard_silu", "hard_swish"):
        tail = [HardSwish(name=f"{name}_hard_swish" if kind != "Activation" else name)]
    elif activation == "leaky_relu":
        tail = [tf_keras.layers.LeakyReLU(0.2, name=f"{name}_leaky_relu" if kind != "Activation" else name)]
    elif activation not in ACTIVATIONS:
        raise LqError(f"layer '{name}' ({kind}): activation '{activation}' is not known to lqconvert")
    if tail and kind == "Activation":
        return tail
    cls = getattr(tf_keras.layers, kind)
    accepted = set(inspect.signature(cls.__init__).parameters)
    plain = {
        key: value
        for key, value in config.items()
        if key in accepted
        and key not in ("dtype", "name")
        and not key.endswith(("initializer", "regularizer", "constraint"))
    }
    if "activation" in plain:
        plain["activation"] = "linear" if tail else activation
    return [cls(name=name, **plain), *tail]


def added(layer: Any, values: list[Any], unique: Callable[[str], str]) -> Any:
    """Add or Average of any number of tensors by TFLite's means: sums of two, and a factor."""
    total, name = values[0], unique(layer.name)
    average = type(layer).__name__ == "Average"
    for number, value in enumerate(values[1:], start=2):
        last = number == len(values) and not average
        total = tf_keras.layers.Add(name=name if last else unique(f"{name}_{number}"))([total, value])
    if average:
        factor = tf_keras.layers.BatchNormalization(center=False, epsilon=0.0, name=name)
        total = factor(total)
        ones = np.ones(total.shape[-1], np.float32)
        factor.set_weights([ones / len(values), 0 * ones, ones])
    return total
