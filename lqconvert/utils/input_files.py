"""Opens what a stranger hands over: a path may lead to a device, a pipe, a folder, or bytes without end."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path
from typing import BinaryIO

from lqconvert.errors import LqError

#: Of a whole file: no network for phones is near it.
LARGEST_FILE = 4 << 30
#: Of a file of settings or results.
LARGEST_TEXT = 16 << 20
#: A pipe without a writer would hold up ``open`` itself, and a terminal could take over the process.
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
    """The file at a path, or behind a link there, open for reading.

    Args:
        limit: how many bytes it may have.

    Raises:
        LqError: if there is none, or it is larger, or no plain file.
    """
    try:
        _check(path, os.stat(path), limit)  # to open some devices does something
        file = os.open(path, FLAGS)
        try:
            _check(path, os.fstat(file), limit)  # it may be another one by now
            return os.fdopen(file, "rb")
        except BaseException:
            os.close(file)
            raise
    except FileNotFoundError as error:
        raise LqError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: no path has a zero byte
        raise LqError(f"{path}: cannot be read ({_reason(error)})") from error


def read_bytes(path: str | Path, limit: int = LARGEST_FILE) -> bytes:
    """All bytes of the file at a path.

    Raises:
        LqError: as for :func:`open_regular`.
    """
    with open_regular(path, limit) as file:
        try:
            data = file.read(os.fstat(file.fileno()).st_size + 1)
            while more := file.read(1 << 20):  # it grows, or is one of those whose size says nothing
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
        raise LqError(f"{path}: no text in UTF-8 ({error.reason} at byte {error.start:,})") from error


def check_catalogue(path: str | Path, file: BinaryIO, limit: int) -> None:
    """Refuses a zip whose catalogue has more bytes: Python takes ten times as many to read it."""
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    size = end[zipfile._ECD_SIZE] if end else 0  # type: ignore[attr-defined]
    if size > limit:
        raise LqError(f"{path}: a zip with a catalogue of {size:,} bytes, for which {limit:,} are enough")


def _check(path: str | Path, status: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise LqError(f"{path}: {kind}, where a file was expected")
    if status.st_size > limit:
        raise LqError(_too_large(path, status.st_size, limit))


def _too_large(path: str | Path, size: int, limit: int) -> str:
    return f"{path}: {size:,} bytes are more than lqconvert reads ({limit:,})"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
