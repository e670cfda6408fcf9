"""Reads SavedModels as data: no graph is loaded, no function is run, and no object is restored.

Keras's metadata have the model's config, from which the model is built as for any other file. The checkpoint
has the weights, and a graph of objects that assigns them to layers. Nothing else is read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lqconvert.errors import LqError
from lqconvert.keras_loader.tensor_bundle import Bundle
from lqconvert.utils.input_files import read_bytes

METADATA = "keras_metadata.pb"
#: The size limit of Keras's metadata, which repeat the config of each layer for each model around it.
LARGEST_METADATA = 64 << 20
#: The size limit of a checkpoint's graph of objects. A network of a thousand layers has half a megabyte.
LARGEST_GRAPH = 16 << 20
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
IDENTIFIERS = {"_tf_keras_network", "_tf_keras_model", "_tf_keras_sequential"}
LAYER = re.compile(r"layer(_with_weights)?-\d+")


def saved_config(folder: Path) -> str:
    """The config of the model in a SavedModel, as JSON text that also has other keys.

    Raises:
        LqError: as for :func:`read_metadata`, or if it is no Keras model.
    """
    for path, identifier, text in read_metadata(folder):
        if path == "root" and identifier in IDENTIFIERS:
            return text
    raise LqError(f"{folder}: a SavedModel, but not of a Keras model")


def read_metadata(folder: Path) -> list[tuple[str, str, str]]:
    """(path, identifier, JSON) of the objects that Keras saved. The path leads through the graph of objects.

    Raises:
        LqError: if the folder is no SavedModel of a Keras model, or is damaged.
    """
    from tf_keras.protobuf import saved_metadata_pb2

    if not (folder / METADATA).is_symlink() and not (folder / METADATA).exists():
        if (folder / "saved_model.pb").exists():
            raise LqError(
                f"{folder}: a SavedModel without Keras's description of the model (export() or another "
                "program made it); save the model with model.save('model.keras')"
            )
        raise LqError(f"{folder}: a folder, but not the SavedModel of a Keras model")
    message = saved_metadata_pb2.SavedMetadata()
    try:
        message.ParseFromString(read_bytes(folder / METADATA, LARGEST_METADATA))
    except LqError as error:
        raise LqError(f"{folder}: {str(error).removeprefix(f'{folder}/')}") from error
    except Exception as error:  # protobuf's DecodeError
        raise LqError(f"{folder}: {METADATA} is damaged") from error
    return [(node.node_path, node.identifier, node.metadata) for node in message.nodes]


def open_checkpoint(folder: Path) -> Bundle:
    """The weights of a SavedModel.

    Raises:
        LqError: if they are damaged.
    """
    return Bundle(folder / "variables" / "variables")


def count_numbers(folder: Path) -> int:
    """The number of values in a SavedModel's checkpoint. Each has at least one byte."""
    entries = open_checkpoint(folder).entries.values()
    return sum(min(math.prod(entry.shape), entry.size) for entry in entries)


def load_checkpoint(model: Any, folder: Path) -> None:
    """Sets each weight of a tf_keras model to its value in the checkpoint of its SavedModel.

    Raises:
        LqError: unless each weight has a value of its own, with its shape and type. (A layer in several
            models is built several times, and has its values in each.)
    """
    bundle = open_checkpoint(folder)
    graph = _Graph(bundle)
    names = {}
    for path, _, text in read_metadata(folder):
        node = graph.find(path)
        if node is not None:
            names[node] = _name(text)
    weights = {id(weight): weight for weight in model.weights}
    values: dict[int, str] = {}
    owners: dict[str, dict[int, set[tuple[int, str]]]] = {}
    for weight, key, owner in _matched(model, graph, names):
        if id(weight) in weights and values.setdefault(id(weight), key) != key:
            raise LqError(f"the weight '{weight.name}' has two values in the checkpoint")
        owners.setdefault(key, {}).setdefault(id(weight), set()).add(owner)
    if not all(set.intersection(*places.values()) for places in owners.values()):
        raise LqError("two weights have the same value in the checkpoint")
    for identity, weight in weights.items():
        entry = bundle.entries.get(values.get(identity, ""))
        if entry is None or (entry.shape, entry.kind) != (tuple(weight.shape), weight.dtype.as_datatype_enum):
            raise LqError(f"the checkpoint has no value of shape {weight.shape} for '{weight.name}'")
    for identity, weight in weights.items():
        weight.assign(bundle.array(values[identity]))
    for layer in model._flatten_layers():
        layer.finalize_state()


class _Graph:
    """The objects in a checkpoint, and which of them hold which others, by the names of attributes."""

    def __init__(self, bundle: Bundle) -> None:
        from tensorflow.core.protobuf import trackable_object_graph_pb2

        graph = trackable_object_graph_pb2.TrackableObjectGraph()
        try:
            graph.ParseFromString(bundle.text(GRAPH, LARGEST_GRAPH))
        except LqError:
            raise
        except Exception as error:  # protobuf's DecodeError
            raise LqError(f"{bundle.index}: the graph of objects is damaged") from error
        count = len(graph.nodes)
        self.children = [
            {child.local_name: child.node_id for child in node.children if 0 <= child.node_id < count}
            for node in graph.nodes
        ]
        self.keys = [
            next((each.checkpoint_key for each in node.attributes if each.name == "VARIABLE_VALUE"), None)
            for node in graph.nodes
        ]

    def find(self, path: str) -> int | None:
        """The object at a path of names that begins at the root."""
        node: int | None = 0 if self.children else None
        for name in path.split(".")[1:]:
            node = None if node is None else self.children[node].get(name)
        return node


def _matched(model: Any, graph: _Graph, names: dict[int, str]) -> Iterator[tuple[Any, str, tuple[int, str]]]:
    """(weight, key in the checkpoint, its layer's number and its name there), by names from the root."""
    import tensorflow as tf

    seen = set()
    stack: list[tuple[Any, int, tuple[int, str]]] = [(model, 0, (0, ""))] if graph.children else []
    while stack:
        value, node, owner = stack.pop()
        if isinstance(value, tf.Variable):
            if (key := graph.keys[node]) is not None:
                yield value, key, owner
            continue
        if (id(value), node) in seen or not hasattr(value, "_trackable_children"):
            continue
        seen.add((id(value), node))
        layers = {layer.name: layer for layer in getattr(value, "layers", [])}
        children = {} if layers else value._trackable_children()
        for name, child in graph.children[node].items():
            # Layers of a model are found by name, because their numbers depend on the program that saved
            # them.
            inner = layers.get(names.get(child, "")) if LAYER.fullmatch(name) else children.get(name)
            if inner is not None:
                stack.append((inner, child, (node, name)))


def _name(text: str) -> str:
    try:
        return str(json.loads(text).get("name"))
    except (ValueError, AttributeError, RecursionError):
        return ""
