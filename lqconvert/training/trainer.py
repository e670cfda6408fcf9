"""Training steps of fine-tuning. The targets are the labels and the float model's outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from lqconvert.data.dataset import Data
from lqconvert.data.preprocessing import Preprocessing
from lqconvert.quantization.granularity import kernel_name
from lqconvert.quantization.layers import QuantizedLayer
from lqconvert.quantization.model_outputs import logits_of, predict
from lqconvert.quantization.walk import activation_bytes
from lqconvert.tasks import Head, Heads
from lqconvert.training.augmentation import Augmentation
from lqconvert.training.distribution import Distribution

#: The teacher's outputs on the training split are kept up to this many bytes, or else computed for each
#: batch.
CACHED_BYTES = 1 << 28
#: About the most memory for the activations of a training step on a device.
ACTIVATION_BYTES = 1 << 32


class Trainer:
    """Trains a student. The targets are the teacher's outputs and the labels, concatenated.

    If a teacher is given, it computes its outputs for each batch; else the targets contain them. The loss is
    the task's loss plus the student's penalties times the penalty weight. On several devices, ``model`` is a
    copy on all of them, and each learns from its part of a batch.

    Args:
        parts: each device computes the gradients of its examples in so many parts, and adds them up, because
            the activations of all together would take too much memory.
    """

    def __init__(
        self,
        model: tf_keras.Model,
        teacher: tf_keras.Model | None,
        optimizer: RelativeAdam,
        loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
        batches: Callable[[int, tf.distribute.InputContext], tf.data.Dataset],
        distribution: Distribution,
        parts: int = 1,
    ) -> None:
        self.parts = parts
        self.model, self.teacher, self.optimizer = model, teacher, optimizer
        self.student = logits_of(model)
        self.loss, self.batches, self.distribution = loss, batches, distribution
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
        distribution: Distribution | None = None,
    ) -> Trainer:
        """A trainer for the arguments of :func:`lqconvert.training.finetune.finetune`.

        Args:
            cached_bytes: the largest cache of the teacher's outputs. Without a cache, or if images are
                varied, the teacher computes its outputs for each batch.
        """
        distribution = distribution or Distribution()
        teacher_logits = logits_of(teacher)
        augment = augmentation or Augmentation()
        outputs = 4 * data.train.size * math.prod(n or 1 for n in teacher_logits.output_shape[1:])
        caches = augment == Augmentation() and outputs <= cached_bytes
        answers = predict(teacher_logits, data.train, preprocessing) if caches else None
        cached = None if answers is None else tf.constant(answers)
        spreads = _spreads(data, teacher_logits, preprocessing, answers)

        def batches(start: int, context: tf.distribute.InputContext) -> tf.data.Dataset:
            """Batches (x, y, size of the whole batch)."""
            parts = context.num_replicas_in_sync
            mine = parts // context.num_input_pipelines
            first = mine * context.input_pipeline_id
            stream = data.train.stream(
                batch_size,
                seed=seed,
                start=start,
                parts=parts,
                given=range(first, first + mine),
                preprocessing=preprocessing,
            )

            @tf.autograph.experimental.do_not_convert
            def with_targets(step: Any, part: Any, size: Any, index: Any, x: Any, y: Any) -> Any:
                y = _flat(y)
                if cached is not None:
                    y = tf.concat([_flat(tf.gather(cached, index)), y], axis=1)
                else:
                    x = augment(x, tf.stack([np.int64(seed), step]), part, parts, size)
                return x, y, tf.cast(size, tf.float32)

            return stream.map(with_targets)

        with distribution.strategy.scope():
            learning = distribution.copied(model)
            optimizer = RelativeAdam(learning, learning_rate, damping)
            optimizer.build(logits_of(learning).trainable_variables)
        return cls(
            learning,
            None if caches else distribution.copied(teacher_logits),
            optimizer,
            _distillation(data.heads, spreads, blended=augment.blend),
            batches,
            distribution,
            -(-batch_size * activation_bytes(model) // (distribution.replicas * ACTIVATION_BYTES)),
        )

    def copy_to(self, model: tf_keras.Model) -> None:
        """Copies what was learned to the model on one device, of which this trainer's model is a copy."""
        if model is not self.model:
            assign(model.variables, values(self.model.variables))

    def copy_from(self, model: tf_keras.Model) -> None:
        """Copies the values of that model to this trainer's."""
        if model is not self.model:
            assign(self.model.variables, values(model.variables))

    def seek(self, step: int) -> None:
        """Continues with the batch of this step."""
        dataset = self.distribution.strategy.distribute_datasets_from_function(
            lambda context: self.batches(step, context)
        )
        self.stream = iter(dataset)

    def run(self, steps: int, penalty_weight: float) -> float:
        """Takes steps and returns the task's mean loss over them."""
        return float(self._run(self.stream, tf.constant(steps), tf.constant(penalty_weight)))

    @tf.function
    def _run(self, stream: Any, steps: tf.Tensor, penalty_weight: tf.Tensor) -> tf.Tensor:
        strategy, total = self.distribution.strategy, tf.constant(0.0)
        for _ in tf.range(steps):
            each = strategy.run(self._step, (*next(stream), penalty_weight))
            total += strategy.reduce(tf.distribute.ReduceOp.SUM, each, axis=None)
        return total / tf.cast(steps, tf.float32)

    @tf.autograph.experimental.do_not_convert
    def _step(self, x: Any, y: tf.Tensor, size: tf.Tensor, penalty_weight: tf.Tensor) -> tf.Tensor:
        """Learns from a batch, or this device's part of it. Returns that part of the task's loss."""
        variables = self.student.trainable_variables
        penalty_weight = penalty_weight / (self.distribution.replicas * self.parts)
        if self.parts == 1:
            task, gradients = self._gradients(x, y, size, penalty_weight)
        else:
            task, gradients = self._added_gradients(x, y, size, penalty_weight)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return task

    def _gradients(self, x: Any, y: tf.Tensor, size: tf.Tensor, penalty_weight: tf.Tensor) -> Any:
        """A part of the task's loss, and the gradients of that and of the penalties."""
        if self.teacher is not None:
            y = tf.concat([_flat(self.teacher(x, training=False)), y], axis=1)
        with tf.GradientTape() as tape:
            task = tf.reduce_sum(self.loss(y, self.student(x, training=True))) / size
            penalties = self.student.losses
            loss = task + penalty_weight * tf.add_n(penalties) if penalties else task
        return task, tape.gradient(loss, self.student.trainable_variables)

    def _added_gradients(self, x: Any, y: tf.Tensor, size: tf.Tensor, penalty_weight: tf.Tensor) -> Any:
        """:meth:`_gradients`, computed in parts, one after the other."""

        def add(part: tf.Tensor, *sums: tf.Tensor) -> list[tf.Tensor]:
            some, targets = tf.nest.map_structure(lambda values: values[part :: self.parts], (x, y))
            task, gradients = self._gradients(some, targets, size, penalty_weight)
            found = [0.0 if each is None else tf.convert_to_tensor(each) for each in gradients]
            return [part + 1, *(each + more for each, more in zip(sums, (task, *found), strict=True))]

        zeros = [tf.zeros_like(variable) for variable in self.student.trainable_variables]
        _, task, *gradients = tf.while_loop(
            lambda part, *_: part < self.parts, add, [0, tf.constant(0.0), *zeros], parallel_iterations=1
        )
        return task, gradients


