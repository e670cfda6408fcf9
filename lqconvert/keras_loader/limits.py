"""Bounds on what a model may take: a small config can ask for terabytes, or for days.

What a config alone tells is refused before Keras sees it; weights are counted as TensorFlow makes them, in
this thread only; all else of the rebuilt model, which is of symbols until then, before anything of it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lqconvert.errors import LqError

#: Calls of layers, those in nested models counted each time; NASNetLarge has 1,040 layers.
MOST_CALLS = 3_500
#: Tensors that calls are given, counted likewise.
MOST_REFERENCES = 20_000
#: Values of one example in one tensor (512 x 512 x 64), and in all.
LARGEST_TENSOR, MOST_VALUES = 1 << 24, 1 << 28
#: Multiplications for one example: three times VGG19's. No phone runs more.
MOST_WORK = 1 << 36
#: Steps of recurrent layers together: each takes some 50 microseconds, whatever little it computes.
MOST_STEPS = 1 << 14
#: Keras 3 builds what Bidirectional wraps so many times.
REBUILT = 4
#: Numbers that are no weights, such as the states of random generators.
UNCOUNTED = 1 << 16
#: A length that is unknown counts as this; models are checked at this size.
UNKNOWN = 32
#: tf_keras repeats along an axis, and unrolls a loop, with an operation for each place.
MOST_REPEATS = 1 << 16
UNROLLED = 16


@dataclass
class Cost:
    """What a flat model takes, of one example."""

    values: int = 0
    work: int = 0
    steps: int = 0

    def examples(self, wanted: int) -> int:
        """How many examples the model may be run on at once, at least one."""
        fit = min(MOST_VALUES // 2 // max(self.values, 1), MOST_WORK // max(self.work, 1))
        return max(1, min(wanted, fit))


def refuse_calls(config: dict[str, Any]) -> None:
    """Refuses a vetted config whose layers call each other too often: models in models multiply."""
    if _calls(config, _nodes)[0] > MOST_CALLS:
        raise LqError(f"the model calls layers more than {MOST_CALLS:,} times")
    if _calls(config, _references)[0] > MOST_REFERENCES:
        raise LqError(f"the model's layers take more than {MOST_REFERENCES:,} tensors")


def layers_of(config: Any) -> list[dict[str, Any]]:
    """The configs of a model's layers; none of what is no model."""
    inner = config.get("config") if isinstance(config, dict) else None
    layers = inner.get("layers") if isinstance(inner, dict) else inner  # a list in old Sequential models
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []


def _calls(model: dict[str, Any], count: Callable[[dict[str, Any]], int]) -> tuple[int, int]:
    """What Keras counts (of nodes, or of tensors) to make the model, and to call it once more."""
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
    """Stops Keras (either one) where it makes more than so many weights within, REBUILT times.

    TensorFlow keeps such scopes for each thread: others make what they like.

    Raises:
        LqError: instead of what Keras makes of it.
    """
    import tensorflow as tf

    made, scratch = 0, tf.Graph()

    def counted(make: Callable[..., Any], **settings: Any) -> Any:
        nonlocal made
        shape = _shape(settings, scratch)
        made += math.prod(shape)
        if made > REBUILT * most + UNCOUNTED:
            name = str(settings.get("name"))[:80]
            raise LqError(f"weights '{name}' are to be {shape}, more than there are in the file")
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
    """The shape of a variable that TensorFlow is about to make, before its memory is taken."""
    shape, value = settings.get("shape"), settings.get("initial_value")
    for cell in getattr(value, "__closure__", None) or ():  # of Keras 3: a function of its own variable
        if shape is None and hasattr(cell.cell_contents, "_initialize_with_initializer"):
            shape = cell.cell_contents.shape
    if shape is None and callable(value):
        with scratch.as_default():  # of symbols
            value = value()
    return tuple(int(n) for n in (getattr(value, "shape", ()) if shape is None else shape))


def refusal_in(error: BaseException | None) -> LqError | None:
    """The refusal that an exception was made of: tf_keras wraps what is raised in it in more words."""
    found = None
    while error is not None:
        found = error if isinstance(error, LqError) else found
        error = error.__cause__ or error.__context__
    return found


def check_repeats(name: str, steps: int | None, repeats: int) -> None:
    """Refuses what tf_keras would write out with an operation for each of ``steps`` x ``repeats``."""
    if (UNKNOWN if steps is None else int(steps)) * int(repeats) > MOST_REPEATS:
        raise LqError(f"layer '{name}': {steps or UNKNOWN:,} steps are too many to be written out one by one")


def check_tensors(tensors: list[Any]) -> None:
    """Refuses symbolic tensors of tf_keras that are larger than any network's."""
    for tensor in tensors:
        values = math.prod(_known(tensor.shape[1:]))
        if values > LARGEST_TENSOR:
            _refuse_output(tensor._keras_history.layer, tensor.shape[1:])


def measure(model: Any, most_values: int) -> Cost:
    """What a flat tf_keras model, of which nothing has run yet, takes.

    Args:
        most_values: of one example in all tensors together.

    Raises:
        LqError: if that is more than any network takes.
    """
    cost = Cost()
    for layer in model.layers:
        node = layer.inbound_nodes[0]
        inputs = [_known(tensor.shape) for tensor in _listed(node.input_tensors)]
        for tensor in _listed(node.outputs):
            _add(cost, layer, inputs, _known(tensor.shape), most_values)
        # Dilated kernels run on an input that is padded to their reach.
        reach = _largest(layer, "dilation_rate") * _largest(layer, "kernel_size")
        for shape in inputs:
            if _largest(layer, "dilation_rate") > 1 and _padded(shape, reach) > LARGEST_TENSOR:
                raise LqError(f"layer '{layer.name}': its dilated kernel reaches too far")
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
    if hasattr(layer, "unroll"):  # recurrent: once for each step
        cost.steps += inputs[0][1]
        cost.work += per_position * inputs[0][1]
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
    """A shape with a number for each unknown length."""
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
