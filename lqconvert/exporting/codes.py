"""The learned codes of a model, without TensorFlow: integers with scales, biases, activation parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lqconvert.data.preprocessing import Front, Preprocessing
from lqconvert.errors import LqError
from lqconvert.tflite.encoding import entropy_bits
from lqconvert.tflite.io_types import Border
from lqconvert.utils.npz import load_npz


@dataclass
class TensorCodes:
    """The codes of one weight tensor: its float value is ``codes * scale``."""

    codes: np.ndarray  # int32, in Keras's layout
    scale: np.ndarray  # float32, broadcastable to codes
    granularity: str = ""
    deviation: float = 0.0  # rms error after recoding to TFLite's grid, relative to the rms weight

    @property
    def values(self) -> np.ndarray:
        return (self.codes * self.scale).astype(np.float32)

    @property
    def entropy(self) -> float:
        """Empirical entropy of the codes in bits per weight."""
        return entropy_bits(self.codes) / self.codes.size

    @property
    def code_count(self) -> int:
        """The number of different integers in use."""
        return len(np.unique(self.codes))


@dataclass
class LayerCodes:
    """A linear layer: its kernel's codes, and its bias (float32, or int32 codes with a learned scale)."""

    name: str
    kind: str
    kernel: TensorCodes
    bias: np.ndarray | None
    bias_codes: TensorCodes | None = None


@dataclass
class Codes:
    """Everything that was learned, by layer name in the order of the graph."""

    layers: dict[str, LayerCodes]
    activations: dict[str, tuple[float, int]] = field(default_factory=dict)  # scale, zero point

    def save(self, path: Path, file: Int8File | None = None) -> None:
        """Writes an .npz: LAYER/codes, LAYER/scale, LAYER/axes, LAYER/bias, ACTIVATION/activation.

        If the int8 ``file`` with these codes is included, :func:`lqconvert.export_codes` can read it.
        """
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
        if file is not None:
            arrays["int8.tflite"] = np.frombuffer(file.tflite, np.uint8)
            arrays["int8.layers"] = np.array(file.layers)
            arrays["int8.preprocess"] = np.array(file.preprocess, np.float64)
            if file.front is not None:
                arrays["int8.front"] = np.array([file.front.center, file.front.factor], np.float64)
        with path.open("wb") as stream:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Int8File:
    """The plain int8 .tflite of a run. Files for all targets are made from it."""

    tflite: bytes = field(repr=False)
    layers: list[str]  # the layers of its kernels, in the order of its graph
    preprocess: tuple[float, float]  # scale and offset of the model's real inputs
    front: Front | None = None  # the scaling of these inputs before they are quantized

    def feeding(self, border: Border) -> Preprocessing:
        """The preprocessing from raw inputs to the real inputs of the file with this border."""
        return Preprocessing(*self.preprocess, front=self.front if border.front is None else None)

    @classmethod
    def load(cls, path: Path) -> Int8File:
        """Reads the int8 file in an .npz of :meth:`Codes.save`.

        Raises:
            LqError: if the .npz has none.
        """
        what = "not the .codes.npz that lqconvert quantize writes"
        try:
            arrays = load_npz(path)
            file, layers, preprocess = (
                arrays[name] for name in ("int8.tflite", "int8.layers", "int8.preprocess")
            )
        except (LqError, KeyError) as error:
            raise LqError(f"{path}: {what}") from error
        if file.dtype != np.uint8 or layers.dtype.kind != "U" or layers.ndim != 1:
            raise LqError(f"{path}: {what}")
        if preprocess.shape != (2,) or preprocess.dtype != np.float64 or not np.all(np.isfinite(preprocess)):
            raise LqError(f"{path}: {what}")
        front = None
        if "int8.front" in arrays:
            rows = arrays["int8.front"]
            if rows.ndim != 2 or len(rows) != 2 or rows.dtype != np.float64 or not np.isfinite(rows).all():
                raise LqError(f"{path}: {what}")
            front = Front(*(tuple(row) for row in rows.tolist()))
        scale, offset = map(float, preprocess)
        return cls(file.tobytes(), [str(name) for name in layers], (scale, offset), front)


def load_kernels(path: Path) -> dict[str, np.ndarray]:
    """The integer codes of every kernel in an .npz of :meth:`Codes.save`, by layer name."""
    arrays = load_npz(path)
    return {name.removesuffix("/codes"): arrays[name] for name in arrays if name.endswith("/codes")}


def recode(tensor: TensorCodes, kept_axes: tuple[int, ...]) -> TensorCodes:
    """The tensor on TFLite's grid: int8 codes in -127..127 with one scale for each output channel.

    The result's ``deviation`` is the rms difference of the values, relative to their rms.
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
    """The tensor itself if TFLite can hold it, or else :func:`recode`."""
    scaled = {axis for axis, length in enumerate(tensor.scale.shape) if length > 1}
    if scaled <= set(kept_axes) and np.abs(tensor.codes).max(initial=0) <= 127:
        return tensor
    return recode(tensor, kept_axes)
