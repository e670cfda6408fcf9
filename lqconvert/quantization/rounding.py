"""Rounding weights to integer codes for the least damage at a price for each bit, in pure NumPy.

The damage of an error ``e`` in the weights of one output is ``importance / 2 * e^T H e``, with ``H`` the
second moments of the layer's inputs. A code costs ``multiplier * bits(code)``, bits from the frequencies of
the layer's own codes. Inputs are rounded one by one, and what a rounding does wrong is made good in the
inputs that follow: Frantar et al., "GPTQ", arXiv 2210.17323; with a price for bits: "CERWU", 2505.18758.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

#: Share of its mean that is added to the diagonal of H: inputs that were never seen may come.
DAMPING = 0.01
#: Inputs whose errors are spread to the rest at once: one matrix product instead of many.
BLOCK = 128
#: At high rates, a step ``s`` damages ``curvature * s^2 / 24`` a weight, which takes ``-log2(s)`` bits and a
#: constant: damage and price are least at ``s^2 = 12 / ln 2 * multiplier / curvature``.
STEP = 12 / math.log(2)


@dataclass(frozen=True)
class Curvature:
    """What errors in the weights of a layer's inputs damage, for one output.

    Where a layer is in groups (a depthwise one has one for each channel), each has inputs of its own.
    """

    spread: (
        np.ndarray
    )  # float64 [groups, inputs, inputs]: of an error of input i, what input j > i makes good
    conditional: np.ndarray  # float64 [groups, inputs]: of an error of input i, when those after it make good

    @classmethod
    def of(cls, moments: np.ndarray) -> Curvature:
        """From the second moments H of the inputs, [groups, inputs, inputs]."""
        diagonal = np.einsum("gii->gi", moments)
        damping = DAMPING * diagonal.mean(axis=1) + 1e-30
        damped = moments + damping[:, None, None] * np.eye(moments.shape[1])
        # The upper Cholesky factor of the inverse: that of H, with its inputs in reverse, is lower.
        lower = np.linalg.cholesky(damped[:, ::-1, ::-1])[:, ::-1, ::-1]
        upper = np.linalg.inv(lower)
        pivots = np.einsum("gii->gi", upper)
        return cls(upper / pivots[:, :, None], 1 / pivots**2)

    @property
    def mean(self) -> np.ndarray:
        """The geometric mean over the inputs, [groups]."""
        return np.exp(np.log(self.conditional).mean(axis=1))


def step_of_least_cost(curvature: np.ndarray, multiplier: float) -> np.ndarray:
    """The scale at which bits and damage balance, an error ``e`` damaging ``curvature / 2 * e^2``."""
    return np.sqrt(STEP * multiplier / np.maximum(curvature, 1e-300))


def bits_of(codes: np.ndarray, limit: int) -> np.ndarray:
    """The bits of each code from -limit to limit, by how often it is among the codes."""
    counts = np.bincount(codes.ravel() + limit, minlength=2 * limit + 1) + 0.5
    return -np.log2(counts / counts.sum())


def nearest(weights: np.ndarray, scale: np.ndarray, limit: int) -> np.ndarray:
    """The codes nearest to the weights."""
    return np.clip(np.round(weights / scale), -limit, limit).astype(np.int32)


def rounded(
    weights: np.ndarray,
    scale: np.ndarray,
    curvature: Curvature,
    importance: np.ndarray,
    multiplier: float,
    *,
    limit: int = 127,
    passes: int = 2,
) -> np.ndarray:
    """The codes, int32 [groups, inputs, outputs].

    Args:
        weights: [groups, inputs, outputs].
        scale: broadcastable to [groups, 1, outputs]: one for each output at most.
        importance: [groups, outputs]: of errors in each output.
        multiplier: the damage that a bit is worth.
        passes: how often all is rounded; each takes the frequencies of codes from the one before.
    """
    codes = nearest(weights, scale, limit)
    for _ in range(passes):
        codes = _pass(weights, scale, curvature, importance, multiplier * bits_of(codes, limit), limit)
    return codes


def _pass(
    weights: np.ndarray,
    scale: np.ndarray,
    curvature: Curvature,
    importance: np.ndarray,
    prices: np.ndarray,
    limit: int,
) -> np.ndarray:
    left = np.array(weights, np.float64)
    scale = np.broadcast_to(scale, (left.shape[0], 1, left.shape[2]))[:, 0].astype(np.float64)
    codes = np.empty(left.shape, np.int32)
    inputs = left.shape[1]
    for start in range(0, inputs, BLOCK):
        stop = min(start + BLOCK, inputs)
        errors = np.empty((left.shape[0], stop - start, left.shape[2]))
        for i in range(start, stop):
            costs = importance * (curvature.conditional[:, i, None] / 2)
            codes[:, i] = _cheapest(left[:, i], scale, costs, prices, limit)
            errors[:, i - start] = left[:, i] - codes[:, i] * scale
            later = curvature.spread[:, i, i + 1 : stop]
            left[:, i + 1 : stop] -= later[:, :, None] * errors[:, i - start, None]
        left[:, stop:] -= curvature.spread[:, start:stop, stop:].transpose(0, 2, 1) @ errors
    return codes


def _cheapest(
    weights: np.ndarray, scale: np.ndarray, costs: np.ndarray, prices: np.ndarray, limit: int
) -> np.ndarray:
    """Of the nearest code, the next one towards 0, and 0: the one of the least damage and price."""
    best = np.clip(np.rint(weights / scale), -limit, limit).astype(np.int32)
    least = costs * (weights - best * scale) ** 2 + prices[best + limit]
    for other in (best - np.sign(best), np.zeros_like(best)):
        cost = costs * (weights - other * scale) ** 2 + prices[other + limit]
        best, least = np.where(cost < least, other, best), np.minimum(cost, least)
    return best
