"""Rules that replace a layer of either Keras by tf_keras layers.

If TFLite can compute a layer in integers, it is written with the few layers that
:mod:`lqconvert.quantization.rewrite` knows: swish, for example, as a sigmoid and a product. All other layers
stay as they are, and compute in float. :mod:`lqconvert.keras_loader.layer_kinds` lists the layers with a
rule.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tf_keras import layers as keras_layers

from lqconvert.errors import LqError
from lqconvert.keras_loader.custom_layers import (
    AttentionMask,
    Elementwise,
    GroupNorm,
    HardSwish,
    L2Normalize,
    LayerNorm,
    MatMul,
    Norm,
    Reduce,
    Resize,
    RMSNorm,
    TrustedFunction,
    ZeroMasked,
)
from lqconvert.keras_loader.layer_kinds import ACTIVATIONS, OTHER, Loading, kind_of
from lqconvert.keras_loader.limits import check_repeats
from lqconvert.keras_loader.masks import AttentionMasks, is_mask, mask_of, same_mask, with_mask
from lqconvert.keras_loader.recurrent_layers import AnyStep, MaskedMean, StepMask
from lqconvert.keras_loader.recurrent_rules import RECURRENT_RULES
from lqconvert.keras_loader.rule_parts import (
    KEPT_ACTIVATIONS,
    Twin,
    Unique,
    activation_name,
    by_step,
    copy_of,
    is_keras3,
    is_split,
    scaled,
    summed,
    weights_of,
)
from lqconvert.keras_loader.volume_rules import VOLUME_RULES

#: Slopes of LeakyReLU are smaller. Exports use larger ones as marks.
STEEPEST = 1000.0


def activated(x: Any, activation: str, name: str, unique: Unique, *, keras3: bool = False) -> Any:
    """Applies an activation of Keras, by its name."""
    kind = ACTIVATIONS.get(activation, OTHER)
    if activation == "linear":
        return x
    if kind.loading is Loading.AS_IS:
        return keras_layers.Activation(activation, name=name)(x)
    if kind.loading is Loading.RULE:
        return ACTIVATION_RULES[activation](x, name, unique, keras3)
    raise LqError(f"layer '{name}': activation '{activation}' is not known to lqconvert")


def _swish(x: Any, name: str, unique: Unique, keras3: bool) -> Any:
    sigmoid = keras_layers.Activation("sigmoid", name=unique(f"{name}_sigmoid"))(x)
    return keras_layers.Multiply(name=name)([x, sigmoid])


def _hard_sigmoid(x: Any, name: str, unique: Unique, keras3: bool) -> Any:
    """Keras 3: relu6(x + 3) / 6; Keras 2: clip(0.2 x + 0.5, 0, 1), which is relu6(1.2 x + 3) / 6."""
    x = scaled(x, 1.0 if keras3 else 1.2, 3.0, unique(f"{name}_shifted"))
    x = keras_layers.ReLU(6.0, name=unique(f"{name}_relu6"))(x)
    return scaled(x, 1 / 6, 0.0, name)


def leaky(x: Any, slope: Any, name: str) -> Any:
    if not abs(float(slope)) < STEEPEST:
        raise LqError(f"layer '{name}': a LeakyReLU with a slope of {slope}")
    return keras_layers.LeakyReLU(float(slope), name=name)(x)


def rectified(
    x: Any, maximum: float | None, slope: float, threshold: float, name: str, unique: Unique
) -> Any:
    """The layers for a ReLU with these settings."""
    if threshold or (slope and maximum is not None):
        raise LqError(f"layer '{name}': a ReLU with a threshold, or with a slope and a maximum")
    if slope:
        return leaky(x, slope, name)
    if maximum in (None, 6.0):
        return keras_layers.ReLU(maximum, name=name)(x)
    # TFLite has only ReLU and ReLU6.
    x = scaled(x, 6.0 / maximum, 0.0, unique(f"{name}_times"))
    return scaled(keras_layers.ReLU(6.0, name=unique(f"{name}_relu6"))(x), maximum / 6.0, 0.0, name)


def replace_layer(
    layer: Any, inputs: Any, name: str, unique: Unique, *, masks: AttentionMasks | None = None
) -> Any:
    """Applies a layer's rule to rebuilt tensors.

    Args:
        layer: a layer of either Keras.
        inputs: its first argument, one tensor or a list of them.
        name: of the last layer of the result.
        masks: those of attention.

    Raises:
        LqError: if there is no rule for the layer.
    """
    kind = kind_of(layer)
    if kind.loading is Loading.NONE:
        raise LqError(f"layer '{name}' ({type(layer).__name__}): this layer is not known to lqconvert")
    if kind.loading is Loading.DROPPED:
        return inputs
    if kind.time_distributed and is_split(inputs):  # with its neighbours, it may become one operator
        return by_step(inputs, lambda x: replace_layer(layer, x, name, unique), f"{name}_steps", unique)
    rule = RULES[kind.name] if kind.loading is Loading.RULE else _plain
    config = layer.get_config() | {"masks": masks or AttentionMasks()}
    y = rule(layer, config, inputs, name, unique)
    activation = activation_name(layer)
    if not kind.has_activation or activation in KEPT_ACTIVATIONS:
        return y
    return activated(y, activation, unique(f"{name}_{activation}"), unique, keras3=is_keras3(layer))


def _plain(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    """The layer of the same name in tf_keras, with the same weights."""
    copy = copy_of(layer, name)
    y = copy(x)
    copy.set_weights(weights_of(layer))
    return y


def _convolution(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    """Conv2D. With a group for every channel it becomes a DepthwiseConv2D."""
    channels = x.shape[-1]
    if config.get("groups", 1) == 1 or config["groups"] != channels:
        return _plain(layer, config, x, name, unique)
    multiplier = config["filters"] // channels
    copy = copy_of(layer, name, keras_layers.DepthwiseConv2D, depth_multiplier=multiplier)
    y = copy(x)
    kernel, *bias = weights_of(layer)
    copy.set_weights([kernel.reshape(*kernel.shape[:2], channels, multiplier), *bias])
    return y


def _batch_norm(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    """Of videos and volumes, for each image: behind a convolution, it can be folded."""
    last = len(x.shape) - 1
    if not (is_split(x) or last == 4) or list(np.ravel(config["axis"])) not in ([-1], [last]):
        return _plain(layer, config, x, name, unique)
    copy = copy_of(layer, name, axis=-1)
    y = by_step(x, copy, unique(f"{name}_steps"), unique)
    copy.set_weights(weights_of(layer))
    return y


def _along(value: Any) -> tuple[int, int]:
    """A size along the steps of a sequence, as a size of an image of height 1."""
    return (1, int(np.ravel(value)[0]))


def _as_image(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    """DepthwiseConv1D, SeparableConv1D and Conv1DTranspose as the same layers in 2D, with height 1."""
    changes: dict[str, Any] = {
        key: _along(config[key]) for key in ("kernel_size", "strides", "dilation_rate") if key in config
    }
    if config.get("output_padding") is not None:
        changes["output_padding"] = (0, int(np.ravel(config["output_padding"])[0]))
    if config["padding"] == "causal":
        before = (changes["kernel_size"][1] - 1) * changes["dilation_rate"][1]
        x = keras_layers.ZeroPadding1D((before, 0), name=unique(f"{name}_padded"))(x)
        changes["padding"] = "valid"
    cls = getattr(keras_layers, type(layer).__name__.replace("1D", "2D"))
    copy = copy_of(layer, name, cls, **changes)
    image = keras_layers.Reshape((1, *x.shape[1:]), name=unique(f"{name}_image"))(x)
    y = copy(image)
    shapes = [weight.shape for weight in copy.weights]
    copy.set_weights([w.reshape(shape) for w, shape in zip(weights_of(layer), shapes, strict=True)])
    return keras_layers.Reshape(y.shape[2:], name=unique(f"{name}_sequence"))(y)


def l2_normalized(x: Any, axis: Any, name: str) -> Any:
    """x divided by its length along an axis, which has to be the last one."""
    axes = list(axis) if isinstance(axis, (list, tuple)) else [axis]
    if [each % len(x.shape) for each in axes] != [len(x.shape) - 1]:
        raise LqError(f"layer '{name}': a normalization over axis {axis}; TFLite has it for the last one")
    return L2Normalize(name=name)(x)


def _layer_norm(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    """Over several axes, which have to be the last ones, it is a normalization of the flattened axes."""
    axes = sorted(axis % len(x.shape) for axis in np.ravel(config["axis"]))
    shape = x.shape[1:]
    if axes != list(range(axes[0], len(x.shape))):
        raise LqError(f"layer '{name}': LayerNormalization over axes {axes}, not the last ones")
    if len(axes) == 1:
        return _normalized(layer, config, x, LayerNorm(config["epsilon"], name=name))
    flat = (*x.shape[1 : axes[0]], int(np.prod(x.shape[axes[0] :])))
    x = keras_layers.Reshape(flat, name=unique(f"{name}_flat"))(x)
    x = _normalized(layer, config, x, LayerNorm(config["epsilon"], name=name))
    return keras_layers.Reshape(shape, name=unique(f"{name}_shaped"))(x)


def _normalized(layer: Any, config: dict[str, Any], x: Any, copy: Norm) -> Any:
    """Applies a normalization, with a layer's factors and offsets if it has them."""
    y = copy(x)
    weights, channels = iter(weights_of(layer)), x.shape[-1]
    gamma = next(weights).ravel() if config.get("scale", True) else np.ones(channels)
    beta = next(weights).ravel() if config.get("center", True) else np.zeros(channels)
    copy.set_weights([gamma, beta])
    return y


