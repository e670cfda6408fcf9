"""Checks what a model file has besides its config: archive entries, and whether weights are really in it."""

from __future__ import annotations

import logging
import math
import shutil
import stat
import subprocess
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import h5py

from lqconvert.errors import LqError, first_line
from lqconvert.keras_loader.saved_model import count_numbers
from lqconvert.utils.input_files import LARGEST_FILE, check_catalogue, open_regular
from lqconvert.utils.worker import run_module

log = logging.getLogger("lqconvert")
#: A config of this size has some ten thousand layers. Python needs about a second to read it.
LARGEST_CONFIG = 16 << 20
#: Weights in an archive may always unpack to this many bytes, and to this multiple of their size there: Keras
#: does not compress them, floats hardly shrink, and a command takes some fifteen times their memory.
UNSUSPICIOUS, LARGEST_RATIO = 32 << 20, 3
#: The limit for groups, datasets and links in an HDF5 file. A network of a thousand layers has some ten
#: thousand.
MOST_OBJECTS = 200_000
#: The limits of address space and seconds for the process that reads a file's attributes.
ATTRIBUTE_BYTES, ATTRIBUTE_TIMEOUT = 3 << 29, 15
CATALOGUE_BYTES = 1 << 16  # enough for an archive of three entries
ENTRIES = {"config.json", "metadata.json", "model.weights.h5"}


def open_archive(path: Path, file: BinaryIO) -> zipfile.ZipFile:
    """A .keras archive with the three entries that Keras writes, each once and of a plausible size."""
    check_catalogue(path, file, CATALOGUE_BYTES)
    archive = zipfile.ZipFile(file)
    infos = archive.infolist()
    names = [info.filename for info in infos]
    for info in infos:
        if info.filename not in ENTRIES:
            raise LqError(f"{path}: the archive holds {info.filename[:80]!r}, which no known layer needs")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise LqError(f"{path}: {info.filename} in the archive is a symbolic link")
        largest = LARGEST_CONFIG
        if info.filename.endswith(".h5"):
            largest = min(LARGEST_FILE, max(UNSUSPICIOUS, LARGEST_RATIO * info.compress_size))
        if info.file_size > largest:
            raise LqError(
                f"{path}: {info.filename} unpacks from {info.compress_size:,} bytes to {info.file_size:,}"
            )
    if len(set(names)) < len(names):
        raise LqError(f"{path}: an entry occurs twice in the archive")
    if missing := ENTRIES - set(names):
        raise LqError(f"{path}: not a Keras model archive (no {', '.join(sorted(missing))})")
    return archive


def unpack_weights(path: Path, folder: Path) -> Path:
    """The path of a .keras archive's weights, unpacked into the folder. Other files contain them directly."""
    if path.is_dir():
        return path
    with open_regular(path) as file:
        if not zipfile.is_zipfile(file):
            return path
        target = folder / "model.weights.h5"
        try:
            with (
                open_archive(path, file) as archive,
                archive.open(target.name) as source,
                target.open("wb") as copy,
            ):
                shutil.copyfileobj(source, copy, 1 << 20)
        except LqError:
            raise
        except Exception as error:  # a damaged archive makes zipfile and zlib raise anything
            raise LqError(f"{path}: the weights are damaged ({first_line(error)})") from error
    return target


def weight_count(path: Path, *, attributes: bool = True) -> int:
    """The number of weights (as numbers) in a file (HDF5), or in the checkpoint of a SavedModel's folder.

    Args:
        attributes: also check the file's attributes.

    Raises:
        LqError: if they are not stored in the file itself, as Keras writes them.
    """
    if path.is_dir():
        return count_numbers(path)
    try:
        with h5py.File(path, "r") as file:
            count = _hdf5_count(path, file, path.stat().st_size)
        if attributes:
            check_attributes(path)
        return count
    except LqError:
        raise
    except Exception as error:  # damaged weights make h5py raise anything
        raise LqError(f"{path}: the weights are damaged ({first_line(error)})") from error


def check_attributes(path: Path) -> None:
    """Refuses an HDF5 file with attributes that are not really in it. Its links must be checked already."""
    try:
        child = run_module(
            "keras_loader.hdf5_worker", path.resolve(), ATTRIBUTE_BYTES, timeout=ATTRIBUTE_TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        raise LqError(f"{path}: its attributes took more than {ATTRIBUTE_TIMEOUT} s to read") from error
    if child.returncode:
        log.debug("%s", child.stderr)
        raise LqError(f"{path}: the file is damaged (an attribute of it cannot be read)")


def _hdf5_count(path: Path, file: h5py.File, size: int) -> int:
    """Follows hard links only. Keras writes no soft links (may form circles) and no external ones."""
    count = declared = objects = 0
    seen, stack = set(), [file]
    while stack:
        group = stack.pop()
        _refuse_odd_attributes(path, group)
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise LqError(f"{path}: {name!r} is a soft or external link, which Keras does not write")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            objects += 1
            if address in seen or objects > MOST_OBJECTS:
                raise LqError(f"{path}: {name!r} is linked twice, or there are too many objects in the file")
            seen.add(address)
            if isinstance(item, h5py.Group):
                stack.append(item)
                continue
            # Keras stores bfloat16 as opaque pairs of bytes.
            numbers = isinstance(item, h5py.Dataset) and (item.dtype.kind in "fiub" or item.dtype == "V2")
            if not numbers or item.shape is None:
                raise LqError(f"{path}: {name!r} is not an array of numbers")
            _refuse_odd_attributes(path, item)
            layout = item.id.get_create_plist()
            if item.external or item.is_virtual or layout.get_nfilters():
                raise LqError(
                    f"{path}: {name!r} is compressed, virtual or in another file; "
                    "load the model in Keras and save it again"
                )
            values = math.prod(item.shape)
            count, declared = count + values, declared + values * item.dtype.itemsize
            chunk = math.prod(item.chunks or ()) * item.dtype.itemsize
            if max(declared, chunk) > size:
                raise LqError(f"{path}: {name!r} {item.shape} is larger than the file: damaged, or hostile")
    return count


def _refuse_odd_attributes(path: Path, item: Any) -> None:
    for name in item.attrs:
        attribute = h5py.h5a.open(item.id, name.encode())
        if math.prod(attribute.shape or ()) * attribute.dtype.itemsize > LARGEST_CONFIG:
            raise LqError(f"{path}: attribute {name!r} is larger than a model's config can be")
