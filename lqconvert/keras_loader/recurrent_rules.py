"""Rules for recurrent layers: a product with the inputs, and a loop over the steps."""

from __future__ import annotations

from typing import Any

from tf_keras import layers as keras_layers

from lqconvert.errors import LqError
from lqconvert.keras_loader.custom_layers import Slice
from lqconvert.keras_loader.limits import UNROLLED, check_repeats
from lqconvert.keras_loader.masks import mask_of, with_mask
from lqconvert.keras_loader.recurrent_layers import (
    BOUNDED,
    FUNCTIONS,
    GRUStates,
    LSTMLoopStates,
    LSTMStates,
    MaskedInputs,
    RecurrentInputs,
    RecurrentStates,
    SimpleRNNStates,
)
from lqconvert.keras_loader.rule_parts import (
    Twin,
    Unique,
    activation_name,
    copy_of,
    is_keras3,
    summed,
    weights_of,
)

#: The loops over steps, by the layers of Keras.
STATES = {"LSTM": LSTMLoopStates, "GRU": GRUStates, "SimpleRNN": SimpleRNNStates}


def _recurrent(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    """An LSTM, GRU or SimpleRNN, or an RNN of such a cell."""
    if config.get("return_state") or config.get("stateful") or config.get("time_major"):
        raise LqError(f"layer '{name}': a recurrent layer that is stateful, time_major or returns its state")
    if config["unroll"]:
        check_repeats(name, x.shape[1], UNROLLED)
    *below, last = getattr(layer.cell, "cells", [layer.cell])
    for cell in below:
        goes_on, mask = {"return_sequences": True}, mask_of(x)
        x = _recurrent_cell(cell, layer, config | goes_on, x, unique(f"{name}_{cell.name}"), unique)
        if mask is not None:
            x = with_mask(x, _backwards(mask, name, unique) if config["go_backwards"] else mask)
        config = config | {"go_backwards": False}
    return _recurrent_cell(last, layer, config, x, name, unique)


def _backwards(x: Any, name: str, unique: Unique) -> Any:
    return Slice([(None, None, -1), (None, None, None)], name=unique(f"{name}_backwards"))(x)


def _recurrent_cell(cell: Any, layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    """One cell of a recurrent layer, with the layer's settings."""
    kind = type(cell).__name__.removesuffix("Cell")
    if kind not in STATES:
        raise LqError(f"layer '{name}': an RNN of {type(cell).__name__} is not known to lqconvert")
    functions = {
        "activation": activation_name(cell),
        "gates": getattr(getattr(cell, "recurrent_activation", None), "__name__", "sigmoid"),
    }
    if is_keras3(layer):
        functions = {key: f"{x}_3" if x == "hard_sigmoid" else x for key, x in functions.items()}
    mask = mask_of(x)
    if functions["activation"] in FUNCTIONS and functions["gates"] in BOUNDED:
        fused = kind == "LSTM" and mask is None and [*functions.values()] == ["tanh", "sigmoid"]
        settings = (
            functions
            if mask is None
            else functions
            | {
                "masked": True,
                "zeroes_masked": bool(getattr(layer, "zero_output_for_mask", False)),
            }
        )
        cls = LSTMStates if fused else STATES[kind]
        return _in_two_parts(cell, config, x, cls, settings, name, unique)
    if mask is not None:
        raise LqError(f"layer '{name}': masks for the activations {', '.join(functions.values())}")
    # With fake quantization, the converter fails on fused float kernels.
    changes: dict[str, Any] = {
        "activation": functions["activation"],
        "dropout": 0.0,
        "recurrent_dropout": 0.0,
    }
    inner = copy_of(cell, f"{name}_cell", getattr(keras_layers, f"{kind}Cell"), **changes)
    settings = {key: config[key] for key in ("return_sequences", "go_backwards", "unroll")}
    copy = keras_layers.RNN(inner, name=name, **settings)
    y = copy(x)
    copy.set_weights(weights_of(cell))
    return y


def _in_two_parts(
    cell: Any,
    config: dict[str, Any],
    x: Any,
    cls: type[RecurrentStates],
    settings: dict[str, Any],
    name: str,
    unique: Unique,
) -> Any:
    """A recurrent layer as its product with the inputs, and the loop over steps."""
    units, mask = cell.units, mask_of(x)
    if config["go_backwards"]:
        x = _backwards(x, name, unique)
        mask = None if mask is None else _backwards(mask, f"{name}_mask", unique)
    kernel, recurrent, *biases = weights_of(cell)
    if cls is GRUStates:
        settings = settings | {"reset_after": cell.reset_after}
        if biases and cell.reset_after:
            settings["use_bias"] = True
            biases = list(biases[0])  # of inputs, and of states
    states = cls(units, name=name if config["return_sequences"] else unique(f"{name}_states"), **settings)
    inputs = RecurrentInputs(states.sums * units, use_bias=cell.use_bias, name=unique(f"{name}_inputs"))
    sums = inputs(x)
    if mask is not None:
        sums = MaskedInputs(name=unique(f"{name}_masked"))([sums, mask])
    y = states(sums)
    inputs.set_weights([kernel, *biases[:1]])
    states.kernel.assign(recurrent)
    if states.use_bias:
        states.bias.assign(biases[1])
    if config["return_sequences"]:
        return y
    last = Slice([(-1, None, None), (None, None, None)], name=unique(f"{name}_last"))(y)
    return keras_layers.Reshape((units,), name=name)(last)


def _bidirectional(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    mode = config["merge_mode"]
    parts = []
    for part, inner in (("forward", layer.forward_layer), ("backward", layer.backward_layer)):
        y = _recurrent(inner, inner.get_config(), x, unique(f"{name}_{part}"), unique)
        if part == "backward" and inner.get_config()["return_sequences"]:
            y = _backwards(y, name, unique)
        parts.append(y)
    if mode == "concat":
        return keras_layers.Concatenate(name=name)(parts)
    if mode == "mul":
        return keras_layers.Multiply(name=name)(parts)
    if mode in ("sum", "ave"):
        return summed(parts, name, unique, average=mode == "ave")
    raise LqError(f"layer '{name}': Bidirectional with merge_mode {mode}")


#: The rule for each kind of layer, by the kind's name.
RECURRENT_RULES: dict[str, Twin] = {
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN", "RNN"), _recurrent),
    "Bidirectional": _bidirectional,
}
