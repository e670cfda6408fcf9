"""Learns weights, scales and ranges together, evaluates the model in between, and steers by the results."""

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
from lqconvert.quantization.model_outputs import inference, logits_of, predict
from lqconvert.tasks import AGAINST_FLOAT
from lqconvert.training.augmentation import Augmentation
from lqconvert.training.budget import Budget, Point, Steering
from lqconvert.training.checkpoint import Checkpoint
from lqconvert.training.distribution import Distribution
from lqconvert.training.pacing import Pace
from lqconvert.training.trainer import CACHED_BYTES, Trainer, assign, values

log = logging.getLogger(__name__)

#: The learning rate is divided by three at most this often.
MOST_ROLLBACKS = 5
#: The number of evaluations of a run without steering. With steering, there is one after every cycle.
EVALUATIONS = 10


@dataclass(frozen=True)
class FinetuneSettings:
    """How a model is fine-tuned.

    Args:
        steps: of the whole run, divided into cycles of equal length (see :func:`total_steps`).
        learning_rate: Adam's for the scales. It falls to 0 along a cosine.
        save_seconds: the time between two checkpoints.
        damping: factor on the learning rate of everything but the scales.
        budget: the scheme's penalty is steered to it. Without a budget, the penalty stays constant.
        augmentation: how training images are varied. Student and teacher get the same images.
        keep_last: without a budget, keep the last weights instead of those with the best score.
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
    """The state of fine-tuning, as progress bars and logs show it."""

    steps: int  # of the whole run
    loss: float  # mean training loss since the last evaluation; NaN before the first step
    codes: int  # the number of different integers in use, summed over all tensors
    evaluation: Point


@dataclass(frozen=True)
class Finetuned:
    """The result of fine-tuning. The model has the weights of ``best``."""

    finished: bool  # False if Ctrl-C ended it early
    best: Point
    holds: bool  # the best point holds the budget
    required: list[float]  # validation qualities that the accuracy budget requires
    tolerances: list[float]  # how far the best point may be below them
    seen: bool  # the float model may have been trained on the validation split
    curve: list[Point]

    @property
    def margin(self) -> float:
        """How far the best point is above the required qualities, in the worst of them."""
        pairs = zip(self.best.qualities, self.required, strict=True)
        return min(quality - floor for quality, floor in pairs)

    def rank(self, budget: Budget) -> tuple[bool, float]:
        """Higher is better: holding the budget, and then few bytes or, within a size, accuracy."""
        fewer = self.holds == (budget.max_size is None)
        return self.holds, -self.best.bytes if fewer else self.margin


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
    """Fine-tunes a calibrated model in place and leaves it with the weights that serve the budget best.

    If the loss is NaN or infinite, or no file can hold the codes, the run goes back to its last evaluation,
    takes the best weights so far, and continues with a third of the learning rate.

    Args:
        model: a calibrated model from :func:`lqconvert.rewrite`.
        teacher: the float model from :func:`.fold_batchnorm.fold`. Half of the loss compares with its outputs
            (all of it without labels).
        file_size: (codes) -> the bytes of their file.
        checkpoint: of a run with the same arguments. This run ends as that one would have.
        distribution: the devices that share each batch.
        deadline: when to end, on the clock of ``time.monotonic``. Cycles are shortened accordingly.
        save: called with a checkpoint about every minute and after every evaluation.
        progress: called at every evaluation on the validation split.
        tick: called about every second between steps, with the step and the number of steps of the run.

    Raises:
        LqError: if the loss diverges even at low learning rates.
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
    pace = Pace(settings.steps, steering.cycles, 1 if steering.cycles > 1 else EVALUATIONS)
    # A constant unless the run is shortened, so that the traced function rounds as it does without a time
    # limit.
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
    evaluator = Evaluator(model, data, preprocessing, validation_teacher, file_size)
    run = _FinetuningRun(
        trainer, evaluator, steering, pace, deadline, settings.save_seconds, save, progress, tick
    )
    finished = True
    try:
        if checkpoint is None:
            run.begin()
        else:
            run.resume(checkpoint)
        run.run()
    except KeyboardInterrupt:
        finished = False
        if not run.points:
            raise
    assign(model.variables, run.best_variables)
    best = run.points[run.best]
    return Finetuned(
        finished,
        best,
        steering.holds(best),
        steering.required,
        steering.tolerances(best),
        seen,
        run.points,
    )


