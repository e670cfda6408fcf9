"""Files are verified in their target's runtime before they are written, and hold their limits."""

import dataclasses
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from single_operator import in_micro, single_operator

import lqconvert.runtime.verify as verifying
from lqconvert import BudgetMissed, LqError
from lqconvert.errors import CannotRun
from lqconvert.runtime.tflm import invoke_micro, run_micro
from lqconvert.runtime.verify import Limits, execute, verify
from lqconvert.tflite import dead_channels
from lqconvert.tflite.c_source import c_sources, operators, resolver_lines, with_margin
from lqconvert.tflite.flatbuffer import read, write
from lqconvert.tflite.graph import OperatorCode
from lqconvert.tflite.packing import Huffman, HuffmanBlocks, Lut, kernels, name_kernels
from lqconvert.tflite.targets import LITERT, RUNTIMES, TFLM, target

RNG = np.random.default_rng(0)
INPUTS = RNG.integers(-128, 128, (300, 300)).astype(np.int8)


@pytest.fixture(scope="module")
def dense() -> bytes:
    """A FULLY_CONNECTED file of 100 x 300 weights, most of them zero."""
    rng = np.random.default_rng(0)
    codes = np.rint(rng.normal(0, 3, (100, 300))) * (rng.random((100, 300)) >= 0.9)
    return single_operator("FULLY_CONNECTED", codes.astype(np.int8), False, k=1, rng=rng)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_file_is_proven_and_smaller(name, dense):
    tflite, verified = verify(dense, RUNTIMES[name], INPUTS, ["only"], Limits())
    assert verified.size == len(tflite) < 0.4 * len(dense)
    assert verified.examples == 256
    assert max(verified.deviation.values()) == 0
    assert RUNTIMES[name].package in verified.runtime
    (row,) = verified.kernels
    assert (row.layer, row.int8_bytes) == ("only", 30_000)
    assert row.packing != "int8"
    assert verified.refused == []
    assert (verified.arena_bytes is None) == (name == "litert")


class Broken(Huffman):
    """A Huffman code of codes that are one off: smaller than all that are right, and wrong."""

    SIZE = 1

    def encode(self, kernel):
        wrong = kernel.codes.copy()
        wrong[wrong != 0] += 1
        stored = super().encode(dataclasses.replace(kernel, codes=wrong))
        return dataclasses.replace(stored, size=self.SIZE or stored.size)


def test_what_computes_something_else_gives_way(dense):
    packings = (Broken(), Lut())
    tflite, verified = verify(dense, dataclasses.replace(TFLM, packings=packings), INPUTS, ["only"], Limits())
    assert [row.packing for row in verified.kernels] == ["lut"]
    assert "huffman for 'only': TFLite Micro computes up to" in verified.refused[0]
    np.testing.assert_array_equal(in_micro(tflite, INPUTS[:20]), in_micro(dense, INPUTS[:20]))


def network(rng, unread=0) -> tuple[bytes, np.ndarray]:
    """Two FULLY_CONNECTED operators, a channel between them dead and some inputs unread, and inputs."""
    first = np.rint(rng.normal(0, 3, (60, 300))) * (rng.random((60, 300)) >= 0.9)
    first[7], first[:, :unread] = 0, 0
    one = read(single_operator("FULLY_CONNECTED", first.astype(np.int8), False, k=1, rng=rng))
    second = np.rint(rng.normal(0, 3, (50, 60)))
    two = read(single_operator("FULLY_CONNECTED", second.astype(np.int8), False, k=1, rng=rng))
    graph, shift = one.main, len(one.main.tensors)
    (operator,) = two.main.operators
    operator.code = graph.operators[0].code
    operator.inputs = (graph.outputs[0], *(index + shift for index in operator.inputs[1:]))
    operator.outputs = tuple(index + shift for index in operator.outputs)
    graph.tensors += two.main.tensors
    between = graph.tensors[graph.outputs[0]]
    between.quantization = dataclasses.replace(between.quantization, scales=np.array([0.05], np.float32))
    graph.operators.append(operator)
    graph.outputs = operator.outputs
    return write(one), INPUTS


