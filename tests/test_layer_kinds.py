"""The table of layer kinds: all handled layers have a row, every row is used, and its properties are true."""

import ast
import inspect
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import zoo
from layers_page import PAGE, refused, with_table

import lqconvert
from lqconvert.errors import LqError
from lqconvert.keras_loader.config_checks import refuse_unknown
from lqconvert.keras_loader.custom_layers import CUSTOM_LAYERS
from lqconvert.keras_loader.layer_kinds import ACTIVATIONS, KINDS, LAYERS, Loading, Range, kind_of
from lqconvert.keras_loader.layer_rules import ACTIVATION_RULES, RULES

PACKAGE = Path(lqconvert.__file__).parent
RNG = np.random.default_rng(0)
#: Settings that layers cannot be made without.
SETTINGS = {
    "Activation": ("tanh",),
    "Reshape": ((5, 8),),
    "Permute": ((2, 1),),
    "RepeatVector": (3,),
    "Slice": ([(1, 6, 2), (None, None, None)],),
    "Dense": (7,),
    "Conv1D": (7, 3),
    "Conv2D": (7, 3),
    "Conv2DTranspose": (7, 3),
    "DepthwiseConv2D": (3, 1, "valid", 2),
    "DepthToSpace": (2,),
    "Elementwise": ("softplus",),
    "Resize": (5, 12),
    "SplitSteps": (2,),
}
#: Of keras.applications, of old files and of files that lqconvert writes.
NOT_IN_ZOO = {"LayerScale", "CustomScaleLayer", "Convolution2D", "HardSwish"}
#: One function, which has its first name in Keras 3 and its second in Keras 2.
SAME_FUNCTION = {"silu": "swish", "hard_silu": "hard_swish"}
#: Folding replaces these: see :func:`lqconvert.quantization.fold_batchnorm.fold`.
FOLDED = {"BatchNormalization", "SeparableConv2D", "linear", "relu"}


def names(trait, kinds=LAYERS):
    return sorted(kind.name for kind in kinds.values() if trait(kind))


def made(name):
    """A layer of a kind, with settings that any will do for."""
    cls = CUSTOM_LAYERS.get(name) or getattr(tf_keras.layers, name)
    return cls(*SETTINGS.get(name, ()))


def inputs(name):
    """For a layer of a kind: two examples of five channels, or of a vector."""
    shapes = {"RepeatVector": (2, 5), "DepthToSpace": (2, 4, 4, 8), "Resize": (2, 8, 8, 5)}
    shape = shapes.get(name, (2, 8, 8, 5) if "2D" in name else (2, 8, 5))
    return RNG.normal(size=shape).astype(np.float32)


def test_a_name_has_one_row():
    counts = Counter(kind.name for kinds in KINDS.values() for kind in kinds)
    assert max(counts.values()) == 1


def test_what_a_rule_handles_has_a_row_and_the_other_way_round():
    assert sorted(RULES) == names(lambda kind: kind.loading is Loading.RULE)
    assert sorted(ACTIVATION_RULES) == names(lambda kind: kind.loading is Loading.RULE, ACTIVATIONS)
    assert names(lambda kind: kind.loading is Loading.NONE) == sorted({*CUSTOM_LAYERS} - {*RULES})


def test_rows_are_of_layers_and_activations_of_keras():
    applications = {"LayerScale", "CustomScaleLayer"}
    both = {*dir(tf_keras.layers), *dir(keras.layers), *applications, *CUSTOM_LAYERS}
    assert {*LAYERS} <= both
    assert {*names(lambda kind: kind.loading is Loading.AS_IS)} <= {*dir(tf_keras.layers)}
    functions = {*dir(tf_keras.activations), *dir(keras.activations)}
    assert {*ACTIVATIONS} - functions == {"relu6", "leaky_relu"} - functions
    assert {*names(lambda kind: kind.loading is Loading.AS_IS, ACTIVATIONS)} <= {*dir(tf_keras.activations)}


def test_every_layer_of_a_folded_model_has_an_output_range():
    for kind in (*LAYERS.values(), *ACTIVATIONS.values()):
        if kind.loading in (Loading.AS_IS, Loading.NONE):
            assert (kind.output_range is None) == (kind.name in FOLDED), kind.name
        if kind.loading is Loading.DROPPED:
            assert kind.output_range is None, kind.name


def found(layer):
    """The names of the kinds of a layer, of its activation, and of the layers in it."""
    yield kind_of(layer).name or type(layer).__name__
    yield getattr(getattr(layer, "activation", None), "__name__", "linear")
    inner = [getattr(layer, name, None) for name in ("layer", "forward_layer")]
    for each in (*getattr(layer, "layers", ()), *inner):
        if each is not None:
            yield from found(each)


def test_the_zoo_has_every_kind():
    seen = set()
    for number, feature in enumerate(zoo.ZOO.values()):
        package, _ = zoo.APIS[feature.apis[number % len(feature.apis)]]
        seen.update(found(feature.build(package)))
    for names_of_one in SAME_FUNCTION.items():
        if seen & {*names_of_one}:
            seen.update(names_of_one)
    held = {kind.name for kinds in KINDS.values() for kind in kinds if kind.loading is not Loading.NONE}
    assert held - seen == NOT_IN_ZOO


