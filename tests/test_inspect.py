"""lqconvert inspect describes every sample without training, and agrees with quantize."""

import dataclasses
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tf_keras
import zoo
from click.testing import CliRunner
from tf_keras import layers

from lqconvert import LqError, inspect, quantize
from lqconvert.cli.main import main
from lqconvert.errors import CannotRun
from lqconvert.exporting.codes import Int8File, load_kernels
from lqconvert.exporting.export import convert
from lqconvert.tflite.c_source import operators
from lqconvert.tflite.editing import add_constant, add_tensor, new_operator
from lqconvert.tflite.encoding import entropy_bits
from lqconvert.tflite.flatbuffer import read, write
from lqconvert.tflite.packing import assemble, kernels
from lqconvert.tflite.targets import RUNTIMES
from lqconvert.utils.terminal import Console


@pytest.fixture(scope="module")
def digits(samples):
    return inspect(samples / "digits_cnn.h5")


@pytest.fixture(scope="module")
def written(run):
    """The .tflite for LiteRT and the codes of a run."""
    _, folder = run
    return folder / "digits.litert.tflite", folder / "digits.codes.npz"


def invoke(*arguments):
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)], env={"COLUMNS": "200"})


def test_a_model_is_quantized_as_inspect_said(digits, run, written):
    (report, _), (_, codes) = run, written
    coded = {row.name: row for row in digits.layers if row.codes}
    file = Int8File.load(codes)
    assert list(coded) == [row.name for row in report.layers]
    assert {name: row.codes for name, row in coded.items()} == {
        name: kernel.size for name, kernel in load_kernels(codes).items()
    }
    assert {name: row.scales for name, row in coded.items()} == {
        name: kernel.scales for name, kernel in zip(file.layers, kernels(read(file.tflite)), strict=True)
    }
    ranged = {row.name for row in digits.layers if "range" in row.becomes and "range of " not in row.becomes}
    with np.load(codes) as arrays:
        learned = {name.removesuffix("_quantized/activation") for name in arrays if "/activation" in name}
    assert ranged - {"input_1"} == learned - {"input_1"}
    assert digits.operators == operators(file.tflite)
    assert digits.int8_bytes == pytest.approx(report.int8.size, rel=0.01)
    pytest.importorskip("tflite_micro", reason="TFLite Micro's interpreter is for Linux only")
    assert digits.targets == dict.fromkeys(RUNTIMES, "runs")


def test_layers_that_the_graph_is_without_are_named(digits):
    becomes = {row.name: row.becomes for row in digits.layers}
    names = list(becomes)
    assert becomes["batch_normalization_1"] == "folded into conv2d_1"
    assert becomes["re_lu"] == "fused into conv2d; learned range"
    assert becomes["conv2d"] == "int8, 16 scales; range of re_lu"
    assert becomes["max_pooling2d"] == becomes["flatten"] == "scale of its input"
    assert becomes["dropout"].startswith("left out")
    assert names.index("dropout") == names.index("flatten") + 1
    assert becomes["dense"] == "int8, one scale; learned range"
    assert digits.parameters == 15_578
    assert digits.weight_bytes == 15_248 + 4 * (16 + 32 + 32 + 10)


