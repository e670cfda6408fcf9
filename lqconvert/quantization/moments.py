"""Second moments of every linear layer's inputs, and the importance of its outputs. No labels are needed."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from lqconvert.keras_loader.layer_kinds import LAYERS, class_name, kind_of
from lqconvert.keras_loader.recurrent_layers import inputs_and_mask
from lqconvert.quantization.granularity import KERNELS
from lqconvert.quantization.model_outputs import logits_of, traced
from lqconvert.quantization.rounding import damping_of, on_diagonal
from lqconvert.quantization.walk import examples_of
from lqconvert.tasks import Head, Heads

#: The number of rows from which a layer's moments are measured: this many for each of its inputs, within
#: these limits.
ROWS, LEAST_ROWS, MOST_ROWS = 8, 4096, 16384
#: A matrix of moments has at most this many inputs: 170 MB in float64. The inputs of a larger layer, such as
#: the 25,088 of a Dense behind VGG's Flatten, are cut into blocks, whose moments with one another are left
#: out.
MOST_INPUTS = 4608
#: The number of examples for gradients, which take longer than moments.
FISHER_EXAMPLES = 1024
#: Logits are divided by this. A model that is certain about its training images shows too little of what
#: matters.
TEMPERATURE = 2.0


@dataclass(frozen=True)
class Moments:
    """Moments of a layer's inputs x, and of the inputs f of the same layer in the float model."""

    rows: int  # the number of x
    second: np.ndarray  # mean of x x^T: float64 [groups, inputs, inputs]
    mean: np.ndarray  # mean of x: float64 [groups, inputs]
    cross: np.ndarray | None = None  # mean of x f^T, in the shape of ``second``; None if x is f
    float_mean: np.ndarray | None = None  # mean of f, in the shape of ``mean``

    @classmethod
    def of(cls, x: tf.Tensor, f: tf.Tensor | None = None) -> Moments:
        """The moments of rows [n, groups, inputs] of x, and of f if that is not x."""
        found = [_products(x, x), _mean(x)]
        return cls(len(x), *found, *([] if f is None else [_products(x, f), _mean(f)]))

    def __add__(self, other: Moments) -> Moments:
        rows = self.rows + other.rows
        share = other.rows / rows

        def both(mine: Any, its: Any) -> Any:
            return None if mine is None else (1 - share) * mine + share * its

        return Moments(
            rows,
            both(self.second, other.second),
            both(self.mean, other.mean),
            both(self.cross, other.cross),
            both(self.float_mean, other.float_mean),
        )

    def adapted(self, weights: np.ndarray, has_bias: bool) -> np.ndarray:
        """The weights that give for x most nearly (least squares) what these give for f.

        Args:
            weights: [groups, inputs, outputs], like the result.
            has_bias: a bias makes up for the difference of the means (see :meth:`missing`).
        """
        assert self.cross is not None
        assert self.float_mean is not None
        second, cross = self.second, self.cross
        if has_bias:
            second = second - self.mean[:, :, None] * self.mean[:, None]
            cross = cross - self.mean[:, :, None] * self.float_mean[:, None]
        damping = damping_of(self.second)
        return np.linalg.solve(on_diagonal(second, damping), on_diagonal(cross, damping) @ weights)

    def missing(self, weights: np.ndarray, adapted: np.ndarray) -> np.ndarray:
        """What a bias has to make up for: weights' mean outputs for f minus the adapted ones' for x."""
        assert self.float_mean is not None
        return mean_output(self.float_mean, weights) - mean_output(self.mean, adapted)


