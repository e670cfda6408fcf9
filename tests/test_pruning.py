"""Channels leave a model until its file is within limits: which are one unit, which leave, what remains."""

import itertools
import json
import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from click.testing import CliRunner
from tf_keras import layers

import lqconvert
from lqconvert.cli.main import main
from lqconvert.exporting.export import Template, learned_codes
from lqconvert.keras_loader.load import load_model
from lqconvert.quantization import moments
from lqconvert.quantization.fold_batchnorm import fold
from lqconvert.quantization.model_outputs import logits_of, outputs_of
from lqconvert.quantization.pruning import FIXED, Pruning, channels_of
from lqconvert.runtime import verify
from lqconvert.tasks import Head, Heads
from lqconvert.tflite.dead_channels import remove_dead_channels
from lqconvert.tflite.flatbuffer import read
from lqconvert.tflite.graph import OPERANDS, Model

BATCH = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype(np.float32)


def conv(filters, name, size=3, **settings):
    return layers.Conv2D(filters, size, padding="same", name=name, **settings)


def plain(x):
    x = conv(8, "a", activation="relu")(x)
    x = layers.MaxPooling2D()(conv(12, "b", activation="relu")(x))
    x = layers.Dense(10, activation="relu", name="c")(layers.Flatten()(x))
    return layers.Dense(5, activation="softmax", name="out")(x)


def residual(x):
    x = conv(8, "a", activation="relu")(x)
    y = conv(8, "c")(conv(12, "b", activation="relu")(x))
    x = layers.ReLU()(layers.Add()([x, y]))
    return layers.Dense(5, activation="softmax", name="out")(layers.GlobalAveragePooling2D()(x))


def joined(x):
    both = layers.Concatenate()([conv(6, "a", activation="relu")(x), conv(4, "b", activation="tanh")(x)])
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(both)
    x = layers.LeakyReLU()(layers.BatchNormalization()(conv(8, "c", 1)(layers.ReLU()(x))))
    return layers.Dense(5, activation="softmax", name="out")(layers.GlobalAveragePooling2D()(x))


def upwards(x):
    x = layers.AveragePooling2D()(conv(8, "a", activation="relu")(x))
    x = layers.Conv2DTranspose(6, 3, 2, padding="same", activation="relu", name="b")(x)
    return conv(2, "out", 1)(x)


def sequence(x):
    x = layers.Reshape((64, 3))(x)
    x = layers.Conv1D(10, 3, padding="causal", activation="relu", name="a")(x)
    return layers.Dense(4, name="out")(layers.GlobalAveragePooling1D()(layers.Conv1D(6, 3, name="b")(x)))


def looked_up(x):
    y = conv(8, "b", 1, activation="elu")(conv(12, "a", activation="gelu")(x))
    return layers.Dense(3, name="out")(layers.GlobalAveragePooling2D()(y))


BLOCKS = {each.__name__: each for each in (plain, residual, joined, upwards, sequence, looked_up)}


def built(block) -> tf_keras.Model:
    tf_keras.utils.set_random_seed(0)
    x = layers.Input((8, 8, 3))
    model = tf_keras.Model(x, block(x))
    for layer in model.layers:
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(np.random.default_rng(0).normal(0, 0.3, layer.bias.shape))
    return load_model(model)


def pruning_of(model, blocks=(1, 1)) -> Pruning:
    heads = Heads(tuple(Head(each, "raw", judged=("R² to float",)) for each in outputs_of(model)))
    return Pruning(fold(model), fold(model), heads, [BATCH], blocks)


def units(model, name, side="outputs"):
    (found,) = (each for each in channels_of(fold(model))[0] if each.layer.name == name)
    return getattr(found, side).tolist()


def file_of(model) -> Model:
    """The int8 file of a float model without its dead channels, read."""
    quantized = lqconvert.rewrite(model, lqconvert.LSQ())
    lqconvert.calibrate(quantized, [BATCH])
    codes = learned_codes(quantized)
    return remove_dead_channels(read(Template.of(quantized, codes).fill(codes)))


def multiply_adds(model) -> int:
    """Of an int8 file, counted in its own shapes."""
    total = 0
    for operator in model.main.operators:
        if operator.name in OPERANDS:
            kernel = model.main.tensors[operator.inputs[OPERANDS[operator.name][1]]].shape
            source = model.main.tensors[operator.inputs[OPERANDS[operator.name][0]]].shape
            output = model.main.tensors[operator.outputs[0]].shape
            shape = source if operator.name == "TRANSPOSE_CONV" else output
            total += math.prod(shape[1:-1]) * math.prod(kernel)
    return total


def test_channels_that_are_added_are_one_unit():
    model = built(residual)
    assert units(model, "a") == units(model, "c") == units(model, "out", "sources")
    assert units(model, "c", "sources") == units(model, "b")
    assert len({*units(model, "a"), *units(model, "b"), FIXED}) == 8 + 12 + 1
    assert units(model, "out") == [FIXED] * 5