def test_every_kind_of_fate(tmp_path):
    x = tf_keras.Input((8, 8, 2), name="image")
    y = layers.SeparableConv2D(4, 3, padding="same", activation="tanh", name="separable")(x)
    y = layers.BatchNormalization(name="norm")(layers.AveragePooling2D(name="pool")(y))
    z = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(y)
    y = layers.ReLU(name="relu")(layers.Add(name="add")([y, z]))
    y = layers.BatchNormalization(name="before_dense")(layers.GlobalAveragePooling2D(name="mean")(y))
    model = tf_keras.Model(x, layers.Dense(2, activation="sigmoid", name="dense")(y))
    model.save(tmp_path / "model.h5")
    inspection = inspect(tmp_path / "model.h5")
    assert {row.name: (row.kind, row.becomes) for row in inspection.layers} == {
        "image": ("InputLayer", "range of the data, or of pixels"),
        "separable_depthwise": (
            "DepthwiseConv2D",
            "int8, 2 scales; learned range",
        ),
        "separable": (
            "SeparableConv2D -> Conv2D",
            "int8, 4 scales; learned range",
        ),
        "separable_tanh": ("Activation", "fixed range -1..0.9922"),
        "pool": ("AveragePooling2D", "scale of its input"),
        "norm": (
            "BatchNormalization -> DepthwiseConv2D",
            "int8, 4 scales; learned range",
        ),
        "conv": ("Conv2D", "int8, 4 scales; range of conv_relu"),
        "conv_relu": ("ReLU", "fused into conv; learned range"),
        "add": ("Add", "range of relu"),
        "relu": ("ReLU", "fused into add; learned range"),
        "mean": ("GlobalAveragePooling2D", "learned range"),
        "before_dense": ("BatchNormalization", "folded into dense"),
        "dense": ("Dense", "int8, one scale; learned range"),
        "dense_sigmoid": ("Activation", "fixed range 0..0.9961"),
    }
    assert "DEPTHWISE_CONV_2D" in inspection.operators
    assert inspection.targets["litert"] == "runs"


def test_a_refusal_names_every_layer_that_is_not_known(tmp_path):
    x = tf_keras.Input((4,))
    y = layers.Lambda(abs, name="first")(x)
    tf_keras.Model(x, layers.Lambda(abs, name="second")(layers.Dense(4, name="fine")(y))).save(
        tmp_path / "model.h5"
    )
    with pytest.raises(LqError) as refusal:
        quantize(tmp_path / "model.h5", "digits", tmp_path / "m.tflite")
    inspection = inspect(tmp_path / "model.h5")
    assert inspection.refused == str(refusal.value)
    refused = {row.name: row.becomes.startswith("refused: layer") for row in inspection.layers}
    assert refused["first"]
    assert refused["second"]
    assert not refused["fine"]
    result = invoke(tmp_path / "model.h5")
    assert result.exit_code == 1
    assert result.stderr.strip() == f"error: {refusal.value}; give --trust-model"
    assert "layer 'second' (Lambda)" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kinds", "floats"),
    [
        ("several", ["InputLayer"] * 2, 0),
        ("embedding", ["InputLayer", "Embedding"], 0),
        ("lstm elu", ["RNN"], 1),
    ],
)
def test_inputs_and_float_layers_of_all_kinds(name, kinds, floats, tmp_path):
    zoo.ZOO[name].build(tf_keras).save(tmp_path / "model.h5")
    inspection = inspect(tmp_path / "model.h5")
    assert not inspection.refused
    assert [row.kind for row in inspection.layers if row.kind in kinds] == kinds
    assert sum(row.becomes.startswith("float: ") for row in inspection.layers) == floats
    assert inspection.targets["litert"] == "runs"
    assert ("would stay float" in inspection.targets["tflm"]) == bool(floats)


def test_a_target_that_cannot_run_the_file_says_why(tmp_path, monkeypatch):
    from lqconvert.runtime import verify

    def execute(tflite, target, inputs):
        if target.name == "tflm":
            raise CannotRun("TFLite Micro cannot run the file: Didn't find op for builtin opcode 'SWIRL'")
        return verify.Executed({}, 0.0, None)

    monkeypatch.setattr(verify, "execute", execute)
    zoo.ZOO["gelu"].build(tf_keras).save(tmp_path / "model.h5")
    result = invoke(tmp_path / "model.h5")
    assert result.exit_code == 0
    assert "litert: runs\ntflm: TFLite Micro cannot run the file: Didn't find op" in result.stdout


