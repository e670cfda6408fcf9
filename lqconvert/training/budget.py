"""What the user asks for, an accuracy or a size, and how fine-tuning is steered to it in one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Which examples a run is steered by: "auto" is one of the others.
STEER_ON = ("auto", "validation", "test-half")
#: A point of any metric.
POINT = 0.01


@dataclass(frozen=True)
class Point:
    """One look at the model during fine-tuning: a point of the curve of score against bytes.

    Scores, qualities and errors have an entry for each criterion: for each metric that the budget judges.
    """

    step: int
    scores: tuple[float, ...]  # the metrics on the validation split
    qualities: tuple[float, ...]  # what a budget of accuracy judges (:meth:`lqconvert.tasks.Heads.qualities`)
    errors: tuple[float, ...]  # standard errors of the differences from the float model's, example by example
    loss: float  # of the validation split
    bytes: int  # of the target's file, packed
    estimated_weight_bytes: int  # from the entropy of the codes, and what was packed at the points before
    weight_bytes: int  # deflated codes
    pressure: float  # factor on the scheme's penalty

    def numbers(self) -> np.ndarray:
        """All of it, float64 [3 criteria + 6]."""
        rest = self.step, self.loss, self.bytes, self.estimated_weight_bytes, self.weight_bytes, self.pressure
        return np.array([*rest, *self.scores, *self.qualities, *self.errors], np.float64)

    @classmethod
    def of_numbers(cls, numbers: np.ndarray) -> Point:
        """The inverse of :meth:`numbers`."""
        (step, loss, size, estimated, packed, pressure), criteria = numbers[:6].tolist(), numbers[6:]
        scores, qualities, errors = (tuple(part.tolist()) for part in np.split(criteria, 3))
        sizes = int(size), int(estimated), int(packed)
        return cls(int(step), scores, qualities, errors, loss, *sizes, pressure)

    @classmethod
    def of_json(cls, fields: dict[str, Any]) -> Point:
        """One of the fields that JSON has, where a tuple is a list."""
        tuples = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return cls(**fields | tuples)

    @property
    def score(self) -> float:
        """The first metric."""
        return self.scores[0]

    @property
    def quality(self) -> float:
        """The first criterion's."""
        return self.qualities[0]

    @property
    def sampling_errors(self) -> tuple[float, ...]:
        """By how much the split may flatter or belittle a quality: one side of a test at 5%."""
        return tuple(1.645 * error for error in self.errors)


