"""The messages that lqconvert logs in a run, shown on the terminal or kept in a file."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from lqconvert.cli.hints import with_hint


class _Calls(logging.Handler):
    """Passes each message to a function. An error there ends the run: if a log cannot be written, say."""

    def __init__(self, show: Callable[[str], object]) -> None:
        super().__init__(logging.INFO)
        self.show = show

    def emit(self, record: logging.LogRecord) -> None:
        self.show(with_hint(record.getMessage(), getattr(record, "hint", None)))


@contextlib.contextmanager
def passed_on(name: str, *shows: Callable[[str], object]) -> Iterator[None]:
    """Passes a logger's progress (INFO) and warnings to functions, in this order.

    With --debug the logger's level is DEBUG, and the handler of --debug shows the messages below INFO.
    """
    logger = logging.getLogger(name)
    level, propagate = logger.level, logger.propagate
    handlers = [_Calls(show) for show in shows]
    if not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)
        logger.propagate = False  # another library may have a handler for all loggers
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
