"""Files from strangers are refused in one line, in bounded time and memory, and nothing in them is run."""

import gc
import io
import json
import stat
import sys
import time
import zipfile

import flatbuffers
import h5py
import keras
import numpy as np
import pytest
import tf_keras
from ai_edge_litert import schema_py_generated as schema
from click.testing import CliRunner
from fuzzing import Worker, make_seeds, mutants, remove

from lqconvert import LqError, explain, inspect, load_data, load_model, rewrite
from lqconvert.analysis.inspect_tflite import Allowance, Constants
from lqconvert.cli.main import main
from lqconvert.exporting.codes import Int8File
from lqconvert.keras_loader import limits
from lqconvert.keras_loader.custom_layers import TrustedFunction
from lqconvert.pipeline.quantize import export_codes
from lqconvert.quantization.fold_batchnorm import fold
from lqconvert.quantization.rewrite import float_layers
from lqconvert.runtime.litert import Runner, check_loads
from lqconvert.runtime.tflm import run_micro
from lqconvert.tflite.editing import add_constant, add_tensor, new_operator
from lqconvert.tflite.flatbuffer import read, serialize, write
from lqconvert.tflite.graph import Model

FUZZED = 30


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return {path.name: path for path in make_seeds(tmp_path_factory.mktemp("seeds"))}


