"""SavedModels are read as data: nothing in a folder is run, and each weight gets its own value."""

import json
import os
import shutil
import struct

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.core.protobuf import tensor_bundle_pb2
from tensorflow.python.trackable.autotrackable import AutoTrackable
from tf_keras.protobuf import saved_metadata_pb2
from tf_keras.src.applications.convnext import LayerScale

from lqconvert import LqError, inspect, load_model
from lqconvert.keras_loader.saved_model import count_numbers
from lqconvert.keras_loader.tensor_bundle import Bundle, _entries, _number, _table

layers = tf_keras.layers


def recurrent():
    x = tf_keras.Input((3, 4))
    y = layers.Bidirectional(layers.LSTM(3, return_sequences=True), merge_mode="sum")(x)
    return tf_keras.Model(x, layers.Dense(2)(layers.SimpleRNN(3)(y)))


def shared():
    """Layers that stand in several models, and are called several times."""
    dense = layers.Dense(4, name="shared")
    inner = tf_keras.Sequential([tf_keras.Input((4,)), layers.Dense(4), dense, layers.ReLU()], name="inner")
    x = tf_keras.Input((4,))
    return tf_keras.Model(x, layers.Add()([dense(inner(inner(x))), layers.Dense(4)(dense(x))]))


def nested():
    """Models in models, with layers of the same names."""
    model = tf_keras.Sequential([tf_keras.Input((4,)), layers.Dense(4, name="dense")], name="inner")
    for _ in range(2):
        x = tf_keras.Input((4,))
        model = tf_keras.Model(x, layers.Dense(4, name="dense")(model(x)), name="inner")
    return model


def normalized():
    x = tf_keras.Input((4, 4, 3))
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(3, 2, (50, 4, 4, 3)))
    y = layers.BatchNormalization(scale=False)(layers.Conv2D(3, 3)(normalization(x)))
    return tf_keras.Model(x, layers.PReLU()(LayerScale(0.5, 3)(layers.SeparableConv2D(3, 2)(y))))


def attention():
    x = tf_keras.Input((5, 4))
    return tf_keras.Model(x, layers.LayerNormalization()(layers.MultiHeadAttention(2, 3)(x, x)))


def embedded():
    return tf_keras.Sequential(
        [tf_keras.Input((5,)), layers.Embedding(9, 4), layers.Flatten(), layers.Dense(2)]
    )


def sequential():
    """Without an Input: Keras knows its shape from its first call."""
    model = tf_keras.Sequential([layers.Dense(3), layers.Dropout(0.5), layers.Dense(2)])
    model(np.zeros((1, 4), np.float32))
    return model


def compiled():
    model = tf_keras.Sequential([tf_keras.Input((4,)), layers.Dense(3), layers.Dense(2)])
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    return model


def several():
    x, y = tf_keras.Input((4,), name="b"), tf_keras.Input((3,), name="a")
    return tf_keras.Model([x, y], [layers.Dense(2)(layers.Concatenate()([x, y])), layers.Dense(2)(y)])