def _last_axis(config: dict[str, Any], x: Any, name: str) -> None:
    """Refuses a normalization over another axis than the last one."""
    if config["axis"] not in (-1, len(x.shape) - 1, [-1], [len(x.shape) - 1]):
        raise LqError(f"layer '{name}': a normalization over axis {config['axis']}, not the last one")


def _group_norm(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    _last_axis(config, x, name)
    groups = x.shape[-1] if config["groups"] == -1 else config["groups"]
    return _normalized(layer, config, x, GroupNorm(groups, config["epsilon"], name=name))


def _rms_norm(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    _last_axis(config, x, name)
    copy = RMSNorm(config["epsilon"], name=name)
    y = copy(x)
    copy.set_weights(weights_of(layer))
    return y


def _dot(layer: Any, config: dict[str, Any], xs: Any, name: str, unique: Unique) -> Any:
    """Dot of two vectors, or of two sequences: a matrix product along one axis of each."""
    axes = config["axes"]
    a, b = (axes, axes) if isinstance(axes, int) else axes
    rank = len(xs[0].shape)
    a, b = a % rank, b % rank
    if len(xs[1].shape) != rank or rank not in (2, 3) or 0 in (a, b):
        raise LqError(f"layer '{name}': Dot of shapes {xs[0].shape} and {xs[1].shape} along {axes}")
    if config.get("normalize"):
        if (a, b) != (rank - 1, rank - 1):
            raise LqError(f"layer '{name}': Dot normalizes along axes {axes}; TFLite does along the last one")
        xs = [L2Normalize(name=unique(f"{name}_unit"))(x) for x in xs]
    if rank == 2:
        product = keras_layers.Multiply(name=unique(f"{name}_products"))(xs)
        return Reduce("sum", [1], True, name=name)(product)
    x, y = xs
    if a == 1:
        x = keras_layers.Permute((2, 1), name=unique(f"{name}_permuted"))(x)
    return MatMul(transpose_b=b == 2, name=name)([x, y])


def _dot_attention(layer: Any, config: dict[str, Any], xs: Any, name: str, unique: Unique) -> Any:
    if config.get("score_mode", "dot") != "dot":
        raise LqError(f"layer '{name}': Attention with score_mode '{config['score_mode']}'")
    query, value, *key = xs
    scores = MatMul(transpose_b=True, name=unique(f"{name}_scores"))([query, key[0] if key else value])
    if config.get("use_scale"):
        scores = scaled(scores, weights_of(layer)[0], 0.0, unique(f"{name}_scaled"))
    return _read(scores, value, config["masks"], name, unique)


def _read(scores: Any, value: Any, masks: AttentionMasks, name: str, unique: Unique) -> Any:
    """What Attention and AdditiveAttention read with their scores [b, steps, others]: 0 in masked steps."""
    chances = _chances(scores, [], [masks.value], masks.causal, name, unique)
    if masks.query is None:
        return MatMul(name=name)([chances, value])
    y = MatMul(name=unique(f"{name}_values"))([chances, value])
    return ZeroMasked(name=name)([y, _known(masks.query, name)])


def _chances(
    scores: Any, queries: Sequence[Any], keys: Sequence[Any], causal: bool, name: str, unique: Unique
) -> Any:
    """The softmax of attention's scores [b, ..., steps, others].

    Args:
        queries, keys: masks of the steps and of the others, or None.
        causal: no step reads a later one.
    """
    of_steps, of_others = _distinct(queries, name), _distinct(keys, name)
    if causal or of_steps or of_others:
        mask = AttentionMask(causal, len(of_steps), name=unique(f"{name}_masked"))
        scores = mask([scores, *of_steps, *of_others] if of_steps or of_others else scores)
    return keras_layers.Softmax(name=unique(f"{name}_softmax"))(scores)


def _zero_where_none(y: Any, queries: Sequence[Any], keys: Sequence[Any], name: str, unique: Unique) -> Any:
    """What steps read [b, steps, n], with 0 for masked steps, and for all steps if all others are masked."""
    for mask in queries:
        y = ZeroMasked(name=unique(f"{name}_zeroed"))([y, mask])
    if not keys or (len(keys) == 1 and any(same_mask(keys[0], mask) for mask in queries)):
        return y
    any_step = AnyStep(name=unique(f"{name}_any"))(keys if len(keys) > 1 else keys[0])
    return ZeroMasked(name=unique(f"{name}_zeroed"))([y, any_step])


def _distinct(masks: Sequence[Any], name: str) -> list[Any]:
    """The masks that are not None, each once."""
    found: list[Any] = []
    for mask in masks:
        if mask is not None and not any(same_mask(mask, each) for each in found):
            found.append(_known(mask, name))
    return found


def _known(mask: Any, name: str) -> Any:
    """A mask, which must not be turned around."""
    if not is_mask(mask):
        raise LqError(f"layer '{name}': it reads a mask of steps behind a layer that goes backwards")
    return mask


def resized(x: Any, height: int, width: int, method: str, name: str) -> Any:
    """Images [b, h, w, channels] of another size."""
    if min(int(height), int(width)) < 1:
        raise LqError(f"layer '{name}': resizes images to {height} x {width}")
    if len(x.shape) != 4 or method not in ("bilinear", "nearest"):
        raise LqError(f"layer '{name}': resizes by '{method}'; TFLite has bilinear and nearest, for images")
    return Resize(int(height), int(width), method, name=name)(x)


def _resizing(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    height, width, method = config["height"], config["width"], config["interpolation"]
    if config.get("pad_to_aspect_ratio") or config.get("antialias"):
        raise LqError(f"layer '{name}': Resizing with pad_to_aspect_ratio or antialias")
    if config.get("crop_to_aspect_ratio"):
        return _cropped_to_size(x, height, width, method, name, unique)
    return resized(x, height, width, method, name)


def _cropped_to_size(x: Any, height: int, width: int, method: str, name: str, unique: Unique) -> Any:
    """The largest part in the middle with the shape's proportions, resized, as Keras's smart_resize does."""
    rows, columns = x.shape[1:3]
    if min(height, width) > 0:
        rows, columns = min(rows, columns * height // width), min(columns, rows * width // height)
    if min(height, width, rows, columns) < 1:
        raise LqError(f"layer '{name}': crops images of {x.shape[1:3]} for {height} x {width} to nothing")
    x = _middle(x, rows, columns, name, unique)
    return resized(x, height, width, method, name)


def _middle(x: Any, rows: int, columns: int, name: str, unique: Unique) -> Any:
    """The middle of images. If a margin is odd, the smaller half is in front."""
    margins = [
        ((length - kept) // 2, length - kept - (length - kept) // 2)
        for length, kept in zip(x.shape[1:3], (rows, columns), strict=True)
    ]
    if margins == [(0, 0), (0, 0)]:
        return x
    return keras_layers.Cropping2D(margins, name=unique(f"{name}_middle"))(x)


def _center_crop(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    height, width = config["height"], config["width"]
    if len(x.shape) == 4 and x.shape[1] >= height and x.shape[2] >= width:
        return _middle(x, height, width, name, unique)
    return _cropped_to_size(x, height, width, "bilinear", name, unique)


def _random_crop(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    """In inference, it crops the middle and resizes it."""
    height, width = config["height"], config["width"]
    if tuple(x.shape[1:3]) == (height, width) or is_keras3(layer):  # Keras 3 crops only in training
        return x
    return _cropped_to_size(x, height, width, "bilinear", name, unique)


def _attention(
    layer: Any,
    config: dict[str, Any],
    inputs: Any,
    name: str,
    unique: Unique,
    weights: Sequence[np.ndarray] = (),
) -> Any:
    """MultiHeadAttention: Dense, products of matrices and a softmax between them.

    Args:
        weights: in place of the layer's.
    """
    query, value, *key = inputs if isinstance(inputs, (list, tuple)) else (inputs, inputs)
    if len(query.shape) != 3 or config.get("attention_axes") not in (None, (1,), [1]):
        raise LqError(f"layer '{name}': MultiHeadAttention over other axes than the one of a sequence")
    if config.get("use_gate") or config.get("sliding_window"):
        raise LqError(f"layer '{name}': {kind_of(layer).name} with a gate or a sliding window")
    heads, size = config["num_heads"], config["key_dim"]
    kernels = iter(weights or weights_of(layer))
    bias = config["use_bias"]

    def projected(x: Any, part: str, width: int) -> Any:
        dense = keras_layers.Dense(heads * width, use_bias=bias, name=unique(f"{name}_{part}"))
        y = dense(x)
        kernel = next(kernels)
        dense.set_weights([kernel.reshape(kernel.shape[0], -1), *([next(kernels).ravel()] if bias else [])])
        y = keras_layers.Reshape((x.shape[1], heads, width), name=unique(f"{name}_{part}_heads"))(y)
        return keras_layers.Permute((2, 1, 3), name=unique(f"{name}_{part}_by_head"))(y)

    width = config["value_dim"] or size
    queries = projected(query, "query", size)
    keys = projected(key[0] if key else value, "key", size)
    values = projected(value, "value", width)
    scores = MatMul(transpose_b=True, name=unique(f"{name}_scores"))([queries, keys])
    scores = scaled(scores, size**-0.5, 0.0, unique(f"{name}_scaled"))
    masks = config["masks"]
    of_steps, of_others = (masks.query, *masks.pairs.queries), (masks.value, masks.key, *masks.pairs.keys)
    chances = _chances(scores, of_steps, of_others, masks.causal, name, unique)
    y = MatMul(name=unique(f"{name}_values"))([chances, values])
    y = keras_layers.Permute((2, 1, 3), name=unique(f"{name}_by_step"))(y)
    y = keras_layers.Reshape((query.shape[1], heads * width), name=unique(f"{name}_joined"))(y)
    if is_keras3(layer) and config["dropout"]:  # then its softmax gives 0 where all scores are masked
        y = _zero_where_none(y, _distinct(of_steps, name), _distinct(of_others, name), name, unique)
    kernel = next(kernels)
    dense = keras_layers.Dense(kernel.shape[-1], use_bias=bias, name=name)
    y = dense(y)
    dense.set_weights([kernel.reshape(-1, kernel.shape[-1]), *([next(kernels)] if bias else [])])
    return y


def _grouped_attention(layer: Any, config: dict[str, Any], inputs: Any, name: str, unique: Unique) -> Any:
    """GroupQueryAttention: some heads of queries have the same keys and values."""
    heads, parts = config["num_query_heads"], 2 if config["use_bias"] else 1
    weights = weights_of(layer)
    for place in range(parts, 3 * parts):  # behind the queries': the keys' and the values'
        weights[place] = np.repeat(weights[place], heads // config["num_key_value_heads"], axis=-2)
    config = config | {"num_heads": heads, "key_dim": config["head_dim"], "value_dim": None}
    return _attention(layer, config, inputs, name, unique, weights)


def _additive_attention(layer: Any, config: dict[str, Any], xs: Any, name: str, unique: Unique) -> Any:
    """The scores are weighted sums of tanh(query + key), of every pair of steps."""
    query, value, *key = xs
    keys = key[0] if key else value
    steps, others, size = query.shape[1], keys.shape[1], keys.shape[-1]
    rows = keras_layers.Reshape((steps, 1, size), name=unique(f"{name}_queries"))(query)
    columns = keras_layers.Reshape((1, others, size), name=unique(f"{name}_keys"))(keys)
    pairs = keras_layers.Add(name=unique(f"{name}_pairs"))([rows, columns])
    pairs = keras_layers.Activation("tanh", name=unique(f"{name}_tanh"))(pairs)
    weighing = keras_layers.Dense(1, use_bias=False, name=unique(f"{name}_sums"))
    scores = keras_layers.Reshape((steps, others), name=unique(f"{name}_scores"))(weighing(pairs))
    factors = weights_of(layer)[0] if config.get("use_scale") else np.ones(size)
    weighing.set_weights([factors[:, np.newaxis]])
    return _read(scores, value, config["masks"], name, unique)


def _einsum_dense(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    """A product over the last axes of the input: a Dense layer between two reshapes."""
    equation = config["equation"].replace(" ", "")
    operands, result = equation.split("->")
    given, axes = operands.split(",")
    if "..." in given:
        free = [each for each in string.ascii_uppercase if each not in equation]
        rest = "".join(free[: len(x.shape) - len(given.replace("...", ""))])
        given, result = given.replace("...", rest), result.replace("...", rest)
    summed_over = [axis for axis in given if axis in axes]
    kept = [axis for axis in given if axis not in axes]
    new = [axis for axis in axes if axis not in given]
    kernel, *biases = weights_of(layer)
    plain = [*given] == kept + summed_over and [*result] == kept + new
    if not plain or any(n != 1 for bias in biases for n in bias.shape[: max(bias.ndim - len(new), 0)]):
        raise LqError(f"layer '{name}': EinsumDense of '{equation}', which is no product over the last axes")
    kernel = kernel.transpose([axes.index(axis) for axis in summed_over + new])
    sizes, outer = kernel.shape[len(summed_over) :], tuple(x.shape[1 : len(kept)])
    count = int(np.prod(kernel.shape[: len(summed_over)]))
    if len(summed_over) > 1:
        x = keras_layers.Reshape((*outer, count), name=unique(f"{name}_flat"))(x)
    dense = keras_layers.Dense(int(np.prod(sizes)), use_bias=bool(biases), name=unique(f"{name}_dense"))
    y = dense(x)
    flat = [np.broadcast_to(bias.reshape(bias.shape[-len(new) :]), sizes).ravel() for bias in biases]
    dense.set_weights([kernel.reshape(count, -1), *flat])
    y = keras_layers.Reshape((*outer, *sizes), name=name)(y)
    activation = activation_name(layer)
    if activation not in KEPT_ACTIVATIONS - {"linear"}:
        return y
    return keras_layers.Activation(activation, name=unique(f"{name}_{activation}"))(y)


def _adaptive_pooling(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    """Pooling of windows that do not overlap, if they all have the same size."""
    sides, sizes = x.shape[1:-1], config["output_size"]
    if any(side % size for side, size in zip(sides, sizes, strict=True)):
        raise LqError(f"layer '{name}': pools {tuple(sides)} to {tuple(sizes)}: windows of different sizes")
    window = tuple(side // size for side, size in zip(sides, sizes, strict=True))
    cls = getattr(keras_layers, type(layer).__name__.removeprefix("Adaptive"))
    return cls(window if len(window) > 1 else window[0], name=name)(x)


def _time_distributed(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    inner = layer.layer
    kind = kind_of(inner)
    if kind.time_distributed or kind.loading is Loading.DROPPED:
        return replace_layer(inner, x, name, unique)
    if type(inner).__name__ == "Flatten":
        return keras_layers.Reshape((x.shape[1], int(np.prod(x.shape[2:]))), name=name)(x)
    if kind is OTHER or kind.recurrent or kind.name in ("Embedding", "TimeDistributed", "Lambda"):
        raise LqError(f"layer '{name}': TimeDistributed({type(inner).__name__}) is not known to lqconvert")
    return by_step(x, lambda x: replace_layer(inner, x, unique(f"{name}_{inner.name}"), unique), name, unique)


def _normalization(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    mean, variance = np.asarray(layer.mean, np.float64), np.asarray(layer.variance, np.float64)
    deviation = np.maximum(np.sqrt(variance), 1e-7)
    if config.get("invert"):
        return scaled(x, deviation, mean, name)
    # As mean and variance, so that a constant column, whose factor is huge, becomes exactly 0.
    return scaled(x, 1.0, 0.0, name, mean, deviation**2)


def _lambda(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    return TrustedFunction.of(functools.partial(layer.function, **(layer.arguments or {})), name)(x)


def _upsampling(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    check_repeats(name, x.shape[1], config["size"])
    return _plain(layer, config, x, name, unique)


def _embedding(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    copy = keras_layers.Embedding(layer.input_dim, layer.output_dim, name=name)
    y = copy(x)
    copy.set_weights(weights_of(layer)[:1])  # a ReversibleEmbedding may have others
    return with_mask(y, StepMask(0, name=unique(f"{name}_mask"))(x)) if config.get("mask_zero") else y


def _mean_of_steps(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    """GlobalAveragePooling1D, of the steps that count if some are masked."""
    mask = mask_of(x)
    if mask is None:
        return _plain(layer, config, x, name, unique)
    mask = _known(mask, name)
    if not config.get("keepdims"):
        return MaskedMean(name=name)([x, mask])
    y = MaskedMean(name=unique(f"{name}_mean"))([x, mask])
    return keras_layers.Reshape((1, x.shape[-1]), name=name)(y)


def _category_encoding(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    """Rows of an identity matrix, and of several categories their sum or maximum."""
    mode, count, steps = config["output_mode"], config["num_tokens"], x.shape[-1]
    if (
        len(x.shape) != 2
        or mode not in ("one_hot", "multi_hot", "count")
        or (mode == "one_hot" and steps > 1)
    ):
        raise LqError(f"layer '{name}': CategoryEncoding '{mode}' of inputs {x.shape[1:]}")
    rows = keras_layers.Embedding(count, count, name=unique(f"{name}_rows"))
    y = rows(x)
    rows.set_weights([np.eye(count)])
    if steps == 1:
        return keras_layers.Reshape((count,), name=name)(y)
    return Reduce("sum" if mode == "count" else "max", [1], False, name=name)(y)


def _masking(layer: Any, config: dict[str, Any], x: Any, name: str, unique: Unique) -> Any:
    """The values of masked steps stay as they are: recurrent layers do not read them."""
    if len(x.shape) != 3:
        raise LqError(f"layer '{name}': Masking of inputs {x.shape[1:]}, which are no sequence of steps")
    if not np.isfinite(config["mask_value"]):
        raise LqError(f"layer '{name}': Masking of the value {config['mask_value']}")
    return with_mask(x, StepMask(config["mask_value"], name=name)(x))


def _looked_up(function: str) -> Callable[[Any, str, Unique, bool], Any]:
    return lambda x, name, unique, keras3: Elementwise(function, name=name)(x)


#: The rule for each kind of layer, by the kind's name.
RULES: dict[str, Twin] = {
    "Activation": lambda layer, config, x, name, unique: activated(
        x, activation_name(layer), name, unique, keras3=is_keras3(layer)
    ),
    **dict.fromkeys(("Conv2D", "Convolution2D"), _convolution),
    "BatchNormalization": _batch_norm,
    **dict.fromkeys(("DepthwiseConv1D", "SeparableConv1D", "Conv1DTranspose"), _as_image),
    "Add": lambda layer, config, xs, name, unique: summed(xs, name, unique),
    "Average": lambda layer, config, xs, name, unique: summed(xs, name, unique, average=True),
    "ReLU": lambda layer, config, x, name, unique: rectified(
        x, config["max_value"], config["negative_slope"] or 0.0, config["threshold"] or 0.0, name, unique
    ),
    "LeakyReLU": lambda layer, config, x, name, unique: leaky(
        x, config.get("negative_slope", config.get("alpha")), name
    ),
    "ELU": lambda layer, config, x, name, unique: Elementwise("elu", config["alpha"], name=name)(x),
    "ThresholdedReLU": lambda layer, config, x, name, unique: Elementwise(
        "thresholded_relu", float(config["theta"]), name=name
    )(x),
    "HardSwish": lambda layer, config, x, name, unique: HardSwish(name=name)(x),
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "RMSNormalization": _rms_norm,
    "UnitNormalization": lambda layer, config, x, name, unique: l2_normalized(x, config["axis"], name),
    "MultiHeadAttention": _attention,
    "Attention": _dot_attention,
    "GroupQueryAttention": _grouped_attention,
    "AdditiveAttention": _additive_attention,
    "Dot": _dot,
    "EinsumDense": _einsum_dense,
    "SpectralNormalization": lambda layer, config, x, name, unique: replace_layer(
        layer.layer, x, name, unique
    ),
    **dict.fromkeys(
        (
            *("AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D"),
            *("AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D"),
        ),
        _adaptive_pooling,
    ),
    "Resizing": _resizing,
    "CenterCrop": _center_crop,
    "RandomCrop": _random_crop,
    **RECURRENT_RULES,
    **VOLUME_RULES,
    "TimeDistributed": _time_distributed,
    "Embedding": _embedding,
    "ReversibleEmbedding": _embedding,
    "CategoryEncoding": _category_encoding,
    "Masking": _masking,
    "GlobalAveragePooling1D": _mean_of_steps,
    "UpSampling1D": _upsampling,
    "Lambda": _lambda,
    "Normalization": _normalization,
    "Rescaling": lambda layer, config, x, name, unique: scaled(x, config["scale"], config["offset"], name),
    # Of keras.applications:
    "LayerScale": lambda layer, config, x, name, unique: scaled(x, weights_of(layer)[0], 0.0, name),
    "CustomScaleLayer": lambda layer, config, xs, name, unique: summed(
        [xs[0], scaled(xs[1], config["scale"], 0.0, unique(f"{name}_scaled"))], name, unique
    ),
}
#: The rule for each activation, by its name.
ACTIVATION_RULES: dict[str, Callable[[Any, str, Unique, bool], Any]] = {
    "relu6": lambda x, name, unique, keras3: keras_layers.ReLU(6.0, name=name)(x),
    "leaky_relu": lambda x, name, unique, keras3: keras_layers.LeakyReLU(0.2, name=name)(x),
    **dict.fromkeys(("silu", "swish"), _swish),
    **dict.fromkeys(("hard_silu", "hard_swish"), lambda x, name, unique, keras3: HardSwish(name=name)(x)),
    "hard_sigmoid": _hard_sigmoid,
    "exponential": _looked_up("exp"),
    "squareplus": lambda x, name, unique, keras3: Elementwise("squareplus", 4.0, name=name)(x),
    **{
        function: _looked_up(function)
        for function in (
            *("elu", "celu", "selu", "softplus", "softsign", "mish", "gelu"),
            *("log_sigmoid", "tanh_shrink"),
        )
    },
}
