"""Encoders against decoders that read the formats as TFLite Micro's kernels do, one bit after the other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lqconvert.tflite import encoding

METADATA = 16
CODES = arrays(np.int8, st.integers(1, 300), elements=st.integers(-127, 127)) | arrays(
    np.int8, st.integers(1, 300), elements=st.sampled_from([0, 0, 0, 0, 0, 1, -1, 7])
)


def bits_of(data: bytes) -> np.ndarray:
    return np.unpackbits(np.frombuffer(data, np.uint8))


def decode_huffman(encoded: encoding.Encoded, count: int, dtype) -> np.ndarray:
    """DecodeStateHuffman: a root table, then tables an offset ahead, until an entry has the top bit set."""
    assert encoded.ancillary[:5] == bytes((encoding.HUFFMAN, 1, 0, 0, encoding.VERSION))
    wide = encoded.ancillary[5] & 1
    root_bits = (encoded.ancillary[5] >> 4) + 1
    table = np.frombuffer(encoded.ancillary[METADATA:], "<u4" if wide else "<u2").astype(np.int64)
    top, shift, mask = (31, 27, 0x7FFFFFF) if wide else (15, 11, 0x7FF)
    bits, place, found = bits_of(encoded.stream), 0, []
    for _ in range(count):
        width, at = root_bits, 0
        while True:
            index = int("".join(map(str, bits[place : place + width])), 2)
            place += width
            entry = int(table[at + index])
            if entry >> top:
                place -= width - (entry >> shift & 15)
                break
            at += index + (entry & mask)
            width = (entry >> shift & 15) + 1
        found.append(entry & (0xFFFF if wide else 0xFF))
    assert place <= len(bits) - 32, "the decoder reads a word ahead"
    return np.array(found, np.uint16).astype(np.uint8 if dtype == np.int8 else np.uint16).view(dtype)


@given(CODES)
def test_huffman(codes):
    encoded = encoding.encode_huffman(codes)
    np.testing.assert_array_equal(decode_huffman(encoded, codes.size, np.int8), codes)
    assert len(encoded.stream) % 4 == 0


@given(arrays(np.int16, st.integers(1, 200), elements=st.integers(0, 4000)))
def test_huffman_of_wide_symbols(numbers):
    encoded = encoding.encode_huffman(numbers)
    np.testing.assert_array_equal(decode_huffman(encoded, numbers.size, np.int16), numbers)


@given(st.lists(st.integers(1, 10_000), min_size=2, max_size=60))
def test_huffman_lengths_are_optimal(counts):
    counts = np.array(counts)
    lengths = encoding.huffman_lengths(counts)
    assert np.sum(2.0**-lengths) == 1  # Kraft: a full tree
    shares = counts / counts.sum()
    entropy = -np.sum(shares * np.log2(shares))
    assert entropy - 1e-9 <= np.sum(shares * lengths) < entropy + 1
    # No other order of the same lengths costs less: rarer values have longer words.
    assert np.all(np.diff(lengths[np.argsort(-counts, kind="stable")]) >= 0) or np.sum(
        counts * lengths
    ) == np.sum(np.sort(counts)[::-1] * np.sort(lengths))


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9])
def test_huffman_stream_is_as_long_as_the_best_code(zeros):
    rng = np.random.default_rng(0)
    codes = np.rint(rng.normal(0, 3, 30_000) * (rng.random(30_000) >= zeros)).astype(np.int8)
    counts = np.unique(codes, return_counts=True)[1]
    best = np.sum(counts * encoding.huffman_lengths(counts)) / 8
    assert best <= len(encoding.encode_huffman(codes).stream) <= 1.02 * best


@given(CODES)
def test_lut(codes):
    encoded = encoding.encode_lut(codes)
    values = len(np.unique(codes))
    if encoded is None:
        assert values > 128
        return
    width = encoded.ancillary[5]
    assert encoded.ancillary[6] == 0  # the stride: channels share the table
    indices = bits_of(encoded.stream)[: codes.size * width].reshape(-1, width) @ (1 << np.arange(width))[::-1]
    table = np.frombuffer(encoded.ancillary[METADATA:], np.int8)
    np.testing.assert_array_equal(table[indices], codes)


@given(CODES)
def test_pruning(codes):
    encoded = encoding.encode_pruning(codes)
    found = np.zeros_like(codes)
    kept = bits_of(encoded.stream)[: codes.size].astype(bool)
    found[kept] = np.frombuffer(encoded.ancillary[METADATA:], np.int8)
    np.testing.assert_array_equal(found, codes)


@given(CODES, st.integers(2, 6))
def test_blocks(codes, length):
    encoded = encoding.encode_blocks(codes, [length])
    if codes.size % length:
        assert encoded is None
        return
    stream, book = encoded
    dtype = np.int8 if len(book) <= 128 else np.int16
    numbers = decode_huffman(stream, codes.size // length, dtype)
    assert numbers.min() >= 0  # GATHER's indices
    np.testing.assert_array_equal(book[numbers].ravel(), codes)


def test_too_many_blocks():
    rng = np.random.default_rng(0)
    assert encoding.encode_blocks(rng.integers(-99, 99, 4000).astype(np.int8), [2], most=100) is None


@pytest.mark.parametrize("bits", [2, 4])
@given(data=st.data())
def test_narrow_codes_come_low_bits_first(bits, data):
    half = 1 << (bits - 1)
    codes = data.draw(arrays(np.int8, st.integers(1, 50), elements=st.integers(-half, half - 1)))
    packed = encoding.pack_bits(codes, bits)
    assert len(packed) == -(-codes.size * bits // 8)
    shifts = np.arange(0, 8, bits)
    unsigned = ((packed[:, np.newaxis] >> shifts) & ((1 << bits) - 1)).ravel()[: codes.size].astype(int)
    np.testing.assert_array_equal(np.where(unsigned >= half, unsigned - 2 * half, unsigned), codes)


def test_entropy():
    assert encoding.entropy_bits(np.zeros(9, np.int8)) == 0
    assert encoding.entropy_bits(np.array([0, 1, 2, 3], np.int8)) == 8


ENCODERS = [encoding.encode_huffman, encoding.encode_pruning, encoding.encode_lut]


@pytest.mark.parametrize("encode", ENCODERS)
@given(codes=CODES)
def test_what_is_decoded_is_what_was_encoded(encode, codes):
    encoded = encode(codes)
    if encoded is not None:
        np.testing.assert_array_equal(encoding.decode(encoded, codes.size), codes)


@pytest.mark.parametrize("encode", ENCODERS)
@given(codes=CODES, kept=st.floats(0, 1), stream=st.binary(max_size=40))
def test_damaged_codes_decode_to_nothing_or_as_many(encode, codes, kept, stream):
    encoded = encode(codes)
    if encoded is None:
        return
    ancillary = encoded.ancillary[: int(kept * len(encoded.ancillary))]
    for damaged in (encoding.Encoded(encoded.stream, ancillary), encoding.Encoded(stream, encoded.ancillary)):
        decoded = encoding.decode(damaged, codes.size)
        assert decoded is None or decoded.shape == (codes.size,)


@given(arrays(np.int16, st.integers(1, 200), elements=st.integers(0, 4000)))
def test_wide_symbols_are_decoded(numbers):
    np.testing.assert_array_equal(encoding.decode(encoding.encode_huffman(numbers), numbers.size), numbers)


@pytest.mark.parametrize("bits", [2, 4])
@given(data=st.data())
def test_packed_bits_are_unpacked(bits, data):
    half = 1 << (bits - 1)
    codes = data.draw(arrays(np.int8, st.integers(1, 50), elements=st.integers(-half, half - 1)))
    unpacked = encoding.unpack_bits(encoding.pack_bits(codes, bits), bits)
    np.testing.assert_array_equal(unpacked[: codes.size], codes)
