"""Complete runs with the command line and the API, checked on the exported file."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert.interpreter import Interpreter
from click.testing import CliRunner
from tf_keras import layers

import lqconvert
from lqconvert.cli.main import main
from lqconvert.data.preprocessing import PREPROCESSINGS, Preprocessing
from lqconvert.exporting.codes import Int8File
from lqconvert.exporting.export import learned_codes, tflite_layout
from lqconvert.quantization.granularity import GRANULARITIES
from lqconvert.quantization.layers import ActivationQuantizer
from lqconvert.runtime.litert import Runner
from lqconvert.tflite.interface import Interface


def weight_tensors(tflite: bytes) -> list[tuple[np.ndarray, np.ndarray]]:
    """(codes, scales) of every constant int8 tensor of a file, read by LiteRT itself."""
    interpreter = Interpreter(model_content=tflite)
    interpreter.allocate_tensors()
    found = []
    for tensor in interpreter.get_tensor_details():
        if tensor["dtype"] == np.int8 and tensor["quantization_parameters"]["quantized_dimension"] >= 0:
            try:
                values = interpreter.get_tensor(tensor["index"])
            except ValueError:
                continue
            found.append((values, tensor["quantization_parameters"]["scales"]))
    return found


def test_digits_holds_its_accuracy(digits_run):
    folder, result = digits_run
    assert result.exit_code == 0, result.output
    report = json.loads((folder / "digits.report.json").read_text())
    assert report["float"]["score"] > 0.97
    assert report["best"]["score"] == pytest.approx(validation_score(folder / "digits.tflite"), abs=0.01)
    assert report["best"]["quality"] >= report["bar"][0] - 0.005  # what passes as noise
    # Five seeds lost 0 to 7 of the 359 test images, by the way that a machine takes.
    assert report["int8"]["score"] >= report["float"]["score"] - 0.04
    assert report["agreement_with_graph"] >= 0.98
    assert report["settings"]["preprocess"] == "none"
    (file,) = report["files"]
    assert file["proven"]["size"] == (folder / "digits.tflite").stat().st_size < report["int8"]["size"]
    assert file["score"] == report["int8"]["score"]
    assert set(file["proven"]["deviation"].values()) == {0}
    assert report["splits"] == {"train": 1079, "validation": 359, "test": 359}


def validation_score(path):
    """A file's accuracy on the split that steered its run."""
    x, y = lqconvert.load_data("digits", (8, 8, 1), 10).validation.arrays()
    return np.mean(Runner(path.read_bytes()).run([x.astype(np.float32)]).argmax(axis=1) == y)


def test_file_is_integer_only_and_holds_the_learned_codes(digits_run):
    folder, _ = digits_run
    for tflite in (
        (folder / "digits.tflite").read_bytes(),
        Int8File.load(folder / "digits.codes.npz").tflite,
    ):
        interpreter = Interpreter(model_content=tflite)
        interpreter.allocate_tensors()
        assert {tensor["dtype"] for tensor in interpreter.get_tensor_details()} <= {np.int8, np.int32}
    stored = weight_tensors(tflite)
    with np.load(folder / "digits.codes.npz") as codes:
        names = [name.removesuffix("/codes") for name in codes.files if name.endswith("/codes")]
        assert len(names) == 4
        for name in names:
            kind = "Dense" if name.startswith("dense") else "Conv2D"
            expected, scale = tflite_layout(kind, codes[f"{name}/codes"]), codes[f"{name}/scale"].ravel()
            assert any(
                values.shape == expected.shape
                and np.array_equal(values, expected)
                and np.all(scales == scale)
                for values, scales in stored
            ), name


def test_nothing_else_is_left_behind(digits_run):
    folder, _ = digits_run
    assert sorted(path.name for path in folder.iterdir()) == [
        "digits.codes.npz",
        "digits.report.json",
        "digits.tflite",
    ]