def refused(path, reason, **arguments):
    start = time.monotonic()
    with pytest.raises(LqError, match=reason) as caught:
        load_model(path, **arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert path.name in message
    assert time.monotonic() - start < 20


def edited(seed, target, change):
    """A copy of an .h5 or .keras with a config that ``change`` edited."""
    if seed.suffix == ".h5":
        target.write_bytes(seed.read_bytes())
        with h5py.File(target, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            change(config)
            file.attrs["model_config"] = json.dumps(config)
        return target
    with zipfile.ZipFile(seed) as before, zipfile.ZipFile(target, "w") as after:
        for name in before.namelist():
            data = before.read(name)
            if name == "config.json":
                config = json.loads(data)
                change(config)
                data = json.dumps(config).encode()
            after.writestr(name, data)
    return target


def layer_config(config, name):
    return next(
        layer["config"] for layer in config["config"]["layers"] if layer["config"].get("name") == name
    )


MODELS = ["cnn-tf_keras.h5", "cnn-tf_keras.keras", "cnn-keras.h5", "cnn-keras.keras"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (
            "kernel_initializer",
            {"module": "os", "class_name": "system", "config": {}},
            r"'system': this layer",
        ),
        ("activation", {"class_name": "__lambda__", "config": {"value": "4wA="}}, "Python code"),
        (
            "activation",
            {"module": "os", "class_name": "function", "config": "system", "registered_name": "function"},
            "the function 'system' is not known",
        ),
        (
            "activation",
            {"module": "shutil", "class_name": "function", "config": "relu", "registered_name": "relu"},
            "comes from the module 'shutil'",
        ),
        ("activation", "deserialize", "activation 'deserialize' is not known"),
        (
            "kernel_regularizer",
            {"class_name": "L2", "config": {"l2": 0.1}, "module": "keras", "registered_name": "a>get_file"},
            "which is not its class's name",
        ),
        (
            "kernel_constraint",
            {"class_name": "__typespec__", "module": "os", "spec_name": "system", "config": []},
            "'__typespec__': this layer is not known",
        ),
        (
            "bias_initializer",
            [[{"class_name": "TFOpLambda", "config": {"function": "io.write_file"}}]],
            "write",
        ),
        ("filters", 2**40, "too large for a number in a layer"),
        ("filters", 2**30, "more than the file has"),
        ("data_format", "channels_first", "channels_first"),
    ],
)
def test_what_a_layer_may_not_hold(name, key, value, reason, seeds, tmp_path):
    path = edited(
        seeds[name], tmp_path / name, lambda config: layer_config(config, "first").update({key: value})
    )
    refused(path, reason)


@pytest.mark.parametrize("name", MODELS)
def test_a_normalization_without_its_epsilon(name, seeds, tmp_path):
    change = lambda config: layer_config(config, "norm").update(epsilon=None)  # noqa: E731
    refused(edited(seeds[name], tmp_path / name, change), "epsilon is not a number")


@pytest.mark.parametrize("name", MODELS)
def test_sizes_that_need_no_weights(name, seeds, tmp_path):
    def upsampled(config):
        layer_config(config, "up")["size"] = [10000, 10000]

    def wide(config):
        image = layer_config(config, "image")
        for key in image.keys() & {"batch_shape", "batch_input_shape"}:
            image[key] = [None, 1 << 16, 1 << 16, 1]

    for change in (upsampled, wide):
        path = edited(seeds[name], tmp_path / name, change)
        refused(path, "is too large|more than the file has|incompatible with the layer")


@pytest.mark.parametrize("name", MODELS)
def test_a_config_that_is_nested_too_deeply(name, seeds, tmp_path):
    def deep(levels):
        def change(config):
            for _ in range(levels):
                config["config"] = {**config["config"], "extra": [config["config"].get("extra")]}

        return change

    refused(edited(seeds[name], tmp_path / name, deep(500)), "nested too deeply")
    text = '{"class_name": "Functional", "config": ' + '{"a": ' * 100_000 + "1" + "}" * 100_001
    if name.endswith(".h5"):
        path = tmp_path / "deeper.h5"
        path.write_bytes(seeds[name].read_bytes())
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = text
    else:
        path = archive(seeds[name], tmp_path / "deeper.keras", {"config.json": text.encode()})
    refused(path, "nested too deeply")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("source", ["dense", "nothing"])
def test_a_graph_that_goes_in_circles(name, source, seeds, tmp_path):
    """tf_keras would try for ever to put it in order."""

    def change(config):
        for layer in config["config"]["layers"]:
            if layer["config"].get("name") == "flat":
                text = json.dumps(layer["inbound_nodes"]).replace('"up"', '"dense"')
                text = text if source == "dense" else text.replace('"dense", 0', '"dense", 7')
                layer["inbound_nodes"] = json.loads(text)

    refused(edited(seeds[name], tmp_path / name, change), "form a circle, or refer to nothing")


def lambda_model(trap):
    code = f"lambda x: (open({str(trap)!r}, 'w'), x)[1]"
    x = tf_keras.Input((4,))
    evil = tf_keras.layers.Lambda(eval(code), output_shape=(4,), name="evil")
    inner = tf_keras.Model(x, evil(x), name="inner")
    y = tf_keras.Input((4,))
    return tf_keras.Model(y, tf_keras.layers.Dense(2)(inner(y)))


@pytest.mark.parametrize("suffix", [".h5", ".keras", ""])
def test_a_nested_lambda_never_runs_unless_it_is_trusted(suffix, tmp_path):
    trap, path = tmp_path / "trap", tmp_path / f"model{suffix}"
    lambda_model(trap).save(path, **({} if suffix else {"save_format": "tf"}))
    trap.unlink()  # building the model ran it
    refused(path, r"'evil' \(Lambda\): holds Python code.*or trust the model")
    result = CliRunner().invoke(main, ["quantize", str(path), "--data", "digits"])
    assert result.exit_code == 1
    assert "--trust-model" in result.output
    assert not trap.exists()
    model = load_model(path, trust_model=True)
    assert trap.exists()
    assert list(float_layers(rewrite(model)).values()) == ["Python code"]


def archive(seed, target, changed=None, more=(), compression=zipfile.ZIP_STORED):
    """A copy of a .keras with other and more entries."""
    with zipfile.ZipFile(seed) as before, zipfile.ZipFile(target, "w", compression) as after:
        for name in before.namelist():
            data = (changed or {}).get(name, before.read(name))
            if data is not None:
                after.writestr(name, data)
        for entry, data in more:
            after.writestr(entry, data)
    return target


def link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("api", ["keras", "tf_keras"])
def test_archives(api, seeds, tmp_path):
    seed = seeds[f"cnn-{api}.keras"]
    path = tmp_path / "model.keras"
    refused(archive(seed, path, more=[("../../escaped", b"")]), "holds '../../escaped'")
    refused(archive(seed, path, more=[("assets/table.txt", b"")]), "holds 'assets/table.txt'")
    refused(
        archive(seed, path, {"config.json": None}, [(link("config.json"), b"/etc/passwd")]), "symbolic link"
    )
    with zipfile.ZipFile(seed) as before:
        config = before.read("config.json")
    refused(archive(seed, path, more=[("config.json", config)]), "occurs twice in the archive")
    refused(archive(seed, path, {"model.weights.h5": None}), "no model.weights.h5")
    doubled = b'{"class_name": "Lambda", ' + config.lstrip()[1:]
    refused(archive(seed, path, {"config.json": doubled}), "a key occurs twice")
    for name in ("config.json", "model.weights.h5"):
        bomb = archive(seed, path, {name: bytes(300 << 20)}, compression=zipfile.ZIP_DEFLATED)
        refused(bomb, f"{name} unpacks from [0-9,]+ bytes to 314,572,800")
    refused(archive(seed, path, {"config.json": b"[1]"}), "not a JSON object")
    refused(archive(seed, path, {"config.json": b"\xff"}), "is damaged")


def hdf5(seed, target, change):
    """A copy of an .h5, or of a .keras's weights. ``change`` has edited it as an open HDF5 file."""
    if seed.suffix == ".h5":
        target.write_bytes(seed.read_bytes())
        with h5py.File(target, "r+") as file:
            change(file)
        return target
    with zipfile.ZipFile(seed) as before:
        weights = io.BytesIO(before.read("model.weights.h5"))
    with h5py.File(weights, "r+") as file:
        change(file)
    return archive(seed, target, {"model.weights.h5": weights.getvalue()})


def external_storage(file):
    file.create_dataset("evil", (100,), "u1", external=[("/etc/passwd", 0, 100)])


def virtual(file):
    layout = h5py.VirtualLayout((100,), "f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (100,))
    file.create_virtual_dataset("evil", layout)


def external_link(file):
    file["evil"] = h5py.ExternalLink("/etc/passwd", "/")


def soft_link(file):
    file["evil"] = h5py.SoftLink("/evil")


def hard_loop(file):
    group = file.create_group("evil")
    group["again"] = group


def absurd_shape(file):
    file.create_dataset("evil", (1 << 40,), "f4", chunks=(1 << 10,))


def absurd_chunk(file):
    file.create_dataset("evil", (1,), "f4", maxshape=(None,), chunks=(1 << 28,))


def compressed(file):
    file.create_dataset("evil", data=np.zeros(1 << 20, "f4"), compression="gzip")


def text(file):
    file.create_dataset("evil", data=["text"], dtype=h5py.string_dtype())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (external_storage, "in another file"),
        (virtual, "in another file"),
        (external_link, "'evil' is a soft or external link"),
        (soft_link, "'evil' is a soft or external link"),
        (hard_loop, "'again' is linked twice"),
        (absurd_shape, "'evil' .* is larger than the file"),
        (absurd_chunk, "'evil' .* is larger than the file"),
        (compressed, "'evil' is compressed"),
        (text, "'evil' is not an array of numbers"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_weights_that_keras_does_not_write(name, change, reason, seeds, tmp_path):
    refused(hdf5(seeds[name], tmp_path / name, change), reason)


def test_an_attribute_that_claims_gigabytes(seeds, tmp_path):
    """HDF5 allocates the size that a text claims before it checks the text's length."""
    path = tmp_path / "model.h5"
    path.write_bytes(seeds["cnn-keras.h5"].read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs.create("evil", "x" * 3333, dtype=h5py.string_dtype())
    data, length = path.read_bytes(), (3333).to_bytes(4, "little")
    assert length in data
    path.write_bytes(data.replace(length, b"\xff\xff\xff\xff"))
    refused(path, "an attribute of it cannot be read")


def test_an_attribute_that_claims_gigabytes_behind_a_group_without_any(tmp_path):
    path = tmp_path / "model.h5"
    tf_keras.Sequential([tf_keras.layers.Input((4,)), tf_keras.layers.Dense(2, name="dense")]).save(path)
    with h5py.File(path, "a") as file:
        assert not file["model_weights/dense/dense"].attrs
        file["model_weights/top_level_model_weights"].attrs["notes"] = ["text of any length"]
    damaged = bytearray(path.read_bytes())
    size = damaged.rindex(b"text of any length") - 8  # in front of an object in a global heap
    damaged[size : size + 8] = (2**31).to_bytes(8, "little")
    path.write_bytes(damaged)
    refused(path, "an attribute of it cannot be read")


def test_modules_beside_a_file_are_not_imported(tmp_path, seeds, monkeypatch):
    """As in an archive with a stranger's model."""
    for name in ("h5py", "numpy", "signal", "lqconvert"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'trap')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    model = next(path for name, path in seeds.items() if name.endswith(".h5"))
    file = next(path for name, path in seeds.items() if name.endswith(".tflite"))
    load_model(model)
    check_loads(file.read_bytes())
    run_micro(file.read_bytes(), Runner(file.read_bytes()).random_examples(1))
    assert not (tmp_path / "trap").exists()


def test_calls_that_multiply(tmp_path, monkeypatch):
    """Each model calls the one inside it five times: a short config, and 5 ** 4 layers."""
    part = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.ReLU()])
    for _ in range(4):
        x = y = tf_keras.Input((4,))
        for _ in range(5):
            y = part(y)
        part = tf_keras.Model(x, y)
    part.save(tmp_path / "model.h5")
    monkeypatch.setattr(limits, "MOST_CALLS", 500)
    refused(tmp_path / "model.h5", "calls layers more than 500 times")


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("api", [keras, tf_keras])
def test_nested_models_that_are_called_twice_load(api, suffix, tmp_path):
    inner, other = (
        api.Sequential([api.Input((4,)), api.layers.Dense(4, activation="relu")]) for _ in range(2)
    )
    x = api.Input((4,))
    functional = api.Model(x, inner(inner(x)))
    y = api.Input((4,))
    outer = api.Model(y, api.layers.Add()([functional(y), functional(other(other(y)))]))
    outer.save(tmp_path / f"model{suffix}")
    values = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    np.testing.assert_allclose(load_model(tmp_path / f"model{suffix}")(values), outer(values), atol=1e-6)


def test_layers_in_reverse_order(tmp_path):
    """Keras would pass over all layers once for each layer."""
    x = y = tf_keras.Input((4,))
    for _ in range(300):
        y = tf_keras.layers.ReLU()(y)
    tf_keras.Model(x, y).save(tmp_path / "seed.h5")
    change = lambda config: config["config"]["layers"].reverse()  # noqa: E731
    refused(edited(tmp_path / "seed.h5", tmp_path / "model.h5", change), "form a circle")


def test_a_compiled_model_with_a_loss_of_its_own_loads(tmp_path):
    def loss(y, p):
        return tf_keras.backend.mean((y - p) ** 2)

    for name in ("model.h5", "model.keras"):
        model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2)])
        model.compile("adam", loss)
        model.fit(np.zeros((8, 4)), np.zeros((8, 2)), verbose=0)
        model.save(tmp_path / name)
        x = np.ones((1, 4), np.float32)
        np.testing.assert_allclose(load_model(tmp_path / name)(x), model(x), atol=1e-6)


