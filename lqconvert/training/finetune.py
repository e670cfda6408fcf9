"""Learns weights, scales and ranges together, looks at what came of it, and steers by that."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
import tf_keras

from lqconvert.data.dataset import Data, Split
from lqconvert.data.preprocessing import Preprocessing
from lqconvert.errors import LqError
from lqconvert.exporting.codes import Codes
from lqconvert.exporting.export import learned_codes
from lqconvert.quantization.calibrate import at_full_width
from lqconvert.quantization.model_outputs import logits_of, predict
from lqconvert.tasks import AGAINST_FLOAT
from lqconvert.training.augmentation import Augmentation
from lqconvert.training.budget import Budget, Point, Steering
from lqconvert.training.checkpoint import Checkpoint
from lqconvert.training.distribution import Distribution
from lqconvert.training.pacing import Pace
from lqconvert.training.size_estimate import independent_bytes, packing_overhead, stored
from lqconvert.training.trainer import Trainer, assign, values
from lqconvert.utils.compression import deflated

log = logging.getLogger(__name__)

#: A third of the learning rate so often comes to nothing.
MOST_ROLLBACKS = 5
#: How often an unsteered run looks at the validation split; a steered one does after every cycle.
LOOKS = 10


@dataclass(frozen=True)
class FinetuneSettings:
    """How a model is fine-tuned.

    Args:
        steps: of the whole run, in cycles of equal length (see :func:`total_steps`).
        learning_rate: Adam's for the scales, falling to 0 along a cosine.
        save_seconds: between two checkpoints.
        damping: factor on the learning rate of all else.
        budget: what the penalty of the scheme is steered to; without one the penalty stays as it is.
        augmentation: how training images are varied; student and teacher see the same.
        keep_last: without a budget leave the model at its last weights instead of its best by score.
    """

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    save_seconds: float
    damping: float = 1.0
    budget: Budget = Budget()  # noqa: RUF009
    augmentation: Augmentation = Augmentation()  # noqa: RUF009
    keep_last: bool = False


@dataclass(frozen=True)
class Progress:
    """Where fine-tuning stands: what the progress bar shows."""

    steps: int  # of the whole run
    loss: float  # of training, the mean since the look before; NaN before the first step
    codes: int  # different integers in use, summed over the tensors
    point: Point


@dataclass(frozen=True)
class Finetuned:
    """How a run ended. The model holds the weights of ``best``."""

    finished: bool  # False if Ctrl-C ended it early
    best: Point
    holds: bool  # the best point holds the budget
    floors: list[float]  # the qualities on the validation split that a budget of accuracy asked for
    tolerances: list[float]  # by which the best may be below
    seen: bool  # the float model may have been trained on the validation split
    curve: list[Point]


def finetune(
    model: tf_keras.Model,
    teacher: tf_keras.Model,
    data: Data,
    preprocessing: Preprocessing,
    settings: FinetuneSettings,
    *,
    file_size: Callable[[Codes], int],
    checkpoint: Checkpoint | None = None,
    distribution: Distribution | None = None,
    deadline: float = math.inf,
    save: Callable[[Checkpoint], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
    tick: Callable[[int, int], None] = lambda *_: None,
) -> Finetuned:
    """Fine-tunes a calibrated model in place and leaves it at the weights that serve the budget best.

    A loss that is no number, or codes that no file can hold, take the run back to its last look, with the
    best weights so far and a third of the learning rate.

    Args:
        model: what :func:`lqconvert.rewrite` gives, calibrated.
        teacher: the float model as :func:`.fold_batchnorm.fold` gives it; its outputs are half of the
            target (all of it without labels).
        file_size: the bytes of the file that codes come to.
        checkpoint: where a run of the same arguments had come to: this one ends as that would have.
        distribution: the devices that share each batch.
        deadline: when to end, on the clock of ``time.monotonic``: cycles are shortened to that.
        save: called with all that there is to go on from, about every minute and after every look.
        progress: called at every look at the validation split.
        tick: called between steps, about every second, with the step and the steps of the whole run.

    Raises:
        LqError: if it diverges, however slowly the model learns.
    """
    validation_teacher = predict(logits_of(teacher), data.validation, preprocessing)
    seen = _seen(logits_of(teacher), data, preprocessing, validation_teacher)
    distribution = distribution or Distribution()
    steering = steering_of(
        settings.budget,
        data,
        validation_teacher,
        keep_last=settings.keep_last,
        distribution=distribution,
    )
    pace = Pace(settings.steps, steering.cycles, 1 if steering.cycles > 1 else LOOKS)
    # A constant where nothing shortens it: so it is traced, and rounds, as it always was.
    cycle = int(pace.cycle) if deadline == math.inf else pace.cycle
    schedule = tf_keras.optimizers.schedules.CosineDecayRestarts(settings.learning_rate, cycle, t_mul=1.0)
    trainer = Trainer.of(
        model,
        teacher,
        data,
        preprocessing,
        batch_size=settings.batch_size,
        learning_rate=schedule,
        damping=settings.damping,
        seed=settings.seed,
        augmentation=settings.augmentation,
        distribution=distribution,
    )
    look = Look(model, data, preprocessing, validation_teacher, file_size)
    course = _Course(trainer, look, steering, pace, deadline, settings.save_seconds, save, progress, tick)
    finished = True
    try:
        if checkpoint is None:
            course.begin()
        else:
            course.resume(checkpoint)
        course.run()
    except KeyboardInterrupt:
        finished = False
        if not course.points:
            raise
    assign(model.variables, course.best_variables)
    best = course.points[course.best]
    return Finetuned(
        finished,
        best,
        steering.holds(best),
        steering.floors,
        steering.tolerances(best),
        seen,
        course.points,
    )


def total_steps(examples: int, epochs: int, batch_size: int, cycles: int, *, least: int | None = None) -> int:
    """The steps of a run of cycles of equal length.

    Args:
        least: how many there are at least. None for no more than the epochs have, even if they are very
            few: some cycles are left out then.
    """
    steps = epochs * math.ceil(examples / batch_size)
    if least is not None:
        return cycles * math.ceil(max(steps, least) / cycles)
    return steps - steps % cycles if steps > cycles else steps


def _seen(
    teacher: tf_keras.Model, data: Data, preprocessing: Preprocessing, validation_logits: np.ndarray
) -> bool:
    """Whether the float model does no better on training data than on the validation split.

    Then it was either trained on both (people train on all that they have), or has learned nothing by heart.
    """
    if not data.labelled:
        return False
    train = data.train.pick(np.random.default_rng(0).permutation(data.train.size)[: data.validation.size])
    known = float_qualities(data, predict(teacher, train, preprocessing), train)[0]
    others = float_qualities(data, validation_logits, data.validation)[0]
    error = math.sqrt(known.var() / len(known) + others.var() / len(others))
    return bool(known.mean() - others.mean() < 2 * error)


def float_qualities(data: Data, logits: np.ndarray, split: Split) -> np.ndarray:
    """[criteria, n]: what budgets judge of the float model itself."""
    return data.heads.qualities(logits, split.y, data.heads.activated(logits))


def steering_of(
    budget: Budget,
    data: Data,
    logits: np.ndarray,
    *,
    keep_last: bool = True,
    distribution: Distribution | None = None,
) -> Steering:
    """The budget in terms of this data set's scores."""
    qualities = (distribution or Distribution()).agreed(
        float_qualities(data, logits, data.validation).mean(axis=1)
    )
    perfect = [head.task in AGAINST_FLOAT for head, _ in data.heads.criteria]
    floats = [float(quality) for quality in qualities]
    return Steering(budget, floats, keep_last=keep_last, perfect=perfect)


