"""What a model file says of itself, read without Keras: nothing is executed, what is unknown is refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import h5py

from lqconvert.errors import LqError
from lqconvert.operations import KERAS3, TENSORFLOW
from lqconvert.twins import CUSTOM_LAYERS, DROPPED, LAYERS

MODELS = {"Sequential", "Functional", "Model"}


def read_config(path: Path) -> tuple[dict[str, Any] | None, str]:
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


def refuse_unknown(config: dict[str, Any]) -> None:
    kind = str(config.get("class_name"))
    inner = config.get("config")
    if kind not in MODELS:
        raise LqError(f"the model is a {kind}, not a Sequential or functional model: it cannot be rebuilt")
    layers = inner.get("layers", []) if isinstance(inner, dict) else inner
    for layer in layers or []:
        kind, layer_config = str(layer.get("class_name")).split(">")[-1], layer.get("config") or {}
        name = layer_config.get("name", layer.get("name", "?")) if isinstance(layer_config, dict) else "?"
        if kind in MODELS:
            refuse_unknown(layer)
            continue
        module = str(layer.get("module") or "keras").split(".")[0]
        operation = layer_config.get("function") if kind in ("TFOpLambda", "SlicingOpLambda") else None
        known = kind in LAYERS | DROPPED | {*CUSTOM_LAYERS, *KERAS3} or operation in TENSORFLOW
        if not known or module not in ("keras", "tf_keras", "lqconvert"):
            raise LqError(f"layer '{name}' ({operation or kind}): this layer is not known to lqconvert")
        if layer_config.get("data_format") == "channels_first":
            raise LqError(f"layer '{name}': data_format channels_first; build the model with channels_last")
