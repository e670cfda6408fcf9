"""Rules for layers of three dimensions: [b, depth, height, width, channels].

TFLite has no integer kernels for them. So each becomes layers of two dimensions: one that treats every image
of the depth alike, and one along the depth, with the pixels of an image as the columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tf_keras import layers as keras_layers

from lqconvert.errors import LqError
from lqconvert.keras_loader.custom_layers import Slice
from lqconvert.keras_loader.rule_parts import (
    KEPT_ACTIVATIONS,
    Twin,
    Unique,
    activation_name,
    by_step,
    weights_of,
)


def _by_depth(x: Any, layer: Any, name: str, unique: Unique) -> Any:
    """Applies a layer to [b, depth, pixels, channels]."""
    _, depth, *size, channels = x.shape
    flat = keras_layers.Reshape((depth, math.prod(size), channels), name=unique(f"{name}_columns"))(x)
    y = layer(flat)
    return keras_layers.Reshape((y.shape[1], *size, channels), name=name)(y)


def _both(x: Any, image: Any, depth: Any, name: str, unique: Unique) -> Any:
    """A layer for each image, and then one along the depth."""
    return _by_depth(by_step(x, image, unique(f"{name}_images"), unique), depth, name, unique)


def _pooling(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    return _pooled(
        x, type(layer).__name__, config["pool_size"], config["strides"], config["padding"], name, unique
    )


def _pooled(
    x: Any, kind: str, window: Sequence[int], strides: Sequence[int], padding: str, name: str, unique: Unique
) -> Any:
    cls = getattr(keras_layers, kind.replace("3D", "2D"))
    image = cls(window[1:], strides[1:], padding, name=unique(f"{name}_2d"))
    depth = cls((window[0], 1), (strides[0], 1), padding, name=unique(f"{name}_depth"))
    return _both(x, image, depth, name, unique)


def _adaptive_pooling(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    sides, sizes = x.shape[1:-1], config["output_size"]
    if any(side % size for side, size in zip(sides, sizes, strict=True)):
        raise LqError(f"layer '{name}': pools {tuple(sides)} to {tuple(sizes)}: windows of different sizes")
    window = [side // size for side, size in zip(sides, sizes, strict=True)]
    kind = type(layer).__name__.removeprefix("Adaptive")
    return _pooled(x, kind, window, window, "valid", name, unique)


def _global_pooling(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    _, depth, height, width, channels = x.shape
    image = keras_layers.Reshape((depth * height, width, channels), name=unique(f"{name}_image"))(x)
    cls = getattr(keras_layers, type(layer).__name__.replace("3D", "2D"))
    if not config.get("keepdims"):
        return cls(name=name)(image)
    return keras_layers.Reshape((1, 1, 1, channels), name=name)(cls(name=unique(f"{name}_2d"))(image))


def _margins(kind: str) -> Twin:
    """ZeroPadding3D or Cropping3D, by the kind of the layer in 2D."""

    def rule(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
        depth, *image = config["cropping" if kind == "Cropping2D" else "padding"]
        cls = getattr(keras_layers, kind)
        by_image = cls(image, name=unique(f"{name}_2d"))
        return _both(x, by_image, cls((depth, (0, 0)), name=unique(f"{name}_depth")), name, unique)

    return rule


def _upsampling(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    depth, *image = config["size"]
    by_image = keras_layers.UpSampling2D(image, name=unique(f"{name}_2d"))
    by_depth = keras_layers.UpSampling2D((depth, 1), name=unique(f"{name}_depth"))
    return _both(x, by_image, by_depth, name, unique)


def _convolution(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    """A Conv2D for each place of the kernel's depth: their images are joined as channels."""
    if config.get("groups", 1) != 1:
        raise LqError(f"layer '{name}': Conv3D with groups")
    length, *size = config["kernel_size"]
    stride, *strides = config["strides"]
    step, *dilation = config["dilation_rate"]
    reach = (length - 1) * step
    if config["padding"] == "same" and reach:
        missing = max(0, (math.ceil(x.shape[1] / stride) - 1) * stride + reach + 1 - x.shape[1])
        before = (missing // 2, missing - missing // 2)
        pad = keras_layers.ZeroPadding2D((before, (0, 0)), name=unique(f"{name}_depth"))
        x = _by_depth(x, pad, unique(f"{name}_padded"), unique)
    count = (x.shape[1] - 1 - reach) // stride + 1
    if count < 1:
        raise LqError(f"layer '{name}': its kernel is deeper than its input")
    if length > 1 or stride > 1:
        x = _taps(x, [(tap * step, count, stride) for tap in range(length)], name, unique)
    kernel, *bias = weights_of(layer)
    activation = activation_name(layer)
    copy = keras_layers.Conv2D(
        config["filters"],
        size,
        strides,
        config["padding"],
        dilation_rate=dilation,
        use_bias=config["use_bias"],
        activation=activation if activation in KEPT_ACTIVATIONS else None,
        name=unique(f"{name}_2d"),
    )
    y = by_step(x, copy, name, unique)
    copy.set_weights([kernel.transpose(1, 2, 0, 3, 4).reshape(copy.kernel.shape), *bias])
    return y


def _taps(x: Any, taps: Sequence[tuple[int, int, int]], name: str, unique: Unique) -> Any:
    """Images (first, number, stride) along the depth, joined as channels."""
    _, depth, *size, channels = x.shape
    x = keras_layers.Reshape((depth, math.prod(size), channels), name=unique(f"{name}_columns"))(x)
    whole = (None, None, None)
    parts = []
    for first, count, stride in taps:
        last = first + (count - 1) * stride + 1
        part = Slice([(first, last, stride), whole, whole], name=unique(f"{name}_tap"))
        parts.append(part(x))
    joined = parts[0]
    if len(parts) > 1:
        joined = keras_layers.Concatenate(name=unique(f"{name}_taps"))(parts)
    shape = (joined.shape[1], *size, joined.shape[-1])
    return keras_layers.Reshape(shape, name=unique(f"{name}_volume"))(joined)


#: The rule for each kind of layer, by the kind's name.
VOLUME_RULES: dict[str, Twin] = {
    "Conv3D": _convolution,
    **dict.fromkeys(("MaxPooling3D", "AveragePooling3D"), _pooling),
    **dict.fromkeys(("AdaptiveMaxPooling3D", "AdaptiveAveragePooling3D"), _adaptive_pooling),
    **dict.fromkeys(("GlobalMaxPooling3D", "GlobalAveragePooling3D"), _global_pooling),
    "ZeroPadding3D": _margins("ZeroPadding2D"),
    "Cropping3D": _margins("Cropping2D"),
    "UpSampling3D": _upsampling,
}