def test_codes_are_those_of_the_report(run, written):
    (report, _), (_, codes) = run, written
    inspection = inspect(codes)
    assert inspection.int8_bytes == report.int8.size
    for row, said in zip(report.layers, inspection.layers, strict=True):
        assert (said.layer, said.shape) == (row.name, row.shape)
        assert (said.integers, said.smallest, said.largest) == (
            row.codes,
            row.smallest_code,
            row.largest_code,
        )
        assert said.entropy == pytest.approx(row.entropy)
        assert said.axes == (() if row.granularity == "scalar" else (3,))
        assert 0 <= said.zeros <= 1
    assert inspection.packed_bytes["litert"] < inspection.weights
    output = invoke(codes).stdout
    assert f"int8 file in it: {report.int8.size:,} bytes" in output


def test_a_tflite_is_what_the_report_says_of_it(run, written):
    (report, _), (path, _) = run, written
    inspection = inspect(path)
    (proven,) = (file.proven for file in report.files if file.path == str(path))
    assert inspection.bytes == proven.size == path.stat().st_size
    assert inspection.deflated_bytes == proven.deflated_bytes
    assert inspection.constant_bytes + inspection.overhead_bytes == proven.size
    assert sorted({row.name for row in inspection.operators}) == proven.operators
    assert inspection.integer_only
    stored = [row for row in inspection.constants if row.tensor.type == "INT8"]
    assert [(row.packing, row.stored_bytes, row.entropy_bytes) for row in stored] == [
        (row.packing, row.stored_bytes, row.entropy_bytes) for row in proven.kernels
    ]
    (source,) = inspection.inputs
    assert [(source.smallest_scale, source.zero_point)] == list(report.inputs.values())
    output = invoke(path).stdout
    assert "integer only: yes" in output
    for row in proven.kernels:
        assert row.packing in output


PACKED = [(name, packing) for name, target in RUNTIMES.items() for packing in target.packings]


@pytest.mark.parametrize(("name", "packing"), PACKED, ids=[f"{n} {p.name}" for n, p in PACKED])
def test_every_packing_is_known_again(name, packing, tmp_path):
    from single_operator import single_operator

    rng = np.random.default_rng(0)
    codes = (rng.integers(-2, 2, (12, 64)) * (rng.random((12, 64)) < 0.2)).astype(np.int8)
    per_channel = packing.name == "int2"
    plain = single_operator("FULLY_CONNECTED", codes, per_channel, k=1, rng=rng)
    (kernel,) = kernels(read(plain))
    encoded = packing.encode(kernel)
    path = tmp_path / "m.tflite"
    path.write_bytes(write(assemble(read(plain), [kernel], [encoded], RUNTIMES[name].needless)))
    inspection = inspect(path)
    row = next(row for row in inspection.constants if row.packing == packing.name)
    assert row.elements == codes.size
    assert row.stored_bytes == encoded.size
    assert row.entropy_bytes == round(entropy_bits(codes) / 8)
    assert row.tensor.scales == (12 if per_channel else 1)
    assert sum(each.stored_bytes for each in inspection.constants) == inspection.constant_bytes
    assert f" {packing.name} " in invoke(path).stdout


def test_constants_of_very_many_are_still_listed(tmp_path):
    """No packing puts a constant together from 20; a converter that folds nothing may."""
    from single_operator import single_operator

    model = read(
        single_operator("FULLY_CONNECTED", np.ones((4, 8), np.int8), False, k=1, rng=np.random.default_rng(0))
    )
    graph = model.main
    parts = [add_constant(model, np.full((1, 8), number, np.int8)) for number in range(20)]
    made = add_tensor(model, "INT8", (20, 8))
    graph.operators.insert(0, new_operator(model, "CONCATENATION", parts, [made]))
    added = add_tensor(model, "INT8", (20, 8))
    graph.operators.append(new_operator(model, "ADD", [graph.inputs[0], made], [added]))
    (tmp_path / "m.tflite").write_bytes(write(model))
    inspection = inspect(tmp_path / "m.tflite")
    assert sum(each.stored_bytes for each in inspection.constants) == inspection.constant_bytes
    assert len(inspection.constants) == 22