class RelativeAdam(tf_keras.optimizers.Adam):
    """Adam with steps in proportion to the size of each variable, times ``damping`` except for scales.

    A kernel for raw pixels is a hundred times smaller than one for activations, but there is only one
    learning rate. A kernel of rms 0.1 gets exactly this rate. Logarithms of scales are ratios already.
    """

    def __init__(self, model: tf_keras.Model, learning_rate: Any, damping: float) -> None:
        super().__init__(learning_rate)
        # They are variables of the optimizer, so that checkpoints hold them.
        self.speed = self.add_variable((), tf.float32, "ones", "speed")
        self.since = self.add_variable((), tf.int64, "zeros", "since")
        self.damping = damping
        self.units = {}
        for layer in model.layers:
            if isinstance(layer, QuantizedLayer):
                kernel = getattr(layer.layer, kernel_name(layer.layer))
                rms = float(tf.sqrt(tf.reduce_mean(kernel**2)))
                self.units[self._var_key(kernel)] = damping * max(rms, 1e-12) / 0.1
                for quantizer in layer.quantizers.values():
                    self.units[self._var_key(quantizer.scale_weight)] = 1.0

    def restart(self, step: int) -> None:
        """Resets the gradients' moments, and continues at this step of the learning rate's schedule."""
        for moments in (self._momentums, self._velocities):
            assign(moments, map(np.zeros_like, values(moments)))
        self.iterations.assign(step)
        self.since.assign(step)

    def slow_down(self) -> None:
        """Divides the learning rate by three from now on."""
        self.speed.assign(self.speed / 3)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Adam's step in one operation. Keras's version reads and writes the variable a dozen times."""
        unit = self.speed * self.units.get(self._var_key(variable), self.damping)
        step = tf.cast(self.iterations + 1 - self.since, tf.float32)
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


def values(variables: Iterable[tf.Variable]) -> list[np.ndarray]:
    return [variable.numpy() for variable in variables]


def assign(variables: Iterable[tf.Variable], arrays: Iterable[np.ndarray]) -> None:
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


#: The number of examples from which the scales of outputs are measured if the teacher computes each batch.
SPREAD_EXAMPLES = 2048
Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def _spreads(
    data: Data, teacher: tf_keras.Model, preprocessing: Preprocessing, answers: np.ndarray | None
) -> list[np.ndarray]:
    """For each head, the variances of its values, [size] or [1]: the units of squared errors."""
    part = data.train
    if answers is None:
        mixed = np.random.default_rng(0).permutation(part.size)[:SPREAD_EXAMPLES]
        part = part.pick(mixed)
        answers = predict(teacher, part, preprocessing)
    spreads = []
    for head, outputs, labels in zip(
        data.heads, data.heads.cut(answers), data.heads.cut_labels(part.y), strict=True
    ):
        values = outputs.reshape(len(outputs), -1)
        if head.task in ("regression", "reconstruction"):
            values = labels[:, : head.output.size]
        variances = np.var(values, axis=0)
        together = np.mean(variances, keepdims=True)
        alike = head.task != "regression" or not np.all(variances > 1e-6 * together)
        spreads.append(np.maximum(together if alike else variances, 1e-12).astype(np.float32))
    return spreads


def _distillation(heads: Heads, spreads: Sequence[np.ndarray], *, blended: bool) -> Loss:
    """Loss [b] of (teacher's logits and labels, concatenated [b, n + labels]; student's logits [b, ...]).

    Half of it compares with the labels, if there are any, and half with the teacher. The losses of several
    heads are added with their weights: each is in nats, or relative to the variance of its targets. The
    labels of blended examples do not count.
    """
    sizes, label_sizes = [head.output.size for head in heads], [head.label_size for head in heads]
    losses = [_head_loss(head, spread, blended=blended) for head, spread in zip(heads, spreads, strict=True)]

    def loss(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        students = tf.split(_flat(y_pred), sizes, axis=1)
        both = tf.split(y_true, [*sizes, *label_sizes], axis=1)
        teachers, labels = both[: len(sizes)], both[len(sizes) :]
        each = zip(heads, losses, teachers, labels, students, strict=True)
        values = [head.weight * one(teacher, label, student) for head, one, teacher, label, student in each]
        return tf.add_n(values) / sum(head.weight for head in heads)

    return loss


def _head_loss(
    head: Head, spread: np.ndarray, *, blended: bool
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    """Loss [b] of a head: (teacher's logits [b, size], labels [b, label_size], student's [b, size])."""
    classes, activation = head.output.classes, head.output.activation
    # With uneven classes, only the teacher shows where the threshold is: it may have been trained to miss
    # none of the rare examples, which their share of the labels does not show.
    share = 1.0 if blended or not head.label_size or head.uneven else 0.5
    targets = head.task in ("regression", "reconstruction")
    numbered = head.classifies or head.task == "segmentation"  # labels are class numbers

    def by_class(values: tf.Tensor) -> tf.Tensor:
        return tf.reshape(values, (tf.shape(values)[0], -1, classes))

    def softmax(teacher: tf.Tensor, label: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        student = by_class(student)
        soft = tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(by_class(teacher)), student)
        if share == 1.0:
            return tf.reduce_mean(soft, axis=-1)
        hard = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(label, tf.int32), student)
        return tf.reduce_mean(share * soft + (1 - share) * hard, axis=-1)

    def sigmoid(teacher: tf.Tensor, label: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits
        soft = cross_entropy(tf.sigmoid(teacher), student)
        if numbered and classes > 1:
            label = _flat(tf.one_hot(tf.cast(label, tf.int32), classes))
        hard = cross_entropy(label, student) if share < 1.0 else soft
        return tf.reduce_mean(share * soft + (1 - share) * hard, axis=-1)

    def squares(teacher: tf.Tensor, label: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        student, teacher = (output(student), output(teacher)) if targets else (student, teacher)
        soft = (student - teacher) ** 2 / spread
        hard = (student - label[:, : head.output.size]) ** 2 / spread if share < 1.0 else soft
        return tf.reduce_mean(share * soft + (1 - share) * hard, axis=-1)

    def output(logits: tf.Tensor) -> tf.Tensor:
        """Outputs in the units of the targets."""
        if activation == "softmax":
            return tf.reshape(tf.nn.softmax(by_class(logits)), tf.shape(logits))
        return tf.sigmoid(logits) if activation == "sigmoid" else logits

    if targets or not (activation or head.label_size):
        one = squares
    elif activation == "softmax" or (numbered and classes > 1 and activation != "sigmoid"):
        one = softmax
    else:
        one = squares if activation == "l2" else sigmoid
    if not head.class_weights or blended:
        return one
    weights = tf.constant(head.class_weights, tf.float32)
    return lambda teacher, label, student: (
        tf.gather(weights, tf.cast(label[:, 0], tf.int32)) * one(teacher, label, student)
    )


def _flat(values: tf.Tensor) -> tf.Tensor:
    """[batch, ...] as float32 [batch, n]."""
    return tf.cast(tf.reshape(values, (tf.shape(values)[0], -1)), tf.float32)
