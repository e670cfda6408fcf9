"""Which weights share a scale: for each named granularity the axes of a kernel that have a scale each."""

from __future__ import annotations

from typing import Any

#: Conv1D is a Conv2D of height 1. A Dense kernel has no spatial axes: its input axis is its row and its
#: input channel.
KEPT_AXES: dict[str, dict[str, tuple[int, ...]]] = {
    "scalar": dict.fromkeys(("Dense", "Conv1D", "Conv2D", "DepthwiseConv2D", "Conv2DTranspose"), ()),
    "row-wise": {
        "Dense": (0,),
        "Conv1D": (),
        "Conv2D": (0,),
        "DepthwiseConv2D": (0,),
        "Conv2DTranspose": (0,),
    },
    "column-wise": {
        "Dense": (1,),
        "Conv1D": (0,),
        "Conv2D": (1,),
        "DepthwiseConv2D": (1,),
        "Conv2DTranspose": (1,),
    },
    "channel-wise": {
        "Dense": (0,),
        "Conv1D": (1,),
        "Conv2D": (2,),
        "DepthwiseConv2D": (2,),
        "Conv2DTranspose": (3,),
    },
    "output-channel-wise": {
        "Dense": (1,),
        "Conv1D": (2,),
        "Conv2D": (3,),
        "DepthwiseConv2D": (2, 3),
        "Conv2DTranspose": (2,),
    },
    "mixed": {
        "Dense": (),
        "Conv1D": (2,),
        "Conv2D": (3,),
        "DepthwiseConv2D": (2, 3),
        "Conv2DTranspose": (2,),
    },
}
GRANULARITIES = tuple(KEPT_AXES)
LINEAR = tuple(KEPT_AXES["scalar"])


def class_name(layer: Any) -> str:
    """A layer's class without the package it is registered under."""
    name = layer["class_name"] if isinstance(layer, dict) else type(layer).__name__
    return str(name).split(">")[-1]


def kernel_name(layer: Any) -> str:
    """The attribute that holds a linear layer's kernel."""
    return "depthwise_kernel" if class_name(layer) == "DepthwiseConv2D" else "kernel"
