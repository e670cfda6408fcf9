"""Loads a model file as one flat functional tf_keras model.

Files of both generations of Keras are read. The file's content decides which Keras loads it. In both cases
the loaded model is rebuilt in tf_keras, layer by layer, and must give the same outputs.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from lqconvert.errors import LqError, about, first_line
from lqconvert.keras_loader.archive_checks import unpack_weights, weight_count
from lqconvert.keras_loader.build import Source, build_with_keras3, build_with_tf_keras
from lqconvert.keras_loader.config_checks import (
    MODELS,
    read_config,
    refuse_endless,
    refuse_unknown,
    uncompiled,
)
from lqconvert.keras_loader.custom_layers import MergeSteps, SplitSteps
from lqconvert.keras_loader.in_memory import ModelLike, as_file
from lqconvert.keras_loader.layer_kinds import kind_of
from lqconvert.keras_loader.layer_rules import replace_layer
from lqconvert.keras_loader.limits import (
    MOST_CALLS,
    MOST_VALUES,
    Cost,
    check_tensors,
    limited_weights,
    measure,
    refuse_calls,
)
from lqconvert.keras_loader.masks import AttentionMasks, carry_mask, carry_query_mask, given_mask, with_mask
from lqconvert.keras_loader.op_rules import is_tensor, operate
from lqconvert.keras_loader.recurrent_layers import StepMask

log = logging.getLogger("lqconvert")

#: A layer that is called several times has its weights as often in the rebuilt model. So the rebuilt model
#: may have a multiple of the file's weights, or this number in all (and REBUILT times that, see
#: :func:`.limits.limited_weights`).
SHARED, SHARED_WEIGHTS = 4, 1 << 24
#: One model at a time: much of Keras's state is shared by all threads.
LOADING = threading.RLock()
#: The module of Keras 3's operations, which are no layers.
OPS = "keras.src.ops"


def load_model(
    model: ModelLike, *, input_shape: tuple[int, ...] | None = None, trust_model: bool = False
) -> tf_keras.Model:
    """Loads a Keras model as a flat functional float32 tf_keras model.

    Nothing in a file is executed: unknown layers are refused before Keras reads them. A model in memory has
    to pass the same checks, and is not changed.

    Args:
        model: a .h5 or .keras file, a SavedModel folder, or a model of Keras 3 or tf_keras in memory.
        input_shape: the input's shape without the batch axis, for a model with unknown sizes in it.
        trust_model: allow Keras to run the Python code of Lambda layers, with your rights.

    Raises:
        LqError: if the model cannot be read, or one of its layers is not known.
    """
    with as_file(model) as path:
        return _checked(path, input_shape, trust_model)


def model_config(model: ModelLike) -> dict[str, Any]:
    """The config in a model's file, see :func:`.config_checks.read_config`."""
    with as_file(model) as path:
        return read_config(path)[0]


#: Tensors of a call that are no inputs.
MASKS = {"mask", "attention_mask", "query_mask", "value_mask", "key_mask", "initial_state", "constants"}


def _checked(path: Path, input_shape: tuple[int, ...] | None, trust_model: bool) -> tf_keras.Model:
    config, version = read_config(path)
    try:
        refuse_unknown(config, trust_model)
        refuse_calls(config)
        with LOADING:
            return _load(path, config, version, input_shape, trust_model)
    except LqError as error:
        raise LqError(about(path, error), hint=error.hint) from error
    except Exception as error:  # an unusual model makes Keras raise anything
        log.debug("%s", error, exc_info=True)
        raise LqError(f"{path}: the model cannot be rebuilt in tf_keras: {first_line(error)}") from error


def _load(
    path: Path,
    config: dict[str, Any],
    version: str,
    input_shape: tuple[int, ...] | None,
    trusted: bool,
) -> tf_keras.Model:
    with tempfile.TemporaryDirectory() as folder:
        weights = unpack_weights(path, Path(folder))
        try:
            count = weight_count(weights, attributes=weights != path)  # an .h5's are checked already
        except LqError as error:
            raise LqError(str(error).replace(str(weights), str(path), 1)) from error
        archived, config = weights.parent == Path(folder), uncompiled(config)
        source = Source(config, weights, count, archived=archived, trusted=trusted)
        loaded = _build(source, version)
    for layer in _layers(loaded):
        for weight in layer.weights:
            if not np.all(np.isfinite(np.asarray(weight))):
                raise LqError(f"layer '{layer.name}' has NaN or infinite weights ({weight.name})")
    with limited_weights(max(SHARED * count, SHARED_WEIGHTS)):
        model = rebuild(loaded, input_shape)
    # Operations and attention become several layers, each with an output.
    _check_equal(loaded, model, measure(model, 2 * MOST_VALUES))
    return model


