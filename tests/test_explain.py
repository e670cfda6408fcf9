"""lqconvert explain: every byte has an owner, and every saving equals that of the file made with it."""

import copy
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import tf_keras
import zoo
from ai_edge_litert import schema_py_generated as schema
from click.testing import CliRunner
from rich.console import Console
from tf_keras import layers

from lqconvert import LqError, explain, export_codes, target
from lqconvert.analysis.architecture_hints import changes
from lqconvert.cli.main import main
from lqconvert.exporting.codes import Codes, Int8File, LayerCodes, TensorCodes
from lqconvert.exporting.export import convert
from lqconvert.tflite.editing import add_constant, add_tensor, new_operator, strip
from lqconvert.tflite.flatbuffer import read, serialize, write
from lqconvert.tflite.graph import Buffer
from lqconvert.tflite.packing import assemble, kernels
from lqconvert.tflite.targets import RUNTIMES


def invoke(*arguments):
    return CliRunner().invoke(main, ["explain", *map(str, arguments)], env={"COLUMNS": "200"})


def adds_up(explanation):
    """Whether the parts, their kinds and the totals are each the whole file."""
    kinds = [sum(part.kinds.values()) for part in explanation.parts]
    assert [part.bytes for part in explanation.parts] == kinds
    assert sum(kinds) == sum(explanation.totals.values()) == explanation.bytes
    assert kinds == sorted(kinds, reverse=True)
    return True


def by(explanation, who):
    return [saving for saving in explanation.savings if saving.by == who]


def part(explanation, name):
    (found,) = (each for each in explanation.parts if each.name == name)
    return found


def network(wide=layers.Conv2D, pooling=layers.Flatten, units=32, width=16):
    """Two convolutions and two Dense layers, and an Embedding in another branch."""
    image, words = tf_keras.Input((8, 8, 3), name="image"), tf_keras.Input((4,), dtype="int32", name="words")
    y = layers.MaxPooling2D()(layers.Conv2D(16, 3, padding="same", name="first")(image))
    y = layers.ReLU()(wide(48, 3, padding="same", name="wide")(y))
    z = layers.Embedding(500, width, name="embedding")(words)
    y = layers.Concatenate()([pooling(name="flat")(y), layers.Flatten()(z)])
    y = layers.Dense(units, activation="relu", name="hidden")(y)
    return tf_keras.Model([image, words], layers.Dense(10, name="scores")(y))


