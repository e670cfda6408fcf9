"""How a model's inputs were made of raw values, and finding it out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from lqconvert.errors import LqError
from lqconvert.splits import Data, as_numpy


@dataclass(frozen=True)
class Preprocessing:
    """What the model was trained on: ``x = raw * scale + offset``."""

    scale: float = 1.0
    offset: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Preprocessing:
        """Reads "none", "0-1", "-1-1" or "SCALE,OFFSET"; ValueError for anything else.

        >>> Preprocessing.parse("-1-1") == Preprocessing(scale=1 / 127.5, offset=-1.0)
        True
        >>> Preprocessing.parse("2,0.5")
        Preprocessing(scale=2.0, offset=0.5)
        """
        if text in PREPROCESSINGS:
            return PREPROCESSINGS[text]
        scale, offset = (float(number) for number in text.split(","))
        if not 0 < scale < math.inf or not math.isfinite(offset):
            raise ValueError("the scale has to be positive, and both finite")
        return cls(scale, offset)

    def __str__(self) -> str:
        names = [name for name, known in PREPROCESSINGS.items() if known == self]
        return names[0] if names else f"{self.scale:g},{self.offset:g}"

    def refuse_indices(self, names: Iterable[str]) -> None:
        """An LqError that names the first of the inputs that take indices, unless inputs stay as they are."""
        for name in names if self != Preprocessing() else ():
            raise LqError(
                f"--preprocess: input '{name}' takes indices, which are not scaled; leave it out, and scale "
                "the other inputs in the data"
            )

    @property
    def pixel_range(self) -> tuple[float, float] | None:
        """The input range that makes the file take raw pixels as they are (minus 128), or None.

        x = raw * scale + offset is the int8 code raw - 128 at zero point -128 - offset / scale. Where that is
        no integer (-1-1 has -0.5) it is rounded, a shift of at most half a pixel step that is learned around.
        """
        zero_point = self.pixel_zero_point
        if not -128 <= zero_point <= 127:
            return None
        return (-128 - zero_point) * self.scale, (127 - zero_point) * self.scale

    @property
    def pixel_zero_point(self) -> int:
        """The zero point at which the code of a raw pixel is nearest to raw - 128."""
        return round(-128 - self.offset / self.scale)

    @property
    def pixel_shift(self) -> float:
        """By how many pixel steps :attr:`pixel_range` shifts the input; 0 where the folding is exact."""
        return self._shift(self.pixel_zero_point, -128)

    def off_ties(self, zero_point: int, lowest: int = -128) -> Preprocessing:
        """The same, a hundredth of the way nearer to codes that are raw pixels and ``lowest``.

        Half a step off (-1-1), every pixel lies between two codes, and the noise of float32 decides. So each
        comes to raw + lowest, which is what devices feed a file of that zero point. Where pixels are codes
        as they are, or no codes at all, nothing changes.
        """
        shift = self._shift(zero_point, lowest)
        return replace(self, offset=self.offset - 0.01 * shift * self.scale) if abs(shift) < 0.51 else self

    def _shift(self, zero_point: int, lowest: int) -> float:
        """By how many codes pixels are above raw + lowest."""
        return self.offset / self.scale + zero_point - lowest


PREPROCESSINGS = {
    "none": Preprocessing(),
    "0-1": Preprocessing(1 / 255),
    "-1-1": Preprocessing(1 / 127.5, -1.0),
}


def choose_preprocessing(
    predict: Callable[[np.ndarray], np.ndarray], data: Data, *, samples: int = 2000
) -> tuple[Preprocessing, dict[str, float]]:
    """Scores the float model under each known preprocessing on the validation split; the best and all scores.

    Among accuracies that differ by less than their sampling error the likelihood of the labels decides:
    a ReLU network without large biases classifies scaled inputs alike, but with wrong confidence.

    Raises:
        LqError: if none is clearly better than chance.
    """
    from lqconvert.scoring import guesses, log_probabilities

    part = data.validation.pick(np.arange(min(samples, data.validation.size)))
    scores, likelihoods, y = {}, {}, part.y
    for name, preprocessing in PREPROCESSINGS.items():
        batches = part.batches(256, preprocessing=preprocessing)
        outputs = np.concatenate([predict(as_numpy(x)) for _, x, _ in batches]).reshape(len(y), -1)
        if data.labels == "values":
            scores[name] = likelihoods[name] = -float(np.mean((outputs - y) ** 2))
            continue
        scores[name] = float(np.mean(guesses(outputs) == y))
        likelihoods[name] = float(np.mean(log_probabilities(outputs)[np.arange(len(y)), y]))
    best, noise = max(scores.values()), 0.0
    if data.labels == "values":
        chance = -float(np.mean((y - y.mean(axis=0)) ** 2))
    else:
        noise = 3 * np.sqrt(max(best * (1 - best), 1 / len(y)) / len(y))
        guess = float(np.bincount(y).max() / len(y))
        chance = guess + 3 * float(np.sqrt(guess * (1 - guess) / len(y)))
    if not best > chance:
        listed = ", ".join(f"{name} {score:.3g}" for name, score in scores.items())
        raise LqError(
            f"the model is no better than chance on {data.name} under any preprocessing ({listed}); "
            "is it the right data? If so, give --preprocess."
        )
    close = [name for name, score in scores.items() if score >= best - noise]
    return PREPROCESSINGS[max(close, key=lambda name: likelihoods[name])], scores
