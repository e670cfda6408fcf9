"""Quantizes networks without training, with lqconvert and with its peers, and prints one table.

    LQCONVERT_DATA=... python tests/bench/post_training.py mlp lenet-300-100 lenet-5 --folder build/bench

All start from the float model of networks.py, which is trained where --folder lacks it. A draw is 5,000
training inputs without labels, of which peers calibrate on the first 1,024. lqconvert has two rows for each
of its files: "no labels" is given the draw, so that --max-drop is of R2 to the float model's outputs;
"labels" is given the data set, draws training inputs of its own (--seed), and judges --max-drop on the
labels of the validation split. Of the algorithms of ai-edge-quantizer the best one at each width is printed:
the one with the smallest file within the drop, or else the most accurate one. NNCodec's bitstream is no file
that anything runs: its accuracy is that of the float model with the decoded weights. It needs no inputs, but
its settings (step, price of a bit, one step or one for each tensor) are those of the smallest bitstream
within the drop on the *test* split.

"ratio" is the float32 .tflite as it is over the deflated file, "of deflated" the deflated float32 .tflite
over the deflated file.

Every file is made by a process of its own, whose seconds and largest resident memory are those of the whole
command, imports included. Accuracy is of all test examples, in LiteRT. Results are kept in --folder.
mobilenet-v2 and resnet-50 have random weights and made up images, and are for seconds and memory alone: only
lqconvert quantizes them. What is not there, a package or data, is said before anything is trained.
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import functools
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tf_keras

sys.path.insert(0, str(Path(__file__).parent))

import networks
from networks import NETWORKS

from lqconvert.data.dataset import Data
from lqconvert.exporting.codes import Int8File
from lqconvert.keras_loader.load import load_model
from lqconvert.runtime.litert import Runner
from lqconvert.utils.compression import deflated

#: Inputs of a draw without labels, and how many of them peers calibrate on.
DRAW, CALIBRATION = 5_000, 1_024
#: By name: random weights, for images of 224 pixels that are made up.
LARGE: dict[str, Callable[[], tf_keras.Model]] = {
    "mobilenet-v2": functools.partial(tf_keras.applications.MobileNetV2, weights=None),
    "resnet-50": functools.partial(tf_keras.applications.ResNet50, weights=None),
}
LARGE_IMAGES = 500
ALGORITHMS = ("min_max_uniform_quantize", "MSE", "OCTAV", "GPTQ", "OSCAR")
PACKAGES = {"ai_edge_quantizer": "ai-edge-quantizer", "nncodec": "nncodec"}
#: NNCodec's steps, the coarsest first: each is 2^(1/4) of the one before; and its prices of a bit.
STEPS, PRICES = range(-8, -45, -1), (0, 0.5, 1, 2)
COLUMNS = ("network", "method", "bytes", "deflated", "ratio", "of deflated", "accuracy", "points")
COLUMNS += ("seconds", "MB")


@dataclass(frozen=True)
class Result:
    """What a file measured; why there is none, where a tool made none."""

    size: int = 0
    packed: int = 0
    score: float = math.nan
    seconds: float = math.nan
    megabytes: float = math.nan
    said: str = ""


@dataclass(frozen=True)
class Job:
    """A network, its float model, and the draw of inputs."""

    name: str
    folder: Path
    draw: int
    max_drop: float

    @property
    def float_path(self) -> Path:
        return self.folder / f"{self.name}.h5"

    @property
    def inputs(self) -> Path:
        return self.folder / f"{self.name}.draw{self.draw}.npz"

    def output(self, method: str) -> Path:
        label = method.replace(" ", "-").replace(",", "")
        return self.folder / f"{self.name}.{label}.{self.max_drop:g}points.draw{self.draw}.tflite"

    @property
    def data(self) -> Data:
        return data_of(self.name, self.float_path)

    def examples(self) -> np.ndarray:
        """What peers calibrate on, preprocessed."""
        preprocessing = NETWORKS[self.name].preprocessing
        with np.load(self.inputs) as arrays:
            raw = arrays["x"][:CALIBRATION].astype(np.float32)
        return raw * np.float32(preprocessing.scale) + np.float32(preprocessing.offset)

    def score(self, outputs: np.ndarray) -> float:
        return float(np.mean(outputs.argmax(axis=1) == self.data.test.y))

    def test_inputs(self) -> Iterator[np.ndarray]:
        preprocessing = NETWORKS[self.name].preprocessing
        return (x.numpy() for _, x, _ in self.data.test.batches(256, preprocessing=preprocessing))


@functools.cache
def data_of(name: str, float_path: Path) -> Data:
    return NETWORKS[name].load(load_model(float_path))


def prepare(job: Job) -> None:
    """The float model and the draw, where they are not there yet."""
    if job.name in LARGE:
        if not job.float_path.exists():
            tf_keras.utils.set_random_seed(0)
            LARGE[job.name]().save(job.float_path, include_optimizer=False)
        small = np.random.default_rng(job.draw).integers(0, 256, (LARGE_IMAGES, 28, 28, 3), np.uint8)
        x = small.repeat(8, axis=1).repeat(8, axis=2)
    else:
        networks.float_model(job.name, job.folder)
        train = job.data.train
        chosen = np.random.default_rng(job.draw).permutation(train.size)[:DRAW]
        x, _ = train.pick(chosen).arrays()
    if not job.inputs.exists():
        np.savez(job.inputs, x=x)


def weights_of(model: tf_keras.Model) -> dict[str, np.ndarray]:
    """What NNCodec codes: kernels by output first, and of a BatchNormalization scale and offset alone."""
    found = {}
    for layer in model.layers:
        parts = [weight.numpy() for weight in layer.weights]
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            gamma, beta, mean, variance = parts
            scale = gamma / np.sqrt(variance + layer.epsilon)
            parts = [scale, beta - mean * scale]
        for number, part in enumerate(parts):
            found[f"{layer.name}.{number}"] = np.ascontiguousarray(np.moveaxis(part, -1, 0), np.float32)
    return found


def assign(model: tf_keras.Model, weights: dict[str, np.ndarray]) -> None:
    """The inverse of :func:`weights_of`."""
    for layer in model.layers:
        parts = [
            np.moveaxis(weights[f"{layer.name}.{number}"], 0, -1)
            for number in range(len(layer.weights))
            if f"{layer.name}.{number}" in weights
        ]
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            zero, one = np.zeros_like(parts[0]), np.full_like(parts[0], 1 - layer.epsilon)
            parts += [zero, one]
        layer.set_weights(parts)


def decoded_score(job: Job, model: tf_keras.Model, bitstream: bytes) -> float:
    from nncodec import nnc

    assign(model, nnc.decompress(bytearray(bitstream)))
    return job.score(np.concatenate([model.predict_on_batch(x) for x in job.test_inputs()]))


def nncodec(job: Job) -> bytes:
    """The smallest bitstream within the drop, with its own choice of a step for each tensor and without."""
    from nncodec import nnc

    model = load_model(job.float_path)
    weights = weights_of(model)
    least = job.score(np.concatenate([model.predict_on_batch(x) for x in job.test_inputs()]))
    least -= job.max_drop / 100

    @functools.cache
    def coded(qp: int, by_tensor: bool, price: float) -> bytes:
        how = {"qp": qp, "opt_qp": by_tensor, "lambda_scale": price}
        return bytes(nnc.compress(dict(weights), bitstream_path=None, return_bitstream=True, **how))

    found = []
    for by_tensor, price in itertools.product((False, True), PRICES):

        def holds(qp: int) -> bool:
            return decoded_score(job, model, coded(qp, by_tensor, price)) >= least  # noqa: B023

        place = bisect.bisect_left(STEPS, True, key=holds)
        near = [qp for qp in STEPS[max(0, place - 4) : place + 1] if holds(qp)]  # accuracy is noisy
        found += [coded(qp, by_tensor, price) for qp in near]
    return min(found, key=len)


def edge(bits: int, algorithm: str) -> Callable[[Job], bytes]:
    def run(job: Job) -> bytes:
        if not hasattr(np, "bool"):  # NumPy 2 has it, and OCTAV asks for it; NNCodec wants NumPy 1
            np.bool = np.bool_  # type: ignore[attr-defined]
        return networks.edge_quantized(load_model(job.float_path), job.examples(), bits, algorithm)

    return run


def edge_label(bits: int, algorithm: str) -> str:
    return f"ai-edge-quantizer int{bits}, {algorithm.removesuffix('_uniform_quantize')}"


#: What a process of this script makes, by the name of the method.
PEERS: dict[str, Callable[[Job], bytes]] = {
    "tf.lite int8": lambda job: networks.tf_lite_int8(load_model(job.float_path), job.examples()),
    **{edge_label(bits, name): edge(bits, name) for bits in (8, 4) for name in ALGORITHMS},
    "NNCodec": nncodec,
}


def timed(command: list[str]) -> tuple[int, str, float, float]:
    """Exit code, what was said, wall seconds, and the largest resident memory of a process, in MB."""
    start = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, said, round(time.monotonic() - start, 1), round(usage.ru_maxrss / 1e3)


def complaint(said: str) -> str:
    """The line that names the error, or the last one."""
    lines = said.strip().splitlines() or ["nothing said"]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines)[-1].replace("|", "/")[:200]


def measured(job: Job, tflite: bytes, seconds: float, megabytes: float) -> Result:
    size, packed = len(tflite), deflated(tflite)
    if job.name in LARGE:
        return Result(size, packed, seconds=seconds, megabytes=megabytes)
    return Result(size, packed, job.score(Runner(tflite).run(job.test_inputs())), seconds, megabytes)


def peer(job: Job, method: str) -> dict[str, Result]:
    """A peer's file, made by this script in a process of its own."""
    output = job.output(method)
    command = [sys.executable, __file__, job.name, "--make", method, "--folder", str(job.folder)]
    command += ["--draw", str(job.draw), "--max-drop", str(job.max_drop)]
    code, said, seconds, megabytes = timed(command)
    if code:
        return {"": Result(said=complaint(said))}
    made = output.read_bytes()
    if method != "NNCodec":
        return {"": measured(job, made, seconds, megabytes)}
    score = decoded_score(job, load_model(job.float_path), made)
    return {"": Result(len(made), len(made), score, seconds, megabytes)}


