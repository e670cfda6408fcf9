"""Codes as the bytes that a runtime decodes: free of TensorFlow and of .tflite, integers in, bytes out.

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
#: Of DECODE's format and of each kind's, which its kernels check.
VERSION = 1


@dataclass(frozen=True)
class Encoded:
    """What one output of a DECODE operator reads: the encoded tensor and its ancillary data."""

    stream: bytes
    ancillary: bytes

    @property
    def size(self) -> int:
        return len(self.stream) + len(self.ancillary)


def _ancillary(kind: int, parameters: bytes, tables: bytes) -> bytes:
    """16 bytes of metadata (kind, DECODE's version, the kind's version, parameters), then the tables."""
    return bytes((kind, VERSION, 0, 0, VERSION)) + parameters.ljust(11, b"\0") + tables


def entropy_bits(codes: np.ndarray) -> float:
    """The empirical entropy of all codes together: what no code of single weights goes below.

    >>> entropy_bits(np.array([0, 0, 1, -1]))
    6.0
    """
    counts = np.unique(codes, return_counts=True)[1]
    return float(-np.sum(counts * np.log2(counts / counts.sum())))


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Two or four codes a byte (uint8), the first in the low bits: INT4 and INT2 tensors of TFLite.

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
    """The int8 codes in the bytes of :func:`pack_bits`, and those that fill up the last byte."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes: np.ndarray = (packed.astype(np.uint8)[:, np.newaxis] >> shifts) << np.uint8(8 - bits)
    return np.asarray(codes.ravel().view(np.int8) >> (8 - bits))


@dataclass(frozen=True, eq=False)
class _Alphabet:
    """The different values of an array.

    Attributes:
        values: in rising order, of the array's type.
        counts: how often each occurs.
        places: int64, for each element of the array the place of its value among these.
    """

    values: np.ndarray
    counts: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray) -> _Alphabet:
        """As np.unique does, which sorts: values that lie close together are counted."""
        low = int(array.min())
        shifted = array.ravel().astype(np.int64) - low
        counts = np.bincount(shifted)
        present = np.flatnonzero(counts)
        places = np.zeros(len(counts), np.int64)
        places[present] = np.arange(len(present))
        return cls((present + low).astype(array.dtype), counts[present], places[shifted])


def encode_lut(codes: np.ndarray) -> Encoded | None:
    """Indices of 1 to 7 bits into one table of values, MSB first; None for more than 128 values.

    The table's stride from channel to channel is 0: a per-channel tensor has the same for all.
    """
    alphabet = _Alphabet.of(codes)
    bits = max(1, int(len(alphabet.values) - 1).bit_length())
    if bits > 7:
        return None
    planes = np.unpackbits(alphabet.places.astype(np.uint8)[:, np.newaxis], axis=1)
    stream = np.packbits(planes[:, 8 - bits :]).tobytes()
    return Encoded(stream, _ancillary(LUT, bytes((bits, 0)), alphabet.values.astype(np.int8).tobytes()))


def encode_pruning(codes: np.ndarray) -> Encoded:
    """A bitmap of what is not zero, MSB first, and the values that are not."""
    flat = codes.ravel()
    bitmap = np.packbits(flat != 0).tobytes()
    return Encoded(bitmap, _ancillary(PRUNING, b"", flat[flat != 0].astype(np.int8).tobytes()))