BLOCKS = {
    "dense": lambda x: layers.Dense(5, activation="tanh")(layers.Flatten()(x)),
    "conv": lambda x: layers.Conv2D(5, 3, padding="same", activation="relu")(x),
    "conv without bias": lambda x: layers.Conv2D(5, 3, strides=2, use_bias=False)(x),
    "relu6": lambda x: layers.ReLU(6.0)(layers.Conv2D(5, 3, dilation_rate=2)(x)),
    "leaky relu": lambda x: layers.LeakyReLU(0.1)(layers.Conv2D(5, 3)(x)),
    "depthwise": lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu")(x),
    "separable": lambda x: layers.SeparableConv2D(6, 3, activation="relu")(x),
    "transposed": lambda x: layers.Conv2DTranspose(5, 3, strides=2, activation="relu")(x),
    "batch norm behind": lambda x: layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(5, 3)(x))),
    "batch norm before": lambda x: layers.Conv2D(5, 3)(layers.BatchNormalization()(layers.ReLU()(x))),
    "batch norm that stays": lambda x: layers.Conv2D(5, 3, padding="same")(
        layers.BatchNormalization()(layers.Conv2D(4, 1, activation="relu")(x))
    ),
    "batch norm, flatten, dense": lambda x: layers.Dense(5)(
        layers.Flatten()(layers.BatchNormalization()(layers.MaxPooling2D()(x)))
    ),
    "residual": lambda x: layers.ReLU()(layers.Add()([x, layers.Conv2D(3, 3, padding="same")(x)])),
    "concatenate": lambda x: layers.Concatenate()([x, layers.Conv2D(5, 1)(x)]),
    "gate": lambda x: layers.Multiply()([x, layers.Conv2D(3, 1, activation="sigmoid")(x)]),
    "pad, upsample, average": lambda x: layers.AveragePooling2D()(
        layers.UpSampling2D()(layers.ZeroPadding2D()(layers.Conv2D(4, 1)(x)))
    ),
    "global pooling, softmax": lambda x: layers.Dense(4, activation="softmax")(
        layers.GlobalAveragePooling2D()(layers.Conv2D(5, 3)(x))
    ),
    "conv1d": lambda x: layers.Conv1D(5, 3, padding="same", activation="relu")(layers.Reshape((64, 3))(x)),
}


def random_model(block, seed=0):
    tf_keras.utils.set_random_seed(seed)
    x = layers.Input((8, 8, 3))
    model = tf_keras.Model(x, block(x))
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            gamma, _, mean, variance = layer.get_weights()
            shape = gamma.shape  # negative gammas too: they flip the signs of codes
            layer.set_weights(
                [rng.normal(size=shape), rng.normal(size=shape), mean, variance + rng.random(shape)]
            )
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(0, 0.3, layer.bias.shape))
    return model


@pytest.mark.parametrize("name", BLOCKS)
def test_every_layer_exports_exactly(name):
    model = random_model(BLOCKS[name])
    x = np.random.default_rng(1).normal(size=(32, 8, 8, 3)).astype(np.float32)
    assert_exports(model, x)


def assert_exports(model, x, fold=False, **options):
    """The exported file agrees with its graph within 2 steps of its output, and with the float model."""
    quantized = lqconvert.rewrite(model, **options)
    lqconvert.calibrate(quantized, [x])
    exported = lqconvert.export(quantized, [x] if fold else [])
    outputs = Runner(exported.tflite).run([x])
    graph = quantized(x, training=False).numpy()
    assert np.max(np.abs(outputs - graph)) <= 2.01 * exported.output_scale
    truth = model(x, training=False).numpy()
    assert (
        np.sqrt(np.mean((outputs - truth) ** 2)) <= 0.05 * np.sqrt(np.mean(truth**2)) + exported.output_scale
    )
    stored = weight_tensors(exported.tflite)
    for layer in exported.codes.layers.values():
        expected = tflite_layout(layer.kind, layer.kernel.codes)
        assert any(np.array_equal(values.ravel(), expected.ravel()) for values, _ in stored), layer.name
    return exported