def test_one_culprit_of_several_kernels():
    """One packing stores the first layer wrongly, so only the first layer loses it."""
    tflite, inputs = network(np.random.default_rng(0))

    class WrongForOne(Broken):
        SIZE = None

        def encode(self, kernel):
            return super().encode(kernel) if kernel.name == "first" else Huffman.encode(self, kernel)

    target = dataclasses.replace(TFLM, packings=(WrongForOne(), Lut()))
    _, verified = verify(tflite, target, inputs, ["first", "second"], Limits())
    assert [(row.layer, row.packing) for row in verified.kernels] == [("first", "lut"), ("second", "huffman")]
    assert verified.kernels[0].shape == (59, 300)  # without the dead channel


@pytest.mark.parametrize(
    ("step", "said"),
    [("remove_dead_channels", "removing dead channels: "), ("gather_inputs", "gathering inputs: ")],
)
def test_removal_and_gathering_have_to_be_exact(step, said, monkeypatch):
    """If they are not, they are not used, and the report says so."""
    tflite, inputs = network(np.random.default_rng(0), unread=150)
    exact = getattr(dead_channels, step)

    def wrong(model, *rest):
        wrong = exact(model, *rest).copy()
        kernel = kernels(wrong)[0]
        codes = np.where(kernel.codes == 0, 0, kernel.codes + 1).astype(np.int8)
        wrong.main.tensors[kernel.tensor].set_values(codes)
        return wrong

    only_int8 = dataclasses.replace(TFLM, packings=())
    _, right = verify(tflite, only_int8, inputs, ["first", "second"], Limits())
    monkeypatch.setattr(verifying, step, wrong)
    _, verified = verify(tflite, only_int8, inputs, ["first", "second"], Limits())
    assert right.refused == []
    assert said in verified.refused[0]
    assert verified.size > right.size
    assert max(verified.deviation.values()) == 0


def test_layers_are_known_by_name_whatever_goes():
    tflite, inputs = network(np.random.default_rng(0))
    model = read(tflite)
    assert [kernel.name for kernel in kernels(model)] == ["", ""]
    name_kernels(model, ["first", "second"])
    named = [kernel.name for kernel in kernels(read(write(model)))]
    assert named == ["first", "second"]
    _, verified = verify(tflite, LITERT, inputs, ["first", "second"], Limits())
    assert [row.layer for row in verified.kernels] == ["first", "second"]


