"""Reads TensorFlow's checkpoints, in Python: TensorFlow's own reader ends the process at a hostile index.

An index, PREFIX.index, is a sorted table of blocks in LevelDB's format. Its entries give the place of each
tensor in PREFIX.data-00000-of-00001, where tensors are stored unchanged.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lqconvert.errors import LqError
from lqconvert.utils.input_files import open_regular, read_bytes

#: The size limit of an index. A network of a thousand layers has two hundred kilobytes.
LARGEST_INDEX = 4 << 20
MAGIC, FOOTER = struct.pack("<Q", 0xDB4775248B80FB57), 48
MOST_SHARDS = 1_000
STRING = 7  # TensorFlow's number of the type


@dataclass(frozen=True)
class Entry:
    """The place of a tensor."""

    kind: int  # TensorFlow's number of its type
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int  # in bytes


class Bundle:
    """A checkpoint.

    Raises:
        LqError: if its index is damaged, or claims more than the files have.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.index = Path(f"{prefix}.index")
        try:
            self._read(_table(read_bytes(self.index, LARGEST_INDEX)))
        except LqError:
            raise
        except Exception as error:  # damaged bytes make struct and protobuf raise anything
            raise LqError(f"{self.index}: the checkpoint's index is damaged") from error

    def _read(self, table: dict[bytes, bytes]) -> None:
        from tensorflow.core.protobuf import tensor_bundle_pb2

        header = tensor_bundle_pb2.BundleHeaderProto.FromString(table.pop(b""))
        if header.endianness or not 1 <= header.num_shards <= MOST_SHARDS:
            raise LqError(f"{self.index}: written on a big-endian machine, or in {header.num_shards:,} parts")
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
            LqError: if it is not where the index says.
        """
        import tensorflow as tf

        entry = self.entries[name]
        try:
            kind = np.dtype(tf.dtypes.as_dtype(entry.kind).as_numpy_dtype)
        except TypeError as error:
            raise LqError(f"{self.index}: '{name[:80]}' has an unknown type") from error
        if kind.hasobject or entry.size != math.prod(entry.shape) * kind.itemsize:
            raise LqError(f"{self.index}: '{name[:80]}' is not an array of {entry.size:,} bytes")
        return np.frombuffer(self._bytes(entry), kind).reshape(entry.shape)

    def text(self, name: str, limit: int) -> bytes:
        """A string. In the file, its length and a checksum of the length come before it.

        Raises:
            LqError: if there is no such string, or it is longer than the limit.
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
    """All entries of a table, by key.

    Raises:
        Exception: of any type, if the table is damaged.
    """
    if data[-8:] != MAGIC:
        raise ValueError("no table")
    footer = data[-FOOTER:]
    at = _number(footer, _number(footer, 0)[1])[1]  # after the place of another index, which is empty
    result: dict[bytes, bytes] = {}
    room = len(data)
    for _, handle in _entries(_block(data, footer[at:])):
        room -= _number(handle, _number(handle, 0)[1])[0]
        if room < 0:
            raise ValueError("blocks overlap")
        for key, value in _entries(_block(data, handle)):
            if key in result:
                raise ValueError("a key occurs twice")
            result[key] = value
    return result


def _block(data: bytes, handle: bytes) -> bytes:
    """A block without its trailer. The handle has its place and length."""
    place, at = _number(handle, 0)
    length, _ = _number(handle, at)
    if place + length + 5 > len(data) or data[place + length] != 0:
        raise ValueError("truncated, or compressed")
    return data[place : place + length]


def _entries(block: bytes) -> list[tuple[bytes, bytes]]:
    """The (key, value) pairs of a block. Each key shares its beginning with the key before it."""
    (restarts,) = struct.unpack("<I", block[-4:])
    at, end, key, found, copied = 0, len(block) - 4 * (restarts + 1), b"", [], 0
    while at < end:
        shared, at = _number(block, at)
        own, at = _number(block, at)
        length, at = _number(block, at)
        key = key[:shared] + block[at : at + own]
        at += own + length
        copied += len(key)
        if at > end or copied > 16 * LARGEST_INDEX:  # shared keys could grow with the square of the block
            raise ValueError("truncated")
        found.append((key, block[at - length : at]))
    return found


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number with seven bits in each byte, and the place after it."""
    result = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        result |= (byte & 127) << shift
        if byte < 128:
            return result, at
    raise ValueError("too long for a number")
