"""Rounding with the least damage at a price of bits: against brute force, and on layers of every kind."""

import functools
import itertools

import numpy as np
import pytest
import small_tasks
import tf_keras
from tf_keras import layers

from lqconvert import BudgetMissed, Limits, Rate, calibrate, evaluate, load_data, rewrite
from lqconvert import quantize as quantize_file
from lqconvert.data.preprocessing import Preprocessing
from lqconvert.exporting.export import export, learned_codes
from lqconvert.quantization.fold_batchnorm import fold
from lqconvert.quantization.model_outputs import logits_of
from lqconvert.quantization.moments import LEAST_ROWS, TEMPERATURE, Layout, importance_of, moments_of
from lqconvert.quantization.post_training import PostTraining
from lqconvert.quantization.rounding import Curvature, bits_of, nearest, rounded
from lqconvert.quantization.walk import inputs_of_layers
from lqconvert.tasks import Head, Heads, Output
from lqconvert.utils.compression import deflated

RNG = np.random.default_rng(0)
STEP = 0.5


def problem(seed, inputs=4, outputs=3):
    """Weights [1, inputs, outputs], and the second moments of inputs that depend on one another."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, inputs)) @ rng.normal(size=(inputs, inputs))
    return rng.normal(size=(1, inputs, outputs)), (x.T @ x / len(x))[None]


def damage(weights, codes, moments):
    errors = weights - STEP * codes
    return np.einsum("gio,gij,gjo->", errors, moments, errors) / 2


def best_of_all(weights, moments):
    """The least damage that any codes next to the weights have."""
    total = 0.0
    for column in weights[0].T:
        ends = [(np.floor(w / STEP), np.ceil(w / STEP)) for w in column]
        total += min(
            damage(column[None, :, None], np.reshape(each, (1, -1, 1)), moments)
            for each in itertools.product(*ends)
        )
    return total


def test_damage_comes_near_the_optimum():
    """In sum over 40 small layers. Rounding to the nearest has more than twice of it."""
    rows = []
    for seed in range(40):
        weights, moments = problem(seed)
        free = rounded(weights, np.array(STEP), Curvature.of(moments), np.ones((1, 3)), 0.0)
        plain = nearest(weights, np.array(STEP), 127)
        rows.append(
            [damage(weights, codes, moments) for codes in (free, plain)] + [best_of_all(weights, moments)]
        )
    free, plain, best = np.sum(rows, axis=0)
    assert best <= free < 1.4 * best < 1.8 * best < plain


def test_what_a_bit_costs_is_saved():
    """The sum of damage and price is less than that of the nearest codes; bits fall as they cost more."""
    weights, moments = problem(1, inputs=40, outputs=20)
    curvature, importance = Curvature.of(moments), np.ones((1, 20))
    plain, bits = nearest(weights, np.array(STEP), 127), []
    for price in (0.1, 1.0, 10.0, 100.0):
        codes = rounded(weights, np.array(STEP), curvature, importance, price)
        spent = [bits_of(each, 127)[each + 127].sum() for each in (codes, plain)]
        costs = [damage(weights, c, moments) + price * b for c, b in zip((codes, plain), spent, strict=True)]
        assert costs[0] <= costs[1]
        bits.append(spent[0])
    assert all(after < 1.01 * before for before, after in itertools.pairwise(bits))
    assert bits[-1] < bits[0] / 2


def test_errors_are_spread_in_blocks_as_one_by_one(monkeypatch):
    weights, moments = problem(2, inputs=20, outputs=5)
    made = []
    for block in (1, 7, 128):
        monkeypatch.setattr("lqconvert.quantization.rounding.BLOCK", block)
        made.append(rounded(weights, np.array(STEP), Curvature.of(moments), np.ones((1, 5)), 0.01))
    assert np.array_equal(made[0], made[1])
    assert np.array_equal(made[0], made[2])


LINEAR = {
    "Dense": (layers.Dense(3), (7,)),
    "Dense on steps": (layers.Dense(3), (5, 7)),
    "Conv1D": (layers.Conv1D(4, 3, strides=2, padding="same"), (9, 6)),
    "causal": (layers.Conv1D(4, 3, dilation_rate=2, padding="causal"), (9, 6)),
    "Conv2D": (layers.Conv2D(4, (3, 2), strides=2, padding="same"), (7, 6, 5)),
    "dilated": (layers.Conv2D(4, 3, dilation_rate=2), (7, 7, 2)),
    "grouped": (layers.Conv2D(6, 3, groups=3), (5, 5, 6)),
    "depthwise": (layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"), (5, 5, 4)),
    "transposed": (layers.Conv2DTranspose(3, 2, strides=2), (4, 4, 5)),
}


@pytest.mark.parametrize("most", [4608, 5])
@pytest.mark.parametrize("kind", LINEAR)
def test_a_layer_is_a_product_of_matrices(kind, most, monkeypatch):
    monkeypatch.setattr("lqconvert.quantization.moments.MOST_INPUTS", most)
    layer, shape = LINEAR[kind]
    x = RNG.normal(size=(2, *shape)).astype(np.float32)
    layer = type(layer).from_config(layer.get_config())
    expected = layer(x).numpy()
    layout = Layout.of(layer)
    kernel = layer.depthwise_kernel if kind == "depthwise" else layer.kernel
    matrices = layout.matrices(kernel.numpy())
    np.testing.assert_array_equal(layout.as_kernel(matrices), kernel)
    assert layout.inputs <= most or kind in ("grouped", "depthwise")
    found = np.einsum("ngi,gio->ngo", layout.rows(layer, x).numpy(), matrices)
    if layout.blocks > 1:
        found = found.sum(axis=1)
    if kind == "transposed":  # each input's 2 x 2 places lie apart
        found = found.reshape(2, 4, 4, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-5)
    rows = layout.rows(layer, x).numpy()
    some = layout.rows(layer, x, lambda count: np.arange(count)[::-2]).numpy()
    np.testing.assert_array_equal(some, rows[::-2])
    channels = np.arange(expected.shape[-1], dtype=float)
    times = layout.visits * layout.blocks
    assert np.allclose(layout.by_channel(layout.by_output(channels)), times * channels)


def network():
    """A bit of each kind of layer, with weights that are not trained."""
    tf_keras.utils.set_random_seed(0)
    x = inputs = tf_keras.Input((12, 12, 2))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2)(x)))
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Conv2DTranspose(6, 2, strides=2, activation="relu")(x)
    x = layers.Dense(16, activation="relu")(layers.GlobalAveragePooling2D()(x))
    return tf_keras.Model(inputs, layers.Dense(3, "softmax", name="kind")(x))


HEADS = Heads((Head(Output("kind", (3,), "softmax"), "raw", judged=("R² to float",)),))


@pytest.fixture
def ready():
    model = network()
    folded = fold(model)
    batches = [RNG.normal(size=(20, 12, 12, 2)).astype(np.float32) for _ in range(3)]
    quantized = rewrite(model, Rate())
    calibrate(quantized, batches)
    return folded, quantized, batches


def test_importance_is_that_of_the_loss(ready):
    """A small error in a logit makes the loss grow by importance / 2 times its square, at the temperature."""
    folded, _, _ = ready
    batches = [RNG.normal(size=(200, 12, 12, 2)).astype(np.float32)]
    *_, last = [layer for layer in folded.layers if isinstance(layer, layers.Dense)]
    found = importance_of(folded, [last.name], HEADS, batches)[last.name]
    p = folded.predict(batches[0], verbose=0) ** (1 / TEMPERATURE)
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, np.mean(p * (1 - p), axis=0), rtol=0.25)  # by one draw for each example


def test_moments_are_those_of_all_positions():
    layer = layers.Conv2D(4, 3, padding="same")
    xs = [RNG.normal(size=(n, 30, 30, 2)).astype(np.float32) for n in (2, 6)]
    layer.build(xs[0].shape)
    floats = [2 * x + 1 for x in xs]
    alone = [moments_of(layer, [x], [f], examples=8) for x, f in zip(xs, floats, strict=True)]
    rows, of_floats = (
        np.concatenate([Layout.of(layer).rows(layer, x) for x in each])[:, 0] for each in (xs, floats)
    )
    for found in (moments_of(layer, xs, floats, examples=8), alone[0] + alone[1]):
        assert LEAST_ROWS <= found.rows <= LEAST_ROWS + 2 < len(rows)
        np.testing.assert_allclose(found.second[0], rows.T @ rows / len(rows), atol=0.1)
        np.testing.assert_allclose(found.cross[0], rows.T @ of_floats / len(rows), atol=0.2)
        np.testing.assert_allclose(found.mean[0], rows.mean(axis=0), atol=0.1)
        np.testing.assert_allclose(found.float_mean[0], of_floats.mean(axis=0), atol=0.2)


def test_a_walk_gives_what_layers_get_and_minds_weights_that_change():
    """Of a model with two inputs, branches, and a tensor that is used twice."""
    first, second = tf_keras.Input((6,)), tf_keras.Input((6,))
    a, b = layers.Dense(6, name="a")(first), layers.Dense(6, name="b")(second)
    c = layers.Dense(5, name="c")(layers.Add()([a, layers.Multiply()([b, b])]))
    model = tf_keras.Model([first, second], [layers.Dense(2, name="d")(c), layers.Softmax()(a)])
    batches = [tuple(RNG.normal(size=(n, 6)).astype(np.float32) for _ in range(2)) for n in (3, 4)]
    found, names = {}, {"a", "b", "c", "d"}
    for name, xs in inputs_of_layers(model, names, batches):
        found[name] = [x.numpy() for x in xs]
        model.get_layer(name).bias.assign_add(model.get_layer(name).bias + 1)
    assert list(found) == [layer.name for layer in model.layers if layer.name in names]
    for place, batch in enumerate(batches):
        a, b = (model.get_layer(name)(x) for name, x in zip("ab", batch, strict=True))
        expected = {"a": batch[0], "b": batch[1], "c": a + b * b, "d": model.get_layer("c")(a + b * b)}
        for name in names:
            np.testing.assert_allclose(found[name][place], expected[name], atol=1e-5)


def test_in_order_each_layer_makes_good_what_those_before_it_did(ready):
    folded, quantized, batches = ready
    post = PostTraining(quantized, folded, HEADS, batches)
    others = RNG.normal(size=(200, 12, 12, 2)).astype(np.float32)
    logits, truth = logits_of(quantized), logits_of(folded).predict(others, verbose=0)
    errors = []
    for round_ in (post.round, post.round_in_order):
        round_(1e-7)
        errors.append(np.square(logits.predict(others, verbose=0) - truth).mean())
    assert errors[1] < 0.9 * errors[0]


def test_bytes_fall_as_bits_cost_more_and_the_model_stays_close(ready):
    folded, quantized, batches = ready
    post = PostTraining(quantized, folded, HEADS, batches)
    truth = folded.predict(batches[0], verbose=0)
    sizes, errors = [], []
    for multiplier in (1e-9, 1e-7, 1e-5, 1e-3):
        post.round(multiplier)
        codes = learned_codes(quantized)
        sizes.append(bytes_of_kernels(codes))
        errors.append(np.abs(quantized.predict(batches[0], verbose=0) - truth).max())
        for layer in post.layers.values():  # what is rounded again is the same
            kernel = layer.layout.as_kernel(layer.weights)
            assert codes.layers[layer.wrapper.name].kernel.codes.shape == kernel.shape
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 2
    assert errors[0] < 0.02
    post.round(1e-7)
    assert bytes_of_kernels(learned_codes(quantized)) == sizes[1]


def bytes_of_kernels(codes):
    kernels = (layer.kernel.codes for layer in codes.layers.values())
    return deflated(b"".join(kernel.astype(np.int8).tobytes() for kernel in kernels))


def test_biases_fit_int32_whatever_the_price():
    """A bias that is large beside its weights needs a scale that is larger than the weights want."""
    x = inputs = tf_keras.Input((6,))
    model = tf_keras.Model(inputs, layers.Dense(3, name="kind")(layers.Dense(4, name="large")(x)))
    weights, bias = RNG.normal(size=(6, 4)) * 1e-7, np.full(4, 50.0)
    model.get_layer("large").set_weights([weights, bias])
    batches = [RNG.normal(size=(200, 6)).astype(np.float32)]
    heads = Heads((Head(Output("kind", (3,), ""), "raw", judged=("R² to float",)),))
    quantized = rewrite(model, Rate(), granularity="output-channel-wise")
    calibrate(quantized, batches)
    post = PostTraining(quantized, fold(model), heads, batches)
    for round_ in (post.round, post.round_in_order):
        round_(1e-12)
        assert export(quantized, batches).tflite


# Whole commands


@pytest.fixture
def quantize(tmp_path):
    """Runs the command without training, see :func:`small_tasks.quantized`."""
    return functools.partial(small_tasks.quantized, tmp_path, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", small_tasks.TASKS)
def test_each_task_is_quantized_in_seconds(name, quantize, tmp_path):
    result, report = quantize(*small_tasks.made(name, tmp_path))
    assert result.exit_code == 0, result.output
    assert report["settings"]["epochs"] == 0
    for quality, bar in zip(report["best"]["qualities"], report["bar"], strict=True):
        assert quality >= bar - 0.005
    labels = {score["metric"]: score["value"] for score in report["float"]["scores"]}
    for score in report["files"][0]["scores"]:
        if score["metric"] in (
            "accuracy",
            "R²",
            "AUC",
            "mean AUC",
            "mIoU",
            "reconstruction R²",
            "cosine similarity",
        ):
            assert score["value"] >= labels[score["metric"]] - 0.03


@pytest.mark.slow
def test_fifty_unlabelled_examples_are_enough(quantize, samples, tmp_path):
    """For the accuracy of tf.lite's int8, calibrated on the same ones, within two of 359 test examples."""
    model, data = samples / "digits_cnn.h5", tmp_path / "few.npz"
    np.savez(data, x=load_data("digits", (8, 8, 1), 10).train.arrays(50)[0][:50].astype(np.float32))
    result, report = quantize(model, data, "--preprocess", "none")
    assert result.exit_code == 0, result.output
    peer = small_tasks.of_tf_lite(model, data, tmp_path / "peer.tflite")
    ours, theirs = (
        evaluate(file, "digits", preprocess=Preprocessing()).scores[0].value
        for file in (tmp_path / "out.tflite", peer)
    )
    assert ours >= theirs - 2.5 / 359
    assert report["files"][0]["proven"]["size"] <= peer.stat().st_size


