"""Granularities: for each name, the axes of a kernel along which every index has its own scale."""

from __future__ import annotations

from typing import Any

from lqconvert.keras_loader.layer_kinds import LAYERS, class_name

KERNELS = {kind.name: kind.kernel for kind in LAYERS.values() if kind.kernel}
LINEAR = tuple(KERNELS)
#: Those whose output channels can be multiplied by factors.
FOLDABLE = tuple(name for name, kernel in KERNELS.items() if kernel.outputs)
KEPT_AXES: dict[str, dict[str, tuple[int, ...]]] = {
    "scalar": dict.fromkeys(LINEAR, ()),
    "row-wise": {name: kernel.rows for name, kernel in KERNELS.items()},
    "column-wise": {name: kernel.columns for name, kernel in KERNELS.items()},
    "channel-wise": {name: kernel.channels for name, kernel in KERNELS.items()},
    "output-channel-wise": {name: kernel.outputs for name, kernel in KERNELS.items()},
    "mixed": {name: () if name == "Dense" else kernel.outputs for name, kernel in KERNELS.items()},
}
GRANULARITIES = tuple(KEPT_AXES)


def kernel_name(layer: Any) -> str:
    """The attribute that holds a linear layer's kernel."""
    return KERNELS[class_name(layer)].attribute