def test_layers_with_an_activation_say_so():
    def has(kind):
        cls = getattr(tf_keras.layers, kind.name, None)
        return cls is not None and "activation" in inspect.signature(cls.__init__).parameters

    with_one = set(names(has)) - set(names(lambda kind: kind.recurrent)) - {"Activation"}
    assert sorted(with_one) == names(lambda kind: kind.has_activation)


@pytest.mark.parametrize("name", names(lambda kind: kind.kernel and kind.kernel.outputs))
def test_axes_of_kernels(name):
    layer, axes = made(name), LAYERS[name].kernel
    x = RNG.normal(size=(2, 8, 8, 5)[4 - {"Dense": 2, "Conv1D": 3}.get(name, 4) :]).astype(np.float32)
    channels = layer(x).shape[-1]
    shape = getattr(layer, axes.attribute).shape
    assert np.prod([shape[axis] for axis in axes.outputs]) == channels
    assert [shape[axis] for axis in axes.channels] == [x.shape[-1]]
    assert (axes.summed is None) == (name == "DepthwiseConv2D")
    spatial = {axis for axis in (*axes.rows, *axes.columns) if axis not in (*axes.channels, *axes.outputs)}
    assert spatial == set(range(len(shape))) - {*axes.channels, *axes.outputs}


@pytest.mark.parametrize("name", names(lambda kind: kind.commutes))
def test_what_commutes_with_factors_of_channels(name):
    layer, x, factors = made(name), inputs(name), np.float32([0.5, 1, 2, 3, 4])
    assert np.allclose(layer(x * factors), layer(x) * factors, atol=1e-6)


@pytest.mark.parametrize("name", names(lambda kind: kind.elementwise))
def test_what_works_element_by_element(name):
    layer, x = made(name), inputs(name)
    x[1, 3, 2] = 1
    other = x.copy()
    other[1, 3, 2] = 2
    changed = np.argwhere(np.asarray(layer(x)) != np.asarray(layer(other)))
    assert changed.tolist() == [[1, 3, 2]]


@pytest.mark.parametrize("name", names(lambda kind: kind.time_distributed))
def test_what_time_distributed_does_not_change(name):
    layer, x = made(name), inputs(name)
    steps = [np.asarray(layer(x[:, step])) for step in range(x.shape[1])]
    assert np.allclose(layer(x), np.stack(steps, axis=1), atol=1e-6)


@pytest.mark.parametrize("name", names(lambda kind: kind.output_range is Range.INPUT))
def test_what_keeps_the_scale_gives_values_of_its_input(name):
    layer, x = made(name), inputs(name)
    assert set(np.ravel(layer(x))) <= {*np.ravel(x), 0.0}


# A float AttentionMask gives -1e9.
ROUNDED = names(lambda kind: kind.output_range is Range.INPUT_ROUNDED and kind.name != "AttentionMask")


@pytest.mark.parametrize("name", ROUNDED)
def test_what_rounds_stays_within_its_input(name):
    layers = {"UpSampling2D": lambda: tf_keras.layers.UpSampling2D(interpolation="bilinear")}
    layer, x = layers.get(name, lambda: made(name))(), inputs(name)
    y = np.asarray(layer(x))
    assert x.min() <= y.min() < y.max() <= x.max()
    assert not set(np.ravel(y)) <= set(np.ravel(x))


@pytest.mark.parametrize(
    ("name", "table"),
    [
        (name, table)
        for table in (LAYERS, ACTIVATIONS)
        for name in names(lambda kind: isinstance(kind.output_range, tuple), table)
    ],
)
def test_prescribed_ranges_hold_every_output(name, table):
    call = made(name) if table is LAYERS else getattr(tf_keras.activations, name)
    low, high = table[name].output_range
    y = np.asarray(call(tf.constant(20 * np.eye(5, dtype=np.float32) - 10)))
    step = (high - low) / 255
    assert low <= y.min() < low + 100 * step
    assert high - 100 * step < y.max() <= high + step * 1.01


def listed(source):
    """The names of layers in each set, list, tuple and dict that a module writes out."""
    for node in ast.walk(ast.parse(source)):
        elements = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        yield {each.value for each in elements if isinstance(each, ast.Constant)} & {*LAYERS}


@pytest.mark.parametrize("package", ["quantization", "exporting", "training", "analysis"])
def test_no_module_has_a_table_of_layers_of_its_own(package):
    for path in (PACKAGE / package).glob("*.py"):
        assert all(len(found) < 3 for found in listed(path.read_text(encoding="utf-8"))), path.name


def test_a_table_of_layers_is_found():
    assert {"Dense", "ReLU", "Add"} in listed('GROUPS = {"a": ["x", *("Dense", "ReLU", "Add")]}')


@pytest.mark.parametrize("name", refused())
def test_other_layers_are_refused_by_name(name):
    layer = {"class_name": name, "config": {"name": "x"}, "name": "x", "inbound_nodes": []}
    config = {"class_name": "Functional", "config": {"name": "model", "layers": [layer]}}
    with pytest.raises(LqError, match=rf"layer 'x' \({name}\): this layer is not known to lqconvert"):
        refuse_unknown(config)


def test_the_page_has_the_table():
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run python tests/layers_page.py"