@pytest.mark.parametrize("size", [1e-9, 1e-6, 1e-3, 1e3])
def test_weights_of_any_size(size):
    x = np.random.default_rng(1).normal(size=(32, 8, 8, 3)).astype(np.float32) / size
    model = random_model(lambda x: layers.Dense(4)(layers.Flatten()(x)))
    model.layers[-1].kernel.assign(size * model.layers[-1].kernel)
    (layer,) = assert_exports(model, x).codes.layers.values()
    assert np.abs(layer.kernel.codes).max(axis=0).tolist() == [127] * 4
    # Factors that nothing absorbs.
    model = random_model(lambda x: layers.Conv2D(4, 3, padding="same")(layers.BatchNormalization()(x)))
    gamma, *others = model.layers[1].get_weights()
    model.layers[1].set_weights([size * gamma, *others])
    factors, _ = assert_exports(model, x).codes.layers.values()
    assert np.abs(factors.kernel.codes).ravel().tolist() == [127] * 3


@pytest.mark.parametrize(("weights", "share"), [(0.0, 0.0), (1e-12, 0.0), (1e-30, 0.0), (1.0, 1e-9)])
@pytest.mark.parametrize("granularity", ["scalar", "output-channel-wise"])
def test_biases_of_dead_layers_fit(granularity, weights, share):
    """Weight decay leaves next to nothing of some kernels, and of what others compute."""
    x = np.random.default_rng(1).normal(size=(32, 8, 8, 3)).astype(np.float32)
    model = random_model(lambda x: layers.Dense(4)(layers.Conv2D(5, 3, name="front", activation="relu")(x)))
    front, last = model.get_layer("front"), model.layers[-1]
    front.set_weights([share * w if share else w for w in front.get_weights()])
    last.set_weights([weights * last.get_weights()[0], np.array([-300.0, 0.0, 1.0, 300.0])])
    assert_exports(model, x, granularity=granularity)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_granularities(granularity):
    model = random_model(
        lambda x: layers.Dense(4)(layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(x)))
    )
    x = np.random.default_rng(1).normal(size=(32, 8, 8, 3)).astype(np.float32)
    exported = assert_exports(model, x, granularity=granularity)
    recoded = [layer.kernel.deviation > 0 for layer in exported.codes.layers.values()]
    dense_is_native = granularity in ("mixed", "scalar", "column-wise", "output-channel-wise")
    conv_is_native = granularity in ("mixed", "scalar", "output-channel-wise")
    assert recoded == [not conv_is_native, not dense_is_native]
    assert all(layer.kernel.deviation < 0.01 for layer in exported.codes.layers.values())


@pytest.mark.parametrize(
    ("block", "granularity"),
    [
        (
            lambda x: layers.Dense(4)(layers.Dense(9, activation="relu")(layers.Flatten()(x))),
            "row-wise",
        ),
        (
            lambda x: layers.Conv2D(4, 3)(layers.MaxPooling2D()(layers.Conv2D(6, 3, activation="relu")(x))),
            "channel-wise",
        ),
        (
            lambda x: layers.Conv2D(4, 3)(
                layers.BatchNormalization()(layers.Conv2D(6, 1, activation="relu")(x))
            ),
            "channel-wise",
        ),
        (
            lambda x: layers.Conv2D(4, 3, groups=2)(layers.Conv2D(6, 3, activation="relu")(x)),
            "channel-wise",
        ),
    ],
    ids=["dense", "conv", "through batch norm", "groups"],
)
def test_scales_of_input_channels_fold_into_the_layer_in_front(block, granularity):
    x = np.random.default_rng(1).normal(size=(32, 8, 8, 3)).astype(np.float32)
    exported = assert_exports(random_model(block), x, fold=True, granularity=granularity)
    *_, front, last = exported.codes.layers.values()
    assert last.kernel.granularity == f"{granularity}, folded into {front.name}"
    assert last.kernel.deviation == 0
    assert last.kernel.scale.size == 1


