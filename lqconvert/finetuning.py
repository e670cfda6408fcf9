"""Learns weights, scales and ranges together: labels and the float model's own outputs as the targets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from lqconvert.augmentation import Augmentation
from lqconvert.budget import Budget, Point, Steering
from lqconvert.calibration import at_full_width
from lqconvert.codes import Codes
from lqconvert.datasets import Data, Preprocessing
from lqconvert.deflating import deflated, entropy_bytes, stored
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
    resumed: bool = False,
    file_size: Callable[[Codes], int],
    best_weights: Path,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Finetuned:
    """Fine-tunes a calibrated model in place and leaves it at the weights that serve the budget best.

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
        resumed: the model has been fine-tuned before.
        file_size: the bytes of the file that codes come to.
        best_weights: the .weights.h5 to keep the best weights so far in.
        progress: called at every look at the validation split.
    """
    logits, activation = logits_of(model)
    teacher_logits, _ = logits_of(teacher)
    augment = augmentation or Augmentation()
    varied = augment != Augmentation()
    # A model of its own: compiled, it would save its optimizer's state among the weights.
    student = _Student(logits.inputs, logits.outputs, teacher_logits if varied else None)
    validation_teacher = predict(teacher_logits, data.validation, preprocessing)
    seen = _seen(teacher_logits, data, preprocessing, validation_teacher)
    steering = _steering(budget or Budget(), data, validation_teacher, activation, keep_last)
    steps = max(
        epochs * math.ceil(data.train.size / batch_size), MINIMUM_STEPS, MINIMUM_CYCLE * steering.cycles
    )
    cycle = math.ceil(steps / steering.cycles)
    schedule = tf_keras.optimizers.schedules.CosineDecayRestarts(learning_rate, cycle, t_mul=1.0)
    student.compile(
        RelativeAdam(student, schedule, damping),
        loss=_distillation(activation, teacher_logits.output_shape[-1], data.labels),
    )
    batches = data.train.batches(batch_size, shuffle_seed=seed, preprocessing=preprocessing)
    if varied:
        batches = batches.map(lambda _, x, y: (augment(x), _flat(y)))
    else:
        cached = tf.constant(predict(teacher_logits, data.train, preprocessing))
        batches = batches.map(
            lambda index, x, y: (x, tf.concat([_flat(tf.gather(cached, index)), _flat(y)], axis=1))
        )
    keeper = _KeepBest(
        model,
        data,
        preprocessing,
        validation_teacher,
        steering,
        file_size,
        cycle,
        best_weights,
        progress,
    )
    finished = True
    try:
        if budget is not None and budget.steers and not resumed:
            with at_full_width(model):  # plain int8: what remains where nothing smaller holds the budget
                keeper.look(0, float("nan"))
        student.pressure.assign(steering.next_pressure(keeper.look(0, float("nan"))))
        steps = cycle * steering.cycles
        student.fit(batches.repeat(), steps_per_epoch=steps, epochs=1, verbose=0, callbacks=[keeper])
    except KeyboardInterrupt:
        finished = False
        if not keeper.curve:
            raise
    model.load_weights(best_weights)
    best = keeper.saved
    return Finetuned(finished, best, steering.holds(best), steering.floor, seen, keeper.curve)


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


class _Student(tf_keras.Model):
    """A model whose penalties weigh ``pressure`` times in its loss.

    Its targets are the teacher's outputs and the labels side by side; with a teacher given, only labels.
    """

    def __init__(self, inputs: Any, outputs: Any, teacher: tf_keras.Model | None) -> None:
        super().__init__(inputs, outputs)
        self.pressure = tf.Variable(1.0, trainable=False)
        # Behind a function: as an attribute Keras would train it, too.
        self.teach = None if teacher is None else lambda x: teacher(x, training=False)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        x, y = data
        if self.teach is not None:
            y = tf.concat([_flat(self.teach(x)), y], axis=1)
        with tf.GradientTape() as tape:
            task = self.compiled_loss(y, self(x, training=True))
            loss = task + self.pressure * tf.add_n(self.losses) if self.losses else task
        self.optimizer.minimize(loss, self.trainable_variables, tape)
        return {"loss": task}


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


class _KeepBest(tf_keras.callbacks.Callback):
    """Looks at the validation split and at the codes, steers, and keeps the best weights in a file."""

    def __init__(
        self,
        quantized: tf_keras.Model,
        data: Data,
        preprocessing: Preprocessing,
        teacher_logits: np.ndarray,
        steering: Steering,
        file_size: Callable[[Codes], int],
        cycle: int,
        path: Path,
        progress: Callable[[Progress], None],
    ) -> None:
        super().__init__()
        self.quantized, self.data, self.preprocessing = quantized, data, preprocessing
        self.steering, self.file_size, self.cycle = steering, file_size, cycle
        self.path, self.progress = path, progress
        self.curve: list[Point] = []
        self.saved: Point  # whose weights are in the file
        self.overheads: list[tuple[float, float]] = []  # (entropy, packed bytes over it) at every look
        logits, self.activation = logits_of(quantized)
        self.teacher = activated(teacher_logits, self.activation)
        labels = data.validation.arrays()[1]
        self.float_qualities = qualities(teacher_logits, self.teacher, labels, self.teacher)
        self.call = tf.function(lambda x: logits(x, training=False), reduce_retracing=True)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        every = self.cycle if self.steering.cycles > 1 else max(1, self.cycle // LOOKS)
        if (batch + 1) % every == 0 or batch + 1 == self.cycle * self.steering.cycles:
            point = self.look(batch + 1, float((logs or {})["loss"]))
            if self.steering.cycles == 1:
                return
            if self.steering.collapsed(point):
                self.model.optimizer.speed.assign(self.model.optimizer.speed / 3)
            else:
                self.model.pressure.assign(self.steering.next_pressure(point))
            if not self.steering.holds(point) and self.saved.step:
                self.quantized.load_weights(self.path)  # go on from the best so far

    def look(self, step: int, loss: float) -> Point:
        validation = self.data.validation
        batches = validation.batches(256, preprocessing=self.preprocessing)
        logits = np.concatenate([self.call(x).numpy() for _, x, _ in batches])
        labels = validation.arrays()[1]
        codes = learned_codes(self.quantized)
        kernels, entropy = b"".join(stored(codes)), max(entropy_bytes(codes), 1.0)
        packed = deflated(kernels)
        estimated = entropy * packing_overhead(entropy, self.overheads or [(entropy, packed / entropy)])
        self.overheads.append((entropy, packed / entropy))
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
            self.steering.pressure,
        )
        self.steering.see(point)
        if not self.curve or self.steering.rank(point) >= self.steering.rank(self.saved):
            self.saved = point
            partial = self.path.with_name(f".part.{self.path.name}")
            self.quantized.save_weights(partial)
            partial.replace(self.path)
        self.curve.append(point)
        count = sum(layer.kernel.code_count for layer in codes.layers.values())
        self.progress(Progress(self.cycle * self.steering.cycles, loss, count, point))
        return point
