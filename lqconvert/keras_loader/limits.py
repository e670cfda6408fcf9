"""Limits on a model's memory and work: a small config can ask for terabytes, or for days.

Limits on the config are checked before Keras reads it. Weights are counted when TensorFlow creates them, in
this thread only. The rest of the rebuilt model is checked before it runs, while its tensors are symbolic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lqconvert.errors import LqError

#: The limit for calls of layers. Those in nested models count each time. NASNetLarge has 1,040 layers.
MOST_CALLS = 3_500
#: The limit for input tensors of all calls, counted in the same way.
MOST_REFERENCES = 20_000
#: The limits for values of one example: in one tensor (512 x 512 x 64), and in all.
LARGEST_TENSOR, MOST_VALUES = 1 << 24, 1 << 28
#: The limit for multiplications for one example: three times VGG19's, more than any phone runs.
MOST_WORK = 1 << 36
#: The limit for steps of all recurrent layers. Each takes some 50 microseconds, even if it computes little.
MOST_STEPS = 1 << 14
#: The number of times that Keras 3 builds the layer in a Bidirectional.
REBUILT = 4
#: The limit for numbers that are no weights, such as the states of random generators.
UNCOUNTED = 1 << 16
#: Unknown lengths count as this one. Models are checked with it.
UNKNOWN = 32
#: The limit for repetitions along an axis and steps of a loop: tf_keras makes an operation for each.
MOST_REPEATS = 1 << 16
UNROLLED = 16


@dataclass
class Cost:
    """The memory and work that a flat model takes for one example."""

    values: int = 0
    work: int = 0
    steps: int = 0

    def examples(self, wanted: int) -> int:
        """The number of examples on which the model may run at once: at most ``wanted``, at least one."""
        fit = min(MOST_VALUES // 2 // max(self.values, 1), MOST_WORK // max(self.work, 1))
        return max(1, min(wanted, fit))


def refuse_calls(config: dict[str, Any]) -> None:
    """Refuses a checked config whose layers call each other too often: calls in nested models multiply."""
    if _calls(config, _nodes)[0] > MOST_CALLS:
        raise LqError(f"the model calls layers more than {MOST_CALLS:,} times")
    if _calls(config, _references)[0] > MOST_REFERENCES:
        raise LqError(f"the model's layers take more than {MOST_REFERENCES:,} tensors")


def layers_of(config: Any) -> list[dict[str, Any]]:
    """The configs of the layers in a model or wrapper; empty if it is neither."""
    inner = config.get("config") if isinstance(config, dict) else None
    if isinstance(inner, dict) and isinstance(inner.get("layer"), dict):  # a wrapper
        return [inner["layer"]]
    layers = inner.get("layers") if isinstance(inner, dict) else inner  # a list in old Sequential models
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []


def _calls(model: dict[str, Any], count: Callable[[dict[str, Any]], int]) -> tuple[int, int]:
    """The number of nodes or tensors (``count``) to make a model, and to call it once more."""
    made = called = 0
    for layer in layers_of(model):
        inner_made, inner_called = _calls(layer, count)
        times = count(layer) * max(inner_called, 1)
        made, called = made + inner_made + times, called + times
    return made, called


def _nodes(layer: dict[str, Any]) -> int:
    inbound = layer.get("inbound_nodes")
    return max(len(inbound), 1) if isinstance(inbound, (list, dict)) else 1


def _references(layer: dict[str, Any]) -> int:
    def count(value: Any) -> int:
        values = list(value.values()) if isinstance(value, dict) else value
        if not isinstance(values, list):
            return 0
        named = len(values) > 2 and isinstance(values[0], str)  # [layer, node, tensor]
        return named + sum(map(count, values))

    return max(count(layer.get("inbound_nodes")), 1)


@contextmanager
def limited_weights(most: int) -> Iterator[None]:
    """Stops either Keras if it creates more than ``most`` x REBUILT weights in the block.

    TensorFlow has such scopes for each thread. Other threads are not limited.

    Raises:
        LqError: in place of the error that Keras makes of it.
    """
    import tensorflow as tf

    made, scratch = 0, tf.Graph()

    def counted(make: Callable[..., Any], **settings: Any) -> Any:
        nonlocal made
        shape = _shape(settings, scratch)
        made += math.prod(shape)
        if made > REBUILT * most + UNCOUNTED:
            name = str(settings.get("name"))[:80]
            raise LqError(f"weights '{name}' of shape {shape} are more than the file has")
        return make(**settings)

    try:
        with tf.variable_creator_scope(counted):
            yield
    except Exception as error:
        refusal = refusal_in(error)
        if refusal is None:
            raise
        raise LqError(str(refusal)) from error


def _shape(settings: dict[str, Any], scratch: Any) -> tuple[int, ...]:
    """The shape of a variable that TensorFlow is about to create, before its memory is allocated."""
    shape, value = settings.get("shape"), settings.get("initial_value")
    for cell in getattr(value, "__closure__", None) or ():  # in Keras 3 it is a function of its variable
        if shape is None and hasattr(cell.cell_contents, "_initialize_with_initializer"):
            shape = cell.cell_contents.shape
    if shape is None and callable(value):
        with scratch.as_default():  # in a graph, where tensors are symbolic
            value = value()
    return tuple(int(n) for n in (getattr(value, "shape", ()) if shape is None else shape))


def refusal_in(error: BaseException | None) -> LqError | None:
    """The refusal from which an exception was made: tf_keras adds words to errors raised in it."""
    found = None
    while error is not None:
        found = error if isinstance(error, LqError) else found
        error = error.__cause__ or error.__context__
    return found


def check_repeats(name: str, steps: int | None, repeats: int) -> None:
    """Refuses a layer for which tf_keras would make an operation for each of ``steps`` x ``repeats``."""
    if (UNKNOWN if steps is None else int(steps)) * int(repeats) > MOST_REPEATS:
        raise LqError(f"layer '{name}': too many steps to be unrolled ({steps or UNKNOWN:,})")


def check_tensors(tensors: list[Any]) -> None:
    """Refuses symbolic tensors of tf_keras that are larger than any network's."""
    for tensor in tensors:
        values = math.prod(_known(tensor.shape[1:]))
        if values > LARGEST_TENSOR:
            _refuse_output(tensor._keras_history.layer, tensor.shape[1:])


