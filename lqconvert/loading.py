"""From a model file to one flat functional tf_keras model.

Files of both Keras generations are read: what the file itself says decides which Keras loads it. Either
way the loaded model is rebuilt in tf_keras, layer by layer, and must give the same outputs.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras

from lqconvert.errors import LqError
from lqconvert.twins import HardSwish, added, twin
from lqconvert.vetting import MODELS, read_config, refuse_unknown

log = logging.getLogger("lqconvert")


def load_model(path: str | Path) -> tf_keras.Model:
    """Reads a Keras model (.h5, .keras or a SavedModel folder) as a flat functional float32 tf_keras model.

    Nothing in the file is executed: layers outside the known set are refused before Keras sees them.

    Raises:
        LqError: if the file cannot be read, has no model in it, or a layer of it is not known.
    """
    path = Path(path)
    config, version = read_config(path)
    if config is not None:
        refuse_unknown(config)
    loaded = _load(path, config, version)
    for layer in loaded.layers:
        for weight in layer.weights:
            if not np.all(np.isfinite(np.asarray(weight))):
                raise LqError(f"{path}: layer '{layer.name}' has NaN or infinite weights ({weight.name})")
    model = rebuild(loaded)
    _check_equal(loaded, model)
    return model


def _load(path: Path, config: dict[str, Any] | None, version: str) -> Any:
    def with_tf_keras() -> Any:
        return tf_keras.models.load_model(path, compile=False, custom_objects={"HardSwish": HardSwish})

    def with_keras3() -> Any:
        os.environ.setdefault("KERAS_BACKEND", "tensorflow")
        import keras

        return keras.models.load_model(path, compile=False)

    loaders = [with_keras3, with_tf_keras] if version.startswith("3") else [with_tf_keras, with_keras3]
    errors = []
    for loader in loaders:
        try:
            return loader()
        except Exception as error:  # whatever a damaged file makes Keras raise
            log.debug("%s: %s", loader.__name__, error)
            errors.append(error)
    reason = str(errors[0]).strip().splitlines() or ["unknown"]
    raise LqError(f"{path}: Keras cannot load the model: {reason[0][:200]}")


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


def _check_equal(loaded: Any, rebuilt: tf_keras.Model) -> None:
    rng = np.random.default_rng(0)
    inputs = [
        rng.normal(size=(4, *(n or 32 for n in x.shape[1:]))).astype(np.float32) for x in rebuilt.inputs
    ]
    x: Any = inputs if len(inputs) > 1 else inputs[0]
    pairs = zip(_tensors(loaded(x, training=False)), _tensors(rebuilt(x, training=False)), strict=True)
    for before, after in pairs:
        before, after = np.asarray(before), np.asarray(after)
        difference = float(np.max(np.abs(before - after)))
        log.debug("rebuilt in tf_keras: max difference %.3g", difference)
        if not difference <= 1e-4 * (1 + np.max(np.abs(before))):
            raise LqError(f"the model rebuilt in tf_keras differs from the file's by {difference:.3g}")
