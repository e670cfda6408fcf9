"""Data sets: from a name or data in memory to three separate splits of raw values.

Train is for fine-tuning. Validation (a part of train) steers all choices. Test is reported once.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.resources
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from lqconvert.data.arrays import (
    ARRAYS,
    Arrays,
    DataLike,
    Labels,
    arrays_of,
    data_name,
    train_and_test,
)
from lqconvert.data.csv_files import load_csv
from lqconvert.data.dataset import Data, Split
from lqconvert.data.image_files import UNREADABLE, ImageFolder, ZippedImages, decoded
from lqconvert.data.mask_folders import Pairs, find_pairs, read_masks
from lqconvert.errors import LqError, Terminated
from lqconvert.tasks import Head, Heads, Output, Wishes, find_head, head_labels
from lqconvert.utils.npz import load_npy, load_npz

KERAS_DATASETS = ("mnist", "fashion_mnist", "cifar10", "cifar100")
TRAIN_FOLDERS, TEST_FOLDERS = ("train", "training"), ("test", "testing", "val", "valid", "validation")
#: Decoded images are kept in memory up to this many bytes. The others are decoded each time they are used.
CACHED_BYTES = 1 << 28


def load_data(
    data: DataLike,
    input_shape: tuple[int | None, ...] | dict[str, tuple[int, ...]],
    outputs: int | tuple[int | None, ...] | Sequence[Output],
    wishes: Wishes | None = None,
) -> Data:
    """Finds, checks and splits a data set, and detects the task of each output of the model.

    Args:
        data: a name (digits, mnist, fashion_mnist, cifar10, cifar100), a .npz, a .npy, a .csv, a folder or
            zip with class folders of images (or with images and masks), tfds:NAME, or module:function. Or
            data in memory: (x, y), a tf.data.Dataset of examples or batches, a pair (train, test) of these, x
            alone, or a dict of arrays with the names of a .npz. Data from an earlier call are returned as
            they are, if they fit the model.
        input_shape: the model's input shape, without the batch axis; by name if it may have several inputs.
        outputs: the model's outputs. Or the shape of its only output, without the batch axis, or its length.
        wishes: the user's choices of tasks and metrics.

    For several inputs, the data are a .npz with an array for each, by the inputs' names (NAME, or NAME_train
    and NAME_test). The same holds for labels of several outputs (NAME or y_NAME); or one array y has the
    labels of all outputs in its columns. In memory, x and y may be dicts of arrays with these names.

    The split does not depend on the seed of a run, because a float model may have been trained on it.

    Raises:
        LqError: if the data cannot be found or read, or do not fit the model.
    """
    wishes, outputs = wishes or Wishes(), _outputs(outputs)
    wishes.check(outputs)
    inputs = input_shape if isinstance(input_shape, dict) else {"": input_shape}
    if isinstance(data, Data):
        return _fitted(data, inputs, outputs, wishes)
    spec = data_name(data)
    source = _source(str(data) if isinstance(data, Path) else data, inputs, outputs, wishes)
    train, test = source.train, source.test
    if train.x.size < 20:
        raise LqError(f"{spec}: {train.x.size} examples are too few to split; give at least 20")
    labels = [_labels_of(spec, train.y, output, outputs) for output in outputs]
    heads = Heads(
        tuple(
            find_head(spec, output, label, train.inputs, wishes, class_names=source.class_names)
            for output, label in zip(outputs, labels, strict=True)
        )
    )
    notes = source.notes
    if source.class_names and any(head.task == "reconstruction" for head in heads):
        notes = (*notes, f"{spec}: the images in {source.class_names[-1]} count as anomalies")
    splits = [train.x.relabelled(_joined_labels(spec, heads, train, outputs))]
    if test.x.size:
        splits.append(test.x.relabelled(_joined_labels(spec, heads, test, outputs)))
    else:
        order = np.random.default_rng(0).permutation(train.x.size)
        held_out = max(train.x.size // 5, 5)
        splits = [splits[0].pick(order[held_out:]), splits[0].pick(order[:held_out])]
    order = np.random.default_rng(0).permutation(splits[0].size)
    # Enough to distinguish a drop from noise: a quarter of a small set, a tenth of a large one.
    held_out = max(5, min(splits[0].size // 4, max(2000, splits[0].size // 10), 5000))
    return Data(
        spec,
        splits[0].pick(np.sort(order[held_out:])),
        splits[0].pick(order[:held_out]),
        splits[1],
        heads,
        source.pixels,
        own_test=test.x.size > 0,
        notes=notes,
    )


def _fitted(
    data: Data, inputs: Mapping[str, tuple[int | None, ...]], outputs: list[Output], wishes: Wishes
) -> Data:
    """Data that were loaded earlier, checked for this model."""
    if wishes != Wishes():
        raise LqError(f"{data.name}: these data are loaded already, so tasks and metrics cannot be chosen")
    shapes, own = list(inputs.values()), data.train.parts or (data.train.signature[0][0],)
    fits = len(own) == len(shapes) and all(map(_fits, own, shapes))
    if not fits:
        taken = ", ".join(map(str, shapes))
        raise LqError(f"{data.name}: inputs of shape {', '.join(map(str, own))}, but the model takes {taken}")
    known = [head.output for head in data.heads]
    if [(each.size, each.classes) for each in known] != [(each.size, each.classes) for each in outputs]:
        raise LqError(f"{data.name}: these data were loaded for a model with other outputs")
    heads = tuple(replace(head, output=output) for head, output in zip(data.heads, outputs, strict=True))
    return replace(data, heads=Heads(heads))


def _fits(shape: tuple[int, ...], taken: tuple[int | None, ...]) -> bool:
    return len(shape) == len(taken) and all(m in (None, n) for n, m in zip(shape, taken, strict=True))


@dataclass(frozen=True)
class _Part:
    """The training or the test part of a source: its examples without labels, and the labels as given."""

    x: Split
    y: Labels
    inputs: np.ndarray  # [n, ...]; for files and for several inputs, an empty array of the same length


@dataclass(frozen=True)
class _Source:
    train: _Part
    test: _Part
    pixels: bool  # whether inputs are integers in 0..255
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _outputs(outputs: int | tuple[int | None, ...] | Sequence[Output]) -> list[Output]:
    if isinstance(outputs, int):
        return [Output("", (outputs,))]
    if all(isinstance(each, Output) for each in outputs) and outputs:
        return list(outputs)  # type: ignore[arg-type]
    return [Output("", tuple(n or 1 for n in outputs) or (1,))]  # type: ignore[misc]


def _source(
    data: Any, inputs: Mapping[str, tuple[int | None, ...]], outputs: list[Output], wishes: Wishes
) -> _Source:
    name = data_name(data)
    if len(inputs) > 1:
        shapes: dict[str, tuple[int, ...]] = dict(inputs)  # type: ignore[arg-type]
        arrays, notes = _several(data, shapes, outputs)
        flat = (sum(map(math.prod, shapes.values())),)
        train, test = (_part(name, part, flat, parts=tuple(shapes.values())) for part in arrays)
        return _Source(train, test, pixels=False, notes=notes)
    (input_shape,) = inputs.values()
    path = Path(data) if isinstance(data, str) else None
    if path is not None and path.exists() and (path.is_dir() or path.suffix == ".zip"):
        return _image_folders(path, input_shape, outputs[0], wishes)
    arrays, notes = _arrays(data, input_shape, outputs)
    x = arrays[0][0]
    if x.dtype.kind not in "uifb":
        raise LqError(f"{name}: inputs of type {x.dtype}; give numbers")
    pixels = x.dtype == np.uint8 or (x.dtype.kind in "ui" and x.size > 0 and x.min() >= 0 and x.max() <= 255)
    train, test = (_part(name, part, input_shape) for part in arrays)
    return _Source(train, test, pixels, notes=notes)


def _labels_of(spec: str, labels: Labels, output: Output, outputs: list[Output]) -> np.ndarray | None:
    """The labels of an output as they were given; None without labels."""
    if labels is None:
        return None
    if isinstance(labels, dict):
        known = [each.name for each in outputs]
        unknown = [name for name in labels if name not in known]
        if unknown:
            raise LqError(f"{spec}: labels of {unknown[0]}, but the model's outputs are {', '.join(known)}")
        return None if output.name not in labels else np.asarray(labels[output.name])
    if isinstance(labels, (list, tuple)) and len(labels) == len(outputs) > 1:
        return np.asarray(labels[outputs.index(output)])
    array = np.asarray(labels)
    if len(outputs) == 1:
        return array
    ends = np.cumsum([each.size for each in outputs])
    if array.ndim != 2 or array.shape[1] != ends[-1]:
        names = ", ".join(each.name for each in outputs)
        raise LqError(f"{spec}: the model has several outputs; give the labels of each by its name: {names}")
    place = outputs.index(output)
    return array[:, ends[place] - output.size : ends[place]]


def _joined_labels(spec: str, heads: Heads, part: _Part, outputs: list[Output]) -> np.ndarray:
    """All labels of a part, in the form of :class:`Heads`."""
    count, columns = part.x.size, []
    for head in heads:
        labels = _labels_of(spec, part.y, head.output, outputs)
        if head.task == "reconstruction":
            columns.append(_reconstruction_labels(spec, head, labels, part.x.arrays()[0]))
        elif not head.label_size:
            columns.append(np.zeros((count, 0), np.float32))
        elif labels is None:
            raise LqError(f"{spec}: the training part has labels, the test part has none (y_test)")
        else:
            columns.append(head_labels(spec, head, labels, count))
    return heads.join_labels(columns)


def _reconstruction_labels(
    spec: str, head: Head, labels: np.ndarray | None, inputs: np.ndarray
) -> np.ndarray:
    """The inputs, and for each example whether it is an anomaly (NaN if that is not known)."""
    anomalies = np.full(len(inputs), np.nan, np.float32)
    if labels is not None and labels.size == len(labels):
        if len(labels) != len(inputs):
            raise LqError(f"{spec}: {len(inputs)} inputs but {len(labels)} labels")
        anomalies = labels.reshape(-1).astype(np.float32)
    flat = inputs.reshape(len(inputs), -1).astype(np.float32)
    if flat.shape[1] != head.output.size:
        wanted = f"the reconstruction has {head.output.size}"
        raise LqError(f"{spec}: inputs of {flat.shape[1]} values, but {wanted}")
    return np.concatenate([flat, anomalies[:, np.newaxis]], axis=1)


#: Train and test, and notes for the user.
Found = tuple[tuple[Arrays, Arrays], tuple[str, ...]]


def _arrays(data: Any, input_shape: tuple[int | None, ...], outputs: list[Output]) -> Found:
    """(x, y) of train and of test (empty if the source has none), as in the source."""
    if isinstance(data, Mapping):
        return _by_name(ARRAYS, arrays_of(ARRAYS, data), outputs)
    if not isinstance(data, str):
        return _of_one_input(ARRAYS, data, len(input_shape)), ()
    path, input_rank = Path(data), len(input_shape)
    if path.suffix == ".csv" and path.exists():
        x, y, notes = load_csv(path, math.prod(n or 1 for n in input_shape), [o.name for o in outputs])
        return ((x, y), (x[:0], None)), notes
    if path.suffix == ".npz" and path.exists():
        return _by_name(path, load_npz(path), outputs)
    return _named(data, path, input_rank), ()


def _of_one_input(name: str, data: Any, rank: int) -> tuple[Arrays, Arrays]:
    """(x, y) of train and of test. x may be a dict with the input's name."""

    def single(x: Any) -> Any:
        if not isinstance(x, dict):
            return x
        if len(x) != 1:
            raise LqError(f"{name}: inputs {', '.join(x)}, but the model takes one")
        return next(iter(x.values()))

    (x, y), (test_x, test_y) = train_and_test(name, data, {"": rank})
    return (single(x), y), (single(test_x), test_y)


