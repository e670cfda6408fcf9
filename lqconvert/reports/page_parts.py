"""The parts of a page, in reading order. templates/report.html has a macro for each ``kind``.

All text is shown as text. SVG is our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

#: A table with more rows takes the whole width.
MOST_COLUMNS = 6


@dataclass(frozen=True)
class Cell:
    """A text. The tone is "good" or "bad" if a change is larger than chance explains."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Drawing:
    """A chart, and in words what it shows."""

    title: str
    svg: Markup
    note: str = ""
    spoken: str = ""  # for readers who cannot see it, in addition to title and note

    @classmethod
    def of(cls, title: str, svg: str, note: str = "", spoken: str = "") -> Drawing:
        return cls(title, Markup(svg), note, spoken)  # the SVG is matplotlib's, of numbers and our own words


@dataclass(frozen=True)
class Figures:
    """Charts next to each other."""

    drawings: Sequence[Drawing]
    title: str = ""
    note: str = ""

    kind: ClassVar[str] = "figures"

    @property
    def wide(self) -> bool:
        """Whether it takes the whole width of the page. Others are in two columns if there is room."""
        return len(self.drawings) > 1


@dataclass(frozen=True)
class Table:
    """Rows of a name and numbers. The columns in ``words`` contain text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    words: frozenset[str] = frozenset()
    summary: str = ""  # the title of details that are shown on request
    details: Sequence[str] = ()

    kind: ClassVar[str] = "table"

    @property
    def wide(self) -> bool:
        return len(self.columns) > MOST_COLUMNS


@dataclass(frozen=True)
class Count:
    """How many examples of a class the file predicts as another, and the difference from the float model."""

    of_file: int
    more: int
    share: float  # of the class's examples


@dataclass(frozen=True)
class Matrix:
    """Counts [class, prediction]."""

    title: str
    names: Sequence[str]
    rows: Sequence[Sequence[Count]]
    note: str = ""

    kind: ClassVar[str] = "matrix"
    wide: ClassVar[bool] = False


@dataclass(frozen=True)
class Picture:
    """A data: URI, a description of the image, and a caption, if there is one."""

    uri: str
    says: str
    caption: str = ""


@dataclass(frozen=True)
class Example:
    """A test example: its images, if it has any, its label, and its lines of text."""

    pictures: Sequence[Picture]
    label: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Gallery:
    """Examples next to each other. ``key`` has colours (#rrggbb) and their meanings."""

    title: str
    examples: Sequence[Example]
    note: str = ""
    key: Sequence[tuple[str, str]] = ()
    pictured: bool = False  # with several pictures for each example

    kind: ClassVar[str] = "gallery"
    wide: ClassVar[bool] = True


@dataclass(frozen=True)
class Section:
    """The results of an output."""

    title: str
    task: str
    parts: Sequence[Figures | Table | Matrix | Gallery] = field(default_factory=list)
