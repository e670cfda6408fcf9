"""What files and codes come to once they are deflated: the size of a download."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from lqconvert.codes import Codes

#: By entropy in bits a code, what deflate makes of independent codes of a Laplacian distribution, over it:
#: Huffman codes have whole bits, one at least, and below that runs of zeros have to be found.
ENTROPY = (0.05, 0.1, 0.3, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0)
OVERHEAD = (1.55, 1.52, 1.48, 1.44, 1.38, 1.35, 1.32, 1.20, 1.115, 1.06, 1.035, 1.025, 1.035, 1.025, 1.01)

STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE)


#: zlib's window bits for a zlib stream, and for one in gzip's wrapping.
ZLIB, GZIP = 15, 31


def deflated(data: bytes) -> int:
    """Bytes of the best deflate stream (which any inflater reads)."""
    return min(sum(map(len, _stream(data, strategy, ZLIB))) for strategy in STRATEGIES)


def gzipped(data: bytes) -> bytes:
    """The data as a .gz file of the best deflate stream."""
    return min((b"".join(_stream(data, strategy, GZIP)) for strategy in STRATEGIES), key=len)


def _stream(data: bytes, strategy: int, window: int) -> Iterator[bytes]:
    compressor = zlib.compressobj(9, zlib.DEFLATED, window, 9, strategy)
    for start in range(0, len(data), 1 << 20):
        yield compressor.compress(data[start : start + (1 << 20)])
    yield compressor.flush()


def stored(codes: Codes) -> list[bytes]:
    """The bytes of each kernel as the file stores them (of 32 bits a code where it does not hold them)."""
    from lqconvert.exporting import tflite_layout  # it imports TensorFlow

    kernels = [tflite_layout(layer.kind, layer.kernel.codes) for layer in codes.layers.values()]
    return [
        kernel.astype(np.int8 if np.abs(kernel).max() <= 127 else np.int32).tobytes() for kernel in kernels
    ]


def independent_bytes(codes: Codes) -> float:
    """What the kernels would be deflated to if the codes in each were independent of one another."""
    kernels = [layer.kernel for layer in codes.layers.values()]
    bits = (k.codes.size * k.entropy * np.interp(k.entropy, ENTROPY, OVERHEAD) for k in kernels)
    return float(sum(bits)) / 8