def ours(job: Job, *, labels: bool) -> dict[str, Result]:
    """lqconvert's file for phones, and the plain int8 file of the same integers."""
    output = job.output(f"lqconvert {'labels' if labels else 'no labels'}")
    given = NETWORKS[job.name].data if labels else str(job.inputs)
    command = [sys.executable, "-m", "lqconvert", "quantize", str(job.float_path), "--data", given]
    command += ["-o", str(output), "--epochs", "0", "--max-drop", str(job.max_drop), "--preprocess", "0-1"]
    code, said, seconds, megabytes = timed([*command, "--seed", str(job.draw)])
    if code:
        return {"": Result(said=complaint(said))}
    int8 = Int8File.load(output.with_suffix(".codes.npz")).tflite
    files = {"int8": int8, "litert": output.read_bytes()}
    return {label: measured(job, tflite, seconds, megabytes) for label, tflite in files.items()}


def kept(path: Path, make: Callable[[], dict[str, Result]]) -> dict[str, Result]:
    """The results in a file; where it is not there, they are made and, if they are files, kept."""
    if path.exists():
        return {label: Result(**result) for label, result in json.loads(path.read_text()).items()}
    results = make()
    if not any(result.said for result in results.values()):
        path.write_text(json.dumps({label: dataclasses.asdict(each) for label, each in results.items()}))
    return results


