"""Data sets: from what the user names to three splits that never mix, in raw values.

Train is fine-tuned on, validation (carved from train) steers every choice, test is reported once.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.resources
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from lqconvert.arrays import load_npy, load_npz
from lqconvert.errors import LqError, Terminated
from lqconvert.image_files import UNREADABLE, ImageFolder, ZippedImages, decoded
from lqconvert.splits import Data, Split

KERAS_DATASETS = ("mnist", "fashion_mnist", "cifar10", "cifar100")
TRAIN_FOLDERS, TEST_FOLDERS = ("train", "training"), ("test", "testing", "val", "valid", "validation")
#: Decoded images are kept up to this many bytes; what is beyond is decoded whenever it is asked for.
CACHED_BYTES = 1 << 28


def load_data(
    spec: str,
    input_shape: tuple[int | None, ...] | dict[str, tuple[int, ...]],
    outputs: int | tuple[int | None, ...],
) -> Data:
    """Finds, checks and splits a data set.

    Args:
        spec: a name (digits, mnist, fashion_mnist, cifar10, cifar100), a .npz, a .npy, a folder or zip of
            class folders of images, tfds:NAME, or module:function.
        input_shape: the model's, without the batch axis; by name where it may have several inputs.
        outputs: the shape of what the model gives, without the batch axis, or the length of its only one:
            class labels must be below the last axis, other targets have as many values.

    For several inputs the data are a .npz of an array for each, by the inputs' names (NAME, or NAME_train and
    NAME_test).

    The split is always the same, whatever the seed of a run: a float model may have been trained on it.

    Raises:
        LqError: if the data cannot be found or read, or do not fit the model.
    """
    path = Path(spec)
    given = (outputs,) if isinstance(outputs, int) else outputs or (1,)
    names: list[str] = []
    several: dict[str, tuple[int, ...]] = {}
    if isinstance(input_shape, dict):
        several = input_shape if len(input_shape) > 1 else {}
        shapes = list(input_shape.values())
        input_shape = shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)
    if several:
        arrays = _several(path, several)
        kind, pixels = _kind(spec, arrays, given)[0], False
        train, test = (_array_split(spec, part, input_shape, given, kind) for part in arrays)
        train, test = (replace(part, parts=tuple(several.values())) for part in (train, test))
    elif path.exists() and (path.is_dir() or path.suffix == ".zip"):
        train, test, names = _image_folders(path, input_shape)
        kind, pixels = "classes", True
    else:
        arrays = _arrays(spec, len(input_shape))
        kind, pixels = _kind(spec, arrays, given)
        train, test = (_array_split(spec, part, input_shape, given, kind) for part in arrays)
    classes = given[-1] or 1
    if kind == "classes" and math.prod(n or 1 for n in given) > classes:
        raise LqError(f"{spec}: one label for each example, but the model's answers are of shape {given}")
    if kind == "classes" and names and len(names) != max(classes, 2):  # labels are places among the names
        raise LqError(f"{spec}: {len(names)} class folders, but the model has {classes} outputs")
    if train.size < 20:
        raise LqError(f"{spec}: {train.size} examples are too few to split; give at least 20")
    if test.size == 0:
        order = np.random.default_rng(0).permutation(train.size)
        held_out = max(train.size // 5, 5)
        test, train = train.pick(order[:held_out]), train.pick(order[held_out:])
    order = np.random.default_rng(0).permutation(train.size)
    # Enough to tell a drop from noise: a quarter of a small set, a tenth of a large one.
    held_out = max(5, min(train.size // 4, max(2000, train.size // 10), 5000))
    return Data(
        spec, train.pick(np.sort(order[held_out:])), train.pick(order[:held_out]), test, kind, pixels, names
    )


Arrays = tuple[np.ndarray, "np.ndarray | None"]


def _arrays(spec: str, input_rank: int) -> tuple[Arrays, Arrays]:
    """(x, y) of train and of test (empty where the source has none), as they lie in the source."""
    path = Path(spec)
    if spec == "digits":
        with importlib.resources.files("lqconvert").joinpath("data/digits.npz").open("rb") as file:
            archive = np.load(file)
            x, y = archive["x"], archive["y"]
        return (x, y), (x[:0], y[:0])
    if spec in KERAS_DATASETS:
        return _keras_dataset(spec)
    if path.suffix == ".npz" and path.exists():
        return _npz(path)
    if path.suffix == ".npy" and path.exists():
        x = _array(spec, load_npy(path))
        return (x, None), (x[:0], None)
    if spec.startswith("tfds:"):
        return _tfds(spec[5:])
    if ":" in spec and not path.exists():
        return _function(spec, input_rank)
    if path.exists():
        raise LqError(f"{spec}: not a .npz, .npy, .zip or folder of images")
    known = ", ".join(("digits", *KERAS_DATASETS))
    raise LqError(f"{spec}: no such data; give a file, a folder of class folders, or one of {known}")


def _several(path: Path, inputs: dict[str, tuple[int, ...]]) -> tuple[Arrays, Arrays]:
    """(x, y) of train and of test, x float32 [n, total]: the inputs flat, one behind the other."""
    if path.suffix != ".npz" or not path.exists():
        raise LqError(f"{path}: a model of several inputs takes a .npz with {', '.join(inputs)} (and y)")
    arrays = load_npz(path)

    def part(suffix: str) -> Arrays | None:
        missing = [name for name in inputs if name + suffix not in arrays]
        if missing:
            return None
        parts = []
        for name, shape in inputs.items():
            x = _array(f"{path}: {name + suffix}", arrays[name + suffix])
            if x.shape[1:] != shape:
                raise LqError(f"{path}: {name + suffix} is {x.shape}, the model takes (n, {shape})")
            parts.append(x.reshape(len(x), -1))
        if len({len(x) for x in parts}) > 1:
            raise LqError(f"{path}: the inputs have different numbers of examples")
        return np.concatenate(parts, axis=1, dtype=np.float32), arrays.get(f"y{suffix}")

    train, test = part("_train") or part(""), part("_test")
    if train is None:
        raise LqError(f"{path}: holds {', '.join(arrays) or 'nothing'}; give {', '.join(inputs)} (and y)")
    return train, test or (train[0][:0], None)


def _npz(path: Path) -> tuple[Arrays, Arrays]:
    given = load_npz(path)
    used = ("x", "y", "x_train", "y_train", "x_test", "y_test")
    arrays = {name: _array(f"{path}: {name}", given[name]) for name in used if name in given}
    if "x_train" in arrays:
        x = arrays["x_train"]
        test = (arrays.get("x_test", x[:0]), arrays.get("y_test"))
        return (x, arrays.get("y_train")), test
    if "x" in arrays:
        return (arrays["x"], arrays.get("y")), (arrays["x"][:0], None)
    raise LqError(
        f"{path}: holds {', '.join(given) or 'nothing'}; give x_train, y_train, x_test, y_test or x, y"
    )


def _array(source: str, array: np.ndarray) -> np.ndarray:
    """The array, if it is one of numbers with an axis of examples."""
    if array.ndim == 0 or array.dtype.kind not in "uifb":
        raise LqError(f"{source}: a {array.dtype} of shape {array.shape}; give numbers, one row an example")
    return array


def _keras_dataset(name: str) -> tuple[Arrays, Arrays]:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lqconvert"
    folders = [Path(os.environ["LQCONVERT_DATA"])] if os.environ.get("LQCONVERT_DATA") else []
    for folder in [*folders, cache]:
        if (folder / f"{name}.npz").exists():
            return _npz(folder / f"{name}.npz")
    import tf_keras

    try:
        with contextlib.redirect_stdout(sys.stderr):  # says that it downloads
            train, test = getattr(tf_keras.datasets, name).load_data()
    except Exception as error:  # whatever urllib and Keras raise without a network
        raise LqError(
            f"{name}: not found and not to be downloaded. Put {name}.npz (x_train, y_train, x_test, y_test) "
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
    """What the user's function returns: x, (x, y), a tf.data.Dataset, or a pair (train, test) of those.

    Every other way out of it is an error, an exit too: nothing that went on from there would be known. Only a
    function that ends the whole process (os._exit) is out of reach.
    """
    module, _, function = spec.partition(":")
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        result = getattr(importlib.import_module(module), function)()
        return _returned(spec, result, input_rank)
    except (LqError, KeyboardInterrupt, Terminated):
        raise
    except BaseException as error:  # it is the user's own code
        what = str(error) if isinstance(error, Exception) and str(error) else repr(error)
        raise LqError(f"{spec}: cannot call {function} of the Python module {module}: {what}") from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _returned(spec: str, result: Any, input_rank: int) -> tuple[Arrays, Arrays]:
    """(x, y) of train and of test from what a user's function returned."""

    def pair(values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(values) != 2:
            raise LqError(f"{spec}: gave {len(values)} values; return (x, y), or ((x, y), (test_x, test_y))")
        return values

    def part(value: Any) -> Arrays:
        if hasattr(value, "as_numpy_iterator"):
            return _stacked(spec, value, input_rank)
        x, y = pair(value) if isinstance(value, tuple) else (value, None)
        return np.asarray(x), y

    if isinstance(result, tuple) and not hasattr(result[0], "shape"):
        train, test = (part(value) for value in pair(result))
        return train, test
    x, y = part(result)
    return (x, y), (x[:0], None)


def _stacked(spec: str, dataset: Any, input_rank: int) -> Arrays:
    """A tf.data.Dataset of examples x or (x, y), or of batches of them, in memory."""
    import tensorflow as tf

    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise LqError(f"{spec}: the data set never ends; leave out repeat()")
    examples = [value if isinstance(value, tuple) else (value,) for value in dataset.as_numpy_iterator()]
    if not examples:
        raise LqError(f"{spec}: the data set is empty")
    join = np.concatenate if np.ndim(examples[0][0]) > input_rank else np.stack
    try:
        x, *y = (join(column) for column in zip(*examples, strict=True))
    except ValueError as error:
        raise LqError(f"{spec}: its examples are of different shapes ({error})") from error
    return x, y[0] if y else None


def _kind(spec: str, arrays: tuple[Arrays, Arrays], outputs: tuple[int | None, ...]) -> tuple[str, bool]:
    """("classes", "values" or "none"; whether the inputs are integers in 0..255)."""
    (x, y), _ = arrays
    if x.dtype.kind not in "uifb":
        raise LqError(f"{spec}: inputs of type {x.dtype}; give numbers")
    pixels = x.dtype == np.uint8 or (x.dtype.kind in "ui" and x.size > 0 and x.min() >= 0 and x.max() <= 255)
    if y is None:
        return "none", pixels
    y = np.asarray(y)
    if y.dtype.kind not in "uifb":
        raise LqError(f"{spec}: labels of type {y.dtype}; give numbers")
    single = y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)
    whole = single and y.dtype.kind in "uib"
    as_wide = not single and outputs == y.shape[1:] and y.ndim == 2
    one_hot = as_wide and bool(np.all((y == 0) | (y == 1)) and np.all(y.sum(axis=1) == 1))
    return ("classes" if whole or one_hot else "values"), pixels