def test_units_go_through_concatenations_and_depthwise_convolutions():
    model = built(joined)
    assert units(model, "depthwise", "sources") == units(model, "a") + units(model, "b")
    assert units(model, "depthwise") == np.repeat(units(model, "depthwise", "sources"), 2).tolist()
    assert units(model, "c", "sources") == units(model, "depthwise")


def test_a_flattened_channel_is_one_unit():
    model = built(plain)
    assert units(model, "c", "sources") == units(model, "b") * 16


@pytest.mark.parametrize(
    "behind",
    [
        layers.Activation("sigmoid"),
        layers.Activation("softplus"),
        layers.GlobalMaxPooling2D(),
        layers.Cropping2D(1),
        layers.PReLU(),
        layers.Permute((3, 1, 2)),
        layers.Reshape((2, 256)),
        layers.Conv2D(8, 3, groups=2),
        lambda x: layers.Multiply()([x, layers.GlobalAveragePooling2D(keepdims=True)(x)]),
    ],
)
def test_channels_that_have_to_stay(behind):
    tf_keras.utils.set_random_seed(0)
    x = layers.Input((8, 8, 3))
    y = behind(conv(8, "a")(x))
    model = load_model(tf_keras.Model(x, layers.Dense(2)(layers.Flatten()(y))))
    assert units(model, "a") == [FIXED] * 8


@pytest.mark.parametrize("share", [0.8, 0.4])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_file_does_the_work_that_is_left(block, share):
    pruned = pruning_of(built(BLOCKS[block]))
    whole = pruned.cost(pruned.work)
    assert whole == multiply_adds(file_of(pruned.model))
    assert pruned.remove(pruned.work, share * whole)
    pruned.compensate()
    assert pruned.cost(pruned.work) <= share * whole
    assert pruned.cost(pruned.work) == multiply_adds(file_of(pruned.model))


@pytest.mark.parametrize("block", BLOCKS)
def test_at_its_smallest_each_layer_has_a_channel(block):
    pruned = pruning_of(built(BLOCKS[block]))
    before = pruned.model.get_weights()
    with pruned.at_its_smallest():
        assert pruned.cost(pruned.work) == multiply_adds(file_of(pruned.model))
        assert all(pruned.kept[each.outputs].any() for each in pruned.connections)
        assert not pruned.remove(pruned.work, 0)
    assert all(map(np.array_equal, before, pruned.model.get_weights()))
    assert pruned.removed == 0


def test_layers_make_up_for_a_channel_that_others_know():
    model = built(residual)
    kernel, bias = model.get_layer("b").get_weights()
    kernel[..., 5], bias[5] = 2 * kernel[..., 3], 2 * bias[3]
    model.get_layer("b").set_weights([kernel, bias])
    pruned = pruning_of(model)
    before = pruned.original(BATCH).numpy()
    pruned.kept[units(model, "b")[5]] = False
    pruned.compensate()
    assert np.abs(pruned.model(BATCH).numpy() - before).max() < 5e-3
    assert pruned.cost(pruned.work) == multiply_adds(file_of(pruned.model))


@pytest.mark.parametrize("block", [residual, joined])
def test_damage_is_the_mean_squared_slope_in_a_factor_on_a_unit(block, monkeypatch):
    monkeypatch.setattr(moments, "_slopes", lambda answers, *_: tf.ones_like(answers))
    pruned = pruning_of(built(block))
    (damage,) = pruned._damage()
    logits = logits_of(pruned.model)
    weights = logits.get_weights()

    def answers(unit, factor):
        for each in pruned.connections:
            if not each.depthwise:
                factors = np.where(each.outputs == unit, factor, 1.0)
                each.layer.set_weights([part * factors for part in each.layer.get_weights()])
        found = logits(BATCH).numpy().sum(axis=1, dtype=np.float64)
        logits.set_weights(weights)
        return found

    inner = [unit for unit in np.flatnonzero(pruned.kept) if unit != FIXED]
    slopes = [(answers(unit, 1.002) - answers(unit, 0.998)) / 0.004 for unit in inner]
    np.testing.assert_allclose(damage[inner], np.square(slopes).mean(axis=1) / 2, rtol=0.05)


def test_whole_blocks_leave():
    x = layers.Input((8, 8, 3))
    y = conv(48, "b")(conv(40, "a", activation="relu")(x))
    pruned = pruning_of(tf_keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling2D()(y))), (8, 16))
    while pruned.remove(pruned.work, 0.9 * pruned.cost(pruned.work)):
        left = [int(pruned.kept[each.outputs].sum()) for each in pruned.connections]
        assert {count % 8 for count in left[:2]} <= {0, 1}  # 1: all but one have left