class Look:
    """Looks at the validation split and at the codes."""

    def __init__(
        self,
        quantized: tf_keras.Model,
        data: Data,
        preprocessing: Preprocessing,
        teacher_logits: np.ndarray,
        file_size: Callable[[Codes], int],
    ) -> None:
        self.quantized, self.data, self.preprocessing = quantized, data, preprocessing
        self.file_size = file_size
        self.overheads: list[tuple[float, float]] = []  # (independent, packed bytes over it), at each look
        self.codes_in_use = 0  # different integers, summed over the tensors
        logits = logits_of(quantized)
        self.teacher = data.heads.activated(teacher_logits)
        self.float_qualities = float_qualities(data, teacher_logits, data.validation)
        self.call = tf.function(lambda x: logits(x, training=False), reduce_retracing=True)

    def __call__(self, step: int, pressure: float) -> Point:
        validation = self.data.validation
        batches = validation.batches(256, preprocessing=self.preprocessing)
        logits = np.concatenate([self.call(x).numpy() for _, x, _ in batches])
        labels = validation.y
        codes = learned_codes(self.quantized)
        self.codes_in_use = sum(layer.kernel.code_count for layer in codes.layers.values())
        kernels, independent = b"".join(stored(codes)), max(independent_bytes(codes), 1.0)
        packed = deflated(kernels)
        known = self.overheads or [(independent, packed / independent)]
        estimated = independent * packing_overhead(independent, known)
        heads = self.data.heads
        scores = heads.judged_scores(heads.activated(logits), labels, self.teacher)
        qualities = heads.qualities(logits, labels, self.teacher)
        differences = qualities - self.float_qualities
        errors = differences.std(axis=1) / math.sqrt(differences.shape[1])
        point = Point(
            step,
            tuple(scores),
            tuple(qualities.mean(axis=1).tolist()),
            tuple(errors.tolist()),
            heads.loss(logits, labels, self.teacher),
            self.file_size(codes),
            round(estimated),
            packed,
            pressure,
        )
        self.overheads.append((independent, packed / independent))
        return point


