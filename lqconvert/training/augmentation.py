"""Variations of training images: shifted, mirrored or blended, so that there is more to learn from."""

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
#: Under a variation, the float model may lose this much accuracy plus the sampling error.
TOLERANCE = 0.01
#: The float model has memorized its training images if its accuracy on them is higher by this much, and it
#: makes at most a quarter as many errors on them as on other images.
BY_HEART = 0.05
#: Images in one batch of these tests: a multiple of nine, the number of shifts.
BATCH = 126


@dataclass(frozen=True)
class Augmentation:
    """Mirrors half of the images and shifts each batch by one random offset. Edges are reflected.

    Args:
        mirror: left to right.
        shift: the largest shift, as a part of height and width.
        blend: mix each image with another one of its batch, in a random ratio (Zhang et al., "mixup", ICLR
            2018). Only the float model can label a blend (Beyer et al., "Knowledge distillation: A good
            teacher is patient and consistent", CVPR 2022).
    """

    mirror: bool = False
    shift: float = 0.0
    blend: bool = False

    def __call__(
        self, images: tf.Tensor, seed: Any, part: Any = 0, parts: int = 1, size: Any = None
    ) -> tf.Tensor:
        """Images, varied at random by the seed.

        Args:
            images: float32 [batch, height, width, channels], or uint8 if they are not blended.
            seed: int [2].
            part, parts, size: if the images are a part of a batch of ``size``: every ``parts``-th one, from
                ``part`` on. They are varied as they would be in the whole batch.
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
            far = size // 16 * 8 // parts  # so that images have the same partners on 1, 2, 4 and 8 devices
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
    """The variations under which the float model classifies validation images as well as without them.

    Then either the model was trained with the variation, or the variation keeps the meaning: a mirrored cat
    is a cat, but a mirrored digit is no digit. Only images with class labels are varied. They are also
    blended if the float model has memorized its training images: its outputs on these say no more than the
    labels do.
    """
    x, y = data.validation.arrays(samples)
    head = data.heads.single
    if head is None or not head.classifies or x.ndim != 4 or min(x.shape[1:3]) < 16:
        return Augmentation()

    def accuracy(x: np.ndarray, y: np.ndarray, vary: Callable[[np.ndarray], np.ndarray]) -> float:
        right = 0
        for start in range(0, len(y), BATCH):  # large images would take gigabytes in one batch
            images = x[start : start + BATCH].astype(np.float32)
            images = images * np.float32(preprocessing.scale) + np.float32(preprocessing.offset)
            outputs = predict(vary(images)).reshape(len(images), -1)
            right += int(np.sum(guesses(outputs) == y[start : start + BATCH]))
        return right / len(y)

    before = accuracy(x, y, lambda images: images)
    floor = before - TOLERANCE - np.sqrt(max(before * (1 - before), 1 / len(y)) / len(y))

    def shifted(images: np.ndarray, shift: float) -> np.ndarray:
        """Images shifted by the largest distance or not at all in each direction: nine ways in turn."""
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
    mixed = np.random.default_rng(0).permutation(data.train.size)[:samples]  # files may be sorted by class
    known = accuracy(*data.train.pick(mixed).arrays(), lambda images: images)
    return Augmentation(mirror, shift, known - before > BY_HEART and 1 - known <= (1 - before) / 4)
