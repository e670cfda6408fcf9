"""Writing what a run made: all of its files appear, whole, or none."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from lqconvert.errors import LqError

#: Writes a file's content to a path.
Writer = Callable[[Path], object]


def check_writable(output: Path) -> None:
    """Fails before any work is done where the result could not be written."""
    if output.is_dir():
        raise LqError(f"{output}: is a folder; give the name of a .tflite file")
    if output.suffix in (".cc", ".h", ".gz", ".npz", ".json"):
        raise LqError(f"{output}: a file of that name is written beside the .tflite; give another name")
    _check_folder(output)


def check_page(page: Path, output: Path) -> None:
    """Fails before any work is done where the page could not be written, or would be another file."""
    if page.suffix.lower() not in (".html", ".htm") or page.resolve() == output.resolve():
        raise LqError(f"{page}: give the report a name of its own that ends in .html")
    if page.is_dir():
        raise LqError(f"{page}: is a folder; give the name of an .html file")
    _check_folder(page)


def _check_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise LqError(f"{path}: cannot be written ({error.strerror})") from error


def write_all(writers: dict[Path, Writer]) -> None:
    """Writes every file under another name first: either all of them appear, whole, or none."""
    written: list[tuple[Path, Path]] = []
    try:
        for path in writers:
            if path.is_dir():
                raise LqError(f"{path}: is a folder; a file of that name is to be written")
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
