"""Removes channels from a float model: those first that cost much time or RAM, and matter little.

Channels that are added or multiplied can only leave together. They are one *unit*: in a residual network, for
example, channel 5 of every convolution whose outputs are added up. A channel of a convolution that nothing is
added to is a unit of its own.

Removed channels stay in the model as zeros. The file leaves them out
(:mod:`lqconvert.tflite.dead_channels`), and fine-tuning cannot bring them back: a channel that nobody reads
has no gradient, and neither have the weights that read zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
import tf_keras

from lqconvert.errors import LqError
from lqconvert.keras_loader.layer_kinds import class_name, kind_of
from lqconvert.quantization.granularity import KERNELS, kernel_name
from lqconvert.quantization.moments import Layout, fisher_means, moments_of
from lqconvert.quantization.walk import as_many_as_fit, calls_in_order, examples_of, inputs_in_both
from lqconvert.tasks import Heads

#: The unit of all channels that have to stay.
FIXED = 0
#: At most this many channels of the same layers leave at once.
MOST_AT_ONCE = 32


@dataclass(frozen=True)
class Connection:
    """A linear layer between units.

    Attributes:
        sources: the unit of each input channel.
        outputs: the unit of each output channel.
    """

    layer: Any
    sources: np.ndarray
    outputs: np.ndarray

    @property
    def depthwise(self) -> bool:
        return class_name(self.layer) == "DepthwiseConv2D"

    @property
    def multiply_adds(self) -> int:
        """Of an example, with all channels."""
        kernel = getattr(self.layer, kernel_name(self.layer)).shape
        tensor = self.layer.input if class_name(self.layer) == "Conv2DTranspose" else self.layer.output
        return math.prod(tensor.shape[1:-1]) * math.prod(kernel)

    def clear(self, kept: np.ndarray) -> None:
        """Sets the weights of removed units to 0. ``kept``: bool [units]."""
        layer, axes = self.layer, KERNELS[class_name(self.layer)]
        kernel, left = getattr(layer, kernel_name(layer)), kept[self.outputs]
        if self.depthwise:
            mask = left.reshape(1, 1, *kernel.shape[2:])
        else:
            rank, (out_axis,), in_axis = len(kernel.shape), axes.outputs, axes.summed
            assert in_axis is not None
            mask = _along(left, out_axis, rank) & _along(kept[self.sources], in_axis, rank)
        kernel.assign(kernel.numpy() * mask)
        if layer.use_bias:
            layer.bias.assign(layer.bias.numpy() * left)


def _along(values: np.ndarray, axis: int, rank: int) -> np.ndarray:
    return values.reshape([-1 if place == axis else 1 for place in range(rank)])


@dataclass
class Stored:
    """An activation in RAM.

    Attributes:
        channels: the unit of each channel.
        positions: the number of values of a channel.
        first, last: the first and the last layer call that needs it.
    """

    channels: np.ndarray
    positions: int
    first: int
    last: int


class _Units:
    """Disjoint sets of channels."""

    def __init__(self) -> None:
        self.parents = [FIXED]

    def new(self, count: int) -> np.ndarray:
        start = len(self.parents)
        self.parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def find(self, unit: int) -> int:
        while self.parents[unit] != unit:
            self.parents[unit] = unit = self.parents[self.parents[unit]]
        return unit

    def join(self, some: np.ndarray, others: np.ndarray) -> None:
        for pair in zip(some.tolist(), others.tolist(), strict=True):
            low, high = sorted(map(self.find, pair))
            self.parents[high] = low

    def fix(self, units: np.ndarray) -> None:
        self.join(units, np.full(len(units), FIXED))

    def numbers(self, units: np.ndarray) -> np.ndarray:
        return np.array([self.find(unit) for unit in units.tolist()])


def channels_of(model: tf_keras.Model) -> tuple[list[Connection], list[Stored]]:
    """The linear layers of a folded model, and its activations, with the units of their channels."""
    units = _Units()
    stored = {id(tensor): Stored(_fixed(tensor), _positions(tensor), 0, 0) for tensor in model.inputs}
    found: list[Connection] = []
    for place, node in enumerate(calls_in_order(model)):
        layer, inputs = node.layer, [stored[id(each)] for each in node.keras_inputs]
        sources = [each.channels for each in inputs]
        outputs = _linear(node, sources, units) if _is_linear(layer) else _passed_on(node, sources, units)
        if outputs is None:
            for channels in sources:
                units.fix(channels)
        elif _is_linear(layer):
            found.append(Connection(layer, sources[0], outputs))
        for each in inputs:
            each.last = place
        for tensor in tf.nest.flatten(node.outputs):
            if outputs is sources[0] and len(inputs) == 1 and _in_place(layer):
                stored[id(tensor)] = inputs[0]
            else:
                found_units = _fixed(tensor) if outputs is None else outputs
                stored[id(tensor)] = Stored(found_units, _positions(tensor), place, place)
    for tensor in model.outputs:
        units.fix(stored[id(tensor)].channels)
    tensors = {id(each): each for each in stored.values()}.values()
    for each in tensors:
        each.channels = units.numbers(each.channels)
    connections = [Connection(x.layer, units.numbers(x.sources), units.numbers(x.outputs)) for x in found]
    return connections, list(tensors)


def _fixed(tensor: Any) -> np.ndarray:
    return np.full(tensor.shape[-1] if len(tensor.shape) > 1 else 1, FIXED)


def _positions(tensor: Any) -> int:
    return math.prod(tensor.shape[1:-1])


def _is_linear(layer: Any) -> bool:
    """Whether it has a kernel with output channels."""
    kernel = KERNELS.get(class_name(layer))
    return kernel is not None and bool(kernel.outputs)


def _in_place(layer: Any) -> bool:
    """Whether its output takes no RAM of its own: a ReLU, which is a part of the layer before it."""
    return class_name(layer) == "ReLU" or _reshapes(layer)


def _reshapes(layer: Any) -> bool:
    return class_name(layer) in ("Flatten", "Reshape")


def _linear(node: Any, sources: Sequence[np.ndarray], units: _Units) -> np.ndarray | None:
    """The units of a linear layer's outputs. None: all its channels have to stay."""
    layer = node.layer
    if len(layer.inbound_nodes) > 1 or getattr(layer, "groups", 1) > 1:
        return None
    channels = node.outputs.shape[-1]
    if class_name(layer) == "DepthwiseConv2D":
        return np.repeat(sources[0], channels // len(sources[0]))
    return units.new(channels)


def _passed_on(node: Any, sources: Sequence[np.ndarray], units: _Units) -> np.ndarray | None:
    """The units of the outputs of a layer without a kernel. None: all channels have to stay."""
    layer, shapes = node.layer, {tuple(each.shape) for each in node.keras_inputs}
    name, output = class_name(layer), tf.nest.flatten(node.outputs)[0].shape
    if kind_of(layer).couples and len(shapes) == 1:
        for other in sources[1:]:
            units.join(sources[0], other)
        return sources[0]
    if name == "Concatenate" and layer.axis in (-1, len(output) - 1):
        return np.concatenate(sources)
    if len(sources) > 1:
        return None
    (source,) = sources
    if _reshapes(layer):
        if output[-1] == len(source):
            return source
        return np.tile(source, output[-1] // len(source)) if len(output) == 2 else None
    return source if _keeps_zeros(node) else None


def _keeps_zeros(node: Any) -> bool:
    """Whether each output channel depends on the same input channel alone, and is 0 if that is 0."""
    kind, (x,) = kind_of(node.layer), node.keras_inputs
    if kind.whole or kind.commutes:
        return not kind.whole
    return kind.elementwise and not np.any(node.layer(tf.zeros((1, *x.shape[1:]))))


class Groups:
    """Units that belong to the same layers: only their number decides what a model costs.

    Args:
        sides: the units of the channels of each tensor.
        units: the number of units.
    """

    def __init__(self, sides: Sequence[np.ndarray], units: int) -> None:
        times = np.stack([np.bincount(side, minlength=units) for side in sides])
        self._times, groups = np.unique(times, axis=1, return_inverse=True)
        self.of_unit = groups.ravel()
        self.fixed = self.of_unit[FIXED]

    def counts(self, kept: np.ndarray) -> np.ndarray:
        """The number of units that are left in each group."""
        return np.bincount(self.of_unit[kept], minlength=self._times.shape[1])

    def channels(self, counts: np.ndarray) -> np.ndarray:
        """The number of channels of each tensor: [..., sides] for counts [..., groups]."""
        return counts @ self._times.T


@dataclass(frozen=True)
class Work:
    """The multiply-adds of an example, counted in blocks of channels as a runtime's kernels compute them.

    Attributes:
        blocks: the channels of a block of inputs and of outputs. LiteRT takes as long for 17 outputs as for
            32.
    """

    connections: Sequence[Connection]
    blocks: tuple[int, int] = (1, 1)

    def of(self, channels: np.ndarray) -> np.ndarray:
        """The cost of models with these numbers of channels: of all sources, all outputs, and all tensors."""
        sources, outputs = np.split(channels[..., : 2 * len(self.connections)], 2, axis=-1)
        size_in, size_out = self.blocks
        full_in, full_out = -(-sources // size_in) * size_in, -(-outputs // size_out) * size_out
        total = np.zeros(channels.shape[:-1])
        for place, each in enumerate(self.connections):
            whole = each.multiply_adds / len(each.outputs)
            if each.depthwise:
                total += whole * full_out[..., place]
            else:
                total += whole / len(each.sources) * full_in[..., place] * full_out[..., place]
        return total


@dataclass(frozen=True)
class Peak:
    """The most bytes of int8 activations that are in RAM at the same time.

    It is a smooth maximum, of power POWER: where several moments need as much, each layer at its peak counts.
    """

    POWER: ClassVar[int] = 32
    tensors: Sequence[Stored]

    def of(self, channels: np.ndarray) -> np.ndarray:
        """As :meth:`Work.of`."""
        sizes = channels[..., -len(self.tensors) :] * np.array([each.positions for each in self.tensors])
        moments = range(max(each.last for each in self.tensors) + 1)
        alive = np.array([[each.first <= now <= each.last for each in self.tensors] for now in moments])
        needed = sizes @ alive.T
        most = needed.max(axis=-1, keepdims=True)
        return most[..., 0] * ((needed / most) ** self.POWER).sum(axis=-1) ** (1 / self.POWER)


class Pruning:
    """A float model that units are removed from.

    Args:
        model: a folded model. It is changed in place.
        original: the same model with the same weights, which stays as it is.
        heads: the tasks of its outputs.
        batches: unlabelled inputs, preprocessed.
        blocks: of the target's kernels, see :class:`Work`.
    """

    def __init__(
        self,
        model: tf_keras.Model,
        original: tf_keras.Model,
        heads: Heads,
        batches: Sequence[Any],
        blocks: tuple[int, int] = (1, 1),
    ) -> None:
        self.model, self.original = model, original
        self.batches = as_many_as_fit(model, batches)
        self.connections, tensors = channels_of(model)
        self.work, self.peak = Work(self.connections, blocks), Peak(tensors)
        self.unblocked = Work(self.connections)
        sides = [each.sources for each in self.connections], [each.outputs for each in self.connections]
        every = [*sides[0], *sides[1], *(each.channels for each in tensors)]
        in_use = np.unique([FIXED, *np.concatenate(sides[1])])
        self.kept = np.zeros(max(map(np.max, every)) + 1, bool)
        self.kept[in_use] = True
        self.units = len(in_use) - 1
        self.groups = Groups(every, len(self.kept))
        self._damage = self._measuring_damage(heads)

    @property
    def removed(self) -> int:
        """The number of units that were removed."""
        return self.units + 1 - int(self.kept.sum())

    def cost(self, of: Work | Peak) -> float:
        """What the model costs now."""
        return float(of.of(self.groups.channels(self.groups.counts(self.kept))))

    def remove(self, of: Work | Peak, cost: float) -> bool:
        """Removes units until the model costs no more than this. False if no removal saves anything."""
        (damage,), removed = self._damage(), False
        while self.cost(of) > cost:
            leaving = self._cheapest(of, damage)
            if leaving is None:
                break
            self.kept[leaving] = False
            removed = True
        self._clear(self.connections)
        return removed

    def keep(self, kept: np.ndarray) -> None:
        """Removes all other units. ``kept``: bool [units].

        Raises:
            LqError: if they are another model's.
        """
        if kept.shape != self.kept.shape or kept.dtype != bool or not kept[FIXED]:
            raise LqError("the channels of the interrupted run are another model's", hint="fresh_start")
        self.kept &= kept
        self._clear(self.connections)

    def _cheapest(self, of: Work | Peak, damage: np.ndarray) -> np.ndarray | None:
        """The units of a group whose removal does the least damage for what it saves."""
        counts = self.groups.counts(self.kept)
        best, least = None, math.inf
        for group in range(len(counts)):
            members = np.flatnonzero(self.kept & (self.groups.of_unit == group))
            most = min(len(members) - 1, MOST_AT_ONCE)  # one has to stay
            if group == self.groups.fixed or most < 1:
                continue
            members = members[np.argsort(damage[members], kind="stable")][:most]
            fewer = np.tile(counts, (most, 1))
            fewer[:, group] -= np.arange(1, most + 1)
            saved = self.cost(of) - of.of(self.groups.channels(fewer))
            price = np.where(saved > 0, np.cumsum(damage[members]) / np.maximum(saved, 1e-9), math.inf)
            if price.min() < least:
                least, best = price.min(), members[: price.argmin() + 1]
        return best

    def _measuring_damage(self, heads: Heads) -> Callable[[], list[np.ndarray]]:
        """A function that tells what removing each unit costs, in nats an example: [float64 [units]].

        Fisher information of a factor on all channels of a unit: Liu et al., "Group Fisher Pruning",
        arXiv 2108.00708. Depthwise convolutions only pass a unit on.
        """
        writers = [each for each in self.connections if not each.depthwise]
        size = len(self.kept)

        def squares(outputs: Sequence[tf.Tensor], gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
            of_units = 0.0
            for writer, output, gradient in zip(writers, outputs, gradients, strict=True):
                positions = list(range(1, len(output.shape) - 1))
                products = tf.transpose(tf.reduce_sum(output * gradient, positions))
                of_units += tf.math.unsorted_segment_sum(products, writer.outputs, size)
            return [tf.reduce_sum(of_units**2, 1) / 2]

        names = [each.layer.name for each in writers]
        return fisher_means(self.model, names, heads, self.batches, squares)

    @contextmanager
    def at_its_smallest(self) -> Iterator[None]:
        """A context in which one unit of each group is left. Afterwards, the model is as before."""
        kept, weights = self.kept, self.model.get_weights()
        _, first = np.unique(np.where(kept, self.groups.of_unit, -1), return_index=True)
        self.kept = np.zeros_like(kept)
        self.kept[[FIXED, *first]] = True
        self.kept &= kept
        self._clear(self.connections)
        yield
        self.kept = kept
        self.model.set_weights(weights)

    def compensate(self) -> None:
        """Adapts weights and biases to the missing inputs, layer by layer (least squares).

        He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", arXiv 1707.06168.
        """
        by_name = {each.layer.name: each for each in self.connections}
        for name, xs, floats in inputs_in_both(self.model, self.original, by_name, self.batches):
            connection, original = by_name[name], self.original.get_layer(name)
            layer, layout = connection.layer, Layout.of(connection.layer)
            moments = moments_of(layer, xs, floats, examples=examples_of(self.batches))
            weights = layout.matrices(getattr(original, kernel_name(original)).numpy().astype(np.float64))
            adapted = moments.adapted(weights, layer.use_bias)
            getattr(layer, kernel_name(layer)).assign(layout.as_kernel(adapted))
            if layer.use_bias:
                missing = moments.missing(weights, adapted)
                layer.bias.assign(original.bias.numpy() + layout.by_channel(missing))
            self._clear([connection])

    def _clear(self, connections: Iterable[Connection]) -> None:
        for each in connections:
            each.clear(self.kept)
