"""Encodes codes as bytes that a runtime decodes. Integers in, bytes out: no TensorFlow, no .tflite.

The formats are those of TensorFlow Lite Micro's DECODE operator, version 1 (kernels/decode_state_*.cc), and
of INT4 and INT2 tensors. Codes are int8 arrays in the order of the tensor.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: The first byte of a DECODE operator's ancillary data.
LUT, HUFFMAN, PRUNING = 0, 1, 2
#: The versions of DECODE's format and of each kind's format. Its kernels check them.
VERSION = 1


@dataclass(frozen=True)
class Encoded:
    """The inputs of DECODE for one output: the encoded tensor and its ancillary data."""

    stream: bytes
    ancillary: bytes

    @property
    def size(self) -> int:
        return len(self.stream) + len(self.ancillary)


def _ancillary(kind: int, parameters: bytes, tables: bytes) -> bytes:
    """16 bytes of metadata (kind, DECODE's version, the kind's version, parameters), then the tables."""
    return bytes((kind, VERSION, 0, 0, VERSION)) + parameters.ljust(11, b"\0") + tables


def entropy_bits(codes: np.ndarray) -> float:
    """The empirical entropy of all codes together. No code for single weights takes fewer bits.

    >>> entropy_bits(np.array([0, 0, 1, -1]))
    6.0
    """
    counts = np.unique(codes, return_counts=True)[1]
    return float(-np.sum(counts * np.log2(counts / counts.sum())))


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Two or four codes a byte (uint8), the first one in the low bits, as in TFLite's INT4 and INT2 tensors.

    >>> [hex(byte) for byte in pack_bits(np.array([1, 2, -1]), bits=4)]
    ['0x21', '0xf']
    """
    each = 8 // bits
    flat = codes.ravel().astype(np.int8).view(np.uint8) & np.uint8((1 << bits) - 1)
    flat = np.pad(flat, (0, -flat.size % each)).reshape(-1, each)
    packed = flat[:, 0].copy()
    for place in range(1, each):
        packed |= flat[:, place] << np.uint8(place * bits)
    return packed