def measure(model: Any, most_values: int) -> Cost:
    """The memory and work of a flat tf_keras model that has not run yet.

    Args:
        most_values: the limit for values of one example in all tensors together.

    Raises:
        LqError: if it takes more than any network does.
    """
    cost = Cost()
    for layer in model.layers:
        node = layer.inbound_nodes[0]
        inputs = [_known(tensor.shape) for tensor in _listed(node.input_tensors)]
        for tensor in _listed(node.outputs):
            _add(cost, layer, inputs, _known(tensor.shape), most_values)
        # Dilated kernels run on an input that is padded by their extent.
        reach = _largest(layer, "dilation_rate") * _largest(layer, "kernel_size")
        for shape in inputs:
            if _largest(layer, "dilation_rate") > 1 and _padded(shape, reach) > LARGEST_TENSOR:
                raise LqError(f"layer '{layer.name}': its dilated kernel is too large")
    return cost


def _add(
    cost: Cost, layer: Any, inputs: list[tuple[int, ...]], output: tuple[int, ...], most_values: int
) -> None:
    kind, name = type(layer).__name__, layer.name
    values, per_position = math.prod(output[1:]), sum(math.prod(weight.shape) for weight in layer.weights)
    cost.values += values
    cost.work += values * _window(layer, "pool_size") + per_position * math.prod(output[1:-1])
    if kind == "MatMul":
        cost.work += values * inputs[0][-1]
    if hasattr(layer, "unroll"):  # an RNN: its work is done for each step
        cost.work += per_position * inputs[0][1]
    if hasattr(layer, "unroll") or hasattr(layer, "previous_states"):
        cost.steps += inputs[0][1]
    if values > LARGEST_TENSOR or cost.values > most_values:
        _refuse_output(layer, output[1:])
    if cost.work > MOST_WORK:
        raise LqError(f"layer '{name}': the model needs more than {MOST_WORK:,} multiplications an example")
    if cost.steps > MOST_STEPS:
        raise LqError(f"layer '{name}': the model's recurrent layers take more than {MOST_STEPS:,} steps")


def _refuse_output(layer: Any, shape: Any) -> None:
    raise LqError(
        f"layer '{layer.name}' ({type(layer).__name__}): its output {tuple(shape)} is too large, "
        "or the model's outputs together are"
    )


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _known(shape: Any) -> tuple[int, ...]:
    """A shape with a number instead of each unknown length."""
    return tuple(UNKNOWN if n is None else int(n) for n in shape)


def _numbers(layer: Any, attribute: str, join: Callable[[tuple[int, ...]], int]) -> int:
    value = getattr(layer, attribute, 1)
    value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return join(tuple(n for n in value if isinstance(n, int)) or (1,))


def _window(layer: Any, attribute: str) -> int:
    return _numbers(layer, attribute, math.prod)


def _largest(layer: Any, attribute: str) -> int:
    return _numbers(layer, attribute, max)


def _padded(shape: tuple[int, ...], reach: int) -> int:
    return math.prod(n + reach for n in shape[1:-1]) * shape[-1]
