"""The preprocessing that turns raw values into a model's inputs, and its detection."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lqconvert.data.dataset import Data, as_numpy
from lqconvert.errors import LqError
from lqconvert.metrics import METRICS, log_probabilities
from lqconvert.tasks import TASKS, Head


@dataclass(frozen=True)
class Front:
    """A scaling of columns (of the last axis) in front of the quantized model: ``(x - center) * factor``.

    In this form, float32 is exact enough also for columns that are constant or far from 0.
    """

    center: tuple[float, ...]
    factor: tuple[float, ...]

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Center and factor, float32 [columns] both."""
        return np.array(self.center, np.float32), np.array(self.factor, np.float32)

    def __call__(self, x: Any) -> Any:
        """Scales float32 values [..., columns] in an array or a tensor."""
        center, factor = self.arrays
        return (x - center) * factor

    def undone(self, scaled: np.ndarray) -> np.ndarray:
        """Float32 values that are scaled to these values, as exactly as float32 allows."""
        factor = np.array(self.factor)
        return (scaled / np.where(factor, factor, np.inf) + np.array(self.center)).astype(np.float32)


@dataclass(frozen=True)
class Preprocessing:
    """The scaling for which the model was trained: ``x = raw * scale + offset``, then ``front``."""

    scale: float = 1.0
    offset: float = 0.0
    front: Front | None = None

    def __call__(self, raw: Any) -> Any:
        """Float32 values, preprocessed, from an array or a tensor."""
        x = raw * self.scale + self.offset
        return x if self.front is None else self.front(x)

    @classmethod
    def parse(cls, text: str) -> Preprocessing:
        """Reads "none", "0-1", "-1-1" or "SCALE,OFFSET"; ValueError for anything else.

        >>> Preprocessing.parse("-1-1") == Preprocessing(scale=1 / 127.5, offset=-1.0)
        True
        >>> Preprocessing.parse("2,0.5") == Preprocessing(scale=2.0, offset=0.5)
        True
        """
        if text in PREPROCESSINGS:
            return PREPROCESSINGS[text]
        scale, offset = (float(number) for number in text.split(","))
        if not 0 < scale < math.inf or not math.isfinite(offset):
            raise ValueError("the scale has to be positive, and both finite")
        return cls(scale, offset)

    def __str__(self) -> str:
        names = [name for name, known in PREPROCESSINGS.items() if known == replace(self, front=None)]
        return names[0] if names else f"{self.scale:g},{self.offset:g}"

    def refuse_indices(self, names: Iterable[str]) -> None:
        """Raises an LqError for an input that takes indices, unless inputs are used as they are."""
        for name in names if self != Preprocessing() else ():
            raise LqError(
                f"preprocess: input '{name}' takes indices, which are not scaled; scale the other inputs in "
                "the data",
                hint="no_preprocess",
            )

    @property
    def pixel_range(self) -> tuple[float, float] | None:
        """The input range with which the file takes raw pixels (int8 = pixel - 128), or None.

        With the zero point -128 - offset / scale, the int8 code of raw * scale + offset is raw - 128. If that
        is no integer (-1-1 has -0.5), it is rounded. Then inputs are shifted by at most half a pixel step,
        and fine-tuning adapts to that.
        """
        zero_point = self.pixel_zero_point
        if not -128 <= zero_point <= 127:
            return None
        return (-128 - zero_point) * self.scale, (127 - zero_point) * self.scale

    @property
    def pixel_zero_point(self) -> int:
        """The zero point with which the code of a raw pixel is closest to raw - 128."""
        return round(-128 - self.offset / self.scale)

    @property
    def pixel_shift(self) -> float:
        """The shift of inputs by :attr:`pixel_range`, in pixel steps; 0 if the zero point is exact."""
        return self._shift(self.pixel_zero_point, -128)

    def off_ties(self, zero_point: int, lowest: int = -128) -> Preprocessing:
        """The same preprocessing, moved a hundredth of the way to codes that are raw + ``lowest``.

        With a shift of half a step (-1-1), every pixel lies between two codes, and rounding errors of float32
        would decide. After the move, each pixel becomes raw + lowest, which is what devices feed to a file
        with this zero point. If pixels are exact codes, or no codes at all, nothing changes.
        """
        shift = self._shift(zero_point, lowest)
        return replace(self, offset=self.offset - 0.01 * shift * self.scale) if abs(shift) < 0.51 else self

    def _shift(self, zero_point: int, lowest: int) -> float:
        """The number of codes by which pixels are above raw + lowest."""
        return self.offset / self.scale + zero_point - lowest


PREPROCESSINGS = {
    "none": Preprocessing(),
    "0-1": Preprocessing(1 / 255),
    "-1-1": Preprocessing(1 / 127.5, -1.0),
}