def _array_split(
    spec: str,
    part: Arrays,
    input_shape: tuple[int | None, ...],
    outputs: tuple[int | None, ...],
    kind: str,
) -> Split:
    x, y = np.asarray(part[0]), part[1]
    if len(x) == 0 and y is None:
        y = np.zeros(0, np.int64)
    if y is None and kind != "none":
        raise LqError(f"{spec}: the training part has labels, the test part has none (y_test)")
    if y is not None and len(y) != len(x):
        raise LqError(f"{spec}: {len(x)} inputs but {len(y)} labels")
    shape = tuple(b if a is None else a for a, b in zip(input_shape, x.shape[1:], strict=False))
    same_size = len(x) == 0 or np.prod(x.shape[1:]) == np.prod([n or 1 for n in input_shape])
    fits = len(shape) == len(x.shape[1:]) == len(input_shape) and shape == x.shape[1:]
    if not fits:
        # A flat model of images, or a channel axis of 1 that one side leaves out.
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
    if kind == "none" or y is None:
        y = np.zeros((len(x), 0), np.float32)
    elif kind == "values":
        y = np.asarray(y, np.float32).reshape(len(x), math.prod(np.shape(y)[1:]))
        if not np.all(np.isfinite(y)):
            raise LqError(f"{spec}: the labels contain NaN or infinite values")
        given = math.prod(n or 1 for n in outputs)
        if None not in outputs and len(y) and y.shape[1] != given:
            values = f"{y.shape[1]} values for each example, but the model gives {given}"
            raise LqError(f"{spec}: labels of {values}; numbers of classes have to be integers")
    else:
        y = np.asarray(y)
        y = (y.argmax(axis=1) if y.ndim == 2 and y.shape[1] > 1 else y.reshape(len(y))).astype(np.int64)
        classes = outputs[-1] or 1
        wrong = y[(y < 0) | (y >= max(classes, 2))]
        if len(wrong):
            raise LqError(f"{spec}: label {wrong[0]} is out of range: the model has {classes} outputs")
    specs = ((tuple(shape), kept.name), (y.shape[1:], y.dtype.name))
    # Other integers become floats as they are asked for: of int8 that is four times as much.
    return Split(y, lambda index: x[index].astype(kept, copy=False), specs)


