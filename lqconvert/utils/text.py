"""Names are not text: what strangers' files call things, made fit to be shown; an escape for each format.

A name from a file, a path, a message of a library that quotes them: all may hold what a terminal obeys, what
turns text around, what ends a line, or what a format takes for its own signs. Nothing is shown that did not
go through here; :mod:`lqconvert.utils.terminal` prints, and :class:`lqconvert.errors.LqError` words its
message so.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

#: Characters of a line, a table's cell or a message that are shown: names can be as long as their file.
MOST_SHOWN = 4000
#: And of a name out of a file that is told many times, such as a tensor's by each operator that reads it.
MOST_OF_A_NAME = 1000
#: What stands for the rest in the middle; the end of a message says what to do about it.
_LEFT_OUT = " ... "


def printable(text: object, most: int | None = None) -> str:
    """Anything as one line of characters that are seen; others are escaped, as ``\\x1b`` or ``\\u202e``.

    Escaped are control characters, newlines too, what formats or turns text around, surrogates, and what is
    private or unassigned. What is printable stays as it is, so nothing is escaped twice.

    Args:
        most: of its characters are left, from the beginning and the end.

    >>> printable("a\\x1b[31m\\nb\\u202e")
    'a\\\\x1b[31m\\\\nb\\\\u202e'
    >>> printable(b"caf\\xc3\\xa9 \\xff")
    'café \\\\xff'
    """
    string = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else str(text)
    string = _shortened(string, most)
    if string.isprintable():
        return string
    return _shortened("".join(map(_visible, string)), most)


def _shortened(text: str, most: int | None) -> str:
    if most is None or len(text) <= most:
        return text
    tail = most // 4
    return text[: most - tail - len(_LEFT_OUT)] + _LEFT_OUT + text[len(text) - tail :]


def _visible(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":  # spaces of any width
        return character
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def to_json(value: Any, indent: int | None = 2) -> str:
    """As JSON of ASCII alone, in which nothing is a command to what runs jobs and reads their output.

    >>> print(to_json("##[error] \\x1b", None))
    "#\\u0023[error] \\u001b"
    """
    text = json.dumps(_without_nan(value), indent=indent)
    # Only texts have either. Lone surrogates are what many readers refuse; pairs of them are characters.
    return _LONE.sub(_spelled, text).replace("##", "#\\u0023")


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and value != value else value


_PAIR = r"(?:\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2})"
_LONE = re.compile(rf"\\[^u]|{_PAIR}|(\\ud[89a-f][0-9a-f]{{2}})")


def _spelled(match: re.Match[str]) -> str:
    return f"\\{match[0]}" if match[1] else match[0]


#: What Markdown and GitHub's additions to it leave alone, if no "www." makes it a link.
_PLAIN = re.compile(r"(?!.*www\.)[\w ,%()/=+.-]*", re.I)


def markdown(text: object, *, code: bool = False) -> str:
    """Text for a cell of a Markdown table: without markup, links, mentions or HTML of its own.

    >>> markdown("6,016 bytes, at most 6,144"), markdown("a.tflite", code=True), markdown("a|<b>")
    ('6,016 bytes, at most 6,144', '`a.tflite`', '<code>a&#124;&#60;b&#62;</code>')
    """
    shown = printable(text, MOST_SHOWN)
    if shown.strip() and _PLAIN.fullmatch(shown):
        return f"`{shown}`" if code else shown.replace("_", "\\_")
    # Within <code> GitHub looks for no mentions, links or emoji; and what could be markup is spelled.
    spelled = re.sub(r"[^\w ,%()=+-]|_", lambda match: f"&#{ord(match[0])};", shown)
    return f"<code>{spelled}</code>"


def xml(text: object) -> str:
    """Text without characters that XML does not have, which ElementTree writes all the same."""
    return printable(text)


def c_comment(text: object) -> str:
    """Text for a // comment of C, which neither ends nor runs on into the next line.

    >>> c_comment("x\\n#error y *" + chr(92))
    'x_n_error y __'
    """
    return re.sub(r"[^A-Za-z0-9_ .,:;()=<>/-]", "_", printable(text, MOST_OF_A_NAME))


def c_identifier(text: object) -> str:
    """The same as (part of) a name of C.

    >>> c_identifier("my-model 2"), c_identifier("2nd")
    ('my_model_2', '_2nd')
    """
    name = re.sub(r"\W", "_", str(text), flags=re.ASCII) or "_"
    return f"_{name}" if name[0].isdigit() else name


def c_include(name: str) -> str:
    """The line that includes a header.

    Raises:
        ValueError: if the file's name has signs that mean more in one.
    """
    if printable(name) != name or re.search(r'["\\<>?*]', name):
        raise ValueError(name)
    return f'#include "{name}"'


def csv_cell(value: Any) -> Any:
    """Text as a cell that spreadsheets take for no formula; numbers as they are."""
    if not isinstance(value, str):
        return value
    shown = printable(value)
    return f"'{shown}" if shown[:1] in ("=", "+", "-", "@") else shown