def total_steps(examples: int, epochs: int, batch_size: int, cycles: int, *, least: int | None = None) -> int:
    """The number of steps of a run whose cycles have equal length.

    Args:
        least: the smallest number of steps. None: no more steps than the epochs have, even if there are
            so few that some cycles are left out.
    """
    steps = epochs * math.ceil(examples / batch_size)
    if least is not None:
        return cycles * math.ceil(max(steps, least) / cycles)
    return steps - steps % cycles if steps > cycles else steps


def _seen(
    teacher: tf_keras.Model, data: Data, preprocessing: Preprocessing, validation_logits: np.ndarray
) -> bool:
    """Whether the float model is no better on training data than on the validation split.

    Then it was trained on both (people train on all data they have), or it has memorized nothing.
    """
    if not data.labelled:
        return False
    train = data.train.pick(np.random.default_rng(0).permutation(data.train.size)[: data.validation.size])
    known = float_qualities(data, predict(teacher, train, preprocessing), train)[0]
    others = float_qualities(data, validation_logits, data.validation)[0]
    error = math.sqrt(known.var() / len(known) + others.var() / len(others))
    return bool(known.mean() - others.mean() < 2 * error)


def float_qualities(data: Data, logits: np.ndarray, split: Split) -> np.ndarray:
    """The float model's own qualities, [criteria, n]."""
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


class Evaluator:
    """Evaluates the model on the validation split, and measures the size of its file."""

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
        self.codes_in_use = 0  # the number of different integers, summed over the tensors
        self.teacher = data.heads.activated(teacher_logits)
        self.float_qualities = float_qualities(data, teacher_logits, data.validation)
        self.call = inference(logits_of(quantized))
        self.batches = data.validation.batches(256, preprocessing=preprocessing)
        inputs = sum(tf.TensorShape(each.shape[1:]).num_elements() for each in quantized.inputs)
        if 4 * inputs * data.validation.size <= CACHED_BYTES:
            self.batches = self.batches.cache()  # images are decoded once

    def __call__(self, step: int, penalty_weight: float) -> Point:
        logits = np.concatenate([self.call(x).numpy() for _, x, _ in self.batches])
        labels = self.data.validation.y
        codes = learned_codes(self.quantized)
        self.codes_in_use = sum(layer.kernel.code_count for layer in codes.layers.values())
        heads = self.data.heads
        scores = heads.judged_scores(heads.activated(logits), labels, self.teacher)
        qualities = heads.qualities(logits, labels, self.teacher)
        differences = qualities - self.float_qualities
        errors = differences.std(axis=1) / math.sqrt(differences.shape[1])
        return Point(
            step,
            tuple(scores),
            tuple(qualities.mean(axis=1).tolist()),
            tuple(errors.tolist()),
            heads.loss(logits, labels, self.teacher),
            self.file_size(codes),
            penalty_weight,
        )