def plain_network(wide=layers.Conv2D, pooling=layers.Flatten, units=32):
    x = tf_keras.Input((8, 8, 3))
    y = layers.MaxPooling2D()(layers.Conv2D(16, 3, padding="same", activation="relu", name="first")(x))
    y = layers.ReLU()(wide(48, 3, padding="same", name="wide")(y))
    y = layers.Dense(units, activation="relu", name="hidden")(pooling(name="flat")(y))
    return tf_keras.Model(x, layers.Dense(10, name="scores")(y))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved network. Two filters of its first layer do nothing."""
    path, network = tmp_path_factory.mktemp("model") / "model.h5", plain_network()
    kernel, bias = network.get_layer("first").get_weights()
    kernel[..., 3] = kernel[..., 7] = bias[3] = bias[7] = 0
    network.get_layer("first").set_weights([kernel, bias])
    network.save(path)
    return path


@pytest.fixture(scope="module")
def explained(model):
    return explain(model)


def test_a_model_is_explained_by_layer(explained):
    assert adds_up(explained)
    sizes = {each.name: (each.weights, each.kinds.get("biases")) for each in explained.parts if each.weights}
    assert sizes == {
        "first": (432, 64),
        "wide": (6912, 192),
        "hidden": (24576, 128),
        "scores": (320, 40),
    }
    assert explained.parts[0].name == "hidden"
    assert explained.totals["weights"] == 432 + 6912 + 24576 + 320
    assert explained.float32_bytes == 4 * plain_network().count_params()
    assert "= 6,912 weights at 8 bits (int8): 6,912 bytes; at their entropy of" in part(explained, "wide").why


def test_dead_filters_of_a_model_are_found(explained):
    (saving,) = (each for each in by(explained, "lqconvert") if "channels" in each.what)
    # Two of 16 filters, and what the next layer has for them.
    assert "wide 864, first 54" in saving.what
    assert saving.bytes == pytest.approx(864 + 54 + 2 * 4 * 3, abs=48)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("wide: SeparableConv2D", {"wide": layers.SeparableConv2D}),
        ("hidden: GlobalAveragePooling2D", {"pooling": layers.GlobalAveragePooling2D}),
        ("hidden: 16 units", {"units": 16}),
    ],
)
def test_another_architecture_saves_what_was_said(what, change, explained, tmp_path):
    (saving,) = (each for each in by(explained, "model") if each.what.startswith(what))
    plain_network(**change).save(tmp_path / "model.h5")
    after = explain(tmp_path / "model.h5")
    # The dead filters of the other layer do not matter: they have the same bytes in both files.
    assert explained.bytes - after.bytes == pytest.approx(saving.bytes, rel=0.03)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("wide: SeparableConv2D in place of Conv2D (3x3, 16 -> 48", {"wide": layers.SeparableConv2D}),
        ("hidden: 16 units in place of 32, which scores reads", {"units": 16}),
    ],
)
def test_parameters_are_those_of_the_other_model(what, change):
    before = network()
    (found,) = (each for each in changes(before) if each.what.startswith(what))
    assert found.before - found.after == before.count_params() - network(**change).count_params()


def test_changes_are_only_of_what_there_is():
    found = [change.what.split(" ")[0] for change in changes(network())]
    # A Flatten that is concatenated with something else is not pooled; the last Dense keeps its units.
    assert found == ["first:", "wide:", "embedding:", "hidden:"]
    embedding = next(change for change in changes(network()) if change.what.startswith("embedding"))
    assert (embedding.before, embedding.after) == (500 * 16, 500 * 8)
    small = tf_keras.Sequential([tf_keras.Input((4, 4, 2)), layers.Conv2D(8, 1), layers.GlobalMaxPooling2D()])
    assert changes(small) == []
    x = tf_keras.Input((4, 4, 2))
    assert changes(tf_keras.Model(x, layers.Dense(3)(layers.Flatten()(x)))) == []


def test_layers_that_stay_float_are_named_not_promised(tmp_path):
    zoo.ZOO["lstm elu"].build(tf_keras).save(tmp_path / "model.h5")
    explanation = explain(tmp_path / "model.h5")
    assert adds_up(explanation)
    assert any(note.startswith("computes in float: ") for note in explanation.notes)
    assert not any("float weights" in saving.what for saving in explanation.savings)


def drawn(shape, share=0.2):
    rng = np.random.default_rng(0)
    return (rng.integers(-2, 2, shape) * (rng.random(shape) < share)).astype(np.int8)


def connected(codes, per_channel=False):
    from single_operator import single_operator

    return single_operator("FULLY_CONNECTED", codes, per_channel, k=1, rng=np.random.default_rng(0))


PACKED = [(name, packing) for name, target in RUNTIMES.items() for packing in target.packings]


@pytest.mark.parametrize(("name", "packing"), PACKED, ids=[f"{n} {p.name}" for n, p in PACKED])
def test_every_byte_of_a_packed_file_has_its_owner(name, packing, tmp_path):
    plain = connected(drawn((12, 64)), packing.name == "int2")
    (kernel,) = kernels(read(plain))
    encoded = packing.encode(kernel)
    path = tmp_path / "m.tflite"
    path.write_bytes(write(assemble(read(plain), [kernel], [encoded], RUNTIMES[name].needless)))
    explanation = explain(path)
    assert adds_up(explanation)
    assert explanation.bytes == path.stat().st_size
    assert explanation.totals["weights"] == encoded.size
    (row,) = (each for each in explanation.parts if each.weights)
    assert row.weights == kernel.codes.size
    assert f"({packing.name})" in row.why
    assert explanation.smallest == {}
    assert "the file is packed" in explanation.notes[0]


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """A run's codes, of one Dense layer."""
    path, kernel = tmp_path_factory.mktemp("codes") / "m.codes.npz", drawn((40, 96))
    layer = LayerCodes("dense", "Dense", TensorCodes(kernel.T.astype(np.int32), np.ones((1, 1))), None)
    Codes({"dense": layer}).save(path, Int8File(connected(kernel), ["dense"], (1.0, 0.0)))
    return path


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("strip_all", [False, True])
def test_export_makes_what_was_said(name, strip_all, codes, tmp_path):
    explanation = explain(codes)
    assert adds_up(explanation)
    export_codes(codes, tmp_path / "m.tflite", targets=[target(name, strip_all=strip_all)])
    size = (tmp_path / "m.tflite").stat().st_size
    names = sum(saving.bytes for saving in by(explanation, "lqconvert") if "--strip-all" in saving.what)
    assert size == explanation.smallest[name] - strip_all * names
    row = part(explanation, "dense")
    packing, stored = row.packed[name]
    assert stored < row.kinds["weights"] == row.weights == 40 * 96
    assert f"{name} {stored:,} ({packing})" in row.why
    (packed,) = (saving for saving in by(explanation, "lqconvert") if f"--target {name}" in saving.what)
    assert packing in packed.what
    assert explanation.bytes - packed.bytes >= explanation.smallest[name]


