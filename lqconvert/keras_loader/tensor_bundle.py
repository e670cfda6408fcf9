"""Reads TensorFlow's checkpoints, in Python: TensorFlow's own reader ends the process at a hostile index.

An index, PREFIX.index, is a sorted table of blocks, as LevelDB has them. Its entries say of each tensor where
it lies, as it is, in PREFIX.data-00000-of-00001.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lqconvert.errors import LqError
from lqconvert.utils.input_files import open_regular, read_bytes

#: A network of a thousand layers has two hundred kilobytes of it.
LARGEST_INDEX = 4 << 20
MAGIC, FOOTER = struct.pack("<Q", 0xDB4775248B80FB57), 48
MOST_SHARDS = 1_000
STRING = 7  # TensorFlow's number of the type


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies."""

    kind: int  # TensorFlow's number of its type
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int  # in bytes


class Bundle:
    """A checkpoint.

    Raises:
        LqError: if its index is damaged, or claims more than there is.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.index = Path(f"{prefix}.index")
        try:
            self._read(_table(read_bytes(self.index, LARGEST_INDEX)))
        except LqError:
            raise
        except Exception as error:  # whatever damaged bytes make struct and protobuf raise
            raise LqError(f"{self.index}: the checkpoint's index is damaged") from error

    def _read(self, table: dict[bytes, bytes]) -> None:
        from tensorflow.core.protobuf import tensor_bundle_pb2

        header = tensor_bundle_pb2.BundleHeaderProto.FromString(table.pop(b""))
        if header.endianness or not 1 <= header.num_shards <= MOST_SHARDS:
            raise LqError(f"{self.index}: of a big-endian machine, or in {header.num_shards:,} parts")
        self.files = [
            Path(f"{self.prefix}.data-{shard:05}-of-{header.num_shards:05}")
            for shard in range(header.num_shards)
        ]
        self.entries: dict[str, Entry] = {}
        for key, value in table.items():
            entry = tensor_bundle_pb2.BundleEntryProto.FromString(value)
            shape = tuple(dimension.size for dimension in entry.shape.dim)
            if entry.slices or min((*shape, entry.offset, entry.size, entry.shard_id)) < 0:
                raise LqError(f"{self.index}: holds parts of a tensor, or none")
            self.entries[key.decode()] = Entry(entry.dtype, shape, entry.shard_id, entry.offset, entry.size)
        room = 0
        for file in self.files:
            with open_regular(file) as opened:
                room += opened.seek(0, 2)
        if sum(entry.size for entry in self.entries.values()) > room:
            raise LqError(f"{self.index}: the tensors are larger than their files: damaged, or hostile")

    def array(self, name: str) -> np.ndarray:
        """A tensor of numbers.

        Raises:
            LqError: if it does not lie where the index says.
        """
        import tensorflow as tf

        entry = self.entries[name]
        try:
            kind = np.dtype(tf.dtypes.as_dtype(entry.kind).as_numpy_dtype)
        except TypeError as error:
            raise LqError(f"{self.index}: '{name[:80]}' is of no type that is known") from error
        if kind.hasobject or entry.size != math.prod(entry.shape) * kind.itemsize:
            raise LqError(f"{self.index}: '{name[:80]}' is no array of {entry.size:,} bytes")
        return np.frombuffer(self._bytes(entry), kind).reshape(entry.shape)

    def text(self, name: str, limit: int) -> bytes:
        """A string, which stands behind its length and a checksum of that.

        Raises:
            LqError: if there is none, or it is longer.
        """
        entry = self.entries.get(name, Entry(0, (), 0, 0, 0))
        if entry.kind != STRING or entry.shape or entry.size > limit:
            raise LqError(f"{self.index}: has no '{name[:80]}' of at most {limit:,} bytes")
        data = self._bytes(entry)
        length, start = _number(data, 0)
        if start + 4 + length != len(data):
            raise LqError(f"{self.index}: the length of '{name[:80]}' is damaged")
        return data[start + 4 :]

    def _bytes(self, entry: Entry) -> bytes:
        if entry.shard >= len(self.files):
            raise LqError(f"{self.index}: has no part {entry.shard:,}")
        with open_regular(self.files[entry.shard]) as file:
            if entry.offset + entry.size > file.seek(0, 2):
                raise LqError(f"{self.files[entry.shard]}: truncated")
            file.seek(entry.offset)
            return file.read(entry.size)


def _table(data: bytes) -> dict[bytes, bytes]:
    """All that is in a table, by key.

    Raises:
        Exception: of some kind, if it is damaged.
    """
    if data[-8:] != MAGIC:
        raise ValueError("no table")
    footer = data[-FOOTER:]
    at = _number(footer, _number(footer, 0)[1])[1]  # behind the place of another index, which is empty
    result: dict[bytes, bytes] = {}
    room = len(data)
    for _, handle in _entries(_block(data, footer[at:])):
        room -= _number(handle, _number(handle, 0)[1])[0]
        if room < 0:
            raise ValueError("blocks overlap")
        for key, value in _entries(_block(data, handle)):
            if key in result:
                raise ValueError("a key stands twice")
            result[key] = value
    return result


def _block(data: bytes, handle: bytes) -> bytes:
    """A block, of which the handle has the place and the length, without its trailer."""
    place, at = _number(handle, 0)
    length, _ = _number(handle, at)
    if place + length + 5 > len(data) or data[place + length] != 0:
        raise ValueError("truncated, or compressed")
    return data[place : place + length]


def _entries(block: bytes) -> list[tuple[bytes, bytes]]:
    """(key, value) of a block; a key shares its beginning with the one before it."""
    (restarts,) = struct.unpack("<I", block[-4:])
    at, end, key, found, copied = 0, len(block) - 4 * (restarts + 1), b"", [], 0
    while at < end:
        shared, at = _number(block, at)
        own, at = _number(block, at)
        length, at = _number(block, at)
        key = key[:shared] + block[at : at + own]
        at += own + length
        copied += len(key)
        if at > end or copied > 16 * LARGEST_INDEX:  # keys that share all grow with the square of the block
            raise ValueError("truncated")
        found.append((key, block[at - length : at]))
    return found


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place behind it."""
    result = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        result |= (byte & 127) << shift
        if byte < 128:
            return result, at
    raise ValueError("too long for a number")
