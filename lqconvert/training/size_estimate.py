"""Estimates the deflated size of kernels from their entropy, while they are learned."""

from __future__ import annotations

import math

import numpy as np

from lqconvert.exporting.codes import Codes

#: By entropy in bits per code: deflated bytes divided by entropy bytes, for independent codes with a
#: Laplacian distribution. Huffman codes use whole bits, at least one; below one bit, deflate has to find runs
#: of zeros.
ENTROPY = (0.05, 0.1, 0.3, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0)


OVERHEAD = (1.55, 1.52, 1.48, 1.44, 1.38, 1.35, 1.32, 1.20, 1.115, 1.06, 1.035, 1.025, 1.035, 1.025, 1.01)


def stored(codes: Codes) -> list[bytes]:
    """The bytes of each kernel as the file stores them (32 bits per code if the file does not hold them)."""
    from lqconvert.exporting.export import tflite_layout  # it imports TensorFlow

    kernels = [tflite_layout(layer.kind, layer.kernel.codes) for layer in codes.layers.values()]
    return [
        kernel.astype(np.int8 if np.abs(kernel).max() <= 127 else np.int32).tobytes() for kernel in kernels
    ]


def independent_bytes(codes: Codes) -> float:
    """The deflated size of the kernels if the codes in each were independent."""
    kernels = [layer.kernel for layer in codes.layers.values()]
    bits = (k.codes.size * k.entropy * np.interp(k.entropy, ENTROPY, OVERHEAD) for k in kernels)
    return float(sum(bits)) / 8


def packing_overhead(independent: float, known: list[tuple[float, float]]) -> float:
    """Packed bytes divided by those of ``independent`` codes, estimated from earlier pairs of these kernels.

    A pair is (independent bytes, packed bytes / independent bytes).

    Real codes are not independent: zeros cluster, and this matters more, the fewer bytes there are. So the
    overhead changes about as a power of the bytes. Of the difference between the last two pairs, half is
    attributed to the bytes; the other half comes from learning, and stays.
    """
    *before, (last, overhead) = known
    apart = math.log(before[-1][0] / last) if before else 0.0
    power = math.log(overhead / before[-1][1]) / apart if abs(apart) > 0.05 else 0.0
    return overhead * (last / independent) ** (min(max(power, -0.2), 0.2) / 2)