def _named(spec: str, path: Path, input_rank: int) -> tuple[Arrays, Arrays]:
    if spec == "digits":
        with importlib.resources.files("lqconvert").joinpath("data/digits.npz").open("rb") as file:
            archive = np.load(file)
            x, y = archive["x"], archive["y"]
        return (x, y), (x[:0], y[:0])
    if spec in KERAS_DATASETS:
        return _keras_dataset(spec)
    if path.suffix == ".npy" and path.exists():
        x = _array(spec, load_npy(path))
        return (x, None), (x[:0], None)
    if spec.startswith("tfds:"):
        return _tfds(spec[5:])
    if ":" in spec and not path.exists():
        return _function(spec, input_rank)
    if path.exists():
        raise LqError(f"{spec}: not a .npz, .npy, .csv, .zip or folder of images")
    known = ", ".join(("digits", *KERAS_DATASETS))
    raise LqError(f"{spec}: no such data; give a file, a folder of class folders, or one of {known}")


def _several(data: Any, inputs: dict[str, tuple[int, ...]], outputs: list[Output]) -> Found:
    """(x, y) of train and of test. x is float32 [n, total], with the inputs flattened and concatenated."""
    if isinstance(data, str):
        path = Path(data)
        if path.suffix != ".npz" or not path.exists():
            raise LqError(f"{path}: a model of several inputs takes a .npz with {', '.join(inputs)} (and y)")
        return _several_by_name(path, load_npz(path), inputs, outputs)
    if isinstance(data, Mapping):
        return _several_by_name(ARRAYS, arrays_of(ARRAYS, data), inputs, outputs)
    ranks = {name: len(shape) for name, shape in inputs.items()}
    (x, y), (test_x, test_y) = train_and_test(ARRAYS, data, ranks)
    for given in (x, test_x):
        if not isinstance(given, dict) or not set(inputs) <= set(given):
            raise LqError(f"{ARRAYS}: give x as a dict of the model's inputs: {', '.join(inputs)}")
    train, test = (_side_by_side(ARRAYS, given, inputs, "") for given in (x, test_x))
    return ((train, y), (test, test_y)), _unused(ARRAYS, x)


