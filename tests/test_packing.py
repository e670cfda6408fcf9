"""Every packing executes as int8 does, in the runtime that it is for: on random tensors, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from single_operator import SHAPES, in_litert, in_micro, single_operator

from lqconvert.tflite.editing import Needless, add_tensor, drop_flattening, reshape, strip
from lqconvert.tflite.encoding import entropy_bits, huffman_lengths
from lqconvert.tflite.flatbuffer import read, write
from lqconvert.tflite.graph import OPERANDS, Buffer, Model, OperatorCode, Quantization
from lqconvert.tflite.packing import (
    DECODE,
    INT8,
    Huffman,
    HuffmanBlocks,
    Lut,
    Narrow,
    Pruning,
    Sparse,
    assemble,
    kernels,
    only_for_micro,
    pack,
)
from lqconvert.tflite.targets import TFLM, target

RNG = np.random.default_rng(0)
EXECUTED = {
    "XNNPACK": (target("litert").packings, lambda *run: in_litert(*run), Needless()),
    "built-in": (
        target("litert", int4_convolutions=True).packings,
        lambda *run: in_litert(*run, "BUILTIN_WITHOUT_DEFAULT_DELEGATES"),
        Needless(),
    ),
    "TFLite Micro": (TFLM.packings, in_micro, TFLM.needless),
}


@st.composite
def tensors(draw, operator):
    """(codes, taps, per channel): few codes or many, hardly any zeros or almost only, down to one code."""
    k, i, o = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(1, 12))
    shape = SHAPES[operator](k, i, o)[0]
    largest = draw(st.sampled_from([0, 1, 2, 7, 15, 40, 127]))
    zeros = draw(st.sampled_from([0.0, 0.3, 0.8, 0.97]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    codes = rng.integers(-largest, largest + 1, shape) * (rng.random(shape) >= zeros)
    if draw(st.integers(0, 9)) == 0:
        codes = np.full(shape, largest)
    return codes.astype(np.int8), k, draw(st.booleans()), rng


# 4 operators x 3 sets of kernels x 60 tensors, each through every packing that takes it.
@pytest.mark.parametrize("runtime", EXECUTED)
@pytest.mark.parametrize("operator", OPERANDS)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_packed_tensors_execute_as_int8(operator, runtime, data):
    codes, k, per_channel, rng = data.draw(tensors(operator))
    packings, run, needless = EXECUTED[runtime]
    plain = single_operator(operator, codes, per_channel, k=k, rng=rng)
    (kernel,) = kernels(read(plain))
    graph = read(plain).main
    shape = graph.tensors[graph.inputs[0]].shape[1:]
    inputs = rng.integers(-128, 128, (2, *shape)).astype(np.int8)
    expected = run(plain, inputs)
    for packing in packings:
        encoded = packing.encode(kernel) if packing.fits(kernel) else None
        if encoded is None:
            continue
        packed = write(assemble(read(plain), [kernel], [encoded], needless))
        np.testing.assert_array_equal(run(packed, inputs), expected, err_msg=packing.name)


def dense(zeros: float, shape=(100, 300), sigma=3.0, seed=0) -> bytes:
    rng = np.random.default_rng(seed)
    codes = np.rint(rng.normal(0, sigma, shape)) * (rng.random(shape) >= zeros)
    return single_operator("FULLY_CONNECTED", codes.astype(np.int8), False, k=1, rng=rng)


@pytest.mark.parametrize(
    ("name", "zeros", "best"),
    [
        ("tflm", 0.0, "huffman"),
        ("tflm", 0.97, "huffman-blocks"),
        ("litert", 0.0, "int8"),
        ("litert", 0.97, "sparse"),
    ],
)
def test_the_smallest_is_chosen(name, zeros, best):
    plain, packings = dense(zeros), target(name).packings
    packed = pack(read(plain), packings)
    assert packed.packings == [best]
    assert len(packed.tflite) <= len(write(read(plain)))
    for packing in packings:
        only = pack(read(plain), [packing])
        assert len(packed.tflite) <= len(only.tflite)
    assert len(packed.tflite) == len(write(read(plain))) - 30_000 + sum(packed.bytes_of(0))


def test_four_bits_where_the_codes_fit():
    rng = np.random.default_rng(0)
    codes = rng.integers(-7, 8, (40, 60)).astype(np.int8)
    plain = single_operator("FULLY_CONNECTED", codes, True, k=1, rng=rng)
    packed = pack(read(plain), target("litert").packings)
    assert packed.packings == ["int4"]
    assert packed.bytes_of(0)[0] == codes.size // 2
    # TFLite Micro has no INT4 kernel of FULLY_CONNECTED for a scale a channel.
    assert "int4" not in pack(read(plain), TFLM.packings).packings


@pytest.mark.parametrize("per_channel", [False, True])
def test_what_decode_costs_and_what_huffman_reaches(per_channel):
    """Within 2% of the best code above 20,000 weights, with an overhead under 450 bytes."""
    rng = np.random.default_rng(0)
    codes = np.rint(rng.normal(0, 3, (100, 300))).astype(np.int8)
    plain = single_operator("FULLY_CONNECTED", codes, per_channel, k=1, rng=rng)
    packed = pack(read(plain), [Huffman()])
    assert packed.packings == ["huffman"]
    counts = np.unique(codes, return_counts=True)[1]
    stored, beside = packed.bytes_of(0)
    assert entropy_bits(codes) / 8 <= stored <= 1.02 * np.sum(counts * huffman_lengths(counts)) / 8
    assert 0 < beside < 450


def test_forbidden_packings_give_way():
    plain = read(dense(0.97))
    names, best = [packing.name for packing in TFLM.packings], []
    while (packed := pack(plain, TFLM.packings, {"": best})).packings != ["int8"]:
        best.append(packed.packings[0])
    assert set(best) <= set(names)
    assert best[0] == "huffman-blocks"
    sizes = [len(pack(plain, TFLM.packings, {"": best[:n]}).tflite) for n in range(len(best) + 1)]
    assert sizes == sorted(sizes)


def test_a_kernel_of_two_consumers_is_not_decoded():
    model = read(dense(0.97, sigma=1.0))
    model.main.operators *= 2
    packed = pack(model, TFLM.packings)
    assert packed.kernels[0].consumers == 2
    assert packed.packings == ["int4"]


def test_files_hold_nothing_twice_and_are_aligned():
    plain = dense(0.5)
    model = read(plain)
    twice = Buffer.of(model.main.tensors[1].buffer.data)
    model.buffers.append(twice)
    unused = add_tensor(model, "INT8", (1,))
    model.main.tensors[unused].buffer = twice
    assert len(write(model)) == len(plain)
    codes = kernels(read(plain))[0].codes.tobytes()
    assert plain.index(codes) % 16 == 0


def test_strip_keeps_what_programs_look_for_unless_told():
    model = read(dense(0.0))
    graph = model.main
    for number, tensor in enumerate(graph.tensors):
        tensor.name = b"tensor %d" % number
    strip(model)
    named = [tensor.name for tensor in graph.tensors if tensor.name]
    assert named == [graph.tensors[graph.inputs[0]].name, graph.tensors[graph.outputs[0]].name]
    strip(model, Needless(signature=True))
    assert not any(tensor.name for tensor in graph.tensors)


def flattened_dense(keeps_dims: bool = False, also_read: bool = False, scale: float = 0.05) -> Model:
    """RESHAPE of [1, 3, 4] to [1, 12], in front of a FULLY_CONNECTED."""
    model = read(single_operator("FULLY_CONNECTED", np.ones((2, 12), np.int8), False, k=4, rng=RNG))
    (operator,) = model.main.operators
    operator.set_option("keepNumDims", keeps_dims)
    flat = operator.inputs[0]
    quantized = Quantization.one(scale, model.main.tensors[flat].zero_point)
    image = add_tensor(model, "INT8", (1, 3, 4), quantized)
    model.main.operators = [reshape(model, image, flat), operator]
    model.main.inputs = (image,)
    model.main.outputs += (flat,) if also_read else ()
    return model


@pytest.mark.parametrize(
    ("model", "left"),
    [
        (flattened_dense(), ["FULLY_CONNECTED"]),
        (flattened_dense(keeps_dims=True), ["RESHAPE", "FULLY_CONNECTED"]),
        (flattened_dense(also_read=True), ["RESHAPE", "FULLY_CONNECTED"]),
        (flattened_dense(scale=0.06), ["RESHAPE", "FULLY_CONNECTED"]),
    ],
)
def test_a_dense_layer_takes_its_input_in_any_shape(model, left):
    lean = model.copy()
    drop_flattening(lean)
    assert [each.name for each in lean.main.operators] == left
    inputs = RNG.integers(-128, 128, (5, 3, 4)).astype(np.int8)
    for run in (in_micro, in_litert) if lean.main.operators[1:] == [] else ():
        before, after = (run(write(each), inputs) for each in (model, lean))
        np.testing.assert_array_equal(before, after)


def test_one_zero_point_is_enough_for_micro():
    codes = RNG.integers(-9, 9, (6, 3, 3, 4)).astype(np.int8)
    model = read(single_operator("CONV_2D", codes, True, k=3, rng=RNG))
    lean = model.copy()
    strip(lean, Needless(zero_points=True, versions=True))
    kernel = lean.main.tensors[lean.main.operators[0].inputs[1]]
    assert (len(kernel.scales), kernel.zero_points.tolist()) == (6, [0])
    assert (only_for_micro(model), only_for_micro(read(write(lean)))) == (False, True)
    assert [(each.name, each.version) for each in read(write(lean)).codes] == [("CONV_2D", 1)]
    inputs = RNG.integers(-128, 128, (3, 7, 7, 4)).astype(np.int8)
    np.testing.assert_array_equal(in_micro(write(model), inputs), in_micro(write(lean), inputs))


@pytest.mark.parametrize("numbers", [(9, 9), (9, 0), (0, 9)])
def test_an_operator_needs_one_of_its_two_numbers(numbers):
    model = read(single_operator("FULLY_CONNECTED", np.ones((2, 4), np.int8), False, k=1, rng=RNG))
    (operator,) = model.main.operators
    operator.code = OperatorCode(*numbers, 5)
    model.codes = [operator.code, OperatorCode(9, 9, 3)]
    strip(model, Needless(versions=True))
    made = read(write(model))
    assert [(code.name, code.builtin, code.version) for code in made.codes] == [("FULLY_CONNECTED", 0, 1)]


def test_equal_settings_and_scales_are_written_once():
    model = read(single_operator("FULLY_CONNECTED", np.ones((4, 4), np.int8), False, k=1, rng=RNG))
    alone = len(write(model))
    (operator,) = model.main.operators
    again = replace(operator, inputs=(operator.outputs[0], *operator.inputs[1:]), outputs=())
    sizes = []
    for scale in (0.1, 0.3):  # the first one equals that of the output
        other = model.copy()
        quantized = replace(model.main.tensors[operator.outputs[0]].quantization)
        quantized = replace(quantized, scales=np.array([scale], np.float32), stored=None)
        index = add_tensor(other, "INT8", (1, 4), quantized)
        other.main.operators.append(replace(again, outputs=(index,)))
        other.main.outputs = (index,)
        made = read(write(other)).main
        assert [each.option("fusedActivationFunction") for each in made.operators] == [0, 0]
        assert made.tensors[made.outputs[0]].scales == [np.float32(scale)]
        sizes.append(len(write(other)) - alone)
    assert sizes[1] - sizes[0] >= 16  # a table


def test_decode_stands_right_in_front_of_its_consumer():
    """Its output may be in a separate memory, which the next DECODE uses again."""
    for packing in (Huffman(), Lut(), Pruning(), HuffmanBlocks()):
        plain = read(dense(0.9))
        (kernel,) = kernels(plain)
        operators = read(write(assemble(plain, [kernel], [packing.encode(kernel)]))).main.operators
        assert operators[0].code.custom.decode() == DECODE
        assert operators[0].outputs[0] in operators[1].inputs
        assert operators[-1].name == "FULLY_CONNECTED"


def test_sparse_and_narrow_are_what_they_say():
    plain = dense(0.9, sigma=1.0)
    (kernel,) = kernels(read(plain))
    sparse = Sparse().encode(kernel)
    assert sparse.axis in (0, 1)
    kept = np.count_nonzero(kernel.codes)
    assert kept == len(sparse.codes) == len(sparse.indices) == sparse.segments[-1]
    assert Narrow(bits=2).fits(kernel) == (kernel.codes.min() >= -2 and kernel.codes.max() <= 1)
    assert INT8.encode(kernel).size == kernel.codes.size
