"""The inputs of a model's layers, one layer after the other, while their weights change."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

#: About the most memory for the activations of models that are evaluated.
LIVE_BYTES = 1 << 30


def inputs_of_layers(
    model: tf_keras.Model, names: Collection[str], batches: Sequence[Any]
) -> Iterator[tuple[str, list[tf.Tensor]]]:
    """Evaluates a functional model layer by layer, and yields the inputs of named layers.

    A layer is evaluated after its input was yielded, so the caller may change its weights before. Tensors are
    freed as soon as no other layer needs them.

    Args:
        model: a model that calls each of the named layers once.
        names: layers with one input.
        batches: inputs of the model: a tensor, or a tuple of them.

    Yields:
        the name of a layer, and its input for each batch.
    """
    nodes = calls_in_order(model)
    uses = Counter(id(each) for node in nodes for each in node.keras_inputs)
    inputs = [tf.nest.flatten(batch) for batch in batches]
    values = {
        id(tensor): [tf.cast(batch[place], tensor.dtype) for batch in inputs]
        for place, tensor in enumerate(model.inputs)
    }
    for node in nodes:
        places = [id(each) for each in node.keras_inputs]
        if node.layer.name in names:
            yield node.layer.name, values[places[0]]
        found = [_called(node, dict(zip(places, each, strict=True))) for each in _by_batch(values, places)]
        for tensor, of_batches in zip(tf.nest.flatten(node.outputs), zip(*found, strict=True), strict=True):
            values[id(tensor)] = list(of_batches)
        uses.subtract(places)
        for place in places:
            if not uses[place]:
                values.pop(place, None)


def inputs_in_both(
    model: tf_keras.Model, original: tf_keras.Model, names: Collection[str], batches: Sequence[Any]
) -> Iterator[tuple[str, list[tf.Tensor], list[tf.Tensor]]]:
    """:func:`inputs_of_layers` of a model, and of another one with the same layers.

    Yields:
        the name of a layer, its input for each batch, and that in the other model.
    """
    others = inputs_of_layers(original, names, batches)
    ahead: dict[str, list[tf.Tensor]] = {}  # the other model may have branches in another order
    for name, xs in inputs_of_layers(model, names, batches):
        while name not in ahead:
            ahead.update([next(others)])
        yield name, xs, ahead.pop(name)


def dependent_layers(model: tf_keras.Model, names: Collection[str]) -> set[str]:
    """Those of the named layers whose inputs depend on the weights of another named layer."""
    found: set[str] = set()
    changed: set[int] = set()  # tensors, by their id
    for node in calls_in_order(model):
        depends = any(id(each) in changed for each in node.keras_inputs)
        if node.layer.name in names and depends:
            found.add(node.layer.name)
        if node.layer.name in names or depends:
            changed.update(id(each) for each in tf.nest.flatten(node.outputs))
    return found


def calls_in_order(model: tf_keras.Model) -> list[Any]:
    """The calls of a functional model's layers, each after those that compute its inputs."""
    depths = sorted(model._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in model._nodes_by_depth[depth] if not node.is_input]


def _by_batch(values: dict[int, list[tf.Tensor]], places: Sequence[int]) -> Iterator[tuple[tf.Tensor, ...]]:
    return zip(*(values[place] for place in places), strict=True)


def _called(node: Any, values: dict[int, tf.Tensor]) -> list[tf.Tensor]:
    """The outputs of a layer's call, for one batch."""
    several = len(node.keras_inputs)  # a tensor may be given more than once
    arguments, keywords = node.map_arguments({str(place): [x] * several for place, x in values.items()})
    return tf.nest.flatten(node.layer(*arguments, **keywords))


def examples_of(batches: Sequence[Any]) -> int:
    """The number of examples in batches."""
    return sum(len(tf.nest.flatten(batch)[0]) for batch in batches)


def as_many_as_fit(model: tf_keras.Model, batches: Sequence[Any]) -> Sequence[Any]:
    """The first batches, as many as two such models can be evaluated on layer by layer in ``LIVE_BYTES``."""
    return batches[: max(1, LIVE_BYTES // (2 * live_bytes(model) * examples_of(batches[:1])))]


def live_bytes(model: tf_keras.Model) -> int:
    """About the bytes of one example's activations at a time: the largest two successive tensors."""
    sizes = _output_bytes(model)
    return max(map(sum, itertools.pairwise(sizes)), default=sizes[0])


def activation_bytes(model: tf_keras.Model) -> int:
    """The bytes of all activations of one example."""
    return sum(_output_bytes(model))


def _output_bytes(model: tf_keras.Model) -> list[int]:
    return [
        4
        * sum(
            tf.TensorShape(tensor.shape[1:]).num_elements() or 0 for tensor in tf.nest.flatten(layer.output)
        )
        for layer in model.layers
    ]
