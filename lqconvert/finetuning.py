"""Learns weights, scales and ranges together: labels and the float model's own outputs as the targets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from lqconvert.augmentation import Augmentation
from lqconvert.budget import Budget, Point, Steering
from lqconvert.calibration import at_full_width
from lqconvert.checkpoint import Checkpoint
from lqconvert.codes import Codes
from lqconvert.datasets import Data, Preprocessing
from lqconvert.deflating import deflated, entropy_bytes, stored
from lqconvert.errors import LqError
from lqconvert.exporting import learned_codes
from lqconvert.granularity import kernel_name
from lqconvert.quantizers import QuantizedLayer
from lqconvert.scoring import (
    activated,
    logits_of,
    predict,
    qualities,
    right_probabilities,
    score_outputs,
)

#: Fine-tuning of a small data set still takes at least this many steps, and so does each of its cycles.
MINIMUM_STEPS, MINIMUM_CYCLE = 500, 300
#: A teacher's outputs on the training split are kept up to this many bytes, else made anew for each batch.
CACHED_BYTES = 1 << 28
#: Between two checkpoints.
SAVE_SECONDS = 60
#: A third of the learning rate so often comes to nothing.
MOST_ROLLBACKS = 5
#: How often an unsteered run looks at the validation split; a steered one does after every cycle.
LOOKS = 10


@dataclass(frozen=True)
class Progress:
    """Where fine-tuning stands: what the progress bar shows."""

    steps: int  # of the whole run
    loss: float
    codes: int  # different integers in use, summed over the tensors
    point: Point


@dataclass(frozen=True)
class Finetuned:
    """How a run ended. The model holds the weights of ``best``."""

    finished: bool  # False if Ctrl-C ended it early
    best: Point
    holds: bool  # the best point holds the budget
    floor: float  # the quality on the validation split that a budget of accuracy asked for
    sampling_error: float  # by which the best may be below
    seen: bool  # the float model may have been trained on the validation split
    curve: list[Point]


def finetune(
    model: tf_keras.Model,
    teacher: tf_keras.Model,
    data: Data,
    preprocessing: Preprocessing,
    *,
    epochs: int = 3,
    batch_size: int = 128,
    learning_rate: float = 2e-4,
    damping: float = 1.0,
    seed: int = 0,
    budget: Budget | None = None,
    augmentation: Augmentation | None = None,
    keep_last: bool = False,
    file_size: Callable[[Codes], int],
    checkpoint: Checkpoint | None = None,
    save: Callable[[Checkpoint], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> Finetuned:
    """Fine-tunes a calibrated model in place and leaves it at the weights that serve the budget best.

    A loss that is no number, or codes that no file can hold, take the run back to its last look, with the
    best weights so far and a third of the learning rate.

    Args:
        model: what :func:`lqconvert.rewrite` gives, calibrated.
        teacher: the float model as :func:`lqconvert.folding.fold` gives it; its outputs are half of the
            target (all of it without labels).
        epochs: passes over the training split; more where they make fewer than 500 steps.
        learning_rate: Adam's for the scales, falling to 0 along a cosine.
        damping: factor on the learning rate of all else.
        augmentation: how training images are varied; student and teacher see the same.
        budget: what the penalty of the scheme is steered to; without one the penalty stays as it is.
        keep_last: without a budget leave the model at its last weights instead of its best by score.
        file_size: the bytes of the file that codes come to.
        checkpoint: where a run of the same arguments had come to: this one ends as that would have.
        save: called with all that there is to go on from, about every minute and after every look.
        progress: called at every look at the validation split.
        say: called with messages of one line.

    Raises:
        LqError: if it diverges, however slowly the model learns.
    """
    validation_teacher = predict(logits_of(teacher)[0], data.validation, preprocessing)
    seen = _seen(logits_of(teacher)[0], data, preprocessing, validation_teacher)
    steering = _steering(budget or Budget(), data, validation_teacher, logits_of(model)[1], keep_last)
    cycle = cycle_steps(data.train.size, epochs, batch_size, steering.cycles)
    schedule = tf_keras.optimizers.schedules.CosineDecayRestarts(learning_rate, cycle, t_mul=1.0)
    trainer = Trainer.of(
        model,
        teacher,
        data,
        preprocessing,
        batch_size=batch_size,
        learning_rate=schedule,
        damping=damping,
        seed=seed,
        augmentation=augmentation,
    )
    look = _Look(model, data, preprocessing, validation_teacher, file_size)
    course = _Course(model, trainer, look, steering, cycle, save, progress, say)
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
        steering.floor,
        steering.sampling_error(best),
        seen,
        course.points,
    )


def values(variables: Iterable[tf.Variable]) -> list[np.ndarray]:
    return [variable.numpy() for variable in variables]


def assign(variables: Iterable[tf.Variable], arrays: Iterable[np.ndarray]) -> None:
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def cycle_steps(examples: int, epochs: int, batch_size: int, cycles: int) -> int:
    """The steps of each cycle of a run."""
    return math.ceil(
        max(epochs * math.ceil(examples / batch_size), MINIMUM_STEPS, MINIMUM_CYCLE * cycles) / cycles
    )


class RelativeAdam(tf_keras.optimizers.Adam):
    """Adam whose steps are in proportion to what they move, and ``damping`` times as long but for scales.

    A kernel for raw pixels is a hundred times smaller than one for activations, and one learning rate has to
    suit both: it is what a kernel of rms 0.1 would be given. Log-scales are ratios as they are.
    """

    def __init__(self, model: tf_keras.Model, learning_rate: Any, damping: float) -> None:
        super().__init__(learning_rate)
        self.speed = tf.Variable(1.0, trainable=False)
        self.damping = damping
        self.units = {}
        for layer in model.layers:
            if isinstance(layer, QuantizedLayer):
                kernel = getattr(layer.layer, kernel_name(layer.layer))
                rms = float(tf.sqrt(tf.reduce_mean(kernel**2)))
                self.units[kernel.ref()] = damping * max(rms, 1e-6) / 0.1
                for quantizer in layer.quantizers.values():
                    self.units[quantizer.scale_weight.ref()] = 1.0

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Adam's in one operation: Keras's own walks over the variable a dozen times."""
        unit = self.speed * self.units.get(variable.ref(), self.damping)
        step = tf.cast(self.iterations + 1, tf.float32)
        index = self._index_dict[self._var_key(variable)]
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].handle,
            v=self._velocities[index].handle,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=unit * tf.cast(self.learning_rate, tf.float32),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.convert_to_tensor(gradient),
        )


