"""Other architectures for a Keras model, with the bytes that each would save, computed from its graph."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lqconvert.keras_loader.layer_kinds import class_name, kind_of

#: Making a layer narrower is suggested if it has at least this share of all parameters.
LARGE = 0.1


@dataclass(frozen=True)
class Change:
    """A change of the architecture, with the number of parameters before and after it."""

    what: str
    before: int
    after: int
    biases: int = 0  # the number of removed parameters that are biases
    scales: int = 0  # the number of kernel scales that it adds
    operators: int = 0  # the number of operators that it adds

    @property
    def text(self) -> str:
        return f"{self.what}: {self.before:,} -> {self.after:,} parameters"

    def saved_bytes(self, operator: int) -> int:
        """Bytes saved in an int8 file. Weights are int8, biases int32 with as many scales as their kernel.

        Args:
            operator: the bytes of an operator, with its tensors.
        """
        return self.before - self.after + 3 * self.biases - 8 * self.scales - operator * self.operators


def changes(model: Any) -> list[Change]:
    """Changes that would make a flat functional tf_keras model smaller, with their parameters.

    Each gives another model that has to be trained again. Its accuracy is not estimated.
    """
    total = model.count_params()
    found: list[Change] = []
    for layer in model.layers:
        kind = class_name(layer)
        if kind == "Dense":
            found += _pooled(layer)
        if kind in ("Conv1D", "Conv2D"):
            found += _separable(layer)
        if kind == "Dense" and layer.count_params() > LARGE * total:
            found += _narrower(layer, model)
        if kind == "Embedding" and layer.count_params() > LARGE * total:
            width, half = layer.output_dim, layer.output_dim // 2
            what = f"{layer.name}: {half} numbers for each of {layer.input_dim:,} entries, not {width}"
            found += [Change(what, layer.count_params(), layer.input_dim * half)] if half else []
    return [change for change in found if change.after < change.before]


def _source(layer: Any) -> Any:
    return layer.input._keras_history.layer


def _pooled(dense: Any) -> Iterator[Change]:
    """GlobalAveragePooling instead of the Flatten in front of a Dense."""
    flatten = _source(dense)
    shape: tuple[int, ...] = flatten.input_shape[1:] if class_name(flatten) == "Flatten" else ()
    if len(shape) not in (2, 3) or math.prod(shape[:-1]) == 1:
        return
    if class_name(_source(flatten)) == "InputLayer":  # the mean of an image contains no information
        return
    pooling = f"GlobalAveragePooling{len(shape) - 1}D"
    before = dense.count_params()
    after = before - (math.prod(shape) - shape[-1]) * dense.units
    size = "x".join(map(str, shape))
    what = f"{dense.name}: {pooling} in place of {flatten.name} ({size} -> {shape[-1]} inputs)"
    yield Change(what, before, after)


def _separable(conv: Any) -> Iterator[Change]:
    """A filter for each channel and a sum over channels, instead of a filter for each pair of channels."""
    taps, (inputs, outputs) = math.prod(conv.kernel_size), (conv.input_shape[-1], conv.filters)
    if taps == 1 or conv.groups > 1:
        return
    before = conv.count_params()
    after = before - taps * inputs * outputs + taps * inputs + inputs * outputs
    kind, size = class_name(conv), "x".join(map(str, conv.kernel_size))
    what = f"{conv.name}: Separable{kind} in place of {kind} ({size}, {inputs} -> {outputs} channels)"
    yield Change(what, before, after, scales=inputs, operators=1)


def _narrower(dense: Any, model: Any) -> Iterator[Change]:
    """Half the units of a hidden Dense that only Dense layers read."""
    readers, behind = [], [dense]
    while behind:
        layer = behind.pop()
        nodes = layer.outbound_nodes
        if not nodes or layer.name in model.output_names:
            return
        for node in nodes:
            kind = kind_of(node.outbound_layer)
            if kind.name == "Dense":
                readers.append(node.outbound_layer)
            elif kind.elementwise:
                behind.append(node.outbound_layer)
            else:
                return
    gone = dense.units - dense.units // 2
    if gone == dense.units:
        return
    before = dense.count_params() + sum(each.count_params() for each in readers)
    per_unit = dense.count_params() // dense.units + sum(each.units for each in readers)
    what = f"{dense.name}: {dense.units - gone} units in place of {dense.units}"
    if readers:
        what += f", which {', '.join(each.name for each in readers)} reads"
    yield Change(what, before, before - gone * per_unit, gone if dense.use_bias else 0)