def spread(values: list[float], form: str) -> str:
    deviation = f"±{np.std(values):{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{deviation}"


def row(name: str, method: str, results: list[Result], original: Result) -> str:
    """A line of the table: means over the draws, and their spread."""
    if missed := [result.said for result in results if result.said]:
        return f"| {name} | {method} | no file: {missed[0]} |{' |' * (len(COLUMNS) - 3)}"
    size, packed = (np.mean([getattr(each, key) for each in results]) for key in ("size", "packed"))
    wholes = original.size, original.packed
    ratios = (spread([whole / each.packed for each in results], ".1f") for whole in wholes)
    accuracy = "" if math.isnan(original.score) else f"{100 * np.mean([each.score for each in results]):.2f}%"
    points = spread([100 * (each.score - original.score) for each in results], "+.2f") if accuracy else ""
    seconds = spread([each.seconds for each in results], ".0f")
    megabytes = f"{np.max([each.megabytes for each in results]):,.0f}"
    figures = (f"{size:,.0f}", f"{packed:,.0f}", *ratios, accuracy, points, seconds, megabytes)
    return f"| {' | '.join((name, method, *figures))} |".replace("nan", "")


def best(candidates: dict[str, list[Result]], original: Result, max_drop: float) -> str:
    """The method with the smallest files within the drop on average, or else the most accurate ones."""

    def rank(method: str) -> tuple[bool, float, float]:
        results = candidates[method]
        if any(result.said for result in results):
            return False, -math.inf, 0.0
        drop = 100 * (original.score - float(np.mean([result.score for result in results])))
        holds = drop <= max_drop
        return holds, 0.0 if holds else -drop, -float(np.mean([result.packed for result in results]))

    return max(candidates, key=rank)


