"""All that the tool prints goes out here: names cannot do more on a terminal or in a job's log than be read.

Nobody else makes a Console or a Table of Rich's, or prints: tests hold that. What others print (click,
warnings, tracebacks, libraries) goes through the streams that :func:`install` puts in place.
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
#: What begins as a command to GitHub's runners: a colon before all but spaces and colours.
_COMMAND = re.compile(rf"(\n(?:[^\S\n]|{_CODE})*):")
_FRESH = re.compile(rf"(?:[^\S\n]|{_CODE})*")


class Stream(io.TextIOBase):
    """A text stream that shows control characters instead of passing them on.

    Lines do not begin with ``:`` and nothing has ``##`` in it: CI systems take commands from the output of a
    job by ``::NAME``, ``##[NAME]`` and ``##vso[``. What the encoding does not have is escaped. A reader who
    left is not written to any more; the work goes on, and its exit code stays what it is.
    """

    def __init__(self, raw: TextIO, *, needed: bool = True) -> None:
        self.raw, self.needed = raw, needed
        self._before = "\n"  # the last character; a line's end, too, where only spaces and colours followed

    @classmethod
    def of(cls, stream: TextIO, *, needed: bool = True) -> Stream:
        stream = getattr(stream, "rich_proxied_file", stream)  # a progress bar's stand-in
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
        return False  # others' progress bars and colours are not shown; `colored` is for our own

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):  # what tells the two kinds of streams apart tries this
            raise TypeError("text is written here; bytes go to the buffer")
        lines = text.replace("\r\n", "\n").replace("\r", "\n")
        self.put(re.sub(r"[^\n\t]+", lambda match: printable(match[0]), lines))
        return len(text)

    def put(self, text: str) -> None:
        """Writes what has control characters of our own, at once."""
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
        """What cannot be written is an error, if the reader is there and nothing but this tells of it."""
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: closed
            self._drop()
            if self.needed and isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                raise LqError(f"the output cannot be written ({error.strerror})") from error

    def _drop(self) -> None:
        """Writes to nowhere from now on, what is buffered, too: it would fail again when Python ends."""
        with contextlib.suppress(OSError, ValueError):
            number, null = self.raw.fileno(), os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
        self.raw = io.StringIO()

    @property
    def buffer(self) -> io.BufferedIOBase:
        """For those who write bytes, as click does for the completion of commands."""
        return _Bytes(self)

    @property
    def colored(self) -> TextIO:
        """The same stream for Rich, which writes control characters of its own where it is a terminal."""
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
    """Puts such streams in the place of stdout and stderr, once, where a command begins."""
    _open_closed()
    for number, name in enumerate(("stdout", "stderr"), 1):
        stream = getattr(sys, name)
        if stream is None:  # was closed
            stream = os.fdopen(number, "w", encoding="utf-8", closefd=False)
        setattr(sys, name, Stream.of(stream, needed=name == "stdout"))
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)


def _open_closed() -> None:
    """Opens those of the first three files that are closed: the next to be opened would take their places."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)


def move_stderr() -> None:
    """Leaves stderr to our own messages: what libraries write to the file behind it is not shown."""
    stream = Stream.of(sys.stderr)
    try:
        native = stream.fileno() == 2
    except (OSError, ValueError):  # a captured stderr
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
    """Markdown or XML for stdout: what its encoding does not have is spelled as these spell characters."""
    encoding = Stream.of(sys.stdout).encoding
    return text.encode(encoding, "xmlcharrefreplace").decode(encoding)


class Console(rich.console.Console):
    """Rich's console, for which no text has markup, emoji or control characters."""

    def __init__(self, *, stderr: bool = False, **settings: Any) -> None:
        stream = Stream.of(sys.stderr, needed=False) if stderr else Stream.of(sys.stdout)
        super().__init__(file=stream.colored, markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:  # type: ignore[override]
        return super().render_str(printable(text, MOST_SHOWN), **settings | _AS_IT_IS)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Segments, of which only those that say so control the terminal."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=_lines(segment.text))


_AS_IT_IS: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def plain(renderable: Any) -> Any:
    """What a console of any settings prints as it is: strings and texts are one printable line each."""
    if isinstance(renderable, str):
        return Text(printable(renderable, MOST_SHOWN))
    if isinstance(renderable, Text):
        shown = printable(renderable.plain)
        return renderable if shown == renderable.plain else Text(shown)
    return renderable


class Table(rich.table.Table):
    """Rich's table, for which the text of no cell has markup, emoji or control characters."""

    def __init__(self, *headers: str, title: str | None = None, **settings: Any) -> None:
        text = None if title is None else Text(printable(title, MOST_SHOWN), style="table.title")
        super().__init__(*headers, title=text, **settings)

    def add_column(self, header: Any = "", *others: Any, **settings: Any) -> None:
        super().add_column(plain(header), *others, **settings)

    def add_row(self, *cells: Any, **settings: Any) -> None:
        super().add_row(*map(plain, cells), **settings)


def narrow(*headers: str, whole: Sequence[str] = ()) -> Table:
    """A table for 80 columns: it has no frame, and cells fold, but are not cut short.

    Args:
        whole: headers of columns that fold last.
    """
    table = Table(*headers, box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for header, column in zip(headers, table.columns, strict=True):
        column.overflow, column.no_wrap = "fold", header in whole
    return table


class Shown:
    """Base of what commands answer: data classes that print themselves."""

    folds: ClassVar[bool] = False  # lines that are longer than the console is wide

    def to_json(self) -> str:
        return to_json(dataclasses.asdict(self))  # type: ignore[call-overload]

    def shown(self) -> Iterator[str | Text | Table]:
        """Lines and tables, for any console."""
        raise NotImplementedError

    def print(self, console: rich.console.Console) -> None:
        """Prints it for people to read; what is in names is shown, and not obeyed."""
        for each in self.shown():
            # Other lines stay whole: what cuts them is the terminal.
            console.print(plain(each), soft_wrap=not (self.folds or isinstance(each, Table)), **_AS_IT_IS)