def _flat(values: tf.Tensor) -> tf.Tensor:
    """[batch, ...] as float32 [batch, n]."""
    return tf.cast(tf.reshape(values, (tf.shape(values)[0], -1)), tf.float32)


class Trainer:
    """Training steps of a student on stacked targets: the teacher's outputs and the labels side by side.

    With a teacher given, it answers to each batch as the student does; else its outputs are in the targets.
    The loss is the task's and the student's penalties, ``pressure`` times.
    """

    def __init__(
        self,
        student: tf_keras.Model,
        teacher: tf_keras.Model | None,
        optimizer: RelativeAdam,
        loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
        batches: Callable[[int], tf.data.Dataset],
    ) -> None:
        self.student, self.teacher, self.optimizer = student, teacher, optimizer
        self.loss, self.batches = loss, batches
        optimizer.build(student.trainable_variables)
        self.seek(0)

    @classmethod
    def of(
        cls,
        model: tf_keras.Model,
        teacher: tf_keras.Model,
        data: Data,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        learning_rate: Any,
        damping: float = 1.0,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        cached_bytes: int = CACHED_BYTES,
    ) -> Trainer:
        """Arguments as those of :func:`finetune`.

        Args:
            cached_bytes: what the teacher's outputs may take; it answers each batch anew where they take
                more, and where images vary.
        """
        logits, activation = logits_of(model)
        teacher_logits, _ = logits_of(teacher)
        augment = augmentation or Augmentation()
        outputs = 4 * data.train.size * math.prod(n or 1 for n in teacher_logits.output_shape[1:])
        caches = augment == Augmentation() and outputs <= cached_bytes
        cached = tf.constant(predict(teacher_logits, data.train, preprocessing)) if caches else None

        def batches(start: int) -> tf.data.Dataset:
            stream = data.train.stream(batch_size, seed=seed, start=start, preprocessing=preprocessing)
            if cached is None:
                return stream.map(
                    lambda step, _, x, y: (augment(x, tf.stack([np.int64(seed), step])), _flat(y))
                )
            return stream.map(
                lambda _, index, x, y: (x, tf.concat([_flat(tf.gather(cached, index)), _flat(y)], axis=1))
            )

        return cls(
            logits,
            None if caches else teacher_logits,
            RelativeAdam(logits, learning_rate, damping),
            _distillation(activation, teacher_logits.output_shape[-1], data.labels),
            batches,
        )

    def seek(self, step: int) -> None:
        """Goes on with the batch of this step."""
        self.stream = iter(self.batches(step))

    def run(self, steps: int, pressure: float) -> float:
        """Takes steps; the task's mean loss over them."""
        return float(self._run(self.stream, tf.constant(steps), tf.constant(pressure)))

    @tf.function
    def _run(self, stream: Any, steps: tf.Tensor, pressure: tf.Tensor) -> tf.Tensor:
        total = tf.constant(0.0)
        for _ in tf.range(steps):
            x, y = next(stream)
            total += self._step(x, y, pressure)
        return total / tf.cast(steps, tf.float32)

    def _step(self, x: Any, y: tf.Tensor, pressure: tf.Tensor) -> tf.Tensor:
        if self.teacher is not None:
            y = tf.concat([_flat(self.teacher(x, training=False)), y], axis=1)
        with tf.GradientTape() as tape:
            task = tf.reduce_mean(self.loss(y, self.student(x, training=True)))
            penalties = self.student.losses
            loss = task + pressure * tf.add_n(penalties) if penalties else task
        self.optimizer.minimize(loss, self.student.trainable_variables, tape)
        return task


