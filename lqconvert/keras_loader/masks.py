"""Masks of steps: which tensors of a model that is rebuilt have one, by the rules of Keras."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lqconvert.errors import LqError
from lqconvert.keras_loader.layer_kinds import kind_of
from lqconvert.keras_loader.recurrent_layers import StepMask
from lqconvert.keras_loader.rule_parts import is_keras3


def mask_of(x: Any) -> Any:
    """The mask of a tensor, from a :class:`.StepMask`: [b, steps, 1]; None if it has none."""
    return getattr(x, "_step_mask", None)


def with_mask(x: Any, mask: Any) -> Any:
    """The tensor, marked as having a mask."""
    x._step_mask = mask
    return x


def given_mask(arguments: dict[str, Any]) -> Any:
    """The mask of steps that a layer is called with, if it is. It is removed from the call's arguments."""
    mask = arguments.get("mask")
    if not isinstance(getattr(getattr(mask, "_keras_history", None), "layer", None), StepMask):
        return None
    return arguments.pop("mask")


def same_mask(a: Any, b: Any) -> bool:
    """Whether two masks are of the same steps."""
    return _identity(a) == _identity(b)


def _identity(mask: Any) -> tuple[int, float]:
    layer = mask._keras_history.layer
    return (id(layer.input), layer.value) if isinstance(layer, StepMask) else (id(mask), 0.0)


def carry_mask(layer: Any, inputs: Iterable[Any], output: Any) -> None:
    """Gives the output of a layer of either Keras the mask of its inputs, if it has one in Keras.

    Raises:
        LqError: if the layer computes with a mask and lqconvert does not, or joins different masks.
    """
    given = [mask_of(x) for x in inputs]
    masks = {_identity(mask): mask for mask in given if mask is not None}
    if not masks or mask_of(output) is not None or not layer.supports_masking:
        return
    if is_keras3(layer) and None in given:  # it merges only masks of all inputs
        return
    kind = kind_of(layer)
    if kind.ends_mask:
        return
    if kind.recurrent:
        if not getattr(layer, "forward_layer", layer).return_sequences:
            return
    elif kind.reads_mask:
        raise LqError(
            f"layer '{layer.name}': {kind.name} of masked steps; only recurrent layers and means read masks"
        )
    if len(masks) > 1:
        raise LqError(f"layer '{layer.name}': it joins inputs with different masks")
    with_mask(output, *masks.values())