@pytest.mark.slow
def test_a_size_is_filled(quantize, samples, tmp_path):
    result, report = quantize(samples / "digits_cnn.h5", "digits", "--max-size", 12_000)
    assert result.exit_code == 0, result.output
    sizes = [point["bytes"] for point in sorted(report["curve"][1:], key=lambda point: point["pressure"])]
    assert all(after <= 1.02 * before for before, after in itertools.pairwise(sizes))
    assert 8_000 < (tmp_path / "out.tflite").stat().st_size <= 12_000
    score = report["files"][0]["scores"][0]["value"]
    assert score >= report["float"]["scores"][0]["value"] - 0.1


@pytest.mark.slow
def test_the_same_file_comes_again(quantize, tmp_path):
    job, files = small_tasks.made("embedding", tmp_path), []
    for _ in range(2):
        result, _ = quantize(*job)
        assert result.exit_code == 0, result.output
        files.append((tmp_path / "out.tflite").read_bytes())
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_size_that_no_price_reaches_is_an_error(quantize, tmp_path):
    result, report = quantize(*small_tasks.made("detector", tmp_path), "--max-size", 500)
    assert result.exit_code == 3
    assert "no file of at most 500 bytes" in result.stderr
    assert report is None


@pytest.mark.slow
def test_limits_that_no_file_holds_leave_the_codes(tmp_path):
    pytest.importorskip("tflite_micro")
    model, data = small_tasks.made("detector", tmp_path)
    limits, path = Limits(max_flash=100), tmp_path / "out.tflite"
    with pytest.raises(BudgetMissed, match="no file for tflm is within the limits: the smallest one takes"):
        quantize_file(model, data, path, targets=["tflm"], effort="fast", limits=limits)
    assert [path.suffixes for path in tmp_path.glob("out*")] == [[".codes", ".npz"]]


@pytest.mark.slow
def test_a_fixed_width_is_rounded_at_its_own_scales(quantize, tmp_path):
    options = "--scheme", "lsq", "--bits", 4, "--report", tmp_path / "page.html"
    result, report = quantize(*small_tasks.made("multi_label", tmp_path), *options)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page.html").read_text()
    assert "<h2>Trials</h2>" in page
    assert "Fine-tuning" not in page
    assert max(layer["codes"] for layer in report["layers"]) <= 15
    assert report["files"][0]["scores"][0]["value"] > 0.9