def test_float_operators_are_named(tmp_path):
    model = tf_keras.Sequential([tf_keras.Input((4,)), layers.Dense(3)])
    (tmp_path / "m.tflite").write_bytes(convert(model, integer=False))
    inspection = inspect(tmp_path / "m.tflite")
    assert not inspection.integer_only
    assert inspection.float_operators == ["0 FULLY_CONNECTED"]
    assert inspection.constants[0].packing == "float32"
    assert inspection.constants[0].entropy_bytes is None
    assert "integer only: no (0 FULLY_CONNECTED)" in invoke(tmp_path / "m.tflite").stdout


@pytest.fixture(scope="module")
def files(samples, written, tmp_path_factory):
    """A file of every kind, and the first line about it."""
    folder = tmp_path_factory.mktemp("files")
    x = tf_keras.Input((4,))
    tf_keras.Model(x, layers.Lambda(abs, name="magnitude")(x)).save(folder / "lambda.h5")
    zoo.ZOO["lstm elu"].build(tf_keras).save(folder / "lstm.h5")
    said = {
        "model": (samples / "digits_cnn.h5", "quantize makes an integer-only file of it, about 18,960"),
        "float": (folder / "lstm.h5", "quantize makes a file of it that is float in part, about "),
        "refused": (folder / "lambda.h5", "quantize refuses it: "),
        "tflite": (written[0], "integer only: yes"),
        "codes": (written[1], "15,248 weights: "),
    }
    return {kind: (inspect(path), first) for kind, (path, first) in said.items()}


@pytest.mark.parametrize("kind", ["model", "float", "refused", "tflite", "codes"])
@pytest.mark.parametrize("terminal", [False, True])
def test_the_verdict_comes_first_in_80_columns(kind, terminal, files, monkeypatch):
    inspection, first = files[kind]
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", "80")
    inspection.print(Console())
    lines = re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue()).splitlines()
    assert lines[0].startswith(first)
    assert max(map(len, lines)) <= 80
    assert "…" not in screen.getvalue()
    if kind == "float":
        assert any(line.startswith("stays float: 'lstm") for line in lines[:6])


def test_json_is_the_dataclass(digits, samples, written):
    result = invoke(samples / "digits_cnn.h5", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads(json.dumps(dataclasses.asdict(digits)))
    for path in written:
        result = invoke(path, "--json")
        assert json.loads(result.stdout) == json.loads(inspect(path).to_json())


def test_tensorflow_is_not_needed_for_files(written):
    code = "import sys, lqconvert; lqconvert.inspect(sys.argv[1]); assert 'tensorflow' not in sys.modules"
    for path in written:
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def test_the_other_sample(samples):
    inspection = inspect(samples / "mnist_mlp.h5")
    assert inspection.parameters == 101_770
    assert [row.codes for row in inspection.layers if row.codes] == [784 * 128, 1280]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlperf_tiny_resnet8.h5", "emg_rnn.keras", "gru_series.keras"])
def test_published_models(name, shared):
    inspection = inspect(shared / "models" / name)
    assert inspection.layers
    assert inspection.refused or inspection.targets["litert"] == "runs"


@pytest.mark.parametrize("name", ["mlperf_tiny_resnet8_int8.tflite", "mlperf_tiny_ad01_int8.tflite"])
def test_files_of_other_tools(name, shared):
    inspection = inspect(shared / "models" / name)
    assert inspection.integer_only
    assert inspection.bytes == (shared / "models" / name).stat().st_size
    assert {row.packing for row in inspection.constants} == {"int8", "int32"}


@pytest.mark.parametrize("name", ["gone.tflite", "gone.h5", "foreign.npz", "broken.npz", "empty.h5"])
def test_mistakes_end_in_one_line(name, tmp_path):
    np.savez(tmp_path / "foreign.npz", x=np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"PK but no zip")
    (tmp_path / "empty.h5").touch()
    result = invoke(tmp_path / name)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert name in result.stderr