def table(jobs: list[Job]) -> Iterator[str]:
    """The lines of a network, one job for each draw."""
    first = jobs[0]
    name, large = first.name, first.name in LARGE

    def all_draws(method: str, make: Callable[[Job], dict[str, Result]]) -> dict[str, list[Result]]:
        drawn = jobs[:1] if method == "NNCodec" else jobs
        runs = [
            kept(job.output(method).with_suffix(".result.json"), functools.partial(make, job))
            for job in drawn
        ]
        labels = max(runs, key=len)
        return {label: [run.get(label) or run[""] for run in runs] for label in labels}

    original = kept(
        first.folder / f"{name}.float32.ptq.json",
        lambda: {"": measured(first, networks.float_tflite(first.float_path), math.nan, math.nan)},
    )[""]
    yield row(name, "float32", [original], original)
    for labels in (False,) if large else (False, True):
        method = f"lqconvert {'labels' if labels else 'no labels'}"
        for label, results in all_draws(method, functools.partial(ours, labels=labels)).items():
            yield row(name, f"{method}, {label}", results, original)
    if large:
        return
    made = {method: all_draws(method, functools.partial(peer, method=method))[""] for method in PEERS}
    by_width = [[edge_label(bits, name) for name in ALGORITHMS] for bits in (8, 4)]
    for group in (["tf.lite int8"], *by_width, ["NNCodec"]):
        method = best({each: made[each] for each in group}, original, first.max_drop)
        yield row(name, method, made[method], original)


def missing(names: list[str]) -> str:
    """What a run would lack later on, or nothing."""
    trained = [name for name in names if name not in LARGE]
    for module, package in PACKAGES.items() if trained else ():
        if not find_spec(module):
            return f"{package} is not installed: pip install -e '.[bench]'"
    return networks.missing(trained)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", choices=[*NETWORKS, *LARGE])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    parser.add_argument("--max-drop", type=float, default=0.3)
    # What a process of its own is to make:
    parser.add_argument("--make", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--draw", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder
    if arguments.make:
        job = Job(arguments.networks[0], folder, arguments.draw, arguments.max_drop)
        job.output(arguments.make).write_bytes(PEERS[arguments.make](job))
        return
    if reason := missing(arguments.networks):
        parser.error(reason)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"| {' | '.join(COLUMNS)} |\n{'| --- ' * len(COLUMNS)}|")
    for name in arguments.networks:
        draws = 1 if name in LARGE else arguments.draws
        jobs = [Job(name, folder, draw, arguments.max_drop) for draw in range(draws)]
        for job in jobs:
            prepare(job)
        for line in table(jobs):
            print(line, flush=True)


if __name__ == "__main__":
    main()