@dataclass(frozen=True)
class Budget:
    """The smallest file within ``max_drop``, or the best within ``max_size``; neither: no steering.

    Args:
        max_drop: how far each metric that is judged may be under the float model's on the validation split,
            in points: hundredths of it.
        max_size: bytes of the .tflite as the target stores it.
        asked: somebody asked for it; else the run ends with a file, whatever was reached.

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
        """How many fine-tuning is made of (see :class:`Steering`)."""
        return Steering.CYCLES if self.steers else 1

    def __str__(self) -> str:
        if self.max_size is not None:
            return f"at most {self.max_size:,} bytes"
        return "none" if self.max_drop is None else f"a drop of at most {self.max_drop:g} points"


class Steering:
    """Finds the pressure that a budget bears, in the course of one fine-tuning.

    The run is a number of cycles, each of which ends at learning rate 0, because only annealed weights tell
    what their pressure costs. A budget of accuracy starts at a pressure that most models bear: too much of it
    at once costs an accuracy that several cycles would have kept. After each cycle the pressure is raised or
    lowered by a factor until the budget lies between two of them, and is then their geometric mean; but it
    always moves by the fourth root of two at least, because what a model bears grows with the time that it
    has learned. For the same reason the first pressure is borne for two cycles before it is given up.

    Bytes are less noisy: they fall with a power of the pressure, which the last two looks tell. But unless
    looks have shown it, they do not come back where the pressure falls: a channel that is all zero stays so.
    After a look far under the size, learning therefore goes on from the smallest one over it, at a pressure
    between. Once a look nearly fills the size, the pressure is halved cycle by cycle: the bytes stay, and the
    weights recover.

    Args:
        budget: what is asked for.
        float_qualities: the float model's :attr:`Point.qualities` on the validation split.
        keep_last: without a budget the last look counts, not the one of the best score: for schemes that
            coarsen as they learn.
        perfect: of each criterion whether the float model is measured against itself, for want of labels.
            No codes reach that, and a drop is one from the best that was seen.
    """

    CYCLES = 6
    START = 0.25
    COLLAPSE = 20.0  # points
    UP, DOWN = 4.0, 2.0
    WIDEN = math.sqrt(2)
    ALIKE = 1.05  # sizes this close count as one: the better codes win
    SIZE_MARGIN = 0.985  # aimed at: the file's bytes are only known once it is written
    NEAR = 0.9  # of what is aimed at: filled well enough
    COME_BACK = 0.1  # the power of a falling pressure that bytes rise with where they do
    LEAST = 1.05  # times the pressure of what is over the size
    RECOVER = 0.5, 1.15  # times the pressure that keeps a filled size; where that was too little
    POWERS = 0.25, 0.5, 1.0  # of the pressure, that bytes fall with: the least, the usual one, the most

    def __init__(
        self,
        budget: Budget,
        float_qualities: Sequence[float],
        *,
        keep_last: bool = True,
        perfect: Sequence[bool] = (),
    ) -> None:
        self.budget = budget
        self.floors = [quality - (budget.max_drop or 0.0) * POINT for quality in float_qualities]
        self.target = (budget.max_size or 0) * self.SIZE_MARGIN
        self.keep_last = keep_last
        self.perfect = list(perfect) or [False] * len(self.floors)
        self.best = [-math.inf] * len(self.floors)
        self.cycles = budget.cycles
        self.pressure = self.START if budget.steers else 1.0
        self.low, self.high = 0.0, math.inf
        self.last: Point | None = None
        self.larger: Point | None = None  # the smallest that was learned and is over the size
        self.filled = False  # a look came near the size
        self.comes_back = False  # bytes rose where the pressure fell
        self.patient = True

    def see(self, point: Point) -> None:
        """Takes note of what can be reached, to be called with each look first."""
        self.best = list(map(max, self.best, point.qualities))
        for place, perfect in enumerate(self.perfect):
            if perfect:
                self.floors[place] = self.best[place] - (self.budget.max_drop or 0.0) * POINT
        if self.exceeds(point):
            self.larger = point

    def exceeds(self, point: Point) -> bool:
        """Whether a learned look is over the size, and smaller than any other that was."""
        if self.budget.max_size is None or not point.step or self.fits(point):
            return False
        return self.larger is None or point.bytes <= self.larger.bytes

    def fits(self, point: Point) -> bool:
        """Whether a look is within the size that is aimed at."""
        return point.bytes <= self.target

    def origin(self, point: Point, best: Point) -> Point:
        """The look from whose weights learning goes on: this, the best, or the smallest over a size."""
        if self.budget.max_size is not None and not self.filled and not self.comes_back:
            return self.larger or point
        return best if best.step and not self.holds(point) else point

    def replay(self, points: Sequence[Point]) -> None:
        """Comes to where a run stood that has seen these points."""
        for place, point in enumerate(points):
            self.see(point)
            # The first of two looks before the first step is at codes that no pressure led to.
            last_of_step = place + 1 == len(points) or points[place + 1].step > point.step
            if last_of_step and not (point.step and self.collapsed(point)):
                self.next_pressure(point)

    def holds(self, point: Point) -> bool:
        if self.budget.max_size is not None:
            return point.bytes <= self.budget.max_size
        if self.budget.max_drop is None:
            return True
        above = zip(self.margins(point), self.tolerances(point), strict=True)
        return all(margin + tolerance >= 0 for margin, tolerance in above)

    def margins(self, point: Point) -> list[float]:
        """How far each quality is above what the budget asks for."""
        return [quality - floor for quality, floor in zip(point.qualities, self.floors, strict=True)]

    def margin(self, point: Point) -> float:
        """That of the criterion which fares worst."""
        return min(self.margins(point))

    def tolerances(self, point: Point) -> list[float]:
        """What each quality may be under the floor without counting as worse: its sampling error.

        But a noisy split may flatter besides, and is no license: a standard error and what passes come to
        half a point at most, as long as a tenth is left, which 8 bits alone may cost.
        """
        return [
            min(sampling, max(POINT / 2 - error, POINT / 10))
            for sampling, error in zip(point.sampling_errors, point.errors, strict=True)
        ]

    def collapsed(self, point: Point) -> bool:
        """Whether learning was too fast for the model: it is far below what any code should cost."""
        return self.margin(point) < -self.COLLAPSE * POINT

    def rank(self, point: Point) -> tuple[float, ...]:
        """The higher, the better a point serves the budget."""
        if self.budget.max_size is not None:
            return (1, self.margin(point), point.step) if self.fits(point) else (0, -point.bytes)
        if self.budget.max_drop is not None:
            size = round(math.log(point.bytes) / math.log(self.ALIKE))
            return (1, -size, self.margin(point)) if self.holds(point) else (0, self.margin(point))
        return (point.step,) if self.keep_last else (point.score, point.step)

    def next_pressure(self, point: Point) -> float:
        """The pressure of the next cycle, from the look at the end of this one (or before the first)."""
        if self.budget.max_size is not None:
            self.pressure = self._for_size(point)
        elif self.budget.max_drop is not None and point.step:
            self.pressure = self._for_score(point)
        return self.pressure

    def _for_score(self, point: Point) -> float:
        patient, self.patient = self.patient, False
        if self.holds(point):
            self.low, self.high = self.pressure, max(self.high, self.pressure * self.WIDEN)
        elif patient:
            return self.pressure
        else:
            self.low, self.high = min(self.low, self.pressure / self.WIDEN), self.pressure
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
            if self.larger is None and point.pressure < last.pressure:  # one went on from the other's weights
                self.comes_back = self.comes_back or seen >= self.COME_BACK
            power = min(max(seen, least), most)
        if self.filled and not self.comes_back:
            recover, back = self.RECOVER
            factor = recover if self.fits(point) else back
            return factor * self.pressure * (point.bytes / self.target) ** (1 / self.POWERS[1])
        lowest = 1 / 16 if self.fits(point) else self.LEAST
        return self.pressure * min(max((point.bytes / self.target) ** (1 / power), lowest), 16.0)
