"""Mutated model and data files, and a worker process that takes them as lqconvert's commands would.

python tests/fuzzing.py worker    reads paths from stdin, answers each with a line of JSON
"""

from __future__ import annotations

import io
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers
import h5py
import numpy as np
from ai_edge_litert import schema_py_generated as schema

#: The memory limit. TensorFlow alone takes 0.6 GB of it in the worker.
SECONDS, PEAK_BYTES = 20, 2 << 30
NUMBERS = [0, -1, 1, 3, 255, 4096, 65536, 10**6, 10**9, 2**31 - 1, 2**40, 10**30, 1e308, float("nan")]
WORDS = [
    *(
        "Lambda",
        "__lambda__",
        "function",
        "builtins",
        "os",
        "system",
        "eval",
        "../../trap",
        "",
        "Dense",
        "LSTM",
    ),
    *("TFOpLambda", "io.write_file", "__tensor__", "__typespec__", "UpSampling1D", "keras.utils", "get_file"),
    *(
        "a\nerror: all is well",
        "\x1b[31mred\x1b]0;title\x07",
        "::warning::x",
        "\u202e:bomb: [red]x[/red]",
        "\ud800",
    ),
    "|</td><img src=x>`[click](https://example.com)",
]
#: Parts of a project's settings; what a stranger may write there.
SETTINGS = [
    *("[tool.lqconvert]", "[tool.lqconvert.check]", "[tool.lqconvert.quantize]", "[tool.other]", "[tool]"),
    *('max-size = "64KB"', "max-drop = 1", 'data = "digits"', 'data = "evil:run"', "trust-model = true"),
    *(
        'junit = "/tmp/x.xml"',
        'output = "../../x.tflite"',
        "max-size = [1, [2]]",
        "lqconvert = 3",
        "a.b.c = nan",
    ),
    *(
        '"\\u001b[31m" = 1',
        "target = [" * 500,
        "penalty = 1e999",
        'storage = "sqlite:////tmp/x"',
        "seed = 9" * 99,
    ),
]


def make_seeds(folder: Path) -> list[Path]:
    """One small file of each kind and generation."""
    import keras
    import tensorflow as tf
    import tf_keras

    from lqconvert.exporting.codes import Codes, Int8File, LayerCodes, TensorCodes
    from lqconvert.exporting.export import convert
    from lqconvert.keras_loader.load import load_model
    from lqconvert.quantization.fold_batchnorm import fold
    from lqconvert.training.budget import Point
    from lqconvert.training.checkpoint import Checkpoint

    rng = np.random.default_rng(0)
    for api in (tf_keras, keras):
        x = api.Input((8, 8, 1), name="image")
        y = api.layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(x)
        z = api.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)
        y = api.layers.Add(name="add")([y, api.layers.BatchNormalization(name="norm")(z)])
        y = api.layers.UpSampling2D(name="up")(api.layers.MaxPooling2D(name="pool")(y))
        y = api.layers.Flatten(name="flat")(y)
        model = api.Model(x, api.layers.Dense(10, activation="softmax", name="dense")(y))
        inner = api.Sequential([api.Input((6,)), api.layers.Dense(6, activation="tanh")], name="inner")
        sequential = api.Sequential([api.Input((6,)), inner, api.layers.Dropout(0.1), api.layers.Dense(3)])
        for suffix in ("h5", "keras"):
            model.save(folder / f"cnn-{api.__name__}.{suffix}")
            sequential.save(folder / f"mlp-{api.__name__}.{suffix}")
    tflite = convert(fold(load_model(folder / "cnn-tf_keras.h5")), integer=False)
    (folder / "cnn.tflite").write_bytes(tflite)
    images = rng.integers(0, 256, (60, 8, 8, 1)).astype(np.uint8)
    labels = np.arange(60) % 10
    np.savez(folder / "stored.npz", x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    np.savez_compressed(folder / "deflated.npz", x=images.astype(np.float32), y=labels)
    np.save(folder / "inputs.npy", images)
    kernel = TensorCodes(rng.integers(-9, 9, (4, 3)).astype(np.int32), np.ones((1, 1), np.float32))
    codes = Codes({"dense": LayerCodes("dense", "Dense", kernel, np.zeros(3, np.float32))})
    codes.save(folder / "run.codes.npz", Int8File(tflite, ["dense"], (1.0, 0.0)))
    tf_keras.models.load_model(folder / "cnn-tf_keras.h5").save(folder / "cnn.saved", save_format="tf")
    point = Point(3, (0.9,), (0.8,), (0.0,), 0.1, 5000, 1.0)
    arrays = [rng.normal(size=(4, 3)).astype(np.float32), np.float32(3)]
    Checkpoint(3, arrays, arrays, arrays, [point], 0, 0, 300).save(folder / "run.resume.npz", {"seed": 0})
    (folder / "pyproject.toml").write_text("\n".join(SETTINGS[:6:5] + SETTINGS[5:7]))
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number, image in enumerate(images[:24]):
            archive.writestr(f"train/{number % 2}/{number}.png", tf.io.encode_png(image).numpy())
    (folder / "shared.tflite").write_bytes(shared_vector(6, 40, "operators"))
    return sorted(folder.iterdir())


def shared_vector(entries: int, length: int, kind: str) -> bytes:
    """A .tflite in which many entries refer to one table, or to one long vector.

    Args:
        kind: what they are: operators, shapes (of tensors), scales or names.
    """
    builder = flatbuffers.Builder(1 << 16)

    def offsets(tables: list[int]) -> int:
        builder.StartVector(4, len(tables), 4)
        for table in reversed(tables):
            builder.PrependUOffsetTRelative(table)
        return int(builder.EndVector())

    schema.BufferStart(builder)
    buffer = schema.BufferEnd(builder)
    long, one = (builder.CreateNumpyVector(np.zeros(n, np.int32)) for n in (length, 1))
    name = builder.CreateString("x" * length if kind == "names" else "x")
    scales = builder.CreateNumpyVector(np.ones(length if kind == "scales" else 1, np.float32))
    schema.QuantizationParametersStart(builder)
    schema.QuantizationParametersAddScale(builder, scales)
    quantization = schema.QuantizationParametersEnd(builder)
    schema.TensorStart(builder)
    schema.TensorAddShape(builder, long if kind == "shapes" else one)
    schema.TensorAddName(builder, name)
    schema.TensorAddQuantization(builder, quantization)
    tensors = offsets([schema.TensorEnd(builder)] * (1 if kind == "operators" else entries))
    schema.OperatorStart(builder)
    schema.OperatorAddInputs(builder, long if kind == "operators" else one)
    schema.OperatorAddOutputs(builder, one)
    operators = offsets([schema.OperatorEnd(builder)] * (entries if kind == "operators" else 1))
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, tensors)
    schema.SubGraphAddInputs(builder, one)
    schema.SubGraphAddOutputs(builder, one)
    schema.SubGraphAddOperators(builder, operators)
    graph = schema.SubGraphEnd(builder)
    schema.OperatorCodeStart(builder)
    code = schema.OperatorCodeEnd(builder)
    graphs, codes, buffers = (offsets([each]) for each in (graph, code, buffer))
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, graphs)
    schema.ModelAddOperatorCodes(builder, codes)
    schema.ModelAddBuffers(builder, buffers)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    return bytes(builder.Output())