def _several_by_name(
    source: str | Path,
    arrays: dict[str, np.ndarray],
    inputs: dict[str, tuple[int, ...]],
    outputs: list[Output],
) -> Found:
    def part(suffix: str) -> Arrays | None:
        if any(name + suffix not in arrays for name in inputs):
            return None
        return _side_by_side(source, arrays, inputs, suffix), _labels(source, arrays, suffix, outputs)

    held = ", ".join(arrays) or "nothing"
    train, test = part("_train") or part(""), part("_test")
    if train is None:
        raise LqError(f"{source}: holds {held}; give {', '.join(inputs)} (and y)")
    return (train, test or (train[0][:0], None)), _unused(source, arrays)


def _side_by_side(
    source: str | Path, arrays: dict[str, np.ndarray], inputs: dict[str, tuple[int, ...]], suffix: str
) -> np.ndarray:
    """The inputs, removed from the arrays, flattened and concatenated."""
    parts = []
    for name, shape in inputs.items():
        x = _array(f"{source}: {name + suffix}", arrays.pop(name + suffix))
        if x.shape[1:] != shape:
            raise LqError(f"{source}: {name + suffix} is {x.shape}, the model takes (n, {shape})")
        parts.append(x.reshape(len(x), math.prod(shape)))
    if len({len(x) for x in parts}) > 1:
        raise LqError(f"{source}: the inputs have different numbers of examples")
    return np.concatenate(parts, axis=1, dtype=np.float32)


