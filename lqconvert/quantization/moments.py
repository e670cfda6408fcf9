"""Second moments of every linear layer's inputs, and the importance of its outputs. No labels are needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from lqconvert.quantization.granularity import class_name
from lqconvert.quantization.layers import QuantizedLayer
from lqconvert.quantization.model_outputs import logits_of
from lqconvert.tasks import Head, Heads

#: The number of positions, over all examples, from which a convolution's moments are measured: this many for
#: each of its inputs, and at least this many in all.
POSITIONS, LEAST_POSITIONS = 8, 4096
#: Logits are divided by this. A model that is certain about its training images shows too little of what
#: matters.
TEMPERATURE = 2.0


@dataclass(frozen=True)
class Moments:
    """Moments of a layer's inputs, over examples and positions."""

    second: np.ndarray  # float64 [groups, inputs, inputs]
    mean: np.ndarray  # float64 [groups, inputs]


@dataclass(frozen=True)
class Layout:
    """A linear layer as a product of inputs [groups, n, inputs] and weights [groups, inputs, outputs].

    A convolution's inputs are its patches. A transposed convolution writes each input to several places: its
    inputs are the channels, and it has one output for each place in the kernel and each channel.
    """

    kind: str
    kernel: tuple[int, ...]
    groups: int
    visits: float = 1.0  # the mean number of times that a kernel place contributes to an output (transposed)

    @classmethod
    def of(cls, layer: Any) -> Layout:
        kind = class_name(layer)
        kernel = tuple(layer.depthwise_kernel.shape if kind == "DepthwiseConv2D" else layer.kernel.shape)
        groups = kernel[2] if kind == "DepthwiseConv2D" else getattr(layer, "groups", 1)
        visits = 1 / math.prod(layer.strides) if kind == "Conv2DTranspose" else 1.0
        return cls(kind, kernel, groups, visits)

    def matrices(self, kernel: np.ndarray) -> np.ndarray:
        """A kernel, or an array that broadcasts to one, as [groups, inputs, outputs]."""
        if self.kind == "DepthwiseConv2D":  # [height, width, channels, multiplier]
            return kernel.reshape(-1, *kernel.shape[2:]).transpose(1, 0, 2)
        if self.kind == "Conv2DTranspose":  # [height, width, outputs, inputs]
            return kernel.reshape(1, -1, kernel.shape[-1]).transpose(0, 2, 1)
        flat = kernel.reshape(-1, kernel.shape[-1])
        if kernel.shape[-1] == 1 or self.groups == 1:
            return flat[None]
        return flat.reshape(len(flat), self.groups, -1).transpose(1, 0, 2)

    def as_kernel(self, matrices: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`matrices`, for a whole kernel."""
        if self.kind == "DepthwiseConv2D":
            return matrices.transpose(1, 0, 2).reshape(self.kernel)
        if self.kind == "Conv2DTranspose":
            return matrices[0].T.reshape(self.kernel)
        return matrices.transpose(1, 0, 2).reshape(self.kernel)

    def by_output(self, channels: np.ndarray) -> np.ndarray:
        """Values of the layer's output channels, as [groups, outputs]."""
        if self.kind == "Conv2DTranspose":
            return np.tile(channels * self.visits, math.prod(self.kernel[:2]))[None]
        return channels.reshape(self.groups, -1)

    def by_channel(self, outputs: np.ndarray) -> np.ndarray:
        """Values [groups, outputs], as values of output channels. Those of different places are added."""
        if self.kind == "Conv2DTranspose":
            return self.visits * outputs.reshape(-1, self.kernel[2]).sum(axis=0)
        return outputs.ravel()

    def patches(self, layer: Any, x: tf.Tensor) -> tf.Tensor:
        """The inputs [n, groups, inputs] that are multiplied with the weights."""
        if self.kind in ("Dense", "Conv2DTranspose"):
            return tf.reshape(x, [-1, 1, x.shape[-1]])
        height = (1,) if self.kind == "Conv1D" else ()
        sizes, strides, rates = ((1, *height, *each, 1) for each in _steps(layer))
        padding = layer.padding.upper()
        if self.kind == "Conv1D":
            if padding == "CAUSAL":
                x = tf.pad(x, [[0, 0], [(sizes[2] - 1) * rates[2], 0], [0, 0]])
                padding = "VALID"
            x = x[:, None]
        found = tf.image.extract_patches(x, sizes, strides, rates, padding)
        size, channels = sizes[1] * sizes[2], x.shape[-1]
        if self.groups == 1:
            return tf.reshape(found, [-1, 1, size * channels])
        found = tf.reshape(found, [-1, size, self.groups, channels // self.groups])
        return tf.reshape(
            tf.transpose(found, [0, 2, 1, 3]), [-1, self.groups, size * (channels // self.groups)]
        )


def _steps(layer: Any) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    return layer.kernel_size, layer.strides, layer.dilation_rate


def moments_of(model: tf_keras.Model, batches: Sequence[Any]) -> dict[str, Moments]:
    """The moments of the inputs of every quantized layer of a rewritten model, by layer name.

    Of a convolution's positions, a random part is enough: neighbours are similar.
    """
    wrapped = [layer for layer in model.layers if isinstance(layer, QuantizedLayer)]
    layouts = [Layout.of(layer.layer) for layer in wrapped]
    observe = tf_keras.Model(model.inputs, [layer.input for layer in wrapped])
    examples = sum(len(tf.nest.flatten(batch)[0]) for batch in batches)

    @tf.function(reduce_retracing=True)
    def sums(batch: Any, seed: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
        inputs = tf.nest.flatten(observe(batch, training=False))
        found = []
        for number, (layer, layout, x) in enumerate(zip(wrapped, layouts, inputs, strict=True)):
            rows = layout.patches(layer.layer, x)
            wanted = max(LEAST_POSITIONS, POSITIONS * rows.shape[-1]) / examples
            share = tf.cast(tf.shape(x)[0], tf.float32) * wanted / tf.cast(tf.shape(rows)[0], tf.float32)
            drawn = tf.random.stateless_uniform([tf.shape(rows)[0]], [seed, number])
            rows = tf.boolean_mask(rows, drawn < tf.maximum(share, tf.reduce_min(drawn) + 1e-7))
            by_group = tf.transpose(rows, [1, 0, 2])
            found.append(
                (tf.matmul(by_group, by_group, transpose_a=True), tf.reduce_sum(rows, 0), tf.shape(rows)[0])
            )
        return found

    totals: list[list[np.ndarray]] = []
    for place, batch in enumerate(batches):
        found = [
            [part.numpy().astype(np.float64) for part in parts]
            for parts in sums(_tensors(batch), tf.constant(place))
        ]
        totals = (
            found
            if not totals
            else [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(totals, found, strict=True)]
        )
    return {
        layer.name: Moments(second / count, mean / count)
        for layer, (second, mean, count) in zip(wrapped, totals, strict=True)
    }


def importance_of(
    folded: tf_keras.Model, names: Iterable[str], heads: Heads, batches: Sequence[Any], seed: int = 0
) -> dict[str, np.ndarray]:
    """The cost of a squared error in each layer's output channels, in nats an example: float64 [channels].

    It is the Fisher information: the mean square of the gradient of the log-likelihood, summed over a
    channel's positions. Labels are drawn from the model's own probabilities; values are drawn from a normal
    distribution with the spread of the outputs.
    """
    layers = [folded.get_layer(name) for name in names]
    logits = logits_of(folded)
    observe = tf_keras.Model(
        folded.inputs, [*(layer.output for layer in layers), *tf.nest.flatten(logits.outputs)]
    )
    spread = _spread(logits, batches)

    @tf.function(reduce_retracing=True)
    def squares(batch: Any, place: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([part for part in tf.nest.flatten(batch) if part.dtype.is_floating])
            *outputs, answers = observe(batch, training=False)
            slopes = _slopes(answers, heads, spread, tf.stack([place, seed]))
        gradients = tape.gradient(answers, outputs, slopes, unconnected_gradients="zero")
        return [tf.reduce_sum(tf.reshape(each, [-1, each.shape[-1]]) ** 2, 0) for each in gradients]

    totals, count = [np.zeros(1)] * len(layers), 0
    for place, batch in enumerate(batches):
        found = squares(_tensors(batch), tf.constant(place))
        totals = [total + each.numpy() for total, each in zip(totals, found, strict=True)]
        count += len(tf.nest.flatten(batch)[0])
    return {layer.name: total / count for layer, total in zip(layers, totals, strict=True)}


def _tensors(batch: Any) -> Any:
    return tf.nest.map_structure(tf.convert_to_tensor, batch)


def _spread(logits: tf_keras.Model, batches: Sequence[Any]) -> np.ndarray:
    """The standard deviation of each output value."""
    seen = np.concatenate(
        [np.reshape(logits(batch, training=False), (len(tf.nest.flatten(batch)[0]), -1)) for batch in batches]
    )
    return np.maximum(seen.std(axis=0), 1e-6 * max(np.abs(seen).max(), 1e-30)).astype(np.float32)


def _slopes(answers: tf.Tensor, heads: Heads, spread: np.ndarray, seed: tf.Tensor) -> tf.Tensor:
    """The gradient of the log-likelihood at the outputs, for labels drawn from their distribution."""
    flat = tf.reshape(answers, [tf.shape(answers)[0], -1])
    sizes = [head.output.size for head in heads]
    parts = tf.split(flat, sizes, axis=1)
    spreads = np.split(spread, np.cumsum(sizes)[:-1])
    found = [
        _slope(*each, seed + number) for number, each in enumerate(zip(parts, heads, spreads, strict=True))
    ]
    return tf.reshape(tf.concat(found, axis=1), tf.shape(answers))


def _slope(answers: tf.Tensor, head: Head, spread: np.ndarray, seed: tf.Tensor) -> tf.Tensor:
    """The gradient for one head. Logits are divided by TEMPERATURE."""
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
