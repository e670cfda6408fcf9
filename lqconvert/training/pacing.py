"""How long the cycles of a run are: as planned, or as short as the time asks for that there is."""

from __future__ import annotations

import math

import tensorflow as tf


class Pace:
    """The steps of a run, and of each of its cycles, with which the learning rate starts anew.

    Where the time is bounded, the first cycle tells how fast steps and looks are, and becomes so short that
    all of them fit; the others are as long as it was. A run that is slower later on ends where the time does.

    Args:
        steps: of the whole run, as planned.
        cycles: how many it is made of.
        looks: at the validation split in each cycle.
    """

    MEASURED = 1.0  # seconds of steps that tell how fast they are
    PLANNED = 0.9  # of the time: saving takes some, too

    def __init__(self, steps: int, cycles: int, looks: int) -> None:
        self.steps = self.planned = steps
        self.cycles, self.looks = cycles, looks
        #: A variable: the schedule of the learning rate is part of a traced function.
        self.cycle = tf.Variable(max(1, steps // cycles), trainable=False, dtype=tf.int64)
        self.began, self.taken, self.seconds, self.look_seconds = False, 0, 0.0, math.inf

    @property
    def interval(self) -> int:
        """The steps from one look to the next."""
        return max(1, int(self.cycle) // self.looks)

    def looked(self, seconds: float) -> None:
        """Takes note of how long a look took; the first one traces, too."""
        self.look_seconds = min(self.look_seconds, seconds)

    def stepped(self, step: int, taken: int, seconds: float, left: float) -> None:
        """Takes note of steps, and plans by what is left of the time.

        Args:
            step: where the run stands.
            taken, seconds: the last steps, and how long they took.
            left: seconds until the run has to end.
        """
        if left <= 0:
            self.steps = step
        if self.began:
            self.taken, self.seconds = self.taken + taken, self.seconds + seconds
        self.began = True  # the first steps were traced besides
        if 0 < left < math.inf and self.seconds >= self.MEASURED and step < int(self.cycle):
            learning = self.PLANNED * left - self.cycles * self.looks * self.look_seconds
            fitting = step + int(learning * self.taken / self.seconds)
            self.go_on(min(max(fitting // self.cycles, step + 1), max(1, self.planned // self.cycles)))

    def go_on(self, cycle: int) -> None:
        """With cycles of so many steps."""
        self.cycle.assign(cycle)
        self.steps = min(cycle * self.cycles, self.planned)
