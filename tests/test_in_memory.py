"""Models and data in memory give the same results as their files."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import lqconvert
from lqconvert import LqError, load_data, load_model
from lqconvert.data.arrays import checksum
from lqconvert.keras_loader.in_memory import default_output, model_label
from lqconvert.tasks import Output, Wishes

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (60, 6, 5, 3), dtype=np.uint8)
Y = np.arange(60) % 2
#: For a model with two inputs and two outputs.
INPUTS = {"words": (4,), "numbers": (2, 3)}
OUTPUTS = [Output("kind", (3,), "softmax"), Output("age", (1,))]
BOTH = {"words": RNG.normal(size=(60, 4)), "numbers": RNG.normal(size=(60, 2, 3))}
LABELS = {"kind": np.arange(60) % 3, "age": RNG.normal(40, 9, 60)}


def network(api, **settings):
    layers = [api.Input((8, 8, 1)), api.layers.Flatten(), api.layers.Dense(10, "softmax", name="dense")]
    return api.Sequential(layers, name="net", **settings)


@pytest.mark.parametrize("api", [keras, tf_keras])
def test_a_model_in_memory_loads_as_its_file(api, tmp_path):
    model = network(api)
    model.compile("adam", loss=lambda y_true, y_pred: y_pred - y_true)
    model.save(tmp_path / "net.keras")
    before, x = model.get_weights(), RNG.normal(size=(3, 8, 8, 1)).astype(np.float32)
    loaded, other = load_model(model), load_model(tmp_path / "net.keras")
    assert loaded.get_config() == other.get_config()
    np.testing.assert_array_equal(loaded(x), other(x))
    np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)
    assert model.optimizer is not None
    for weight, same in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)


def test_what_load_model_gave_loads_again(samples):
    loaded = load_model(samples / "digits_cnn.h5")
    x = RNG.normal(size=(3, 8, 8, 1)).astype(np.float32)
    np.testing.assert_array_equal(load_model(loaded)(x), loaded(x))


@pytest.mark.parametrize("api", [keras, tf_keras])
def test_a_lambda_in_memory_needs_trust(api):
    x = api.Input((4,))
    double = api.layers.Lambda(lambda value: 2 * value, output_shape=(4,), name="double")
    model = api.Model(x, api.layers.Dense(2)(double(x)), name="net")
    with pytest.raises(LqError, match=r"^net: layer 'double' \(Lambda\): holds Python code"):
        load_model(model)
    values = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(load_model(model, trust_model=True)(values), model(values), atol=1e-6)


class Own(keras.Model):
    def call(self, x):
        return x


class Unsaved(keras.layers.Layer):
    def call(self, x):
        return x

    def get_config(self):
        raise ValueError("it cannot be said")


def of_own_layer():
    x = keras.Input((4,))
    return keras.Model(x, Unsaved()(x), name="net")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Own(name="net"), "^net: the model is a Own, not a Sequential or functional model"),
        (lambda: keras.Sequential([keras.layers.Dense(3)], name="net"), "^net: "),
        (of_own_layer, "^net: Keras cannot save the model: .*it cannot be said"),
        (lambda: 3, "^int: neither the path of a model nor a Keras model"),
        (lambda: keras.layers.Dense(3), "^Dense: neither the path of a model nor a Keras model"),
    ],
)
def test_models_that_cannot_be_taken(model, message):
    with pytest.raises(LqError, match=message) as raised:
        load_model(model())
    assert "model.keras" not in str(raised.value)


@pytest.mark.slow
def test_models_in_memory_are_inspected_and_explained_as_files(tmp_path):
    model = network(keras)
    model.save(tmp_path / "net.keras")
    for look in (lqconvert.inspect, lqconvert.explain):
        found, of_file = look(model), look(tmp_path / "net.keras")
        assert found.file == "net"
        said = {
            name: value
            for name, value in dataclasses.asdict(found).items()
            if name not in ("file", "subject")
        }
        assert said == {name: value for name, value in dataclasses.asdict(of_file).items() if name in said}


def test_reports_tell_models_of_one_name_apart():
    model = network(keras)
    label = model_label(model)
    assert label.startswith("net (weights ")
    assert model_label(model) == label
    model.set_weights([weight + 1 for weight in model.get_weights()])
    assert model_label(model) != label


@pytest.mark.parametrize(
    ("model", "output"),
    [("a/b.h5", "a/b.tflite"), ("a/b.c", "a/b.c.tflite"), ("a/saved/", "a/saved.tflite")],
)
def test_what_is_made_lies_beside_the_file(model, output):
    assert str(default_output(model, ".tflite")) == output


def test_what_is_made_of_a_model_in_memory_has_its_name():
    assert str(default_output(tf_keras.Sequential(name="a b/c"), ".tflite")) == "a_b_c.tflite"


def examples(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y))


def assert_same(data, other):
    assert data.heads == other.heads
    assert data.integer_pixels == other.integer_pixels
    assert data.sizes == other.sizes
    for name in data.sizes:
        for one, two in zip(getattr(data, name).arrays(), getattr(other, name).arrays(), strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "data",
    [
        lambda: (X, Y),
        lambda: (X.tolist(), Y.tolist()),
        lambda: (tf.constant(X), tf.constant(Y)),
        lambda: {"x": X, "y": Y},
        lambda: ({"image": X}, Y),
        lambda: ({"image": X}, {"": Y}),
        lambda: examples(X, Y),
        lambda: examples(X, Y).batch(7),
        lambda: examples({"image": X}, Y).batch(7),
    ],
)
def test_arrays_are_split_as_those_of_a_file(data, tmp_path):
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    assert_same(load_data(data(), (6, 5, 3), 2), load_data(tmp_path / "data.npz", (6, 5, 3), 2))


@pytest.mark.parametrize(
    "data",
    [
        lambda: ((X[20:], Y[20:]), (X[:20], Y[:20])),
        lambda: (examples(X[20:], Y[20:]), examples(X[:20], Y[:20]).batch(9)),
        lambda: {"x_train": X[20:], "y_train": Y[20:], "x_test": X[:20], "y_test": Y[:20]},
    ],
)
def test_a_part_to_test_on_stays_apart(data, tmp_path):
    np.savez(tmp_path / "data.npz", x_train=X[20:], y_train=Y[20:], x_test=X[:20], y_test=Y[:20])
    assert_same(load_data(data(), (6, 5, 3), 2), load_data(tmp_path / "data.npz", (6, 5, 3), 2))


@pytest.mark.parametrize(
    "data",
    [
        lambda: (BOTH, LABELS),
        lambda: (BOTH, list(LABELS.values())),
        lambda: {**BOTH, **LABELS},
        lambda: examples(BOTH, LABELS),
        lambda: examples(BOTH, LABELS).batch(7),
    ],
)
def test_several_inputs_and_outputs_by_name(data, tmp_path):
    np.savez(tmp_path / "data.npz", **BOTH, **LABELS)
    of_file = load_data(str(tmp_path / "data.npz"), INPUTS, OUTPUTS)
    assert [head.task for head in of_file.heads] == ["classification", "regression"]
    assert_same(load_data(data(), INPUTS, OUTPUTS), of_file)


def test_inputs_alone_have_no_labels():
    assert not load_data(X, (6, 5, 3), 2).labelled
    assert not load_data(tf.data.Dataset.from_tensor_slices(X), (6, 5, 3), 2).labelled
    assert not load_data({"x": X}, (6, 5, 3), 2).labelled


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X, Y, Y), r"^the arrays: gave 3 values instead of \(x, y\)"),
        ((X[:9], Y[:9]), "^the arrays: 9 examples are too few"),
        ((X, Y[:9]), "^the arrays: 60 inputs but 9 labels"),
        ((X[:, :3], Y), r"^the arrays: inputs of shape \(3, 5, 3\), but the model takes \(6, 5, 3\)"),
        (([[1, 2], [3]], [0, 1]), "^the arrays: cannot be converted to an array"),
        (3, "^the arrays: int is not an array of examples"),
        ((X, {"colour": Y}), "^the arrays: labels of colour"),
        (({"a": X, "b": X}, Y), "^the arrays: inputs a, b, but the model takes one"),
        ({"inputs": X}, "^the arrays: holds inputs; give x_train"),
        (X.astype(str), "^the arrays: inputs of type <U"),
        (tf.data.Dataset.from_tensor_slices((X, Y)).repeat(), "^the arrays: the data set never ends"),
    ],
)
def test_data_that_cannot_be_taken(data, message):
    with pytest.raises(LqError, match=message):
        load_data(data, (6, 5, 3), 2)


@pytest.mark.parametrize("x", [X, {"words": BOTH["words"]}, {}])
def test_several_inputs_have_to_be_named(x):
    with pytest.raises(LqError, match="the arrays: give x as a dict of the model's inputs: words, numbers"):
        load_data((x, LABELS), INPUTS, OUTPUTS)


def test_what_nothing_uses_is_said():
    (note,) = load_data(({**BOTH, "colours": X}, LABELS), INPUTS, OUTPUTS).notes
    assert note == "the arrays: nothing uses colours"


def test_data_are_given_again():
    data = load_data((X, Y), (6, 5, 3), 2, Wishes(metrics={"": "AUC"}))
    again = load_data(data, {"image": (6, 5, 3)}, [Output("answer", (2,), "softmax")])
    (head,) = again.heads
    assert head.output.name == "answer"
    assert head.judged == ("AUC",)
    assert_same(dataclasses.replace(again, heads=data.heads), data)


@pytest.mark.parametrize(
    ("shape", "outputs", "wishes", "message"),
    [
        ((6, 5), 2, None, r"inputs of shape \(6, 5, 3\), but the model takes \(6, 5\)"),
        ((6, 5, 3), 10, None, "were loaded for a model with other outputs"),
        ((6, 5, 3), 2, Wishes(threshold=0.3), "are loaded already, so tasks and metrics cannot be chosen"),
    ],
)
def test_data_that_do_not_fit_another_model(shape, outputs, wishes, message):
    data = load_data((X, Y), (6, 5, 3), 2)
    with pytest.raises(LqError, match=f"^the arrays: .*{message}"):
        load_data(data, shape, outputs, wishes)


def test_other_data_have_another_checksum():
    given = [
        (X, Y),
        (X, 1 - Y),
        {"x": X, "y": Y},
        ({"x": X}, Y),
        examples(X, Y),
        load_data((X, Y), (6, 5, 3), 2),
    ]
    assert len({checksum(data) for data in given}) == len(given)
    assert checksum((X.copy(), Y.copy())) == checksum((X, Y))


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", (8, 8, 1), 10)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """A small model of the digits, in memory and as a file."""
    model, path = network(tf_keras), tmp_path_factory.mktemp("trained") / "net.keras"
    model.compile(tf_keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(*digits.train.arrays(), epochs=20, verbose=0)
    model.save(path)
    return model, path


SETTINGS = {"scheme": lqconvert.Rate(gamma=1.0), "epochs": 1}
#: Instead of trials of what the preprocessing may be, which take time.
AS_IT_IS = lqconvert.Preprocessing()


@pytest.fixture(scope="module")
def of_memory(trained, digits, tmp_path_factory):
    """What was planned of a run of what is in memory, its report, and the folder in which it worked."""
    (model, _), folder = trained, tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        planned = lqconvert.plan(model, digits, **SETTINGS)
        return planned, lqconvert.quantize(model, digits, **SETTINGS), folder


@pytest.mark.slow
def test_a_run_of_what_is_in_memory_makes_the_same_file(of_memory, trained, tmp_path):
    planned, report, folder = of_memory
    assert {file.path for file in planned.files} == {path.name for path in folder.iterdir()}
    assert report.files[0].path == "net.tflite"
    by_path = lqconvert.quantize(trained[1], "digits", tmp_path / "other.tflite", **SETTINGS)
    assert (folder / "net.tflite").read_bytes() == (tmp_path / "other.tflite").read_bytes()
    assert by_path.files[0].scores == report.files[0].scores


@pytest.mark.slow
def test_models_and_data_in_memory_are_measured_as_files(of_memory, trained, digits):
    (model, path), file = trained, of_memory[-1] / "net.tflite"
    evaluation = lqconvert.evaluate(model, digits)
    assert evaluation.file == "net"
    assert evaluation.scores == lqconvert.evaluate(path, "digits").scores
    part = digits.train.arrays(), digits.test.arrays()
    first, second = lqconvert.compare([model, file], part, preprocess=AS_IT_IS).files
    assert first.evaluation.scores == evaluation.scores
    assert second.agreement > 0.9
    result = lqconvert.check(
        file, data=part, baseline=model, max_drop=10, target="litert", preprocess=AS_IT_IS
    )
    assert result.measured.scores["accuracy"] == second.evaluation.score
    assert result.holds


@pytest.mark.slow
def test_a_sweep_of_what_is_in_memory_goes_on(trained, digits, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    data, done = digits.train.arrays(), []
    grid = {"schemes": ["rate"], "granularities": ["mixed"], "penalties": [1.0], "epochs": 1}
    (run,) = lqconvert.sweep(trained[0], data, **grid, done=done.append)
    assert (tmp_path / "net.sweep" / f"{run.name}.tflite").stat().st_size == run.bytes
    assert lqconvert.sweep(trained[0], data, **grid, done=done.append) == done == [run]
