"""What files and codes come to once they are deflated: the size of a download."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from lqconvert.codes import Codes

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


def entropy_bytes(codes: Codes) -> float:
    """What the kernels come to at the entropy of each one's codes."""
    return sum(layer.kernel.codes.size * layer.kernel.entropy for layer in codes.layers.values()) / 8
