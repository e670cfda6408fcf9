"""Input columns of different ranges: the scaling that has to stay in front of the quantized model.

With one int8 scale for raw columns from 1e-3 to 1e5, all values of the small columns become 0.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras

from lqconvert.data.preprocessing import Front
from lqconvert.keras_loader.layer_kinds import class_name
from lqconvert.quantization.layers import LEAST_RANGE, scale_and_zero_point

log = logging.getLogger(__name__)

#: Rounded inputs may change the outputs by this share of the outputs' spread. Its square is 0.001 of R².
MATTERS = 0.03


@dataclass(frozen=True)
class Fronted:
    """The given model, split into a scaling of its input (the front) and the rest (``model``)."""

    front: Front
    model: tf_keras.Model
    what: str  # the front, in words


def choose_front(model: tf_keras.Model, seen: np.ndarray, x: np.ndarray, bits: int = 8) -> Fronted | None:
    """The front that must stay in float, because one scale for the input would change the outputs.

    None if no front is needed.

    Args:
        model: with one float32 input.
        seen: inputs [n, ..., columns]. The scale covers their range.
        x: inputs of the same shape. Errors are measured on them.
        bits: of the quantized input, 8 or 16.
    """
    fronted = _scaling_layers(model) or _scaling_for_dense(model, seen)
    if fronted is None:
        return None
    spread = _outputs(model, x)
    raw = _error(spread, _outputs(model, _rounded(x, seen, bits)))
    scaled = _rounded(fronted.front(x), fronted.front(seen), bits)
    behind = _error(spread, _outputs(fronted.model, scaled))
    costs = (
        f"int{bits} before it changes the outputs by {raw:.2g} of their spread, "
        f"int{bits} after it by {behind:.2g}"
    )
    if raw > MATTERS and behind < raw / 2:
        log.info(f"{fronted.what} stays before the quantized part: {costs}")
        return fronted
    if fronted.what.startswith("'"):
        log.info(f"{fronted.what} becomes part of the int{bits} model: {costs}")
    return None


def _scaling_layers(model: tf_keras.Model) -> Fronted | None:
    """The BatchNormalizations of columns with which the model begins, and the model behind them."""
    tensor, names = model.inputs[0], []
    columns = tensor.shape[-1]
    center, factor = np.zeros(columns), np.ones(columns)
    while (layer := _only_reader(model, tensor)) is not None and class_name(layer) == "BatchNormalization":
        if layer.name in model.output_names or tuple(layer.axis) != (len(tensor.shape) - 1,):
            break
        gamma = layer.gamma.numpy().astype(np.float64) if layer.scale else np.ones(columns)
        beta = layer.beta.numpy().astype(np.float64) if layer.center else np.zeros(columns)
        gamma /= np.sqrt(layer.moving_variance.numpy().astype(np.float64) + layer.epsilon)
        if np.any(gamma == 0):  # the column becomes a constant, which center and factor cannot express
            break
        mean = layer.moving_mean.numpy() - beta / gamma
        center, factor = center + mean / factor, factor * gamma
        tensor = layer.output
        names.append(layer.name)
    front = Front(_floats(center), _floats(factor))
    if not names or not np.isfinite(front.arrays).all() or not all(front.factor):
        return None
    behind = tf_keras.Model(tensor, model.outputs, name=model.name)
    return Fronted(front, _copy(behind, model.input_names[0]), ", ".join(f"'{name}'" for name in names))


def _scaling_for_dense(model: tf_keras.Model, seen: np.ndarray) -> Fronted | None:
    """If a Dense layer comes first: columns scaled to a spread of one, which the layer undoes."""
    layer = _only_reader(model, model.inputs[0])
    if layer is None or class_name(layer) != "Dense":
        return None
    columns = seen.reshape(-1, seen.shape[-1]).astype(np.float64)
    center = columns.mean(axis=0) if layer.use_bias else np.zeros(columns.shape[1])
    spread = np.sqrt(np.mean((columns - center) ** 2, axis=0))
    factor = 1 / np.where(spread > LEAST_RANGE, spread, 1.0)
    front = Front(_floats(center), _floats(factor))
    center, factor = front.arrays
    copy = _copy(model, model.input_names[0])
    kernel, *bias = (weight.astype(np.float64) for weight in layer.get_weights())
    bias = [each + center @ kernel for each in bias]
    copy.get_layer(layer.name).set_weights([kernel / factor[:, np.newaxis], *bias])
    return Fronted(front, copy, "a scaling of the columns")


def _only_reader(model: tf_keras.Model, tensor: Any) -> Any:
    """The only layer that reads a tensor, if it is called once; otherwise None."""
    layer = tensor._keras_history.layer
    readers = [node.outbound_layer for node in layer.outbound_nodes if node.outbound_layer in model.layers]
    return readers[0] if len(readers) == 1 and len(readers[0].inbound_nodes) == 1 else None


def _copy(model: tf_keras.Model, name: str) -> tf_keras.Model:
    """A copy of the model with its own weights. The input has this name."""
    copy = tf_keras.models.clone_model(model, [tf_keras.Input(model.inputs[0].shape[1:], name=name)])
    copy.set_weights(model.get_weights())
    return copy


def _floats(numbers: np.ndarray) -> tuple[float, ...]:
    return tuple(float(number) for number in numbers.astype(np.float32))


def _outputs(model: tf_keras.Model, x: np.ndarray) -> list[np.ndarray]:
    outputs = model.predict(x, batch_size=256, verbose=0)
    return outputs if isinstance(outputs, list) else [outputs]


def _rounded(x: np.ndarray, seen: np.ndarray, bits: int) -> np.ndarray:
    """Inputs rounded to a scale that covers the range of ``seen``."""
    scale, zero_point = scale_and_zero_point(min(seen.min(), 0.0), max(seen.max(), LEAST_RANGE), bits)
    limit = 1 << (bits - 1)
    codes = np.clip(np.round(x / scale) + zero_point, -limit, limit - 1)
    return ((codes - zero_point) * scale).astype(np.float32)


def _error(outputs: list[np.ndarray], others: list[np.ndarray]) -> float:
    """The rms difference of two models' outputs over the rms spread of the first's: of the worst output."""

    def of_head(a: np.ndarray, b: np.ndarray) -> float:
        a, b = (each.reshape(len(each), -1).astype(np.float64) for each in (a, b))
        spread = np.sum((a - a.mean(axis=0)) ** 2)
        return float(np.sqrt(np.sum((a - b) ** 2) / max(spread, 1e-30)))

    return max(of_head(a, b) for a, b in zip(outputs, others, strict=True))
