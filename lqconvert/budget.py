"""What the user asks for, an accuracy or a size, and how fine-tuning is steered to it in one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One look at the model during fine-tuning: a point of the curve of score against bytes."""

    step: int
    score: float  # of the validation split: accuracy, or minus the mean squared error
    confidence: float  # 1 - Brier score at the temperature that suits best; 0 where there are no classes
    error: float  # standard error of the difference of quality from the float model's, example by example
    loss: float  # of the validation split: cross-entropy in nats, or the mean squared error
    bytes: int  # of the target's file, packed
    estimated_weight_bytes: int  # from the entropy of the codes, and what was packed at the points before
    weight_bytes: int  # deflated codes
    pressure: float  # factor on the scheme's penalty

    @property
    def quality(self) -> float:
        """What a budget of accuracy judges: the mean of score and confidence, or the score alone.

        Accuracy is what counts, and a noisy count of rare errors; confidence shows damage much earlier.
        """
        return (self.score + self.confidence) / 2 if self.confidence else self.score

    @property
    def sampling_error(self) -> float:
        """By how much the validation split may flatter or belittle the quality: one side of a test at 5%."""
        return 1.645 * self.error


@dataclass(frozen=True)
class Budget:
    """The smallest file within ``max_drop``, or the best within ``max_size``; neither: no steering.

    Args:
        max_drop: how far the validation score may be under the float model's: in points of accuracy, or in
            percent of the targets' variance.
        max_size: bytes of the .tflite as the target stores it.

    >>> str(Budget(max_drop=0.5)), str(Budget(max_size=64_000))
    ('at most 0.5 points under float', 'at most 64,000 bytes')
    """

    max_drop: float | None = None
    max_size: int | None = None

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
        return "none" if self.max_drop is None else f"at most {self.max_drop:g} points under float"


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
        float_quality: the float model's :attr:`Point.quality` on the validation split.
        point: what a point of score is (see :class:`Budget`).
        keep_last: without a budget the last look counts, not the one of the best score: for schemes that
            coarsen as they learn.
        perfect: the float model is measured against itself, for want of labels. No codes reach that, and a
            drop is one from the best that was seen.
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
        float_quality: float,
        *,
        point: float,
        keep_last: bool = True,
        perfect: bool = False,
    ) -> None:
        self.budget, self.point = budget, point
        self.floor = float_quality - (budget.max_drop or 0.0) * point
        self.target = (budget.max_size or 0) * self.SIZE_MARGIN
        self.keep_last = keep_last
        self.perfect, self.best = perfect, -math.inf
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
        self.best = max(self.best, point.quality)
        if self.perfect:
            self.floor = self.best - (self.budget.max_drop or 0.0) * self.point
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
        return point.quality + self.tolerance(point) >= self.floor

    def tolerance(self, point: Point) -> float:
        """What a quality may be under the floor without counting as worse: its sampling error.

        But a noisy split may flatter besides, and is no license: a standard error and what passes come to
        half a point at most, as long as a tenth is left, which 8 bits alone may cost.
        """
        return min(point.sampling_error, max(self.point / 2 - point.error, self.point / 10))

    def collapsed(self, point: Point) -> bool:
        """Whether learning was too fast for the model: it is far below what any code should cost."""
        return point.quality < self.floor - self.COLLAPSE * self.point

    def rank(self, point: Point) -> tuple[float, ...]:
        """The higher, the better a point serves the budget."""
        if self.budget.max_size is not None:
            return (1, point.quality, point.step) if self.fits(point) else (0, -point.bytes)
        if self.budget.max_drop is not None:
            size = round(math.log(point.bytes) / math.log(self.ALIKE))
            return (1, -size, point.quality) if self.holds(point) else (0, point.quality)
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