def npy(shape, dtype, data=b""):
    target = io.BytesIO()
    np.lib.format.write_array_header_1_0(target, {"descr": dtype, "fortran_order": False, "shape": shape})
    return target.getvalue() + data


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (npy((1 << 40,), "<f4"), "does not fit 0 bytes"),
        (npy((1 << 62, 1 << 62), "<f4"), "does not fit 0 bytes"),
        (npy((2,), "|O", b"12345678" * 2), "Python objects"),
        (npy((), "<f4", b"1234"), "one row an example"),
        (npy((4,), "|V1", b"1234"), "one row an example"),
        (b"no array at all", "not a readable"),
    ],
)
def test_arrays(entry, reason, tmp_path):
    (tmp_path / "x.npy").write_bytes(entry)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("x.npy", entry)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(LqError, match=reason):
            load_data(str(tmp_path / name), (8,), 10)
    with pytest.raises(LqError, match=r"not the \.codes\.npz"):
        Int8File.load(tmp_path / "x.npz")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_not_loaded(tmp_path):
    trap = tmp_path / "trap"
    array = np.array([Trap(trap)], dtype=object)
    np.savez(tmp_path / "x.npz", x=array)
    np.savez(tmp_path / "c.npz", **{f"int8.{name}": array for name in ("tflite", "layers", "preprocess")})
    with pytest.raises(LqError, match="Python objects"):
        load_data(str(tmp_path / "x.npz"), (8,), 10)
    with pytest.raises(LqError, match=r"not the \.codes\.npz"):
        Int8File.load(tmp_path / "c.npz")
    assert not trap.exists()