def test_int4_convolutions_on_request():
    """Exact in LiteRT's own kernels; XNNPACK leaves them to others, a step off at most here."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-7, 8, (16, 3, 3, 16)).astype(np.int8)
    plain = single_operator("CONV_2D", codes, True, k=3, rng=rng)
    inputs = rng.integers(-128, 128, (256, 7, 7, 16)).astype(np.int8)
    _, verified = verify(plain, target("litert", int4_convolutions=True), inputs, ["only"], Limits())
    assert [row.packing for row in verified.kernels] == ["int4"]
    assert verified.deviation["built-in"] == 0
    assert verified.deviation["XNNPACK"] <= 1
    _, verified = verify(plain, LITERT, inputs, ["only"], Limits())
    assert [row.packing for row in verified.kernels] == ["int8"]


@pytest.mark.slow
def test_memory_is_kept_to(dense):
    """Decoded kernels are in the arena. With a smaller limit, packings that need no arena are chosen."""
    target = dataclasses.replace(TFLM, packings=(Huffman(), HuffmanBlocks()))
    _, free = verify(dense, target, INPUTS, ["only"], Limits())
    _, plain = verify(dense, dataclasses.replace(TFLM, packings=()), INPUTS, ["only"], Limits())
    assert plain.arena_bytes < 30_000 < free.arena_bytes
    _, some = verify(dense, target, INPUTS, ["only"], Limits(max_ram=free.arena_bytes - 1))
    assert plain.size > some.size > free.size
    assert some.arena_bytes < free.arena_bytes
    assert "bytes of arena" in some.refused[0]
    _, least = verify(dense, target, INPUTS, ["only"], Limits(max_ram=plain.arena_bytes))
    assert [row.packing for row in least.kernels] == ["int8"]
    with pytest.raises(BudgetMissed) as missed:
        verify(dense, target, INPUTS, ["only"], Limits(max_ram=plain.arena_bytes - 1000))
    assert f"the most economical one needs {plain.arena_bytes:,} bytes" in str(missed.value)


def test_a_packing_has_to_be_worth_its_memory():
    """Huffman words save 1% of the file if a kernel has 190 values that are equally frequent."""
    codes = RNG.integers(-95, 95, (100, 300)).astype(np.int8)
    plain = single_operator("FULLY_CONNECTED", codes, False, k=1, rng=RNG)
    arenas = {}
    for prefer, packing in ((None, "int8"), ("flash", "huffman"), ("ram", "int8"), ("latency", "int8")):
        _, verified = verify(plain, target("tflm", prefer=prefer), INPUTS, ["only"], Limits())
        (row,) = verified.kernels
        assert row.packing == packing
        assert row.unpacked_bytes == (0 if packing == "int8" else 30_000)
        arenas[prefer] = verified.arena_bytes
    assert arenas["flash"] > 30_000 > arenas[None] == arenas["ram"]


@pytest.mark.parametrize("prefer", ["ram", "latency"])
def test_what_is_preferred_is_no_limit(prefer, dense):
    """If nothing is as good as int8, as here, int8 is taken, however long a second measurement takes."""
    _, verified = verify(dense, target("tflm", prefer=prefer), INPUTS, ["only"], Limits())
    assert [row.packing for row in verified.kernels] == ["int8"]
    assert verified.arena_bytes <= verified.int8_arena_bytes
    assert (prefer == "latency") == (verified.refused == [])  # nothing is tried that takes time
    with pytest.raises(LqError, match="prefer 'size': not one of flash, ram, latency"):
        target("tflm", prefer="size")


def test_the_arena_that_is_reported_is_enough(dense):
    run = run_micro(dense, INPUTS[:1])
    assert run.arena_bytes % 16 == 0
    np.testing.assert_array_equal(run.outputs, in_micro(dense, INPUTS[:1]))
    np.testing.assert_array_equal(run.outputs, invoke_micro(dense, INPUTS[:1]))


@pytest.mark.slow
def test_latency_is_kept_to(dense):
    """Decoding 30,000 weights takes several times as long as multiplying them."""
    target = dataclasses.replace(TFLM, packings=(Huffman(),))
    _, free = verify(dense, target, INPUTS, ["only"], Limits())
    assert free.latency_s > 2.5 * free.int8_latency_s
    _, fast = verify(dense, target, INPUTS, ["only"], Limits(max_latency=1.2))
    assert [row.packing for row in fast.kernels] == ["int8"]
    assert "times int8's latency" in fast.refused[-1]


def unknown_to_micro(tflite: bytes) -> bytes:
    model, unknown = read(tflite), schema.BuiltinOperator.LOCAL_RESPONSE_NORMALIZATION
    (model.main.operators[0].code,) = model.codes = [OperatorCode(unknown, unknown)]
    return write(model)


def test_a_file_that_cannot_run_is_refused_with_the_reason(dense):
    with pytest.raises(LqError, match=r"TFLite Micro cannot run the file: .*LOCAL_RESPONSE_NORMALIZATION"):
        verify(unknown_to_micro(dense), TFLM, INPUTS, ["only"], Limits())
    with pytest.raises(LqError, match="LiteRT cannot run the file"):
        execute(unknown_to_micro(dense), LITERT, INPUTS[:1])


def test_a_crash_of_the_interpreter_takes_only_itself_down(dense):
    """A kernel with fewer bytes than its shape needs would be read past its end."""
    model = read(dense)
    model.main.tensors[1].shape = (1 << 14, 300)
    model.main.tensors[3].shape = (1, 1 << 14)
    with pytest.raises(LqError, match="TFLite Micro cannot run the file"):
        execute(write(model), TFLM, INPUTS[:1])


def test_what_takes_too_long_is_not_tried_with_more_memory(dense, monkeypatch):
    tries = []

    def late(*arguments, timeout):
        tries.append(arguments)
        raise subprocess.TimeoutExpired(arguments, timeout)

    monkeypatch.setattr("lqconvert.runtime.tflm.run_module", late)
    with pytest.raises(CannotRun, match="did not finish in"):
        execute(dense, TFLM, INPUTS[:1])
    assert len(tries) == 1


def test_symbols_are_ascii(dense):
    texts = c_sources(dense, Path("modèle.tflite"), 1000).values()
    assert all("g_mod_le" in text and "g_modè" not in text for text in texts)


def test_sources_compile_and_hold_the_file(dense, tmp_path):
    path = tmp_path / "my-model.2.tflite"
    tflite, verified = verify(dense, TFLM, INPUTS, ["only"], Limits())
    for source, text in c_sources(tflite, path, verified.arena_bytes).items():
        source.write_text(text)
    graph = read(tflite).main
    output = graph.tensors[graph.outputs[0]]
    main = tmp_path / "main.cc"
    main.write_text(
        f"""
        #include <cstdio>
        #include "my-model.2.h"
        static_assert(g_my_model_2_len == {len(tflite)}, "length");
        static_assert(g_my_model_2_arena_bytes == {with_margin(verified.arena_bytes)}, "arena");
        static_assert(g_my_model_2_output_zero_point == {output.zero_point}, "zero point");
        static_assert(g_my_model_2_output_scale == {float(output.scales[0])!r}f, "scale");
        int main() {{
          if (reinterpret_cast<uintptr_t>(g_my_model_2) % 16) return 1;
          return fwrite(g_my_model_2, 1, g_my_model_2_len, stdout) != g_my_model_2_len;
        }}
        """
    )
    program = tmp_path / "program"
    sources = [str(main), str(path.with_suffix(".cc"))]
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Werror", *sources, "-o", str(program)], check=True)
    assert subprocess.run([str(program)], check=True, capture_output=True).stdout == tflite


def test_sources_number_several_outputs(dense, tmp_path):
    model = read(dense)
    graph = model.main
    graph.outputs = (graph.operators[0].outputs[0], *graph.outputs)
    graph.tensors[graph.outputs[0]].name = b"a\n#error"
    header = c_sources(write(model), tmp_path / "m.tflite", None)[tmp_path / "m.h"]
    assert re.findall(r"g_m_(\w+)_scale", header) == ["input", "output_0", "output_1"]
    assert "a_n_error" in header


def test_resolver_names_every_operator(dense):
    tflite, _ = verify(dense, TFLM, INPUTS, ["only"], Limits())
    names = operators(tflite)
    assert names == ["CAST", "FULLY_CONNECTED", "GATHER", "RESHAPE", "TFLM_DECODE"]
    lines = resolver_lines(names)
    assert lines[0] == "tflite::MicroMutableOpResolver<5> resolver;"
    assert "resolver.AddDecode();" in lines
    assert "resolver.AddFullyConnected();" in lines
    names = "CONV_2D DEPTHWISE_CONV_2D MAX_POOL_2D AVERAGE_POOL_2D TRANSPOSE_CONV LOGISTIC HARD_SWISH"
    adders = [
        "Conv2D",
        "DepthwiseConv2D",
        "MaxPool2D",
        "AveragePool2D",
        "TransposeConv",
        "Logistic",
        "HardSwish",
    ]
    assert resolver_lines(names.split())[1:] == [f"resolver.Add{adder}();" for adder in adders]


def test_kernels_are_found_in_the_order_of_the_graph(dense):
    (kernel,) = kernels(read(dense))
    assert kernel.codes.shape == (100, 300)
    assert kernel.scales == kernel.consumers == 1
