"""The one exception that means "the user can mend this"."""


class LqError(Exception):
    """A mistake in the user's input: a file, a data set, a layer or an option.

    The message is one or two lines that say what is wrong with which file or layer and what to do about
    it. The command line prints it on stderr and exits with code 1.
    """

    exit_code = 1


class BudgetMissed(LqError):
    """No codes hold the budget; the message says what was reached. Exit code 3."""

    exit_code = 3


class Interrupted(LqError):
    """Ctrl-C ended a run before it had a file to make. Exit code 130, as shells have it."""

    exit_code = 130


class CannotRun(LqError):
    """A runtime does not run a file; the message has its reason."""


def first_line(error: Exception) -> str:
    """The first line of what a library's exception says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
