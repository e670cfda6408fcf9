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

from lqconvert.codes import Codes
from lqconvert.datasets import Data, Preprocessing, Split
from lqconvert.exporting import learned_codes
from lqconvert.granularity import class_name
from lqconvert.quantizers import ActivationQuantizer

#: Fine-tuning of a small data set still takes at least this many steps.
MINIMUM_STEPS = 500


@dataclass(frozen=True)
class Progress:
    """Where fine-tuning stands: what the progress bar shows."""

    step: int
    steps: int
    loss: float
    score: float  # of the validation split: accuracy, or minus the mean squared error
    codes: int  # different integers in use, summed over the tensors
    estimated_bytes: int  # of the weights, by the entropy of their codes


def logits_of(model: tf_keras.Model) -> tuple[tf_keras.Model, str]:
    """The model up to where its final softmax or sigmoid begins, and that activation's name (or "")."""
    tensor = model.outputs[0]
    layer = tensor._keras_history.layer
    if isinstance(layer, ActivationQuantizer):
        tensor = layer.input
        layer = tensor._keras_history.layer
    activation = getattr(getattr(layer, "activation", None), "__name__", "")
    activation = "softmax" if class_name(layer) == "Softmax" else activation
    if activation in ("softmax", "sigmoid") and not layer.weights:
        return tf_keras.Model(model.inputs, layer.input), activation
    return model, ""


def score(model: tf_keras.Model, split: Split, preprocessing: Preprocessing, teacher: np.ndarray) -> float:
    """Accuracy on the split where it has class labels, else minus the mean squared error.

    The error is against the split's own targets, or the teacher's outputs where there are none.
    """
    outputs = predict(model, split, preprocessing)
    return score_outputs(outputs, split.arrays()[1], teacher)


def score_outputs(outputs: np.ndarray, labels: np.ndarray, teacher: np.ndarray) -> float:
    """The score of given outputs: see :func:`score`."""
    if labels.ndim == 1 and outputs.shape[-1] == 1:
        return float(np.mean((outputs[:, 0] > 0.5) == labels))
    if labels.ndim == 1:
        return float(np.mean(outputs.argmax(axis=-1) == labels))
    targets = labels if labels.size else teacher
    return -float(np.mean((outputs.reshape(len(outputs), -1) - targets.reshape(len(targets), -1)) ** 2))


def predict(model: tf_keras.Model, split: Split, preprocessing: Preprocessing) -> np.ndarray:
    """The model's outputs on a split, in order."""
    call = tf.function(lambda x: model(x, training=False), reduce_retracing=True)
    return np.concatenate([call(x).numpy() for _, x, _ in split.batches(256, preprocessing=preprocessing)])


def finetune(
    model: tf_keras.Model,
    teacher: tf_keras.Model,
    data: Data,
    preprocessing: Preprocessing,
    *,
    epochs: int = 3,
    batch_size: int = 128,
    learning_rate: float = 2e-4,
    seed: int = 0,
    best_weights: Path,
    progress: Callable[[Progress], None] = lambda _: None,
) -> bool:
    """Fine-tunes a calibrated model in place and leaves it at its best weights by validation score.

    Args:
        model: what :func:`lqconvert.rewrite` gives, calibrated.
        teacher: the float model as :func:`lqconvert.folding.fold` gives it; its outputs are half of the
            target (all of it without labels).
        epochs: passes over the training split; more where they make fewer than 500 steps.
        learning_rate: Adam's, falling to 0 along a cosine. Scales and ranges take the same.
        best_weights: the .weights.h5 to keep the best weights so far in.
        progress: called after every tenth of the run.

    Returns:
        False if Ctrl-C ended it early (the model holds the best weights so far all the same).
    """
    student, activation = logits_of(model)
    # A model of its own: compiled, it would save its optimizer's state among the weights.
    student = tf_keras.Model(student.inputs, student.outputs)
    teacher_logits, _ = logits_of(teacher)
    cached = tf.constant(predict(teacher_logits, data.train, preprocessing))
    validation_teacher = predict(teacher, data.validation, preprocessing)
    steps_per_epoch = math.ceil(data.train.size / batch_size)
    epochs = max(epochs, math.ceil(MINIMUM_STEPS / steps_per_epoch))
    steps = epochs * steps_per_epoch
    student.compile(
        tf_keras.optimizers.Adam(tf_keras.optimizers.schedules.CosineDecay(learning_rate, steps)),
        loss=_distillation(activation, cached.shape[-1], data.labels),
    )

    def with_targets(index: Any, x: Any, y: Any) -> Any:
        y = tf.cast(tf.reshape(y, (tf.shape(index)[0], -1)), tf.float32)
        outputs = tf.reshape(tf.gather(cached, index), (tf.shape(index)[0], -1))
        return x, tf.concat([outputs, y], axis=1)

    batches = data.train.batches(batch_size, shuffle_seed=seed, preprocessing=preprocessing).map(with_targets)
    keeper = _KeepBest(model, data, preprocessing, validation_teacher, steps, best_weights, progress)
    finished = True
    try:
        keeper.evaluate(0, float("nan"))
        student.fit(batches.repeat(epochs), steps_per_epoch=steps, epochs=1, verbose=0, callbacks=[keeper])
    except KeyboardInterrupt:
        finished = False
    if keeper.best > -np.inf:
        model.load_weights(best_weights)
    return finished


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


class _KeepBest(tf_keras.callbacks.Callback):
    """Scores the model on the validation split ten times a run and keeps the best weights in a file."""

    def __init__(self, quantized, data, preprocessing, teacher, steps, path, progress):
        super().__init__()
        self.quantized, self.data, self.preprocessing, self.teacher = quantized, data, preprocessing, teacher
        self.steps, self.path, self.progress = steps, path, progress
        self.every = max(1, steps // 10)
        self.best = -np.inf
        self.call = tf.function(lambda x: quantized(x, training=False), reduce_retracing=True)

    def on_train_batch_end(self, batch, logs=None):
        if (batch + 1) % self.every == 0 or batch + 1 == self.steps:
            self.evaluate(batch + 1, float((logs or {})["loss"]))

    def evaluate(self, step: int, loss: float) -> None:
        validation = self.data.validation
        batches = validation.batches(256, preprocessing=self.preprocessing)
        outputs = np.concatenate([self.call(x).numpy() for _, x, _ in batches])
        reached = score_outputs(outputs, validation.arrays()[1], self.teacher)
        if reached >= self.best:  # of equals the later one: it has learned longer
            self.best = reached
            partial = self.path.with_name(f".part.{self.path.name}")
            self.quantized.save_weights(partial)
            partial.replace(self.path)
        codes = learned_codes(self.quantized)
        self.progress(Progress(step, self.steps, loss, reached, _code_count(codes), estimated_bytes(codes)))


def _code_count(codes: Codes) -> int:
    return sum(layer.kernel.code_count for layer in codes.layers.values())


def estimated_bytes(codes: Codes) -> int:
    """Bytes of the weights at the entropy of their codes, with int32 biases."""
    bits = sum(layer.kernel.entropy * layer.kernel.codes.size for layer in codes.layers.values())
    biases = sum(layer.bias.size for layer in codes.layers.values() if layer.bias is not None)
    return round(bits / 8) + 4 * biases