@dataclass(frozen=True)
class Choice:
    """The preprocessing with which a model scores best, and its scores.

    Attributes:
        scores: for each known preprocessing, the mean over the heads of the judged metric (R² at least -1).
        target: the preprocessing of the targets of a reconstruction.
        doubts: the outputs that are no better than chance, if others are better.
    """

    preprocessing: Preprocessing
    scores: dict[str, float]
    target: Preprocessing = Preprocessing()
    doubts: tuple[Head, ...] = ()


@dataclass(frozen=True)
class _Fit:
    """The score of an output on examples."""

    score: float
    noise: float  # scores that differ by less count as equal
    chance: float  # the score of a guess; a model has to be better
    likelihood: float  # decides between equal scores
    target: Preprocessing = Preprocessing()

    @classmethod
    def of(cls, head: Head, outputs: np.ndarray, labels: np.ndarray) -> _Fit:
        if head.classifies:
            return cls._of_classes(head, outputs, labels)
        if head.task == "reconstruction":
            fits = [
                cls(measured(head, outputs, target(labels)), 0.0, 0.0, 0.0, target)
                for target in PREPROCESSINGS.values()
            ]
            return max(fits, key=lambda fit: fit.score)
        score = measured(head, outputs, labels)
        chance = 0.5 if head.task == "multi-label" else 0.0
        if head.task == "segmentation":  # a guess: the most frequent class everywhere
            counts = np.bincount(labels.ravel())
            chance = counts.max() / counts.sum() / np.count_nonzero(counts)
        return cls(score, 0.0, float(chance), score)

    @classmethod
    def _of_classes(cls, head: Head, outputs: np.ndarray, labels: np.ndarray) -> _Fit:
        outputs = outputs.reshape(len(labels), -1)
        counts = np.bincount(labels)
        present = counts[counts > 0]
        if head.uneven:  # balanced accuracy: each class counts alike
            score, guess = METRICS["balanced accuracy"].measure(outputs, labels, 0.5), 1 / len(present)
            independent = int(present.min()) * len(present)
        else:
            score, guess = METRICS["accuracy"].measure(outputs, labels, 0.5), present.max() / len(labels)
            independent = len(labels)
        noise = 3 * math.sqrt(max(score * (1 - score), 1 / independent) / independent)
        # With few examples chance is uncertain, but a perfect model is never a guess.
        above = min(3 * math.sqrt(guess * (1 - guess) / independent), (1 - guess) / 2)
        likelihoods = log_probabilities(outputs)[np.arange(len(labels)), labels]
        return cls(score, noise, float(guess + above), float(np.mean(likelihoods)))


def measured(head: Head, outputs: np.ndarray, labels: np.ndarray) -> float:
    """The first judged metric, with more being better; R² at least -1."""
    metric = METRICS[TASKS[head.task][0]]
    return max(metric.measure(outputs, labels, head.threshold), -1.0)


def choose_preprocessing(
    predict: Callable[[Iterable[Any]], np.ndarray], data: Data, *, samples: int = 2000
) -> Choice:
    """Scores the float model with each known preprocessing on the validation split.

    If scores differ by less than their sampling error, the likelihood of the labels decides: a ReLU network
    without large biases predicts the same classes for scaled inputs, but with a wrong confidence.

    Args:
        predict: (batches of inputs) -> outputs for all of them.
        samples: use at most this many examples.

    Raises:
        LqError: if no output with labels is clearly better than chance with any preprocessing.
    """
    part = data.validation.pick(np.arange(min(samples, data.validation.size)))
    labels = data.heads.cut_labels(part.y)
    labelled = [place for place, head in enumerate(data.heads) if head.label_size]
    heads = [data.heads.heads[place] for place in labelled]
    fits: dict[str, list[_Fit]] = {}
    for name, preprocessing in PREPROCESSINGS.items():
        batches = part.batches(256, preprocessing=preprocessing)
        outputs = data.heads.cut(predict(as_numpy(x) for _, x, _ in batches))
        fits[name] = [_Fit.of(data.heads.heads[place], outputs[place], labels[place]) for place in labelled]
    scores = {name: float(np.mean([fit.score for fit in each])) for name, each in fits.items()}
    best = max(scores, key=lambda name: scores[name])
    known = [fit for head, fit in zip(heads, fits[best], strict=True) if head.task != "reconstruction"]
    if known and not any(fit.score > fit.chance for fit in known):
        listed = ", ".join(f"{name} {score:.3g}" for name, score in scores.items())
        raise LqError(
            f"the model is no better than chance on {data.name} with any preprocessing ({listed}); "
            "perhaps these are the wrong data",
            hint="known_preprocess",
        )
    noise = float(np.mean([fit.noise for fit in fits[best]]))
    close = [name for name, score in scores.items() if score >= scores[best] - noise]
    chosen = max(close, key=lambda name: np.mean([fit.likelihood for fit in fits[name]]))
    fitted = list(zip(heads, fits[chosen], strict=True))
    targets = [fit.target for head, fit in fitted if head.task == "reconstruction"]
    doubts = tuple(head for head, fit in fitted if not fit.score > fit.chance)
    return Choice(PREPROCESSINGS[chosen], scores, targets[0] if targets else Preprocessing(), doubts)