def _build(source: Source, version: str) -> Any:
    """The file's model, loaded by the Keras that saved it, or else by the other one."""
    ways = [(build_with_tf_keras, False), (build_with_keras3, True)]
    if version.startswith("3"):
        ways.reverse()
    if source.weights.is_dir():
        ways = ways[:1]
    errors: list[Exception] = []
    for build, keras3 in ways:
        try:
            refuse_endless(source.config, keras3)
            return build(source)
        except Exception as error:  # a damaged file makes Keras raise anything
            log.debug("%s: %s", build.__name__, error)
            errors.append(error)
    refusals = [error for error in errors if isinstance(error, LqError)]
    raise refusals[0] if refusals else LqError(f"Keras cannot load the model: {first_line(errors[0])}")


def _layers(model: Any) -> list[Any]:
    """All layers that are no models, including those in nested models."""
    parts = [_layers(layer) if hasattr(layer, "layers") else [layer] for layer in model.layers]
    return [layer for part in parts for layer in part]


def rebuild(model: Any, input_shape: tuple[int, ...] | None = None) -> tf_keras.Model:
    """Rebuilds a Sequential or functional model of either Keras as a flat functional tf_keras model.

    Nested models are replaced by their layers. A layer that is called several times becomes several layers.

    Args:
        input_shape: the input's shape without the batch axis, if the model has unknown sizes in it.
    """
    names: set[str] = set()

    def unique(name: str) -> str:
        name = name.replace("/", "_")
        if not re.match("[A-Za-z0-9.]", name):  # TensorFlow's scopes must begin with one of these
            name = f"layer{name}"
        base = name
        number = 1
        while name in names:
            name, number = f"{base}_{number}", number + 1
        names.add(name)
        if len(names) > 2 * MOST_CALLS:
            raise LqError(f"the model would become more than {2 * MOST_CALLS:,} layers")
        return name

    def run(part: Any, inputs: list[Any]) -> list[Any]:
        part = getattr(part, "_functional", None) or part  # Keras 3's Sequential contains a Functional
        tensors = {id(key): value for key, value in zip(part.inputs, inputs, strict=True)}

        def rebuilt(value: Any) -> Any:
            """A call's arguments, with rebuilt tensors instead of the loaded model's."""
            if isinstance(value, (list, tuple)):
                return type(value)(rebuilt(each) for each in value)
            return tensors.get(id(value), value)

        for depth in sorted(part._nodes_by_depth, reverse=True):
            for node in part._nodes_by_depth[depth]:
                layer = getattr(node, "operation", None) or node.layer
                kind = type(layer).__name__
                if kind == "InputLayer":
                    continue
                keras3 = hasattr(node, "operation")
                args, kwargs = (
                    (node.arguments.args, node.arguments.kwargs)
                    if keras3
                    else (node.call_args, node.call_kwargs)
                )
                args, kwargs = rebuilt(tuple(args)), {key: rebuilt(v) for key, v in kwargs.items()}
                mask = given_mask(kwargs)
                if kind in ("TFOpLambda", "SlicingOpLambda") or type(layer).__module__.startswith(OPS):
                    results = _tensors(operate(layer, args, kwargs, unique(layer.name), unique))
                elif kind == "TimeDistributed" and hasattr(layer.layer, "layers"):
                    if any(kind_of(each).recurrent for each in _layers(layer.layer)):
                        raise LqError(f"layer '{layer.name}': TimeDistributed of a recurrent model")
                    (x,) = _inputs_of(layer, args, kwargs)
                    merged = MergeSteps(name=unique(f"{layer.name}_merged"))(x)
                    parts = run(layer.layer, [merged])
                    results = [SplitSteps(x.shape[1], name=unique(layer.name))(part) for part in parts]
                elif kind == "Identity":
                    results = _inputs_of(layer, args, kwargs)
                elif hasattr(layer, "_nodes_by_depth") or kind in MODELS:
                    results = run(layer, _inputs_of(layer, args, kwargs, mask))
                else:
                    masks = _attention_masks(layer, args, kwargs)
                    _check_call(layer, kwargs)
                    values = _inputs_of(layer, args, kwargs, mask)
                    value = values if len(values) > 1 else values[0]
                    made = replace_layer(layer, value, unique(layer.name), unique, masks=masks)
                    results = _tensors(made)
                    if masks is None:
                        carry_mask(layer, values, results[0])
                    else:
                        carry_query_mask(layer, values, masks, results[0])
                check_tensors([result for result in results if is_tensor(result)])
                outputs = _tensors(node.output_tensors if keras3 else node.outputs)
                tensors |= {id(output): result for output, result in zip(outputs, results, strict=True)}
        return [tensors[id(output)] for output in part.outputs]

    shapes = _input_shapes(model, input_shape)
    inputs = [
        tf_keras.Input(shape, name=unique(str(tensor.name).split(":")[0]), dtype=_input_type(model, tensor))
        for shape, tensor in zip(shapes, model.inputs, strict=True)
    ]
    check_tensors(inputs)
    outputs = run(model, inputs)
    for loaded, output in zip(model.outputs, outputs, strict=True):
        _name_output(loaded, output, unique)
    single = len(outputs) == 1
    # A fixed name, because Keras's counter would get into the exported file.
    return tf_keras.Model(
        inputs if len(inputs) > 1 else inputs[0], outputs[0] if single else outputs, name="model"
    )