def test_a_bomb_of_arrays(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for name in "xyz":
            with file.open(f"{name}.npy", "w") as entry:
                entry.write(npy((100 << 20,), "|u1"))
                for _ in range(100):
                    entry.write(bytes(1 << 20))
    with pytest.raises(LqError, match=r"that unpack to 314,57.* are no data set"):
        load_data(str(tmp_path / "x.npz"), (8,), 10)


def test_tflite(seeds):
    good = seeds["cnn.tflite"].read_bytes()
    assert len(read(write(read(good))).graphs) == 1
    check_loads(good)
    for wrong in (b"", b"TFL3", good[:4] + b"TFL2" + good[8:]):
        with pytest.raises(LqError, match="does not begin as one"):
            read(wrong)
    root = int.from_bytes(good[:4], "little")
    for at in (0, root):  # the offsets of the root table, and of its fields' places
        with pytest.raises(LqError, match=r"damaged|no graph"):
            read(good[:at] + b"\xff" * 4 + good[at + 4 :])
    with pytest.raises(LqError, match="damaged"):
        read(good[:1000])


@pytest.mark.parametrize("field", ["buffer", "inputs", "opcodeIndex", "shape"])
def test_tflite_that_refers_to_nothing(field, seeds):
    flat = schema.ModelT.InitFromPackedBuf(seeds["cnn.tflite"].read_bytes(), 0)
    graph = flat.subgraphs[0]
    if field == "buffer":
        graph.tensors[0].buffer = 1000
    elif field == "inputs":
        graph.operators[0].inputs = np.array([1000], np.int32)
    elif field == "opcodeIndex":
        graph.operators[0].opcodeIndex = 1000
    else:
        graph.tensors[0].shape = np.array([-5], np.int32)
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(flat.Pack(builder), b"TFL3")
    with pytest.raises(LqError, match=r"refers to nothing|negative length"):
        read(bytes(builder.Output()))


def test_tflite_whose_vectors_share_their_tables(seeds):
    """The same graph a hundred thousand times, in a file of half a megabyte."""
    import struct

    good = seeds["cnn.tflite"].read_bytes()
    root = struct.unpack_from("<I", good)[0]
    table = root - struct.unpack_from("<i", good, root)[0]
    place = root + struct.unpack_from("<H", good, table + 8)[0]  # the field of subgraphs
    vector = place + struct.unpack_from("<I", good, place)[0]
    graph = vector + 4 + struct.unpack_from("<I", good, vector + 4)[0]
    # Offsets are unsigned: the vector goes before what it refers to.
    count, head = 100_000, 8
    moved = 4 * count + 4
    shared = bytearray(good[:head] + struct.pack("<I", count) + bytes(4 * count) + good[head:])
    for index in range(count):
        at = head + 4 + 4 * index
        struct.pack_into("<I", shared, at, graph + moved - at)
    struct.pack_into("<I", shared, 0, root + moved)
    struct.pack_into("<I", shared, place + moved, (head - place - moved) & 0xFFFFFFFF)
    begin = time.monotonic()
    with pytest.raises(LqError, match="damaged"):
        read(bytes(shared))
    assert time.monotonic() - begin < 20


def test_tensors_of_attention_and_of_operations(tmp_path):
    """Quadratic in the length of the input, in files of some kilobytes."""
    x = keras.Input((5000, 2))
    attended = keras.layers.MultiHeadAttention(1, 1)(x, x)
    multiplied = keras.ops.matmul(x, keras.ops.transpose(x, (0, 2, 1)))
    for number, y in enumerate((attended, multiplied)):
        y = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(y))
        path = tmp_path / f"{number}.keras"
        keras.Model(x, y).save(path)
        refused(path, r"\(MatMul\): its output .*5000, 5000\) is too large")


