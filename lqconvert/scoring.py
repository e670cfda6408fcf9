"""How well a model does: its outputs on a split, their accuracy or error, and how sure it is of the truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras

from lqconvert.granularity import class_name
from lqconvert.preprocessing import Preprocessing
from lqconvert.quantizers import ActivationQuantizer
from lqconvert.splits import Split

#: That logits are tried to be divided by: 1/8 to 8.
TEMPERATURES = 2.0 ** np.arange(-3, 3.01, 0.125)


def joined(model: tf_keras.Model) -> tf_keras.Model:
    """The model with all its outputs in one: flattened, one behind the other, where there are several."""
    if len(model.outputs) == 1:
        return model
    name = "joined"
    while any(layer.name.startswith(name) for layer in model.layers):
        name += "_"
    flat = [tf_keras.layers.Flatten(name=f"{name}_{i}")(output) for i, output in enumerate(model.outputs)]
    return tf_keras.Model(model.inputs, tf_keras.layers.Concatenate(name=name)(flat))


def logits_of(model: tf_keras.Model) -> tuple[tf_keras.Model, str]:
    """The model up to where its final softmax or sigmoid begins, and that activation's name (or "").

    With several outputs it is :func:`joined`, and has none.
    """
    if len(model.outputs) > 1:
        return joined(model), ""
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


def activated(logits: np.ndarray, activation: str) -> np.ndarray:
    """The outputs that logits mean under softmax, sigmoid or nothing."""
    if activation == "softmax":
        return np.exp(log_softmax(logits))
    return 1 / (1 + np.exp(-logits)) if activation == "sigmoid" else logits


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def predict(model: tf_keras.Model, split: Split, preprocessing: Preprocessing) -> np.ndarray:
    """The model's outputs on a split, in order."""
    call = tf.function(lambda x: model(x, training=False), reduce_retracing=True)
    return np.concatenate([call(x).numpy() for _, x, _ in split.batches(256, preprocessing=preprocessing)])


def score_outputs(outputs: np.ndarray, labels: np.ndarray, teacher: np.ndarray) -> float:
    """Accuracy where there are class labels, else minus the mean squared error.

    The error is against the labels, or the teacher's outputs where there are none.
    """
    return float(_scores(outputs, labels, teacher).mean())


def _scores(outputs: np.ndarray, labels: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Of each example, whether the answer is right, or minus the mean squared error."""
    if labels.ndim == 1:
        return guesses(answers(outputs)) == labels
    targets = labels if labels.size else teacher
    errors = outputs.reshape(len(outputs), -1) - targets.reshape(len(targets), -1)
    return -np.mean(errors**2, axis=1)


def answers(outputs: np.ndarray) -> np.ndarray:
    """Outputs [n, ..., classes], one answer for an example, without axes of length 1: [n, classes]."""
    return outputs.reshape(len(outputs), -1)


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Share of examples whose outputs [n, classes] have the same top class (or the same side of 1/2)."""
    return float(np.mean(guesses(a) == guesses(b)))


def guesses(outputs: np.ndarray) -> np.ndarray:
    """The classes [...] that outputs [..., classes] speak for: the largest, or a side of 1/2 (logits: 0)."""
    if outputs.shape[-1] > 1:
        return outputs.argmax(axis=-1)
    return (outputs[..., 0] > (0.0 if are_logits(outputs) else 0.5)).astype(np.int64)


def are_logits(outputs: np.ndarray) -> bool:
    """Whether outputs of a classifier are no probabilities, which kernels compute to some digits only."""
    return bool(np.min(outputs, initial=0.0) < -1e-3 or np.max(outputs, initial=0.0) > 1 + 1e-3)


def log_probabilities(outputs: np.ndarray) -> np.ndarray:
    """Of the classes [n, classes] (of two, where there is one output), from probabilities or logits."""
    logits = are_logits(outputs)
    if outputs.shape[-1] == 1:
        other = np.zeros_like(outputs) if logits else 1 - outputs
        outputs = np.concatenate([other, outputs], axis=-1)
    return log_softmax(outputs) if logits else np.log(np.clip(outputs, 1e-30, 1.0))


def qualities(logits: np.ndarray, outputs: np.ndarray, labels: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Of each example what budgets of accuracy judge, on average (:attr:`lqconvert.budget.Point.quality`).

    The mean of 1 or 0 for a right or wrong answer and of the confidence; without classes, minus the squared
    error.
    """
    scores = _scores(outputs, labels, teacher)
    return (scores + confidences(logits, labels)) / 2 if labels.ndim == 1 else scores


def confidences(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each example 1 minus the Brier score of its probabilities; 0 where the labels are no classes.

    Where probabilities are right about themselves this is, on average, that of the right class. But that one
    follows every change of temperature; this hardly does near the best one, so that models can be compared.
    """

    def score(log_probabilities: np.ndarray) -> np.ndarray:
        probabilities = np.exp(log_probabilities)
        return 2 * probabilities[np.arange(len(labels)), labels] - np.sum(probabilities**2, axis=-1)

    return _calibrated(logits, labels, score)


def log_likelihoods(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each example that of its right class, in nats; 0 where the labels are no classes."""
    return _calibrated(logits, labels, lambda each: each[np.arange(len(labels)), labels])


def _calibrated(
    logits: np.ndarray, labels: np.ndarray, score: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Scores of log-probabilities [n, classes], at the temperature at which they are highest on average.

    So that they say how much a model knows and not how sure of itself it is (Guo et al., "On Calibration of
    Modern Neural Networks", ICML 2017).
    """
    if labels.ndim != 1:
        return np.zeros(len(labels))
    logits = answers(logits)
    if logits.shape[-1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=-1)
    candidates = (score(log_softmax(logits.astype(np.float64) / t)) for t in TEMPERATURES)
    return max(candidates, key=np.mean)