def _by_name(source: str | Path, arrays: dict[str, np.ndarray], outputs: list[Output]) -> Found:
    """(x, y) of train and of test, from arrays with the names of a .npz."""
    held = ", ".join(arrays) or "nothing"

    def part(suffix: str) -> Arrays | None:
        if f"x{suffix}" not in arrays:
            return None
        x = _array(f"{source}: x{suffix}", arrays.pop(f"x{suffix}"))
        return x, _labels(source, arrays, suffix, outputs)

    train = part("_train")
    test = part("_test") if train else None
    train = train or part("")
    if train is None:
        raise LqError(f"{source}: holds {held}; give x_train, y_train, x_test, y_test or x, y")
    return (train, test or (train[0][:0], None)), _unused(source, arrays)


def _labels(path: str | Path, arrays: dict[str, np.ndarray], suffix: str, outputs: list[Output]) -> Labels:
    """The labels of a part, removed from the arrays; by name if there are several outputs."""
    names = [output.name for output in outputs if output.name]
    found = {}
    for name in names if len(names) > 1 else []:
        for key in (f"y_{name}{suffix}", f"{name}{suffix}"):
            if key in arrays:
                found[name] = _array(f"{path}: {key}", arrays.pop(key), named=True)
                break
    if found:
        return found
    keys = [f"y{suffix}", *(f"{name}{suffix}" for name in names[:1] if len(names) == 1)]
    held = [key for key in keys if key in arrays]
    return _array(f"{path}: {held[0]}", arrays.pop(held[0]), named=True) if held else None


