"""Our own tf_keras layers, which the rules in :mod:`lqconvert.keras_loader.layer_rules` make.

TFLite's converter makes one operator, or few, of each of them.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

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


@custom_layer
class Gelu(tf_keras.layers.Layer):
    """x * P(X <= x) for a standard normal X, or its approximation by tanh."""

    def __init__(self, approximate: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.approximate = approximate

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"approximate": self.approximate}

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.nn.gelu(inputs, self.approximate)


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


@custom_layer
class LayerNorm(tf_keras.layers.Layer):
    """LayerNormalization over the last axis.

    Means are products with a constant: the converter makes of a MEAN an integer kernel that rounds to the
    scale of its input, which is too coarse here.
    """

    def __init__(self, epsilon: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"epsilon": self.epsilon}

    def build(self, shape: Any) -> None:
        self.gamma = self.add_weight("gamma", shape=(shape[-1],), initializer="ones")
        self.beta = self.add_weight("beta", shape=(shape[-1],), initializer="zeros")
        super().build(shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        channels = inputs.shape[-1]
        average = tf.fill([channels, 1], 1.0 / channels)
        centered = inputs - tf.matmul(inputs, average)
        variance = tf.matmul(centered * centered, average)
        return centered * tf.math.rsqrt(variance + self.epsilon) * self.gamma + self.beta


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


@custom_layer
class LSTMGates(tf_keras.layers.Dense):
    """What the inputs of an LSTM add to its gates: [b, steps, 4 * units], in Keras's order i, f, c, o."""


@custom_layer
class LSTMStates(tf_keras.layers.Layer):
    """The hidden states [b, steps, units] of an LSTM, from the output of its :class:`LSTMGates`.

    Attributes:
        quantizer: of the hidden state. If it is set, everything is computed as in TFLite's integer kernel:
            the hidden state is rounded at every step, and sums and cells saturate where int16 does.
    """

    use_bias = False  # the gates have it
    #: TFLite's sums of a gate are int16 with 12 bits after the point.
    SUMS = -8.0, 8.0 - 2.0**-12

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.quantizer: Any = None

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"units": self.units}

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight("kernel", shape=(self.units, 4 * self.units))
        # A power of two; calibration lowers it. int16 cells reach from minus this to one step under it.
        self.cell_limit = self.add_weight(
            "cell_limit", shape=(), initializer=tf_keras.initializers.Constant(2.0**15), trainable=False
        )
        super().build(shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self._loop(inputs)[..., : self.units]

    def previous_states(self, inputs: tf.Tensor) -> tf.Tensor:
        """The hidden state before each step, with which the kernel is multiplied: [b, steps, units]."""
        return tf.pad(self._loop(inputs)[:, :-1, : self.units], [[0, 0], [1, 0], [0, 0]])

    def cells(self, inputs: tf.Tensor) -> tf.Tensor:
        """The cells [b, steps, units]."""
        return self._loop(inputs)[..., self.units :]

    def _loop(self, inputs: tf.Tensor) -> tf.Tensor:
        """The hidden state and the cell after each step: [b, steps, 2 * units]."""
        zeros = tf.zeros([tf.shape(inputs)[0], self.units], inputs.dtype)
        step = self._step
        if self.quantizer is not None and self.quantizer.enabled:
            inputs, step = tf.clip_by_value(inputs, *self.SUMS), self._integer_step
        return tf_keras.backend.rnn(step, inputs, [zeros, zeros])[1]

    def _step(self, gates: tf.Tensor, states: Sequence[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        state, cell = states
        cell, output = self._cell(gates + tf.matmul(state, self.kernel), cell)
        state = output * tf.tanh(cell)
        return tf.concat([state, cell], axis=-1), [state, cell]

    def _integer_step(
        self, gates: tf.Tensor, states: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        state, cell = states
        sums = tf.clip_by_value(gates + tf.matmul(state, self.kernel), *self.SUMS)
        cell, output = self._cell(sums, cell)
        cell = tf.clip_by_value(cell, -self.cell_limit, self.cell_limit * (1 - 2.0**-15))
        state = self.quantizer.call(output * tf.tanh(cell))
        return tf.concat([state, cell], axis=-1), [state, cell]

    @staticmethod
    def _cell(sums: tf.Tensor, cell: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The cell after a step, and the value of its output gate."""
        taken, kept, new, output = tf.split(sums, 4, axis=-1)
        return tf.sigmoid(kept) * cell + tf.sigmoid(taken) * tf.tanh(new), tf.sigmoid(output)
