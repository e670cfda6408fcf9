"""Inputs and outputs of other types than int8: --io, and what the files with them compute."""

import json

import numpy as np
import pytest
import tf_keras
from click.testing import CliRunner
from tf_keras import layers

import lqconvert
from lqconvert import export_codes
from lqconvert.cli.main import main
from lqconvert.data.preprocessing import PREPROCESSINGS
from lqconvert.errors import LqError
from lqconvert.exporting.codes import Int8File
from lqconvert.runtime.litert import Runner
from lqconvert.runtime.verify import Limits, verify
from lqconvert.tflite.interface import Interface
from lqconvert.tflite.io_types import Border, Passage

pytestmark = pytest.mark.slow

pytest.importorskip("tflite_micro", reason="TFLite Micro's interpreter is for Linux only")

OTHERS = ("uint8", "int16", "float32")
TARGETS = [lqconvert.target("litert"), lqconvert.target("tflm")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The report of a run with uint8 inputs of a model of one layer, and its folder."""
    folder = tmp_path_factory.mktemp("made")
    dense = layers.Dense(10, "softmax")
    model = tf_keras.Sequential([layers.Input((8, 8, 1)), layers.Flatten(), dense])
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*lqconvert.load_data("digits", (8, 8, 1), 10).train.arrays(), epochs=20, verbose=0)
    settings = {"scheme": lqconvert.LSQ(), "epochs": 1, "targets": TARGETS, "io": "uint8"}
    return lqconvert.quantize(model, "digits", folder / "digits.tflite", **settings), folder


@pytest.fixture(scope="module")
def codes(made):
    return made[1] / "digits.codes.npz"


@pytest.mark.parametrize("io", OTHERS)
def test_files_of_every_type_answer_as_int8(io, made, codes, tmp_path):
    exports = export_codes(codes, tmp_path / "m.tflite", targets=TARGETS, io=io, data="digits")
    for file in exports.files:
        assert set(file.proven.deviation.values()) == {0}
        assert file.score == pytest.approx(made[0].int8.score, abs=0.003)
        with open(file.path, "rb") as stream:
            interface = Interface.of(stream.read())
        assert list(interface.input_types.values()) == [io]
        assert [np.dtype(detail["dtype"]).name for detail in interface.outputs] == [io]
    litert, tflm = exports.files
    found = lqconvert.evaluate(litert.path, "digits")
    assert (found.score, found.preprocess) == (litert.score, "none")
    given = {"target": "tflm", "preprocess": PREPROCESSINGS["none"]}
    assert lqconvert.evaluate(tflm.path, "digits", **given).score == tflm.score


@pytest.mark.parametrize("io", OTHERS)
def test_names_and_signature_stay(io, codes):
    tflite = Int8File.load(codes).tflite
    plain, other = Runner(tflite), Runner(Border(io).around(tflite))
    assert list(other.input_shapes) == list(plain.input_shapes)
    assert other.interpreter.get_signature_list() == plain.interpreter.get_signature_list()
    runner = other.interpreter.get_signature_runner()
    (details,) = runner.get_input_details().values()
    assert np.dtype(details["dtype"]).name == io


def test_uint8_takes_raw_pixels(codes):
    tflite = Int8File.load(codes).tflite
    pixels = lqconvert.load_data("digits", (8, 8, 1), 10).test.arrays(20)[0].astype(np.uint8)
    codes8 = (pixels.astype(np.int16) - 128).astype(np.int8)
    plain, other = Runner(tflite), Runner(Border("uint8").around(tflite))
    assert np.array_equal(other.invoke(pixels), plain.invoke(codes8).astype(np.int16) + 128)


@pytest.fixture(scope="module")
def ports():
    """Several inputs, one of indices, and two outputs: the int8 file, and its layers."""
    words, numbers = tf_keras.Input((4,), name="words", dtype="int32"), tf_keras.Input((6,), name="numbers")
    both = [layers.Flatten()(layers.Embedding(9, 3)(words)), layers.Dense(5)(numbers)]
    joined = layers.Dense(8, activation="relu")(layers.Concatenate()(both))
    outputs = [layers.Dense(2, name="a")(joined), layers.Dense(3, name="b")(joined)]
    model = lqconvert.rewrite(tf_keras.Model([words, numbers], outputs), lqconvert.LSQ())
    rng = np.random.default_rng(0)
    batch = [rng.integers(0, 9, (64, 4)).astype(np.int32), rng.normal(size=(64, 6)).astype(np.float32)]
    lqconvert.calibrate(model, [batch])
    exported = lqconvert.export(model)
    return exported.tflite, exported.order, batch


@pytest.mark.parametrize("io", OTHERS)
@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_indices_stay_and_each_port_has_its_own_border(io, target, ports):
    tflite, order, batch = ports
    inputs = Runner(tflite).quantize(batch)
    finished, verified = verify(tflite, lqconvert.target(target), inputs, order, Limits(), Border(io))
    assert set(verified.deviation.values()) <= {0, 1}
    assert verified.size == len(finished) > 0
    assert sorted(Interface.of(finished).input_types.values()) == sorted([io, "int32"])
    plain, other = Runner(tflite), Runner(Border(io).around(tflite))
    assert np.allclose(other.run([batch]), plain.run([batch]), atol=2 * plain.output_steps.max())


def test_outputs_that_are_none_of_int8s_are_noticed(codes):
    passage = Passage(Border("float32"), Int8File.load(codes).tflite)
    with pytest.raises(LqError, match="float32 outputs fit no int8 outputs"):
        passage.out_of(np.full((1, 10), 0.4 / 256, np.float32))


def test_the_command_line(codes, tmp_path):
    options = ["--target", "tflm", "--io", "uint8", "--c-array", "--strip-all", "--json"]
    result = CliRunner().invoke(main, ["export", str(codes), *options, "-o", str(tmp_path / "m.tflite")])
    assert result.exit_code == 0, result.output
    (file,) = json.loads(result.stdout)["files"]
    assert "QUANTIZE" in file["proven"]["operators"]
    header = (tmp_path / "m.h").read_text()
    assert "// input: uint8 1x8x8x1, real value = (input - zero_point) * scale" in header
    assert "constexpr int g_m_input_zero_point = 0;" in header
    assert "resolver.AddQuantize();" in header
    assert json.loads(result.stdout)["front_code"] is None


def test_a_run_counts_the_border_and_says_how_to_feed(made):
    report, folder = made
    assert report.feeding()[0].startswith("input: uint8 = pixel (scale 1, zero point 0")
    assert report.settings.io == "uint8"
    assert next(iter(report.outputs.values()))[1] == 0  # int8's probabilities have -128
    assert (folder / "digits.tflite").stat().st_size == report.files[0].proven.size
    assert report.files[0].score == report.int8.score


@pytest.mark.parametrize("function", [lqconvert.quantize, export_codes])
def test_types_that_there_are_none_of(function, tmp_path):
    job = ["x.h5", "digits"] if function is lqconvert.quantize else ["x.codes.npz"]
    with pytest.raises(LqError, match="io 'int4': not one of int8, uint8, int16, float32"):
        function(*job, tmp_path / "m.tflite", io="int4")
