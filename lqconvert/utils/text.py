"""Makes names from strangers' files printable, and escapes them for each format.

A name from a file, a path, or a library's message that quotes them may contain anything: commands to a
terminal, characters that reverse the text, line ends, or signs with a meaning in a format. All text that is
shown passes through this module. :mod:`lqconvert.utils.terminal` prints it, and
:class:`lqconvert.errors.LqError` applies it to its own message.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

#: The largest number of characters of a line, a cell or a message. A name can be as long as its file.
MOST_SHOWN = 4000
#: The limit for names that are shown many times, such as a tensor's name for each operator that reads it.
MOST_OF_A_NAME = 1000
#: Replaces the middle of a long text. The end of a message often says what to do.
_LEFT_OUT = " ... "


def printable(text: object, most: int | None = None) -> str:
    """Anything as one line of visible characters. Others are escaped, as ``\\x1b`` or ``\\u202e``.

    These are control characters, newlines, characters that format or reverse text, surrogates, and characters
    that are private or unassigned. Printable text does not change, so nothing is escaped twice.

    Args:
        most: the largest number of characters, from the beginning and the end.

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
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def to_json(value: Any, indent: int | None = 2) -> str:
    """As JSON in ASCII. It contains no text that CI systems take for a command.

    >>> print(to_json("##[error] \\x1b", None))
    "#\\u0023[error] \\u001b"
    """
    text = json.dumps(_without_nan(value), indent=indent)
    # Only texts have either. Many readers refuse lone surrogates; pairs of them are characters.
    return _LONE.sub(_spelled, text).replace("##", "#\\u0023")


def _without_nan(value: Any) -> Any:
    """NaN becomes null, because JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and value != value else value


_PAIR = r"(?:\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2})"
_LONE = re.compile(rf"\\[^u]|{_PAIR}|(\\ud[89a-f][0-9a-f]{{2}})")


def _spelled(match: re.Match[str]) -> str:
    return f"\\{match[0]}" if match[1] else match[0]


#: Characters that have no meaning in Markdown and GitHub's additions, except in a link with "www.".
_PLAIN = re.compile(r"(?!.*www\.)[\w ,%()/=+.-]*", re.I)


def markdown(text: object, *, code: bool = False) -> str:
    """Text for a cell of a Markdown table. It makes no markup, links, mentions or HTML.

    >>> markdown("6,016 bytes, at most 6,144"), markdown("a.tflite", code=True), markdown("a|<b>")
    ('6,016 bytes, at most 6,144', '`a.tflite`', '<code>a&#124;&#60;b&#62;</code>')
    """
    shown = printable(text, MOST_SHOWN)
    if shown.strip() and _PLAIN.fullmatch(shown):
        return f"`{shown}`" if code else shown.replace("_", "\\_")
    # Within <code>, GitHub makes no mentions, links or emoji. Characters of markup are spelled as references.
    spelled = re.sub(r"[^\w ,%()=+-]|_", lambda match: f"&#{ord(match[0])};", shown)
    return f"<code>{spelled}</code>"


def xml(text: object) -> str:
    """Text without the characters that XML does not allow. ElementTree would write them."""
    return printable(text)


def c_comment(text: object) -> str:
    """Text for a // comment in C that neither ends the comment nor continues in the next line.

    >>> c_comment("x\\n#error y *" + chr(92))
    'x_n_error y __'
    """
    return re.sub(r"[^A-Za-z0-9_ .,:;()=<>/-]", "_", printable(text, MOST_OF_A_NAME))


def c_identifier(text: object) -> str:
    """Text as (a part of) an identifier in C.

    >>> c_identifier("my-model 2"), c_identifier("2nd")
    ('my_model_2', '_2nd')
    """
    name = re.sub(r"\W", "_", str(text), flags=re.ASCII) or "_"
    return f"_{name}" if name[0].isdigit() else name


def c_string(text: object) -> str:
    """Text as a string literal in C, in UTF-8.

    >>> print(c_string('a "b"?'))
    "a \\042b\\042\\077"
    """
    safe = set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _-.,:;()/+*=<>!#%&[]{}|~^@$'")
    shown = printable(text, MOST_OF_A_NAME).encode("utf-8", errors="replace")
    return f'"{"".join(chr(byte) if byte in safe else f"{chr(92)}{byte:03o}" for byte in shown)}"'


def c_include(name: str) -> str:
    """The line that includes a header.

    Raises:
        ValueError: if the file's name has characters with a special meaning in the line.
    """
    if printable(name) != name or re.search(r'["\\<>?*]', name):
        raise ValueError(name)
    return f'#include "{name}"'


def csv_cell(value: Any) -> Any:
    """Text for a cell that spreadsheets do not take for a formula. Numbers stay as they are."""
    if not isinstance(value, str):
        return value
    shown = printable(value)
    return f"'{shown}" if shown[:1] in ("=", "+", "-", "@") else shown