def _seen(
    teacher: tf_keras.Model, data: Data, preprocessing: Preprocessing, validation_logits: np.ndarray
) -> bool:
    """Whether the float model does no better on training data than on the validation split.

    Then it was either trained on both (people train on all that they have), or has learned nothing by heart.
    """
    if data.labels != "classes":
        return False
    train = data.train.pick(np.random.default_rng(0).permutation(data.train.size)[: data.validation.size])
    chances = right_probabilities(predict(teacher, train, preprocessing), train.arrays()[1])
    others = right_probabilities(validation_logits, data.validation.arrays()[1])
    error = math.sqrt(chances.var() / len(chances) + others.var() / len(others))
    return bool(chances.mean() - others.mean() < 2 * error)


def _steering(budget: Budget, data: Data, logits: np.ndarray, activation: str, keep_last: bool) -> Steering:
    """The budget in terms of this data set's score."""
    labels = data.validation.arrays()[1]
    teacher = activated(logits, activation)
    quality = float(qualities(logits, teacher, labels, teacher).mean())
    point = 0.01
    if data.labels != "classes":
        targets = labels if labels.size else teacher
        point = float(np.var(targets, axis=0).mean()) / 100
    return Steering(
        budget, quality, point=point, keep_last=keep_last, perfect=data.labels == "none" and not quality
    )


