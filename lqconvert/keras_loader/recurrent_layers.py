"""Recurrent layers in two parts, each with one kernel: the product with the inputs, and the loop over steps.

The loops compute in float as Keras's layers do. In a quantized model, they compute what the exported file
computes, as far as it matters: sums saturate, and an LSTM rounds its state at every step. (Everything else in
the file has 16 bits.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import tensorflow as tf
import tf_keras

from lqconvert.keras_loader.custom_layers import custom_layer


@custom_layer
class RecurrentInputs(tf_keras.layers.Dense):
    """What the inputs add to a recurrent layer's sums: [b, steps, sums * units], in Keras's order of sums."""


class RecurrentStates(tf_keras.layers.Layer):
    """The hidden states [b, steps, units] of a recurrent layer, from its :class:`RecurrentInputs`.

    Attributes:
        quantizer: of the hidden state in a quantized model.
        sums: the number of sums of a unit.
        states: the number of states of a unit. The first is the hidden state.
        limits: where the file's int16 saturates: each addend of a sum, and the sum.
    """

    sums: ClassVar[int]
    states: ClassVar[int] = 1
    limits: ClassVar[tuple[float, float]]

    def __init__(self, units: int, use_bias: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.use_bias = units, use_bias
        self.quantizer: Any = None
        self._graph = tf.function(self._run, autograph=False, reduce_retracing=True)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"units": self.units, "use_bias": self.use_bias}

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight("kernel", shape=(self.units, self.sums * self.units))
        if self.use_bias:
            self.bias = self.add_weight("bias", shape=(self.sums * self.units,), initializer="zeros")
        super().build(shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self._loop(inputs)[..., : self.units]

    def previous_states(self, inputs: tf.Tensor) -> tf.Tensor:
        """The hidden state before each step, with which the kernel is multiplied: [b, steps, units]."""
        return tf.pad(self._loop(inputs)[:, :-1, : self.units], [[0, 0], [1, 0], [0, 0]])

    def _loop(self, inputs: tf.Tensor) -> tf.Tensor:
        """The states after each step: [b, steps, states * units]."""
        integer = self.quantizer is not None and self.quantizer.enabled
        # In a graph, a step takes a twentieth of the time.
        run = self._graph if tf.executing_eagerly() else self._run
        weights = [self.kernel, self.bias] if self.use_bias else [self.kernel]
        return run(inputs, [tf.convert_to_tensor(weight) for weight in weights], integer)

    def _run(self, inputs: tf.Tensor, weights: Sequence[tf.Tensor], integer: bool) -> tf.Tensor:
        def step(x: tf.Tensor, states: Sequence[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
            new = self._step(x, states, weights, integer)
            return tf.concat(new, axis=-1), new

        inputs = clipped(inputs, self.limits[0]) if integer else inputs
        states = [tf.zeros([tf.shape(inputs)[0], self.units], inputs.dtype)] * self.states
        return tf_keras.backend.rnn(step, inputs, states)[1]

    def _step(
        self, x: tf.Tensor, states: Sequence[tf.Tensor], weights: Sequence[tf.Tensor], integer: bool
    ) -> list[tf.Tensor]:
        """The states after a step."""
        raise NotImplementedError


def clipped(x: tf.Tensor, limit: float | tf.Tensor) -> tf.Tensor:
    """x within the range of int16 codes of scale limit / 2**15."""
    return tf.clip_by_value(x, -limit, limit * (1 - 2.0**-15))


@custom_layer
class LSTMStates(RecurrentStates):
    """An LSTM with tanh and sigmoid. Its states are the hidden state and the cell."""

    sums, states, limits = 4, 2, (8.0, 8.0)

    def build(self, shape: Any) -> None:
        super().build(shape)
        # A power of two; calibration lowers it.
        self.cell_limit = self.add_weight(
            "cell_limit", shape=(), initializer=tf_keras.initializers.Constant(2.0**15), trainable=False
        )

    def count_params(self) -> int:
        """The number of parameters of Keras's layer: the limit is none."""
        return int(super().count_params()) - 1

    def cells(self, inputs: tf.Tensor) -> tf.Tensor:
        """The cells [b, steps, units]."""
        return self._loop(inputs)[..., self.units :]

    def _step(
        self, x: tf.Tensor, states: Sequence[tf.Tensor], weights: Sequence[tf.Tensor], integer: bool
    ) -> list[tf.Tensor]:
        state, cell = states
        sums = x + tf.matmul(state, weights[0])
        taken, kept, new, output = tf.split(clipped(sums, 8.0) if integer else sums, 4, axis=-1)
        cell = tf.sigmoid(kept) * cell + tf.sigmoid(taken) * tf.tanh(new)
        cell = clipped(cell, self.cell_limit) if integer else cell
        state = tf.sigmoid(output) * tf.tanh(cell)
        return [self.quantizer.call(state) if integer else state, cell]


@custom_layer
class GRUStates(RecurrentStates):
    """A GRU with tanh and sigmoid.

    Args:
        reset_after: the reset gate is applied after the product with the kernel, instead of before.
    """

    sums, limits = 3, (16.0, 8.0)

    def __init__(self, units: int, use_bias: bool = False, reset_after: bool = True, **kwargs: Any) -> None:
        super().__init__(units, use_bias, **kwargs)
        self.reset_after = reset_after

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"reset_after": self.reset_after}

    def _step(
        self, x: tf.Tensor, states: Sequence[tf.Tensor], weights: Sequence[tf.Tensor], integer: bool
    ) -> list[tf.Tensor]:
        (state,), units = states, self.units

        def product(state: tf.Tensor, begin: int, end: int) -> tf.Tensor:
            y = tf.matmul(state, weights[0][:, begin * units : end * units])
            y = y + weights[1][begin * units : end * units] if self.use_bias else y
            return clipped(y, self.limits[0]) if integer else y

        def added(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
            return clipped(a + b, self.limits[1]) if integer else a + b

        gates = tf.sigmoid(added(x[:, : 2 * units], product(state, 0, 2)))
        update, reset = tf.split(gates, 2, axis=-1)
        recurrent = reset * product(state, 2, 3) if self.reset_after else product(reset * state, 2, 3)
        new = tf.tanh(added(x[:, 2 * units :], recurrent))
        return [new + update * (state - new)]


@custom_layer
class SimpleRNNStates(RecurrentStates):
    """A SimpleRNN with tanh."""

    sums, limits = 1, (16.0, 8.0)

    def _step(
        self, x: tf.Tensor, states: Sequence[tf.Tensor], weights: Sequence[tf.Tensor], integer: bool
    ) -> list[tf.Tensor]:
        product = tf.matmul(states[0], weights[0])
        if not integer:
            return [tf.tanh(x + product)]
        return [tf.tanh(clipped(x + clipped(product, self.limits[0]), self.limits[1]))]