def test_the_peak_is_the_largest_sum_of_activations_at_a_time():
    pruned = pruning_of(built(residual))
    assert pruned.cost(pruned.peak) == pytest.approx(
        64 * (8 + 12 + 8), rel=1e-3
    )  # the third convolution's, and what it is added to
    assert pruned.remove(pruned.peak, 64 * 20)
    left = {each.layer.name: int(pruned.kept[each.outputs].sum()) for each in pruned.connections}
    assert max(2 * left["a"] + left["b"], 3 + left["a"]) <= 20


def test_layers_of_equal_width_share_the_peak():
    x = y = layers.Input((8, 8, 3))
    for number in range(4):
        y = conv(8, f"conv{number}", activation="relu")(y)
    pruned = pruning_of(tf_keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling2D()(y))))
    assert pruned.remove(pruned.peak, 0.6 * 64 * 16)
    left = [int(pruned.kept[each.outputs].sum()) for each in pruned.connections[:4]]
    assert max(map(sum, itertools.pairwise(left))) <= 0.6 * 16


def test_units_of_an_earlier_run_are_kept_alone():
    first, again = pruning_of(built(residual)), pruning_of(built(residual))
    first.remove(first.work, 0.6 * first.cost(first.work))
    again.keep(first.kept)
    assert again.cost(again.work) == first.cost(first.work)
    for mine, its in zip(again.model.get_weights(), first.model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, its)
    for others in (first.kept[1:], first.kept.astype(float), np.zeros_like(first.kept)):
        with pytest.raises(lqconvert.LqError, match="another model's"):
            again.keep(others)


@pytest.fixture
def by_work(monkeypatch):
    """Latency is that of multiply-adds, which do not depend on what else the machine does."""

    def ratios(pair, target, times):
        (file, _), (whole, _) = pair
        return times * [multiply_adds(read(file)) / multiply_adds(read(whole))]

    monkeypatch.setattr(verify, "_latency_ratios", ratios)


def run(tmp_path, *options):
    output = tmp_path / "out.tflite"
    arguments = ["quantize", "sample_models/digits_cnn.h5", "--data", "digits", "-o", str(output), *options]
    result = CliRunner().invoke(main, arguments)
    report = tmp_path / "out.report.json"
    return result, json.loads(report.read_text()) if report.exists() else None


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--effort", "fast"), ("--epochs", "6", "--max-drop", "5")])
def test_a_faster_file(tmp_path, by_work, options):
    result, report = run(tmp_path, "--max-latency", "0.6", *options)
    assert result.exit_code == 0, result.output
    assert "channels are removed" in result.stderr
    assert multiply_adds(read((tmp_path / "out.tflite").read_bytes())) < 0.6 * 452_864
    assert report["files"][0]["scores"][0]["value"] > 0.95


class Died(Exception):
    pass


@pytest.mark.slow
def test_a_resumed_run_removes_the_same_channels(tmp_path, by_work, monkeypatch):
    """Also if a measurement would now say something else."""
    once, again = (tmp_path / name / "m.tflite" for name in "ab")
    settings = {"limits": verify.Limits(max_latency=0.6), "epochs": 7, "budget": lqconvert.Budget(5)}
    job = "sample_models/digits_cnn.h5", "digits"
    report = lqconvert.quantize(*job, once, **settings)

    def dies(at):
        if at.evaluation.step:
            raise Died

    with pytest.raises(Died):
        lqconvert.quantize(*job, again, **settings, progress=dies)
    with monkeypatch.context() as patch:
        patch.setattr("lqconvert.pipeline.prune.excess", lambda *_: pytest.fail("measured again"))
        resumed = lqconvert.quantize(*job, again, **settings, resume=True)
    assert resumed.curve == report.curve
    assert again.read_bytes() == once.read_bytes()


@pytest.mark.slow
def test_less_ram_than_int8_takes(tmp_path):
    pytest.importorskip("tflite_micro")
    result, report = run(tmp_path, "--target", "tflm", "--max-ram", "5KB", "--effort", "fast")
    assert result.exit_code == 0, result.output
    proven = report["files"][0]["proven"]
    assert proven["arena_bytes"] <= 5000 < proven["int8_arena_bytes"]
    assert report["files"][0]["scores"][0]["value"] > 0.95


@pytest.mark.parametrize("options", [("--max-ram", "100"), ("--max-latency", "0.001")])
def test_limits_that_no_model_holds(tmp_path, options):
    pytest.importorskip("tflite_micro")
    result, _ = run(tmp_path, "--target", "tflm", *options)
    assert result.exit_code == 3
    assert "with as few channels as possible, it takes" in result.stderr
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("ratio", ["nan", "inf", "0", "-1"])
def test_ratios_that_are_none(tmp_path, ratio):
    result, _ = run(tmp_path, "--max-latency", ratio)
    assert (result.exit_code, "latency" in result.stderr) in ((1, True), (2, True))
    assert not [*tmp_path.iterdir()]