def of_constants(in_a_row):
    """1,000 RESHAPEs of constants, each of the last one's; or 200 operators that share a buffer of 2 MB."""
    model = Model.empty()
    graph = model.main
    source = y = add_tensor(model, "INT8", (1, 4))
    constant = add_constant(model, np.zeros(16 if in_a_row else 2 << 20, np.int8))
    for _ in range(1_000 if in_a_row else 200):
        made = add_tensor(model, "INT8", (1, 4))
        inputs = [constant] if in_a_row else [y, constant]
        graph.operators.append(new_operator(model, "RESHAPE", inputs, [made]))
        if in_a_row:
            constant = made
        else:
            y, constant = made, len(graph.tensors)
            graph.tensors.append(graph.tensors[inputs[1]])
    made = add_tensor(model, "INT8", (1, 4))
    graph.operators.append(new_operator(model, "RESHAPE", [y, constant], [made]))
    graph.inputs, graph.outputs = (source,), (made,)
    return serialize(model)


def test_tflite_with_a_long_row_of_constants(tmp_path):
    tflite = of_constants(in_a_row=True)
    constants = Constants(read(tflite).main, Allowance(tflite))
    for found in (constants.sources, constants.makers):  # of each constant, not all that come before
        assert max(map(len, found.values())) <= Constants.MOST_PARTS
    (tmp_path / "m.tflite").write_bytes(tflite)
    assert inspect(tmp_path / "m.tflite").bytes == explain(tmp_path / "m.tflite").bytes == len(tflite)