def _image_folders(path: Path, input_shape: tuple[int | None, ...]) -> tuple[Split, Split, list[str]]:
    """Train and test splits of a folder or zip of class folders, decoded as they are asked for."""
    if len(input_shape) != 3 or input_shape[2] not in (1, 3):
        raise LqError(f"{path}: a folder of images, but the model takes {input_shape}, not images")
    if None in input_shape:
        raise LqError(f"{path}: the model's input size is unknown ({input_shape}); images need one")
    files: ImageFolder | ZippedImages = ImageFolder(path) if path.is_dir() else ZippedImages(path)
    if not len(files):
        raise LqError(f"{path}: no images in class folders, such as cats/1.jpg or train/cats/1.jpg")
    folders, parts = [], np.full(len(files), -1)  # of each image its class, and the place in TEST_FOLDERS
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
    names = sorted(set(folders))
    places = {name: place for place, name in enumerate(names)}
    labels = np.array([places[folder] for folder in folders], np.int64)
    fetch = _decoding(path, files, input_shape)  # type: ignore[arg-type]

    def split(chosen: np.ndarray) -> Split:
        (numbers,) = np.nonzero(chosen)
        specs = ((input_shape, "uint8"), ((), "int64"))
        return Split(labels[numbers], lambda index: fetch(numbers[index]), specs)  # type: ignore[arg-type]

    test = parts == min(parts[parts >= 0], default=len(TEST_FOLDERS))
    return split(parts < 0), split(test), names


def _decoding(
    path: Path, files: ImageFolder | ZippedImages, shape: tuple[int, int, int]
) -> Callable[[np.ndarray], np.ndarray]:
    """(numbers [b]) -> images uint8 [b, ...], of which the first are kept."""
    import tensorflow as tf

    cache = np.zeros((min(len(files), CACHED_BYTES // math.prod(shape)), *shape), np.uint8)
    cached = np.zeros(len(files), bool)

    def decode(number: int) -> np.ndarray:
        try:
            image = decoded(files.read(number), shape[2])
        except (LqError, tf.errors.InvalidArgumentError, *UNREADABLE) as error:
            raise LqError(f"{path}: {files.name(number)} is not a readable image") from error
        if tuple(image.shape) != shape:
            with tf.device("CPU"):  # one image at a time is no work for a GPU
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