def _unused(path: str | Path, arrays: dict[str, np.ndarray]) -> tuple[str, ...]:
    return (f"{path}: nothing uses {', '.join(arrays)}",) if arrays else ()


def _array(source: str, array: np.ndarray, *, named: bool = False) -> np.ndarray:
    """The array, checked to hold numbers (or class names) with a batch axis."""
    if array.ndim == 0 or array.dtype.kind not in ("uifbUS" if named else "uifb"):
        raise LqError(f"{source}: a {array.dtype} of shape {array.shape}; give numbers, one row an example")
    return array


def _keras_dataset(name: str) -> tuple[Arrays, Arrays]:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lqconvert"
    folders = [Path(os.environ["LQCONVERT_DATA"])] if os.environ.get("LQCONVERT_DATA") else []
    for folder in [*folders, cache]:
        if (folder / f"{name}.npz").exists():
            path = folder / f"{name}.npz"
            return _by_name(path, load_npz(path), [])[0]
    import tf_keras

    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints that it downloads
            train, test = getattr(tf_keras.datasets, name).load_data()
    except Exception as error:  # without a network, urllib and Keras raise anything
        raise LqError(
            f"{name}: not found, and the download failed. Put {name}.npz (x_train, y_train, x_test, y_test) "
            f"into {cache}, or into the folder that LQCONVERT_DATA names."
        ) from error
    return train, test


def _tfds(name: str) -> tuple[Arrays, Arrays]:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise LqError(f'tfds:{name} needs tensorflow-datasets: pip install "lqconvert[tfds]"') from error
    parts = tfds.as_numpy(tfds.load(name, batch_size=-1, as_supervised=True))
    train = parts["train"]
    return train, parts.get("test", (train[0][:0], None))


