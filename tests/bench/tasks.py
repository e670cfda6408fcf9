"""Trains a small model for each kind of task, quantizes it by the default command, and prints one table.

    LQCONVERT_DATA=... python tests/bench/tasks.py                         # every task
    python tests/bench/tasks.py detector tabular --json tasks.json

Data are made up, with seeds, but for those of mnist-mlp, fashion-cnn, cifar-cnn and cifar-classic: these
are skipped where they are not to be had. Each model is trained here, the others within a minute, half of
them with tf_keras and half with Keras 3. It is then quantized by `lqconvert quantize MODEL --data DATA -o
OUT`, a process of its own, and by tf.lite's post-training quantization, int8 in and out, calibrated on 500
examples of the training part. The float32 .tflite and the two files are run in LiteRT on all of the test
part, and scored by the formulas of task_scores.py, which are none of lqconvert's. Bytes are the whole
.tflite; deflated are lqconvert's. A command that ends with another code than 0 is a row, too. What the tool
said stands where its file is more than a point under float or under tf.lite's, a point being a hundredth of
0..1; an error in the target's unit is shown, not judged. "Above tf.lite" is in points, with the
standard error of that difference over the test examples (paired, 200 bootstrap draws).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tf_keras
from ai_edge_litert.interpreter import Interpreter
from task_models import TASKS, Made, Skipped
from task_scores import Metric

from lqconvert.utils.compression import deflated

#: Seconds after which a command is given up.
TIMEOUT = 1800
#: Of the tool's lines, those that say why a file is no better.
WHY = re.compile(r"warning|points|no file|not reached", re.IGNORECASE)
COLUMNS = ("task", "metric", "float", "tf.lite int8", "lqconvert", "above tf.lite", "float bytes")
COLUMNS += ("tf.lite bytes", "bytes", "deflated", "tf.lite s", "s", "exit", "it said")


@dataclass(frozen=True)
class File:
    """A .tflite, how long it took to make, and its scores by metric; where there is none, why."""

    seconds: float
    size: int = 0
    deflated: int = 0
    outputs: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # for the test part
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    exit_code: int = 0
    said: str = ""


def by_name(details: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """What LiteRT tells of each input or output, by the model's names; in order where a file has others."""
    found = [[detail for detail in details if name in detail["name"]] for name in names]
    ordered = [at[0] for at in found] if all(len(at) == 1 for at in found) else details
    return dict(zip(names, ordered, strict=True))


def run(made: Made, tflite: bytes) -> dict[str, np.ndarray]:
    """The outputs (real values) for all of the test part, whatever types the file takes and gives."""
    interpreter = Interpreter(model_content=tflite, num_threads=1)
    interpreter.allocate_tensors()
    inputs = by_name(interpreter.get_input_details(), made.inputs)
    outputs = by_name(interpreter.get_output_details(), made.outputs)
    codes = []
    for name, detail in inputs.items():
        values, (scale, zero_point) = made.test[name], detail["quantization"]
        if scale:
            limits = np.iinfo(detail["dtype"])
            values = np.clip(np.round(values / scale) + zero_point, limits.min, limits.max)
        codes.append(values.astype(detail["dtype"]).reshape(-1, 1, *detail["shape"][1:]))
    said: dict[str, list[np.ndarray]] = {name: [] for name in outputs}
    for example in zip(*codes, strict=True):
        for value, detail in zip(example, inputs.values(), strict=True):
            interpreter.set_tensor(detail["index"], value)
        interpreter.reset_all_variables()  # an LSTM's state
        interpreter.invoke()
        for name, detail in outputs.items():
            said[name].append(interpreter.get_tensor(detail["index"])[0].astype(np.float64))
    quantized = {name: (np.stack(values), *outputs[name]["quantization"]) for name, values in said.items()}
    return {
        name: (values - zero) * scale if scale else values
        for name, (values, scale, zero) in quantized.items()
    }


def measured(made: Made, tflite: bytes, seconds: float, exit_code: int = 0, said: str = "") -> File:
    outputs = run(made, tflite)
    scores = {metric.name: metric.of(outputs) for metric in made.metrics}
    return File(seconds, len(tflite), deflated(tflite), outputs, scores, exit_code, said)


def tf_lite(made: Made, *, integer: bool) -> File:
    """The file of tf.lite's converter: float32, or int8 of post-training quantization."""
    start = time.monotonic()
    names, tensors = made.inputs, made.model.inputs
    specs = [tf.TensorSpec((1, *t.shape[1:]), t.dtype, n) for n, t in zip(names, tensors, strict=True)]
    graph = tf.function(
        lambda *inputs: made.model(list(inputs) if len(inputs) > 1 else inputs[0], training=False)
    )
    function, owner = graph.get_concrete_function(*specs), tf.Module()
    # Keras 3's variables have TensorFlow's. Without their owner, the calibration of an LSTM crashes.
    owner.all = [v if isinstance(v, tf.Variable) else v.value for v in made.model.variables]
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], owner)
    # By way of a SavedModel, which LSTMs need, inputs and outputs may come in another order.
    converter.experimental_lower_to_saved_model = any(
        hasattr(layer, "cell") or hasattr(layer, "forward_layer") for layer in made.model.layers
    )
    if integer:
        chosen = np.random.default_rng(0).permutation(len(made.train[names[0]]))[:500]
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if integer and not made.dynamic:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        converter.representative_dataset = lambda: (
            [tf.cast(made.train[spec.name][i].reshape(spec.shape), spec.dtype) for spec in specs]
            for i in chosen
        )
    tflite = converter.convert()
    return measured(made, tflite, time.monotonic() - start)