class _Course:
    """A fine-tuning under way: steps, looks at intervals, steers by them, and keeps the best weights."""

    def __init__(
        self,
        trainer: Trainer,
        look: Look,
        steering: Steering,
        pace: Pace,
        deadline: float,
        save_seconds: float,
        save: Callable[[Checkpoint], None],
        progress: Callable[[Progress], None],
        tick: Callable[[int, int], None],
    ) -> None:
        self.trainer, self.look, self.steering = trainer, look, steering
        self.pace, self.deadline, self.save_seconds = pace, deadline, save_seconds
        self.save, self.progress, self.tick = save, progress, tick
        self.step, self.rollbacks = 0, 0
        self.points: list[Point] = []
        self.best = 0  # place in the points
        self.best_variables: list[np.ndarray] = []
        self.larger_variables: list[np.ndarray] = []  # at the steering's smallest look over a size

    def begin(self) -> None:
        self.trainer.copy_to(self.look.quantized)
        if self.steering.budget.steers:  # plain int8: what remains where nothing smaller holds the budget
            with at_full_width(self.look.quantized):
                self._see(self._look())
            self.trainer.copy_from(self.look.quantized)  # its scales went to the grid and back
        point = self._look()
        self._see(point)
        self.steering.next_pressure(point)
        self._save()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Goes on from where another run of the same settings stood."""
        self.step, self.rollbacks = checkpoint.step, checkpoint.rollbacks
        self.pace.go_on(checkpoint.cycle)
        self.points, self.best = checkpoint.points, checkpoint.best
        self.best_variables = checkpoint.best_variables
        self.larger_variables = checkpoint.larger_variables
        self.look.overheads = checkpoint.overheads
        assign(self.trainer.model.variables, checkpoint.variables)
        assign(self.trainer.optimizer.variables, checkpoint.optimizer)
        self.trainer.seek(self.step)
        self.steering.replay(self.points)
        if not self.larger_variables:  # of an older version
            self.steering.larger = None

    def run(self) -> None:
        """Learns until the last step."""
        chunk, saved = 1, time.monotonic()
        losses: list[tuple[float, int]] = []  # since the last look, and over how many steps
        while self.step < self.pace.steps:
            interval = self.pace.interval
            until = min(self.step - self.step % interval + interval, self.pace.steps)
            taken, start = min(chunk, until - self.step), time.monotonic()
            loss = self.trainer.run(taken, self.steering.pressure)
            losses.append((loss, taken))
            self.step += taken
            now = time.monotonic()
            took, left = self.trainer.distribution.agreed(np.array([now - start, self.deadline - now]))
            self.pace.stepped(self.step, taken, took, left)
            until = min(until, self.pace.steps)
            self.tick(self.step, self.pace.steps)
            try:
                if not math.isfinite(loss):
                    raise LqError("the loss is no number")
                point = None
                if self.step == until:
                    self.trainer.copy_to(self.look.quantized)
                    point = self._look()
            except LqError as error:  # also of codes that no file can hold
                self._roll_back(error)
                losses = []
                continue
            if point is not None:
                self._see(
                    point, sum(each * steps for each, steps in losses) / sum(steps for _, steps in losses)
                )
                self._steer(point)
                losses = []
            if self.step == until or now - saved > self.save_seconds:
                self._save()
                saved = now
            # Long enough that Python costs nothing, short enough that Ctrl-C is heard.
            if took < 0.25:
                chunk *= 2
            elif took > 1:
                chunk = max(1, chunk // 2)
        if self.step < self.pace.planned:
            log.warning(f"stopped after {self.step:,} of {self.pace.planned:,} steps, as --max-minutes asks")

    def _look(self) -> Point:
        """What the chief sees, on every worker: they are to decide alike."""
        start = time.monotonic()
        point = self.look(self.step, self.steering.pressure)
        took = time.monotonic() - start
        *chiefs, took = self.trainer.distribution.agreed(np.append(point.numbers(), took))
        self.pace.looked(took)
        return Point.of_numbers(np.array(chiefs))

    def _see(self, point: Point, loss: float = math.nan) -> None:
        """Puts a point on the curve. Ctrl-C may come at any line of it."""
        self.steering.see(point)
        place, best = len(self.points), self.points[self.best] if self.points else point
        better = self.steering.rank(point) >= self.steering.rank(best)
        larger = self.steering.larger is point
        variables = values(self.look.quantized.variables) if better or larger else []
        self.points.append(point)
        if better:
            self.best, self.best_variables = place, variables
        if larger:
            self.larger_variables = variables
        self.progress(Progress(self.pace.steps, loss, self.look.codes_in_use, point))

    def _steer(self, point: Point) -> None:
        if self.steering.cycles == 1:
            return
        if self.steering.collapsed(point):
            self.trainer.optimizer.slow_down()
        else:
            self.steering.next_pressure(point)
        best = self.points[self.best]
        origin = self.steering.origin(point, best)
        if origin is best and best is not point:
            assign(self.trainer.model.variables, self.best_variables)
        elif origin is not point:
            assign(self.trainer.model.variables, self.larger_variables)

    def _roll_back(self, error: LqError) -> None:
        """To the last look, and the best weights so far."""
        if self.rollbacks == MOST_ROLLBACKS:
            raise LqError(f"fine-tuning diverges, however slowly it learns ({error})") from error
        self.rollbacks += 1
        diverged, self.step = self.step, self.points[-1].step
        log.warning(f"step {diverged}: {error}; back to step {self.step}, with a third of the learning rate")
        assign(self.trainer.model.variables, self.best_variables)
        self.trainer.optimizer.restart(self.step)
        self.trainer.optimizer.slow_down()
        self.trainer.seek(self.step)

    def _save(self) -> None:
        self.save(
            Checkpoint(
                self.step,
                values(self.trainer.model.variables),
                values(self.trainer.optimizer.variables),
                self.best_variables,
                self.points,
                self.best,
                self.look.overheads,
                self.rollbacks,
                int(self.pace.cycle),
                self.larger_variables,
            )
        )
