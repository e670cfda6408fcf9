"""From a model file to one flat functional tf_keras model.

Files of both Keras generations are read: what the file itself says decides which Keras loads it. Either
way the loaded model is rebuilt in tf_keras, layer by layer, and must give the same outputs.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras.utils import register_keras_serializable

from lqconvert.errors import LqError

log = logging.getLogger("lqconvert")

MODELS = {"Sequential", "Functional", "Model"}
DROPPED = {
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "GaussianNoise",
    "GaussianDropout",
    "ActivityRegularization",
}
LAYERS = {
    *("InputLayer", "Dense", "Conv1D", "Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose"),
    *("Convolution2D", "BatchNormalization", "Activation", "ReLU", "LeakyReLU", "Softmax", "MaxPooling1D"),
    *(
        "MaxPooling2D",
        "AveragePooling1D",
        "AveragePooling2D",
        "GlobalAveragePooling1D",
        "GlobalAveragePooling2D",
    ),
    *("GlobalMaxPooling1D", "GlobalMaxPooling2D", "Add", "Subtract", "Multiply", "Average", "Concatenate"),
    *("Flatten", "Reshape", "Permute", "ZeroPadding1D", "ZeroPadding2D", "Cropping1D", "Cropping2D"),
    *("UpSampling1D", "UpSampling2D", "HardSwish"),
}
#: tf.add and friends between two tensors, as tf_keras and Keras 3 write them into a functional graph.
OPERATIONS = {
    "__operators__.add": "Add",
    "math.add": "Add",
    "__operators__.sub": "Subtract",
    "math.subtract": "Subtract",
    "__operators__.mul": "Multiply",
    "math.multiply": "Multiply",
}
ACTIVATIONS = {"linear", "relu", "sigmoid", "tanh", "softmax"}


@register_keras_serializable("lqconvert")
class HardSwish(tf_keras.layers.Layer):
    """x * relu6(x + 3) / 6, written as TFLite's converter recognizes it for its HARD_SWISH kernel."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs * tf.nn.relu6(inputs + 3.0) * (1.0 / 6.0)


def load_model(path: str | Path) -> tf_keras.Model:
    """Reads a Keras model (.h5, .keras or a SavedModel folder) as a flat functional float32 tf_keras model.

    Nothing in the file is executed: layers outside the known set are refused before Keras sees them.

    Raises:
        LqError: if the file cannot be read, has no model in it, or a layer of it is not known.
    """
    path = Path(path)
    config, version = _read_config(path)
    if config is not None:
        _refuse_unknown(config)
    loaded = _load(path, config, version)
    for layer in loaded.layers:
        for weight in layer.weights:
            if not np.all(np.isfinite(np.asarray(weight))):
                raise LqError(f"{path}: layer '{layer.name}' has NaN or infinite weights ({weight.name})")
    model = rebuild(loaded)
    _check_equal(loaded, model)
    return model


