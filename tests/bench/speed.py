"""Times a fine-tuning step against plain training and tfmot's, jobs, start-up, packing, and exported files.

    LQCONVERT_DATA=... python tests/bench/speed.py steps latency jobs start packing --json speed.json

Steps are of batches of 128: plain `model.fit` of the float model on arrays, fine-tuning with the teacher's
outputs kept and with the teacher asked for each batch, and `model.fit` of tfmot's quantization-aware model.
They take turns, and a ratio is the median of those within a turn: what else the machine does hits all alike.
Whole jobs run in processes of their own, whose largest resident memory is theirs. Packing is of a made file
with ResNet-18's weights, and needs no TensorFlow.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

SAMPLE = Path(__file__).parents[2] / "sample_models" / "digits_cnn.h5"
COMMAND = "from lqconvert.cli.main import main; main()"
NETWORKS = ("mlp", "lenet-5", "resnet-8")
LARGE = "resnet-50"
#: Units of hidden layers behind 784 inputs, by millions of parameters.
HIDDEN = {0.1: [115], 1: [670, 670], 5: [1900, 1900], 25: [2800] * 4}
FLOAT = """
import sys, numpy as np, tf_keras
model = tf_keras.models.load_model(sys.argv[1])
with np.load(sys.argv[2]) as data:
    x, y = data["x"].reshape(-1, 784), data["y"]
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(x, y, batch_size=128, epochs=max(1, 500 * 128 // len(x)), verbose=0)
"""


def steps(networks: list[str], turns: int, seconds: float, folder: Path) -> Iterable[dict[str, Any]]:
    """Milliseconds a step of each way to train, for each network."""
    import tensorflow_model_optimization as tfmot
    import tf_keras
    from networks import NETWORKS as BUILT
    from networks import Network

    import lqconvert
    from lqconvert.keras_loader.load import rebuild
    from lqconvert.quantization.fold_batchnorm import fold
    from lqconvert.training.trainer import Trainer

    images = folder / "large.npz"
    large = Network(lambda: tf_keras.applications.ResNet50(weights=None), str(images), 0, 0.0)
    for name in networks:
        network = large if name == LARGE else BUILT[name]
        if name == LARGE:
            random_images(images, 2048, (224, 224, 3))
        model = network.build()
        data = network.load(model)
        x, y = data.train.arrays(20_000)
        x = x.astype(np.float32) * np.float32(network.preprocessing.scale)

        def fitted(trained: tf_keras.Model) -> Callable[[int], None]:
            trained.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
            return lambda n: trained.fit(x[: 128 * n], y[: 128 * n], batch_size=128, verbose=0)  # noqa: B023

        def tuned(cached_bytes: int) -> Callable[[int], None]:
            float_model = rebuild(network.build())  # noqa: B023
            pixels = network.preprocessing.pixel_range  # noqa: B023
            quantized = lqconvert.rewrite(
                float_model, lqconvert.Rate(), granularity="mixed", input_range=pixels
            )
            lqconvert.calibrate(quantized, [x[:256]])  # noqa: B023
            trainer = Trainer.of(
                quantized,
                fold(float_model),
                data,  # noqa: B023
                network.preprocessing,  # noqa: B023
                batch_size=128,
                learning_rate=1e-4,
                cached_bytes=cached_bytes,
            )
            return lambda n: trainer.run(n, 1.0) and None

        ways = {
            "float fit": fitted(model),
            "teacher kept": tuned(1 << 40),
            "teacher asked": tuned(0),
            "tfmot QAT": fitted(tfmot.quantization.keras.quantize_model(network.build())),
        }
        counts = {}
        for way, run in ways.items():
            run(4)
            start = time.perf_counter()
            run(8)
            counts[way] = max(8, min(150, len(x) // 128, int(8 * seconds / (time.perf_counter() - start))))
            run(counts[way])
        took: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(turns):
            for way, run in ways.items():
                start = time.perf_counter()
                run(counts[way])
                took[way].append(1e3 * (time.perf_counter() - start) / counts[way])
        row: dict[str, Any] = {"network": name}
        for way, each in took.items():
            ratio = statistics.median(a / b for a, b in zip(each, took["float fit"], strict=True))
            row[way] = f"{statistics.median(each):.2f} ms" + ("" if way == "float fit" else f", {ratio:.2f}x")
        yield row


def jobs(parameters: list[float], samples: list[int], folder: Path) -> Iterable[dict[str, Any]]:
    """Seconds and peak memory of whole jobs, for sizes of the model and for numbers of images in a .zip.

    The sizes are on arrays, and beside plain training of the float model for as many steps.
    """
    arrays, images, model = folder / "data.npz", folder / "images.zip", folder / "model.h5"
    cases = [(size, 10_000, arrays) for size in parameters] + [(min(HIDDEN), n, images) for n in samples]
    for size, count, data in cases:
        parameter_count = dense(size, (784,) if data == arrays else (28, 28, 1), model)
        random_images(data, count)
        epochs = max(1, 500 * 128 // count)
        options = ["--data", str(data), "--preprocess", "0-1", "--scheme", "lsq", "--epochs", str(epochs)]
        ours = measured(COMMAND, "quantize", str(model), *options, "-o", str(folder / "model.tflite"))
        row = {
            "parameters": f"{parameter_count:,}",
            "samples": f"{count:,}",
            "data": data.suffix,
            "job": f"{ours[0]:.1f} s",
            "peak of the job": f"{ours[1]:,.0f} MB",
            "float training": "",
            "its peak": "",
        }
        if data == arrays:
            plain = measured(FLOAT, str(model), str(data))
            row["float training"] = f"{plain[0]:.1f} s"
            row["its peak"] = f"{plain[1]:,.0f} MB, {ours[1] / plain[1]:.2f}x"
        yield row


def dense(size: float, shape: tuple[int, ...], path: Path) -> int:
    """Saves a network of about so many million parameters, and tells how many they are."""
    import tf_keras

    layers = [tf_keras.layers.Dense(units, activation="relu") for units in HIDDEN[size]]
    out = tf_keras.layers.Dense(10, activation="softmax")
    front = [tf_keras.layers.Input(shape), tf_keras.layers.Flatten()]
    model = tf_keras.Sequential([*front, *layers, out])
    model.save(path, include_optimizer=False)
    return int(model.count_params())


def random_images(path: Path, count: int, shape: tuple[int, ...] = (28, 28, 1)) -> None:
    """Writes images with something to learn: as arrays in an .npz, or as class folders in a .zip."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, count)
    x = rng.integers(0, 200, (count, *shape), dtype=np.uint8)
    x[np.arange(count), 0, y] = 255
    if path.suffix == ".npz":
        np.savez(path, x=x, y=y)
        return
    with zipfile.ZipFile(path, "w") as archive:
        for number, (image, label) in enumerate(zip(x, y, strict=True)):
            archive.writestr(f"{label}/{number}.png", tf.io.encode_png(image).numpy())


def mnist_job(folder: Path) -> Iterable[dict[str, Any]]:
    """The MNIST MLP's whole job, as a user starts it."""
    from networks import float_model

    model = float_model("mlp", folder)
    command = ["quantize", str(model), "--data", "mnist", "--preprocess", "0-1"]
    seconds, memory = measured(COMMAND, *command, "-o", str(folder / "mlp.tflite"))
    yield {"job": "quantize mlp.h5 --data mnist", "seconds": f"{seconds:.1f}", "peak": f"{memory:,.0f} MB"}


def start(repeats: int, folder: Path) -> Iterable[dict[str, Any]]:
    """Seconds until small commands have answered: the median of repeats."""
    tflite = folder / "sample.tflite"
    measured(COMMAND, "quantize", str(SAMPLE), "--data", "digits", "--epochs", "1", "-o", str(tflite))
    for words in (
        ["--help"],
        ["inspect", str(tflite)],
        ["inspect", str(SAMPLE)],
        ["check", str(tflite), "--max-size", "64KB"],
    ):
        seconds = [measured(COMMAND, *words)[0] for _ in range(repeats)]
        name = " ".join(Path(word).name if os.sep in word else word for word in words)
        yield {"command": name, "seconds": f"{statistics.median(seconds):.2f}"}


def latency(turns: int, folder: Path) -> Iterable[dict[str, Any]]:
    """Latency in LiteRT of our files and of tf.lite's int8 file of the same float model."""
    from networks import NETWORKS as BUILT
    from networks import post_training

    import lqconvert
    from lqconvert.exporting.codes import Int8File
    from lqconvert.runtime.litert import Runner

    for name in NETWORKS:
        network = BUILT[name]
        path = folder / f"untrained.{name}.h5"
        network.build().save(path, include_optimizer=False)
        model = lqconvert.load_model(path)
        output = folder / f"{name}.tflite"
        settings = {"preprocess": network.preprocessing, "epochs": 1, "scheme": lqconvert.Rate(gamma=1.0)}
        lqconvert.quantize(path, network.data, output, **settings)
        int8 = Int8File.load(output.with_suffix(".codes.npz")).tflite
        files = {"ours": output.read_bytes(), "ours, int8": int8, "tf.lite": post_training(model, network)}
        runners = {label: Runner(file) for label, file in files.items()}
        took: dict[str, list[float]] = {label: [] for label in files}
        for _ in range(turns):
            for label, runner in runners.items():
                took[label].append(1e3 * runner.latency())
        row = {"network": name, "tf.lite": f"{statistics.median(took['tf.lite']):.4f} ms"}
        for label in ("ours", "ours, int8"):
            pairs = zip(took[label], took["tf.lite"], strict=True)
            ratio = statistics.median(a / b for a, b in pairs)
            row[label] = f"{statistics.median(took[label]):.4f} ms, {ratio:.2f}x"
        yield row


def packing(turns: int) -> Iterable[dict[str, Any]]:
    """Seconds of what a training cycle's evaluation does to find the size of its file, by target.

    That is removing dead channels and packing; the codes are written into a file before, and the packed file
    is written behind it.
    """
    from made_files import resnet_18

    from lqconvert.runtime.verify import smallest
    from lqconvert.tflite.flatbuffer import read, write
    from lqconvert.tflite.targets import RUNTIMES

    tflite = resnet_18()
    for target in RUNTIMES.values():
        took = {"pack": [], "fill, pack and write": []}
        for _ in range(turns):
            start = time.perf_counter()
            filled = write(read(tflite))
            begun = time.perf_counter()
            packed = smallest(filled, target)
            ended = time.perf_counter()
            size = len(packed.tflite)
            took["pack"].append(ended - begun)
            took["fill, pack and write"].append(time.perf_counter() - start)
        seconds = {what: f"{statistics.median(each):.2f} s" for what, each in took.items()}
        yield {"target": target.name, "int8": f"{len(tflite):,}", "packed": f"{size:,}", **seconds}


def measured(code: str, *arguments: str) -> tuple[float, float]:
    """Seconds and megabytes (largest resident memory) of a Python process."""
    # Not getrusage's, which begins with what the parent had.
    status = "next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]"
    wrapped = f"import atexit\natexit.register(lambda: print('PEAK', {status}))\n{code}"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", wrapped, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr[-500:]}")
    seconds = time.perf_counter() - start
    peak = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("PEAK"))
    return seconds, int(peak.split()[1]) / 1024