def encode_huffman(values: np.ndarray) -> Encoded:
    """A canonical Huffman code of int8 or int16 values, MSB first, and the table that decodes it.

    The table is a binary tree, a bit a step: of two entries less than two for each value, which have 16 bits
    (32 for int16 values), and the decoder never puts bits back.
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
    # A leaf: the top bit set, four bits of its length at this level, which is 1, and the value.
    leaves = [1 << bits - 1 | 1 << bits - 5 | int(symbol) & mask for symbol in symbols]
    table = _tree(list(zip(words.tolist(), lengths.tolist(), leaves, strict=True)))
    stream = _bits(words[alphabet.places], lengths[alphabet.places])
    stream = stream.ljust(_stream_bytes(8 * len(stream)), b"\0")
    parameters = bytes((wide,))  # the upper half: bits of the first step, less one
    return Encoded(stream, _ancillary(HUFFMAN, parameters, np.array(table, f"<u{bits // 8}").tobytes()))


def _stream_bytes(bits: int) -> int:
    """Of a Huffman code of so many bits: the decoder reads words of 32 bits, and one ahead."""
    return 4 * -(-bits // 32) + 4


def _huffman_bytes(counts: np.ndarray, wide: bool) -> int:
    """How many bytes :func:`encode_huffman` takes for values that occur so often."""
    bits = int(np.sum(counts * huffman_lengths(counts)))
    entries = max(2, 2 * len(counts) - 2)
    return _stream_bytes(bits) + len(_ancillary(HUFFMAN, b"", b"")) + entries * (4 if wide else 2)


def huffman_lengths(counts: np.ndarray) -> np.ndarray:
    """The length in bits of each value's word in an optimal prefix code; 1 where there is one value."""
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
    """The table for the words (bits, length, leaf) that share a prefix, which is cut off them.

    Two entries, for a next bit of 0 and 1: the leaf, or the way from the entry to the table to go on in.
    """
    table = [0, 0]
    for bit in (0, 1):
        # Where there is one value only, one of the bits does not occur.
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
    if lengths.max() > 32:  # of millions of values, the rarest may have such
        words = np.stack([words >> 32, words & 0xFFFFFFFF], axis=1).ravel()
        lengths = np.stack([np.maximum(lengths - 32, 0), np.minimum(lengths, 32)], axis=1).ravel()
    ends = np.cumsum(lengths)
    # Each word lies in 64 bits that begin at a multiple of 32. Those that begin at the same one are joined.
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
    """Codes as blocks of one length.

    Attributes:
        book: the different blocks, int8 [blocks, length], in rising order.
        counts: how often each occurs.
        numbers: which each block is: int8 where there are 128 at most, else int16.
    """

    book: np.ndarray
    counts: np.ndarray
    numbers: np.ndarray

    @property
    def size(self) -> int:
        """The bytes of the Huffman code of the numbers, and of the book."""
        return _huffman_bytes(self.counts, self.numbers.dtype == np.int16) + self.book.nbytes

    @classmethod
    def of(cls, alphabet: _Alphabet, length: int, most: int) -> _Blocks | None:
        """None where there are more than ``most`` different ones, or the codes do not come out even."""
        base = len(alphabet.values)
        if alphabet.places.size % length:
            return None
        places = alphabet.places.astype(np.uint64).reshape(-1, length)
        keys = places[:, 0]  # numbers of ``length`` digits, which rise as blocks do
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
    """A Huffman code of the numbers of whole blocks of codes: it can spend less than a bit a code.

    Args:
        lengths: of blocks. The one is taken that needs the fewest bytes, of several the first.

    Returns:
        the code of the blocks' numbers (int8 where there are 128 at most, else int16), and the int8 codebook
        [numbers, length]; None where with every length there are more than ``most`` different blocks, or the
        codes do not come out even.
    """
    alphabet = _Alphabet.of(codes)
    found = (_Blocks.of(alphabet, length, most) for length in lengths)
    best = min((each for each in found if each is not None), key=lambda each: each.size, default=None)
    return None if best is None else (encode_huffman(best.numbers), best.book)


def decode(encoded: Encoded, count: int) -> np.ndarray | None:
    """So many codes as DECODE makes them (int8, or int16 of a wide Huffman code), of whichever kind.

    None where these are not the bytes of a format that is known here.
    """
    decoders = {LUT: _decode_lut, PRUNING: _decode_pruning, HUFFMAN: _decode_huffman}
    data = encoded.ancillary
    # No kind spends less than a bit on a code: others would have memory taken for codes that are not there.
    if len(data) < 16 or data[0] not in decoders or data[4] != VERSION or count > 8 * len(encoded.stream):
        return None
    bits = np.unpackbits(np.frombuffer(encoded.stream, np.uint8))
    try:
        return decoders[data[0]](bits, data[5:16], data[16:], count)
    except (IndexError, ValueError):  # ends too early
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
    """From table to table, a bit a step: that is how :func:`encode_huffman` makes them."""
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