def damage(data: bytes, rng: random.Random) -> bytes:
    """Flipped bits, overwritten ranges, wild lengths, truncations, missing and doubled parts."""
    changed = bytearray(data)
    kind = rng.choice(("bits", "bits", "range", "length", "length", "truncate", "cut", "double"))
    at = rng.randrange(len(changed))
    # Headers and directories lie at the ends of files.
    at = rng.choice((at, min(at, rng.randrange(4096)), max(0, len(changed) - 1 - rng.randrange(1024))))
    size = rng.choice((1, 4, 8, 64, 512))
    if kind == "bits":
        for _ in range(rng.choice((1, 3, 30))):
            changed[min(at + rng.randrange(256), len(changed) - 1)] ^= 1 << rng.randrange(8)
    elif kind == "range":
        changed[at : at + size] = rng.choice((b"\xff" * size, b"\x00" * size, rng.randbytes(size)))
    elif kind == "length":
        at -= at % 4
        wild = rng.choice((0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFF, 10**9, len(changed), 0))
        changed[at : at + 4] = wild.to_bytes(4, "little")
    elif kind == "truncate":
        del changed[rng.randrange(len(changed)) :]
    elif kind == "cut":
        del changed[at : at + size]
    else:
        changed[at:at] = changed[at : at + size]
    return bytes(changed)


def edit(config: Any, rng: random.Random) -> Any:
    """A config with one to three places changed: another value, nothing, a deep or a long one."""
    places: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            places.append((value, key))
            if isinstance(inner, (dict, list)):
                collect(inner)

    collect(config)
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder, key = rng.choice(places)
        kind = rng.choice(("number", "number", "word", "other", "none", "deep", "many"))
        if isinstance(holder[key] if isinstance(holder, dict) else None, int) and rng.random() < 0.7:
            kind = "number"
        if kind == "number":
            number = rng.choice(NUMBERS)
            holder[key] = rng.choice((number, [number] * 2, [None, number, number, 1]))
        elif kind == "word":
            holder[key] = rng.choice(WORDS)
        elif kind == "other":
            other, place = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[place]))
        elif kind == "none":
            holder[key] = None
        elif kind == "many":
            holder[key] = [holder[key]] * rng.choice((100, 10_000))
        else:
            deep: Any = []
            for _ in range(rng.choice((10, 90, 900))):
                deep = [deep]
            holder[key] = deep
    return config


