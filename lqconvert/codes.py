"""What learning results in, free of TensorFlow: integer codes with scales, biases, activation parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass
class TensorCodes:
    """The codes of one weight tensor: its float value is ``codes * scale``."""

    codes: np.ndarray  # int32, in Keras's layout
    scale: np.ndarray  # float32, broadcastable to codes
    granularity: str = ""
    deviation: float = 0.0  # rms error of recoding onto a grid that TFLite has, relative to the rms weight

    @property
    def values(self) -> np.ndarray:
        return (self.codes * self.scale).astype(np.float32)

    @property
    def entropy(self) -> float:
        """Empirical entropy of the codes in bits per weight."""
        counts = np.unique(self.codes, return_counts=True)[1]
        p = counts / counts.sum()
        return float(np.sum(-p * np.log2(p)))

    @property
    def code_count(self) -> int:
        """How many different integers are in use."""
        return len(np.unique(self.codes))


@dataclass
class LayerCodes:
    """One linear layer: its kernel's codes and its bias (float32; int32 codes where a scale was learned)."""

    name: str
    kind: str
    kernel: TensorCodes
    bias: np.ndarray | None
    bias_codes: TensorCodes | None = None


@dataclass
class Codes:
    """All that was learned, by layer name in the order of the graph."""

    layers: dict[str, LayerCodes]
    activations: dict[str, tuple[float, int]] = field(default_factory=dict)  # scale, zero point

    def save(self, path: Path) -> None:
        """Writes an .npz: LAYER/codes, LAYER/scale, LAYER/axes, LAYER/bias, ACTIVATION/activation."""
        arrays: dict[str, np.ndarray] = {}
        for name, layer in self.layers.items():
            kernel = layer.kernel
            arrays[f"{name}/codes"] = kernel.codes.astype(np.min_scalar_type(-1 - np.abs(kernel.codes).max()))
            arrays[f"{name}/scale"] = kernel.scale.astype(np.float32)
            arrays[f"{name}/axes"] = np.array([a for a, n in enumerate(kernel.scale.shape) if n > 1], np.int8)
            if layer.bias is not None:
                arrays[f"{name}/bias"] = layer.bias.astype(np.float32)
        for name, (scale, zero_point) in self.activations.items():
            arrays[f"{name}/activation"] = np.array([scale, zero_point], np.float64)
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load_kernels(path: Path) -> dict[str, np.ndarray]:
    """The integer codes of every kernel in an .npz that :meth:`Codes.save` wrote, by layer name."""
    with np.load(path) as arrays:
        return {name.removesuffix("/codes"): arrays[name] for name in arrays if name.endswith("/codes")}


def recode(tensor: TensorCodes, kept_axes: tuple[int, ...]) -> TensorCodes:
    """The tensor on TFLite's grid: int8 codes in -127..127 with one scale for each output channel.

    ``deviation`` of the result is the rms difference of the values relative to their rms.
    """
    values = tensor.values.astype(np.float64)
    axes = tuple(axis for axis in range(values.ndim) if axis not in kept_axes)
    largest = np.max(np.abs(values), axis=axes, keepdims=True)
    scale = (np.where(largest > 0, largest, 1.0) / 127).astype(np.float32)
    codes = np.round(values / scale).astype(np.int32)
    rms = np.sqrt(np.mean(values**2)) + 1e-30
    deviation = float(np.sqrt(np.mean((codes * scale.astype(np.float64) - values) ** 2)) / rms)
    return TensorCodes(codes, scale, "output-channel-wise", deviation)


def native(tensor: TensorCodes, kept_axes: tuple[int, ...]) -> TensorCodes:
    """The tensor itself where TFLite can hold it, else :func:`recode`."""
    scaled = {axis for axis, length in enumerate(tensor.scale.shape) if length > 1}
    if scaled <= set(kept_axes) and np.abs(tensor.codes).max(initial=0) <= 127:
        return tensor
    return recode(tensor, kept_axes)
