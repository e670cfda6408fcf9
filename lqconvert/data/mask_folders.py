"""Images and their masks in two folders: images/1.png and masks/1.png, optionally below train and test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from lqconvert.data.image_files import UNREADABLE, ImageFolder, ZippedImages, decoded
from lqconvert.errors import LqError

IMAGES, MASKS = ("images", "image", "imgs"), ("masks", "mask", "labels", "annotations")
#: Endings that the name of a mask may have, in addition to its image's name.
ENDINGS = ("_mask", "_label", "_labels", "_seg")


@dataclass(frozen=True)
class Pairs:
    """The numbers of the images in a folder, and of their masks, in the same order."""

    images: list[int]
    masks: list[int]


def find_pairs(path: Path, files: ImageFolder | ZippedImages) -> Pairs | None:
    """The images that have masks; None if there are no two such folders.

    Raises:
        LqError: if an image has no mask.
    """
    images: dict[tuple[str, ...], int] = {}
    masks: dict[tuple[str, ...], int] = {}
    for number in range(len(files)):
        parts = PurePath(files.name(number)).with_suffix("").parts
        kind = next((name for name in parts[:-1] if name.lower() in (*IMAGES, *MASKS)), None)
        if kind is None:
            return None
        *above, stem = (part for part in parts if part != kind)
        if kind.lower() in IMAGES:
            images[(*above, stem)] = number
        else:
            ending = next((end for end in ENDINGS if stem.endswith(end)), "")
            masks[(*above, stem.removesuffix(ending))] = number
    if not images or not masks:
        return None
    alone = [number for key, number in images.items() if key not in masks]
    if alone:
        raise LqError(f"{path}: {files.name(alone[0])} has no mask of the same name")
    return Pairs(list(images.values()), [masks[key] for key in images])


def read_masks(
    path: Path, files: ImageFolder | ZippedImages, numbers: list[int], shape: tuple[int, ...], classes: int
) -> np.ndarray:
    """Masks as class numbers, uint8 [n, height, width]: gray levels, or 0 and 255 for two classes.

    Args:
        shape: (height, width) to which they are resized, by the nearest pixel.
    """
    import tensorflow as tf

    masks = np.empty((len(numbers), *shape), np.uint8)
    for place, number in enumerate(numbers):
        try:
            mask = decoded(files.read(number), 1)
        except (LqError, tf.errors.InvalidArgumentError, *UNREADABLE) as error:
            raise LqError(f"{path}: {files.name(number)} is not a readable image") from error
        if tuple(mask.shape[:2]) != shape:
            mask = tf.image.resize(mask, shape, "nearest")
        masks[place] = mask.numpy()[..., 0]
    two_levels = classes <= 2 and set(np.unique(masks)) <= {0, 255}
    return masks // 255 if two_levels else masks
