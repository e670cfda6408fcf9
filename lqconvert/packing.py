"""What files and codes come to once they are deflated: the size of a download."""

from __future__ import annotations

import zlib

import numpy as np

from lqconvert.codes import Codes
from lqconvert.exporting import tflite_layout

STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE)


def deflated(data: bytes) -> int:
    """Bytes of the best deflate stream (which any inflater reads)."""

    def size(strategy: int) -> int:
        compressor = zlib.compressobj(9, zlib.DEFLATED, 15, 9, strategy)
        return len(compressor.compress(data) + compressor.flush())

    return min(map(size, STRATEGIES))


def stored(codes: Codes) -> list[bytes]:
    """The bytes of each kernel as the file stores them (of 32 bits a code where it does not hold them)."""
    kernels = [tflite_layout(layer.kind, layer.kernel.codes) for layer in codes.layers.values()]
    return [
        kernel.astype(np.int8 if np.abs(kernel).max() <= 127 else np.int32).tobytes() for kernel in kernels
    ]


def rest_of_file(tflite: bytes, codes: Codes) -> bytes:
    """A file without its kernels."""
    for kernel in stored(codes):
        tflite = tflite.replace(kernel, b"", 1)
    return tflite


def entropy_bytes(codes: Codes) -> float:
    """What the kernels come to at the entropy of each one's codes."""
    return sum(layer.kernel.codes.size * layer.kernel.entropy for layer in codes.layers.values()) / 8
