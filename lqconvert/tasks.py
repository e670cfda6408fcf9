"""The task of each output of a model, such as classification, and the metrics that score it.

The labels usually show the task: whole numbers below the number of outputs are classes, other values are
targets of a regression.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lqconvert.errors import LqError
from lqconvert.metrics import METRICS, Metric, balance, confidences, log_likelihoods, log_softmax, sigmoid

#: The metrics of each task. Budgets limit the first one, unless classes are uneven.
TASKS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "balanced accuracy", "top-5"),
    "binary": ("accuracy", "balanced accuracy", "AUC", "F1", "precision", "recall"),
    "multi-label": ("mean AUC", "micro-F1"),
    "segmentation": ("mIoU", "pixel accuracy"),
    "regression": ("R²", "MAE", "RMSE"),
    "reconstruction": ("reconstruction R²", "reconstruction RMSE", "anomaly AUC"),
    "embedding": ("cosine similarity", "R² to float"),
    "raw": ("R² to float", "agreement with float"),
}
#: Tasks in which each example belongs to one of several classes.
CLASSIFIES = ("classification", "binary")
#: Tasks without labels: outputs are compared with the float model's.
AGAINST_FLOAT = ("embedding", "raw")
#: Classes are uneven if the rarest one has less than this part of an even share.
UNEVEN = 0.5
#: With more classes, top-5 accuracy is measured too.
FEW_CLASSES = 10


@dataclass(frozen=True)
class Output:
    """An output of a model, without the batch axis."""

    name: str
    shape: tuple[int, ...]
    activation: str = ""  # "softmax", "sigmoid", "l2" (normalized), or "" for any other

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def classes(self) -> int:
        """The last axis."""
        return self.shape[-1] if self.shape else 1

    @property
    def positions(self) -> int:
        """The product of all other axes: 1 if an example has one answer."""
        return self.size // self.classes


@dataclass(frozen=True)
class Score:
    """A metric of an output of a file, on some examples."""

    output: str  # its name; "" if the model has one output
    metric: str
    value: float

    @property
    def text(self) -> str:
        return metric_named(self.metric).text(self.value)

    @property
    def label(self) -> str:
        """The score's name in a table."""
        return f"{self.output} {self.metric}".strip()


@dataclass(frozen=True)
class Head:
    """An output and its task.

    Attributes:
        label_size: the number of columns of its labels.
        judged: the names of the metrics that budgets limit.
        threshold: a probability, for tasks with two classes or several labels.
        weight: of its loss in the sum over all outputs.
        class_weights: the weight of an example's loss, by class; empty if classes are even.
    """

    output: Output
    task: str
    label_size: int = 1
    class_names: tuple[str, ...] = ()
    judged: tuple[str, ...] = ()
    uneven: bool = False
    threshold: float = 0.5
    weight: float = 1.0
    class_weights: tuple[float, ...] = ()

    @property
    def classifies(self) -> bool:
        return self.task in CLASSIFIES

    @property
    def answers_classes(self) -> bool:
        """Whether the answer to each example is a class, whether or not its label is known."""
        several = self.output.activation == "softmax" and self.output.positions == 1
        return self.classifies or (self.task == "raw" and (several or self.output.activation == "sigmoid"))

    @property
    def classes(self) -> int:
        """The number of classes, for classification and segmentation."""
        return max(self.output.classes, 2)

    @property
    def metrics(self) -> list[Metric]:
        """The metrics that score it. Those that budgets limit come first."""
        names = [*self.judged, *(name for name in TASKS[self.task] if name not in self.judged)]
        hidden = set()
        if self.classes <= FEW_CLASSES:
            hidden.add("top-5")
        if not self.uneven:
            hidden.add("balanced accuracy")
        if self.output.activation not in ("softmax", "sigmoid") or self.output.positions > 1:
            hidden.add("agreement with float")
        return [metric_named(name) for name in names if name in self.judged or name not in hidden]

    def truth(self, labels: np.ndarray, teacher: np.ndarray) -> np.ndarray:
        """What outputs are compared with: the labels, or the float model's outputs if there are no labels."""
        if self.task in AGAINST_FLOAT or not labels.size:
            return teacher.reshape(len(teacher), -1)
        return labels

    def activated(self, logits: np.ndarray) -> np.ndarray:
        """The outputs for these logits [n, size]."""
        if self.output.activation == "softmax":
            by_class = logits.reshape(len(logits), -1, self.output.classes)
            return np.exp(log_softmax(by_class)).reshape(logits.shape)
        return sigmoid(logits) if self.output.activation == "sigmoid" else logits

    def describe(self) -> str:
        """The task in words, such as "classification of 10 classes"."""
        words = self.task
        if self.task in ("classification", "segmentation"):
            words += f" of {self.classes} classes"
        elif self.task in ("multi-label", "regression") and self.output.size > 1:
            words += f" of {self.output.size} values"
        elif self.task == "raw":
            words = "no labels, so against the float model"
        judged = " and ".join(self.judged)
        return f"{words}, judged by {judged}" + (" (classes are uneven)" if self.uneven else "")


