"""Image files in a folder or a .zip, by number. Little more than their names is kept in memory."""

from __future__ import annotations

import math
import os
import struct
import threading
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np

from lqconvert.errors import LqError
from lqconvert.utils.input_files import check_catalogue, open_regular, read_bytes

if TYPE_CHECKING:
    import tensorflow as tf

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif"}
LARGEST_FILE, LARGEST_ARCHIVE = 64 << 20, 1 << 40
#: The limits for a zip: one with a million images fits.
CATALOGUE_BYTES = 160 << 20
MOST_ENTRIES, DEEPEST = 4_000_000, 32
#: The limit for the pixels of an image, over all frames. Images from cameras have a tenth of it.
MOST_PIXELS = 1 << 27
#: Errors from reading a file that is damaged or gone.
UNREADABLE = (OSError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error)


class ImageFolder:
    """The images in subfolders of a folder, sorted by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = _Names(sorted(filter(_is_image, _files_in(path))))

    def __len__(self) -> int:
        return len(self.names)

    def name(self, number: int) -> str:
        """The path in the folder."""
        return self.names[number]

    def read(self, number: int) -> bytes:
        return read_bytes(self.path / self.name(number), LARGEST_FILE)


class ZippedImages:
    """The images in folders within a .zip, sorted by name, without files larger than 64 MB.

    Raises:
        LqError: if it is no zip file.
    """

    #: Data for zipfile to read a file. (zipfile's own catalogue takes half a kilobyte for each file.)
    ENTRY = ("header_offset", "compress_size", "file_size", "CRC", "compress_type", "flag_bits")

    def __init__(self, path: Path) -> None:
        file = open_regular(path, LARGEST_ARCHIVE)
        try:
            check_catalogue(path, file, CATALOGUE_BYTES)
            self.archive = zipfile.ZipFile(file)
        except UNREADABLE as error:
            raise LqError(f"{path}: not a readable zip file ({error})") from error
        catalogue = self.archive.NameToInfo
        names = sorted(n for n in catalogue if _is_image(n) and catalogue[n].file_size <= LARGEST_FILE)
        self.names = _Names(names)
        entries = ([getattr(catalogue[name], field) for field in self.ENTRY] for name in names)
        self.entries = np.fromiter(entries, np.dtype((np.int64, len(self.ENTRY))), len(names))
        # Names with Windows' separators, or with a prefix that some programs add.
        spelled = ((number, catalogue[name].orig_filename) for number, name in enumerate(names))
        self.spelled = {number: name for number, name in spelled if name != names[number]}
        catalogue.clear()
        self.archive.filelist.clear()
        # In Python 3.12's first releases, threads move each other's file position.
        self.one_at_a_time = threading.Lock()

    def __len__(self) -> int:
        return len(self.names)

    def name(self, number: int) -> str:
        """The path in the archive."""
        return self.names[number]

    def read(self, number: int) -> bytes:
        info = zipfile.ZipInfo(self.name(number))
        info.orig_filename = self.spelled.get(number, info.filename)
        for field, value in zip(self.ENTRY, self.entries[number].tolist(), strict=True):
            setattr(info, field, value)
        with self.one_at_a_time:
            return self.archive.read(info)


def _files_in(path: Path) -> Iterator[str]:
    """The paths of all files below a folder, relative to it.

    Links are followed, but each folder is entered once, by the shortest path: links may form circles.

    Raises:
        LqError: if there are more files than any data set has.
    """
    seen, waiting, count = set(), deque([("", 0)]), 0
    while waiting:
        folder, depth = waiting.popleft()
        try:
            status = os.stat(path / folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path / folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:  # removed in the meantime, or not readable
            continue
        count += len(found)
        if count > MOST_ENTRIES or depth > DEEPEST:
            raise LqError(f"{path}: more than {MOST_ENTRIES:,} files, or folders {DEEPEST} deep")
        for entry in found:
            name = os.path.join(folder, entry.name)
            if entry.is_dir():
                waiting.append((name, depth + 1))
            elif entry.is_file():
                yield name


def decoded(data: bytes, channels: int) -> tf.Tensor:
    """An image file as uint8 [height, width, 1 or 3].

    Raises:
        ValueError: if it has a palette that TensorFlow would ignore, or too many pixels.
        tf.errors.InvalidArgumentError: if it is damaged, or of a format that TensorFlow does not know.
    """
    import tensorflow as tf

    pixels = _pixels(data)
    if pixels > MOST_PIXELS:
        raise ValueError(f"{pixels:,} pixels")
    if data[:2] == b"BM" and _has_colors(data):
        raise ValueError("a .bmp with a palette")
    try:
        return tf.io.decode_image(data, channels=channels, expand_animations=False)
    except tf.errors.InvalidArgumentError:
        if channels == 3:
            raise
    # For .bmp, .gif and CMYK, TensorFlow has no other way to convert to gray.
    return tf.image.rgb_to_grayscale(tf.io.decode_image(data, channels=3, expand_animations=False))


def _pixels(data: bytes) -> int:
    """The number of pixels according to the file's header; 0 if it has none."""
    import tensorflow as tf

    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return math.prod(struct.unpack_from(">II", data, 16))
    if data[:2] == b"BM":
        return math.prod(map(abs, struct.unpack_from("<ii", data, 18)))
    if data[:3] == b"GIF":
        return _gif_pixels(data)
    if data[:2] == b"\xff\xd8":
        height, width, _ = tf.io.extract_jpeg_shape(data).numpy().tolist()
        return int(height * width)
    return 0


def _gif_pixels(data: bytes) -> int:
    """The pixels of all frames of a .gif: TensorFlow always unpacks all of them."""

    def behind_colors(at: int, flags: int) -> int:
        return at + (3 << ((flags & 7) + 1) if flags & 128 else 0)

    def behind_blocks(at: int) -> int:
        while data[at]:
            at += data[at] + 1
        return at + 1

    pixels, at = math.prod(struct.unpack_from("<HH", data, 6)), behind_colors(13, data[10])
    try:
        while data[at] in (0x21, 0x2C):  # an extension, or a frame
            if data[at] == 0x21:
                at = behind_blocks(at + 2)
                continue
            pixels += math.prod(struct.unpack_from("<HH", data, at + 5))
            at = behind_blocks(behind_colors(at + 10, data[at + 9]) + 1)
    except (IndexError, struct.error):
        pass  # it is truncated; TensorFlow will report it
    return pixels


def _has_colors(bmp: bytes) -> bool:
    """Whether a .bmp has a palette other than 256 grays from black to white."""
    (header,), (bits,) = struct.unpack_from("<I", bmp, 14), struct.unpack_from("<H", bmp, 28)
    if bits > 8:
        return False
    palette = np.frombuffer(bmp[14 + header : 14 + header + 4 * 256], np.uint8)
    grays = np.arange(256, dtype=np.uint8)[:, np.newaxis]
    return bits < 8 or len(palette) < 4 * 256 or bool(np.any(palette.reshape(-1, 4)[:, :3] != grays))


def _is_image(name: str) -> bool:
    path = PurePath(name)
    # Without files that macOS, Jupyter and others add: __MACOSX/cats/._1.jpg, cats/.checkpoints/1.jpg.
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and len(path.parts) > 1 and not hidden


class _Names:
    """Names by number, in little more memory than their bytes need."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self.text = b"".join(encoded)
        self.ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, number: int) -> str:
        return self.text[self.ends[number] : self.ends[number + 1]].decode("utf-8", "surrogateescape")