def unpack_bits(packed: np.ndarray, bits: int) -> np.ndarray:
    """The int8 codes in bytes from :func:`pack_bits`, including those that fill up the last byte."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes: np.ndarray = (packed.astype(np.uint8)[:, np.newaxis] >> shifts) << np.uint8(8 - bits)
    return np.asarray(codes.ravel().view(np.int8) >> (8 - bits))


@dataclass(frozen=True, eq=False)
class _Alphabet:
    """The different values of an array.

    Attributes:
        values: in ascending order, of the array's type.
        counts: the frequency of each value.
        places: int64, for each element of the array the index of its value in ``values``.
    """

    values: np.ndarray
    counts: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray) -> _Alphabet:
        """As np.unique, but faster: values in a small range are counted instead of sorted."""
        low = int(array.min())
        shifted = array.ravel().astype(np.int64) - low
        counts = np.bincount(shifted)
        present = np.flatnonzero(counts)
        places = np.zeros(len(counts), np.int64)
        places[present] = np.arange(len(present))
        return cls((present + low).astype(array.dtype), counts[present], places[shifted])


def encode_lut(codes: np.ndarray) -> Encoded | None:
    """Indices of 1 to 7 bits into one table of values, MSB first. None for more than 128 values.

    The table's stride between channels is 0, so all channels of a per-channel tensor use the same table.
    """
    alphabet = _Alphabet.of(codes)
    bits = max(1, int(len(alphabet.values) - 1).bit_length())
    if bits > 7:
        return None
    planes = np.unpackbits(alphabet.places.astype(np.uint8)[:, np.newaxis], axis=1)
    stream = np.packbits(planes[:, 8 - bits :]).tobytes()
    return Encoded(stream, _ancillary(LUT, bytes((bits, 0)), alphabet.values.astype(np.int8).tobytes()))


def encode_pruning(codes: np.ndarray) -> Encoded:
    """A bitmap of the values that are not zero, MSB first, followed by these values."""
    flat = codes.ravel()
    bitmap = np.packbits(flat != 0).tobytes()
    return Encoded(bitmap, _ancillary(PRUNING, b"", flat[flat != 0].astype(np.int8).tobytes()))


def encode_huffman(values: np.ndarray) -> Encoded:
    """A canonical Huffman code of int8 or int16 values, MSB first, and the table to decode it.

    The table is a binary tree that is read bit by bit. It has two entries fewer than two for each value. An
    entry has 16 bits (32 for int16 values). The decoder never puts bits back.
    """
    alphabet = _Alphabet.of(values)
    symbols, lengths = alphabet.values, huffman_lengths(alphabet.counts)
    order = np.lexsort((symbols, lengths))
    words = np.zeros(len(symbols), np.int64)
    for previous, current in itertools.pairwise(order):
        words[current] = (words[previous] + 1) << (lengths[current] - lengths[previous])
    wide = values.dtype == np.int16
    bits = 16 << wide
    mask = (1 << 8 << 8 * wide) - 1
    # A leaf: the top bit is set; four bits are its length at this level, which is 1; the rest is the value.
    leaves = [1 << bits - 1 | 1 << bits - 5 | int(symbol) & mask for symbol in symbols]
    table = _tree(list(zip(words.tolist(), lengths.tolist(), leaves, strict=True)))
    stream = _bits(words[alphabet.places], lengths[alphabet.places])
    stream = stream.ljust(_stream_bytes(8 * len(stream)), b"\0")
    parameters = bytes((wide,))  # the upper half: the number of bits of the first step, minus one
    return Encoded(stream, _ancillary(HUFFMAN, parameters, np.array(table, f"<u{bits // 8}").tobytes()))


def _stream_bytes(bits: int) -> int:
    """The bytes of a Huffman code of this many bits. The decoder reads 32-bit words, one of them ahead."""
    return 4 * -(-bits // 32) + 4


def _huffman_bytes(counts: np.ndarray, wide: bool) -> int:
    """The number of bytes that :func:`encode_huffman` takes for values with these counts."""
    bits = int(np.sum(counts * huffman_lengths(counts)))
    entries = max(2, 2 * len(counts) - 2)
    return _stream_bytes(bits) + len(_ancillary(HUFFMAN, b"", b"")) + entries * (4 if wide else 2)


def huffman_lengths(counts: np.ndarray) -> np.ndarray:
    """The length in bits of each value's word in an optimal prefix code; 1 if there is only one value."""
    if len(counts) == 1:
        return np.ones(1, np.int64)
    root = 2 * len(counts) - 2
    heap = [(int(count), index, index) for index, count in enumerate(counts)]
    heapq.heapify(heap)
    parents = [0] * root
    for node in range(len(counts), root + 1):
        (a, tie, left), (b, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        parents[left] = parents[right] = node
        heapq.heappush(heap, (a + b, tie, node))
    depths = [0] * (root + 1)
    for node in reversed(range(root)):
        depths[node] = depths[parents[node]] + 1
    return np.array(depths[: len(counts)], np.int64)


def _tree(words: list[tuple[int, int, int]]) -> list[int]:
    """The table for words (bits, length, leaf), after their common prefix was removed.

    It has two entries, for a next bit of 0 and 1: a leaf, or the distance from the entry to the next table.
    """
    table = [0, 0]
    for bit in (0, 1):
        # If there is only one value, one of the two bits does not occur.
        branch = [word for word in words if word[0] >> (word[1] - 1) == bit] or words
        _, length, leaf = branch[0]
        if length == 1:
            table[bit] = leaf
        else:
            table[bit] = len(table) - bit
            table += _tree([(word & ((1 << (n - 1)) - 1), n - 1, leaf) for word, n, leaf in branch])
    return table


def _bits(words: np.ndarray, lengths: np.ndarray) -> bytes:
    """The words one after the other, MSB first."""
    if lengths.max() > 32:  # possible only for the rarest of millions of values
        words = np.stack([words >> 32, words & 0xFFFFFFFF], axis=1).ravel()
        lengths = np.stack([np.maximum(lengths - 32, 0), np.minimum(lengths, 32)], axis=1).ravel()
    ends = np.cumsum(lengths)
    # Each word lies in 64 bits that begin at a multiple of 32. Words that begin at the same one are joined.
    places, offsets = np.divmod(ends - lengths, 32)
    shifted = words.astype(np.uint64) << (64 - offsets - lengths).astype(np.uint64)
    firsts = np.flatnonzero(np.diff(places, prepend=-1))
    joined = np.bitwise_or.reduceat(shifted, firsts)
    halves = np.zeros(int(places[-1]) + 2, np.uint64)
    halves[places[firsts]] = joined >> np.uint64(32)
    halves[places[firsts] + 1] |= joined & np.uint64(0xFFFFFFFF)
    return halves.astype(">u4").tobytes()[: -(-int(ends[-1]) // 8)]


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Codes, divided into blocks of equal length.

    Attributes:
        book: the different blocks, int8 [blocks, length], in ascending order.
        counts: the frequency of each block in the book.
        numbers: for each block of the codes, its index in the book: int8 up to 128 blocks, otherwise int16.
    """

    book: np.ndarray
    counts: np.ndarray
    numbers: np.ndarray

    @property
    def size(self) -> int:
        """The bytes of the book and of the numbers' Huffman code."""
        return _huffman_bytes(self.counts, self.numbers.dtype == np.int16) + self.book.nbytes

    @classmethod
    def of(cls, alphabet: _Alphabet, length: int, most: int) -> _Blocks | None:
        """None if more than ``most`` blocks differ, or the codes are no whole number of blocks."""
        base = len(alphabet.values)
        if alphabet.places.size % length:
            return None
        places = alphabet.places.astype(np.uint64).reshape(-1, length)
        keys = places[:, 0]  # numbers of ``length`` digits, in the same order as the blocks
        for digit in range(1, length):
            keys = keys * np.uint64(base) + places[:, digit]
        if base**length <= 4 * len(keys):
            blocks = _Alphabet.of(keys.astype(np.int64))
            different, counts, numbers = blocks.values, blocks.counts, blocks.places
        else:
            if len(np.unique(keys[: 4 * most])) > most:
                return None
            different, numbers, counts = np.unique(keys, return_inverse=True, return_counts=True)
        if len(different) > most:
            return None
        powers = np.array([base**digit for digit in reversed(range(length))], np.uint64)
        digits = different.astype(np.uint64)[:, np.newaxis] // powers % np.uint64(base)
        kind = np.int8 if len(different) <= 128 else np.int16
        return cls(alphabet.values.astype(np.int8)[digits.astype(np.int64)], counts, numbers.astype(kind))


def encode_blocks(
    codes: np.ndarray, lengths: Sequence[int], most: int = 4096
) -> tuple[Encoded, np.ndarray] | None:
    """A Huffman code of the numbers of blocks of codes. It can take less than one bit for a code.

    Args:
        lengths: the possible lengths of blocks. The length with the fewest bytes is used, the first of
            several.

    Returns:
        the encoded numbers of blocks (int8 up to 128 blocks, otherwise int16), and the int8 codebook
        [blocks, length]. None if for every length there are more than ``most`` different blocks, or the codes
        are no whole number of blocks.
    """
    alphabet = _Alphabet.of(codes)
    found = (_Blocks.of(alphabet, length, most) for length in lengths)
    best = min((each for each in found if each is not None), key=lambda each: each.size, default=None)
    return None if best is None else (encode_huffman(best.numbers), best.book)


def decode(encoded: Encoded, count: int) -> np.ndarray | None:
    """The first ``count`` codes that DECODE makes of it: int8, or int16 for a wide Huffman code.

    None if the bytes have no format that is known here.
    """
    decoders = {LUT: _decode_lut, PRUNING: _decode_pruning, HUFFMAN: _decode_huffman}
    data = encoded.ancillary
    # Every kind takes at least one bit for a code. Otherwise a file could claim codes that it does not have.
    if len(data) < 16 or data[0] not in decoders or data[4] != VERSION or count > 8 * len(encoded.stream):
        return None
    bits = np.unpackbits(np.frombuffer(encoded.stream, np.uint8))
    try:
        return decoders[data[0]](bits, data[5:16], data[16:], count)
    except (IndexError, ValueError):  # the data end too early
        return None


def _decode_lut(bits: np.ndarray, parameters: bytes, tables: bytes, count: int) -> np.ndarray:
    width = parameters[0] & 7
    planes = bits[: count * width].reshape(count, width)
    indices = planes @ (1 << np.arange(width - 1, -1, -1))
    return np.asarray(np.frombuffer(tables, np.int8)[indices])


def _decode_pruning(bits: np.ndarray, parameters: bytes, tables: bytes, count: int) -> np.ndarray:
    codes = np.zeros(count, np.int8)
    kept = np.nonzero(bits[:count])[0]
    codes[kept] = np.frombuffer(tables, np.int8)[: len(kept)]
    return codes


def _decode_huffman(bits: np.ndarray, parameters: bytes, tables: bytes, count: int) -> np.ndarray:
    """Follows the tables bit by bit, as :func:`encode_huffman` makes them."""
    if parameters[0] >> 4:
        raise ValueError("a first step of several bits")
    wide = parameters[0] & 1
    table = np.frombuffer(tables, "<u4" if wide else "<u2").tolist()
    leaf, mask = (1 << 31, (1 << 27) - 1) if wide else (1 << 15, (1 << 11) - 1)
    codes: list[int] = []
    at = 0
    for bit in bits.tolist():
        entry = table[at + bit]
        if not entry & leaf:
            at += bit + (entry & mask)
            continue
        codes.append(entry & (0xFFFF if wide else 0xFF))
        if len(codes) == count:
            return np.array(codes, np.uint16 if wide else np.uint8).view(np.int16 if wide else np.int8)
        at = 0
    raise ValueError("ends too early")
