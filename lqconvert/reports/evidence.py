"""The results of a run for each example, and whether a change is larger than chance explains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lqconvert.exporting.codes import Codes
from lqconvert.metrics import Metric, guesses
from lqconvert.runtime.layer_snr import LayerNoise
from lqconvert.tasks import Head, Heads

#: Chance does not explain a change of this many standard errors of the paired difference.
ERRORS = 2.0
#: A metric's change gets a colour if it is also at least this many points.
LEAST_POINTS = 0.5
#: The page's explanation of its colours.
COLOURS = (
    "A colour marks a change that chance does not explain: more than two standard errors of the difference "
    "between float and file on the same examples. For scores, it is also more than half a point."
)


@dataclass(frozen=True)
class Seen:
    """The results of one output on n test examples.

    Attributes:
        truth: what outputs are compared with, from :meth:`lqconvert.tasks.Head.truth`.
        labels: from :meth:`lqconvert.tasks.Heads.cut_labels`; no columns without labels.
        float_outputs, outputs: float32 [n, ...], of the float model and of the first target's file.
        numbers: int64 [n], the examples' indices in the test split.
        pictures: (indices into these arrays, int64 [k]) -> the inputs as images, uint8 or float32
            [k, height, width, 1 or 3]; None if the inputs are no images.
    """

    head: Head
    truth: np.ndarray
    labels: np.ndarray
    float_outputs: np.ndarray
    outputs: np.ndarray
    numbers: np.ndarray
    pictures: Callable[[np.ndarray], np.ndarray | None]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def both(self) -> tuple[np.ndarray, np.ndarray]:
        """Outputs [n, size] of the float model and of the file."""
        n = len(self)
        return self.float_outputs.reshape(n, -1), self.outputs.reshape(n, -1)

    @property
    def guesses(self) -> tuple[np.ndarray, np.ndarray]:
        """The classes [n] that the float model and the file predict."""
        before, after = self.both
        return guesses(before, self.head.threshold), guesses(after, self.head.threshold)

    @property
    def distances(self) -> np.ndarray:
        """The root mean square difference between file and float model, over the units, [n]."""
        before, after = self.both
        return np.sqrt(np.mean((after - before).astype(np.float64) ** 2, axis=1))

    def class_name(self, label: int | np.integer) -> str:
        return name_of(self.head, label)


@dataclass(frozen=True)
class Evidence:
    """The results of a run in addition to the figures of its report.

    The examples are those of the test split on which the first target's file was scored. Labels and outputs
    are those of all heads, as :class:`lqconvert.tasks.Heads` joins them.
    """

    codes: Codes  # of the int8 file
    noise: Sequence[LayerNoise]  # of the int8 file against the float32 .tflite
    heads: Heads
    labels: np.ndarray
    float_outputs: np.ndarray
    outputs: np.ndarray
    numbers: np.ndarray  # int64 [n]
    pictures: Callable[[np.ndarray], np.ndarray | None]  # see Seen

    def by_head(self) -> Iterator[Seen]:
        """The results of each output."""
        heads = self.heads
        cut = heads.cut_labels(self.labels), heads.cut(self.float_outputs), heads.cut(self.outputs)
        for head, labels, before, after in zip(heads, *cut, strict=True):
            truth = head.truth(labels, before)
            yield Seen(head, truth, labels, before, after, self.numbers, self.pictures)


def name_of(head: Head, label: int | np.integer) -> str:
    """A class's name, or its number."""
    return head.class_names[label] if label < len(head.class_names) else str(label)


def tone_of_metric(
    metric: Metric, before: np.ndarray, after: np.ndarray, truth: np.ndarray, threshold: float
) -> str:
    """ "good" or "bad" if the file differs by half a point and by more than chance explains, otherwise ""."""
    was, is_ = (metric.qualities(each, truth, threshold) for each in (before, after))
    change = is_ - was
    return tone(float(change.mean()), float(change.std() / np.sqrt(len(change))), LEAST_POINTS / 100)


def tone_of_counts(lost: int, gained: int) -> str:
    """The same for numbers of examples that became wrong, and that became right (McNemar, 1947)."""
    return tone(gained - lost, np.sqrt(lost + gained))


def tone(change: float, error: float, least: float = 0.0) -> str:
    """The same for a change with this standard error. A positive change is good."""
    if not abs(change) > max(ERRORS * error, least):
        return ""
    return "good" if change > 0 else "bad"