def written(made: Made, folder: Path) -> str:
    """Writes the data, and gives --data."""
    if made.data not in ("", "images"):
        return made.data
    if not made.data:
        arrays = {f"{name}_train": array for name, array in made.train.items()}
        np.savez(
            folder / "data.npz", **arrays, **{f"{name}_test": array for name, array in made.test.items()}
        )
        return str(folder / "data.npz")
    for part, arrays in (("train", made.train), ("test", made.test)):
        for i, (image, label) in enumerate(zip(arrays["x"], arrays["y"], strict=True)):
            path = folder / "images" / part / f"class{label}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tf.io.encode_png(image).numpy())
    return str(folder / "images")


def learned(made: Made, api: Any, folder: Path) -> File:
    """The file of lqconvert's default command."""
    model, output = folder / ("model.h5" if api is tf_keras else "model.keras"), folder / "out.tflite"
    made.model.save(model)
    command = [sys.executable, "-m", "lqconvert", "quantize", str(model), "--data", written(made, folder)]
    start = time.monotonic()
    try:
        done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return File(TIMEOUT, exit_code=124, said=f"not ended after {TIMEOUT} s")
    seconds, lines = time.monotonic() - start, [line for line in done.stderr.splitlines() if line.strip()]
    why = [line for line in lines + done.stdout.splitlines() if WHY.search(line) and "│" not in line]
    said = ((lines or ["nothing"])[-1] if done.returncode else "; ".join(why)).replace(f"{folder}/", "")
    if not output.exists():
        return File(seconds, exit_code=done.returncode, said=said)
    return measured(made, output.read_bytes(), seconds, done.returncode, said)


def bench(api: Any, made: Made) -> dict[str, File]:
    files = {"float": tf_lite(made, integer=False)}
    try:
        files["tf.lite int8"] = tf_lite(made, integer=True)
    except Exception as error:  # whatever the converter raises
        files["tf.lite int8"] = File(0, exit_code=1, said=f"{error}".strip().splitlines()[0])
    with tempfile.TemporaryDirectory() as name:
        files["lqconvert"] = learned(made, api, Path(name))
    return files


def gained(metric: Metric, ours: File, peer: File) -> str:
    """How far ours is above the peer's, in points, with the standard error over the test examples."""
    if not (metric.judged and ours.outputs and peer.outputs):
        return "-"
    gain, error = metric.gain(ours.outputs, peer.outputs)
    return f"{100 * gain:+.2f} ± {100 * error:.2f}"


def rows(name: str, made: Made, files: dict[str, File]) -> Iterator[str]:
    """A line of the table for each metric; what is of the file, and what was said of it, stands in one."""
    best, peer, ours = files.values()
    sizes = " | ".join(
        f"{size:,}" if size else "-" for size in (best.size, peer.size, ours.size, ours.deflated)
    )
    costs = f"{sizes} | {peer.seconds:.0f} | {ours.seconds:.0f} | {ours.exit_code}"
    said = ours.said.replace("|", "/") or "nothing"
    for metric in made.metrics:
        scores = [file.scores.get(metric.name) for file in files.values()]
        bar = max((score for score in scores[:2] if score is not None), default=0.0)
        low = scores[2] is None or (metric.judged and scores[2] < bar - 0.01)
        figures = " | ".join([*map(metric.text, scores), gained(metric, ours, peer)])
        why, said = (said, "") if low else ("", said)
        yield f"| {name} | {metric.name} | {figures} | {costs} | {why} |"
        name, costs = "", " | ".join([""] * 7)


def listed(file: File) -> dict[str, Any]:
    """What --json keeps of a file."""
    return {name: value for name, value in vars(file).items() if name != "outputs"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TASKS))
    parser.add_argument("--seed", type=int, default=0, help="of the data and of the float models' weights")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    names = arguments.names or list(TASKS)
    if unknown := set(names) - set(TASKS):
        parser.error(f"no such task: {', '.join(sorted(unknown))}")
    print(f"| {' | '.join(COLUMNS)} |\n{'| --- ' * len(COLUMNS)}|")
    figures: dict[str, Any] = {}
    for name in names:
        api, make = TASKS[name]
        api.utils.set_random_seed(arguments.seed)
        start = time.monotonic()
        try:
            made = make(api, np.random.default_rng(arguments.seed))
        except Skipped as reason:
            print(f"| {name} | skipped: {reason} |{' |' * (len(COLUMNS) - 2)}", flush=True)
            continue
        print(f"{name}: trained in {time.monotonic() - start:.0f} s", file=sys.stderr)
        files = bench(api, made)
        print(*rows(name, made, files), sep="\n", flush=True)
        figures[name] = {label: listed(file) for label, file in files.items()}
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
        api.backend.clear_session()


if __name__ == "__main__":
    main()