def reshape(data: bytes, rng: random.Random) -> bytes:
    """An .npy whose header declares another shape or type."""
    try:
        start = int.from_bytes(data[8:10], "little") + 10
        header = data[10:start].decode("latin1")
        shape = rng.choice(
            ("(999999999,)", "(2147483647, 2147483647)", "(-1,)", "()", "(60,)", "(0, 8, 8, 1)")
        )
        kind = rng.choice(("|O", "<f8", "|S99", "<U4000000", "<c16", "|V8", "<M8[s]", "<f2", "|b1"))
        before = header.partition("'shape': ")[0]
        if rng.random() < 0.5:
            header = f"{before}'shape': {shape}, }}"
        else:
            old = before.split("'descr': ")[1].split(",")[0]
            header = header.replace(old, repr(kind))
        text = header.strip().encode("latin1")
        return data[:8] + len(text).to_bytes(2, "little") + text + data[start:]
    except (IndexError, ValueError):
        return damage(data, rng)


def rezipped(data: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    """An archive with checksums that fit its changed entries, so that zipfile does not notice the damage."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(target, "w") as after:
        for name in before.namelist():
            after.writestr(name, change(name, before.read(name)))
    return target.getvalue()


def mutate(seed: Path, target: Path, rng: random.Random) -> None:
    if seed.is_dir():
        shutil.copytree(seed, target)
        mutate_folder(target, rng)
        return
    if seed.name == "shared.tflite":
        counts = (1, 30, 3000, 90_000, 200_000)
        kind = rng.choice(("operators", "shapes", "scales", "names"))
        target.write_bytes(shared_vector(rng.choice(counts), rng.choice(counts), kind))
        return
    data = seed.read_bytes()
    if seed.suffix == ".toml" and rng.random() < 0.7:
        target.write_text("\n".join(rng.choices(SETTINGS, k=rng.randrange(1, 6))))
        return
    zipped = zipfile.is_zipfile(seed)
    way = rng.choice(("damage", "inside", "inside", "edit", "edit"))
    if seed.suffix == ".h5" and way != "damage" and rng.random() < 0.8:
        target.write_bytes(data)
        with h5py.File(target, "r+") as file:
            file.attrs["model_config"] = json.dumps(edit(json.loads(file.attrs["model_config"]), rng))
        return
    if seed.suffix == ".npy" and way != "damage":
        data = reshape(data, rng)
    elif zipped and way != "damage":
        with zipfile.ZipFile(seed) as archive:
            victim = rng.choice(archive.namelist())
        if seed.suffix == ".keras":
            victim = "config.json" if way == "edit" else rng.choice((victim, "model.weights.h5"))

        def change(name: str, entry: bytes) -> bytes:
            if name != victim:
                return entry
            if name == "config.json":
                return json.dumps(edit(json.loads(entry), rng)).encode()
            if name.endswith(".npy") and way == "edit":
                return reshape(entry, rng)
            return damage(entry, rng)

        data = rezipped(data, change)
    else:
        data = damage(data, rng)
    target.write_bytes(data)


def mutate_folder(folder: Path, rng: random.Random) -> None:
    """Damages a file of a SavedModel, its layers' settings, or puts a link in its place."""
    from tf_keras.protobuf import saved_metadata_pb2

    victim = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    way = rng.choice(("damage", "edit", "edit", "swap", "link", "remove"))
    if way == "edit":
        file, metadata = folder / "keras_metadata.pb", saved_metadata_pb2.SavedMetadata()
        metadata.ParseFromString(file.read_bytes())
        node = rng.choice(metadata.nodes)
        node.metadata = json.dumps(edit(json.loads(node.metadata), rng))
        file.write_bytes(metadata.SerializeToString())
    elif way == "damage":
        victim.write_bytes(damage(victim.read_bytes(), rng))
    else:
        victim.unlink()
        if way == "swap":
            shutil.copy(rng.choice([path for path in folder.rglob("*") if path.is_file()]), victim)
        elif way == "link":
            victim.symlink_to(rng.choice(("/dev/zero", "..", "nowhere", "/etc/passwd")))


def mutants(seeds: list[Path], folder: Path, count: int, first: int = 0) -> Iterator[tuple[Path, int]]:
    """``count`` files with the number that makes each again."""
    for number in range(first, first + count):
        rng = random.Random(number)
        seed = seeds[number % len(seeds)]
        path = folder / f"{number}-{seed.name}"
        mutate(seed, path, rng)
        yield path, number


def remove(path: Path) -> None:
    """Removes a mutant, a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def take(path: Path) -> None:
    """The first steps of inspect, explain, quantize or export with a file of this kind."""
    from lqconvert import explain, inspect
    from lqconvert.cli.config import defaults
    from lqconvert.cli.main import main
    from lqconvert.data.sources import load_data
    from lqconvert.exporting.codes import Int8File, load_kernels
    from lqconvert.keras_loader.load import load_model
    from lqconvert.quantization.fold_batchnorm import fold
    from lqconvert.quantization.rewrite import rewrite
    from lqconvert.runtime.litert import check_loads
    from lqconvert.tflite.flatbuffer import read
    from lqconvert.training.checkpoint import Checkpoint

    def take_tflite(tflite: bytes) -> None:
        graph = read(tflite).main
        for operator in graph.operators:
            assert operator.name
        for tensor in graph.tensors:
            tensor.values()
        if thorough:  # it starts a process
            check_loads(tflite)

    thorough = int(path.name.split("-")[0]) % 4 == 0
    if path.name.endswith((".tflite", ".codes.npz")) or (thorough and path.suffix in (".h5", ".keras")):
        inspect(path)
    if path.name.endswith((".tflite", ".codes.npz")):
        explain(path)
    if path.name.endswith(".codes.npz"):
        file = Int8File.load(path)
        load_kernels(path)
        take_tflite(file.tflite)
    elif path.suffix == ".tflite":
        take_tflite(path.read_bytes())
    elif path.name.endswith(".resume.npz"):
        Checkpoint.load(path, {"seed": 0})
    elif path.suffix == ".toml":
        defaults(path, main.commands)
    elif path.suffix in (".npz", ".npy", ".zip"):
        data = load_data(str(path), (8, 8, 1), 2 if path.suffix == ".zip" else 10)
        for part in (data.train, data.validation, data.test):
            part.arrays(20)
    else:
        model = load_model(path)
        fold(model)
        rewrite(model)


def worker() -> None:
    import resource
    import traceback

    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print
    import lqconvert.pipeline.quantize  # noqa: F401
    from lqconvert.errors import LqError

    print("ready", file=answers)
    for line in sys.stdin:
        start, used, where = time.monotonic(), sum(os.times()[:4]), ""
        try:
            take(Path(line.strip()))
            outcome, text = "accepted", ""
        except LqError as error:
            outcome, text = "refused", str(error)
        except BaseException as error:
            outcome, text = "failed", f"{type(error).__name__}: {error}"
            where = traceback.format_exc()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        # Of the processor, if that is less: other work on the machine is not the file's fault.
        seconds = min(time.monotonic() - start, sum(os.times()[:4]) - used)
        print(json.dumps([outcome, text, seconds, peak, where]), file=answers)


@dataclass(frozen=True)
class Outcome:
    """``kind`` is accepted, refused or failed; ``peak`` the worker's largest memory so far, in bytes."""

    kind: str
    text: str
    seconds: float
    peak: int
    where: str = ""

    @property
    def right(self) -> bool:
        one_line = len(self.text.splitlines()) <= 2 and self.text.replace("\n", "").isprintable()
        return self.kind != "failed" and one_line and self.seconds < SECONDS and self.peak < PEAK_BYTES


class Worker:
    """A process that takes one file after the other; it is replaced when it dies or hangs."""

    def __init__(self) -> None:
        self.temporary: tempfile.TemporaryDirectory[str] | None = None
        self.child: subprocess.Popen[str] | None = None

    def _start(self) -> subprocess.Popen[str]:
        self.temporary = tempfile.TemporaryDirectory(prefix="fuzz")
        folder = self.temporary.name
        root = str(Path(__file__).parent.parent)
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment |= {"TMPDIR": folder, "KERAS_BACKEND": "tensorflow"}
        command = [sys.executable, __file__, "worker"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        child = subprocess.Popen(
            command, **pipes, stderr=subprocess.DEVNULL, text=True, cwd=folder, env=environment
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child

    def take(self, path: Path) -> Outcome:
        self.child = child = self.child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f"{path}\n")
        child.stdin.flush()
        ready, _, _ = select.select([child.stdout], [], [], 3 * SECONDS)
        line = child.stdout.readline() if ready else ""
        if line:
            outcome = Outcome(*json.loads(line))
            if not outcome.right:  # its peak is not that of the files after it
                self.stop()
            return outcome
        self.stop()
        what = f"died with {child.returncode}" if ready else f"hung for {3 * SECONDS} s"
        return Outcome("failed", what, 3.0 * SECONDS, 0)

    def stop(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            self.child = None
        if self.temporary is not None:
            self.temporary.cleanup()
            self.temporary = None

    def left_behind(self) -> list[Path]:
        """Files that are still in its working and temporary folder, except autograph's."""
        files = Path(self.temporary.name).rglob("*") if self.temporary else ()
        return sorted(file for file in files if not file.name.startswith("__autograph_generated_file"))


if __name__ == "__main__":
    worker()
