"""Removing dead channels changes no output, and removes all of them."""

import numpy as np
import pytest
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st
from single_operator import in_litert, in_micro
from tf_keras import layers

import lqconvert
from lqconvert.tflite import dead_channels
from lqconvert.tflite.dead_channels import gather_inputs, gatherable
from lqconvert.tflite.flatbuffer import read, write
from lqconvert.tflite.graph import OPERANDS
from lqconvert.tflite.packing import kernels

RNG = np.random.default_rng(0)
BATCH = RNG.normal(size=(32, 8, 8, 3)).astype(np.float32)


def exported(model: tf_keras.Model, batch=BATCH) -> bytes:
    quantized = lqconvert.rewrite(model, lqconvert.LSQ())
    lqconvert.calibrate(quantized, [batch])
    return lqconvert.export(quantized).tflite


def kill(layer, *, outputs=(), inputs=(), bias=None) -> None:
    """Makes output or input channels all zero; a bias leaves dead outputs constant."""
    kernel, *biases = layer.get_weights()
    kernel[..., list(outputs)] = 0
    kernel[..., list(inputs), :] = 0
    biases[0][list(outputs)] = 0 if bias is None else bias
    layer.set_weights([kernel, *biases])


def model_of(block) -> tf_keras.Model:
    tf_keras.utils.set_random_seed(0)
    x = layers.Input((8, 8, 3))
    model = tf_keras.Model(x, block(x))
    for layer in model.layers:
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(RNG.normal(0, 0.3, layer.bias.shape))
    return model


def assert_same(before: bytes, after: bytes) -> None:
    graph = read(before).main
    shape = graph.tensors[graph.inputs[0]].shape[1:]
    inputs = RNG.integers(-128, 128, (40, *shape)).astype(np.int8)
    for run in (in_litert, in_micro):
        np.testing.assert_array_equal(run(after, inputs), run(before, inputs))


def remove_dead_channels(tflite: bytes) -> bytes:
    return write(dead_channels.remove_dead_channels(read(tflite)))


def shapes(tflite: bytes) -> list[tuple[int, ...]]:
    return [kernel.codes.shape for kernel in kernels(read(tflite))]


def head(x):
    return layers.Dense(5)(layers.GlobalAveragePooling2D()(x))


def plain(padding, activation):
    def block(x):
        x = layers.Conv2D(6, 3, activation=activation, padding=padding, name="first")(x)
        return head(layers.Conv2D(4, 3, padding=padding, name="second")(x))

    return block


@pytest.mark.parametrize(
    ("padding", "activation", "bias", "left"),
    [
        ("same", "relu", None, 4),
        ("same", "relu", -1.0, 4),
        ("valid", "relu", 1.0, 4),  # constant, and folded into the next bias
        ("valid", None, 1.0, 4),
        ("same", None, 1.0, 6),  # constant, but not at the border of a padded image
        ("same", "gelu", None, 4),  # looked up in a table
        ("same", "softplus", None, 6),
        ("valid", "softplus", -1.0, 4),
    ],
)
def test_dead_outputs(padding, activation, bias, left):
    model = lqconvert.load_model(model_of(plain(padding, activation)))
    kill(model.get_layer("first"), outputs=(1, 4), bias=bias)
    before = exported(model)
    after = remove_dead_channels(before)
    assert_same(before, after)
    assert shapes(after)[0] == (left, 3, 3, 3)
    assert shapes(after)[1][-1] == left


def test_unread_inputs():
    model = model_of(plain("same", "relu"))
    kill(model.get_layer("second"), inputs=(0, 2, 5))
    before = exported(model)
    after = remove_dead_channels(before)
    assert_same(before, after)
    assert shapes(after)[:2] == [(3, 3, 3, 3), (4, 3, 3, 3)]


def test_one_layer_after_the_other():
    """What only fed a dead unit goes with it."""
    model = model_of(
        lambda x: layers.Dense(4)(
            layers.Dense(5, activation="relu", name="last")(
                layers.Dense(7, activation="relu", name="first")(layers.Flatten()(x))
            )
        )
    )
    weights = model.get_layer("last").get_weights()
    weights[0][2, :] = 0
    weights[0][2, 3] = 0.4  # unit 2 is read by unit 3 alone
    model.get_layer("last").set_weights(weights)
    kill(model.layers[-1], inputs=(3,))
    before = exported(model)
    after = remove_dead_channels(before)
    assert_same(before, after)
    assert shapes(after) == [(6, 192), (4, 6), (4, 4)]


