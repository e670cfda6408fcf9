"""Reads arrays in .npy and .npz files from strangers: no pickles, and limited memory."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lqconvert.errors import LqError, first_line
from lqconvert.utils.input_files import check_catalogue, open_regular

#: An .npz may always unpack to this many bytes, ...
UNSUSPICIOUS = 256 << 20
#: ... and to this multiple of its own size. Arrays that shrink more, such as one-hot labels, are small.
LARGEST_RATIO = 10
MOST_MEMBERS, CATALOGUE_BYTES = 100_000, 16 << 20
LARGEST_ARRAYS = 1 << 40  # data sets may be larger than models


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz, by name.

    Raises:
        LqError: if it is damaged, holds Python objects, or unpacks to far more bytes than it has.
    """
    try:
        with open_regular(path, LARGEST_ARRAYS) as file:
            size = file.seek(0, 2)
            check_catalogue(path, file, CATALOGUE_BYTES)
            archive = zipfile.ZipFile(file)
            infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            total = sum(info.file_size for info in infos)
            if total > max(UNSUSPICIOUS, LARGEST_RATIO * size) or len(infos) > MOST_MEMBERS:
                raise LqError(f"{path}: {size:,} bytes that unpack to {total:,} are no data set")
            arrays = {}
            for info in infos:
                with archive.open(info) as stream:
                    arrays[info.filename.removesuffix(".npy")] = _read(stream, info.file_size)
            return arrays
    except LqError:
        raise
    except Exception as error:  # damaged bytes make zipfile, zlib and NumPy raise anything
        raise LqError(f"{path}: not a readable .npz of plain arrays ({first_line(error)})") from error


def load_npy(path: Path) -> np.ndarray:
    """The array of an .npy.

    Raises:
        LqError: as for :func:`load_npz`.
    """
    try:
        with open_regular(path, LARGEST_ARRAYS) as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            return _read(stream, size)
    except LqError:
        raise
    except Exception as error:  # damaged bytes make NumPy raise anything
        raise LqError(f"{path}: not a readable .npy array ({first_line(error)})") from error


def _read(stream: Any, size: int) -> np.ndarray:
    """The array in a stream of ``size`` bytes. It is read only if its header fits this size."""
    start = _Remembering(stream)
    version = np.lib.format.read_magic(start)  # type: ignore[arg-type]
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the format is not known")
    shape, fortran, dtype = readers[version](start)  # type: ignore[arg-type]
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - start.position:
        raise ValueError(f"{shape} of {dtype} does not fit {size - start.position:,} bytes")
    array = np.empty(math.prod(shape), dtype)
    done, buffer = 0, memoryview(array.view(np.uint8).data) if array.nbytes else memoryview(b"")
    while done < len(buffer):
        count = stream.readinto(buffer[done : done + (1 << 20)])
        if not count:
            raise ValueError("it is truncated")
        done += count
    return array.reshape(shape, order="F" if fortran else "C")


class _Remembering:
    """A stream that remembers its position: a member of a zip cannot always tell it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.position = stream, 0

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.position += len(data)
        return data
