"""Recurrent layers in two parts, each with one kernel: the product with the inputs, and the loop over steps.

The loops compute in float as Keras's layers do. In a quantized model, they compute what the exported file
computes, as far as it matters: sums saturate, and an LSTM rounds its state at every step. (Everything else in
the file has 16 bits.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import tensorflow as tf
import tf_keras

from lqconvert.keras_loader.custom_layers import ReadsRange, custom_layer

#: The activations of cells and of gates. Keras 2 and Keras 3 have another hard sigmoid.
FUNCTIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "tanh": tf.tanh,
    "sigmoid": tf.sigmoid,
    "relu": tf.nn.relu,
    "linear": tf.identity,
    "hard_sigmoid": lambda x: tf.clip_by_value(0.2 * x + 0.5, 0.0, 1.0),
    "hard_sigmoid_3": lambda x: tf.nn.relu6(x + 3.0) / 6.0,
}
#: Those whose results are between -1 and 1.
BOUNDED = {"tanh", "sigmoid", "hard_sigmoid", "hard_sigmoid_3"}


@custom_layer
class RecurrentInputs(tf_keras.layers.Dense):
    """What the inputs add to a recurrent layer's sums: [b, steps, sums * units], in Keras's order of sums."""


@custom_layer
class StepMask(ReadsRange):
    """1 for each step of a sequence that counts and 0 for the masked ones: [b, steps, 1].

    Args:
        value: what all values of a masked step are. With indices [b, steps], a step has one value. Rounded
            inputs have it if they are within half a step of their scale. Their range need not hold it: then
            it is the range's end.
    """

    def __init__(self, value: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value = float(value)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"value": self.value}

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        x = tf.cast(inputs, tf.float32)
        x = x[..., tf.newaxis] if x.shape.rank == 2 else x
        value, tolerance, quantizer = self.value, 0.0, self.quantizer()
        if quantizer is not None and quantizer.enabled:
            low, high = quantizer.limits_of_codes
            tolerance = 0.501 * (high - low) / (2**quantizer.bits - 1)
            value = tf.clip_by_value(value, low, high)
        counts = tf.reduce_any(tf.abs(x - value) > tolerance, axis=-1, keepdims=True)
        return tf.cast(counts, tf.float32)


@custom_layer
class AnyStep(tf_keras.layers.Layer):
    """1 if a step counts in a :class:`StepMask`, or in all of several, and 0 if none does: [b, 1, 1]."""

    def call(self, inputs: Any) -> tf.Tensor:
        counts = tf.reduce_min(tf.stack(tf.nest.flatten(inputs)), axis=0)
        return tf.reduce_max(counts, axis=1, keepdims=True)


@custom_layer
class MaskedMean(tf_keras.layers.Layer):
    """The mean of the steps that count: of [b, steps, n] and a :class:`StepMask`, [b, n]; 0 if none does."""

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        x, counts = inputs
        return tf.math.divide_no_nan(tf.reduce_sum(x * counts, 1), tf.reduce_sum(counts, 1))


@custom_layer
class MaskedInputs(tf_keras.layers.Layer):
    """The sums of :class:`RecurrentInputs`, and behind them a :class:`StepMask`, joined for the loop."""

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        return tf.concat(inputs, axis=-1)


class RecurrentStates(tf_keras.layers.Layer):
    """The hidden states [b, steps, units] of a recurrent layer, from its :class:`RecurrentInputs`.

    Args:
        activation, gates: names in FUNCTIONS.
        masked: the inputs are :class:`MaskedInputs`. States stay as they are in masked steps.
        zeroes_masked: what it gives for masked steps is 0.

    Attributes:
        quantizer: of the hidden state in a quantized model.
        sums: the number of sums of a unit.
        states: the number of states of a unit. The first is the hidden state.
        limit: where states without a bound of their own saturate in the file, a power of two. Calibration
            lowers it.
    """

    sums: ClassVar[int]
    states: ClassVar[int] = 1

    def __init__(
        self,
        units: int,
        use_bias: bool = False,
        activation: str = "tanh",
        gates: str = "sigmoid",
        masked: bool = False,
        zeroes_masked: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units, self.use_bias = units, use_bias
        self.masked, self.zeroes_masked = masked, zeroes_masked
        self.activation, self.gates = activation, gates
        self.quantizer: Any = None
        self._graph = tf.function(self._run, autograph=False, reduce_retracing=True)

    def get_config(self) -> dict[str, Any]:
        names = "units", "use_bias", "activation", "gates", "masked", "zeroes_masked"
        return super().get_config() | {name: getattr(self, name) for name in names}

    @property
    def has_limit(self) -> bool:
        """Whether it has a state without a bound of its own."""
        return self.activation not in BOUNDED

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight("kernel", shape=(self.units, self.sums * self.units))
        if self.use_bias:
            self.bias = self.add_weight("bias", shape=(self.sums * self.units,), initializer="zeros")
        if self.has_limit:
            start = tf_keras.initializers.Constant(2.0**15)
            self.limit = self.add_weight("limit", shape=(), initializer=start, trainable=False)
        super().build(shape)

    def count_params(self) -> int:
        """The number of parameters of Keras's layer: the limit is none."""
        return int(super().count_params()) - self.has_limit

    @property
    def limits(self) -> tuple[Any, Any]:
        """Where the file's int16 saturates: each addend of a sum, and the sum."""
        if self.activation in BOUNDED:
            return 16.0, 8.0
        return 2 * tf.maximum(self.limit, 8.0), tf.maximum(self.limit, 8.0)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        states = self._loop(inputs)[..., : self.units]
        return states * inputs[..., -1:] if self.zeroes_masked else states

    def previous_states(self, inputs: tf.Tensor) -> tf.Tensor:
        """The hidden state before each step, with which the kernel is multiplied: [b, steps, units]."""
        return tf.pad(self._loop(inputs)[:, :-1, : self.units], [[0, 0], [1, 0], [0, 0]])

    def unbounded(self, inputs: tf.Tensor) -> tf.Tensor:
        """The states that have no bound of their own: [b, steps, n]."""
        return self._loop(inputs)

    def _loop(self, inputs: tf.Tensor) -> tf.Tensor:
        """The states after each step: [b, steps, states * units]."""
        integer = self.quantizer is not None and self.quantizer.enabled
        # In a graph, a step takes a twentieth of the time.
        run = self._graph if tf.executing_eagerly() else self._run
        weights = [self.kernel, self.bias] if self.use_bias else [self.kernel]
        return run(inputs, [tf.convert_to_tensor(weight) for weight in weights], integer)

    def _run(self, inputs: tf.Tensor, weights: Sequence[tf.Tensor], integer: bool) -> tf.Tensor:
        def step(x: tf.Tensor, states: Sequence[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
            x, counts = (x[:, :-1], x[:, -1:] > 0) if self.masked else (x, None)
            new = self._step(clipped(x, self.limits[0]) if integer else x, states, weights, integer)
            if counts is not None:
                new = [tf.where(counts, *pair) for pair in zip(new, states, strict=True)]
            return tf.concat(new, axis=-1), new

        states = [tf.zeros([tf.shape(inputs)[0], self.units], inputs.dtype)] * self.states
        return tf_keras.backend.rnn(step, inputs, states)[1]

    def _step(
        self, x: tf.Tensor, states: Sequence[tf.Tensor], weights: Sequence[tf.Tensor], integer: bool
    ) -> list[tf.Tensor]:
        """The states after a step."""
        raise NotImplementedError

    def _sum(self, x: tf.Tensor, product: tf.Tensor, integer: bool) -> tf.Tensor:
        addend, total = self.limits
        return clipped(x + clipped(product, addend), total) if integer else x + product


def clipped(x: tf.Tensor, limit: float | tf.Tensor) -> tf.Tensor:
    """x within the range of int16 codes of scale limit / 2**15."""
    return tf.clip_by_value(x, -limit, limit * (1 - 2.0**-15))


class _LSTM(RecurrentStates):
    """An LSTM. Its states are the hidden state and the cell."""

    sums, states, has_limit = 4, 2, True

    def unbounded(self, inputs: tf.Tensor) -> tf.Tensor:
        states = self._loop(inputs)
        return states[..., self.units :] if self.activation in BOUNDED else states


@custom_layer
class LSTMStates(_LSTM):
    """An LSTM with tanh and sigmoid and without a mask, which TFLite has a kernel for."""

    limits = 8.0, 8.0

    def _step(
        self, x: tf.Tensor, states: Sequence[tf.Tensor], weights: Sequence[tf.Tensor], integer: bool
    ) -> list[tf.Tensor]:
        state, cell = states
        sums = x + tf.matmul(state, weights[0])
        taken, kept, new, output = tf.split(clipped(sums, 8.0) if integer else sums, 4, axis=-1)
        cell = tf.sigmoid(kept) * cell + tf.sigmoid(taken) * tf.tanh(new)
        cell = clipped(cell, self.limit) if integer else cell
        state = tf.sigmoid(output) * tf.tanh(cell)
        return [self.quantizer.call(state) if integer else state, cell]


@custom_layer
class LSTMLoopStates(_LSTM):
    """Any other LSTM."""

    def _step(
        self, x: tf.Tensor, states: Sequence[tf.Tensor], weights: Sequence[tf.Tensor], integer: bool
    ) -> list[tf.Tensor]:
        (state, cell), gate, function = states, FUNCTIONS[self.gates], FUNCTIONS[self.activation]
        sums = self._sum(x, tf.matmul(state, weights[0]), integer)
        taken, kept, new, output = tf.split(sums, 4, axis=-1)
        cell = gate(kept) * cell + gate(taken) * function(new)
        cell = clipped(cell, self.limit) if integer else cell
        return [gate(output) * function(cell), cell]


@custom_layer
class GRUStates(RecurrentStates):
    """A GRU.

    Args:
        reset_after: the reset gate is applied after the product with the kernel, instead of before.
    """

    sums = 3

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

        gates = FUNCTIONS[self.gates](self._sum(x[:, : 2 * units], product(state, 0, 2), integer))
        update, reset = tf.split(gates, 2, axis=-1)
        recurrent = reset * product(state, 2, 3) if self.reset_after else product(reset * state, 2, 3)
        new = FUNCTIONS[self.activation](self._sum(x[:, 2 * units :], recurrent, integer))
        return [new + update * (state - new)]


@custom_layer
class SimpleRNNStates(RecurrentStates):
    """A SimpleRNN."""

    sums = 1

    def _step(
        self, x: tf.Tensor, states: Sequence[tf.Tensor], weights: Sequence[tf.Tensor], integer: bool
    ) -> list[tf.Tensor]:
        return [FUNCTIONS[self.activation](self._sum(x, tf.matmul(states[0], weights[0]), integer))]


def inputs_and_mask(states: Any) -> tuple[Any, Any]:
    """The tensors of a functional model that a layer of states reads: the sums, and the mask or None."""
    joined = states.input._keras_history.layer
    return joined.input if isinstance(joined, MaskedInputs) else (states.input, None)


def states_behind(inputs: Any) -> Any:
    """The layer of states that reads a layer of :class:`RecurrentInputs`."""
    (node,) = inputs.outbound_nodes
    if isinstance(node.outbound_layer, MaskedInputs):
        (node,) = node.outbound_layer.outbound_nodes
    return node.outbound_layer
