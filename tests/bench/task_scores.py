"""Formulas that judge the files of tasks.py, none of them lqconvert's: 1 is best, but for an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: How often test examples are drawn again, for the standard error of a difference.
RESAMPLED = 200


def top1(y: np.ndarray, p: np.ndarray) -> float:
    return float(np.mean(p.argmax(-1) == y))


def recall(y: np.ndarray, p: np.ndarray) -> float:
    return float(np.mean(p[y == 1] > 0.5))


def balanced(y: np.ndarray, p: np.ndarray) -> float:
    return (recall(y, p) + recall(1 - y, 1 - p)) / 2


def auc(y: np.ndarray, p: np.ndarray) -> float:
    """How often a positive is above a negative; a tie, of which int8 has many, is half of that."""
    _, place, count = np.unique(p, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    positives, negatives = int(np.sum(y == 1)), int(np.sum(y != 1))
    return float((rank[y == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def mean_auc(y: np.ndarray, p: np.ndarray) -> float:
    return float(np.mean([auc(*column) for column in zip(y.T, p.T, strict=True)]))


def micro_f1(y: np.ndarray, p: np.ndarray) -> float:
    said = p > 0.5
    return float(2 * np.sum(said & (y == 1)) / (said.sum() + y.sum()))


def miou(y: np.ndarray, p: np.ndarray) -> float:
    said = p.argmax(-1)
    return float(
        np.mean([np.sum((said == k) & (y == k)) / np.sum((said == k) | (y == k)) for k in np.unique(y)])
    )


def r2(y: np.ndarray, p: np.ndarray) -> float:
    """The mean over the columns."""
    return float(np.mean(1 - np.sum((y - p) ** 2, 0) / np.sum((y - y.mean(0)) ** 2, 0)))


def mae(y: np.ndarray, p: np.ndarray) -> float:
    return float(np.mean(np.abs(y - p)))


def cosine(y: np.ndarray, p: np.ndarray) -> float:
    return float(
        np.mean(np.sum(y * p, -1) / (np.linalg.norm(y, axis=-1) * np.linalg.norm(p, axis=-1) + 1e-12))
    )


@dataclass(frozen=True)
class Metric:
    """Judges an output: ``score`` of (the truth, what the file says), of which 1 is best, or an error."""

    name: str
    score: Callable[[np.ndarray, np.ndarray], float]
    truth: np.ndarray
    output: str = ""  # its name, where there are several

    @property
    def judged(self) -> bool:
        return "MAE" not in self.name

    def of(self, outputs: dict[str, np.ndarray]) -> float:
        return self.score(self.truth, self._said(outputs))

    def gain(self, ours: dict[str, np.ndarray], peers: dict[str, np.ndarray]) -> tuple[float, float]:
        """How far ours is above the peer's, and the standard error of that (paired bootstrap of examples)."""
        said = self._said(ours), self._said(peers)

        def apart(chosen: np.ndarray) -> float:
            mine, theirs = (self.score(self.truth[chosen], each[chosen]) for each in said)
            return mine - theirs

        count, rng = len(self.truth), np.random.default_rng(0)
        drawn = [apart(rng.integers(0, count, count)) for _ in range(RESAMPLED)]
        return apart(np.arange(count)), float(np.std(drawn))

    def _said(self, outputs: dict[str, np.ndarray]) -> np.ndarray:
        said = outputs[self.output]
        return said.reshape(self.truth.shape) if said.size == self.truth.size else said

    def text(self, value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value:.2%}" if self.judged and "R2" not in self.name else f"{value:.4g}"
