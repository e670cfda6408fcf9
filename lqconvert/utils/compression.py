"""The deflated size of a file: the size of a download."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE)

#: zlib's window bits for a zlib stream, and for a stream in gzip's format.
ZLIB, GZIP = 15, 31


def deflated(data: bytes) -> int:
    """The size of the smallest deflate stream (which every inflater can read)."""
    return min(sum(map(len, _stream(data, strategy, ZLIB))) for strategy in STRATEGIES)


def gzipped(data: bytes) -> bytes:
    """The data as a .gz file with the smallest deflate stream."""
    return min((b"".join(_stream(data, strategy, GZIP)) for strategy in STRATEGIES), key=len)


def _stream(data: bytes, strategy: int, window: int) -> Iterator[bytes]:
    compressor = zlib.compressobj(9, zlib.DEFLATED, window, 9, strategy)
    for start in range(0, len(data), 1 << 20):
        yield compressor.compress(data[start : start + (1 << 20)])
    yield compressor.flush()
