"""From a model file to one flat functional tf_keras model.

Files of both Keras generations are read: what the file itself says decides which Keras loads it. Either
way the loaded model is rebuilt in tf_keras, layer by layer, and must give the same outputs.
"""

from __future__ import annotations

import logging
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras

from lqconvert.bounds import UNKNOWN, Cost, bounded
from lqconvert.errors import LqError, first_line
from lqconvert.stored import weight_count, write_archive
from lqconvert.twins import HardSwish, added, twin
from lqconvert.vetting import MODELS, read_config, refuse_endless, refuse_unknown

log = logging.getLogger("lqconvert")


def load_model(path: str | Path, trust_model: bool = False) -> tf_keras.Model:
    """Reads a Keras model (.h5, .keras or a SavedModel folder) as a flat functional float32 tf_keras model.

    Nothing in the file is executed: layers outside the known set are refused before Keras sees them.

    Args:
        trust_model: let Keras run the Python code of Lambda layers, with the rights of the caller.

    Raises:
        LqError: if the file cannot be read, has no model in it, or a layer of it is not known.
    """
    path = Path(path)
    config, version = read_config(path)
    try:
        refuse_unknown(config, trust_model)
        loaded, cost = _load(path, config, version, trust_model)
        for layer in _layers(loaded):
            if type(layer).__name__ == "Lambda":
                what = "Python code has no integer kernel; replace it by Keras layers"
                raise LqError(f"layer '{layer.name}' (Lambda): {what}")
            for weight in layer.weights:
                if not np.all(np.isfinite(np.asarray(weight))):
                    raise LqError(f"layer '{layer.name}' has NaN or infinite weights ({weight.name})")
        model = rebuild(loaded)
        _check_equal(loaded, model, cost)
    except LqError as error:
        raise LqError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    except Exception as error:  # what an odd but loadable model makes Keras raise
        log.debug("%s", error, exc_info=True)
        raise LqError(f"{path}: the model cannot be rebuilt in tf_keras: {first_line(error)}") from error
    return model


def _load(path: Path, config: dict[str, Any], version: str, trusted: bool) -> tuple[Any, Cost]:
    """The file's model as Keras loads it, within bounds, and what that took."""
    weights = weight_count(path)

    def with_tf_keras(file: Path) -> tuple[Any, Cost]:
        refuse_endless(config, keras3=False)
        known = {"HardSwish": HardSwish}
        with bounded(tf_keras, weights) as cost:
            return tf_keras.models.load_model(
                file, compile=False, custom_objects=known, safe_mode=not trusted
            ), cost

    def with_keras3(file: Path) -> tuple[Any, Cost]:
        refuse_endless(config, keras3=True)
        os.environ.setdefault("KERAS_BACKEND", "tensorflow")
        import keras

        with bounded(keras, weights) as cost:
            return keras.models.load_model(file, compile=False, safe_mode=not trusted), cost

    loaders = [with_keras3, with_tf_keras] if version.startswith("3") else [with_tf_keras, with_keras3]
    if path.is_dir():  # in a folder Keras 3 would look for a config of its own, which is not vetted
        loaders = [with_tf_keras]
    errors: list[Exception] = []
    with tempfile.TemporaryDirectory() as folder:
        file = path
        if zipfile.is_zipfile(path):
            file = Path(folder) / "model.keras"
            write_archive(path, config, file)
        for loader in loaders:
            try:
                return loader(file)
            except Exception as error:  # whatever a damaged file makes Keras raise
                log.debug("%s: %s", loader.__name__, error)
                errors.append(error)
    refusals = [error for error in errors if isinstance(error, LqError)]
    raise refusals[0] if refusals else LqError(f"Keras cannot load the model: {first_line(errors[0])}")


def _layers(model: Any) -> list[Any]:
    """Every layer that is no model, those in nested models, too."""
    parts = [_layers(layer) if hasattr(layer, "layers") else [layer] for layer in model.layers]
    return [layer for part in parts for layer in part]


def rebuild(model: Any) -> tf_keras.Model:
    """A Sequential or functional model of either Keras as a flat functional tf_keras model.

    Nested models are inlined; a layer that is called several times becomes as many layers.
    """
    names: set[str] = set()

    def unique(name: str) -> str:
        base = name = name.replace("/", "_")
        number = 1
        while name in names:
            name, number = f"{base}_{number}", number + 1
        names.add(name)
        return name

    def run(part: Any, inputs: list[Any]) -> list[Any]:
        part = getattr(part, "_functional", None) or part  # Keras 3's Sequential holds a Functional
        tensors = {id(key): value for key, value in zip(part.inputs, inputs, strict=True)}
        for depth in sorted(part._nodes_by_depth, reverse=True):
            for node in part._nodes_by_depth[depth]:
                layer = getattr(node, "operation", None) or node.layer
                # tf_keras: keras_inputs has tensors among keyword arguments too (x + y is add(x, y=y)).
                keras3 = hasattr(node, "operation")
                arguments = _tensors(node.input_tensors if keras3 else node.keras_inputs)
                outputs = _tensors(node.output_tensors if keras3 else node.outputs)
                if type(layer).__name__ == "InputLayer":
                    continue
                values = [tensors[id(tensor)] for tensor in arguments]
                if hasattr(layer, "_nodes_by_depth") or type(layer).__name__ in MODELS:
                    results = run(layer, values)
                elif type(layer).__name__ in ("Add", "Average"):
                    results = [added(layer, values, unique)]
                else:
                    value = values if len(values) > 1 else values[0]
                    for each in twin(layer, unique(layer.name)):
                        value = each(value)
                        if each.weights:
                            each.set_weights([np.asarray(weight) for weight in layer.weights])
                    results = [value]
                tensors |= {id(output): result for output, result in zip(outputs, results, strict=True)}
        return [tensors[id(output)] for output in part.outputs]

    inputs = [
        tf_keras.Input(tensor.shape[1:], name=unique(str(tensor.name).split(":")[0]))
        for tensor in model.inputs
    ]
    outputs = run(model, inputs)
    single = len(outputs) == 1
    # A fixed name: Keras's counter would make its way into the exported file.
    return tf_keras.Model(
        inputs if len(inputs) > 1 else inputs[0], outputs[0] if single else outputs, name="model"
    )


def _tensors(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _check_equal(loaded: Any, rebuilt: tf_keras.Model, cost: Cost) -> None:
    rng = np.random.default_rng(0)
    examples = cost.examples(4)
    inputs = [
        rng.normal(size=(examples, *(n or UNKNOWN for n in x.shape[1:]))).astype(np.float32)
        for x in rebuilt.inputs
    ]
    x: Any = inputs if len(inputs) > 1 else inputs[0]
    pairs = zip(_tensors(loaded(x, training=False)), _tensors(rebuilt(x, training=False)), strict=True)
    for before, after in pairs:
        before, after = np.asarray(before), np.asarray(after)
        difference = float(np.max(np.abs(before - after)))
        log.debug("rebuilt in tf_keras: max difference %.3g", difference)
        if not difference <= 1e-4 * (1 + np.max(np.abs(before))):
            raise LqError(f"the model rebuilt in tf_keras differs from the file's by {difference:.3g}")