def test_tflite_whose_tensors_share_a_buffer(tmp_path):
    (tmp_path / "m.tflite").write_bytes(of_constants(in_a_row=False))
    rows = inspect(tmp_path / "m.tflite").constants
    looked_at = [row for row in rows if row.entropy_bytes is not None]
    assert len(rows) == 201
    assert 1 <= len(looked_at) < 10  # what a file of its size could have
    assert explain(tmp_path / "m.tflite").file


def test_codes_with_a_damaged_file(seeds, tmp_path):
    arrays = dict(np.load(seeds["run.codes.npz"]))
    arrays["int8.tflite"] = arrays["int8.tflite"][:2000]
    np.savez(tmp_path / "x.codes.npz", **arrays)
    with pytest.raises(LqError, match=r"x.codes.npz: LiteRT cannot load the int8 file in it .*damaged"):
        export_codes(tmp_path / "x.codes.npz", tmp_path / "out.tflite")
    assert not (tmp_path / "out.tflite").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the worker's limits are POSIX's")
def test_fuzz(seeds, tmp_path):
    """``tests/bench/fuzz.py`` tries thousands."""
    worker = Worker()
    try:
        for path, number in mutants(list(seeds.values()), tmp_path, FUZZED):
            outcome = worker.take(path)
            assert outcome.right, f"{number} {path.name}: {outcome}"
            remove(path)
        assert worker.left_behind() == []
        assert list(tmp_path.iterdir()) == []
    finally:
        worker.stop()


@pytest.mark.parametrize("name", MODELS)
def test_weights_that_are_named_again_and_again(name, seeds, tmp_path):
    """A reader of .h5 files takes them as often as they are named; archives name none."""

    def change(file):
        layer = file["model_weights/first"]
        layer.attrs["weight_names"] = list(layer.attrs["weight_names"]) * 50

    if name.endswith(".h5"):
        refused(hdf5(seeds[name], tmp_path / name, change), "are named several times")


def stepping(api, kind, steps):
    x = api.Input((steps, 1))
    layer = getattr(api.layers, kind)(1)
    layer = api.layers.Bidirectional(layer) if kind == "GRU" else layer
    return api.Model(x, api.layers.Dense(2)(layer(x)))


@pytest.mark.parametrize(("api", "suffix"), [(tf_keras, ".h5"), (keras, ".keras")])
@pytest.mark.parametrize("kind", ["SimpleRNN", "GRU"])
def test_a_recurrent_layer_over_millions_of_steps(api, suffix, kind, tmp_path):
    path = tmp_path / f"model{suffix}"
    stepping(api, kind, 1 << 22).save(path)
    refused(path, r"recurrent layers take more than 16,384 steps")


def test_steps_of_all_layers_together(tmp_path, monkeypatch):
    """Bidirectional layers take each step twice."""
    monkeypatch.setattr(limits, "MOST_STEPS", 50)
    for steps, kind in ((40, "SimpleRNN"), (20, "GRU")):
        stepping(tf_keras, kind, steps).save(tmp_path / "model.h5")
        load_model(tmp_path / "model.h5")
    stepping(tf_keras, "GRU", 40).save(tmp_path / "model.h5")
    refused(tmp_path / "model.h5", "more than 50 steps")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("api", [tf_keras, keras])
