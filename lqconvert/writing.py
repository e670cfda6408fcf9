"""Writing what a run made: all of its files appear, whole, or none."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lqconvert.errors import LqError

#: Writes a file's content to a path.
Writer = Callable[[Path], object]


@dataclass(frozen=True)
class Paths:
    """What the files of a run are called: all but the page after the .tflite for the first target.

    Args:
        targets: their names.
        sources: of which of them a .cc and a .h are written, too.
        gzip: every .tflite is written as a .tflite.gz, too.
    """

    first: Path
    targets: tuple[str, ...]
    sources: tuple[str, ...] = ()
    gzip: bool = False
    page: Path | None = None

    def tflite(self, target: str) -> Path:
        return self.first if target == self.targets[0] else self.first.with_suffix(f".{target}.tflite")

    def download(self, target: str) -> Path:
        path = self.tflite(target)
        return path.with_name(f"{path.name}.gz")

    @property
    def codes(self) -> Path:
        return self.first.with_suffix(".codes.npz")

    @property
    def report(self) -> Path:
        return self.first.with_suffix(".report.json")

    @property
    def checkpoint(self) -> Path:
        """Of a run that is under way or was interrupted: not there after one that has ended."""
        return self.first.with_suffix(".resume.npz")

    def for_targets(self) -> list[Path]:
        """Those that hold a target's file in one form or another."""
        paths = []
        for target in dict.fromkeys(self.targets):
            path = self.tflite(target)
            paths.append(path)
            if self.gzip:
                paths.append(self.download(target))
            if target in self.sources:
                paths += [path.with_suffix(".h"), path.with_suffix(".cc")]
        return paths

    def all(self) -> list[Path]:
        page = [] if self.page is None else [self.page]
        return [*self.for_targets(), self.codes, *page, self.report]

    def check(self) -> None:
        """Fails before any work is done where the files could not be written. Makes no folder."""
        first, page = self.first, self.page
        if first.is_dir():
            raise LqError(f"{first}: is a folder; give the name of a .tflite file")
        if first.suffix != ".tflite":  # also: what stands behind a dot would be left out of the other names
            raise LqError(f"{first}: give the name of a .tflite file")
        if page is not None and page.suffix.lower() not in (".html", ".htm"):
            raise LqError(f"{page}: give the report a name that ends in .html")
        for path in self.all():
            _refuse_folder(path)
        for path in (first, page or first):
            try:
                there = next(folder for folder in path.absolute().parents if folder.exists())
                with tempfile.TemporaryFile(dir=there):
                    pass
            except OSError as error:
                raise LqError(f"{path}: cannot be written ({error.strerror})") from error


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise LqError(f"{path}: is a folder; a file of that name is to be written")


def make_folders(paths: Iterable[Path]) -> None:
    """Makes the folders of files that are to be written."""
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LqError(f"{path}: cannot be written ({error.strerror})") from error


def write_all(writers: dict[Path, Writer]) -> None:
    """Writes every file under another name first: either all of them appear, whole, or none."""
    written: list[tuple[Path, Path]] = []
    try:
        for path in writers:
            _refuse_folder(path)
        for path, write in writers.items():
            temporary = path.with_name(f".{path.name}.part")
            written.append((temporary, path))
            write(temporary)
        for temporary, path in written:
            temporary.replace(path)
    except OSError as error:
        raise LqError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        for temporary, _ in written:
            temporary.unlink(missing_ok=True)