def _attention_masks(layer: Any, args: Any, kwargs: dict[str, Any]) -> AttentionMasks | None:
    """The masks of a call of attention, which are removed from the arguments; None of another layer."""
    if not kind_of(layer).attends:
        return None
    inputs = {key: value for key, value in kwargs.items() if key not in MASKS}
    return AttentionMasks.of(layer, _inputs_of(layer, args, inputs), kwargs)


def _inputs_of(layer: Any, args: Any, kwargs: dict[str, Any], mask: Any = None) -> list[Any]:
    """The tensors among the arguments of a layer's call, the first one with a mask if one is given."""
    named = [*args, *kwargs.values()]
    # The key follows the value, whatever the arguments' order.
    if kind_of(layer).name in ("MultiHeadAttention", "GroupQueryAttention"):
        named = list(inspect.signature(layer.call).bind(*args, **kwargs).arguments.values())
    given = [value for value in named if _holds_tensors(value)]
    tensors = list(given[0]) if isinstance(given[0], (list, tuple)) else given
    if mask is not None:
        with_mask(tensors[0], mask)
    return tensors


def _name_output(loaded: Any, output: Any, unique: Callable[[str], str]) -> None:
    """Gives an output the name of the Identity layer that stood behind it, which the rebuilt model lacks."""
    history = loaded._keras_history
    identity = getattr(history, "operation", None) or history.layer
    layer = output._keras_history.layer
    if type(identity).__name__ == "Identity" and not isinstance(layer, tf_keras.layers.InputLayer):
        layer._name = unique(identity.name)


def _check_call(layer: Any, kwargs: dict[str, Any]) -> None:
    """Refuses a layer that is called with more than tensors, such as return_attention_scores=True."""
    for name in MASKS & kwargs.keys():
        if kwargs[name] is not None:
            raise LqError(f"layer '{layer.name}': it is called with {name}, which is not supported")
    for name, value in kwargs.items():
        if name != "training" and value is not None and value is not False and not _holds_tensors(value):
            raise LqError(f"layer '{layer.name}': it is called with {name}={value}, which is not supported")


def _holds_tensors(value: Any) -> bool:
    """Whether an argument of a call is a tensor or, as far as its type tells, a list of tensors."""
    return isinstance(value, (list, tuple)) or is_tensor(value)


def _input_shapes(model: Any, input_shape: tuple[int, ...] | None) -> list[tuple[int, ...]]:
    """The shapes of the inputs without the batch axis. All sizes are known."""
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    if input_shape is not None:
        fits = len(shapes) == 1 and len(shapes[0]) == len(input_shape)
        if not fits or any(n not in (None, m) for n, m in zip(shapes[0], input_shape, strict=True)):
            raise LqError(f"input shape {input_shape} does not fit the model's {', '.join(map(str, shapes))}")
        shapes = [input_shape]
    for shape in shapes:
        if None in shape:
            raise LqError(f"the model takes inputs of unknown size {shape}", hint="input_shape")
    return shapes


