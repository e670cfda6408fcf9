"""Errors that the user can fix."""

from __future__ import annotations

from lqconvert.utils.text import MOST_SHOWN, printable


class LqError(Exception):
    """A mistake in the user's input: a file, a data set, a layer or an option.

    The message is one line: what is wrong, with which file or layer, and what to do. The command line prints
    it on stderr and exits with code 1. Every character of the message is printable.

    Args:
        hint: a setting that can help, or another key of the command line's table of hints. The command line
            adds the option to the message.
    """

    exit_code = 1

    def __init__(self, *arguments: object, hint: str | None = None) -> None:
        super().__init__(*arguments)
        self.hint = hint

    def __str__(self) -> str:
        return printable(super().__str__(), MOST_SHOWN)


class BudgetMissed(LqError):
    """No weights hold the budget. The message says what was reached. Exit code 3."""

    exit_code = 3


class Interrupted(LqError):
    """Ctrl-C ended a run before any file could be written. Exit code 130, as in shells."""

    exit_code = 130


class Terminated(BaseException):
    """SIGTERM, for example from a scheduler. It ends a run as Ctrl-C does, but no file is exported."""


class CannotRun(LqError):
    """A runtime cannot run a file. The message has its reason."""


def first_line(error: Exception) -> str:
    """The first line of the message of a library's exception."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0][:200])


def about(path: object, error: Exception) -> str:
    """An error's message that begins with the file's path, once."""
    return f"{printable(path)}: {without(path, error)}"


def without(path: object, error: Exception) -> str:
    """An error's message without the file's path in front."""
    return str(error).removeprefix(f"{printable(path)}: ")
