"""Pairs of recurrent layers (the product with the inputs, and the loop over steps) for the converter."""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras

from lqconvert.keras_loader.recurrent_layers import (
    GRUStates,
    LSTMStates,
    RecurrentInputs,
    RecurrentStates,
)


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
        settings = {"return_sequences": True, "name": layer.name}
        if isinstance(layer, LSTMStates):
            return tf_keras.layers.LSTM(layer.units, **settings)
        if isinstance(layer, GRUStates):
            return tf_keras.layers.GRU(layer.units, reset_after=layer.reset_after, **settings)
        return tf_keras.layers.SimpleRNN(layer.units, **settings)

    clone = tf_keras.models.clone_model(model, clone_function=replaced)
    for layer in clone.layers:
        source = model.get_layer(layer.name)
        if isinstance(source, RecurrentStates):
            inputs = source.input._keras_history.layer
            bias = inputs.bias.numpy() if inputs.use_bias else np.zeros(inputs.units)
            if isinstance(source, GRUStates) and source.reset_after:
                bias = [bias, source.bias.numpy() if source.use_bias else np.zeros_like(bias)]
            layer.set_weights([inputs.kernel.numpy(), source.kernel.numpy(), np.asarray(bias)])
        elif layer.weights:
            layer.set_weights(source.get_weights())
    return clone