def _distillation(activation: str, outputs: int, labels: str) -> Callable[[Any, Any], Any]:
    """Loss of (teacher outputs and label side by side [b, outputs (+ label)], student outputs)."""
    share = 0.5 if labels != "none" else 1.0

    def loss(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        y_pred = tf.reshape(y_pred, (tf.shape(y_pred)[0], -1))
        width = y_pred.shape[-1] or outputs
        from_teacher, label = y_true[:, :width], y_true[:, width:]
        if activation == "softmax" or (labels == "classes" and width > 1):
            value = tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(from_teacher), y_pred)
            if labels == "classes":
                truth = tf.cast(label[:, 0], tf.int32)
                hard = tf.nn.sparse_softmax_cross_entropy_with_logits(truth, y_pred)
                value = share * value + (1 - share) * hard
            return value
        if activation == "sigmoid":
            cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits
            value = tf.reduce_mean(cross_entropy(tf.sigmoid(from_teacher), y_pred), axis=-1)
            if labels == "classes":
                value = share * value + (1 - share) * tf.reduce_mean(cross_entropy(label, y_pred), axis=-1)
            return value
        value = tf.reduce_mean((y_pred - from_teacher) ** 2, axis=-1)
        if labels == "values":
            value = share * value + (1 - share) * tf.reduce_mean((y_pred - label) ** 2, axis=-1)
        return value

    return loss


def packing_overhead(entropy: float, known: list[tuple[float, float]]) -> float:
    """Packed bytes over ``entropy`` (bytes), from the (entropy, overhead) known of the same kernels.

    Deflate spends a bit on a code at least unless it repeats: its overhead grows as the entropy falls, about
    as a power of it, which the last two known tell.
    """
    *before, (last, overhead) = known
    apart = math.log(before[-1][0] / last) if before else 0.0
    power = math.log(overhead / before[-1][1]) / apart if abs(apart) > 0.05 else 0.0
    return overhead * (last / entropy) ** min(max(power, 0.0), 0.2)


class _Look:
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
        self.overheads: list[tuple[float, float]] = []  # (entropy, packed bytes over it) at every look
        self.codes_in_use = 0  # different integers, summed over the tensors
        logits, self.activation = logits_of(quantized)
        self.teacher = activated(teacher_logits, self.activation)
        labels = data.validation.arrays()[1]
        self.float_qualities = qualities(teacher_logits, self.teacher, labels, self.teacher)
        self.call = tf.function(lambda x: logits(x, training=False), reduce_retracing=True)

    def __call__(self, step: int, pressure: float) -> Point:
        validation = self.data.validation
        batches = validation.batches(256, preprocessing=self.preprocessing)
        logits = np.concatenate([self.call(x).numpy() for _, x, _ in batches])
        labels = validation.arrays()[1]
        codes = learned_codes(self.quantized)
        self.codes_in_use = sum(layer.kernel.code_count for layer in codes.layers.values())
        kernels, entropy = b"".join(stored(codes)), max(entropy_bytes(codes), 1.0)
        packed = deflated(kernels)
        estimated = entropy * packing_overhead(entropy, self.overheads or [(entropy, packed / entropy)])
        outputs = activated(logits, self.activation)
        score = score_outputs(outputs, labels, self.teacher)
        chances = right_probabilities(logits, labels)
        classes = self.data.labels == "classes"
        differences = qualities(logits, outputs, labels, self.teacher) - self.float_qualities
        error = float(differences.std()) / math.sqrt(len(differences))
        point = Point(
            step,
            score,
            float(chances.mean()),
            error,
            float(-np.log(np.maximum(chances, 1e-7)).mean()) if classes else -score,
            self.file_size(codes),
            round(estimated),
            packed,
            pressure,
        )
        self.overheads.append((entropy, packed / entropy))
        return point