def metric_named(name: str) -> Metric:
    """One of METRICS, or a user's own, ``module:function``."""
    return METRICS.get(name) or USERS[name]


#: The user's own metrics, by their ``module:function``.
USERS: dict[str, Metric] = {}


def users_metric(spec: str) -> Metric:
    """The metric of ``module:function``: (y_true, y_pred) -> a number, higher is better.

    Raises:
        LqError: if there is no such function. If the function itself fails, its later call raises an LqError.
    """
    if spec in USERS:
        return USERS[spec]
    module, _, name = spec.partition(":")
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # it is the user's own code
        raise LqError(f"metric {spec}: cannot be imported ({error})") from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)

    def measure(outputs: np.ndarray, labels: np.ndarray, _: float) -> float:
        try:
            return float(function(labels, outputs))
        except Exception as error:  # it is the user's own code
            raise LqError(f"metric {spec}: {error or type(error).__name__}") from error

    return USERS.setdefault(spec, Metric(spec, measure, share=False))


@dataclass(frozen=True)
class Heads:
    """The outputs of a model in order, each with its task.

    The outputs of several heads are flattened and concatenated in one array, float32 [n, total]. So are their
    labels. Outputs and labels of a single head keep their shape.
    """

    heads: tuple[Head, ...]

    def __iter__(self) -> Iterator[Head]:
        return iter(self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    @property
    def single(self) -> Head | None:
        """The only one, or None."""
        return self.heads[0] if len(self.heads) == 1 else None

    @property
    def unweighted(self) -> Heads:
        """The same heads, in which every example of a classification counts alike.

        The balanced metrics depend on a few examples of rare classes, which is too noisy here.
        """
        plain = [replace(head, judged=TASKS[head.task][:1]) if head.classifies else head for head in self]
        return Heads(tuple(plain))

    @property
    def labelled(self) -> bool:
        return any(head.label_size for head in self.heads)

    @property
    def criteria(self) -> list[tuple[Head, Metric]]:
        """The metrics that budgets limit, each with its head."""
        return [(head, metric_named(name)) for head in self.heads for name in head.judged]

    @property
    def criterion_labels(self) -> list[str]:
        """The labels of these metrics, as in :attr:`Score.label`."""
        several = len(self.heads) > 1
        return [
            f"{head.output.name if several else ''} {metric.name}".strip() for head, metric in self.criteria
        ]

    def cut(self, outputs: np.ndarray) -> list[np.ndarray]:
        """The outputs of each head, [n, ...] in its own shape."""
        if len(self.heads) == 1:
            return [outputs]
        parts = _columns(outputs, [head.output.size for head in self.heads])
        return [part.reshape(-1, *head.output.shape) for part, head in zip(parts, self.heads, strict=True)]

    def cut_labels(self, labels: np.ndarray) -> list[np.ndarray]:
        """Each head's labels."""
        if len(self.heads) == 1:
            return [labels]
        parts = _columns(labels, [head.label_size for head in self.heads])
        return [as_labels(part, head.task) for part, head in zip(parts, self.heads, strict=True)]

    def join_labels(self, labels: Sequence[np.ndarray]) -> np.ndarray:
        """The inverse of :meth:`cut_labels`."""
        if len(self.heads) == 1:
            return labels[0]
        return np.concatenate([part.reshape(len(part), -1).astype(np.float32) for part in labels], axis=1)

    def activated(self, logits: np.ndarray) -> np.ndarray:
        """The outputs for these logits, in the same shape."""
        if len(self.heads) == 1:
            return self.heads[0].activated(logits.reshape(len(logits), -1)).reshape(logits.shape)
        parts = _columns(logits, [head.output.size for head in self.heads])
        return np.concatenate([h.activated(part) for h, part in zip(self.heads, parts, strict=True)], axis=1)

    def _parts(
        self, outputs: np.ndarray, labels: np.ndarray, teacher: np.ndarray
    ) -> Iterator[tuple[Head, np.ndarray, np.ndarray]]:
        """Each head, its outputs, and what they are compared with."""
        cut = self.cut(outputs), self.cut_labels(labels), self.cut(teacher)
        for head, out, label, float_out in zip(self.heads, *cut, strict=True):
            yield head, out, head.truth(label, float_out)

    def scores(
        self, outputs: np.ndarray, labels: np.ndarray, teacher: np.ndarray | None
    ) -> tuple[Score, ...]:
        """All metrics of all heads. For each head, those that budgets limit come first.

        Args:
            outputs: of a file, on the examples of the labels.
            teacher: the float model's outputs on the same examples. Without it, outputs that have no labels
                get no scores.
        """
        return tuple(
            Score(head.output.name if len(self.heads) > 1 else "", metric.name, value)
            for head, out, truth in self._parts(outputs, labels, outputs if teacher is None else teacher)
            if head.label_size or teacher is not None
            for metric in head.metrics
            if not math.isnan(value := metric.measure(out, truth, head.threshold))
        )

    def judged_scores(self, outputs: np.ndarray, labels: np.ndarray, teacher: np.ndarray) -> list[float]:
        """The metrics that budgets limit, [criteria]; see :meth:`scores`."""
        return [
            metric_named(name).measure(out, truth, head.threshold)
            for head, out, truth in self._parts(outputs, labels, teacher)
            for name in head.judged
        ]

    def qualities(self, logits: np.ndarray, labels: np.ndarray, teacher: np.ndarray) -> np.ndarray:
        """Validation quality [criteria, n]: the values whose mean budgets limit. One point is 0.01.

        For accuracies, it is the mean of correctness (1 or 0) and confidence. Accuracy is what counts, but
        few examples change sides, so it is noisy. Confidence shows damage much earlier.

        Args:
            logits: outputs before a final softmax or sigmoid.
            teacher: the float model's outputs.
        """
        return np.stack(
            [
                _qualities(head, metric_named(name), logit, out, truth)
                for (head, out, truth), logit in zip(
                    self._parts(self.activated(logits), labels, teacher), self.cut(logits), strict=True
                )
                for name in head.judged
            ]
        )

    def loss(self, logits: np.ndarray, labels: np.ndarray, teacher: np.ndarray) -> float:
        """The loss in logs: cross-entropy in nats, or the squared error over the targets' variance."""
        parts = zip(self._parts(self.activated(logits), labels, teacher), self.cut(logits), strict=True)
        return sum(_loss(head, logit, out, truth) for (head, out, truth), logit in parts)


def _loss(head: Head, logits: np.ndarray, outputs: np.ndarray, truth: np.ndarray) -> float:
    if head.classifies:
        return -float(np.maximum(log_likelihoods(logits, truth), math.log(1e-7)).mean())
    if head.task == "multi-label" or (head.task == "segmentation" and head.output.classes == 1):
        signs = 2 * truth.reshape(len(truth), -1).astype(np.float32) - 1
        return float(np.logaddexp(0.0, -signs * logits.reshape(len(logits), -1)).mean())
    if head.task == "segmentation":
        by_class = log_softmax(logits.reshape(*truth.shape, head.output.classes))
        return -float(np.take_along_axis(by_class, truth[..., np.newaxis], axis=-1).mean())
    outputs = outputs.reshape(len(outputs), -1)
    truth = truth[:, : outputs.shape[1]]
    return float(np.mean((outputs - truth) ** 2) / (np.mean(np.var(truth, axis=0)) or 1.0))


def _qualities(
    head: Head, metric: Metric, logits: np.ndarray, outputs: np.ndarray, truth: np.ndarray
) -> np.ndarray:
    if metric.name not in ("accuracy", "balanced accuracy"):
        # If these labels do not define the metric (AUC without a positive), a file is as good as float.
        return np.nan_to_num(metric.qualities(outputs, truth, head.threshold), nan=0.0)
    weights = balance(truth) if metric.name == "balanced accuracy" else np.ones(len(truth))
    right = METRICS["accuracy"].qualities(outputs, truth, head.threshold)
    return weights * (right + confidences(logits, truth, weights)) / 2


def _columns(values: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    return np.split(values.reshape(len(values), -1), np.cumsum(sizes)[:-1], axis=1)


def as_labels(columns: np.ndarray, task: str) -> np.ndarray:
    """A head's columns of labels in their own type and shape."""
    if task in CLASSIFIES:
        return columns[:, 0].astype(np.int64)
    return columns.astype(np.int64) if task == "segmentation" else columns.astype(np.float32)


# Detecting the task


@dataclass(frozen=True)
class Wishes:
    """The user's choices of tasks and metrics, by output name; "" stands for all outputs."""

    tasks: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    threshold: float = 0.5
    classes: tuple[str, ...] = ()  # the names of the model's classes, in the order of its outputs

    def task(self, output: Output) -> str | None:
        return self.tasks.get(output.name, self.tasks.get(""))

    def metric(self, output: Output) -> str | None:
        return self.metrics.get(output.name, self.metrics.get(""))

    def check(self, outputs: Sequence[Output]) -> None:
        """Raises an LqError for a name that no output has."""
        names = [output.name for output in outputs]
        for what, given in (("task", self.tasks), ("metric", self.metrics), ("weight", self.weights)):
            for name in given:
                if name and name not in names:
                    listed = ", ".join(names)
                    raise LqError(f"{what} of output {name}: the model's outputs are {listed}")


def find_head(
    source: str,
    output: Output,
    labels: np.ndarray | None,
    inputs: np.ndarray,
    wishes: Wishes,
    *,
    class_names: Sequence[str] = (),
) -> Head:
    """The task of an output, detected from the labels of the training part.

    Args:
        source: the name of the data in messages.
        labels: as the user gave them; None without labels.
        inputs: [n, ...], of the training part.
        class_names: of integer labels, if they are known.

    Raises:
        LqError: if the labels, or the user's wishes, do not fit the output.
    """
    task = wishes.task(output) or _task(source, output, labels, inputs)
    head = Head(output, task, threshold=wishes.threshold, class_names=tuple(class_names))
    if task in AGAINST_FLOAT:
        head = replace(head, label_size=0)
    elif labels is None and task != "reconstruction":
        raise LqError(f"{source}: {task} needs labels", hint="raw")
    if labels is not None and labels.dtype.kind in "US":
        head = replace(head, class_names=tuple(str(name) for name in np.unique(labels)))
    if labels is not None and task != "reconstruction" and task not in AGAINST_FLOAT:
        normal = head_labels(source, head, labels, len(inputs))
        head = replace(head, label_size=math.prod(normal.shape[1:]))
        if head.classifies:
            head = _weighed(head, normal)
    if task == "reconstruction":  # the targets are made from the inputs; anomalies may be labelled
        head = replace(head, label_size=output.size + 1)
    # Ranking (AUC) and the side of the threshold (accuracy) are limited both: one can hold while the other
    # fails.
    judged: tuple[str, ...] = TASKS[task] if task == "multi-label" else TASKS[task][:1]
    if head.uneven:
        judged = ("balanced accuracy", "AUC") if task == "binary" else ("balanced accuracy",)
    wish = wishes.metric(output)
    if wish is not None:
        if wish not in METRICS:
            users_metric(wish)
        elif wish not in TASKS[task]:
            raise LqError(f"metric {wish}: not one of {task}; choose {', '.join(TASKS[task])}")
        judged = (wish,)
    return replace(head, judged=judged, weight=wishes.weights.get(output.name, 1.0))


def _weighed(head: Head, labels: np.ndarray) -> Head:
    """The head, with a weight for each class if classes are uneven.

    The weights are the square roots of those that would make all classes count alike. With smaller ones the
    rare classes are lost, with larger ones the decision threshold moves towards them.
    """
    counts = np.bincount(labels, minlength=head.classes)
    even = len(labels) / max(int(np.count_nonzero(counts)), 1)
    if not len(labels) or counts[counts > 0].min() >= UNEVEN * even:
        return head
    return replace(head, uneven=True, class_weights=tuple(np.sqrt(even / np.maximum(counts, 1)).tolist()))


def _task(source: str, output: Output, labels: np.ndarray | None, inputs: np.ndarray) -> str:
    """The task that fits the labels and the output."""
    as_input = output.size == math.prod(inputs.shape[1:]) > 1 and output.activation != "softmax"
    if labels is None:
        if output.activation == "l2":
            return "embedding"
        return "reconstruction" if as_input else "raw"
    count, size = len(labels), output.size
    values = math.prod(labels.shape[1:])
    named, whole = labels.dtype.kind in "US", labels.dtype.kind in "uib"
    flags = not named and bool(np.all((labels == 0) | (labels == 1)))
    numbers = whole or named or (output.activation == "softmax" and bool(np.all(labels == np.round(labels))))
    if as_input and values == 1 and flags and size > 2:
        return "reconstruction"  # the labels mark anomalies
    if size == 1 and values == 1:
        return "binary" if named or (flags and (whole or output.activation == "sigmoid")) else "regression"
    if output.positions == 1 and values == 1 and numbers:
        return "binary" if output.classes == 2 else "classification"
    if output.positions > 1 and values == output.positions and (flags or (numbers and _few(output, labels))):
        return "segmentation"
    if values == size:
        by_class = labels.reshape(count, -1, output.classes)
        sums = by_class.sum(axis=-1)
        if output.classes > 1 and ((flags and np.all(sums == 1)) or _shares(output, by_class, sums)):
            kinds = "binary" if output.classes == 2 else "classification"
            return kinds if output.positions == 1 else "segmentation"
        if flags and output.positions == 1:
            return "multi-label"
        if as_input and np.array_equal(labels.reshape(count, -1), inputs.reshape(count, -1)):
            return "reconstruction"
        return "regression"
    if output.positions > 1 and values == 1 and numbers:
        raise LqError(
            f"{source}: one label for each example, but the model's answers are of shape {output.shape}"
        )
    raise LqError(
        f"{source}: labels of {values} values for each example, but the model gives {size}; "
        "numbers of classes have to be integers"
    )


def _few(output: Output, labels: np.ndarray) -> bool:
    """Whether numbers at each position are few enough to be classes. One output stands for two classes."""
    return output.classes > 1 or len(np.unique(labels)) == 2


def _shares(output: Output, by_class: np.ndarray, sums: np.ndarray) -> bool:
    """Whether labels are class probabilities for a softmax, such as smoothed labels."""
    return output.activation == "softmax" and bool(by_class.min() >= 0 and np.allclose(sums, 1, atol=1e-3))


def head_labels(source: str, head: Head, labels: np.ndarray, count: int) -> np.ndarray:
    """Labels in the form that the head's metrics take: int64 [n] or [n, positions], or float32 [n, k].

    Raises:
        LqError: if the number of labels is not that of the examples, or the labels do not fit.
    """
    if len(labels) != count:
        raise LqError(f"{source}: {count} inputs but {len(labels)} labels")
    if labels.dtype.kind in "US":
        names = np.array(head.class_names)
        places = np.minimum(np.searchsorted(names, labels), max(len(names) - 1, 0))
        if len(labels) and not (len(names) and np.array_equal(names[places], labels)):
            raise LqError(f"{source}: the test part has classes that the training part does not have")
        labels = places
    if labels.dtype.kind not in "uifb":
        raise LqError(f"{source}: labels of type {labels.dtype}; give numbers")
    if labels.dtype.kind == "f" and not np.all(np.isfinite(labels)):
        raise LqError(f"{source}: the labels contain NaN or infinite values")
    if head.classifies or head.task == "segmentation":
        return _class_numbers(source, head, labels, count)
    flat = labels.astype(np.float32).reshape(count, math.prod(labels.shape[1:]))
    if flat.shape[1] != head.output.size:
        given = f"{flat.shape[1]} values for each example, but the model gives {head.output.size}"
        raise LqError(f"{source}: labels of {given}; numbers of classes have to be integers")
    return flat


def _class_numbers(source: str, head: Head, labels: np.ndarray, count: int) -> np.ndarray:
    positions = head.output.positions if head.task == "segmentation" else 1
    values = math.prod(labels.shape[1:])
    if values == positions * head.output.classes and head.output.classes > 1:
        labels = labels.reshape(count, positions, head.output.classes).argmax(axis=-1)
    elif values != positions:
        given = f"labels of shape {labels.shape[1:]}"
        raise LqError(f"{source}: {given}, but {head.task} takes {positions} for each example")
    numbers = labels.reshape(count, positions).astype(np.int64)
    wrong = numbers[(numbers < 0) | (numbers >= head.classes)]
    if len(wrong):
        raise LqError(
            f"{source}: label {wrong[0]} is out of range: the model has {head.output.classes} outputs"
        )
    if head.task != "segmentation":
        return numbers[:, 0]
    return numbers.astype(np.uint8 if head.classes <= 256 else np.int32)  # maps are large
