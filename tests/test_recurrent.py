"""Recurrent layers: the graph, the file, and both runtimes compute the same."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from lqconvert import Budget, LqError, inspect, quantize, rewrite
from lqconvert.exporting.export import convert, export, learned_codes
from lqconvert.keras_loader import recurrent_layers
from lqconvert.keras_loader.load import load_model
from lqconvert.quantization.calibrate import calibrate
from lqconvert.runtime.litert import Runner
from lqconvert.runtime.verify import execute
from lqconvert.tflite.c_source import c_sources
from lqconvert.tflite.flatbuffer import read
from lqconvert.tflite.graph import LSTM, LSTM_BIASES, LSTM_INPUT_KERNELS, LSTM_STATE_KERNELS
from lqconvert.tflite.targets import LITERT, TFLM

layers = tf_keras.layers
RNG = np.random.default_rng(0)
STEPS, COLUMNS = 12, 3


def classifier(path, **settings):
    x = layers.Input((STEPS, COLUMNS))
    y = layers.LSTM(8, return_sequences=True, name="lstm", **settings)(x)
    y = layers.Bidirectional(layers.LSTM(6), name="both")(y)
    model = tf_keras.Model(x, layers.Dense(4, activation="softmax")(y))
    model.save(path)
    return model


def windows(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Waves of one of four frequencies at any phase, in noise: the class is the frequency."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    phases = rng.uniform(0, 2 * np.pi, (count, 1, COLUMNS))
    times = np.arange(STEPS)[None, :, None] * (0.3 + 0.5 * labels[:, None, None])
    return (np.sin(times + phases) + rng.normal(0, 0.3, phases.shape)).astype(np.float32), labels


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    path = tmp_path_factory.mktemp("lstm") / "model.h5"
    tf_keras.utils.set_random_seed(0)
    classifier(path)
    model = rewrite(load_model(path))
    x = windows(64)[0]
    calibrate(model, [x])
    return model, export(model, [x]), x


def test_the_file_has_the_learned_codes_and_scales(quantized):
    model, exported, _ = quantized
    codes = learned_codes(model).layers
    graph = read(exported.tflite).main
    operators = [operator for operator in graph.operators if operator.name == LSTM]
    assert len(exported.order) == 3 * 8 + 1  # LSTMs with eight kernels, and a Dense layer
    pairs = [(exported.order[place], exported.order[place + 4]) for place in range(0, 3 * 8, 8)]
    assert {inputs for inputs, _ in pairs} == {name for name in codes if name.endswith("_inputs")}
    for operator, (inputs, states) in zip(operators, pairs, strict=True):
        for name, places in ((inputs, LSTM_INPUT_KERNELS), (states, LSTM_STATE_KERNELS)):
            tensors = [graph.tensors[index] for index in operator.inputs[places]]
            kernel = codes[name].kernel
            np.testing.assert_array_equal(np.concatenate([t.values() for t in tensors]), kernel.codes.T)
            assert {float(t.scales[0]) for t in tensors} == {kernel.scale.item()}
        source = graph.tensors[operator.inputs[0]].scales[0]
        step = np.float32(source * np.float32(codes[inputs].kernel.scale.item()))
        biases = [graph.tensors[index] for index in operator.inputs[LSTM_BIASES]]
        integers = np.round(codes[inputs].bias / np.float64(step))
        np.testing.assert_array_equal(np.concatenate([t.values() for t in biases]), integers)
        assert all(t.scales[0] == step for t in biases)


def test_both_runtimes_compute_what_the_graph_computes(quantized):
    model, exported, x = quantized
    runner = Runner(exported.tflite)
    codes = runner.quantize(x)
    steps = np.round(model(x, training=False).numpy() / exported.output_scale) + exported.output_zero_point
    for target in (LITERT, TFLM):
        for outputs in execute(exported.tflite, target, codes).outputs.values():
            assert np.abs(outputs - steps).max() <= 2


def test_sums_and_cells_saturate_as_in_the_file(tmp_path, monkeypatch):
    loud = {
        f"{name}_initializer": tf_keras.initializers.RandomNormal(stddev=4.0, seed=seed)
        for seed, name in enumerate(("kernel", "recurrent"))
    }
    x = layers.Input((STEPS, COLUMNS))
    tf_keras.Model(x, layers.Dense(3)(layers.LSTM(6, **loud)(x))).save(tmp_path / "model.h5")
    model, data = rewrite(load_model(tmp_path / "model.h5")), windows(64)[0]
    calibrate(model, [data])
    (states,) = (layer.layer for layer in model.layers if layer.name.endswith("_states"))
    assert np.log2(float(states.limit)) % 1 == 0
    exported = export(model, [data])
    outputs = Runner(exported.tflite).run([data])

    def steps_apart() -> float:
        traced = tf.function(lambda x: model(x, training=False), autograph=False)
        return float(np.quantile(np.abs(outputs - traced(data)), 0.9) / exported.output_scale)

    assert steps_apart() <= 2.01
    monkeypatch.setattr(recurrent_layers, "clipped", lambda x, limit: x)
    assert steps_apart() > 8


def test_an_example_does_not_depend_on_those_before(quantized):
    _, exported, x = quantized
    runner = Runner(exported.tflite)
    codes = runner.quantize(x[:16])
    forward = runner.invoke(codes)
    np.testing.assert_array_equal(forward, runner.invoke(codes[::-1])[::-1])
    (micro,) = execute(exported.tflite, TFLM, codes).outputs.values()
    (back,) = execute(exported.tflite, TFLM, codes[::-1]).outputs.values()
    np.testing.assert_array_equal(micro, back[::-1])


def test_parameters_are_those_of_keras(tmp_path):
    model = classifier(tmp_path / "model.h5")
    assert sum(row.parameters for row in inspect(tmp_path / "model.h5").layers) == model.count_params()


def test_a_bias_that_int32_cannot_hold_is_refused(quantized):
    model, _, x = quantized
    bias = model.get_layer("lstm_inputs").layer.bias
    before = bias.numpy()
    try:
        bias.assign(np.full_like(before, 1e9))
        with pytest.raises(LqError, match="'lstm_inputs': its bias does not fit int32"):
            export(model, [x])
    finally:
        bias.assign(before)


def test_the_program_is_told_to_reset(quantized, tmp_path):
    sources = c_sources(quantized[1].tflite, tmp_path / "m.tflite", 4096)
    header = sources[tmp_path / "m.h"]
    assert "Call interpreter.Reset() before each sequence." in header
    assert "AddUnidirectionalSequenceLSTM()" in header


def test_float32_is_the_converter_s_lstm(tmp_path):
    model = classifier(tmp_path / "model.h5", use_bias=False)
    tflite = convert(load_model(tmp_path / "model.h5"), integer=False)
    operators = [operator for operator in read(tflite).main.operators if operator.name == LSTM]
    assert [operator.options.cellClip for operator in operators] == [0.0] * 3
    x = windows(16)[0]
    np.testing.assert_allclose(Runner(tflite).run([x]), model.predict(x, verbose=0), atol=1e-5)


def test_gradients_reach_codes_and_range_of_the_state(quantized):
    model, _, x = quantized
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x, training=True) ** 2)
    names = ("lstm/kernel", "lstm_inputs/kernel", "lstm/log_scale", "lstm_quantized/range")
    wanted = [v for v in model.trainable_variables if any(name in v.name for name in names)]
    assert len(wanted) >= len(names)
    for variable, gradient in zip(wanted, tape.gradient(loss, wanted), strict=True):
        assert np.any(gradient.numpy()), variable.name


@pytest.mark.slow
def test_a_classifier_for_both_runtimes(tmp_path):
    tf_keras.utils.set_random_seed(0)
    x = layers.Input((STEPS, COLUMNS))
    model = tf_keras.Model(x, layers.Dense(4, activation="softmax")(layers.LSTM(10)(x)))
    (x, y), (tests, labels) = windows(1000), windows(300, seed=1)
    model.compile(tf_keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(x, y, 64, 8, verbose=0)
    model.save(tmp_path / "model.h5")
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=tests, y_test=labels)
    job = tmp_path / "model.h5", str(tmp_path / "data.npz"), tmp_path / "m.tflite"
    report = quantize(*job, epochs=0, targets=["litert", "tflm"], budget=Budget(max_drop=1.0))
    assert not report.float_layers
    assert report.agreement_with_graph >= 0.985
    float_ = report.float_.scores[0].value
    assert float_ > 0.7
    for file in report.files:
        assert file.score > float_ - 0.05
        assert "DEQUANTIZE" not in file.proven.operators


CELLS = {
    "gru": lambda **settings: layers.GRU(7, **settings),
    "gru, reset before": lambda **settings: layers.GRU(7, reset_after=False, **settings),
    "simple": lambda **settings: layers.SimpleRNN(7, **settings),
    "lstm with old gates": lambda **settings: layers.LSTM(7, recurrent_activation="hard_sigmoid", **settings),
    "gru with old gates": lambda **settings: layers.GRU(7, recurrent_activation="hard_sigmoid", **settings),
    "lstm, relu": lambda **settings: layers.LSTM(7, activation="relu", **settings),
    "gru, relu": lambda **settings: layers.GRU(7, activation="relu", **settings),
    "simple, relu": lambda **settings: layers.SimpleRNN(7, activation="relu", **settings),
    "simple, linear": lambda **settings: layers.SimpleRNN(7, activation="linear", **settings),
}


@pytest.mark.parametrize("cell", CELLS)
def test_loops_compute_what_the_graph_computes(cell, tmp_path):
    tf_keras.utils.set_random_seed(0)
    x = layers.Input((STEPS, COLUMNS))
    y = CELLS[cell](return_sequences=True, bias_initializer="uniform", name="first")(x)
    y = CELLS[cell](bias_initializer="uniform", name="second")(y)
    tf_keras.Model(x, layers.Dense(4)(y)).save(tmp_path / "model.h5")
    model, data = rewrite(load_model(tmp_path / "model.h5")), windows(64)[0]
    calibrate(model, [data])
    exported = export(model, [data])
    codes = Runner(exported.tflite).quantize(data)
    steps = np.round(model(data, training=False).numpy() / exported.output_scale) + exported.output_zero_point
    for target in (LITERT, TFLM):
        for outputs in execute(exported.tflite, target, codes).outputs.values():
            apart = np.abs(outputs - steps)
            assert apart.max() <= 3
            assert np.mean(apart > 1) < 0.02


def test_float32_of_a_loop_is_keras_s(tmp_path):
    x = layers.Input((STEPS, COLUMNS))
    model = tf_keras.Model(x, layers.GRU(3, reset_after=False, bias_initializer="uniform")(x))
    model.save(tmp_path / "model.h5")
    tflite, data = convert(load_model(tmp_path / "model.h5"), integer=False), windows(16)[0]
    np.testing.assert_allclose(Runner(tflite).run([data]), model.predict(data, verbose=0), atol=1e-5)


def test_a_loop_has_the_learned_codes_and_biases(tmp_path):
    x = layers.Input((STEPS, COLUMNS))
    tf_keras.Model(x, layers.GRU(7, bias_initializer="uniform", name="gru")(x)).save(tmp_path / "model.h5")
    model, data = rewrite(load_model(tmp_path / "model.h5")), windows(64)[0]
    calibrate(model, [data])
    exported, codes = export(model, [data]), learned_codes(model).layers
    _, _, body = read(exported.tflite).graphs
    products = [operator for operator in body.operators if operator.name == "FULLY_CONNECTED"]
    for name, part in (("gru_inputs", products[:3]), ("gru_states", products[3:])):
        kernels = [body.tensors[operator.inputs[1]] for operator in part]
        layer = codes[name]
        np.testing.assert_array_equal(np.concatenate([t.values() for t in kernels]), layer.kernel.codes.T)
        assert {float(t.scales[0]) for t in kernels} == {layer.kernel.scale.item()}
        biases = [body.tensors[operator.inputs[2]] for operator in part]
        values = np.concatenate([t.values() * np.float64(t.scales[0]) for t in biases])
        np.testing.assert_allclose(values, layer.bias, atol=float(biases[0].scales[0]))
        assert {t.type for t in biases} == {"INT64"}


def test_a_loop_keeps_no_state(tmp_path):
    x = layers.Input((STEPS, COLUMNS))
    tf_keras.Model(x, layers.Dense(2)(layers.GRU(7)(x))).save(tmp_path / "model.h5")
    model, data = rewrite(load_model(tmp_path / "model.h5")), windows(16)[0]
    calibrate(model, [data])
    tflite = export(model, [data]).tflite
    header = c_sources(tflite, tmp_path / "m.tflite", 4096)[tmp_path / "m.h"]
    assert "Reset" not in header
    assert "AddWhile()" in header
    assert "AddLogistic()" in header


def sequence_and_last(states):
    return [states, states[:, -1]]


def part_of_last(states):
    return layers.Dense(3)(states[:, -1, :2])


@pytest.mark.parametrize("read", [sequence_and_last, part_of_last])
@pytest.mark.parametrize("cell", [layers.LSTM, layers.GRU])
def test_whatever_is_read_of_the_states(read, cell, tmp_path):
    """A GRU gives its last state alone only where nothing else is read."""
    x = layers.Input((STEPS, COLUMNS))
    tf_keras.Model(x, read(cell(4, return_sequences=True)(x))).save(tmp_path / "model.h5")
    model, data = rewrite(load_model(tmp_path / "model.h5")), windows(16)[0]
    calibrate(model, [data])
    tflite = export(model, [data]).tflite
    runner = Runner(tflite)
    outputs = model(data, training=False)
    parts = outputs if isinstance(outputs, list) else [outputs]
    wanted = np.concatenate([np.reshape(part, (len(data), -1)) for part in parts], axis=1)
    apart = np.abs(runner.run([data]).reshape(wanted.shape) - wanted) / runner.output_steps
    assert apart.max() <= 2.01
    codes = runner.quantize(data)
    (micro,) = execute(tflite, TFLM, codes).outputs.values()
    assert np.abs(micro.astype(int) - runner.invoke(codes)).max() <= 3


MASKED = {
    "words": lambda x: layers.Embedding(9, 4, mask_zero=True, embeddings_initializer="he_normal")(x),
    "steps": lambda x: layers.Masking(-1.0)(x),
}
BEHIND = {
    "lstm": lambda y: layers.LSTM(5)(y),
    "both ways": lambda y: layers.Bidirectional(layers.GRU(4))(
        layers.Bidirectional(layers.LSTM(4, return_sequences=True))(y)
    ),
    "sequence": lambda y: layers.Dense(2)(layers.SimpleRNN(5, return_sequences=True, go_backwards=True)(y)),
}


@pytest.mark.parametrize(
    ("kind", "behind"), [("words", "both ways"), ("steps", "lstm"), ("steps", "sequence")]
)
def test_masked_steps_change_nothing(kind, behind, tmp_path):
    """Steps at the beginning, at the end and between are left out, in the graph and in both runtimes."""
    tf_keras.utils.set_random_seed(0)
    if kind == "words":
        x, data = layers.Input((STEPS,)), RNG.integers(1, 9, (64, STEPS)).astype(np.int32)
    else:
        x, data = layers.Input((STEPS, COLUMNS)), windows(64)[0]
    keras = tf_keras.Model(x, BEHIND[behind](MASKED[kind](x)))
    keras.save(tmp_path / "model.h5")
    masked = RNG.random((64, STEPS)) < 0.4
    masked[:20, :4] = masked[20:40, -4:] = True
    data[masked] = 0 if kind == "words" else -1.0
    model = rewrite(load_model(tmp_path / "model.h5"))
    calibrate(model, [data])
    exported = export(model, [data])
    wanted = keras.predict(data, verbose=0)
    found = model(data, training=False).numpy()
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 0.05 * wanted.std()
    runner = Runner(exported.tflite)
    codes = data if kind == "words" else runner.quantize(data)
    steps = np.round(found / exported.output_scale) + exported.output_zero_point
    for target in (LITERT, TFLM):
        for outputs in execute(exported.tflite, target, codes).outputs.values():
            apart = np.abs(outputs.reshape(steps.shape) - steps)
            assert apart.max() <= 6
            assert np.mean(apart > 2) < 0.05
    floats = convert(load_model(tmp_path / "model.h5"), integer=False)
    np.testing.assert_allclose(Runner(floats).run([data]).reshape(wanted.shape), wanted, atol=1e-5)


def relative_error(keras, data, path):
    """The largest error of a file's outputs in a runtime against Keras, relative to their spread."""
    keras.save(path)
    model = rewrite(load_model(path))
    calibrate(model, [data])
    exported, wanted = export(model, [data]), keras.predict(data, verbose=0)
    codes, errors = Runner(exported.tflite).quantize(data), []
    for target in (LITERT, TFLM):
        for outputs in execute(exported.tflite, target, codes).outputs.values():
            found = (outputs.astype(float) - exported.output_zero_point) * exported.output_scale
            errors.append(np.sqrt(np.mean((found.reshape(wanted.shape) - wanted) ** 2)))
    assert len(errors) == 3
    return max(errors) / wanted.std()


@pytest.mark.parametrize(("value", "size"), [(-999.0, 1000.0), (300.0, 1.0)])
def test_a_mask_far_from_the_data_costs_no_precision(value, size, tmp_path):
    tf_keras.utils.set_random_seed(0)
    x = layers.Input((STEPS, COLUMNS))
    kernel = tf_keras.initializers.RandomNormal(stddev=0.5 / size, seed=0)
    y = layers.LSTM(5, kernel_initializer=kernel)(layers.Masking(value)(x))
    keras = tf_keras.Model(x, layers.Dense(2)(y))
    data = size * windows(64)[0]
    data[RNG.random((64, STEPS)) < 0.3] = value
    assert relative_error(keras, data, tmp_path / "model.h5") < 0.05


def test_an_autoencoder_of_sequences(tmp_path):
    """TensorFlow Lite Micro's interpreter has no TILE, which the converter makes of RepeatVector."""
    tf_keras.utils.set_random_seed(0)
    x = layers.Input((STEPS, COLUMNS))
    y = layers.RepeatVector(3)(layers.LSTM(5)(x))
    keras = tf_keras.Model(x, layers.LSTM(4, return_sequences=True)(y))
    assert relative_error(keras, windows(64)[0], tmp_path / "model.h5") < 0.1
