"""Opens files from strangers: a path may lead to a device, a pipe, a folder, or an endless file."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path
from typing import BinaryIO

from lqconvert.errors import LqError

#: The size limit of a file. No network for phones is nearly as large.
LARGEST_FILE = 4 << 30
#: The size limit of a file with settings or results.
LARGEST_TEXT = 16 << 20
#: A pipe without a writer would block ``open`` itself, and a terminal could take over the process.
FLAGS = os.O_RDONLY
for _name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"):
    FLAGS |= getattr(os, _name, 0)
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: str | Path, limit: int = LARGEST_FILE) -> BinaryIO:
    """The file at a path, or at the end of a link, opened for reading.

    Args:
        limit: its largest number of bytes.

    Raises:
        LqError: if there is none, or it is larger, or no regular file.
    """
    try:
        _check(path, os.stat(path), limit)  # first, because opening some devices has effects
        file = os.open(path, FLAGS)
        try:
            _check(path, os.fstat(file), limit)  # again, because it may be another file now
            return os.fdopen(file, "rb")
        except BaseException:
            os.close(file)
            raise
    except FileNotFoundError as error:
        raise LqError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise LqError(f"{path}: cannot be read ({_reason(error)})") from error


def read_bytes(path: str | Path, limit: int = LARGEST_FILE) -> bytes:
    """All bytes of the file at a path.

    Raises:
        LqError: as for :func:`open_regular`.
    """
    with open_regular(path, limit) as file:
        try:
            data = file.read(os.fstat(file.fileno()).st_size + 1)
            while more := file.read(1 << 20):  # it grows, or the system gives no size for it
                data += more
                if len(data) > limit:
                    break
        except OSError as error:
            raise LqError(f"{path}: cannot be read ({_reason(error)})") from error
    if len(data) > limit:
        raise LqError(_too_large(path, len(data), limit))
    return data


def read_text(path: str | Path, limit: int = LARGEST_TEXT) -> str:
    """The text, in UTF-8, of the file at a path.

    Raises:
        LqError: as for :func:`open_regular`, or if it is no such text.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise LqError(f"{path}: not a text in UTF-8 ({error.reason} at byte {error.start:,})") from error


def check_catalogue(path: str | Path, file: BinaryIO, limit: int) -> None:
    """Refuses a zip with a larger catalogue: Python needs ten times its bytes to read it."""
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    size = end[zipfile._ECD_SIZE] if end else 0  # type: ignore[attr-defined]
    if size > limit:
        raise LqError(f"{path}: a zip with a catalogue of {size:,} bytes, more than {limit:,}")


def _check(path: str | Path, status: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise LqError(f"{path}: {kind}, where a file was expected")
    if status.st_size > limit:
        raise LqError(_too_large(path, status.st_size, limit))


def _too_large(path: str | Path, size: int, limit: int) -> str:
    return f"{path}: {size:,} bytes, more than lqconvert reads ({limit:,})"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
