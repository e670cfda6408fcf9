"""Budgets of accuracy or size, and how one fine-tuning run is steered to a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: The data that a run is steered by. "auto" chooses one of the other two.
STEER_ON = ("auto", "validation", "test-half")
#: A point of any metric.
POINT = 0.01


@dataclass(frozen=True)
class Point:
    """One evaluation of the model during fine-tuning: a point of the curve of accuracy against bytes.

    Scores, qualities and errors have one entry for each criterion: for each metric that the budget limits.
    """

    step: int
    scores: tuple[float, ...]  # the metrics on the validation split
    qualities: tuple[float, ...]  # what an accuracy budget limits (:meth:`lqconvert.tasks.Heads.qualities`)
    errors: tuple[float, ...]  # standard errors of the paired differences from the float model
    loss: float  # on the validation split
    bytes: int  # the size of the target's file, packed
    pressure: float  # the penalty weight: a factor on the scheme's penalty

    def numbers(self) -> np.ndarray:
        """All fields as numbers, float64 [3 criteria + 4]."""
        rest = self.step, self.loss, self.bytes, self.pressure
        return np.array([*rest, *self.scores, *self.qualities, *self.errors], np.float64)

    @classmethod
    def of_numbers(cls, numbers: np.ndarray) -> Point:
        """The inverse of :meth:`numbers`."""
        (step, loss, size, pressure), criteria = numbers[:4].tolist(), numbers[4:]
        scores, qualities, errors = (tuple(part.tolist()) for part in np.split(criteria, 3))
        return cls(int(step), scores, qualities, errors, loss, int(size), pressure)

    @classmethod
    def of_json(cls, fields: dict[str, Any]) -> Point:
        """The point with these fields of a JSON object, in which tuples are lists."""
        tuples = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return cls(**fields | tuples)

    @property
    def score(self) -> float:
        """The first metric."""
        return self.scores[0]

    @property
    def quality(self) -> float:
        """The quality of the first criterion."""
        return self.qualities[0]

    @property
    def sampling_errors(self) -> tuple[float, ...]:
        """The sampling error of each quality: 1.645 standard errors (a one-sided test at 5%)."""
        return tuple(1.645 * error for error in self.errors)


@dataclass(frozen=True)
class Budget:
    """The smallest file within ``max_drop``, or the best one within ``max_size``. Without both, no steering.

    Args:
        max_drop: how far each judged metric may drop below the float model's on the validation split, in
            points (hundredths).
        max_size: the largest size of the .tflite in bytes, as the target stores it.
        asked: the user set this budget. If not, the run writes the best file even if it misses the budget.

    >>> str(Budget(max_drop=0.5)), str(Budget(max_size=64_000))
    ('a drop of at most 0.5 points', 'at most 64,000 bytes')
    """

    max_drop: float | None = None
    max_size: int | None = None
    asked: bool = True

    @property
    def steers(self) -> bool:
        return self.max_drop is not None or self.max_size is not None

    @property
    def cycles(self) -> int:
        """The number of cycles of fine-tuning (see :class:`Steering`)."""
        return Steering.CYCLES if self.steers else 1

    def __str__(self) -> str:
        if self.max_size is not None:
            return f"at most {self.max_size:,} bytes"
        return "none" if self.max_drop is None else f"a drop of at most {self.max_drop:g} points"


class Steering:
    """Finds the penalty weight that a budget allows, during one fine-tuning run.

    The run consists of cycles. Each ends at learning rate 0, because only annealed weights show what their
    penalty weight costs. After each cycle, the penalty weight changes.

    *Accuracy budgets* start at a penalty weight that most models can take: a large one at once costs accuracy
    that several cycles would have kept. After each cycle it is multiplied or divided by a factor, until one
    value held the budget and another one did not. From then on it is their geometric mean. It always changes
    by at least the fourth root of two, because a model can take more, the longer it has learned. For the same
    reason, the first penalty weight is lowered only after two cycles that miss the budget.

    *Size budgets* are less noisy. Bytes fall with a power of the penalty weight, which is estimated from the
    last two evaluations. Bytes usually do not come back when the penalty weight falls: a channel that is all
    zero stays zero. So after an evaluation far below the size, the run continues from the smallest weights
    above the size, with a penalty weight in between. Once the file nearly fills the size, the penalty weight
    is halved in each cycle: the bytes stay, and accuracy recovers.

    Args:
        budget: the budget.
        float_qualities: the float model's :attr:`Point.qualities` on the validation split.
        keep_last: without a budget, take the last evaluation instead of the one with the best score: for
            schemes whose codes become coarser as they learn.
        perfect: for each criterion, whether the float model is compared with itself because there are no
            labels. No quantized model reaches that, so a drop is measured from the best quality seen.
    """

    CYCLES = 6
    START = 0.25
    COLLAPSE = 20.0  # points
    UP, DOWN = 4.0, 2.0
    WIDEN = math.sqrt(2)
    ALIKE = 1.05  # sizes within this factor count as equal: the better weights win
    SIZE_MARGIN = 0.985  # aim at this part of the size: the exact bytes are known only in the end
    NEAR = 0.9  # of the size aimed at: filled well enough
    COME_BACK = 0.1  # the power with which bytes rise when the penalty weight falls, if they do
    LEAST = 1.05  # the least factor on the penalty weight of weights above the size
    RECOVER = 0.5, 1.15  # factors on the penalty weight of a filled size; the second if bytes exceed it again
    POWERS = 0.25, 0.5, 1.0  # of the penalty weight, with which bytes fall: the least, usual and largest one

    def __init__(
        self,
        budget: Budget,
        float_qualities: Sequence[float],
        *,
        keep_last: bool = True,
        perfect: Sequence[bool] = (),
    ) -> None:
        self.budget = budget
        self.required = [quality - (budget.max_drop or 0.0) * POINT for quality in float_qualities]
        self.target = (budget.max_size or 0) * self.SIZE_MARGIN
        self.keep_last = keep_last
        self.perfect = list(perfect) or [False] * len(self.required)
        self.best = [-math.inf] * len(self.required)
        self.cycles = budget.cycles
        self.penalty_weight = self.START if budget.steers else 1.0
        self.low, self.high = 0.0, math.inf
        self.last: Point | None = None
        self.larger: Point | None = None  # the smallest evaluation above the size, after learning
        self.filled = False  # an evaluation nearly filled the size
        self.comes_back = False  # bytes rose when the penalty weight fell
        self.patient = True

    def see(self, point: Point) -> None:
        """Records the best qualities so far. Call it first with each evaluation."""
        self.best = list(map(max, self.best, point.qualities))
        for place, perfect in enumerate(self.perfect):
            if perfect:
                self.required[place] = self.best[place] - (self.budget.max_drop or 0.0) * POINT
        if self.exceeds(point):
            self.larger = point

    def exceeds(self, point: Point) -> bool:
        """Whether an evaluation after learning is above the size and smaller than all others above it."""
        if self.budget.max_size is None or not point.step or self.fits(point):
            return False
        return self.larger is None or point.bytes <= self.larger.bytes

    def fits(self, point: Point) -> bool:
        """Whether an evaluation is within the size aimed at."""
        return point.bytes <= self.target

    def origin(self, point: Point, best: Point) -> Point:
        """The evaluation from which learning continues: this one, the best, or the smallest over the size."""
        if self.budget.max_size is not None and not self.filled and not self.comes_back:
            return self.larger or point
        return best if best.step and not self.holds(point) else point

    def replay(self, points: Sequence[Point]) -> None:
        """Restores the state of a run that has made these evaluations."""
        for place, point in enumerate(points):
            self.see(point)
            # The first of two evaluations before the first step has codes that no penalty weight led to.
            last_of_step = place + 1 == len(points) or points[place + 1].step > point.step
            if last_of_step and not (point.step and self.collapsed(point)):
                self.next_penalty_weight(point)

    def holds(self, point: Point) -> bool:
        if self.budget.max_size is not None:
            return point.bytes <= self.budget.max_size
        if self.budget.max_drop is None:
            return True
        above = zip(self.margins(point), self.tolerances(point), strict=True)
        return all(margin + tolerance >= 0 for margin, tolerance in above)

    def margins(self, point: Point) -> list[float]:
        """How far each quality is above the required one."""
        return [quality - floor for quality, floor in zip(point.qualities, self.required, strict=True)]

    def margin(self, point: Point) -> float:
        """The smallest of these margins."""
        return min(self.margins(point))

    def tolerances(self, point: Point) -> list[float]:
        """How far each quality may be below the required one: its sampling error, within limits.

        A noisy split must not excuse a real drop, so the tolerance plus one standard error is at most half a
        point. But the tolerance is not reduced below a tenth of a point, which 8 bits alone may cost.
        """
        return [
            min(sampling, max(POINT / 2 - error, POINT / 10))
            for sampling, error in zip(point.sampling_errors, point.errors, strict=True)
        ]

    def collapsed(self, point: Point) -> bool:
        """Whether learning was too fast: the quality is far below what any quantization should cost."""
        return self.margin(point) < -self.COLLAPSE * POINT

    def rank(self, point: Point) -> tuple[float, ...]:
        """Higher is better for the budget."""
        if self.budget.max_size is not None:
            return (1, self.margin(point), point.step) if self.fits(point) else (0, -point.bytes)
        if self.budget.max_drop is not None:
            size = round(math.log(point.bytes) / math.log(self.ALIKE))
            return (1, -size, self.margin(point)) if self.holds(point) else (0, self.margin(point))
        return (point.step,) if self.keep_last else (point.score, point.step)

    def next_penalty_weight(self, point: Point) -> float:
        """The penalty weight of the next cycle, from the evaluation after this one (or at the start)."""
        if self.budget.max_size is not None:
            self.penalty_weight = self._for_size(point)
        elif self.budget.max_drop is not None and point.step:
            self.penalty_weight = self._for_score(point)
        return self.penalty_weight

    def _for_score(self, point: Point) -> float:
        patient, self.patient = self.patient, False
        if self.holds(point):
            self.low, self.high = self.penalty_weight, max(self.high, self.penalty_weight * self.WIDEN)
        elif patient:
            return self.penalty_weight
        else:
            self.low, self.high = min(self.low, self.penalty_weight / self.WIDEN), self.penalty_weight
        if self.low == 0.0:
            return self.high / self.DOWN
        return self.low * self.UP if self.high == math.inf else math.sqrt(self.low * self.high)

    def _for_size(self, point: Point) -> float:
        least, power, most = self.POWERS
        last, self.last = self.last, point
        if last is None:
            return self.START * (0.4 * point.bytes / self.target) ** (1 / power)
        self.filled = self.filled or (self.fits(point) and point.bytes >= self.NEAR * self.target)
        if last.step and last.pressure != point.pressure:
            seen = math.log(last.bytes / point.bytes) / math.log(point.pressure / last.pressure)
            if self.larger is None and point.pressure < last.pressure:  # it continued from these weights
                self.comes_back = self.comes_back or seen >= self.COME_BACK
            power = min(max(seen, least), most)
        if self.filled and not self.comes_back:
            recover, back = self.RECOVER
            factor = recover if self.fits(point) else back
            return factor * self.penalty_weight * (point.bytes / self.target) ** (1 / self.POWERS[1])
        lowest = 1 / 16 if self.fits(point) else self.LEAST
        return self.penalty_weight * min(max((point.bytes / self.target) ** (1 / power), lowest), 16.0)