def mean_output(mean: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean outputs [groups, outputs] of weights [groups, inputs, outputs]."""
    return np.einsum("gi,gio->go", mean, weights)


def _mean(x: tf.Tensor) -> np.ndarray:
    return tf.reduce_mean(x, 0).numpy().astype(np.float64)


def _products(x: tf.Tensor, f: tf.Tensor) -> np.ndarray:
    by_group = (tf.transpose(each, [1, 0, 2]) for each in (x, f))
    return tf.matmul(*by_group, transpose_a=True).numpy().astype(np.float64) / len(x)


@dataclass(frozen=True)
class Layout:
    """A linear layer as a product of inputs [groups, n, inputs] and weights [groups, inputs, outputs].

    A convolution's inputs are its patches. A transposed convolution writes each input to several places: its
    inputs are the channels, and it has one output for each place in the kernel and each channel. If a layer
    of one group has more than MOST_INPUTS, each block of them counts as a group, and the layer's outputs are
    the sums over its blocks.
    """

    kind: str
    kernel: tuple[int, ...]
    groups: int
    visits: float = 1.0  # the mean number of times that a kernel place contributes to an output (transposed)
    blocks: int = 1

    @property
    def inputs(self) -> int:
        """The number of inputs of each group."""
        return self.matrices(np.empty(self.kernel, np.uint8)).shape[1]

    @classmethod
    def of(cls, layer: Any) -> Layout:
        kind = class_name(layer)
        kernel = tuple(layer.depthwise_kernel.shape if kind == "DepthwiseConv2D" else layer.kernel.shape)
        groups = kernel[2] if kind == "DepthwiseConv2D" else getattr(layer, "groups", 1)
        if kind == "Conv2DTranspose":
            return cls(kind, kernel, groups, 1 / math.prod(layer.strides))
        return cls(kind, kernel, groups, blocks=_blocks(math.prod(kernel[:-1])) if groups == 1 else 1)

    def matrices(self, kernel: np.ndarray) -> np.ndarray:
        """A kernel as [groups, inputs, outputs]."""
        if self.kind == "DepthwiseConv2D":  # [height, width, channels, multiplier]
            return kernel.reshape(-1, *kernel.shape[2:]).transpose(1, 0, 2)
        if self.kind == "Conv2DTranspose":  # [height, width, outputs, inputs]
            return kernel.reshape(1, -1, kernel.shape[-1]).transpose(0, 2, 1)
        if self.groups == 1:
            return kernel.reshape(self.blocks, -1, kernel.shape[-1])
        flat = kernel.reshape(-1, kernel.shape[-1])
        return flat.reshape(len(flat), self.groups, -1).transpose(1, 0, 2)

    def as_kernel(self, matrices: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`matrices`."""
        if self.kind == "DepthwiseConv2D":
            return matrices.transpose(1, 0, 2).reshape(self.kernel)
        if self.kind == "Conv2DTranspose":
            return matrices[0].T.reshape(self.kernel)
        if self.groups == 1:
            return matrices.reshape(self.kernel)
        return matrices.transpose(1, 0, 2).reshape(self.kernel)

    def by_output(self, channels: np.ndarray) -> np.ndarray:
        """Values of the layer's output channels, as [groups, outputs]."""
        if self.kind == "Conv2DTranspose":
            return np.tile(channels * self.visits, math.prod(self.kernel[:2]))[None]
        return np.tile(channels, self.blocks).reshape(self.blocks * self.groups, -1)

    def by_channel(self, outputs: np.ndarray) -> np.ndarray:
        """Values [groups, outputs], as values of output channels: those of places and blocks are added."""
        if self.kind == "Conv2DTranspose":
            return self.visits * outputs.reshape(-1, self.kernel[2]).sum(axis=0)
        return outputs.reshape(self.blocks, -1).sum(axis=0)

    def rows(self, layer: Any, x: tf.Tensor, chosen: Callable[[int], np.ndarray] = np.arange) -> tf.Tensor:
        """The inputs [n, groups, inputs] that are multiplied with the weights, one row for each position.

        Args:
            layer: a Keras layer of this layout.
            x: a batch of its inputs.
            chosen: (the number of positions) -> the indices of those to return. All by default.
        """
        if LAYERS[self.kind].loops:
            x = layer.previous_states(x)
        if KERNELS[self.kind].is_matrix or self.kind == "Conv2DTranspose":
            flat = tf.reshape(x, [-1, self.blocks, x.shape[-1] // self.blocks])
            return tf.gather(flat, chosen(len(flat)))
        if self.kind == "Conv1D":
            x = x[:, None]
        window = _Window.of(layer)
        x = tf.pad(x, [(0, 0), *window.padding(x.shape[1:3]), (0, 0)])
        height, width = window.positions(x.shape[1:3])
        image, row, column = np.unravel_index(chosen(len(x) * height * width), (len(x), height, width))
        found = tf.stack(
            [
                tf.gather_nd(
                    x,
                    np.stack([image, row * window.strides[0] + down, column * window.strides[1] + right], 1),
                )
                for down in np.arange(window.sizes[0]) * window.rates[0]
                for right in np.arange(window.sizes[1]) * window.rates[1]
            ],
            axis=1,
        )
        size, channels = found.shape[1], found.shape[2]
        if self.groups == 1:
            return tf.reshape(found, [-1, self.blocks, size * channels // self.blocks])
        found = tf.reshape(found, [-1, size, self.groups, channels // self.groups])
        return tf.reshape(
            tf.transpose(found, [0, 2, 1, 3]), [-1, self.groups, size * (channels // self.groups)]
        )


def _blocks(inputs: int) -> int:
    """The number of equal blocks that inputs are cut into."""
    return next(n for n in itertools.count(-(-inputs // MOST_INPUTS)) if inputs % n == 0)


@dataclass(frozen=True)
class _Window:
    """The window of a convolution, by axis: (height, width). A Conv1D has height 1."""

    sizes: tuple[int, int]
    strides: tuple[int, int]
    rates: tuple[int, int]
    padded: str  # valid, same or causal

    @classmethod
    def of(cls, layer: Any) -> _Window:
        sizes, strides, rates = (
            (1, *each)[-2:] for each in (layer.kernel_size, layer.strides, layer.dilation_rate)
        )
        return cls(sizes, strides, rates, layer.padding)

    def padding(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        """The number of zeros before and after each axis."""
        found = []
        for length, size, stride, rate in zip(shape, self.sizes, self.strides, self.rates, strict=True):
            reach = (size - 1) * rate
            if self.padded == "causal":
                found.append((reach, 0))
            elif self.padded == "same":
                whole = max((-(-length // stride) - 1) * stride + reach + 1 - length, 0)
                found.append((whole // 2, whole - whole // 2))
            else:
                found.append((0, 0))
        return found

    def positions(self, shape: Sequence[int]) -> list[int]:
        """The number of positions along each axis of a padded shape."""
        return [
            (length - (size - 1) * rate - 1) // stride + 1
            for length, size, stride, rate in zip(shape, self.sizes, self.strides, self.rates, strict=True)
        ]


def moments_of(
    layer: Any, xs: Sequence[tf.Tensor], floats: Sequence[tf.Tensor] | None = None, *, examples: int
) -> Moments:
    """The moments of a linear layer's inputs.

    Of a convolution's positions, a random part is enough: neighbours are similar.

    Args:
        layer: a Keras layer with a kernel.
        xs: batches of its inputs.
        floats: the same batches in the float model, if they differ.
        examples: the number of examples in all batches, also in those of other calls.
    """
    layout = Layout.of(layer)
    wanted = min(max(LEAST_ROWS, ROWS * layout.inputs), MOST_ROWS) / examples
    found = []
    for place, x in enumerate(xs):

        def chosen(count: int, place: int = place, size: int = len(x)) -> np.ndarray:
            some = math.ceil(wanted * size)
            if some >= count:
                return np.arange(count)
            return np.random.default_rng(place).choice(count, some, replace=False)

        rows = [layout.rows(layer, each[place], chosen) for each in (xs, floats) if each is not None]
        found.append(Moments.of(*rows))
    return functools.reduce(operator.add, found)


def importance_of(
    folded: tf_keras.Model, names: Iterable[str], heads: Heads, batches: Sequence[Any], seed: int = 0
) -> dict[str, np.ndarray]:
    """What a squared error in an output channel of each layer costs, in nats an example: float64 [channels].

    The Fisher information: the mean square of the gradient of the log-likelihood, for labels drawn from the
    model's own probabilities (for values, from a normal distribution of the spread of its outputs), summed
    over a channel's positions.
    """
    names = list(names)

    def squares(_: Sequence[tf.Tensor], gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return [tf.reduce_sum(tf.reshape(each, [-1, each.shape[-1]]) ** 2, 0) for each in gradients]

    return dict(zip(names, fisher_means(folded, names, heads, batches, squares, seed)(), strict=True))


def fisher_means(
    folded: tf_keras.Model,
    names: Iterable[str],
    heads: Heads,
    batches: Sequence[Any],
    sums: Callable[[Sequence[tf.Tensor], Sequence[tf.Tensor]], list[tf.Tensor]],
    seed: int = 0,
) -> Callable[[], list[np.ndarray]]:
    """Prepares means over examples of a function of the log-likelihood's gradients.

    Args:
        names: layers of the model.
        sums: (outputs, gradients) of these layers for a batch -> what is averaged, summed over its examples.

    Returns:
        a function that gives these means (float64, over the first FISHER_EXAMPLES examples) for the weights
        that the model has then.
    """
    layers = [folded.get_layer(name) for name in names]
    logits = logits_of(folded)
    # A gradient in the input of a loop is one in its product, to which it is added.
    products = [inputs_and_mask(layer)[0] if kind_of(layer).loops else layer.output for layer in layers]
    observe = tf_keras.Model(folded.inputs, [*products, *tf.nest.flatten(logits.outputs)])
    batches = batches[: -(-FISHER_EXAMPLES // examples_of(batches[:1]))]
    spread = _spread(logits, batches)

    @functools.partial(traced, reduce_retracing=True)
    def of_batch(batch: Any, place: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([part for part in tf.nest.flatten(batch) if part.dtype.is_floating])
            *outputs, answers = observe(batch, training=False)
            slopes = _slopes(answers, heads, spread, tf.stack([place, seed]))
        return sums(outputs, tape.gradient(answers, outputs, slopes, unconnected_gradients="zero"))

    def means() -> list[np.ndarray]:
        totals: list[np.ndarray] = []
        for place, batch in enumerate(batches):
            found = [
                each.numpy().astype(np.float64) for each in of_batch(_tensors(batch), tf.constant(place))
            ]
            totals = [total + each for total, each in zip(totals, found, strict=True)] if totals else found
        return [total / examples_of(batches) for total in totals]

    return means


def _tensors(batch: Any) -> Any:
    return tf.nest.map_structure(tf.convert_to_tensor, batch)


def _spread(logits: tf_keras.Model, batches: Sequence[Any]) -> np.ndarray:
    """The standard deviation of each value that the model gives."""
    seen = np.concatenate(
        [np.reshape(logits(batch, training=False), (len(tf.nest.flatten(batch)[0]), -1)) for batch in batches]
    )
    return np.maximum(seen.std(axis=0), 1e-6 * max(np.abs(seen).max(), 1e-30)).astype(np.float32)


def _slopes(answers: tf.Tensor, heads: Heads, spread: np.ndarray, seed: tf.Tensor) -> tf.Tensor:
    """The gradient of the log-likelihood in the answers, for labels drawn from what these say."""
    flat = tf.reshape(answers, [tf.shape(answers)[0], -1])
    sizes = [head.output.size for head in heads]
    parts = tf.split(flat, sizes, axis=1)
    spreads = np.split(spread, np.cumsum(sizes)[:-1])
    found = [
        _slope(*each, seed + number) for number, each in enumerate(zip(parts, heads, spreads, strict=True))
    ]
    return tf.reshape(tf.concat(found, axis=1), tf.shape(answers))


def _slope(answers: tf.Tensor, head: Head, spread: np.ndarray, seed: tf.Tensor) -> tf.Tensor:
    """In logits over TEMPERATURE, where they are of probabilities."""
    classes = head.output.classes
    classifies = head.task in ("classification", "binary", "multi-label", "segmentation")
    if head.output.activation == "softmax" or (classifies and head.task != "multi-label" and classes > 1):
        by_class = tf.reshape(answers / TEMPERATURE, [-1, classes])
        uniform = tf.random.stateless_uniform(tf.shape(by_class), seed, minval=1e-20)
        label = tf.argmax(by_class - tf.math.log(-tf.math.log(uniform)), axis=1)  # the Gumbel-max trick
        return tf.reshape(tf.nn.softmax(by_class) - tf.one_hot(label, classes), tf.shape(answers))
    if head.output.activation == "sigmoid" or classifies:
        probability = tf.sigmoid(answers / TEMPERATURE)
        drawn = tf.random.stateless_uniform(tf.shape(answers), seed) < probability
        return probability - tf.cast(drawn, tf.float32)
    return tf.random.stateless_normal(tf.shape(answers), seed) / spread
