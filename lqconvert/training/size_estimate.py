"""What kernels will be deflated to, estimated from their entropy while they are learned."""

from __future__ import annotations

import math

import numpy as np

from lqconvert.exporting.codes import Codes

#: By entropy in bits a code, what deflate makes of independent codes of a Laplacian distribution, over it:
#: Huffman codes have whole bits, one at least, and below that runs of zeros have to be found.
ENTROPY = (0.05, 0.1, 0.3, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0)


OVERHEAD = (1.55, 1.52, 1.48, 1.44, 1.38, 1.35, 1.32, 1.20, 1.115, 1.06, 1.035, 1.025, 1.035, 1.025, 1.01)


def stored(codes: Codes) -> list[bytes]:
    """The bytes of each kernel as the file stores them (of 32 bits a code where it does not hold them)."""
    from lqconvert.exporting.export import tflite_layout  # it imports TensorFlow

    kernels = [tflite_layout(layer.kind, layer.kernel.codes) for layer in codes.layers.values()]
    return [
        kernel.astype(np.int8 if np.abs(kernel).max() <= 127 else np.int32).tobytes() for kernel in kernels
    ]


def independent_bytes(codes: Codes) -> float:
    """What the kernels would be deflated to if the codes in each were independent of one another."""
    kernels = [layer.kernel for layer in codes.layers.values()]
    bits = (k.codes.size * k.entropy * np.interp(k.entropy, ENTROPY, OVERHEAD) for k in kernels)
    return float(sum(bits)) / 8


def packing_overhead(independent: float, known: list[tuple[float, float]]) -> float:
    """Packed bytes over those that ``independent`` codes take, from such pairs known of the same kernels.

    Codes are not independent: zeros keep together, which counts the more, the fewer bytes there are. So it
    changes about as a power of the bytes, of which the last two known tell half: the rest of what differs
    between them comes of learning, and stays.
    """
    *before, (last, overhead) = known
    apart = math.log(before[-1][0] / last) if before else 0.0
    power = math.log(overhead / before[-1][1]) / apart if abs(apart) > 0.05 else 0.0
    return overhead * (last / independent) ** (min(max(power, -0.2), 0.2) / 2)
