"""The one exception that means "the user can mend this"."""

from __future__ import annotations

from lqconvert.utils.text import MOST_SHOWN, printable


class LqError(Exception):
    """A mistake in the user's input: a file, a data set, a layer or an option.

    The message is one line that says what is wrong with which file or layer and what to do about it. The
    command line prints it on stderr and exits with code 1. Names in it are printable, whatever they are.
    """

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__(), MOST_SHOWN)


class BudgetMissed(LqError):
    """No codes hold the budget; the message says what was reached. Exit code 3."""

    exit_code = 3


class Interrupted(LqError):
    """Ctrl-C ended a run before it had a file to make. Exit code 130, as shells have it."""

    exit_code = 130


class Terminated(BaseException):
    """SIGTERM, as a scheduler sends it: ends a run as Ctrl-C does, but exports nothing."""


class CannotRun(LqError):
    """A runtime does not run a file; the message has its reason."""


def first_line(error: Exception) -> str:
    """The first line of what a library's exception says."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0][:200])


def about(path: object, error: Exception) -> str:
    """What an error says, with the file that it is about in front, once."""
    return f"{printable(path)}: {without(path, error)}"


def without(path: object, error: Exception) -> str:
    """What an error says of a file, without the file in front."""
    return str(error).removeprefix(f"{printable(path)}: ")
