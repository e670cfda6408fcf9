"""Images that are no training images but like them: more to learn from than the data alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from lqconvert.data.dataset import Data
from lqconvert.data.preprocessing import Preprocessing
from lqconvert.metrics import guesses

SHIFTS = (1 / 8, 1 / 16, 1 / 32)
#: A variation may cost the float model this much accuracy, and its sampling error.
TOLERANCE = 0.01
#: What the float model knows by heart it answers this much more accurately than other images, and
#: makes a quarter of the errors at most.
BY_HEART = 0.05
#: Images that are tried at a time: a multiple of the nine places that they are shifted to.
BATCH = 126


@dataclass(frozen=True)
class Augmentation:
    """Mirrors half of the images and moves all of them: by one random offset a batch, the edges reflected.

    Args:
        mirror: left to right.
        shift: the largest move, as a part of height and width.
        blend: each image with another one of its batch, in a random ratio (Zhang et al., "mixup", ICLR 2018).
            Only the float model can say what is to be seen then (Beyer et al., "Knowledge distillation: A
            good teacher is patient and consistent", CVPR 2022).
    """

    mirror: bool = False
    shift: float = 0.0
    blend: bool = False

    def __call__(
        self, images: tf.Tensor, seed: Any, part: Any = 0, parts: int = 1, size: Any = None
    ) -> tf.Tensor:
        """Images varied as the seed says.

        Args:
            images: float32 [batch, height, width, channels]; uint8 too, unless they are blended.
            seed: int [2].
            part, parts, size: where the images are every ``parts``-th of a batch of this size, from
                ``part`` on. They are varied as they would be in the whole.
        """
        mirroring, shifting = tf.unstack(tf.random.split(seed))
        size = tf.shape(images)[0] if size is None else size
        if self.mirror:
            chances = tf.random.stateless_uniform([size], mirroring)
            mirrored = tf.reshape(chances[part::parts] > 0.5, (-1, 1, 1, 1))
            images = tf.where(mirrored, images[:, :, ::-1], images)
        if self.shift:
            extent = tf.concat([tf.shape(images)[:1], images.shape[1:]], 0)
            images = tf.image.stateless_random_crop(self._padded(images), extent, shifting)
        if self.blend:
            ratios = tf.random.stateless_uniform([size], tf.random.fold_in(seed, 2))
            ratios = tf.reshape(ratios[part::parts], (-1, 1, 1, 1))
            far = size // 16 * 8 // parts  # the same partners on 1, 2, 4 and 8 devices
            partners = tf.concat([images[far : 2 * far], images[:far], images[2 * far :]], 0)
            images = ratios * images + (1 - ratios) * partners
        return images

    def _padded(self, images: tf.Tensor) -> tf.Tensor:
        height, width = (round(self.shift * side) for side in images.shape[1:3])
        return tf.pad(images, ((0, 0), (height, height), (width, width), (0, 0)), "REFLECT")

    def __str__(self) -> str:
        parts = ["mirrored"] if self.mirror else []
        if self.shift:
            parts.append(f"shifted by up to 1/{1 / self.shift:.0f}")
        if self.blend:
            parts.append("blended in pairs")
        return ", ".join(parts) or "none"


def choose_augmentation(
    predict: Callable[[np.ndarray], np.ndarray],
    data: Data,
    preprocessing: Preprocessing,
    *,
    samples: int = 1000,
) -> Augmentation:
    """The variations under which the float model classifies validation images as well as before.

    It was trained with them then, or they are in the nature of the data: a mirrored cat is a cat, a mirrored
    digit is none. Only for images with class labels. Images that vary are blended too, where the model knows
    those that it was trained on by heart: what it says of them is no more than their labels do.
    """
    x, y = data.validation.arrays(samples)
    head = data.heads.single
    if head is None or not head.classifies or x.ndim != 4 or min(x.shape[1:3]) < 16:
        return Augmentation()

    def accuracy(x: np.ndarray, y: np.ndarray, vary: Callable[[np.ndarray], np.ndarray]) -> float:
        right = 0
        for start in range(0, len(y), BATCH):  # all at once take gigabytes where images are large
            images = x[start : start + BATCH].astype(np.float32)
            images = images * np.float32(preprocessing.scale) + np.float32(preprocessing.offset)
            outputs = predict(vary(images)).reshape(len(images), -1)
            right += int(np.sum(guesses(outputs) == y[start : start + BATCH]))
        return right / len(y)

    before = accuracy(x, y, lambda images: images)
    floor = before - TOLERANCE - np.sqrt(max(before * (1 - before), 1 / len(y)) / len(y))

    def shifted(images: np.ndarray, shift: float) -> np.ndarray:
        """Moved as far as it goes or not at all in each direction, every ninth of the images elsewhere."""
        padded = Augmentation(shift=shift)._padded(tf.constant(images)).numpy()
        height, width = images.shape[1:3]
        rows, columns = padded.shape[1] - height, padded.shape[2] - width
        moved = np.empty_like(images)
        for place in range(9):
            row, column = rows * (place // 3) // 2, columns * (place % 3) // 2
            moved[place::9] = padded[place::9, row : row + height, column : column + width]
        return moved

    mirror = bool(accuracy(x, y, lambda images: images[:, :, ::-1]) >= floor)
    shifts = (shift for shift in SHIFTS if round(shift * min(x.shape[1:3])) >= 1)
    holds = (shift for shift in shifts if accuracy(x, y, functools.partial(shifted, shift=shift)) >= floor)
    shift = next(holds, 0.0)
    if not mirror and not shift:
        return Augmentation()
    mixed = np.random.default_rng(0).permutation(data.train.size)[:samples]  # data are often sorted by class
    known = accuracy(*data.train.pick(mixed).arrays(), lambda images: images)
    return Augmentation(mirror, shift, known - before > BY_HEART and 1 - known <= (1 - before) / 4)