def machine() -> str:
    """The processor's cores."""
    return f"{platform.machine()}, {os.cpu_count()} cores"


def gpus() -> list[str]:
    """The names of the GPUs."""
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(device)["device_name"] for device in devices]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=("steps", "latency", "jobs", "mnist", "start", "packing"))
    parser.add_argument(
        "--networks", nargs="*", choices=(*NETWORKS, LARGE), default=NETWORKS, help="of steps"
    )
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each way's turn")
    parser.add_argument("--parameters", type=float, nargs="*", choices=HIDDEN, default=list(HIDDEN))
    parser.add_argument("--samples", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--folder", type=Path, help="keeps the trained float model")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    trained = {"steps": arguments.networks, "latency": NETWORKS, "mnist": ["mlp"]}
    names = {name for part in arguments.parts for name in trained.get(part, ())} - {LARGE}
    if names:
        from networks import missing

        if reason := missing(names):
            parser.error(reason)
    trains = set(arguments.parts) != {"packing"}
    results: dict[str, Any] = {"machine": ", ".join([machine(), *(gpus() if trains else [])])}
    print(results["machine"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        made: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
            "steps": lambda: steps(arguments.networks, arguments.turns, arguments.seconds, folder),
            "latency": lambda: latency(arguments.turns, folder),
            "jobs": lambda: jobs(arguments.parameters, arguments.samples, folder),
            "mnist": lambda: mnist_job(folder),
            "start": lambda: start(arguments.turns, folder),
            "packing": lambda: packing(arguments.turns),
        }
        for part in arguments.parts:
            rows = results[part] = []
            for row in made[part]():
                if not rows:
                    print(f"\n| {' | '.join(row)} |\n{'| --- ' * len(row)}|")
                rows.append(row)
                print(f"| {' | '.join(map(str, row.values()))} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