def _function(spec: str, input_rank: int) -> tuple[Arrays, Arrays]:
    """The result of the user's function: x, (x, y), a tf.data.Dataset, or a pair (train, test) of those.

    If the function ends in any other way, also by an exit, that is an error. Only a function that ends the
    whole process (os._exit) cannot be caught.
    """
    module, _, function = spec.partition(":")
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        result = getattr(importlib.import_module(module), function)()
        return _of_one_input(spec, result, input_rank)
    except (LqError, KeyboardInterrupt, Terminated):
        raise
    except BaseException as error:  # it is the user's own code
        what = str(error) if isinstance(error, Exception) and str(error) else repr(error)
        raise LqError(f"{spec}: cannot call {function} of the Python module {module}: {what}") from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _part(
    spec: str, part: Arrays, input_shape: tuple[int | None, ...], *, parts: tuple[tuple[int, ...], ...] = ()
) -> _Part:
    x, y = np.asarray(part[0]), part[1]
    shape = tuple(b if a is None else a for a, b in zip(input_shape, x.shape[1:], strict=False))
    same_size = len(x) == 0 or np.prod(x.shape[1:]) == np.prod([n or 1 for n in input_shape])
    fits = len(shape) == len(x.shape[1:]) == len(input_shape) and shape == x.shape[1:]
    if not fits:
        # A flat model of images, or a channel axis of 1 that only one of them has.
        squeezed = [n for n in x.shape[1:] if n != 1] == [n for n in input_shape if n != 1]
        if not same_size or not (len(input_shape) == 1 or squeezed):
            raise LqError(f"{spec}: inputs of shape {x.shape[1:]}, but the model takes {input_shape}")
        x, shape = x.reshape(len(x), *[n or 1 for n in input_shape]), tuple(n or 1 for n in input_shape)
    if x.dtype.kind == "f":
        x = x.astype(np.float32, copy=False)
        if not np.all(np.isfinite(x)):
            raise LqError(f"{spec}: the inputs contain NaN or infinite values")
    elif x.dtype != np.uint8 and x.size and x.min() >= 0 and x.max() <= 255:
        x = x.astype(np.uint8)
    kept = x.dtype if x.dtype in (np.uint8, np.float32) else np.dtype(np.float32)
    specs = ((tuple(shape), kept.name), ((0,), "float32"))
    # Other integers become floats when they are used: int8 as floats would take four times the memory.
    split = Split(
        np.zeros((len(x), 0), np.float32), lambda index: x[index].astype(kept, copy=False), specs, parts
    )
    return _Part(split, y, x if not parts else x[:, :0])


def _image_folders(
    path: Path, input_shape: tuple[int | None, ...], output: Output, wishes: Wishes
) -> _Source:
    """Train and test splits from a folder or zip of class folders. Images are decoded when they are used."""
    if len(input_shape) != 3 or input_shape[2] not in (1, 3):
        raise LqError(f"{path}: a folder of images, but the model takes {input_shape}, not images")
    if None in input_shape:
        raise LqError(f"{path}: the model's input size is unknown ({input_shape}); images need one")
    files: ImageFolder | ZippedImages = ImageFolder(path) if path.is_dir() else ZippedImages(path)
    if not len(files):
        raise LqError(f"{path}: no images in class folders, such as cats/1.jpg or train/cats/1.jpg")
    folders, parts = [], np.full(len(files), -1)  # for each image, its class and its part in TEST_FOLDERS
    depths: dict[int, str] = {}
    for number in range(len(files)):
        *above, folder, _ = PurePath(files.name(number)).parts
        folders.append(folder)
        depths[len(above)] = files.name(number)
        known = (name.lower() for name in reversed(above) if name.lower() in (*TRAIN_FOLDERS, *TEST_FOLDERS))
        part = next(known, "train")  # .../test/cats/1.jpg
        if part in TEST_FOLDERS:
            parts[number] = TEST_FOLDERS.index(part)
    if len(depths) > 1:
        one, other = list(depths.values())[:2]
        raise LqError(f"{path}: {one} and {other} are at different depths: which folders are classes?")
    pairs = find_pairs(path, files) if output.positions > 1 else None
    if pairs is not None:
        return _masked_images(path, files, pairs, parts, input_shape, output)
    names, places = _classes(path, sorted(set(folders)), output, wishes)
    labels = np.array([places[folder] for folder in folders], np.int64)
    fetch = _decoding(path, files, input_shape)  # type: ignore[arg-type]

    def chosen_part(chosen: np.ndarray) -> _Part:
        (numbers,) = np.nonzero(chosen)
        return _image_part(fetch, numbers, labels[numbers], input_shape)

    test = parts == min(parts[parts >= 0], default=len(TEST_FOLDERS))
    return _Source(chosen_part(parts < 0), chosen_part(test), pixels=True, class_names=names)


