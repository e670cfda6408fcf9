"""Data in memory (arrays, dicts of arrays, tf.data.Datasets) as a training and a test part."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from lqconvert.data.dataset import Data
from lqconvert.errors import LqError, first_line


class Dataset(Protocol):
    """A tf.data.Dataset, which has no types itself."""

    def as_numpy_iterator(self) -> Any: ...

    def cardinality(self) -> Any: ...


#: Inputs or labels. A dict has an array for each input or output, by name.
Columns: TypeAlias = np.ndarray | Mapping[str, np.ndarray]
#: x, (x, y), or a tf.data.Dataset of examples or of batches.
Examples: TypeAlias = np.ndarray | tuple[Columns, Columns] | Dataset
#: The possible forms of data. A dict has the names of a .npz: x and y, or x_train, ...
DataLike: TypeAlias = str | Path | Data | Examples | tuple[Examples, Examples] | Mapping[str, np.ndarray]

#: The name of data in memory in messages.
ARRAYS = "the arrays"
#: Labels of one output as an array. Labels of several by name, in order, or as columns of one array.
Labels: TypeAlias = Any
#: Inputs (a dict if they were given by name) and labels (None without labels).
Arrays: TypeAlias = tuple[Any, Labels]
#: The number of examples whose inputs are part of a checksum.
CHECKED = 256


def data_name(data: DataLike) -> str:
    """The name of data in messages: its file or name, or "the arrays"."""
    if isinstance(data, (str, Path)):
        return str(data)
    return data.name if isinstance(data, Data) else ARRAYS


def train_and_test(name: str, data: Any, ranks: Mapping[str, int]) -> tuple[Arrays, Arrays]:
    """(x, y) of the training part and of the test part, which is empty if only one part is given.

    Args:
        name: the name of the data in messages.
        data: x, (x, y), a tf.data.Dataset, or a pair (train, test) of these.
        ranks: of the model's inputs by name, without the batch axis.
    """

    def part(value: Any) -> Arrays:
        if _is_dataset(value):
            return _stacked(name, value, ranks)
        x, y = _pair(name, value) if isinstance(value, tuple) else (value, None)
        return arrays_of(name, x), y

    if isinstance(data, tuple) and data and (isinstance(data[0], tuple) or _is_dataset(data[0])):
        train, test = (part(value) for value in _pair(name, data))
        return train, test
    x, y = part(data)
    return (x, y), ({key: value[:0] for key, value in x.items()} if isinstance(x, dict) else x[:0], None)


def arrays_of(name: str, value: Any) -> Any:
    """An array, or a dict of arrays, made from the value.

    Raises:
        LqError: if rows have different lengths, or there are no rows.
    """
    if isinstance(value, Mapping):
        return {key: arrays_of(f"{name}: {key}", each) for key, each in value.items()}
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise LqError(f"{name}: cannot be converted to an array ({first_line(error)})") from error
    if array.ndim == 0:
        raise LqError(f"{name}: {type(value).__name__} is not an array of examples")
    return array


def checksum(data: Any) -> int:
    """A checksum of data in memory, to recognize other data. Of Data, some inputs and all labels are read."""
    if isinstance(data, Data):
        return checksum([(split.arrays(CHECKED)[0], split.y) for split in (data.train, data.test)])
    if isinstance(data, Mapping):
        return checksum([(str(key), data[key]) for key in data])
    if _is_dataset(data):
        return checksum(list(data.as_numpy_iterator()))
    if isinstance(data, (tuple, list)):
        return zlib.crc32(str([checksum(each) for each in data]).encode())
    return zlib.crc32(str(data).encode() if isinstance(data, str) else np.ascontiguousarray(data).tobytes())


def _is_dataset(value: Any) -> bool:
    return hasattr(value, "as_numpy_iterator")


def _pair(name: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(values) != 2:
        raise LqError(f"{name}: gave {len(values)} values instead of (x, y) or ((x, y), (x_test, y_test))")
    return values


def _stacked(name: str, dataset: Any, ranks: Mapping[str, int]) -> Arrays:
    """A tf.data.Dataset of examples x or (x, y), or of batches, as arrays."""
    import tensorflow as tf

    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise LqError(f"{name}: the data set never ends; leave out repeat()")
    examples = [value if isinstance(value, tuple) else (value,) for value in dataset.as_numpy_iterator()]
    if not examples:
        raise LqError(f"{name}: the data set is empty")
    join = np.concatenate if _is_batch(examples[0][0], ranks) else np.stack

    def joined(column: Any) -> Any:
        if isinstance(column[0], dict):
            return {key: joined([value[key] for value in column]) for key in column[0]}
        return join(column)

    try:
        x, *y = (joined(column) for column in zip(*examples, strict=True))
    except ValueError as error:
        raise LqError(f"{name}: its examples are of different shapes ({error})") from error
    return x, y[0] if y else None


def _is_batch(x: Any, ranks: Mapping[str, int]) -> bool:
    """Whether the inputs have a batch axis."""
    if isinstance(x, dict) and len(ranks) > 1:
        return any(np.ndim(x[name]) > rank for name, rank in ranks.items() if name in x)
    only = next(iter(x.values())) if isinstance(x, dict) else x
    return bool(np.ndim(only) > next(iter(ranks.values())))
