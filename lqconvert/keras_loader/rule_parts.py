"""What the rules of layers have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tf_keras import layers as keras_layers

from lqconvert.errors import LqError
from lqconvert.keras_loader.custom_layers import MergeSteps, SplitSteps
from lqconvert.keras_loader.layer_kinds import ACTIVATIONS, Loading

#: Makes a layer's name unique in the rebuilt model.
Unique = Callable[[str], str]
#: (layer, its config, inputs, name, unique) -> outputs
Twin = Callable[[Any, dict[str, Any], Any, str, Unique], Any]

#: Activations that layers keep. :func:`lqconvert.quantization.fold_batchnorm.fold` separates them later.
KEPT_ACTIVATIONS = {
    kind.name for kind in ACTIVATIONS.values() if kind.loading is Loading.AS_IS and not kind.stays_float
}


def scaled(x: Any, factor: Any, offset: Any, name: str, mean: Any = 0.0, variance: Any = 1.0) -> Any:
    """(x - mean) / sqrt(variance) * factor + offset, as a BatchNormalization, which can be folded.

    All of them are numbers, or have one number for each channel.
    """
    weights = [_per_channel(values, x.shape[-1], name) for values in (factor, offset, mean, variance)]
    layer = keras_layers.BatchNormalization(epsilon=0.0, name=name)
    y = layer(x)
    layer.set_weights(weights)
    return y


def _per_channel(values: Any, channels: int, name: str) -> np.ndarray:
    values = np.asarray(values, np.float32)
    if values.size == 1 or (values.size == channels and values.shape[-1] == channels):
        return np.ones(channels, np.float32) * values.ravel()
    raise LqError(f"layer '{name}': a constant of shape {values.shape} that is not one number a channel")


def summed(values: Sequence[Any], name: str, unique: Unique, *, average: bool = False) -> Any:
    """The sum or average of several tensors with TFLite's operators: sums of two, and a factor."""
    total = values[0]
    for number, value in enumerate(values[1:], start=2):
        last = number == len(values) and not average
        total = keras_layers.Add(name=name if last else unique(f"{name}_{number}"))([total, value])
    return scaled(total, 1 / len(values), 0.0, name) if average else total


def is_split(x: Any) -> bool:
    """Whether a tensor is the result of :func:`by_step`."""
    return isinstance(getattr(getattr(x, "_keras_history", None), "layer", None), SplitSteps)


def by_step(x: Any, apply: Callable[[Any], Any], name: str, unique: Unique) -> Any:
    """Applies layers to each step of a sequence of images: [b, steps, ...]."""
    steps = x._keras_history.layer.input if is_split(x) else MergeSteps(name=unique(f"{name}_merged"))(x)
    return SplitSteps(x.shape[1], name=name)(apply(steps))


def copy_of(layer: Any, name: str, cls: Any = None, **changes: Any) -> Any:
    """A layer of tf_keras with the settings of another. Its activation is kept only if layers may keep it."""
    cls = cls or getattr(keras_layers, type(layer).__name__)
    accepted = set(inspect.signature(cls.__init__).parameters)
    for parent in (keras_layers.Conv2D, keras_layers.DepthwiseConv2D):
        accepted |= set(inspect.signature(parent.__init__).parameters) if issubclass(cls, parent) else set()
    config = {
        key: value
        for key, value in layer.get_config().items()
        if key in accepted
        and key not in ("dtype", "name")
        and not key.endswith(("initializer", "regularizer", "constraint"))
    }
    if "activation" in config:
        activation = activation_name(layer)
        config["activation"] = activation if activation in KEPT_ACTIVATIONS else "linear"
    if "recurrent_activation" in config:
        config["recurrent_activation"] = layer.recurrent_activation.__name__
    return cls(name=name, **config | changes)


def weights_of(layer: Any) -> list[np.ndarray]:
    """A layer's weights as float32, without the states of random generators."""
    weights = [
        np.asarray(weight)
        for weight in layer.weights
        if "seed_generator" not in weight.name.rsplit("/", 1)[-1]
    ]
    return [weight.astype(np.float32) for weight in weights]


def activation_name(layer: Any) -> str:
    return getattr(getattr(layer, "activation", None), "__name__", "linear")


def is_keras3(layer: Any) -> bool:
    return type(layer).__module__.startswith("keras.")