@pytest.mark.parametrize("kind", ["UpSampling1D", "LSTM", "Bidirectional"])
def test_what_would_be_written_out_step_by_step(kind, api, suffix, tmp_path):
    """An operation for each of a million steps, in a graph that Keras makes before it can be measured."""
    x = api.Input((8, 1))
    if kind == "UpSampling1D":
        y = api.layers.Flatten()(api.layers.UpSampling1D(1)(x))
    else:
        y = api.layers.LSTM(1, unroll=True)
        y = (api.layers.Bidirectional(y) if kind == "Bidirectional" else y)(x)
    api.Model(x, y).save(tmp_path / f"seed{suffix}")
    load_model(tmp_path / f"seed{suffix}")

    def change(config):
        for layer in config["config"]["layers"]:
            layer.pop("build_config", None)
            for key in layer["config"].keys() & {"batch_shape", "batch_input_shape"}:
                layer["config"][key] = [None, 1 << 20, 1]

    path = edited(tmp_path / f"seed{suffix}", tmp_path / f"model{suffix}", change)
    refused(path, r"too many steps to be unrolled \(1,048,576\)")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_layers_that_take_tensors_again_and_again(name, seeds, tmp_path):
    """A sum of a hundred thousand tensors, in a config of a megabyte."""

    def change(config):
        for layer in config["config"]["layers"]:
            if layer["config"].get("name") == "add":
                node = layer["inbound_nodes"][0]
                (node["args"][0] if isinstance(node, dict) else node).extend(
                    (node["args"][0] if isinstance(node, dict) else node)[:1] * 100_000
                )

    refused(edited(seeds[name], tmp_path / name, change), "take more than 20,000 tensors")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_more_layers_than_there_are_networks(name, seeds, tmp_path):
    def change(config):
        config["config"]["layers"] = [{"class_name": "x", "config": {}}] * 100_000

    path = edited(seeds[name], tmp_path / name, change)
    refused(path, "more than 3,500 layers")
    with pytest.raises(LqError, match="more than 3,500 layers"):  # and no row for each
        inspect(path)


def test_a_name_of_megabytes_is_cut_short(seeds, tmp_path):
    change = lambda config: config["config"]["layers"][1]["config"].update(name="a" * 1_000_000)  # noqa: E731
    path = edited(seeds["cnn-keras.keras"], tmp_path / "m.keras", change)
    refused(path, r"a name of 1,000,000 characters")
    assert max(len(row.name) for row in inspect(path).layers) <= 200


def test_splits_into_millions(tmp_path):
    x = keras.Input((1024,))
    parts = keras.ops.split(x, 4, axis=1)
    keras.Model(x, keras.layers.Dense(2)(parts[0])).save(tmp_path / "seed.keras")

    def change(config):
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "Split":
                layer["config"]["indices_or_sections"] = 1 << 24

    path = edited(tmp_path / "seed.keras", tmp_path / "m.keras", change)
    refused(path, "into more than 1,000 parts")


def test_catalogues_of_zips(seeds, tmp_path):
    """Python makes an object of half a kilobyte for each entry before anything can be checked."""
    entries = [(f"{number:0200}", b"") for number in range(1_000)]
    refused(
        archive(seeds["cnn-keras.keras"], tmp_path / "m.keras", more=entries), "a catalogue of [0-9,]+ bytes"
    )


def test_trusted_functions_go_with_their_model(tmp_path):
    x = tf_keras.Input((4,))
    doubled = tf_keras.layers.Lambda(lambda x: x * 2)(x)
    model = tf_keras.Model(x, tf_keras.layers.Dense(4, kernel_initializer="identity")(doubled))
    model.save(tmp_path / "m.h5")
    functions = TrustedFunction.FUNCTIONS
    gc.collect()
    before = len(functions)
    models = [load_model(tmp_path / "m.h5", trust_model=True) for _ in range(3)]
    copy = fold(models[0])
    assert len(functions) == before + 3
    models.clear()
    tf_keras.backend.clear_session()
    gc.collect()
    assert len(functions) == before + 1
    np.testing.assert_allclose(copy(np.ones((1, 4), np.float32)), 2 * np.ones((1, 4)))
