"""Targets beside the two runtimes: int8 alone, TFLite Micro without DECODE, and Arm's Ethos-U."""

import importlib.metadata
import json
import re

import numpy as np
import pytest
import tf_keras
from click.testing import CliRunner
from tf_keras import layers

import lqconvert
from lqconvert import LqError, export_codes
from lqconvert.cli.main import main
from lqconvert.exporting.codes import Int8File
from lqconvert.runtime.ethos_u import compiled
from lqconvert.runtime.tflm import invoke_micro
from lqconvert.runtime.verify import Limits
from lqconvert.tflite import command_stream
from lqconvert.tflite.boards import BOARDS
from lqconvert.tflite.c_source import operators
from lqconvert.tflite.command_stream import check_weights, convolutions
from lqconvert.tflite.flatbuffer import read
from lqconvert.tflite.packing import kernels
from lqconvert.tflite.targets import MICRO_PACKAGE, TARGETS, VELA_PACKAGE

pytest.importorskip("tflite_micro", reason="TFLite Micro's interpreter is for Linux only")

NPU = "ethos-u55-128"


@pytest.fixture
def vela():
    pytest.importorskip("ethosu", reason="needs Arm's compiler Vela: pip install ethos-u-vela")


def test_the_targets_are_listed():
    result = CliRunner().invoke(main, ["targets"])
    assert result.exit_code == 0, result.output
    names = {*TARGETS, *BOARDS}
    listed = [line.split()[0] for line in result.stdout.splitlines() if line[:1].strip()]
    assert [name for name in listed if name in names] == [*TARGETS, *BOARDS]


@pytest.fixture(scope="module")
def thinned(samples, once):
    """The report of a run without training, for int8 alone, and its folder. Bytes are saved by channels."""

    def quantized(folder):
        settings = {"targets": ["int8"], "epochs": 0, "budget": lqconvert.Budget(max_size=15_000)}
        return lqconvert.quantize(samples / "digits_cnn.h5", "digits", folder / "digits.tflite", **settings)

    folder, report = once("thinned", quantized)
    return report, folder


@pytest.mark.parametrize("name", ["int8", "tflm-no-decode"])
def test_files_have_no_operator_that_the_int8_file_has_not(name, thinned, tmp_path):
    """Nor any of DECODE, DENSIFY and GATHER; so they run in both runtimes, if they are int8 alone."""
    report, folder = thinned
    plain = Int8File.load(folder / "digits.codes.npz").tflite
    assert report.files[0].proven.size <= 15_000 < report.int8.size == len(plain)
    path = tmp_path / "m.tflite"
    (file,) = export_codes(folder / "digits.codes.npz", path, targets=[name], data="digits").files
    tflite = path.read_bytes()
    assert set(operators(tflite)) <= set(operators(plain))
    assert len(tflite) == file.proven.size < len(plain)
    assert set(file.proven.deviation.values()) == {0}
    packings = {row.packing for row in file.proven.kernels}
    types = {tensor.type for tensor in read(tflite).main.tensors}
    if name == "int8":
        assert packings == {"int8"}
        assert types == {"INT8", "INT32"}
        inputs = np.random.default_rng(0).integers(-128, 128, (20, 8, 8, 1)).astype(np.int8)
        np.testing.assert_array_equal(invoke_micro(tflite, inputs), invoke_micro(plain, inputs))
    else:
        assert packings == {"int8", "int4"}
        assert file.proven.arena_bytes > 0
    assert file.score == pytest.approx(report.int8.score, abs=0.01)


