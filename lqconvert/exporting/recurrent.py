"""Pairs of recurrent layers (the product with the inputs, and the loop over steps) for the converter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from lqconvert.keras_loader.recurrent_layers import (
    FUNCTIONS,
    GRUStates,
    RecurrentInputs,
    RecurrentStates,
    SimpleRNNStates,
    inputs_and_mask,
)


class First(tf_keras.layers.Layer):
    """The first of several inputs."""

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        return inputs[0]


class Placeholder(tf_keras.layers.Layer):
    """A LeakyReLU of an input, or of the first of several inputs, whole or only its first step."""

    def __init__(self, slope: float, first_step: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.slope, self.first_step = slope, first_step

    def call(self, inputs: Any) -> tf.Tensor:
        x = inputs[0] if isinstance(inputs, (list, tuple)) else inputs
        return tf.nn.leaky_relu(x[:, 0] if self.first_step else x, self.slope)


class _Masked(tf_keras.layers.Layer):
    """A recurrent layer of Keras whose mask is the last value of each step."""

    def __init__(self, layer: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.layer(inputs[..., :-1], mask=inputs[..., -1] > 0)


def with_keras_layers(model: tf_keras.Model) -> tf_keras.Model:
    """A float model with Keras's recurrent layers, which the converter knows."""
    states = [layer for layer in model.layers if isinstance(layer, RecurrentStates)]
    if not states:
        return model

    def replaced(layer: Any) -> Any:
        if isinstance(layer, RecurrentInputs):
            return tf_keras.layers.Activation("linear", name=layer.name)
        if not isinstance(layer, RecurrentStates):
            return type(layer).from_config(layer.get_config())
        name = f"{layer.name}_keras" if layer.masked else layer.name
        settings: dict[str, Any] = {
            "return_sequences": True,
            "activation": FUNCTIONS[layer.activation],
            "name": name,
        }
        settings["zero_output_for_mask"] = layer.zeroes_masked
        if not isinstance(layer, SimpleRNNStates):
            settings["recurrent_activation"] = FUNCTIONS[layer.gates]
        if isinstance(layer, GRUStates):
            settings["reset_after"] = layer.reset_after
        kind = type(layer).__name__.removesuffix("States").removesuffix("Loop")
        keras = getattr(tf_keras.layers, kind)(layer.units, **settings)
        return _Masked(keras, name=layer.name) if layer.masked else keras

    clone = tf_keras.models.clone_model(model, clone_function=replaced)
    for layer in clone.layers:
        source = model.get_layer(layer.name)
        if isinstance(source, RecurrentStates):
            inputs = inputs_and_mask(source)[0]._keras_history.layer
            bias = inputs.bias.numpy() if inputs.use_bias else np.zeros(inputs.units)
            if isinstance(source, GRUStates) and source.reset_after:
                bias = [bias, source.bias.numpy() if source.use_bias else np.zeros_like(bias)]
            layer.set_weights([inputs.kernel.numpy(), source.kernel.numpy(), np.asarray(bias)])
        elif layer.weights:
            layer.set_weights(source.get_weights())
    return clone