def _read_config(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The model's config and the version of Keras that saved it, read without Keras."""
    if not path.exists():
        raise LqError(f"{path}: no such file")
    if path.is_dir():
        if not (path / "keras_metadata.pb").exists():
            raise LqError(f"{path}: a folder, but not the SavedModel of a Keras model")
        return _saved_model_config(path), "2"
    if path.stat().st_size == 0:
        raise LqError(f"{path}: the file is empty")
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                config = json.loads(archive.read("config.json"))
                version = json.loads(archive.read("metadata.json")).get("keras_version", "3")
        except (KeyError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise LqError(f"{path}: not a Keras model archive ({error})") from error
        return config, version
    try:
        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
            version = file.attrs.get("keras_version", "2")
    except OSError as error:
        raise LqError(
            f"{path}: not a Keras model, or truncated (neither HDF5 nor a .keras archive)"
        ) from error
    if text is None:
        raise LqError(f"{path}: weights without a model; save the whole model with model.save(...)")
    return json.loads(text), str(version.decode() if isinstance(version, bytes) else version)


def _saved_model_config(path: Path) -> dict[str, Any]:
    from tf_keras.protobuf import saved_metadata_pb2

    metadata = saved_metadata_pb2.SavedMetadata()
    metadata.ParseFromString((path / "keras_metadata.pb").read_bytes())
    nodes = [json.loads(node.metadata) for node in metadata.nodes if node.identifier == "_tf_keras_layer"]
    return {"class_name": "Functional", "config": {"name": path.name, "layers": nodes}}


def _refuse_unknown(config: dict[str, Any]) -> None:
    kind = str(config.get("class_name"))
    inner = config.get("config")
    if kind not in MODELS:
        raise LqError(f"the model is a {kind}, not a Sequential or functional model: it cannot be rebuilt")
    layers = inner.get("layers", []) if isinstance(inner, dict) else inner
    for layer in layers or []:
        kind, layer_config = str(layer.get("class_name")).split(">")[-1], layer.get("config") or {}
        name = layer_config.get("name", layer.get("name", "?")) if isinstance(layer_config, dict) else "?"
        if kind in MODELS:
            _refuse_unknown(layer)
            continue
        module = str(layer.get("module") or "keras").split(".")[0]
        operation = layer_config.get("function") if kind == "TFOpLambda" else None
        known = kind in LAYERS | DROPPED or operation in OPERATIONS
        if not known or module not in ("keras", "tf_keras", "lqconvert"):
            raise LqError(f"layer '{name}' ({operation or kind}): this layer is not known to lqconvert")
        if layer_config.get("data_format") == "channels_first":
            raise LqError(f"layer '{name}': data_format channels_first; build the model with channels_last")


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


def _activation_name(layer: Any) -> str:
    return getattr(getattr(layer, "activation", None), "__name__", "linear")


def _twin(layer: Any, name: str) -> list[tf_keras.layers.Layer]:
    """The tf_keras layers that do what a layer of either Keras does (none for identity)."""
    kind, config = type(layer).__name__, layer.get_config()
    if kind in DROPPED:
        return []
    kind = OPERATIONS.get(config.get("function", ""), kind)
    if kind == "HardSwish":
        return [HardSwish(name=name)]
    activation = _activation_name(layer)
    tail: list[tf_keras.layers.Layer] = []
    if kind == "ReLU" and (config.get("negative_slope") or 0):
        return [tf_keras.layers.LeakyReLU(config["negative_slope"], name=name)]
    if kind == "LeakyReLU":
        return [tf_keras.layers.LeakyReLU(config.get("negative_slope", config.get("alpha")), name=name)]
    if activation == "relu6":
        tail = [tf_keras.layers.ReLU(6.0, name=f"{name}_relu6" if kind != "Activation" else name)]
    elif activation in ("hard_silu", "hard_swish"):
        tail = [HardSwish(name=f"{name}_hard_swish" if kind != "Activation" else name)]
    elif activation == "leaky_relu":
        tail = [tf_keras.layers.LeakyReLU(0.2, name=f"{name}_leaky_relu" if kind != "Activation" else name)]
    elif activation not in ACTIVATIONS:
        raise LqError(f"layer '{name}' ({kind}): activation '{activation}' is not known to lqconvert")
    if tail and kind == "Activation":
        return tail
    cls = getattr(tf_keras.layers, kind)
    accepted = set(inspect.signature(cls.__init__).parameters)
    plain = {
        key: value
        for key, value in config.items()
        if key in accepted
        and key not in ("dtype", "name")
        and not key.endswith(("initializer", "regularizer", "constraint"))
    }
    if "activation" in plain:
        plain["activation"] = "linear" if tail else activation
    return [cls(name=name, **plain), *tail]


def _added(layer: Any, values: list[Any], unique: Callable[[str], str]) -> Any:
    """Add or Average of any number of tensors by TFLite's means: sums of two, and a factor."""
    total, name = values[0], unique(layer.name)
    average = type(layer).__name__ == "Average"
    for number, value in enumerate(values[1:], start=2):
        last = number == len(values) and not average
        total = tf_keras.layers.Add(name=name if last else unique(f"{name}_{number}"))([total, value])
    if average:
        factor = tf_keras.layers.BatchNormalization(center=False, epsilon=0.0, name=name)
        total = factor(total)
        ones = np.ones(total.shape[-1], np.float32)
        factor.set_weights([ones / len(values), 0 * ones, ones])
    return total


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
                    results = [_added(layer, values, unique)]
                else:
                    value = values if len(values) > 1 else values[0]
                    for twin in _twin(layer, unique(layer.name)):
                        value = twin(value)
                        if twin.weights:
                            twin.set_weights([np.asarray(weight) for weight in layer.weights])
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
