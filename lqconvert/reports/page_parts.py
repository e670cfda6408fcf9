"""What a page is made of, in the order it is read; templates/report.html has a macro for each ``kind``.

All text is shown as text. SVG is our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

#: A table of more takes the whole width.
MOST_COLUMNS = 6


@dataclass(frozen=True)
class Cell:
    """A text; "good" or "bad" where a change is more than chance explains."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Drawing:
    """A figure and what it shows, in words."""

    title: str
    svg: Markup
    note: str = ""
    spoken: str = ""  # for those who do not see it, beside title and note

    @classmethod
    def of(cls, title: str, svg: str, note: str = "", spoken: str = "") -> Drawing:
        return cls(title, Markup(svg), note, spoken)  # matplotlib's, of numbers and our own words


@dataclass(frozen=True)
class Figures:
    """Drawings beside each other."""

    drawings: Sequence[Drawing]
    title: str = ""
    note: str = ""

    kind: ClassVar[str] = "figures"

    @property
    def wide(self) -> bool:
        """Whether it takes the whole width of the page; others stand in two columns, where there is room."""
        return len(self.drawings) > 1


@dataclass(frozen=True)
class Table:
    """Rows of a name and numbers; columns in ``words`` hold text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    words: frozenset[str] = frozenset()
    summary: str = ""  # of details, which are shown when asked for
    details: Sequence[str] = ()

    kind: ClassVar[str] = "table"

    @property
    def wide(self) -> bool:
        return len(self.columns) > MOST_COLUMNS


@dataclass(frozen=True)
class Count:
    """How many examples of a class are answered by another: of the file, and how many more than of float."""

    of_file: int
    more: int
    share: float  # of the class's examples


@dataclass(frozen=True)
class Matrix:
    """Counts [class, answer]."""

    title: str
    names: Sequence[str]
    rows: Sequence[Sequence[Count]]
    note: str = ""

    kind: ClassVar[str] = "matrix"
    wide: ClassVar[bool] = False


@dataclass(frozen=True)
class Picture:
    """A data: URI, what it shows, and what is written under it, if anything."""

    uri: str
    says: str
    caption: str = ""


@dataclass(frozen=True)
class Example:
    """A test example: its pictures, if it has any, its label, and what is said of it."""

    pictures: Sequence[Picture]
    label: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Gallery:
    """Examples beside each other; ``key`` are colours (#rrggbb) and what they mean."""

    title: str
    examples: Sequence[Example]
    note: str = ""
    key: Sequence[tuple[str, str]] = ()
    pictured: bool = False  # with several pictures for each example

    kind: ClassVar[str] = "gallery"
    wide: ClassVar[bool] = True


@dataclass(frozen=True)
class Section:
    """What is to be said of an output."""

    title: str
    task: str
    parts: Sequence[Figures | Table | Matrix | Gallery] = field(default_factory=list)
