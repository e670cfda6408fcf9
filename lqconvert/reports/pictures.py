"""Examples as small images in a page."""

from __future__ import annotations

import base64
import io
import math

import matplotlib
import numpy as np
from matplotlib.image import imsave

from lqconvert.data.dataset import Split
from lqconvert.utils.plotting import defaults

#: The largest number of pixels of an image in each direction.
LARGEST_PICTURE = 96


def pictures_of(split: Split, places: np.ndarray) -> np.ndarray | None:
    """The inputs at these indices as images. Of several inputs, the first that can be an image."""
    raw = split.fetch(places)
    if not split.parts:
        return as_pictures(raw)
    ends = np.cumsum([math.prod(shape) for shape in split.parts])[:-1]
    flat = zip(np.split(raw, ends, axis=1), split.parts, strict=True)
    images = (as_pictures(part.reshape(-1, *shape)) for part, shape in flat)
    return next((image for image in images if image is not None), None)


def as_pictures(inputs: np.ndarray) -> np.ndarray | None:
    """Raw inputs [n, ...] as images [n, height, width, 1 or 3], or None if they have no such form."""
    shape = inputs.shape[1:]
    if len(shape) == 1 and inputs.dtype == np.uint8:  # flat square images, as for a model on MNIST
        side = math.isqrt(shape[0])
        shape = (side, side) if side * side == shape[0] else ()
    if len(shape) == 2 and inputs.dtype == np.uint8:
        shape = (*shape, 1)
    if len(shape) != 3 or shape[-1] not in (1, 3) or min(shape[:2]) < 4:
        return None
    return inputs.reshape(len(inputs), *shape)


def stretched(pictures: np.ndarray) -> np.ndarray:
    """Images scaled to 0..255. Images that use half of this range or more stay as they are."""
    low, high = (float(pictures.min()), float(pictures.max())) if pictures.size else (0.0, 0.0)
    if pictures.dtype == np.uint8 and high > 127:
        return pictures
    return np.round((pictures - low) * (255 / (high - low or 1.0))).astype(np.uint8)


def class_colours(count: int) -> np.ndarray:
    """Colours of classes, uint8 [count, 3]."""
    if count <= 20:
        colours = matplotlib.colormaps["tab10" if count <= 10 else "tab20"](np.arange(count))
    else:
        colours = matplotlib.colormaps["turbo"](np.linspace(0, 1, count))
    return np.round(255 * colours[:, :3]).astype(np.uint8)


@defaults()
def data_uri(picture: np.ndarray) -> str:
    """An image [height, width, 1 or 3] of 0..255 as a PNG within the page."""
    step = -(-max(picture.shape[:2]) // LARGEST_PICTURE)
    buffer = io.BytesIO()
    imsave(buffer, np.repeat(picture[::step, ::step], 3 // picture.shape[-1], axis=-1), format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
