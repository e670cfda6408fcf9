"""Builds a model of either Keras from a checked config and its weights. Nothing else of the file is read.

Layers that Keras would unroll into any number of operations are replaced by guarded ones.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from lqconvert.errors import LqError
from lqconvert.keras_loader.custom_layers import CUSTOM_LAYERS
from lqconvert.keras_loader.layer_kinds import LAYERS
from lqconvert.keras_loader.limits import UNROLLED, check_repeats, limited_weights
from lqconvert.keras_loader.saved_model import load_checkpoint

RECURRENT = [kind.name for kind in LAYERS.values() if kind.recurrent and kind.name != "Bidirectional"]
GUARDED = {*RECURRENT, "UpSampling1D"}


@dataclass(frozen=True)
class Source:
    """A model file that has been checked."""

    config: dict[str, Any]
    weights: Path  # HDF5, or the folder of a SavedModel
    count: int  # the number of weights, as numbers
    archived: bool  # as in .keras files: the config names modules, and weights are stored by layer
    trusted: bool = False  # whether Python code in it may run


def build_with_tf_keras(source: Source) -> Any:
    """The model in tf_keras."""
    import tf_keras
    from tf_keras.src.applications.convnext import LayerScale
    from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer
    from tf_keras.src.saving import serialization_lib
    from tf_keras.src.saving.legacy import hdf5_format, serialization
    from tf_keras.src.saving.legacy.saved_model import json_utils, utils

    own = {"LayerScale": LayerScale, "CustomScaleLayer": CustomScaleLayer, **CUSTOM_LAYERS}
    own |= guarded_layers(tf_keras)
    with ExitStack() as scopes:
        enter = scopes.enter_context
        enter(limited_weights(source.count))
        enter(tf_keras.utils.custom_object_scope(own))
        enter(serialization_lib.SafeModeScope(safe_mode=not source.trusted))
        if source.archived:
            return _from_archive(source, serialization_lib)
        enter(serialization.SharedObjectLoadingScope())
        enter(utils.keras_option_scope(save_traces=False, in_tf_saved_model_scope=True))
        model = tf_keras.models.model_from_config(json_utils.decode(json.dumps(source.config)))
        if source.weights.is_dir():
            load_checkpoint(model, source.weights)
        else:
            with _layer_weights(source, hdf5_format) as group:
                hdf5_format.load_weights_from_hdf5_group(group, model)
        return model


def build_with_keras3(source: Source) -> Any:
    """The model in Keras 3."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras
    from keras.src.applications.convnext import LayerScale
    from keras.src.applications.inception_resnet_v2 import CustomScaleLayer
    from keras.src.legacy.saving import json_utils, legacy_h5_format, saving_options, saving_utils
    from keras.src.saving import serialization_lib

    own = {"LayerScale": LayerScale, "CustomScaleLayer": CustomScaleLayer, **guarded_layers(keras)}
    with ExitStack() as scopes:
        enter = scopes.enter_context
        enter(limited_weights(source.count))
        enter(keras.saving.custom_object_scope(own))
        enter(serialization_lib.SafeModeScope(safe_mode=not source.trusted))
        if source.archived:
            return _from_archive(source, serialization_lib)
        enter(saving_options.keras_option_scope(use_legacy_config=True))
        model = saving_utils.model_from_config(json_utils.decode(json.dumps(source.config)))
        with _layer_weights(source, legacy_h5_format) as group:
            legacy_h5_format.load_weights_from_hdf5_group(group, model)
        return model


def _from_archive(source: Source, serialization_lib: Any) -> Any:
    """The model of a .keras archive, in the Keras with this module."""
    with serialization_lib.ObjectSharingScope():
        # For a model that is not compiled.
        config = {**_guarded(source.config), "compile_config": None}
        model = serialization_lib.deserialize_keras_object(config)
        model.load_weights(str(source.weights))
    return model


@contextmanager
def _layer_weights(source: Source, reader: Any) -> Iterator[Any]:
    """The group of an .h5 with Keras's weights. Refuses a weight that is named more often than stored.

    Args:
        reader: Keras's module for such files.
    """
    with h5py.File(source.weights, "r") as file:
        group, count = file["model_weights"], 0
        layers = [group[name] for name in reader.load_attributes_from_hdf5_group(group, "layer_names")]
        if "top_level_model_weights" in group:
            layers.append(group["top_level_model_weights"])
        for layer in layers:
            for name in reader.load_attributes_from_hdf5_group(layer, "weight_names"):
                count += math.prod(layer[name].shape)
                if count > source.count:
                    raise LqError(f"weights '{name[:80]}' are named several times in the file")
        yield group


def _guarded(value: Any) -> Any:
    """A config in which guarded layers have the names of registered ones, which Keras looks up first."""
    if isinstance(value, list):
        return [_guarded(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _guarded(inner) for key, inner in value.items()}
    kind = str(value.get("class_name")).split(">")[-1]
    return {**changed, "class_name": kind, "registered_name": kind} if kind in GUARDED else changed


@functools.cache
def guarded_layers(api: Any) -> dict[str, Any]:
    """Layers of keras or tf_keras that refuse to be unrolled into too many operations."""
    kinds = {kind: _recurrent(getattr(api.layers, kind)) for kind in RECURRENT}
    return kinds | {"UpSampling1D": _upsampling(api.layers.UpSampling1D)}


def _recurrent(cls: Any) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        first = next(iter((*args, *kwargs.values())), None)
        shape = getattr(first[0] if isinstance(first, (list, tuple)) else first, "shape", None)
        if self.unroll and shape is not None and len(shape) > 1:
            check_repeats(self.name, shape[1], UNROLLED)
        return cls.__call__(self, *args, **kwargs)

    return type(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})


def _upsampling(cls: Any) -> Any:
    def call(self: Any, inputs: Any) -> Any:
        if len(inputs.shape) > 1:
            check_repeats(self.name, inputs.shape[1], self.size)
        return cls.call(self, inputs)

    return type(cls.__name__, (cls,), {"call": call, "__module__": cls.__module__})