def test_scales_do_not_fold_into_what_the_model_gives():
    tf_keras.utils.set_random_seed(0)
    x = tf_keras.Input((8,))
    front = layers.Dense(6, name="front")(x)
    model = tf_keras.Model(x, [front, layers.Dense(3)(front)])
    quantized = lqconvert.rewrite(model, granularity="channel-wise")
    inputs = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    lqconvert.calibrate(quantized, [inputs])
    outputs = Runner(lqconvert.export(quantized, [inputs]).tflite).run([inputs])
    truth = np.concatenate([y.numpy() for y in quantized(inputs, training=False)], axis=1)
    assert np.abs(outputs - truth).max() < 0.05 * truth.std()


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheme", [lqconvert.LSQ(limit=7), lqconvert.MaxBin(gamma=1e-4)], ids=lambda s: s.name
)
def test_rewritten_model_trains_from_scratch_with_fit(scheme):
    data = lqconvert.load_data("digits", (8, 8, 1), 10)
    x, y = data.train.arrays()
    x = x.astype(np.float32)
    tf_keras.utils.set_random_seed(0)
    model = tf_keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    functional = tf_keras.Model(model.inputs, model.outputs)
    quantized = lqconvert.rewrite(functional, scheme, start=0.02)
    quantized.compile(tf_keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    quantized.fit(x, y, epochs=12, batch_size=32, verbose=0)
    exported = lqconvert.export(quantized)
    test_x, test_y = data.test.arrays()
    outputs = Runner(exported.tflite).run([test_x.astype(np.float32)])
    assert np.mean(outputs.argmax(axis=1) == test_y) > 0.85
    assert all(np.abs(layer.kernel.codes).max() <= scheme.limit for layer in exported.codes.layers.values())
    assert learned_codes(quantized).layers.keys() == exported.codes.layers.keys()


@pytest.mark.parametrize(
    ("preprocessing", "expected", "shift"),
    [
        (PREPROCESSINGS["none"], (0.0, 255.0), 0.0),
        (PREPROCESSINGS["0-1"], (0.0, 1.0), 0.0),
        (PREPROCESSINGS["-1-1"], (-128 / 127.5, 127 / 127.5), 0.5),
        (Preprocessing(1.0, 500.0), None, 0.0),
    ],
)
def test_raw_pixels_are_taken_as_they_are(preprocessing, expected, shift):
    assert preprocessing.pixel_range == (None if expected is None else pytest.approx(expected))
    assert abs(preprocessing.pixel_shift) == pytest.approx(shift)
    if expected is None:
        return
    # By the graph and by the file, all of them as a device feeds them: pixel - 128.
    fed = preprocessing.off_ties(preprocessing.pixel_zero_point)
    assert fed == preprocessing or shift
    raw = np.arange(256, dtype=np.float32)
    x = raw * np.float32(fed.scale) + np.float32(fed.offset)
    quantizer = ActivationQuantizer(fixed=preprocessing.pixel_range)
    y = quantizer(x).numpy()
    scale, zero_point = quantizer.scale_and_zero_point
    np.testing.assert_array_equal(np.round(y / scale) + zero_point, raw - 128)
    detail = {"name": "x", "shape": (1,), "dtype": np.int8, "quantization": (scale, zero_point)}
    np.testing.assert_array_equal(Interface([detail], []).quantize(x), raw - 128)


@pytest.mark.parametrize(
    ("dtype", "zero_point"), [(np.int8, -1), (np.int8, 0), (np.uint8, 127), (np.uint8, 128)]
)
def test_pixels_of_other_tools_files(dtype, zero_point):
    """TensorFlow's converter rounds the zero point of -1..1 the other way."""
    lowest = np.iinfo(dtype).min
    fed = PREPROCESSINGS["-1-1"].off_ties(zero_point, lowest)
    raw = np.arange(256, dtype=np.float32)
    detail = {"name": "x", "shape": (1,), "dtype": dtype, "quantization": (1 / 127.5, zero_point)}
    codes = Interface([detail], []).quantize(raw * np.float32(fed.scale) + np.float32(fed.offset))
    np.testing.assert_array_equal(codes, raw + lowest)
    assert PREPROCESSINGS["-1-1"].off_ties(zero_point + 5, lowest) == PREPROCESSINGS["-1-1"]


@pytest.mark.slow
def test_mnist(shared, samples, tmp_path, monkeypatch):
    monkeypatch.setenv("LQCONVERT_DATA", str(shared / "data"))
    report = lqconvert.quantize(samples / "mnist_mlp.h5", "mnist", tmp_path / "mnist.tflite", epochs=1)
    # The budget lets a sampling error of 0.2 points pass on the validation split; test data have their own.
    assert report.int8.score >= report.float_.score - 0.0075
    assert report.agreement_with_graph >= 0.998
    assert str(report.settings.preprocess) == "0-1"
    assert list(report.inputs.values()) == [(pytest.approx(1 / 255), -128)]


def write_npz(path, **arrays):
    np.savez(path, **arrays)


X, Y = np.zeros((100, 8, 8), np.uint8), np.arange(100) % 10
MISTAKES = {
    "no such model": (lambda d: d / "no.h5", "digits", "no such file"),
    "text as .h5": (lambda d: text(d / "text.h5"), "digits", "neither HDF5 nor"),
    "truncated .h5": (lambda d: truncated(d / "cut.h5"), "digits", "cut.h5"),
    "NaN weights": (lambda d: with_nan(d / "nan.h5"), "digits", "layer 'dense' has NaN"),
    "unknown layer": (lambda d: with_unknown_layer(d / "unit.h5"), "digits", "over axis 1"),
    "no such data": (None, "no_such_data", "no such data"),
    "data of another shape": (None, {"x": np.zeros((100, 9, 9), np.uint8), "y": Y}, "model takes (8, 8, 1)"),
    "labels out of range": (None, {"x": X, "y": Y + 5}, "label 10 is out of range"),
    "NaN data": (None, {"x": np.full((100, 8, 8), np.nan), "y": Y}, "NaN"),
    "fewer labels": (None, {"x": X, "y": Y[:50]}, "100 inputs but 50 labels"),
    "chance": (None, {"x": X, "y": Y}, "no better than chance"),
}


def text(path):
    path.write_text("not a model")
    return path


def truncated(path):
    source = path.parent / "model.h5"
    path.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    return path


def with_nan(path):
    model = tf_keras.models.load_model(path.parent / "model.h5", compile=False)
    layer = model.get_layer("dense")
    layer.kernel.assign(tf.fill(layer.kernel.shape, np.nan))
    model.save(path)
    return path


def with_unknown_layer(path):
    unit = layers.UnitNormalization(axis=1)
    tf_keras.Sequential([layers.Input((8, 8, 1)), unit, layers.Flatten()]).save(path)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model", "data", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_in_one_line(model, data, message, tmp_path, samples):
    shutil.copy(samples / "digits_cnn.h5", tmp_path / "model.h5")
    path = model(tmp_path) if model else tmp_path / "model.h5"
    if isinstance(data, dict):
        write_npz(tmp_path / "data.npz", **data)
        data = str(tmp_path / "data.npz")
    output = tmp_path / "out" / "x.tflite"
    result = CliRunner().invoke(main, ["quantize", str(path), "--data", data, "-o", str(output)])
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert len([line for line in result.stderr.splitlines() if "error" in line]) == 1
    assert "Traceback" not in result.output
    assert not output.parent.exists() or not list(output.parent.iterdir())


def test_unwritable_output(samples):
    command = ["quantize", str(samples / "digits_cnn.h5"), "--data", "digits", "-o", "/sys/no/x.tflite"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr


@pytest.mark.parametrize("name", ["m", "m-0.5", "m.h5", "m.npz"])
def test_a_tflite_is_named_so(name, samples, tmp_path):
    with pytest.raises(lqconvert.LqError, match=r"give the name of a \.tflite file"):
        lqconvert.quantize(samples / "digits_cnn.h5", "digits", tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "output"), [("a.h5", "a.tflite"), ("v1.2/", "v1.2.tflite")])
def test_files_without_a_name_of_their_own_are_beside_the_model(model, output, samples, tmp_path):
    path = str(tmp_path / model)
    if model.endswith("/"):
        lqconvert.load_model(samples / "digits_cnn.h5").save(path)
    else:
        shutil.copy(samples / "digits_cnn.h5", path)
    result = CliRunner().invoke(main, ["quantize", path, "--data", "digits", "--dry-run", "--json"])
    assert json.loads(result.stdout)["files"][0]["path"] == str(tmp_path / output)


@pytest.mark.parametrize(
    "arguments", [["quantize"], ["quantize", "m.h5", "--data", "digits", "--preprocess", "x"]]
)
def test_usage_errors_exit_with_2(arguments):
    assert CliRunner().invoke(main, arguments).exit_code == 2
