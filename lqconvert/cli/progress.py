"""The progress of a run: a bar in a terminal, lines in a file or a job's log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar

from lqconvert.utils.terminal import Console

if TYPE_CHECKING:
    from lqconvert.training.finetune import Progress


def place(step: int, steps: int) -> str:
    """The step, or that prices of a bit are tried: a run without training has no steps."""
    return f"step {step:,}/{steps:,}" if steps else f"trial {step}"


def described(at: Progress) -> str:
    """The results of an evaluation, in words."""
    return f"validation {at.evaluation.score:.4f}  ~{at.evaluation.bytes:,} bytes"


class Lines:
    """Prints a line at every evaluation, and every half a minute in between."""

    SECONDS = 30.0

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.say, self.clock = say, clock
        self.seen = ""  # the result of the last evaluation
        self.began: tuple[int, float] | None = None  # the first step of this run, and its time
        self.said = 0.0  # the time of the last line

    def progress(self, at: Progress) -> None:
        """As ``progress`` of :func:`lqconvert.quantize`."""
        self.seen = described(at)
        self._say(at.evaluation.step, at.steps)

    def tick(self, step: int, steps: int) -> None:
        """As ``tick`` of :func:`lqconvert.quantize`."""
        if self.clock() - self.said >= self.SECONDS:
            self._say(step, steps)

    def _say(self, step: int, steps: int) -> None:
        self.said = self.clock()
        self.began = self.began or (step, self.said)
        first, since = self.began
        parts = [place(step, steps), self.seen]
        if first < step <= steps:
            parts.append(f"{_duration((self.said - since) / (step - first) * (steps - step))} left")
        self.say("  ".join(part for part in parts if part))


def _duration(seconds: float) -> str:
    """As the bar shows it: hours, minutes, seconds."""
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{left:02}"


class Bar:
    """A progress bar with the result of the last evaluation."""

    def __init__(self, bar: RichBar) -> None:
        self.bar, self.task = bar, bar.add_task("loading", total=None)

    def progress(self, at: Progress) -> None:
        text = f"{place(at.evaluation.step, at.steps)}  {described(at)}"
        self.bar.update(self.task, description=text, completed=at.evaluation.step, total=at.steps or None)

    def tick(self, step: int, steps: int) -> None:
        self.bar.update(self.task, completed=step, total=steps)


@contextlib.contextmanager
def shown(console: Console, say: Callable[[str], None]) -> Iterator[Bar | Lines]:
    """A bar if the console is a terminal; otherwise lines, printed by ``say``."""
    if not console.file.isatty() or console.is_dumb_terminal:
        yield Lines(say)
        return
    columns = TextColumn("[progress.description]{task.description}"), BarColumn(), TimeRemainingColumn()
    with RichBar(*columns, console=console, transient=True) as bar:
        yield Bar(bar)
