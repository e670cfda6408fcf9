"""Image files in a folder or a .zip, by number: of a million of them little more is kept than their names."""

from __future__ import annotations

import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np

from lqconvert.errors import LqError

if TYPE_CHECKING:
    import tensorflow as tf

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif"}
LARGEST_FILE = 64 << 20
#: What reading a file raises where it is damaged or gone.
UNREADABLE = (OSError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error)


class ImageFolder:
    """The images in folders within a folder, sorted by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = _Names(sorted(filter(_is_image, _files_in(path))))

    def __len__(self) -> int:
        return len(self.names)

    def name(self, number: int) -> str:
        """Relative to the folder."""
        return self.names[number]

    def read(self, number: int) -> bytes:
        return (self.path / self.name(number)).read_bytes()


class ZippedImages:
    """The images in folders within a .zip, sorted by name; none beyond 64 MB.

    Raises:
        LqError: if it is none.
    """

    #: What zipfile has to know of a file to read it: its own catalogue takes half a kilobyte for each.
    ENTRY = ("header_offset", "compress_size", "file_size", "CRC", "compress_type", "flag_bits")

    def __init__(self, path: Path) -> None:
        try:
            self.archive = zipfile.ZipFile(path)
        except UNREADABLE as error:
            raise LqError(f"{path}: not a readable zip file ({error})") from error
        catalogue = self.archive.NameToInfo
        names = sorted(n for n in catalogue if _is_image(n) and catalogue[n].file_size <= LARGEST_FILE)
        self.names = _Names(names)
        entries = ([getattr(catalogue[name], field) for field in self.ENTRY] for name in names)
        self.entries = np.fromiter(entries, np.dtype((np.int64, len(self.ENTRY))), len(names))
        # Names in Windows' spelling, or in one that some zippers add.
        spelled = ((number, catalogue[name].orig_filename) for number, name in enumerate(names))
        self.spelled = {number: name for number, name in spelled if name != names[number]}
        catalogue.clear()
        self.archive.filelist.clear()
        # Python 3.12's first releases seek from wherever another thread left the file.
        self.one_at_a_time = threading.Lock()

    def __len__(self) -> int:
        return len(self.names)

    def name(self, number: int) -> str:
        """Within the archive."""
        return self.names[number]

    def read(self, number: int) -> bytes:
        info = zipfile.ZipInfo(self.name(number))
        info.orig_filename = self.spelled.get(number, info.filename)
        for field, value in zip(self.ENTRY, self.entries[number].tolist(), strict=True):
            setattr(info, field, value)
        with self.one_at_a_time:
            return self.archive.read(info)


def _files_in(path: Path) -> Iterator[str]:
    """Names of all files below a folder, relative to it; links are followed, but not in circles."""
    for folder, below, files in os.walk(path, followlinks=True):
        here = Path(folder).resolve()
        below[:] = [name for name in below if not here.is_relative_to((here / name).resolve())]
        yield from (os.path.relpath(os.path.join(folder, name), path) for name in files)


def decoded(data: bytes, channels: int) -> tf.Tensor:
    """An image file as uint8 [height, width, 1 or 3].

    Raises:
        ValueError: if it has a palette that TensorFlow would not look up.
        tf.errors.InvalidArgumentError: if it is damaged, or of no kind that TensorFlow knows.
    """
    import tensorflow as tf

    if data[:2] == b"BM" and _has_colors(data):
        raise ValueError("a .bmp with a palette")
    try:
        return tf.io.decode_image(data, channels=channels, expand_animations=False)
    except tf.errors.InvalidArgumentError:
        if channels == 3:
            raise
    # TensorFlow makes .bmp, .gif and CMYK gray in no other way.
    return tf.image.rgb_to_grayscale(tf.io.decode_image(data, channels=3, expand_animations=False))


def _has_colors(bmp: bytes) -> bool:
    """Whether a .bmp has a palette other than 256 grays, from black to white."""
    (header,), (bits,) = struct.unpack_from("<I", bmp, 14), struct.unpack_from("<H", bmp, 28)
    if bits > 8:
        return False
    palette = np.frombuffer(bmp[14 + header : 14 + header + 4 * 256], np.uint8)
    grays = np.arange(256, dtype=np.uint8)[:, np.newaxis]
    return bits < 8 or len(palette) < 4 * 256 or bool(np.any(palette.reshape(-1, 4)[:, :3] != grays))


def _is_image(name: str) -> bool:
    path = PurePath(name)
    # Not what macOS, Jupyter and others leave beside images: __MACOSX/cats/._1.jpg, cats/.checkpoints/1.jpg.
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and len(path.parts) > 1 and not hidden


class _Names:
    """Names by number, in little more memory than their bytes take."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self.text = b"".join(encoded)
        self.ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, number: int) -> str:
        return self.text[self.ends[number] : self.ends[number + 1]].decode("utf-8", "surrogateescape")
