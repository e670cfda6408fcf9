"""Writes the files of a run: either all of them appear, complete, or none."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lqconvert.errors import LqError
from lqconvert.utils.file_kinds import SOURCE

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Writes a file's content to a path.
Writer = Callable[[Path], object]
#: While a file is written, its name has this prefix and suffix around a random middle.
PREFIX, SUFFIX = ".lqconvert-", ".part"
#: Such files of this process, and their locks. A process that ends at once removes them.
UNFINISHED: set[Path] = set()


@dataclass(frozen=True)
class Packaged:
    """A package for a build system (:mod:`lqconvert.tflite.packages`) with a target's file.

    Attributes:
        files: those that are written again if the package is made again.
        users: those that the user may change. They are only written if they do not exist.
    """

    name: str
    target: str
    folder: Path
    files: tuple[Path, ...]
    users: tuple[Path, ...]


@dataclass(frozen=True)
class Paths:
    """The names of a run's files. All but the page are derived from the first target's .tflite.

    Args:
        targets: their names.
        compiled: the targets for which a compiler makes another file of the .tflite.
        sources: the targets for which a .cc and a .h are written, too.
        gzip: every .tflite that goes onto a device is also written as a .tflite.gz.
        package: the folder that builds, if one is written, too.
    """

    first: Path
    targets: tuple[str, ...]
    compiled: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    gzip: bool = False
    page: Path | None = None
    package: Packaged | None = None

    def tflite(self, target: str) -> Path:
        return self.first if target == self.targets[0] else self.first.with_suffix(f".{target}.tflite")

    def deployed(self, target: str) -> Path:
        """The file that goes onto the device."""
        path = self.tflite(target)
        return path.with_suffix(".vela.tflite") if target in self.compiled else path

    def download(self, target: str) -> Path:
        path = self.deployed(target)
        return path.with_name(f"{path.name}.gz")

    @property
    def codes(self) -> Path:
        return self.first.with_suffix(".codes.npz")

    @property
    def report(self) -> Path:
        return self.first.with_suffix(".report.json")

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of a run in progress or interrupted. A finished run leaves none."""
        return self.first.with_suffix(".resume.npz")

    def for_targets(self) -> list[Path]:
        """The files that contain a target's file in some form."""
        paths: list[Path] = []
        for target in dict.fromkeys(self.targets):
            path = self.deployed(target)
            paths += dict.fromkeys((self.tflite(target), path))
            if self.gzip:
                paths.append(self.download(target))
            if target in self.sources:
                paths += [path.with_suffix(".h"), path.with_suffix(".cc")]
        return [*paths, *self.packaged]

    @property
    def packaged(self) -> tuple[Path, ...]:
        """The files of the package that are written."""
        package = self.package
        if package is None:
            return ()
        return (*package.files, *(path for path in package.users if not path.exists()))

    def all(self) -> list[Path]:
        page = [] if self.page is None else [self.page]
        return [*self.for_targets(), self.codes, *page, self.report]

    def check(self) -> None:
        """Raises an error before any work is done if a file cannot be written. Creates no folder."""
        first, page = self.first, self.page
        if first.is_dir():
            raise LqError(f"{first}: is a folder; give the name of a .tflite file")
        if first.suffix != ".tflite":  # other names would lose what follows a dot
            raise LqError(f"{first}: give the name of a .tflite file")
        if page is not None and page.suffix.lower() not in (".html", ".htm"):
            raise LqError(f"{page}: give the report a name that ends in .html")
        if self.package is not None and self.package.folder.exists() and not self.package.folder.is_dir():
            raise LqError(f"{self.package.folder}: is a file; a folder of that name is to be written")
        for path in self.all():
            _refuse_irregular(path)
            is_source = path.suffix in SOURCE.suffixes or path in self.packaged
            if is_source and not SOURCE.is_own(path):
                raise LqError(f"{path}: exists, and lqconvert did not write it; give another name")
        for path in (first, page or first):
            try:
                there = next(folder for folder in path.absolute().parents if folder.exists())
                with tempfile.TemporaryFile(dir=there):
                    pass
            except OSError as error:
                raise LqError(f"{path}: cannot be written ({error.strerror})") from error


def _refuse_irregular(path: Path) -> None:
    """A link can be replaced; a folder, or a device such as /dev/null, cannot."""
    if path.is_dir():
        raise LqError(f"{path}: is a folder; a file of that name is to be written")
    folder = path.parent.resolve()
    streams = folder == Path("/dev") or folder.is_relative_to("/proc")  # stdout may be a regular file
    if streams or (path.exists() and not path.is_file()):
        raise LqError(f"{path}: is not a regular file; give another name")


def refuse_links(*paths: Path) -> None:
    """Raises an error if one of these files is a link: it would be written in place, through the link."""
    for path in paths:
        if path.is_symlink():
            raise LqError(f"{path}: is a link, and lqconvert does not write through links; remove it")


def make_folders(paths: Iterable[Path]) -> None:
    """Creates the folders of files that will be written."""
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LqError(f"{path}: cannot be written ({error.strerror})") from error


def write_all(writers: dict[Path, Writer]) -> None:
    """Writes every file under another name first, so that either all of them appear, complete, or none.

    That name is random and its file is new, so no existing file is written to. Files that a killed process
    left in the folders are removed.
    """
    written: list[tuple[Path, Path]] = []
    try:
        with contextlib.ExitStack() as stack:
            for path in writers:
                _refuse_irregular(path)
            for folder in dict.fromkeys(path.parent for path in writers):
                _clean(folder)
            for path, write in writers.items():
                temporary = stack.enter_context(_part(path.parent))
                written.append((temporary, path))
                write(temporary)
            for temporary, path in written:
                temporary.replace(path)
    except OSError as error:
        raise LqError(f"{path}: cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def _part(folder: Path) -> Iterator[Path]:
    """A new, empty file in a folder. It is locked while it is written, and removed if it is not renamed."""
    path = folder / f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}"
    UNFINISHED.add(path)
    opened = -1
    try:
        opened = _created(path)
        yield path
    finally:
        path.unlink(missing_ok=True)
        UNFINISHED.discard(path)
        if opened >= 0:
            os.close(opened)


def _created(path: Path) -> int:
    """Creates a new file and locks it. Returns the lock's descriptor, or -1 if there are no locks."""
    while True:
        opened = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o666)
        if fcntl is None:
            os.close(opened)  # because an open file could not be renamed
            return -1
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(opened, fcntl.LOCK_EX)
        if os.fstat(opened).st_nlink:
            return opened
        os.close(opened)  # another process removed it, just before it was locked


def _clean(folder: Path) -> None:
    """Removes files of processes that were killed while they wrote: nobody holds their locks."""
    if fcntl is None:
        return
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):  # another user's, or removed in the meantime
            opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if stat.S_ISREG(os.fstat(opened).st_mode):
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            finally:
                os.close(opened)


def discard() -> None:
    """Removes unfinished files, for a process that ends at once."""
    for path in list(UNFINISHED):
        with contextlib.suppress(OSError):
            path.unlink()
