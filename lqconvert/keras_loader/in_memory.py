"""Models in memory. A model is given as the path of its file, or as a model of either Keras in memory.

A model in memory is saved to a temporary file, which is checked like any other.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeAlias

import numpy as np

from lqconvert.errors import LqError, first_line, without


class KerasModel(Protocol):
    """A model of Keras 3 or of tf_keras, which have no types themselves."""

    @property
    def name(self) -> Any: ...

    def get_weights(self) -> Any: ...

    def save(self, filepath: Any, /) -> Any: ...


ModelLike: TypeAlias = str | Path | KerasModel
#: Endings of model files, which are removed from a model's name.
ENDINGS = (".h5", ".hdf5", ".keras")


def model_name(model: ModelLike) -> str:
    """The name of a model in messages: its path, or the name of a model in memory.

    Raises:
        LqError: if it is neither a path nor a Keras model.
    """
    if isinstance(model, (str, Path)):
        return str(Path(model))
    if not any(cls.__name__ == "Model" and _of_keras(cls) for cls in type(model).__mro__):
        raise LqError(f"{type(model).__name__}: neither the path of a model nor a Keras model")
    return str(model.name)


def _of_keras(cls: type) -> bool:
    return cls.__module__.split(".")[0] in ("keras", "tf_keras")


def model_label(model: ModelLike) -> str:
    """The name of a model in reports: its path, or in memory its name and a checksum of its weights."""
    name = model_name(model)
    if isinstance(model, (str, Path)):
        return name
    checksum = 0
    for weight in model.get_weights():
        checksum = zlib.crc32(np.ascontiguousarray(weight).data, checksum)
    return f"{name} (weights {checksum:08x})"


def default_output(model: ModelLike, ending: str) -> Path:
    """The default path of a file that is made from a model.

    It is next to the model's file, or in the working folder for a model in memory.
    """
    if not isinstance(model, (str, Path)):
        return Path(re.sub(r"[^\w.-]+", "_", model_name(model)) + ending)
    path = Path(model)
    if path.name in ("", ".."):  # "." has no name
        path = path.resolve()
    return path.with_name((path.stem if path.suffix in ENDINGS else path.name) + ending)


@contextmanager
def as_file(model: ModelLike) -> Iterator[Path]:
    """The path of a model's file. For a model in memory it is a temporary file.

    Raises:
        LqError: if Keras cannot save the model. An LqError in the block names the model, not the temporary
            file.
    """
    name = model_name(model)
    if isinstance(model, (str, Path)):
        yield Path(model)
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        try:
            model.save(path)
        except Exception as error:  # the user's own layers raise anything
            raise LqError(f"{name}: Keras cannot save the model: {first_line(error)}") from error
        try:
            yield path
        except LqError as error:
            raise LqError(f"{name}: {without(path, error)}", hint=error.hint) from error