MODELS = [recurrent, shared, nested, normalized, attention, embedded, sequential, compiled, several]


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_each_weight_has_its_value(make, tmp_path):
    model, rng = make(), np.random.default_rng(1)
    varied = [
        w + np.abs(rng.normal(0, 0.3, w.shape)).astype(w.dtype) if w.dtype.kind == "f" else w
        for w in model.get_weights()
    ]
    if make is not normalized:  # its statistics are not finalized again
        model.set_weights(varied)
    model.save(tmp_path / "saved", save_format="tf", save_traces=False)
    # It holds the graph, and is not even read.
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"\xff" * 100)
    loaded = load_model(tmp_path / "saved")
    inputs = [rng.integers(0, 9, (3, *x.shape[1:])).astype(x.dtype.as_numpy_dtype) for x in loaded.inputs]
    x = inputs if len(inputs) > 1 else inputs[0]
    for found, expected in zip(tf.nest.flatten(loaded(x)), tf.nest.flatten(model(x)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


class Evil(AutoTrackable):
    """Its functions are part of the graph, and run when TensorFlow restores it."""

    def __init__(self, trap, how):
        self.trap, self.how = trap, how

    def _serialize_to_tensors(self):
        return {"v": tf.constant([1.0])}

    def _restore_from_tensors(self, tensors):
        text = tf.constant(["a stranger's text"])
        if self.how == "SaveV2":
            tf.raw_ops.SaveV2(prefix=self.trap, tensor_names=["x"], shape_and_slices=[""], tensors=[text])
        elif self.how == "Save":
            tf.raw_ops.Save(filename=self.trap, tensor_names=["x"], data=[text])
        else:
            tf.io.write_file(self.trap, text[0])
        return tf.no_op()


@pytest.mark.parametrize(("how", "trusted"), [("SaveV2", False), ("Save", False), ("WriteFile", True)])
def test_functions_of_a_graph_do_not_run(how, trusted, tmp_path):
    model = sequential()
    model.evil = Evil(str(tmp_path / "trap"), how)
    model.save(tmp_path / "saved", save_format="tf")
    for file in tmp_path.glob("trap*"):
        file.unlink()  # saving traced, and may have run, them
    assert not inspect(tmp_path / "saved", trust_model=trusted).refused
    assert not list(tmp_path.glob("trap*"))


def crc(data):
    """CRC-32C, which an index has for its blocks. (lqconvert does not check it.)"""
    result = 0xFFFFFFFF
    for byte in data:
        result ^= byte
        for _ in range(8):
            result = (result >> 1) ^ (0x82F63B78 if result & 1 else 0)
    result ^= 0xFFFFFFFF
    return struct.pack("<I", ((result >> 15 | result << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(number):
    return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])


def write_index(path, table):
    data = b""

    def put(entries):
        nonlocal data
        block = b"".join(b"\0" + varint(len(k)) + varint(len(v)) + k + v for k, v in entries)
        block += struct.pack("<II", 0, 1)
        handle = varint(len(data)) + varint(len(block))
        data += block + b"\0" + crc(block + b"\0")
        return handle

    place = put(sorted(table.items()))
    footer = put([]) + put([(b"\xff", place)])
    path.write_bytes(data + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder that Keras saved; it stays as it is."""
    folder = tmp_path_factory.mktemp("model") / "saved"
    kernels = layers.Dense(4, name="one"), layers.Dense(4, name="two")
    tf_keras.Sequential([tf_keras.Input((4,)), *kernels]).save(folder, save_format="tf")
    return folder


@pytest.fixture
def saved(model, tmp_path):
    return shutil.copytree(model, tmp_path / "saved")


def changed(saved, change):
    """The folder, with the entries of its checkpoint's index as ``change`` leaves them."""
    index = saved / "variables" / "variables.index"
    table = _table(index.read_bytes())
    header = tensor_bundle_pb2.BundleHeaderProto.FromString(table.pop(b""))
    entries = {key: tensor_bundle_pb2.BundleEntryProto.FromString(value) for key, value in table.items()}
    change(entries, header)
    write_index(index, {key: value.SerializeToString() for key, value in {b"": header, **entries}.items()})
    return saved


KERNELS = [f"layer_with_weights-{n}/kernel/.ATTRIBUTES/VARIABLE_VALUE".encode() for n in (0, 1)]
GRAPH = b"_CHECKPOINTABLE_OBJECT_GRAPH"


def other_shape(entries, header):
    entries[KERNELS[0]].shape.dim[0].size, entries[KERNELS[0]].shape.dim[1].size = 2, 8


def other_type(entries, header):
    entries[KERNELS[0]].dtype = tf.int32.as_datatype_enum


def huge(entries, header):
    entries[KERNELS[0]].shape.dim[0].size, entries[KERNELS[0]].size = 1 << 40, 1 << 44


def overlapping(entries, header):
    for _ in range(3):
        entries.update({key + b"x": value for key, value in entries.items() if value.size == 64})


def negative(entries, header):
    entries[KERNELS[0]].shape.dim[0].size = -1


def many_dimensions(entries, header):
    for _ in range(300):
        entries[KERNELS[0]].shape.dim.add().size = 1


def elsewhere(entries, header):
    entries[KERNELS[0]].offset = 1 << 40


def no_shard(entries, header):
    entries[KERNELS[0]].shard_id = 5


def many_shards(entries, header):
    header.num_shards = 1 << 30


def missing(entries, header):
    del entries[KERNELS[0]]


def no_graph(entries, header):
    del entries[GRAPH]


def sliced(entries, header):
    entries[KERNELS[0]].slices.add()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_shape, r"no value of shape \(4, 4\) for 'one/kernel"),
        (other_type, r"no value of shape \(4, 4\) for 'one/kernel"),
        (missing, r"no value of shape \(4, 4\) for 'one/kernel"),
        (many_dimensions, r"no value of shape \(4, 4\) for 'one/kernel"),
        (huge, "larger than their files"),
        (overlapping, "larger than their files"),
        (negative, "parts of a tensor, or none"),
        (sliced, "parts of a tensor, or none"),
        (elsewhere, "truncated"),
        (no_shard, "has no part 5"),
        (many_shards, "in 1,073,741,824 parts"),
        (no_graph, "has no '_CHECKPOINTABLE_OBJECT_GRAPH'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_checkpoints_that_keras_does_not_write(change, reason, saved):
    """For most of these, TensorFlow's own reader ends the process."""
    with pytest.raises(LqError, match=f"^{saved}: .*{reason}") as caught:
        load_model(changed(saved, change))
    assert len(str(caught.value).splitlines()) == 1


def test_two_weights_of_one_value(saved):
    """The graph of objects, of which strings of equal length may stand for each other."""
    data = saved / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes().replace(KERNELS[1], KERNELS[0]))
    with pytest.raises(LqError, match="two weights have the same value"):
        load_model(saved)


def test_tables():
    for damaged in (b"", b"\0" * 48, b"\xff" * 60):
        with pytest.raises((ValueError, LookupError, struct.error)):
            _table(damaged)
    with pytest.raises(ValueError, match="too long"):
        _number(b"\xff" * 20, 0)
    # Each key is the one before it and a byte: of half a megabyte they would take gigabytes.
    block, shared = bytearray(b"\0\x01\0a"), 1
    while len(block) < 500_000:
        block += varint(shared) + b"\x01\0a"
        shared += 1
    with pytest.raises(ValueError, match="truncated"):
        _entries(bytes(block) + struct.pack("<II", 0, 1))


def test_what_is_read_is_what_tensorflow_reads(saved):
    prefix = saved / "variables" / "variables"
    bundle, reader = Bundle(prefix), tf.train.load_checkpoint(str(prefix))
    shapes = reader.get_variable_to_shape_map()
    assert {name: list(entry.shape) for name, entry in bundle.entries.items()} == shapes
    for name in shapes:
        if name != GRAPH.decode():
            np.testing.assert_array_equal(bundle.array(name), reader.get_tensor(name))
    assert bundle.text(GRAPH.decode(), 1 << 20) == reader.get_tensor(GRAPH.decode())
    assert count_numbers(saved) >= 40


@pytest.mark.skipif(os.name != "posix", reason="devices of POSIX")
@pytest.mark.parametrize(
    "name", ["keras_metadata.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"]
)
def test_links_to_devices(name, saved):
    (saved / name).unlink()
    (saved / name).symlink_to("/dev/zero")
    with pytest.raises(LqError, match=f"{name}: a device"):
        load_model(saved)


def test_folders_that_are_no_model_of_keras(saved, tmp_path):
    with pytest.raises(LqError, match="not the SavedModel of a Keras model"):
        load_model(tmp_path)
    file, metadata = saved / "keras_metadata.pb", saved_metadata_pb2.SavedMetadata()
    metadata.ParseFromString(file.read_bytes())
    metadata.nodes[0].metadata = json.dumps({"class_name": "Mine", "name": "mine"})
    file.write_bytes(metadata.SerializeToString())
    with pytest.raises(LqError, match="the model is a Mine"):
        load_model(saved)
    del metadata.nodes[0]
    file.write_bytes(metadata.SerializeToString())
    with pytest.raises(LqError, match="a SavedModel, but not of a Keras model"):
        load_model(saved)
    shutil.rmtree(saved / "variables")
    with pytest.raises(LqError, match="but not of a Keras model"):
        load_model(saved)