def test_through_depthwise_pooling_and_flatten():
    def block(x):
        x = layers.Conv2D(6, 3, activation="relu", padding="same", name="first")(x)
        x = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu", padding="same", name="middle")(x)
        return layers.Dense(5, name="last")(layers.Flatten()(layers.MaxPooling2D()(x)))

    model = model_of(block)
    kill(model.get_layer("first"), outputs=(0, 3))
    middle = model.get_layer("middle")
    middle.bias.assign(np.where(np.isin(np.arange(12) // 2, (0, 3)), -0.1, middle.bias.numpy()))
    before = exported(model)
    after = remove_dead_channels(before)
    assert_same(before, after)
    assert shapes(after) == [(4, 3, 3, 3), (1, 3, 3, 8), (5, 4 * 4 * 8)]


def test_through_residuals():
    """Both branches and the sum keep the same channels: those that somebody reads."""

    def block(x):
        x = layers.Conv2D(6, 1, activation="relu", name="stem")(x)
        y = layers.Conv2D(6, 3, padding="same", activation="relu", name="a")(x)
        y = layers.Conv2D(6, 3, padding="same", name="b")(y)
        x = layers.ReLU()(layers.Add()([x, y]))
        return head(layers.Conv2D(4, 1, name="tail")(x))

    model = model_of(block)
    kill(model.get_layer("tail"), inputs=(1, 5))
    kill(model.get_layer("a"), inputs=(1, 5))
    kill(model.get_layer("a"), outputs=(0,))
    before = exported(model)
    after = remove_dead_channels(before)
    assert_same(before, after)
    assert shapes(after)[:4] == [(4, 1, 1, 3), (5, 3, 3, 4), (4, 3, 3, 5), (4, 1, 1, 4)]


def test_a_branch_that_became_constant_goes():
    def block(x):
        x = layers.Conv2D(6, 1, activation="relu", name="stem")(x)
        y = layers.Conv2D(6, 3, padding="same", activation="relu", name="a")(x)
        y = layers.Conv2D(6, 3, padding="same", name="b")(y)
        return head(layers.ReLU()(layers.Add()([x, y])))

    model = model_of(block)
    kill(model.get_layer("b"), outputs=range(6), bias=np.linspace(-0.41, 0.33, 6))
    before = exported(model)
    after = remove_dead_channels(before)
    assert_same(before, after)
    assert shapes(after) == [(6, 1, 1, 3), (5, 6)]
    names = [operator.name for operator in read(after).main.operators]
    assert names == ["CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED"]


def test_through_concatenation():
    def block(x):
        a = layers.Conv2D(5, 1, activation="relu", name="a")(x)
        b = layers.Conv2D(4, 3, padding="same", activation="relu", name="b")(x)
        return head(layers.Conv2D(3, 1, name="tail")(layers.Concatenate()([a, b])))

    model = model_of(block)
    kill(model.get_layer("tail"), inputs=(1, 2, 6))
    before = exported(model)
    after = remove_dead_channels(before)
    assert_same(before, after)
    assert shapes(after)[:3] == [(3, 1, 1, 3), (3, 3, 3, 3), (3, 1, 1, 6)]


def test_a_network_of_nothing_but_zeros():
    model = model_of(plain("same", "relu"))
    for layer in model.layers:
        if layer.weights:
            layer.set_weights([np.zeros_like(weight) for weight in layer.get_weights()])
    before = exported(model)
    after = remove_dead_channels(before)
    assert_same(before, after)
    assert all(1 in shape for shape in shapes(after))


def test_outputs_and_unknown_operators_keep_their_channels():
    model = model_of(lambda x: layers.Softmax()(layers.Conv2D(4, 1, name="only")(x)))
    kill(model.get_layer("only"), outputs=(1,))
    before = exported(model)
    after = remove_dead_channels(before)
    assert_same(before, after)
    assert shapes(after) == [(4, 1, 1, 3)]


def test_gathering_what_is_read():
    model = model_of(lambda x: layers.Dense(5, name="only")(layers.Flatten()(x)))
    weights = model.get_layer("only").get_weights()
    weights[0][50:] = 0
    model.get_layer("only").set_weights(weights)
    before = remove_dead_channels(exported(model))
    assert shapes(before) == [(5, 192)]
    after = write(gather_inputs(read(before), gatherable(read(before))))
    assert_same(before, after)
    assert shapes(after) == [(5, 50)]
    assert "GATHER" in {operator.name for operator in read(after).main.operators}
    assert gatherable(read(after)) == []


def test_transposed_convolutions():
    def block(x):
        x = layers.Conv2DTranspose(6, 3, strides=2, activation="relu", name="first")(x)
        return head(layers.Conv2D(4, 3, name="second")(x))

    model = model_of(block)
    kernel, bias = model.get_layer("first").get_weights()  # [h, w, out, in]
    kernel[:, :, [0, 4]], bias[[0, 4]] = 0, -0.1
    model.get_layer("first").set_weights([kernel, bias])
    before = exported(model)
    after = remove_dead_channels(before)
    assert_same(before, after)
    assert shapes(after)[:2] == [(4, 3, 3, 3), (4, 3, 3, 4)]


def test_an_activation_that_a_pool_took_up():
    """Convolution, pool, ReLU: TFLite's converter fuses the last two."""

    def block(x):
        x = layers.MaxPooling2D()(layers.Conv2D(6, 3, name="first")(x))
        return head(layers.Conv2D(4, 3, name="second")(layers.ReLU()(x)))

    model = model_of(block)
    kill(model.get_layer("first"), outputs=(1, 2), bias=-0.3)
    before = exported(model)
    after = remove_dead_channels(before)
    assert_same(before, after)
    assert shapes(after)[0] == (4, 3, 3, 3)


def test_pointwise_convolutions_have_no_border():
    def block(x):
        x = layers.Conv2D(6, 3, padding="same", name="first")(x)
        return head(layers.Conv2D(4, 1, padding="same", name="second")(x))

    model = model_of(block)
    kill(model.get_layer("first"), outputs=(1, 2), bias=0.31)
    before = exported(model)
    after = remove_dead_channels(before)
    assert_same(before, after)
    assert shapes(after)[:2] == [(4, 3, 3, 3), (4, 1, 1, 4)]


def residual_network(x):
    x = layers.Conv2D(8, 3, activation="relu")(x)
    y = layers.DepthwiseConv2D(3, padding="same", activation="relu")(x)
    y = layers.Conv2D(8, 1)(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Concatenate()([layers.Conv2D(4, 3, activation="relu")(x), layers.Conv2D(4, 3)(x)])
    x = layers.Flatten()(layers.AveragePooling2D()(x))
    return layers.Dense(4)(layers.Dense(8, activation="relu")(x))


def gated_network(x):
    x = layers.LeakyReLU(0.1)(layers.Conv2D(8, 3, padding="same")(x))
    gate = layers.Conv2D(8, 1, activation="sigmoid")(x)
    x = layers.Multiply()([layers.ReLU(6.0)(layers.Conv2D(8, 1)(x)), gate])
    x = layers.UpSampling2D()(layers.ZeroPadding2D()(x))
    x = layers.Subtract()([layers.Conv2D(6, 3, activation="tanh")(x), layers.Conv2D(6, 3)(x)])
    x = layers.Conv2DTranspose(5, 2, activation="relu")(layers.MaxPooling2D()(x))
    return layers.Dense(4)(layers.GlobalAveragePooling2D()(x))


@pytest.fixture(scope="module")
def networks():
    return {network: exported(model_of(network)) for network in (residual_network, gated_network)}


@pytest.mark.slow
@pytest.mark.parametrize("network", [residual_network, gated_network])
@settings(deadline=None, max_examples=8)
@given(st.integers(0, 2**32), st.sampled_from([0.3, 0.7, 0.9]))
def test_whatever_dies(network, networks, seed, share):
    """Random channels of every layer of networks with everything in them, and random biases."""
    model = read(networks[network])
    rng = np.random.default_rng(seed)
    linear = [operator for operator in model.main.operators if operator.name in OPERANDS]
    for operator in linear:
        places = OPERANDS[operator.name]
        _, kernel, bias = (model.main.tensors[operator.inputs[place]] for place in places)
        codes, axis = kernel.values(), 3 if operator.name == "DEPTHWISE_CONV_2D" else 0
        dead = rng.random(codes.shape[axis]) < share
        shape = [1] * codes.ndim
        shape[axis] = len(dead)
        kernel.set_values(np.where(dead.reshape(shape), 0, codes).astype(np.int8))
        bias.set_values(rng.permutation(bias.values()))
    assert len(linear) >= 7
    before = write(model)
    after = remove_dead_channels(before)
    assert_same(before, after)
    assert len(after) <= len(before)
