"""All output of the commands. Names can only be read on a terminal or in a job's log, and have no effect.

Only this module makes a Console or a Table of Rich, or prints; tests check this. Output from others (click,
warnings, tracebacks, libraries) goes through the streams of :func:`install`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, TextIO, cast

import rich.box
import rich.console
import rich.table
from rich.segment import Segment
from rich.text import Text

from lqconvert.errors import LqError
from lqconvert.utils.text import MOST_SHOWN, printable, to_json

_CODE = r"\x1b\[[\d;?]*[A-Za-z]"
#: The beginning of a command to GitHub's runners: a colon, after nothing but spaces and colours.
_COMMAND = re.compile(rf"(\n(?:[^\S\n]|{_CODE})*):")
_FRESH = re.compile(rf"(?:[^\S\n]|{_CODE})*")


class Stream(io.TextIOBase):
    """A text stream that shows control characters instead of passing them on.

    CI systems take commands from a job's output: ``::NAME``, ``##[NAME]`` and ``##vso[``. So no line begins
    with ``:``, and ``##`` does not occur. Characters that the encoding does not have are escaped. If the
    reader is gone, nothing more is written, but the work continues, and the exit code does not change.
    """

    def __init__(self, raw: TextIO, *, needed: bool = True) -> None:
        self.raw, self.needed = raw, needed
        self._before = "\n"  # the last character; still a newline after spaces and colours at a line's start

    @classmethod
    def of(cls, stream: TextIO, *, needed: bool = True) -> Stream:
        stream = getattr(stream, "rich_proxied_file", stream)  # while a progress bar is shown
        return stream if isinstance(stream, cls) else cls(stream, needed=needed)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.raw, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def fileno(self) -> int:
        return self.raw.fileno()

    def isatty(self) -> bool:
        return False  # so that others show no progress bars and colours; `colored` is for our own

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):  # a common test whether a stream is for text
            raise TypeError("text is written here; bytes go to the buffer")
        lines = text.replace("\r\n", "\n").replace("\r", "\n")
        self.put(re.sub(r"[^\n\t]+", lambda match: printable(match[0]), lines))
        return len(text)

    def put(self, text: str) -> None:
        """Writes text with our own control characters, at once."""
        marked = re.sub("(?<=#)#", r"\\x23", self._before + text)
        safe = _COMMAND.sub(r"\1\\x3a", marked)[len(self._before) :]
        self._remember(text)
        with self._told():
            self.raw.write(safe.encode(self.encoding, "backslashreplace").decode(self.encoding))
            self.raw.flush()

    def _remember(self, text: str) -> None:
        _, end, line = text.rpartition("\n")
        if _FRESH.fullmatch(line) and (end or self._before == "\n"):
            self._before = "\n"
        else:
            self._before = text[-1:] or self._before

    def flush(self) -> None:
        with self._told():
            self.raw.flush()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Raises an error for output that cannot be written, if the output is needed and has a reader."""
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: closed
            self._drop()
            if self.needed and isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                raise LqError(f"the output cannot be written ({error.strerror})") from error

    def _drop(self) -> None:
        """Discards all further output, and what is buffered: it would fail again when Python ends."""
        with contextlib.suppress(OSError, ValueError):
            number, null = self.raw.fileno(), os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
        self.raw = io.StringIO()

    @property
    def buffer(self) -> io.BufferedIOBase:
        """For code that writes bytes, as click does for command completion."""
        return _Bytes(self)

    @property
    def colored(self) -> TextIO:
        """The same stream for Rich, which may write its own control characters if it is a terminal."""
        return cast(TextIO, _Colored(self))


class _Bytes(io.BufferedIOBase):
    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.stream.write(bytes(data).decode("utf-8", "backslashreplace"))
        return len(data)


