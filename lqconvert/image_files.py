"""Image files in a folder or a .zip, by number: of a million of them little more is kept than their names."""

from __future__ import annotations

import threading
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePath

import numpy as np

from lqconvert.errors import LqError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif"}
LARGEST_FILE = 64 << 20
#: What reading a file raises where it is damaged or gone.
UNREADABLE = (OSError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError, ValueError)


class ImageFolder:
    """The images in folders within a folder, sorted by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = (str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
        self.names = _Names(sorted(filter(_is_image, found)))

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
