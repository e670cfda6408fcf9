"""Rounds weights to integer codes with the least damage, at a price for each bit. Pure NumPy.

An error ``e`` in the weights of one output causes the damage ``importance / 2 * e^T H e``, where ``H`` is the
second moments of the layer's inputs. A code costs ``multiplier * bits(code)``, with bits from the frequencies
of the layer's codes. Inputs are rounded one after the other, and the weights of later inputs compensate the
error of each: Frantar et al., "GPTQ", arXiv 2210.17323; with a price for bits: "CERWU", arXiv 2505.18758.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

#: This share of H's mean diagonal is added to its diagonal, for inputs that did not occur in the batches.
DAMPING = 0.03
#: The errors of this many inputs are passed on to all later ones at once: one matrix product instead of many.
BLOCK = 128
#: At many bits, a step ``s`` causes the damage ``curvature * s^2 / 24`` per weight and takes ``-log2(s)``
#: bits plus a constant. The sum of damage and price is least at ``s^2 = 12 / ln 2 * multiplier / curvature``.
#: At one bit per weight, 1.5 times that is better (an MLP on MNIST: 5% fewer bytes); at four bits, as good.
STEP = 1.5 * 12 / math.log(2)


@dataclass(frozen=True)
class Curvature:
    """The damage that errors in a layer's weights cause, for one output.

    Each group of a layer has its own inputs. (A depthwise layer has one group for each channel.)
    """

    # float32 [groups, inputs, inputs]: the share of input i's error that input j > i compensates
    spread: np.ndarray
    conditional: np.ndarray  # float64 [groups, inputs]: the damage of input i's error after compensation

    @classmethod
    def of(cls, moments: np.ndarray) -> Curvature:
        """The curvature for second moments H of the inputs, [groups, inputs, inputs]."""
        damped = on_diagonal(moments, damping_of(moments))
        # The upper Cholesky factor of the inverse, from the lower one of H with its inputs in reverse order.
        upper = _inverse(np.linalg.cholesky(damped[:, ::-1, ::-1]))[:, ::-1, ::-1]
        pivots = np.einsum("gii->gi", upper)
        return cls((upper / pivots[:, :, None]).astype(np.float32), 1 / pivots**2)

    @property
    def mean(self) -> np.ndarray:
        """The geometric mean over the inputs, [groups]."""
        return np.exp(np.log(self.conditional).mean(axis=1))


def _inverse(lower: np.ndarray) -> np.ndarray:
    """The inverses of lower triangular matrices [..., n, n]: a third of the work of ``np.linalg.inv``."""
    n = lower.shape[-1]
    if n <= BLOCK:
        return np.linalg.inv(lower)
    half = n // 2
    inverse = np.zeros_like(lower)
    first, last = inverse[..., :half, :half], inverse[..., half:, half:]
    first[...], last[...] = _inverse(lower[..., :half, :half]), _inverse(lower[..., half:, half:])
    inverse[..., half:, :half] = -last @ lower[..., half:, :half] @ first
    return inverse


def damping_of(moments: np.ndarray) -> np.ndarray:
    """What is added to the diagonals of second moments [groups, inputs, inputs]: [groups, 1]."""
    return DAMPING * np.einsum("gii->gi", moments).mean(axis=1, keepdims=True) + 1e-30


def on_diagonal(matrices: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A copy of matrices [groups, n, n] with values [groups, n or 1] added to their diagonals."""
    added = matrices.copy()
    np.einsum("gii->gi", added)[...] += values
    return added


def step_of_least_cost(curvature: np.ndarray, multiplier: float) -> np.ndarray:
    """The scale at which bits and damage balance. An error ``e`` costs ``curvature / 2 * e^2``."""
    return np.sqrt(STEP * multiplier / np.maximum(curvature, 1e-300))


def bits_of(codes: np.ndarray, limit: int) -> np.ndarray:
    """The bits of each code from -limit to limit, from its frequency among the codes."""
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
        scale: broadcastable to [groups, 1, outputs]: at most one scale for each output.
        importance: [groups, outputs]: the importance of errors in each output.
        multiplier: the price of a bit, in units of damage.
        passes: how often all weights are rounded. Each pass uses the code frequencies of the one before.
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
    left = np.array(weights, np.float32)
    scale = np.broadcast_to(scale, (left.shape[0], 1, left.shape[2]))[:, 0].astype(np.float32)
    codes = np.empty(left.shape, np.int32)
    inputs = left.shape[1]
    for start in range(0, inputs, BLOCK):
        stop = min(start + BLOCK, inputs)
        errors = np.empty((left.shape[0], stop - start, left.shape[2]), np.float32)
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
    """The cheapest code, by damage and price: the nearest one, the next one towards 0, or 0."""
    best = np.clip(np.rint(weights / scale), -limit, limit).astype(np.int32)
    least = costs * (weights - best * scale) ** 2 + prices[best + limit]
    for other in (best - np.sign(best), np.zeros_like(best)):
        cost = costs * (weights - other * scale) ** 2 + prices[other + limit]
        best, least = np.where(cost < least, other, best), np.minimum(cost, least)
    return best
