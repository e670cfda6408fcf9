"""Files of both Keras generations give the same flat tf_keras model; nothing in them is executed."""

import h5py
import keras
import numpy as np
import pytest
import tf_keras

from lqconvert import LqError, calibrate, export, load_model, rewrite
from lqconvert.quantization.fold_batchnorm import fold
from lqconvert.runtime.litert import Runner


def skip_network(api, by_operator):
    """A small functional model with a skip connection, in either Keras."""
    x = api.Input((8, 8, 3), name="image")
    y = api.layers.Conv2D(4, 3, padding="same", name="first")(x)
    y = api.layers.BatchNormalization(name="norm")(y)
    y = api.layers.ReLU(name="relu")(y)
    z = api.layers.Conv2D(4, 3, padding="same", activation="relu", name="second")(y)
    y = y + z if by_operator else api.layers.Add(name="add")([y, z])
    y = api.layers.GlobalAveragePooling2D(name="pool")(y)
    return api.Model(x, api.layers.Dense(5, activation="softmax", name="dense")(y))


@pytest.mark.parametrize(
    ("api", "suffix", "by_operator"),
    [
        (keras, ".keras", False),
        (keras, ".keras", True),
        (keras, ".h5", False),  # Keras 3.15 cannot read back its own .h5 of a model with x + y
        (tf_keras, ".keras", False),
        (tf_keras, ".keras", True),
        (tf_keras, ".h5", False),
        (tf_keras, ".h5", True),
    ],
)
def test_all_formats_give_the_same_model(api, suffix, by_operator, tmp_path):
    twin = skip_network(tf_keras, by_operator)
    rng = np.random.default_rng(0)
    weights = [np.abs(rng.normal(0.1, 0.3, w.shape)).astype(np.float32) for w in twin.get_weights()]
    twin.set_weights(weights)
    model = skip_network(api, by_operator)
    model.set_weights(weights)
    model.save(tmp_path / f"model{suffix}")
    loaded = load_model(tmp_path / f"model{suffix}")
    assert type(loaded).__module__.startswith("tf_keras")
    x = rng.normal(size=(4, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(loaded(x), twin(x), atol=1e-6)


def test_saved_model(tmp_path):
    twin = skip_network(tf_keras, by_operator=False)
    twin.save(tmp_path / "saved", save_format="tf")
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(load_model(tmp_path / "saved")(x), twin(x), atol=1e-6)


def shared_often(x):
    dense = tf_keras.layers.Dense(32, activation="tanh")
    y = tf_keras.layers.Dense(32)(x)
    for _ in range(20):
        y = dense(y)
    return y


def rescaled(x):
    y = tf_keras.layers.Reshape((2000, 8))(tf_keras.layers.Rescaling(1 / 32768)(x))
    return tf_keras.layers.GlobalAveragePooling1D()(tf_keras.layers.Conv1D(4, 3)(y))


@pytest.mark.parametrize("block", [shared_often, rescaled], ids=lambda block: block.__name__)
def test_a_model_may_have_more_weights_rebuilt(block, tmp_path):
    x = tf_keras.Input((16000,))
    model = tf_keras.Model(x, block(x))
    model.save(tmp_path / "m.keras")
    inputs = np.random.default_rng(0).normal(size=(2, 16000)).astype(np.float32)
    np.testing.assert_allclose(load_model(tmp_path / "m.keras")(inputs), model(inputs), atol=1e-5)


def test_outputs_in_a_dict(tmp_path):
    x = keras.Input((4,))
    model = keras.Model(x, {"b": keras.layers.Dense(2)(x), "a": keras.layers.Dense(3)(x)})
    model.save(tmp_path / "m.keras")
    inputs = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    expected = model(inputs)
    for name, found in zip("ab", load_model(tmp_path / "m.keras")(inputs), strict=True):
        np.testing.assert_allclose(found, expected[name], atol=1e-6)


@pytest.mark.parametrize("kind", ["Add", "Average"])
@pytest.mark.parametrize("count", [2, 4])
def test_sums_of_several_become_sums_of_two(kind, count, tmp_path):
    x = tf_keras.Input((8, 8, 3))
    parts = [tf_keras.layers.Conv2D(4, 3)(x) for _ in range(count)]
    model = tf_keras.Model(x, getattr(tf_keras.layers, kind)()(parts))
    model.save(tmp_path / "model.h5")
    loaded = load_model(tmp_path / "model.h5")
    values = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(loaded(values), model(values), atol=1e-5)
    quantized = rewrite(loaded)
    calibrate(quantized, [values])
    exported = export(quantized)
    difference = Runner(exported.tflite).run([values]) - quantized(values, training=False)
    assert np.max(np.abs(difference)) <= 2.01 * exported.output_scale


def test_nested_and_shared_layers_become_flat(tmp_path):
    part = tf_keras.Sequential(
        [tf_keras.Input((6,)), tf_keras.layers.Dense(6, activation="relu")], name="part"
    )
    x = tf_keras.Input((6,))
    model = tf_keras.Model(x, tf_keras.layers.Dense(2)(tf_keras.layers.Dropout(0.5)(part(part(x)))))
    model.save(tmp_path / "model.h5")
    loaded = load_model(tmp_path / "model.h5")
    assert [type(layer).__name__ for layer in loaded.layers] == ["InputLayer", "Dense", "Dense", "Dense"]
    values = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    np.testing.assert_allclose(loaded(values), model(values), atol=1e-6)


@pytest.mark.parametrize(("api", "suffix"), [(tf_keras, ".h5"), (keras, ".keras")])
def test_key_and_value_are_told_apart(api, suffix, tmp_path):
    query, key, value = (api.Input((4, 6), name=name) for name in "abc")
    model = api.Model([query, key, value], api.layers.MultiHeadAttention(2, 3)(query, key=key, value=value))
    model.save(tmp_path / f"model{suffix}")
    inputs = list(np.random.default_rng(0).normal(size=(3, 2, 4, 6)).astype(np.float32))
    np.testing.assert_allclose(load_model(tmp_path / f"model{suffix}")(inputs), model(inputs), atol=1e-5)


def test_a_layer_may_have_any_name(tmp_path):
    model = tf_keras.Sequential([tf_keras.Input((3,)), tf_keras.layers.Dense(2, name="seed_type")])
    model.save(tmp_path / "model.h5")
    np.testing.assert_allclose(load_model(tmp_path / "model.h5").get_weights()[0], model.get_weights()[0])


def test_nothing_is_dropped_in_recurrent_layers(tmp_path):
    lstm = tf_keras.layers.LSTM(3, dropout=0.5, recurrent_dropout=0.5)
    model = tf_keras.Sequential([tf_keras.Input((4, 6)), lstm])
    model.save(tmp_path / "model.h5")
    loaded, x = load_model(tmp_path / "model.h5"), np.ones((2, 4, 6), np.float32)
    np.testing.assert_allclose(loaded(x, training=True), model(x, training=False), atol=1e-6)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_a_lambda_is_refused_before_it_runs(suffix, tmp_path):
    trap = tmp_path / "trap"
    code = f"lambda x: (open({str(trap)!r}, 'w'), x)[1]"
    x = tf_keras.Input((4,))
    model = tf_keras.Model(x, tf_keras.layers.Lambda(eval(code), output_shape=(4,), name="evil")(x))
    model.save(tmp_path / f"model{suffix}")
    trap.unlink(missing_ok=True)  # building the model ran it
    with pytest.raises(LqError, match=r"layer 'evil' \(Lambda\)"):
        load_model(tmp_path / f"model{suffix}")
    assert not trap.exists()


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_truncated(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    skip_network(tf_keras, by_operator=False).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(LqError, match=path.name):
        load_model(path)


def test_weights_only(tmp_path):
    skip_network(tf_keras, by_operator=False).save_weights(tmp_path / "w.h5")
    with pytest.raises(LqError, match="save the whole model"):
        load_model(tmp_path / "w.h5")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers"),
    [("mlperf_tiny_resnet8.h5", 30), ("gender_mini_xception.hdf5", 46), ("teachable_machine_waste.h5", 158)],
)
def test_published_models(name, layers, shared):
    assert len(load_model(shared / "models" / name).layers) == layers


def test_a_name_that_begins_no_scope_of_tensorflows(tmp_path):
    x, name = tf_keras.Input((4,), name="input"), "_hidden"
    model = tf_keras.Model(x, tf_keras.layers.Dense(3, name="plain")(x))
    model.save(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:  # Keras would not save this
        file.attrs["model_config"] = file.attrs["model_config"].replace("plain", name)
        file["model_weights"].attrs["layer_names"] = [b"input", name.encode()]
        file["model_weights"].move("plain", name)
        file["model_weights"][name].attrs["weight_names"] = [f"{name}/kernel:0", f"{name}/bias:0"]
        file["model_weights"][name].move("plain", name)
    rewrite(fold(load_model(tmp_path / "m.h5")))


@pytest.mark.parametrize("activation", ["relu", None])
def test_a_sequential_model_is_rewritten_as_the_functional_one(activation):
    tf_keras.utils.set_random_seed(0)
    model = tf_keras.Sequential(
        [tf_keras.layers.Input((6,)), *map(tf_keras.layers.Dense, (8, 3), (activation, None))]
    )
    x = np.random.default_rng(0).normal(0, 1, (32, 6)).astype(np.float32)
    outputs = []
    for each in (model, tf_keras.Model(model.inputs, model.outputs)):
        quantized = rewrite(each)
        calibrate(quantized, [x])
        outputs.append(Runner(export(quantized).tflite).run([x]))
    np.testing.assert_array_equal(*outputs)
