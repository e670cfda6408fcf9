"""Masks of steps: which tensors of a model that is rebuilt have one, by the rules of Keras."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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


def is_mask(value: Any) -> bool:
    """Whether an argument of a call is a mask of steps."""
    return isinstance(getattr(getattr(value, "_keras_history", None), "layer", None), StepMask)


def given_mask(arguments: dict[str, Any]) -> Any:
    """The mask of steps that a layer is called with, if it is. It is removed from the call's arguments."""
    return arguments.pop("mask") if is_mask(arguments.get("mask")) else None


def same_mask(a: Any, b: Any) -> bool:
    """Whether two masks are of the same steps."""
    return _identity(a) == _identity(b)


def _identity(mask: Any) -> tuple[int, float]:
    layer = mask._keras_history.layer
    return (id(layer.input), layer.value) if isinstance(layer, StepMask) else (id(mask), 0.0)


@dataclass(frozen=True)
class Pairs:
    """A mask of pairs of steps, as attention_mask is: [b, steps, 1] of queries or [b, 1, steps] of keys.

    Attributes:
        queries, keys: the masks of steps of which it is made. A pair counts if both steps do.
    """

    queries: tuple[Any, ...] = ()
    keys: tuple[Any, ...] = ()

    def __and__(self, other: Pairs) -> Pairs:
        return Pairs(self.queries + other.queries, self.keys + other.keys)


@dataclass(frozen=True)
class AttentionMasks:
    """The masks that attention is called with. Those of tensors without a mask are None.

    Attributes:
        query, value, key: of its inputs.
        pairs: of pairs of their steps.
        causal: no step reads a later one.
    """

    query: Any = None
    value: Any = None
    key: Any = None
    pairs: Pairs = Pairs()
    causal: bool = False

    @classmethod
    def of(cls, layer: Any, inputs: Sequence[Any], arguments: dict[str, Any]) -> AttentionMasks:
        """The masks of a layer's inputs, and those of the call's arguments, from which they are removed."""
        implicit = dict(zip(("query", "value", "key"), map(mask_of, inputs), strict=False))
        explicit = {
            name: arguments.pop(f"{name}_mask") for name in implicit if is_mask(arguments.get(f"{name}_mask"))
        }
        if drops_masks(layer):
            explicit.pop("query", None)
        given = arguments.get("mask")
        if isinstance(given, (list, tuple)) and all(mask is None or is_mask(mask) for mask in given):
            explicit = dict(zip(implicit, arguments.pop("mask"), strict=False))
        pairs = arguments.get("attention_mask")
        return cls(
            **implicit | explicit,
            pairs=arguments.pop("attention_mask") if isinstance(pairs, Pairs) else Pairs(),
            causal=bool(arguments.pop("use_causal_mask", False)),
        )


def drops_masks(layer: Any) -> bool:
    """Whether a layer takes the masks of its inputs away from them. Layers that run later do not see them."""
    return is_keras3(layer) and kind_of(layer).name == "MultiHeadAttention" and _attention_drops_masks()


@functools.cache
def _attention_drops_masks() -> bool:
    """Whether MultiHeadAttention does so in the Keras 3 that is installed. Not all versions do."""
    from keras import layers

    x = layers.Masking()(np.ones((1, 2, 1), np.float32))
    layers.MultiHeadAttention(1, 1)(x, x)
    return getattr(x, "_keras_mask", None) is None


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
            f"layer '{layer.name}': {kind.name} of masked steps; "
            "only attention, recurrent layers and means read masks"
        )
    if len(masks) > 1:
        raise LqError(f"layer '{layer.name}': it joins inputs with different masks")
    with_mask(output, *masks.values())


def carry_query_mask(layer: Any, inputs: Iterable[Any], masks: AttentionMasks, output: Any) -> None:
    """Gives the output of attention the mask of its query."""
    with_mask(output, masks.query)
    if drops_masks(layer):
        for x in inputs:
            with_mask(x, None)
