"""Bounds on what a model may take while Keras builds it: a small config can ask for terabytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lqconvert.errors import LqError

#: Calls of layers, those in nested models counted each time; NASNetLarge has 1,040 layers.
MOST_CALLS = 5_000
#: Values of one example in one tensor (512 x 512 x 64), and in all.
LARGEST_TENSOR, MOST_VALUES = 1 << 24, 1 << 28
#: Multiplications for one example: three times VGG19's. No phone runs more.
MOST_WORK = 1 << 36
#: Keras 3 builds what Bidirectional wraps so many times.
REBUILT = 4
#: A length that is unknown counts as this; models are checked at this size.
UNKNOWN = 32
#: tf_keras repeats along an axis, and unrolls a loop, with an operation for each place.
MOST_REPEATS = 1 << 16


@dataclass
class Cost:
    """What building a model has taken so far, of one example; ``refusal`` is what stopped it."""

    most_values: int = MOST_VALUES
    weights: int = 0
    calls: int = 0
    values: int = 0
    work: int = 0
    refusal: LqError | None = None

    def refuse(self, layer: Any, what: str) -> None:
        # Keras decorates what is raised in it: the caller raises this one.
        self.refusal = LqError(f"layer '{layer.name}' ({type(layer).__name__}): {what}")
        raise self.refusal

    def examples(self, wanted: int) -> int:
        """How many examples the model may be run on at once, at least one."""
        fit = min(MOST_VALUES // 2 // max(self.values, 1), MOST_WORK // max(self.work, 1))
        return max(1, min(wanted, fit))


@contextmanager
def bounded(api: Any, weights: int, *, most_values: int = MOST_VALUES) -> Iterator[Cost]:
    """Counts what layers of ``api`` (keras or tf_keras) take while a model is built, and stops it.

    Layers of other threads are counted, too: their class is changed meanwhile.

    Args:
        weights: how many numbers the file has: no model of it needs more, but for layers built anew.
        most_values: of one example in all tensors together.

    Raises:
        LqError: where the model takes more.
    """
    cost, cls = Cost(most_values), api.layers.Layer
    add_weight, call = cls.add_weight, cls.__call__

    def counted_weight(self: Any, *args: Any, **kwargs: Any) -> Any:
        shapes = (kwargs.get("shape"), *args)
        shape = next((tuple(each) for each in shapes if each is not None and not isinstance(each, str)), ())
        cost.weights += math.prod(int(n) for n in shape)
        if cost.weights > REBUILT * weights:
            cost.refuse(self, f"asks for weights of shape {shape}, more than there are in the file")
        return add_weight(self, *args, **kwargs)

    def counted_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        cost.calls += 1
        if cost.calls > MOST_CALLS:
            cost.refuse(self, f"the model calls layers more than {MOST_CALLS:,} times")
        shapes = _shapes(args)
        length = shapes[0][1] if shapes and len(shapes[0]) > 1 else 1
        repeats = int(self.size) if type(self).__name__ == "UpSampling1D" else 0
        if getattr(self, "unroll", False):
            repeats = 16
        if length * repeats > MOST_REPEATS:
            cost.refuse(self, f"{length:,} steps are too many to be written out one by one")
        outputs = call(self, *args, **kwargs)
        if not hasattr(self, "layers"):  # models are the sum of their layers
            _count(cost, self, shapes, _shapes(outputs))
        return outputs

    cls.add_weight, cls.__call__ = counted_weight, counted_call
    try:
        yield cost
    except Exception as error:
        raise (cost.refusal or error) from error
    finally:
        cls.add_weight, cls.__call__ = add_weight, call


def _shapes(tensors: Any) -> list[tuple[int, ...]]:
    """The shapes of tensors in lists of lists, with a number for each unknown length."""
    if isinstance(tensors, (list, tuple)):
        return [shape for each in tensors for shape in _shapes(each)]
    try:
        return [tuple(UNKNOWN if n is None else int(n) for n in tensors.shape)]
    except (AttributeError, TypeError, ValueError):  # no tensor, or of unknown rank
        return []


def _count(cost: Cost, layer: Any, inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]]) -> None:
    per_position = sum(math.prod(weight.shape) for weight in layer.weights)
    if hasattr(layer, "unroll") and inputs and len(inputs[0]) > 1:  # recurrent: once for each step
        cost.work += per_position * inputs[0][1]
    for shape in outputs:
        values = math.prod(shape[1:])
        cost.values += values
        cost.work += values * _window(layer, "pool_size") + per_position * math.prod(shape[1:-1])
        if values > LARGEST_TENSOR or cost.values > cost.most_values:
            cost.refuse(layer, f"its output {shape[1:]} is too large, or the model's outputs together are")
    # Dilated kernels run on an input that is padded to their reach.
    reach = _largest(layer, "dilation_rate") * _largest(layer, "kernel_size")
    for shape in inputs:
        if _largest(layer, "dilation_rate") > 1 and _padded(shape, reach) > LARGEST_TENSOR:
            cost.refuse(layer, "its dilated kernel reaches too far")
    if cost.work > MOST_WORK:
        cost.refuse(layer, f"the model needs more than {MOST_WORK:,} multiplications for one example")


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