def _input_type(model: Any, tensor: Any) -> str:
    """int32 for an input of indices, otherwise float32."""
    return "int32" if _holds_indices(model, tensor) else "float32"


def _holds_indices(model: Any, tensor: Any) -> bool:
    """Whether a layer that takes indices reads an input of a model, also in a nested model."""
    part = getattr(model, "_functional", None) or model
    for nodes in part._nodes_by_depth.values():
        for node in nodes:
            layer = getattr(node, "operation", None) or node.layer
            sources = _tensors(node.input_tensors if hasattr(node, "operation") else node.keras_inputs)
            places = [place for place, source in enumerate(sources) if source is tensor]
            if not places:
                continue
            if kind_of(layer).takes_indices:
                return True
            inner = getattr(layer, "_functional", None) or layer
            if hasattr(inner, "_nodes_by_depth") and any(
                _holds_indices(inner, inner.inputs[n]) for n in places
            ):
                return True
    return False


def _tensors(value: Any) -> list[Any]:
    """The tensors in a structure. Those of a dict are sorted by name, as in Keras."""
    if isinstance(value, dict):
        return [value[name] for name in sorted(value)]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _check_equal(loaded: Any, rebuilt: tf_keras.Model, cost: Cost) -> None:
    # With float16 or bfloat16, the loaded model computes less exactly than the rebuilt one.
    halves = any("float16" in str(layer.compute_dtype) for layer in _layers(loaded))
    tolerance = 3e-2 if halves else 1e-3
    inputs = random_inputs(rebuilt, batch=cost.examples(4))
    wanted, found = _both(loaded, rebuilt, inputs, cost)
    if not all(np.isfinite(each).all() for each in wanted):  # a logarithm, for example
        wanted, found = _both(loaded, rebuilt, [abs(x) + x.dtype.type(0.1) for x in inputs], cost)
    for before, after in zip(wanted, found, strict=True):
        defined = np.isfinite(before)
        before, after = before[defined], after[defined]
        difference = float(np.max(np.abs(before - after), initial=0.0))
        log.debug("rebuilt in tf_keras: max difference %.3g", difference)
        # float32 sums in another order. Relative, because a softmax over 1,000 classes has small values.
        if not difference <= tolerance * (np.max(np.abs(before), initial=0.0) + 1e-6):
            raise LqError(f"the model rebuilt in tf_keras differs from the file's by {difference:.3g}")


def _both(loaded: Any, rebuilt: Any, inputs: list[np.ndarray], cost: Cost) -> list[list[np.ndarray]]:
    """The outputs of both models."""
    x: Any = inputs if len(inputs) > 1 else inputs[0]
    return [outputs_of(model, x, loops=cost.steps > 0) for model in (loaded, rebuilt)]


def outputs_of(model: Any, inputs: Any, *, loops: bool) -> list[np.ndarray]:
    """The outputs of a model of either Keras for an input, or for a list of inputs.

    Args:
        loops: the model has recurrent layers. A graph takes a twentieth of the time for a step, but time
            to make.
    """
    run = functools.partial(model, training=False)
    return [np.asarray(y) for y in _tensors(tf.function(run)(inputs) if loops else run(inputs))]


def random_inputs(model: tf_keras.Model, batch: int, seed: int = 0) -> list[np.ndarray]:
    """Random inputs for the model: normal float32, or indices (int32) for an Embedding."""
    rng = np.random.default_rng(seed)
    vocabularies = {
        tensor.name: layer.input_dim
        for layer in model.layers
        if isinstance(layer, tf_keras.layers.Embedding)
        for tensor in _tensors(layer.input)
    }
    inputs = [
        rng.integers(0, vocabularies.get(x.name, 2), (batch, *x.shape[1:])).astype(np.int32)
        if x.dtype == tf.int32
        else rng.normal(size=(batch, *x.shape[1:])).astype(np.float32)
        for x in model.inputs
    ]
    # Some steps are masked, at the beginning, at the end and between.
    masked = {layer.input.name: layer.value for layer in model.layers if isinstance(layer, StepMask)}
    for tensor, values in zip(model.inputs, inputs, strict=True):
        if tensor.name in masked:
            values[rng.random(values.shape[:2]) < 0.3] = masked[tensor.name]
    return inputs
