"""The length of a run's cycles: as planned, or shortened to a time limit."""

from __future__ import annotations

import math

import tensorflow as tf


class Pace:
    """The steps of a run and of its cycles. The learning rate starts anew with each cycle.

    With a time limit, the first cycle measures how long steps and evaluations take. It is shortened so that
    all cycles fit, and the others get the same length. If the run becomes slower later, it still ends in
    time.

    Args:
        steps: the planned steps of the whole run.
        cycles: the number of cycles.
        evaluations: the number of evaluations in each cycle.
    """

    MEASURED = 1.0  # seconds of steps that are needed to measure their speed
    PLANNED = 0.9  # the part of the time that is planned; the rest is for saving files

    def __init__(self, steps: int, cycles: int, evaluations: int) -> None:
        self.steps = self.planned = steps
        self.cycles, self.evaluations = cycles, evaluations
        #: A variable, because the schedule of the learning rate is part of a traced function.
        self.cycle = tf.Variable(max(1, steps // cycles), trainable=False, dtype=tf.int64)
        self.began, self.taken, self.seconds, self.evaluation_seconds = False, 0, 0.0, math.inf

    @property
    def interval(self) -> int:
        """The number of steps between two evaluations."""
        return max(1, int(self.cycle) // self.evaluations)

    def evaluated(self, seconds: float) -> None:
        """Records the time of an evaluation. The first one includes tracing."""
        self.evaluation_seconds = min(self.evaluation_seconds, seconds)

    def stepped(self, step: int, taken: int, seconds: float, left: float) -> None:
        """Records steps, and plans the rest by the time left.

        Args:
            step: the current step.
            taken, seconds: the number of steps just taken, and their time.
            left: seconds until the run has to end.
        """
        if left <= 0:
            self.steps = step
        if self.began:
            self.taken, self.seconds = self.taken + taken, self.seconds + seconds
        self.began = True  # the first steps included tracing, so they are not measured
        if 0 < left < math.inf and self.seconds >= self.MEASURED and step < int(self.cycle):
            learning = self.PLANNED * left - self.cycles * self.evaluations * self.evaluation_seconds
            fitting = step + int(learning * self.taken / self.seconds)
            self.go_on(min(max(fitting // self.cycles, step + 1), max(1, self.planned // self.cycles)))

    def go_on(self, cycle: int) -> None:
        """Continues with cycles of this many steps."""
        self.cycle.assign(cycle)
        self.steps = min(cycle * self.cycles, self.planned)
