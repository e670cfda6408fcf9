"""Rules for operations between layers (``tf.nn.relu(x + y)``, ``x[:, 1:]``), which are replaced by layers.

tf_keras stores such a call as a TFOpLambda layer that names a function of TensorFlow; Keras 3 stores an
operation of its own. Both are looked up by name in the tables below, and never called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tf_keras import layers

from lqconvert.errors import LqError
from lqconvert.keras_loader.custom_layers import Constant, DepthToSpace, Elementwise, MatMul, Reduce, Slice
from lqconvert.keras_loader.layer_rules import (
    activated,
    l2_normalized,
    leaky,
    rectified,
    resized,
)
from lqconvert.keras_loader.masks import Pairs, is_mask, same_mask
from lqconvert.keras_loader.recurrent_layers import StepMask
from lqconvert.keras_loader.rule_parts import Unique, scaled, summed


def is_tensor(value: Any) -> bool:
    """Whether it is a symbolic tensor of either Keras."""
    return "KerasTensor" in type(value).__name__


def _number(value: Any) -> np.ndarray:
    return np.asarray(value, np.float32)


class Batch:
    """The number of examples, where a model computes with it: ``tf.shape(x)[0]``."""

    def __init__(self, like: Any) -> None:
        self.like = like


def _operands(a: dict[str, Any], name: str, unique: Unique) -> tuple[Any, Any]:
    """Both operands. A constant that is not one number a channel becomes a tensor."""
    x, y = a["x"], a["y"]
    like = x if is_tensor(x) else y
    return tuple(_tensor(each, like, name, unique) for each in (x, y))


def _tensor(value: Any, like: Any, name: str, unique: Unique) -> Any:
    if is_tensor(value):
        return value
    array = _number(value)
    if array.size == 1 or (array.size == like.shape[-1] and array.shape[-1] == like.shape[-1]):
        return value
    if array.ndim == len(like.shape) and len(array) == 1:
        array = array[0]
    if array.ndim >= len(like.shape):
        raise LqError(f"layer '{name}': a constant of shape {array.shape}, which depends on the batch")
    array = array.reshape((1,) * (len(like.shape) - 1 - array.ndim) + array.shape)
    return Constant.of(array, like, unique(f"{name}_constant"))


def _add(a: dict[str, Any], name: str, unique: Unique) -> Any:
    x, y = _operands(a, name, unique)
    if is_tensor(x) and is_tensor(y):
        return summed([x, y], name, unique)
    return scaled(x, 1.0, _number(y), name) if is_tensor(x) else scaled(y, 1.0, _number(x), name)


def _subtract(a: dict[str, Any], name: str, unique: Unique) -> Any:
    x, y = _operands(a, name, unique)
    if is_tensor(x) and is_tensor(y):
        return layers.Subtract(name=name)([x, y])
    return scaled(x, 1.0, -_number(y), name) if is_tensor(x) else scaled(y, -1.0, _number(x), name)


def _multiply(a: dict[str, Any], name: str, unique: Unique) -> Any:
    x, y = _operands(a, name, unique)
    if is_tensor(x) and is_tensor(y):
        return layers.Multiply(name=name)([x, y])
    return scaled(x, _number(y), 0.0, name) if is_tensor(x) else scaled(y, _number(x), 0.0, name)


def _divide(a: dict[str, Any], name: str, unique: Unique) -> Any:
    if not is_tensor(a["y"]):
        if not np.all(_number(a["y"])):
            raise LqError(f"layer '{name}': division by 0")
        return _multiply({"x": a["x"], "y": 1 / _number(a["y"])}, name, unique)
    inverse = Elementwise("reciprocal", name=unique(f"{name}_reciprocal"))(a["y"])
    return _multiply({"x": a["x"], "y": inverse}, name, unique)


def _power(a: dict[str, Any], name: str, unique: Unique) -> Any:
    if is_tensor(a["y"]) or not is_tensor(a["x"]) or _number(a["y"]).size != 1:
        raise LqError(f"layer '{name}': a power with an exponent that is not one number")
    exponent = float(_number(a["y"]).ravel()[0])
    if exponent == 2:
        return layers.Multiply(name=name)([a["x"], a["x"]])
    return Elementwise("power", exponent, name=name)(a["x"])


def _extreme(kind: str) -> Callable[[dict[str, Any], str, Unique], Any]:
    def run(a: dict[str, Any], name: str, unique: Unique) -> Any:
        x, y = a["x"], a["y"]
        if is_tensor(x) and is_tensor(y):
            return getattr(layers, kind)(name=name)([x, y])
        x, bound = (x, y) if is_tensor(x) else (y, x)
        like = _tensor(bound, x, name, unique)
        if is_tensor(like):
            return getattr(layers, kind)(name=name)([x, like])
        if kind == "Maximum" and np.all(_number(bound) == 0):
            return layers.ReLU(name=name)(x)
        return _bounded(
            x, bound if kind == "Maximum" else None, None if kind == "Maximum" else bound, name, unique
        )

    return run


def _bounded(x: Any, low: Any, high: Any, name: str, unique: Unique) -> Any:
    """clip(x, low, high) as relu(x - low) + low, or similar."""
    if low is not None and high is not None and max(_number(low).size, _number(high).size) > 1:
        raise LqError(f"layer '{name}': clips to other limits than two numbers")
    if low is None:
        x = scaled(x, -1.0, _number(high), unique(f"{name}_below"))
        return scaled(layers.ReLU(name=unique(f"{name}_relu"))(x), -1.0, _number(high), name)
    x = x if np.all(_number(low) == 0) else scaled(x, 1.0, -_number(low), unique(f"{name}_above"))
    span = None if high is None else float(high) - float(low)
    if np.all(_number(low) == 0):
        return rectified(x, span, 0.0, 0.0, name, unique)
    x = rectified(x, span, 0.0, 0.0, unique(f"{name}_relu"), unique)
    return scaled(x, 1.0, _number(low), name)


def _clip(a: dict[str, Any], name: str, unique: Unique) -> Any:
    return _bounded(a["x"], a["low"], a["high"], name, unique)


def _activation(kind: str) -> Callable[[dict[str, Any], str, Unique], Any]:
    def run(a: dict[str, Any], name: str, unique: Unique) -> Any:
        return activated(a["x"], kind, name, unique, keras3=True)

    return run


def _softmax(a: dict[str, Any], name: str, unique: Unique) -> Any:
    axis = a.get("axis")
    return layers.Softmax(axis=-1 if axis is None else axis, name=name)(a["x"])


def _l2_normalize(a: dict[str, Any], name: str, unique: Unique) -> Any:
    if a.get("order", 2) != 2:
        raise LqError(f"layer '{name}': a normalization of order {a['order']}; TFLite has it for order 2")
    axis = a.get("axis")
    return l2_normalized(a["x"], -1 if axis is None else axis, name)


def _leaky(a: dict[str, Any], name: str, unique: Unique) -> Any:
    return leaky(a["x"], a.get("slope", 0.2), name)


def _gelu(a: dict[str, Any], name: str, unique: Unique) -> Any:
    return Elementwise("gelu_tanh" if a.get("approximate") else "gelu", name=name)(a["x"])


def _elementwise(function: str) -> Callable[[dict[str, Any], str, Unique], Any]:
    def run(a: dict[str, Any], name: str, unique: Unique) -> Any:
        return Elementwise(function, name=name)(a["x"])

    return run


def _elu(a: dict[str, Any], name: str, unique: Unique) -> Any:
    return Elementwise("elu", a.get("slope", 1.0), name=name)(a["x"])


def _resize(a: dict[str, Any], name: str, unique: Unique) -> Any:
    height, width = (int(n) for n in np.ravel(a["size"]))
    for setting in ("preserve_aspect_ratio", "antialias", "crop_to_aspect_ratio", "pad_to_aspect_ratio"):
        if a.get(setting):
            raise LqError(f"layer '{name}': image.resize with {setting}")
    return resized(a["x"], height, width, str(a.get("method") or "bilinear").lower(), name)


def _shape(a: dict[str, Any], name: str, unique: Unique) -> Any:
    """The shape as a list: known lengths, and the number of examples."""
    return [[Batch(a["x"]), *(int(n) for n in a["x"].shape[1:])]]


def _tile(a: dict[str, Any], name: str, unique: Unique) -> Any:
    """A constant for each example, as anchors are."""
    times, constant = list(a["times"]), a["x"]
    if is_tensor(constant) or not isinstance(times[0], Batch) or any(n != 1 for n in times[1:]):
        raise LqError(f"layer '{name}': tile of something else than a constant [1, ...] to the batch")
    values = _number(constant)
    if len(values) != 1 or values.ndim != len(times):
        raise LqError(f"layer '{name}': tile of something else than a constant [1, ...] to the batch")
    return Constant.of(values[0], times[0].like, name)


def _depth_to_space(a: dict[str, Any], name: str, unique: Unique) -> Any:
    return DepthToSpace(int(a["block"]), name=name)(a["x"])


def _axes(axis: Any, rank: int, name: str) -> list[int]:
    """Axes counted from the front, without the batch axis."""
    if axis is None:
        raise LqError(f"layer '{name}': reduces over the batch")
    axes = sorted(int(each) % rank for each in np.ravel(axis))
    if 0 in axes:
        raise LqError(f"layer '{name}': works along the axis of the batch")
    return axes


def _reduce(function: str) -> Callable[[dict[str, Any], str, Unique], Any]:
    def run(a: dict[str, Any], name: str, unique: Unique) -> Any:
        axes = _axes(a.get("axis"), len(a["x"].shape), name)
        keepdims = bool(a.get("keepdims", False))
        if function == "mean" and axes == [1, 2] and len(a["x"].shape) == 4:
            return layers.GlobalAveragePooling2D(keepdims=keepdims, name=name)(a["x"])
        return Reduce(function, axes, keepdims, name=name)(a["x"])

    return run


def _reshape(a: dict[str, Any], name: str, unique: Unique) -> Any:
    lengths = list(a["shape"]) if isinstance(a["shape"], (list, tuple)) else list(np.ravel(a["shape"]))
    shape = [1 if isinstance(n, Batch) else int(n) for n in lengths]
    size = math.prod(a["x"].shape[1:])
    if shape[0] not in (-1, 1) or (-1 in shape[1:] and shape[0] == -1):
        raise LqError(f"layer '{name}': reshapes to {shape}, which is not a shape with the batch in front")
    if -1 in shape[1:]:
        shape[shape.index(-1, 1)] = size // math.prod(n for n in shape[1:] if n != -1)
    if math.prod(shape[1:]) != size:
        raise LqError(f"layer '{name}': reshapes to {shape}, across examples")
    return layers.Reshape(shape[1:], name=name)(a["x"])


def _transpose(a: dict[str, Any], name: str, unique: Unique) -> Any:
    order = a.get("axes")
    order = list(order) if order is not None else list(range(len(a["x"].shape)))[::-1]
    if order[0] != 0:
        raise LqError(f"layer '{name}': moves the axis of the batch")
    return layers.Permute(order[1:], name=name)(a["x"])


def _pairs(mask: Any, axes: Sequence[int], name: str) -> Pairs:
    """A mask [b, steps] with new axes, of which one tells whether it is of queries or of keys."""
    if axes in ([1], [1, 2]):
        return Pairs(keys=(mask,))
    if axes == [2]:
        return Pairs(queries=(mask,))
    raise LqError(f"layer '{name}': a mask of steps with new axes {axes}; attention reads it as [:, None, :]")


def _expand(a: dict[str, Any], name: str, unique: Unique) -> Any:
    if is_mask(a["x"]):
        return _pairs(a["x"], [int(axis) % 3 for axis in np.ravel(a["axis"])], name)
    shape = list(a["x"].shape)
    (axis,) = _axes(a["axis"], len(shape) + 1, name)
    return layers.Reshape([*shape[1:axis], 1, *shape[axis:]], name=name)(a["x"])


def _squeeze(a: dict[str, Any], name: str, unique: Unique) -> Any:
    shape = list(a["x"].shape)
    axes = [i for i, n in enumerate(shape) if n == 1 and i] if a.get("axis") is None else a["axis"]
    gone = _axes(axes, len(shape), name)
    return layers.Reshape([n for i, n in enumerate(shape) if i and i not in gone], name=name)(a["x"])


def _concatenate(a: dict[str, Any], name: str, unique: Unique) -> Any:
    (axis,) = _axes(a.get("axis", 0), len(a["x"][0].shape), name)
    return layers.Concatenate(axis=axis, name=name)(a["x"])


def _stack(a: dict[str, Any], name: str, unique: Unique) -> Any:
    rank = len(a["x"][0].shape) + 1
    (axis,) = _axes(a.get("axis", 0), rank, name)
    parts = [_expand({"x": x, "axis": axis}, unique(f"{name}_part"), unique) for x in a["x"]]
    return layers.Concatenate(axis=axis, name=name)(parts)


def _split(a: dict[str, Any], name: str, unique: Unique) -> list[Any]:
    x, shape = a["x"], a["x"].shape
    (axis,) = _axes(a.get("axis", 0), len(shape), name)
    sizes = a["sizes"]
    ends: Sequence[int]
    if isinstance(sizes, int):
        ends = [shape[axis] // sizes * (i + 1) for i in range(sizes)]
    elif a.get("indices"):  # Keras 3 gives the places to split at, TensorFlow the lengths of the parts
        ends = [*map(int, sizes), shape[axis]]
    else:
        ends = [int(end) for end in np.cumsum(sizes)]
    parts = []
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        slices = [(begin, end, None) if i == axis else (None, None, None) for i in range(1, len(shape))]
        parts.append(Slice(slices, name=unique(f"{name}_part"))(x))
    return parts


def _getitem(a: dict[str, Any], name: str, unique: Unique) -> Any:
    x, key = a["x"], a["key"]
    if isinstance(x, list):  # a shape
        key = key[0] if isinstance(key, (list, tuple)) else key
        return [x[slice(key["start"], key["stop"], key["step"]) if isinstance(key, dict) else key]]
    key = list(key) if isinstance(key, (list, tuple)) else [key]
    rank = len(x.shape)
    if any(part is Ellipsis or part == "Ellipsis" for part in key):
        at = next(i for i, part in enumerate(key) if part is Ellipsis or part == "Ellipsis")
        key[at : at + 1] = [slice(None)] * (rank - len(key) + 1)
    slices: list[tuple[Any, Any, Any]] = []
    dropped = []
    if is_mask(x) and None in key:
        return _pairs(x, [axis for axis, part in enumerate(key) if part is None], name)
    for axis, part in enumerate(key):
        if isinstance(part, dict):
            part = slice(part["start"], part["stop"], part["step"])
        if isinstance(part, slice):
            slices.append((part.start, part.stop, part.step))
        elif isinstance(part, (int, np.integer)):
            dropped.append(axis)
            slices.append((int(part), int(part) + 1 or None, None))
        else:
            raise LqError(f"layer '{name}': indexes by {part!r}; only numbers and slices are known")
    if slices[0] != (None, None, None):
        raise LqError(f"layer '{name}': takes a part of the batch")
    slices += [(None, None, None)] * (rank - len(slices))
    y = x
    if any(part != (None, None, None) for part in slices):
        y = Slice(slices[1:], name=unique(f"{name}_slice") if dropped else name)(x)
    shape = [n for axis, n in enumerate(y.shape) if axis and axis not in dropped]
    return layers.Reshape(shape, name=name)(y) if dropped else y


def _pad(a: dict[str, Any], name: str, unique: Unique) -> Any:
    widths = [tuple(int(n) for n in pair) for pair in np.asarray(a["widths"]).reshape(-1, 2)]
    if str(a.get("mode", "constant")).lower() != "constant" or np.any(_number(a.get("value") or 0)):
        raise LqError(f"layer '{name}': pads with values other than zeros")
    x = a["x"]
    if widths[0] != (0, 0):
        raise LqError(f"layer '{name}': pads the batch")
    if len(widths) == 3 and widths[2] == (0, 0):
        return layers.ZeroPadding1D(widths[1], name=name)(x)
    if len(widths) == 4 and widths[3] == (0, 0):
        return layers.ZeroPadding2D(widths[1:3], name=name)(x)
    raise LqError(f"layer '{name}': pads by {widths}; only rows, columns and steps are padded")


def _matmul(a: dict[str, Any], name: str, unique: Unique) -> Any:
    if not (is_tensor(a["x"]) and is_tensor(a["y"])) or a.get("transpose_a"):
        raise LqError(f"layer '{name}': a product with a constant or of a transposed matrix")
    return MatMul(bool(a.get("transpose_b", False)), name=name)([a["x"], a["y"]])


def _negative(a: dict[str, Any], name: str, unique: Unique) -> Any:
    return scaled(a["x"], -1.0, 0.0, name)


def _square(a: dict[str, Any], name: str, unique: Unique) -> Any:
    return layers.Multiply(name=name)([a["x"], a["x"]])


def _absolute(a: dict[str, Any], name: str, unique: Unique) -> Any:
    minus = scaled(a["x"], -1.0, 0.0, unique(f"{name}_minus"))
    return layers.Maximum(name=name)([a["x"], minus])


def _differs(a: dict[str, Any], name: str, unique: Unique) -> Any:
    """x != number, with which Keras 3 makes masks of sequences [b, steps, n] and indices [b, steps]."""
    if (
        not is_tensor(a["x"])
        or is_tensor(a["y"])
        or _number(a["y"]).size != 1
        or len(a["x"].shape) not in (2, 3)
    ):
        raise LqError(f"layer '{name}': a comparison that is no mask of steps")
    return StepMask(float(_number(a["y"]).ravel()[0]), name=name)(a["x"])


def _any(a: dict[str, Any], name: str, unique: Unique) -> Any:
    mask = a["x"]._keras_history.layer
    if (
        not isinstance(mask, StepMask)
        or len(mask.input.shape) != 3
        or list(np.ravel(a["axis"])) not in ([-1], [2])
    ):
        raise LqError(f"layer '{name}': this operation is known to lqconvert only in masks of steps")
    return a["x"]


def _both(a: dict[str, Any], name: str, unique: Unique) -> Any:
    if isinstance(a["x"], Pairs) and isinstance(a["y"], Pairs):
        return a["x"] & a["y"]
    return _either(a, name, unique)


def _either(a: dict[str, Any], name: str, unique: Unique) -> Any:
    if not (is_tensor(a["x"]) and is_tensor(a["y"]) and same_mask(a["x"], a["y"])):
        raise LqError(f"layer '{name}': an operation that is known only for two equal masks of steps")
    return a["x"]


def _cast(a: dict[str, Any], name: str, unique: Unique) -> Any:
    return a["x"]  # everything is float32 here


Maker = Callable[[dict[str, Any], str, Unique], Any]
XY, AXIS, REDUCE = ("x", "y"), ("x", "axis"), ("x", "axis", "keepdims")
#: By the name of TensorFlow's function: its rule, and its parameters' names in the rule.
TENSORFLOW: dict[str, tuple[Maker, tuple[str, ...]]] = {
    **dict.fromkeys(("__operators__.add", "math.add"), (_add, XY)),
    **dict.fromkeys(("__operators__.sub", "math.subtract"), (_subtract, XY)),
    **dict.fromkeys(("__operators__.mul", "math.multiply"), (_multiply, XY)),
    **dict.fromkeys(("__operators__.truediv", "math.truediv", "math.divide", "realdiv"), (_divide, XY)),
    **dict.fromkeys(("__operators__.pow", "math.pow"), (_power, XY)),
    **dict.fromkeys(("__operators__.neg", "math.negative"), (_negative, ("x",))),
    **dict.fromkeys(("__operators__.abs", "math.abs"), (_absolute, ("x",))),
    "math.square": (_square, ("x",)),
    **dict.fromkeys(
        ("math.l2_normalize", "linalg.l2_normalize", "nn.l2_normalize"), (_l2_normalize, ("x", "axis"))
    ),
    "math.maximum": (_extreme("Maximum"), XY),
    "math.minimum": (_extreme("Minimum"), XY),
    "clip_by_value": (_clip, ("x", "low", "high")),
    "nn.relu": (_activation("relu"), ("x",)),
    "nn.relu6": (_activation("relu6"), ("x",)),
    **dict.fromkeys(("math.sigmoid", "nn.sigmoid"), (_activation("sigmoid"), ("x",))),
    **dict.fromkeys(("math.tanh", "nn.tanh"), (_activation("tanh"), ("x",))),
    **dict.fromkeys(("nn.silu", "nn.swish"), (_activation("silu"), ("x",))),
    **{
        f"{module}.{name}": (_elementwise(name), ("x",))
        for module, names in {
            "math": "softplus log log1p expm1 sqrt rsqrt sin cos erf reciprocal log_sigmoid",
            "nn": "softplus softsign selu",
        }.items()
        for name in names.split()
    },
    **dict.fromkeys(("math.exp", "exp"), (_elementwise("exp"), ("x",))),
    "nn.elu": (_elu, ("x",)),
    **dict.fromkeys(("image.resize", "image.resize_v2"), (_resize, ("x", "size", "method"))),
    **dict.fromkeys(("shape", "compat.v1.shape"), (_shape, ("x",))),
    "tile": (_tile, ("x", "times")),
    **dict.fromkeys(("nn.depth_to_space", "depth_to_space"), (_depth_to_space, ("x", "block"))),
    "nn.leaky_relu": (_leaky, ("x", "slope")),
    "nn.gelu": (_gelu, ("x", "approximate")),
    **dict.fromkeys(("nn.softmax", "compat.v1.nn.softmax"), (_softmax, AXIS)),
    "math.reduce_mean": (_reduce("mean"), REDUCE),
    "math.reduce_sum": (_reduce("sum"), REDUCE),
    "math.reduce_max": (_reduce("max"), REDUCE),
    "reshape": (_reshape, ("x", "shape")),
    **dict.fromkeys(("transpose", "compat.v1.transpose"), (_transpose, ("x", "axes"))),
    "expand_dims": (_expand, AXIS),
    **dict.fromkeys(("squeeze", "compat.v1.squeeze"), (_squeeze, AXIS)),
    "concat": (_concatenate, AXIS),
    "stack": (_stack, AXIS),
    "split": (_split, ("x", "sizes", "axis")),
    "__operators__.getitem": (_getitem, ("x", "key")),
    **dict.fromkeys(("pad", "compat.v1.pad"), (_pad, ("x", "widths", "mode", "name", "value"))),
    **dict.fromkeys(("linalg.matmul", "matmul"), (_matmul, ("x", "y", "transpose_a", "transpose_b"))),
    **dict.fromkeys(("cast", "identity", "stop_gradient"), (_cast, ("x",))),
    "math.not_equal": (_differs, XY),
    "math.reduce_any": (_any, AXIS),
    **dict.fromkeys(("math.logical_and", "__operators__.and"), (_both, XY)),
}
#: The parameters' names in TensorFlow and Keras, and ours.
ALIASES = {
    "input_tensor": "x",
    "features": "x",
    "tensor": "x",
    "a": "x",
    "inputs": "x",
    "input": "x",
    "value": "x",
    "values": "x",
    "logits": "x",
    "b": "y",
    "perm": "axes",
    "clip_value_min": "low",
    "clip_value_max": "high",
    "alpha": "slope",
    "num_or_size_splits": "sizes",
    "paddings": "widths",
    "constant_values": "value",
    "slice_spec": "key",
    "newshape": "shape",
    "x_min": "low",
    "x_max": "high",
    "negative_slope": "slope",
    "indices_or_sections": "sizes",
    "pad_width": "widths",
    "x1": "x",
    "x2": "y",
    "images": "x",
    "interpolation": "method",
    "multiples": "times",
    "block_size": "block",
}
#: By the name of Keras 3's operation. Its settings are its attributes.
KERAS3: dict[str, tuple[Maker, tuple[str, ...]]] = {
    "Add": (_add, XY),
    "Subtract": (_subtract, XY),
    "Multiply": (_multiply, XY),
    **dict.fromkeys(("TrueDivide", "Divide"), (_divide, XY)),
    "Power": (_power, XY),
    "Negative": (_negative, ("x",)),
    "Absolute": (_absolute, ("x",)),
    "Square": (_square, ("x",)),
    "Maximum": (_extreme("Maximum"), XY),
    "Minimum": (_extreme("Minimum"), XY),
    "Clip": (_clip, ("x",)),
    **{
        kind: (_activation(name), ("x",))
        for kind, name in {
            "Relu": "relu",
            "Relu6": "relu6",
            "Sigmoid": "sigmoid",
            "Tanh": "tanh",
            "Silu": "silu",
            "HardSigmoid": "hard_sigmoid",
            "HardSilu": "hard_silu",
        }.items()
    },
    **{
        kind: (_elementwise(name), ("x",))
        for kind, name in {
            "Selu": "selu",
            "Softplus": "softplus",
            "Softsign": "softsign",
            "LogSigmoid": "log_sigmoid",
            "TanhShrink": "tanh_shrink",
            "Exp": "exp",
            "Log": "log",
            "Log1p": "log1p",
            "Expm1": "expm1",
            "Sqrt": "sqrt",
            "Rsqrt": "rsqrt",
            "Reciprocal": "reciprocal",
            "Sin": "sin",
            "Cos": "cos",
            "Erf": "erf",
        }.items()
    },
    "Elu": (_elu, ("x",)),
    "Resize": (_resize, ("x",)),
    "LeakyRelu": (_leaky, ("x",)),
    "Gelu": (_gelu, ("x",)),
    "Softmax": (_softmax, ("x",)),
    "Normalize": (_l2_normalize, ("x",)),
    "Mean": (_reduce("mean"), ("x",)),
    "Sum": (_reduce("sum"), ("x",)),
    "Max": (_reduce("max"), ("x",)),
    "Reshape": (_reshape, ("x",)),
    "Transpose": (_transpose, ("x",)),
    "ExpandDims": (_expand, ("x",)),
    "Squeeze": (_squeeze, ("x",)),
    "Concatenate": (_concatenate, ("x",)),
    "Stack": (_stack, ("x",)),
    "Split": (_split, ("x",)),
    "GetItem": (_getitem, ("x", "key")),
    "Pad": (_pad, ("x", "value")),
    "Matmul": (_matmul, XY),
    **dict.fromkeys(("Cast", "Copy"), (_cast, ("x",))),
    "NotEqual": (_differs, XY),
    "Any": (_any, ("x",)),
    "LogicalOr": (_either, XY),
    "LogicalAnd": (_both, XY),
}


def operate(operation: Any, args: Sequence[Any], kwargs: dict[str, Any], name: str, unique: Unique) -> Any:
    """Applies an operation's rule to rebuilt tensors. The result is a tensor or a list of tensors.

    Args:
        operation: a TFOpLambda or SlicingOpLambda layer, or an operation of Keras 3.
        args, kwargs: of its call, with rebuilt tensors.

    Raises:
        LqError: if it has no rule.
    """
    if type(operation).__module__.startswith("keras."):
        kind = type(operation).__name__
        maker, parameters = KERAS3.get(kind, (None, ()))
        settings = {key: value for key, value in vars(operation).items() if not key.startswith("_")}
        settings["indices"] = kind == "Split"
    else:
        kind = str(operation.get_config()["function"])
        maker, parameters = TENSORFLOW.get(kind, (None, ()))
        settings = {}
    if maker is None:
        raise LqError(f"layer '{name}' ({kind}): this operation is not known to lqconvert")
    arguments = {**settings, **dict(zip(parameters, args, strict=False)), **kwargs}
    known = {ALIASES.get(key, key) if key not in parameters else key: v for key, v in arguments.items()}
    if maker not in (_both, _cast) and any(isinstance(value, Pairs) for value in known.values()):
        raise LqError(f"layer '{name}' ({kind}): this operation is not known for masks of attention")
    return maker(known, name, unique)
