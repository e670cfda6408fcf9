"""Writing what a run made: all of its files appear, whole, or none."""

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
#: What a file that is being written is called meanwhile, beside its place, around a random middle.
PREFIX, SUFFIX = ".lqconvert-", ".part"
#: Those of this process, and its locks: what ends it at once removes them.
UNFINISHED: set[Path] = set()


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
            _refuse_irregular(path)
            if path.suffix in SOURCE.suffixes and not SOURCE.is_own(path):
                raise LqError(f"{path}: is there, and lqconvert did not write it; give another name with -o")
        for path in (first, page or first):
            try:
                there = next(folder for folder in path.absolute().parents if folder.exists())
                with tempfile.TemporaryFile(dir=there):
                    pass
            except OSError as error:
                raise LqError(f"{path}: cannot be written ({error.strerror})") from error


def _refuse_irregular(path: Path) -> None:
    """A link is replaced as such; a folder, or a device such as /dev/null, is not."""
    if path.is_dir():
        raise LqError(f"{path}: is a folder; a file of that name is to be written")
    folder = path.parent.resolve()
    streams = folder == Path("/dev") or folder.is_relative_to("/proc")  # stdout may well be a file
    if streams or (path.exists() and not path.is_file()):
        raise LqError(f"{path}: is no file that could be replaced; give another name")


def refuse_links(*paths: Path) -> None:
    """Fails where one of the files, which are written in place, is a link: what it leads to is another's."""
    for path in paths:
        if path.is_symlink():
            raise LqError(f"{path}: is a link, and would be written through; remove it")


def make_folders(paths: Iterable[Path]) -> None:
    """Makes the folders of files that are to be written."""
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LqError(f"{path}: cannot be written ({error.strerror})") from error


def write_all(writers: dict[Path, Writer]) -> None:
    """Writes every file under another name first: either all of them appear, whole, or none.

    That name is random and its file new, so that nothing that lies there is written to. Of what a killed
    process left, the folders are cleaned.
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
    """A new, empty file in a folder, locked while it is written, and removed if it is still there then."""
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
    """Makes a file that was not there, and locks it: what keeps the lock, or -1 where there are no locks."""
    while True:
        opened = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o666)
        if fcntl is None:
            os.close(opened)  # an open file could not be renamed
            return -1
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(opened, fcntl.LOCK_EX)
        if os.fstat(opened).st_nlink:
            return opened
        os.close(opened)  # another process took it for one that is left, just before it was locked


def _clean(folder: Path) -> None:
    """Removes what processes left that were killed as they wrote: nobody holds its lock."""
    if fcntl is None:
        return
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):  # of another user, or just gone
            opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if stat.S_ISREG(os.fstat(opened).st_mode):
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            finally:
                os.close(opened)


def discard() -> None:
    """Removes what is half written, for a process that is about to end without a word."""
    for path in list(UNFINISHED):
        with contextlib.suppress(OSError):
            path.unlink()
