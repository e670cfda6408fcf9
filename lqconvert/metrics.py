"""The usual metrics in NumPy: as one number, and as one value for each example.

Outputs are float [n, ...]. Labels are int64 [n] (classes), integers [n, positions] (a class at each
position), or float [n, k] (k targets, or 0 or 1 for each of k labels).
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: Logits are divided by each of these temperatures (1/8 to 8), to find the best one.
TEMPERATURES = 2.0 ** np.arange(-3, 3.01, 0.125)
#: First every fourth of them is tried (a Brier score may have several maxima), then those near the best one.
COARSE, FINE = 4, (2, 1)
#: A metric that is no mean over examples is measured with one of this many groups of examples left out.
GROUPS = 32

Measure = Callable[[np.ndarray, np.ndarray, float], float]


@dataclass(frozen=True)
class Metric:
    """A number that says how good outputs are.

    Attributes:
        name: as it appears in tables.
        measure: (outputs, labels, threshold) -> the number; NaN if these labels do not define it.
        share: it is printed as a percentage (97.50%). Other metrics are printed with four digits.
        error: lower is better, and the unit is that of the targets.
        each: (outputs, labels, threshold) -> values [n] whose mean is the metric. None if it is no mean.
    """

    name: str
    measure: Measure
    share: bool = True
    error: bool = False
    each: Callable[[np.ndarray, np.ndarray, float], np.ndarray] | None = None

    @property
    def against_float(self) -> bool:
        """Whether outputs are compared with the float model's instead of with labels."""
        return self.name.endswith("float")

    def text(self, value: float) -> str:
        """The number as it is printed.

        >>> METRICS["accuracy"].text(0.975), METRICS["MAE"].text(17.6123)
        ('97.50%', '17.61')
        """
        if np.isnan(value):
            return "-"
        return f"{value:.2%}" if self.share else f"{value:.4g}"

    @property
    def option(self) -> str:
        """The option of ``lqconvert check`` that limits this metric.

        >>> METRICS["balanced accuracy"].option, METRICS["RMSE"].option, METRICS["R²"].option
        ('min-balanced-accuracy', 'max-rmse', 'min-r2')
        """
        name = self.name.lower().replace("²", "2").replace(" ", "-")
        return f"{'max' if self.error else 'min'}-{name}"

    def qualities(self, outputs: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
        """Values [n], one for each example. Their mean is about the metric, and higher is better.

        Their spread gives the metric's sampling error. A point is 0.01. Errors are divided by the standard
        deviation of the targets. If the metric is no mean over examples, the values are jackknife
        pseudo-values of groups of examples (Quenouille, 1956).
        """
        if self.each is not None:
            values = self.each(outputs, labels, threshold)
        else:
            values = _pseudo_values(self.measure, outputs, labels, threshold)
        return -values / (_spread(outputs, labels) or 1.0) if self.error else values


def _spread(outputs: np.ndarray, labels: np.ndarray) -> float:
    """The targets' standard deviation. Labels may have one more column (anomalies) after the targets."""
    targets = _flat(labels)[:, : _flat(outputs).shape[1]]
    return float(np.sqrt(np.mean(np.var(targets, axis=0))))


def _pseudo_values(measure: Measure, outputs: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    whole, n = measure(outputs, labels, threshold), len(outputs)
    groups = np.arange(n) % min(GROUPS, n)
    count = int(groups.max()) + 1
    if count == 1:
        return np.full(n, whole)
    values = []
    for group in range(count):
        rest = groups != group
        without = measure(outputs[rest], labels[rest], threshold)
        values.append(whole if np.isnan(without) else count * whole - (count - 1) * without)
    # Scaled so that the mean of the n values has the same standard error as the mean over groups.
    spread = np.array(values)[groups] * np.sqrt(n / count)
    return whole + spread - spread.mean()


# Outputs of classifiers


def are_logits(outputs: np.ndarray) -> bool:
    """Whether a classifier's outputs are logits. Kernels compute probabilities to a few digits only."""
    return bool(np.min(outputs, initial=0.0) < -1e-3 or np.max(outputs, initial=0.0) > 1 + 1e-3)


def guesses(outputs: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """The predicted classes [...] of outputs [..., classes].

    With two classes (or one output), the second class is predicted if its probability reaches the threshold.
    With more, it is the class with the largest output.
    """
    if outputs.shape[-1] > 2 or (outputs.shape[-1] == 2 and threshold == 0.5):
        return outputs.argmax(axis=-1)
    return (positive(outputs) > threshold).astype(np.int64)


def positive(outputs: np.ndarray) -> np.ndarray:
    """The second class's probability [...] from outputs [..., 1 or 2] of two classes."""
    if outputs.shape[-1] == 1:
        return sigmoid(outputs[..., 0]) if are_logits(outputs) else outputs[..., 0]
    return sigmoid(outputs[..., 1] - outputs[..., 0]) if are_logits(outputs) else outputs[..., 1]


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -logits))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_probabilities(outputs: np.ndarray) -> np.ndarray:
    """Log-probabilities [n, classes] from probabilities or logits (two classes if there is one output)."""
    logits = are_logits(outputs)
    if outputs.shape[-1] == 1:
        other = np.zeros_like(outputs) if logits else 1 - outputs
        outputs = np.concatenate([other, outputs], axis=-1)
    return log_softmax(outputs) if logits else np.log(np.clip(outputs, 1e-30, 1.0))


def balance(labels: np.ndarray) -> np.ndarray:
    """Weights [n] of examples that give each class in the labels the same total. Their mean is 1."""
    classes, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return (len(labels) / (len(classes) * counts))[places]


def confidences(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """For each example, 1 minus the Brier score of its class probabilities.

    For calibrated probabilities, the mean of this equals the mean probability of the right class. That
    probability changes with the temperature everywhere; this value hardly changes near the best temperature,
    so it can be compared between models.
    """

    def score(log_probabilities: np.ndarray) -> np.ndarray:
        probabilities = np.exp(log_probabilities)
        return 2 * probabilities[np.arange(len(labels)), labels] - np.sum(probabilities**2, axis=-1)

    return _calibrated(logits, score, weights)


def log_likelihoods(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each example, the log-likelihood of its right class, in nats."""
    return _calibrated(logits, lambda each: each[np.arange(len(labels)), labels], None)


def _calibrated(
    logits: np.ndarray, score: Callable[[np.ndarray], np.ndarray], weights: np.ndarray | None
) -> np.ndarray:
    """Scores of log-probabilities [n, classes], at the temperature that maximizes their mean.

    So they measure what a model knows and not how confident it is (Guo et al., "On Calibration of
    Modern Neural Networks", ICML 2017).
    """
    logits = _flat(logits)
    if logits.shape[-1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=-1)
    logits = logits.astype(np.float64)

    @functools.cache
    def scores(place: int) -> np.ndarray:
        return score(log_softmax(logits / TEMPERATURES[place]))

    def mean(place: int) -> float:
        if not 0 <= place < len(TEMPERATURES):
            return -math.inf
        return float(np.mean(scores(place) if weights is None else scores(place) * weights))

    place = max(range(0, len(TEMPERATURES), COARSE), key=mean)
    for step in FINE:
        place = max(place, place - step, place + step, key=mean)
    return scores(place)


# Metrics: (outputs, labels, threshold) -> number, or [n]


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def _right(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    return (guesses(_flat(outputs), threshold) == labels).astype(np.float64)


def _accuracy(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    return float(np.mean(_right(outputs, labels, threshold)))


def _right_balanced(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    return _right(outputs, labels, threshold) * balance(labels)


def _balanced_accuracy(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    return float(np.mean(_right_balanced(outputs, labels, threshold)))


def _among_five(outputs: np.ndarray, labels: np.ndarray, _: float) -> np.ndarray:
    outputs = _flat(outputs)
    of_label = outputs[np.arange(len(labels)), labels]
    return (np.sum(outputs > of_label[:, np.newaxis], axis=-1) < 5).astype(np.float64)


def _top_5(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    return float(np.mean(_among_five(outputs, labels, threshold)))


def _ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value [n], from 1. Equal values share the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[places]


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    """AUC: the chance that an example with label 1 has a higher score than one with label 0. Ties count half.

    Computed as the rank sum of Mann and Whitney (1947).
    """
    ones = labels == 1
    first, other = int(ones.sum()), int((~ones).sum())
    if not first or not other:
        return float("nan")
    return float((_ranks(scores)[ones].sum() - first * (first + 1) / 2) / (first * other))


def _auc(outputs: np.ndarray, labels: np.ndarray, _: float) -> float:
    return area_under_curve(positive(_flat(outputs)), labels)


def _counts(guessed: np.ndarray, labels: np.ndarray) -> tuple[int, int, int]:
    """True positives, predicted positives, positives in the labels."""
    return int(np.sum(guessed & labels)), int(guessed.sum()), int(labels.sum())


def _ratio(part: float, whole: float, there: int) -> float:
    """The ratio; 0 if nothing is predicted as positive, and NaN if no label is positive."""
    if not there:
        return float("nan")
    return part / whole if whole else 0.0


def _binary(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> tuple[int, int, int]:
    return _counts(positive(_flat(outputs)) > threshold, labels == 1)


def _precision(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    both, guessed, there = _binary(outputs, labels, threshold)
    return _ratio(both, guessed, there)


def _recall(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    both, _, there = _binary(outputs, labels, threshold)
    return _ratio(both, there, there)


def _f1(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    both, guessed, there = _binary(outputs, labels, threshold)
    return _ratio(2 * both, guessed + there, there)


def _mean_auc(outputs: np.ndarray, labels: np.ndarray, _: float) -> float:
    outputs = _flat(outputs)
    areas = [area_under_curve(column, label) for column, label in zip(outputs.T, labels.T, strict=True)]
    with warnings.catch_warnings():  # no label varies
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(np.nanmean(areas))


def _micro_f1(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    outputs = _flat(outputs)
    probabilities = sigmoid(outputs) if are_logits(outputs) else outputs
    both, guessed, there = _counts(probabilities > threshold, labels == 1)
    return _ratio(2 * both, guessed + there, there)


def _maps(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    """The predicted classes [n, positions] of outputs [n, ..., classes]."""
    return guesses(outputs.reshape(len(outputs), labels.shape[1], -1), threshold)


def _right_positions(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    return np.mean(_maps(outputs, labels, threshold) == labels, axis=1)


def _pixel_accuracy(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    return float(np.mean(_right_positions(outputs, labels, threshold)))


def class_overlaps(guessed: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """The intersection over union of each class in the labels, over all positions."""
    labels = labels.astype(np.int64)
    count = int(max(guessed.max(initial=0), labels.max(initial=0))) + 1
    pairs = np.bincount((labels * count + guessed).ravel(), minlength=count * count).reshape(count, count)
    both, there, said = np.diag(pairs), pairs.sum(axis=1), pairs.sum(axis=0)
    return {int(label): both[label] / (there + said - both)[label] for label in np.flatnonzero(there)}


def _mean_overlap(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    return float(np.mean([*class_overlaps(_maps(outputs, labels, threshold), labels).values()]))


def _explained(outputs: np.ndarray, labels: np.ndarray, _: float) -> np.ndarray:
    """For each example, 1 minus its squared error over the variance: the mean over columns that vary."""
    labels, variances = labels.astype(np.float64), np.var(labels.astype(np.float64), axis=0)
    errors, vary = (_flat(outputs) - labels) ** 2, variances > 0
    if not vary.any():
        return np.full(len(labels), np.nan)
    return 1 - np.mean(errors[:, vary] / variances[vary], axis=1)


def _r2(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    return float(np.mean(_explained(outputs, labels, threshold)))


def _explained_together(outputs: np.ndarray, labels: np.ndarray, _: float = 0.5) -> np.ndarray:
    """For each example, 1 minus its squared error over the targets' variance, over all columns together.

    If the targets are constant, 1 for a correct output and 0 for any other.
    """
    labels = _flat(labels).astype(np.float64)
    errors, variance = np.mean((_flat(outputs) - labels) ** 2, axis=1), np.mean(np.var(labels, axis=0))
    return 1 - errors / variance if variance > 0 else np.where(errors > 0, 0.0, 1.0)


def _total_r2(outputs: np.ndarray, labels: np.ndarray, _: float) -> float:
    return float(np.mean(_explained_together(outputs, labels)))


def _reconstructed(outputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs and targets [n, k], and for each example whether it is an anomaly (NaN: not known).

    Labels [n, k + 1] are the targets and, in the last column, the anomalies.
    """
    outputs = _flat(outputs)
    targets, known = labels[:, : outputs.shape[1]], labels[:, outputs.shape[1] :]
    return outputs, targets, known[:, 0] if known.size else np.full(len(labels), np.nan)


def _reconstruction_each(outputs: np.ndarray, labels: np.ndarray, _: float) -> np.ndarray:
    """Values of normal examples, rescaled so that the mean is right. Anomalies count 0."""
    outputs, targets, anomalies = _reconstructed(outputs, labels)
    usual = anomalies != 1
    if not usual.any():
        return np.full(len(labels), np.nan)
    each = np.zeros(len(labels))
    each[usual] = _explained_together(outputs[usual], targets[usual]) / usual.mean()
    return each


def _reconstruction(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    return float(np.mean(_reconstruction_each(outputs, labels, threshold)))


def reconstruction_errors(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean squared error of each example [n]. Anomalies have a large one."""
    outputs, targets, _anomalies = _reconstructed(outputs, labels)
    return np.mean((outputs - targets) ** 2, axis=1)


def _reconstruction_rmse(outputs: np.ndarray, labels: np.ndarray, _: float) -> float:
    outputs, targets, anomalies = _reconstructed(outputs, labels)
    usual = anomalies != 1
    return float(np.sqrt(np.mean((outputs[usual] - targets[usual]) ** 2))) if usual.any() else np.nan


def _anomaly_auc(outputs: np.ndarray, labels: np.ndarray, _: float) -> float:
    anomalies = _reconstructed(outputs, labels)[2]
    known = ~np.isnan(anomalies)
    return area_under_curve(reconstruction_errors(outputs, labels)[known], anomalies[known])


def _distances(outputs: np.ndarray, labels: np.ndarray, _: float) -> np.ndarray:
    return np.mean(np.abs(_flat(outputs).astype(np.float64) - _flat(labels)), axis=1)


def _mae(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    return float(np.mean(_distances(outputs, labels, threshold)))


def _rmse(outputs: np.ndarray, labels: np.ndarray, _: float) -> float:
    return float(np.sqrt(np.mean((_flat(outputs).astype(np.float64) - _flat(labels)) ** 2)))


def _cosines(outputs: np.ndarray, labels: np.ndarray, _: float) -> np.ndarray:
    a, b = _flat(outputs).astype(np.float64), _flat(labels).astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.sum(a * b, axis=1) / np.maximum(lengths, 1e-12)


def _cosine(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    return float(np.mean(_cosines(outputs, labels, threshold)))


def _same(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    return (guesses(_flat(outputs), threshold) == guesses(_flat(labels), threshold)).astype(np.float64)


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Share of examples whose outputs [n, classes] have the same top class (or the same side of 1/2)."""
    return _agreement(a, b, 0.5)


def _agreement(outputs: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    return float(np.mean(_same(outputs, labels, threshold)))


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", _accuracy, each=_right),
        Metric("balanced accuracy", _balanced_accuracy, each=_right_balanced),
        Metric("top-5", _top_5, each=_among_five),
        Metric("AUC", _auc, share=False),
        Metric("F1", _f1, share=False),
        Metric("precision", _precision),
        Metric("recall", _recall),
        Metric("mean AUC", _mean_auc, share=False),
        Metric("micro-F1", _micro_f1, share=False),
        Metric("mIoU", _mean_overlap),
        Metric("pixel accuracy", _pixel_accuracy, each=_right_positions),
        Metric("R²", _r2, share=False, each=_explained),
        Metric("MAE", _mae, share=False, error=True, each=_distances),
        Metric("RMSE", _rmse, share=False, error=True),
        Metric("reconstruction R²", _reconstruction, share=False, each=_reconstruction_each),
        Metric("reconstruction RMSE", _reconstruction_rmse, share=False, error=True),
        Metric("anomaly AUC", _anomaly_auc, share=False),
        Metric("cosine similarity", _cosine, share=False, each=_cosines),
        Metric("agreement with float", _agreement, each=_same),
        Metric("R² to float", _total_r2, share=False, each=_explained_together),
    )
}