class _FinetuningRun:
    """A fine-tuning run in progress: it takes steps, evaluates, steers, and keeps the best weights."""

    def __init__(
        self,
        trainer: Trainer,
        evaluator: Evaluator,
        steering: Steering,
        pace: Pace,
        deadline: float,
        save_seconds: float,
        save: Callable[[Checkpoint], None],
        progress: Callable[[Progress], None],
        tick: Callable[[int, int], None],
    ) -> None:
        self.trainer, self.evaluator, self.steering = trainer, evaluator, steering
        self.pace, self.deadline, self.save_seconds = pace, deadline, save_seconds
        self.save, self.progress, self.tick = save, progress, tick
        self.step, self.rollbacks = 0, 0
        self.points: list[Point] = []
        self.best = 0  # index into the points
        self.best_variables: list[np.ndarray] = []
        self.larger_variables: list[np.ndarray] = []  # at the smallest evaluation above a size budget

    def begin(self) -> None:
        self.trainer.copy_to(self.evaluator.quantized)
        if self.steering.budget.steers:  # plain int8: the result if nothing smaller holds the budget
            with at_full_width(self.evaluator.quantized):
                self._see(self._evaluate())
            # Its scales were rounded to TFLite's grid in the meantime.
            self.trainer.copy_from(self.evaluator.quantized)
        point = self._evaluate()
        self._see(point)
        self.steering.next_penalty_weight(point)
        self._save()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continues from where another run with the same settings stopped."""
        self.step, self.rollbacks = checkpoint.step, checkpoint.rollbacks
        self.pace.go_on(checkpoint.cycle)
        self.points, self.best = checkpoint.points, checkpoint.best
        self.best_variables = checkpoint.best_variables
        self.larger_variables = checkpoint.larger_variables
        assign(self.trainer.model.variables, checkpoint.variables)
        assign(self.trainer.optimizer.variables, checkpoint.optimizer)
        self.trainer.seek(self.step)
        self.steering.replay(self.points)
        if not self.larger_variables:  # saved by an older version
            self.steering.larger = None

    def run(self) -> None:
        """Learns until the last step."""
        chunk, saved = 1, time.monotonic()
        losses: list[tuple[float, int]] = []  # since the last evaluation: mean loss, number of steps
        while self.step < self.pace.steps:
            interval = self.pace.interval
            until = min(self.step - self.step % interval + interval, self.pace.steps)
            taken, start = min(chunk, until - self.step), time.monotonic()
            loss = self.trainer.run(taken, self.steering.penalty_weight)
            losses.append((loss, taken))
            self.step += taken
            now = time.monotonic()
            took, left = self.trainer.distribution.agreed(np.array([now - start, self.deadline - now]))
            self.pace.stepped(self.step, taken, took, left)
            until = min(until, self.pace.steps)
            self.tick(self.step, self.pace.steps)
            try:
                if not math.isfinite(loss):
                    raise LqError("the loss is not finite")
                point = None
                if self.step == until:
                    self.trainer.copy_to(self.evaluator.quantized)
                    point = self._evaluate()
            except LqError as error:  # including codes that no file can hold
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
            # Long enough that Python takes no time, short enough to react to Ctrl-C.
            if took < 0.25:
                chunk *= 2
            elif took > 1:
                chunk = max(1, chunk // 2)
        if self.step < self.pace.planned:
            log.warning(f"stopped after {self.step:,} of {self.pace.planned:,} steps, at the time limit")

    def _evaluate(self) -> Point:
        """The chief's evaluation, on every worker, so that all workers decide alike."""
        start = time.monotonic()
        point = self.evaluator(self.step, self.steering.penalty_weight)
        took = time.monotonic() - start
        *chiefs, took = self.trainer.distribution.agreed(np.append(point.numbers(), took))
        self.pace.evaluated(took)
        return Point.of_numbers(np.array(chiefs))

    def _see(self, point: Point, loss: float = math.nan) -> None:
        """Adds a point to the curve. Ctrl-C may interrupt it at any line."""
        self.steering.see(point)
        place, best = len(self.points), self.points[self.best] if self.points else point
        better = self.steering.rank(point) >= self.steering.rank(best)
        larger = self.steering.larger is point
        variables = values(self.evaluator.quantized.variables) if better or larger else []
        self.points.append(point)
        if better:
            self.best, self.best_variables = place, variables
        if larger:
            self.larger_variables = variables
        self.progress(Progress(self.pace.steps, loss, self.evaluator.codes_in_use, point))

    def _steer(self, point: Point) -> None:
        if self.steering.cycles == 1:
            return
        if self.steering.collapsed(point):
            self.trainer.optimizer.slow_down()
        else:
            self.steering.next_penalty_weight(point)
        best = self.points[self.best]
        origin = self.steering.origin(point, best)
        if origin is best and best is not point:
            assign(self.trainer.model.variables, self.best_variables)
        elif origin is not point:
            assign(self.trainer.model.variables, self.larger_variables)

    def _roll_back(self, error: LqError) -> None:
        """Goes back to the last evaluation, with the best weights so far."""
        if self.rollbacks == MOST_ROLLBACKS:
            raise LqError(f"fine-tuning diverges even at low learning rates ({error})") from error
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
                self.rollbacks,
                int(self.pace.cycle),
                self.larger_variables,
            )
        )