class _Colored:
    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.put(text)
        return len(text)

    def isatty(self) -> bool:
        return bool(self.stream.raw.isatty())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def install() -> None:
    """Replaces stdout and stderr by such streams, once, when a command begins."""
    _open_closed()
    for number, name in enumerate(("stdout", "stderr"), 1):
        stream = getattr(sys, name)
        if stream is None:  # it was closed
            stream = os.fdopen(number, "w", encoding="utf-8", closefd=False)
        setattr(sys, name, Stream.of(stream, needed=name == "stdout"))
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)


def _open_closed() -> None:
    """Opens the first three file descriptors if they are closed. Other files would get their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)


def move_stderr() -> None:
    """Keeps stderr for our own messages. Libraries' output to the file descriptor is not shown."""
    stream = Stream.of(sys.stderr)
    try:
        native = stream.fileno() == 2
    except (OSError, ValueError):  # stderr is captured
        return
    if native:
        raw = os.fdopen(os.dup(2), "w", buffering=1, encoding=stream.encoding, errors="backslashreplace")
        sys.stderr = cast(TextIO, Stream.of(raw, needed=False))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)


def say(*lines: object, err: bool = False) -> None:
    """Prints lines, each as one line, to stdout or stderr."""
    stream = Stream.of(sys.stderr, needed=False) if err else Stream.of(sys.stdout)
    stream.write("".join(f"{printable(line)}\n" for line in lines))


def spelled(text: str) -> str:
    """Markdown or XML for stdout. Characters that its encoding lacks are written as character references."""
    encoding = Stream.of(sys.stdout).encoding
    return text.encode(encoding, "xmlcharrefreplace").decode(encoding)


class Console(rich.console.Console):
    """Rich's console, without markup, emoji and control characters in any text."""

    def __init__(self, *, stderr: bool = False, **settings: Any) -> None:
        stream = Stream.of(sys.stderr, needed=False) if stderr else Stream.of(sys.stdout)
        super().__init__(file=stream.colored, markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:  # type: ignore[override]
        return super().render_str(printable(text, MOST_SHOWN), **settings | _AS_IT_IS)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Segments. Only those that are marked as control segments control the terminal."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=_lines(segment.text))


_AS_IT_IS: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def plain(renderable: Any) -> Any:
    """An object that any console prints unchanged: strings and texts become one printable line each."""
    if isinstance(renderable, str):
        return Text(printable(renderable, MOST_SHOWN))
    if isinstance(renderable, Text):
        shown = printable(renderable.plain)
        return renderable if shown == renderable.plain else Text(shown)
    return renderable


class Table(rich.table.Table):
    """Rich's table, without markup, emoji and control characters in any cell."""

    def __init__(self, *headers: str, title: str | None = None, **settings: Any) -> None:
        text = None if title is None else Text(printable(title, MOST_SHOWN), style="table.title")
        super().__init__(*headers, title=text, **settings)

    def add_column(self, header: Any = "", *others: Any, **settings: Any) -> None:
        super().add_column(plain(header), *others, **settings)

    def add_row(self, *cells: Any, **settings: Any) -> None:
        super().add_row(*map(plain, cells), **settings)


def narrow(*headers: str, whole: Sequence[str] = ()) -> Table:
    """A table for 80 columns. It has no frame, and its cells are folded instead of cut.

    Args:
        whole: headers of columns that are folded last.
    """
    table = Table(*headers, box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for header, column in zip(headers, table.columns, strict=True):
        column.overflow, column.no_wrap = "fold", header in whole
    return table


class Shown:
    """Base class of the commands' results: data classes that print themselves."""

    folds: ClassVar[bool] = False  # whether lines longer than the console are folded

    def to_json(self) -> str:
        return to_json(dataclasses.asdict(self))  # type: ignore[call-overload]

    def shown(self) -> Iterator[str | Text | Table]:
        """Lines and tables, for any console."""
        raise NotImplementedError

    def print(self, console: rich.console.Console) -> None:
        """Prints the result for people. Control characters in names are shown and have no effect."""
        for each in self.shown():
            # Other lines are not folded: the terminal wraps them.
            console.print(plain(each), soft_wrap=not (self.folds or isinstance(each, Table)), **_AS_IT_IS)