def _masked_images(
    path: Path,
    files: ImageFolder | ZippedImages,
    pairs: Pairs,
    parts: np.ndarray,
    input_shape: tuple[int | None, ...],
    output: Output,
) -> _Source:
    """Train and test splits from images in one folder and masks in another."""
    images = np.array(pairs.images)
    masks = read_masks(path, files, pairs.masks, output.shape[:2], max(output.classes, 2))
    fetch = _decoding(path, files, input_shape)  # type: ignore[arg-type]

    def chosen_part(chosen: np.ndarray) -> _Part:
        return _image_part(fetch, images[chosen], masks[chosen], input_shape)

    of_image = parts[images]
    test = of_image == min(of_image[of_image >= 0], default=len(TEST_FOLDERS))
    return _Source(chosen_part(of_image < 0), chosen_part(test), pixels=True)


def _image_part(
    fetch: Callable[[np.ndarray], np.ndarray],
    numbers: np.ndarray,
    labels: np.ndarray,
    shape: tuple[int | None, ...],
) -> _Part:
    """The images of these numbers. They are decoded when they are used."""
    specs: Any = ((shape, "uint8"), ((0,), "float32"))
    unlabelled = np.zeros((len(numbers), 0), np.float32)
    inputs = np.broadcast_to(np.uint8(0), (len(numbers), *shape))  # type: ignore[arg-type]
    return _Part(Split(unlabelled, lambda index: fetch(numbers[index]), specs), labels, inputs)


def _classes(
    path: Path, folders: list[str], output: Output, wishes: Wishes
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The names of the model's classes, if they are known, and the class of each folder.

    If there are folders for some classes only, the folders' names must be class names, or numbers.
    """
    if wishes.classes:
        missing = [name for name in folders if name not in wishes.classes]
        if missing:
            raise LqError(f"{path}: folder {missing[0]} is not one of the given class names")
        return wishes.classes, {name: wishes.classes.index(name) for name in folders}
    # The output is an image, so folders can only tell normal examples and anomalies apart.
    classes = output.classes if output.positions == 1 else 2
    numbered = all(name.isascii() and name.isdigit() and int(name) < classes for name in folders)
    if numbered and len(folders) < classes:
        return (), {name: int(name) for name in folders}
    if len(folders) != max(classes, 2):
        raise LqError(
            f"{path}: {len(folders)} class folders, but the model has {output.classes} outputs",
            hint="classes" if len(folders) < classes else None,
        )
    return tuple(folders), {name: place for place, name in enumerate(folders)}


def _decoding(
    path: Path, files: ImageFolder | ZippedImages, shape: tuple[int, int, int]
) -> Callable[[np.ndarray], np.ndarray]:
    """(numbers [b]) -> images uint8 [b, ...]. The first ones are kept in memory."""
    import tensorflow as tf

    cache = np.zeros((min(len(files), CACHED_BYTES // math.prod(shape)), *shape), np.uint8)
    cached = np.zeros(len(files), bool)

    def decode(number: int) -> np.ndarray:
        try:
            image = decoded(files.read(number), shape[2])
        except (LqError, tf.errors.InvalidArgumentError, *UNREADABLE) as error:
            raise LqError(f"{path}: {files.name(number)} is not a readable image") from error
        if tuple(image.shape) != shape:
            with tf.device("CPU"):  # single images are too little work for a GPU
                image = tf.cast(tf.round(tf.image.resize(image, shape[:2])), tf.uint8)
        return image.numpy()

    def fetch(numbers: np.ndarray) -> np.ndarray:
        images = np.empty((len(numbers), *shape), np.uint8)
        for place, number in enumerate(numbers):
            if cached[number]:
                images[place] = cache[number]
                continue
            images[place] = decode(number)
            if number < len(cache):
                cache[number] = images[place]
                cached[number] = True
        return images

    return fetch