class _Course:
    """A fine-tuning under way: steps, looks at intervals, steers by them, and keeps the best weights."""

    def __init__(
        self,
        model: tf_keras.Model,
        trainer: Trainer,
        look: _Look,
        steering: Steering,
        cycle: int,
        save: Callable[[Checkpoint], None],
        progress: Callable[[Progress], None],
        say: Callable[[str], None],
    ) -> None:
        self.model, self.trainer, self.look, self.steering = model, trainer, look, steering
        self.save, self.progress, self.say = save, progress, say
        self.steps = cycle * steering.cycles
        self.interval = cycle if steering.cycles > 1 else max(1, cycle // LOOKS)
        self.step, self.rollbacks = 0, 0
        self.points: list[Point] = []
        self.best = 0  # place in the points
        self.best_variables: list[np.ndarray] = []

    def begin(self) -> None:
        if self.steering.budget.steers:  # plain int8: what remains where nothing smaller holds the budget
            with at_full_width(self.model):
                self._see(self.look(0, self.steering.pressure))
        point = self.look(0, self.steering.pressure)
        self._see(point)
        self.steering.next_pressure(point)
        self._save()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Goes on from where another run of the same settings stood."""
        self.step, self.rollbacks = checkpoint.step, checkpoint.rollbacks
        self.points, self.best = checkpoint.points, checkpoint.best
        self.best_variables = checkpoint.best_variables
        self.look.overheads = checkpoint.overheads
        assign(self.model.variables, checkpoint.variables)
        assign(self.trainer.optimizer.variables, checkpoint.optimizer)
        self.trainer.optimizer.speed.assign(checkpoint.speed)
        self.trainer.seek(self.step)
        self.steering.replay(self.points)

    def run(self) -> None:
        """Learns until the last step."""
        chunk, loss, saved = 1, math.nan, time.monotonic()
        while self.step < self.steps:
            until = min(self.step - self.step % self.interval + self.interval, self.steps)
            taken, start = min(chunk, until - self.step), time.monotonic()
            loss = self.trainer.run(taken, self.steering.pressure)
            self.step += taken
            try:
                if not math.isfinite(loss):
                    raise LqError("the loss is no number")
                point = self.look(self.step, self.steering.pressure) if self.step == until else None
            except LqError as error:  # also of codes that no file can hold
                self._roll_back(error)
                continue
            if point is not None:
                self._see(point, loss)
                self._steer(point)
            now = time.monotonic()
            if self.step == until or now - saved > SAVE_SECONDS:
                self._save()
                saved = now
            # Long enough that Python costs nothing, short enough that Ctrl-C is heard.
            if now - start < 0.25:
                chunk *= 2
            elif now - start > 1:
                chunk = max(1, chunk // 2)

    def _see(self, point: Point, loss: float = math.nan) -> None:
        """Puts a point on the curve. Ctrl-C may come at any line of it."""
        self.steering.see(point)
        place, best = len(self.points), self.points[self.best] if self.points else point
        better = self.steering.rank(point) >= self.steering.rank(best)
        variables = values(self.model.variables) if better else []
        self.points.append(point)
        if better:
            self.best, self.best_variables = place, variables
        self.progress(Progress(self.steps, loss, self.look.codes_in_use, point))

    def _steer(self, point: Point) -> None:
        if self.steering.cycles == 1:
            return
        if self.steering.collapsed(point):
            self._slow_down()
        else:
            self.steering.next_pressure(point)
        if not self.steering.holds(point) and self.points[self.best].step:
            assign(self.model.variables, self.best_variables)  # go on from the best so far

    def _slow_down(self) -> None:
        self.trainer.optimizer.speed.assign(self.trainer.optimizer.speed / 3)

    def _roll_back(self, error: LqError) -> None:
        """To the last look, and the best weights so far."""
        if self.rollbacks == MOST_ROLLBACKS:
            raise LqError(f"fine-tuning diverges, however slowly it learns ({error})") from error
        self.rollbacks += 1
        diverged, self.step = self.step, self.points[-1].step
        self.say(f"step {diverged}: {error}; back to step {self.step}, to learn a third as fast")
        assign(self.model.variables, self.best_variables)
        optimizer = self.trainer.optimizer
        assign(optimizer.variables, map(np.zeros_like, values(optimizer.variables)))
        optimizer.iterations.assign(self.step)
        self._slow_down()
        self.trainer.seek(self.step)

    def _save(self) -> None:
        optimizer = self.trainer.optimizer
        self.save(
            Checkpoint(
                self.step,
                values(self.model.variables),
                values(optimizer.variables),
                self.best_variables,
                self.points,
                self.best,
                self.look.overheads,
                self.rollbacks,
                float(optimizer.speed),
            )
        )