def test_a_file_for_an_npu(thinned, tmp_path, vela):
    """The int8 file, Vela's file of it and its C source; sizes and limits are those of Vela's file."""
    _, folder = thinned
    codes, path = str(folder / "digits.codes.npz"), tmp_path / "m.tflite"
    arguments = ["export", codes, "--target", NPU, "--c-array", "--json", "-o", str(path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    names = {"m.tflite", "m.vela.tflite", "m.vela.cc", "m.vela.h"}
    assert {each.name for each in tmp_path.iterdir()} == names
    proven = json.loads(result.stdout)["files"][0]["proven"]
    compiled_file = (tmp_path / "m.vela.tflite").read_bytes()
    assert operators(compiled_file) == ["ethos-u"]
    npu, plain = proven["npu"], proven["int8_npu"]
    assert proven["size"] == npu["size"] == len(compiled_file) < plain["size"]
    assert npu["weight_bytes"] < 0.3 * sum(row["int8_bytes"] for row in proven["kernels"])
    assert npu["weight_bytes"] < npu["constant_bytes"] < npu["size"]
    assert (proven["arena_bytes"], proven["latency_s"]) == (npu["arena_bytes"], npu["seconds"])
    assert npu["cycles"] < plain["cycles"]
    assert npu["on_cpu"] == []
    assert "resolver.AddEthosU();" in (tmp_path / "m.vela.h").read_text()
    arguments += ["--max-ram", str(npu["arena_bytes"] // 2)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 3
    assert f"no file for {NPU} is within the limits" in result.stderr


def test_a_size_budget_is_that_of_velas_file(samples, tmp_path, vela):
    path = tmp_path / "m.tflite"
    settings = {"targets": [NPU], "epochs": 0, "budget": lqconvert.Budget(max_size=9000)}
    report = lqconvert.quantize(samples / "digits_cnn.h5", "digits", path, **settings)
    assert report.files[0].proven.size == (tmp_path / "m.vela.tflite").stat().st_size <= 9000
    assert report.best.bytes == report.files[0].proven.size
    table = "\n".join(" ".join(map(str, row)) for row in report.comparison())
    assert "ms (Vela)" in table


def convolutional() -> bytes:
    """A file with each kind of kernel, from a model with random weights."""
    tf_keras.utils.set_random_seed(0)
    inputs = layers.Input((12, 12, 3))
    x = layers.Conv2D(20, 3, strides=2, activation="relu")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Conv2D(24, 3, dilation_rate=2, padding="same")(x)
    x = layers.Conv2DTranspose(4, 2, strides=2)(x)
    model = tf_keras.Model(inputs, layers.Dense(7)(layers.Flatten()(x)))
    quantized = lqconvert.rewrite(model, lqconvert.LSQ())
    batch = np.random.default_rng(0).normal(0, 1, (32, 12, 12, 3)).astype(np.float32)
    lqconvert.calibrate(quantized, [batch])
    return lqconvert.export(quantized).tflite


@pytest.fixture(scope="module")
def network():
    return convolutional()


@pytest.mark.slow
@pytest.mark.parametrize(
    "accelerator",
    ["ethos-u55-32", "ethos-u65-512", "ethos-u85-2048"],  # 4 channels at a time; two cores; four cores
)
def test_the_npu_decodes_the_codes(accelerator, network, vela):
    source = read(network)
    file = read(compiled(network, accelerator).tflite)
    check_weights(file, source, accelerator)
    exact = [
        command_stream._place(each, *command_stream._volume(kernel), accelerator) is not None
        for each in convolutions(file, accelerator)
        for kernel in kernels(source)
    ]
    # On U55 and U65, in the NPU's own order too. Vela may take the Dense layer for another convolution.
    assert sum(exact) >= (0 if "u85" in accelerator else 4)


def one_changed(codes):
    codes.reshape(-1)[0] = -128


def two_exchanged(codes):
    first, last = codes.reshape(-1)[[0, -1]]
    assert first != last
    codes.reshape(-1)[[0, -1]] = last, first


@pytest.mark.parametrize(
    ("accelerator", "change"), [(NPU, one_changed), (NPU, two_exchanged), ("ethos-u85-256", one_changed)]
)
def test_other_codes_are_found(accelerator, change, network, vela):
    file, source = read(compiled(network, accelerator).tflite), read(network)
    tensor = source.main.tensors[kernels(source)[0].tensor]
    codes = tensor.values().copy()
    change(codes)
    tensor.set_values(codes)
    with pytest.raises(LqError, match="does not have the codes"):
        check_weights(file, source, accelerator)


def test_weights_for_16_bit_activations(vela):
    """They have another order."""
    model = tf_keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(20, 3), layers.Conv2D(12, 3)])
    quantized = lqconvert.rewrite(model, lqconvert.LSQ(), activations=16)
    lqconvert.calibrate(quantized, [np.random.default_rng(0).normal(0, 1, (8, 8, 8, 3)).astype(np.float32)])
    tflite = lqconvert.export(quantized).tflite
    source, file = read(tflite), read(compiled(tflite, NPU).tflite)
    check_weights(file, source, NPU)
    found = [
        command_stream._place(each, *command_stream._volume(k), NPU) is not None
        for each in convolutions(file, NPU)
        for k in kernels(source)
    ]
    assert sum(found) == 2


def test_what_stays_on_the_cpu_is_named(vela):
    """Vela leaves lookups to the CPU."""
    words = layers.Input((6,), dtype="int32")
    x = layers.Flatten()(layers.Embedding(20, 4)(words))
    quantized = lqconvert.rewrite(tf_keras.Model(words, layers.Dense(3)(x)), lqconvert.LSQ())
    lqconvert.calibrate(quantized, [np.random.default_rng(0).integers(0, 20, (32, 6)).astype(np.int32)])
    figures = compiled(lqconvert.export(quantized).tflite, NPU).figures
    assert figures.on_cpu == ["GATHER"]


@pytest.fixture(scope="module")
def wide(once):
    """The codes of a Dense layer of 784 x 128 weights, most of them zero, and of one of 10 outputs."""

    def quantized(folder):
        rng = np.random.default_rng(0)
        model = tf_keras.Sequential([layers.Input((784,)), layers.Dense(128, "relu"), layers.Dense(10)])
        kernel, *others = model.get_weights()
        model.set_weights([kernel * (rng.random(kernel.shape) > 0.9), *others])
        np.save(folder / "x.npy", rng.normal(0, 1, (500, 784)).astype(np.float32))
        settings = {"scheme": lqconvert.LSQ(), "epochs": 1}
        lqconvert.quantize(model, folder / "x.npy", folder / "m.tflite", **settings)

    folder, _ = once("wide", quantized)
    return str(folder / "m.codes.npz")


@pytest.mark.parametrize(
    ("board", "packs"), [("arduino-uno-r4", False), ("raspberry-pi-pico", True), ("esp32", True)]
)
def test_a_file_fits_a_board(board, packs, wide, tmp_path):
    """Weights are unpacked only where there is the RAM for it: here 100 KB."""
    path = tmp_path / "m.tflite"
    arguments = ["export", wide, "--target", "tflm", "--board", board, "--json", "-o", str(path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    proven = json.loads(result.stdout)["files"][0]["proven"]
    found = BOARDS[board]
    assert proven["size"] <= found.model_flash == found.flash // 2
    assert proven["arena_bytes"] <= found.model_ram == found.ram // 2
    assert (proven["kernels"][0]["packing"] != "int8") == packs
    assert (proven["arena_bytes"] > 784 * 128) == packs


def test_a_board_that_is_too_small_is_refused_with_figures(wide, tmp_path):
    """64 KB of flash, where int8 takes 100 KB, and 18 KB of RAM, where nothing can be unpacked."""
    path = str(tmp_path / "m.tflite")
    arguments = ["export", wide, "--target", "tflm", "--board", "nucleo-g071rb", "-o", path]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 3
    assert re.search(
        r"the smallest one takes 10\d,\d{3} bytes of flash \(and .*\), 65,536 are", result.stderr
    )
    assert list(tmp_path.iterdir()) == []
    arguments[arguments.index("tflm")] = "litert"
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "RAM cannot be limited on LiteRT" in result.stderr


@pytest.fixture
def without(monkeypatch):
    """Hides a package."""

    def hide(package):
        version = importlib.metadata.version

        def found(name):
            if name == package:
                raise importlib.metadata.PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr(importlib.metadata, "version", found)

    return hide


def test_a_missing_compiler_is_named(run, tmp_path, without):
    without(VELA_PACKAGE)
    with pytest.raises(LqError, match="needs ethos-u-vela to compile files: pip install ethos-u-vela"):
        export_codes(run[1] / "digits.codes.npz", tmp_path / "m.tflite", targets=[NPU])


def test_what_is_preferred_without_the_interpreter(run, tmp_path, without):
    """What needs no measurement: no packing takes RAM, and the limit of flash is kept."""
    without(MICRO_PACKAGE)
    codes, path = run[1] / "digits.codes.npz", tmp_path / "m.tflite"
    (file,) = export_codes(codes, path, targets=[lqconvert.target("tflm", prefer="ram")]).files
    assert {row.packing for row in file.proven.kernels} == {"int8"}
    with pytest.raises(lqconvert.BudgetMissed, match="1,000 are allowed"):
        export_codes(codes, path, targets=["tflm"], limits=Limits(max_flash=1000))


def test_a_missing_interpreter_is_said(run, tmp_path, without):
    """The same file is made, scored as the int8 file, and named as not verified. Limits are refused."""
    report, folder = run
    without(MICRO_PACKAGE)
    arguments = [
        "export",
        str(folder / "digits.codes.npz"),
        "--target",
        "tflm",
        "-o",
        str(tmp_path / "m.tflite"),
    ]
    result = CliRunner().invoke(main, [*arguments, "--data", "digits", "--c-array"])
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "not verified in TFLite Micro on this machine" in said
    assert "scores are those of the int8 file in LiteRT" in said
    assert f"{report.int8.score:.2%}" in said
    assert (tmp_path / "m.tflite").read_bytes() == (folder / "digits.tflite").read_bytes()
    assert "The tensor arena was not measured" in (tmp_path / "m.h").read_text()
    result = CliRunner().invoke(main, [*arguments, "--max-ram", "1MB"])
    assert result.exit_code == 1
    assert "cannot be measured without tflite-micro" in result.stderr


def test_a_run_without_the_interpreter(samples, tmp_path, without, caplog):
    without(MICRO_PACKAGE)
    job = samples / "digits_cnn.h5", "digits", tmp_path / "m.tflite"
    page = tmp_path / "m.html"
    report = lqconvert.quantize(*job, targets=["tflm"], epochs=0, report=page)
    assert "not verified in TFLite Micro on this machine" in caplog.text
    assert report.files[0].score == report.int8.score
    assert "not verified in TFLite Micro on this machine" in page.read_text()


def test_what_vela_refuses_ends_in_one_line(vela):
    with pytest.raises(LqError, match="Vela cannot compile the file for ethos-u55-32: ") as caught:
        compiled(b"no model", "ethos-u55-32")
    assert "\n" not in str(caught.value)