def test_one_scale_in_place_of_many(tmp_path):
    (tmp_path / "m.tflite").write_bytes(connected(drawn((100, 16), 1), per_channel=True))
    explanation = explain(tmp_path / "m.tflite")
    (saving,) = by(explanation, "quantize")
    assert "--granularity scalar" in saving.what
    # 4 bytes for a scale of the kernel and 8 for its zero point; the bias has as many.
    assert explanation.totals["scales"] - saving.bytes == pytest.approx(2 * 12, abs=40)
    assert explanation.totals["scales"] > 1200


def test_what_no_layer_needs_is_told_apart(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(connected(drawn((12, 64))))
    before = explain(path)
    model = read(path.read_bytes())
    add_constant(model, np.arange(300, dtype=np.int8))  # that nothing reads
    entry = schema.MetadataT()
    entry.name, entry.buffer = b"converter", len(model.buffers)
    model.buffers.append(Buffer.of(np.ones(700, np.uint8)))
    model.metadata = [entry]
    path.write_bytes(serialize(model) + bytes(500))
    after = explain(path)
    assert adds_up(after)
    assert part(after, "(unread)").bytes == 300
    assert 700 <= after.totals["names"] - before.totals.get("names", 0) < 730
    assert 500 <= after.totals["padding"] - before.totals["padding"] < 540  # data begin at multiples of 16
    (saving,) = (each for each in by(after, "lqconvert") if "metadata" in each.what)
    assert saving.bytes == after.bytes - before.bytes


def test_float_weights_take_four_times_as_much(tmp_path):
    model = tf_keras.Sequential([tf_keras.Input((40,)), layers.Dense(30)])
    (tmp_path / "m.tflite").write_bytes(convert(model, integer=False))
    explanation = explain(tmp_path / "m.tflite")
    assert adds_up(explanation)
    (saving,) = by(explanation, "quantize")
    assert saving.bytes == 3 * 1200
    assert "1,200 float weights as int8: 4,800 -> 1,200 bytes" in saving.what
    assert explanation.smallest == {}


def test_a_constant_that_two_read_counts_once(tmp_path):
    codes = drawn((12, 64))
    model = read(connected(codes))
    model.main.operators *= 2
    (tmp_path / "m.tflite").write_bytes(serialize(model))
    explanation = explain(tmp_path / "m.tflite")
    assert adds_up(explanation)
    assert explanation.totals["weights"] == codes.size


def test_biases_without_scales(tmp_path):
    """As TFLite Micro's files have them, of which nothing is packed here."""
    from single_operator import single_operator

    plain = single_operator("CONV_2D", drawn((8, 3, 3, 4)), True, k=3, rng=np.random.default_rng(0))
    model = read(plain)
    strip(model, RUNTIMES["tflm"].needless)
    (tmp_path / "m.tflite").write_bytes(serialize(model))
    assert adds_up(explain(tmp_path / "m.tflite"))


@pytest.mark.parametrize("command", ["inspect", "explain"])
def test_operators_on_constants_that_multiply(command, tmp_path):
    model = read(connected(drawn((12, 64))))
    graph, index = model.main, add_constant(model, np.ones(4, np.int8))
    for _ in range(40):
        result = add_tensor(model, "INT8", (4,))
        graph.operators.append(new_operator(model, "ADD", [index, index], [result]))
        index = result
    result = add_tensor(model, "INT8", (4,))
    graph.operators.append(new_operator(model, "ADD", [graph.inputs[0], index], [result]))
    (tmp_path / "m.tflite").write_bytes(serialize(model))
    result = CliRunner().invoke(main, [command, str(tmp_path / "m.tflite")])
    assert result.exit_code == 0, result.output


def test_a_tensor_of_absurd_size_is_not_worked_on(tmp_path):
    model = read(connected(drawn((12, 64))))
    model.main.tensors[model.main.outputs[0]].shape = (1, 2**31 - 1)
    (tmp_path / "m.tflite").write_bytes(serialize(model))
    explanation = explain(tmp_path / "m.tflite")
    assert adds_up(explanation)
    assert explanation.notes[0].endswith("a tensor has more than 16,777,216 values")


def stacked(kernels):
    """A file of fully connected layers in a row that share the first one's bias."""
    first, *others = kernels
    model = read(connected(first))
    graph, (operator,) = model.main, model.main.operators
    for codes in others:
        output = graph.tensors[operator.outputs[0]]
        another = copy.copy(operator)
        kernel = add_constant(model, codes, graph.tensors[operator.inputs[1]].quantization)
        made = add_tensor(model, "INT8", output.shape, output.quantization)
        another.inputs = (operator.outputs[0], kernel, operator.inputs[2])
        another.outputs = (made,)
        graph.operators.append(another)
        operator = another
    graph.outputs = operator.outputs
    return serialize(model)


def test_layers_that_share_a_bias(tmp_path):
    """Dead channels of one are not the other's."""
    first, second = drawn((8, 8)), drawn((8, 8))
    first[2] = 0
    second[:, 5] = 0  # nobody reads the first one's
    (tmp_path / "m.tflite").write_bytes(stacked([first, second, drawn((8, 8))]))
    assert adds_up(explain(tmp_path / "m.tflite"))


def test_a_file_of_very_many_layers_is_not_packed(tmp_path):
    (tmp_path / "m.tflite").write_bytes(stacked([drawn((64, 64)) for _ in range(257)]))
    explanation = explain(tmp_path / "m.tflite")
    assert adds_up(explanation)
    assert explanation.notes[0].endswith("the file has more than 256 layers with weights")


def test_the_command_prints_what_it_found(codes, explained):
    result = invoke(codes)
    assert result.exit_code == 0
    assert "dense" in result.stdout
    assert "bytes = 3,840 weights + 160 biases + " in result.stdout
    assert "smaller by lqconvert alone" in result.stdout
    assert "lqconvert's own files of these codes: " in result.stdout
    console = Console(width=80, record=True)
    explained.print(console)
    text = console.export_text()
    assert f"weights and biases as float32: {explained.float32_bytes:,} bytes" in text
    assert "smaller by another architecture, which you train again" in text


def test_json_is_the_dataclass(codes):
    result = invoke(codes, "--json")
    assert json.loads(result.stdout) == json.loads(json.dumps(dataclasses.asdict(explain(codes))))


def test_small_rows_are_summed_up(tmp_path):
    model = tf_keras.Sequential([tf_keras.Input((4,)), *(layers.Dense(4) for _ in range(25))])
    (tmp_path / "m.tflite").write_bytes(convert(model, integer=False))
    explanation = explain(tmp_path / "m.tflite")
    rest = explanation.parts[20:]
    line = next(line for line in invoke(tmp_path / "m.tflite").stdout.splitlines() if " more " in line)
    assert f"{len(rest)} more" in line
    assert f" {sum(part.bytes for part in rest):,} " in line


def test_tensorflow_is_not_needed_for_files(codes, tmp_path):
    (tmp_path / "m.tflite").write_bytes(connected(drawn((12, 64))))
    for path in (codes, tmp_path / "m.tflite"):
        code = "import sys, lqconvert; lqconvert.explain(sys.argv[1]); assert 'tensorflow' not in sys.modules"
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlperf_tiny_resnet8_int8.tflite", "mlperf_tiny_ad01_int8.tflite"])
def test_files_of_other_tools(name, shared):
    path = shared / "models" / name
    explanation = explain(path)
    assert adds_up(explanation)
    assert explanation.bytes == path.stat().st_size
    assert set(explanation.smallest) == set(RUNTIMES)
    assert all(size < explanation.bytes for size in explanation.smallest.values())


@pytest.mark.parametrize(
    "name", ["gone.tflite", "gone.h5", "foreign.npz", "broken.npz", "empty.h5", "bad.tflite"]
)
def test_mistakes_end_in_one_line(name, tmp_path):
    np.savez(tmp_path / "foreign.npz", x=np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"PK but no zip")
    (tmp_path / "empty.h5").touch()
    (tmp_path / "bad.tflite").write_bytes(b"no model")
    result = invoke(tmp_path / name)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1


def test_codes_of_other_layers_are_refused(codes, tmp_path):
    file = Int8File.load(codes)
    Codes({}).save(tmp_path / "m.codes.npz", Int8File(file.tflite, ["a", "b"], file.preprocess))
    with pytest.raises(LqError, match=r"not the \.codes\.npz"):
        explain(tmp_path / "m.codes.npz")
