"""Prints the RMSEs of a regression and a super-resolution model with 8-bit and with 16-bit activations.

    python tests/bench/activations.py [--seeds 3]

Data are made up, with seeds. Each model is trained here, within a minute. It is quantized by the default
command with ``--activations 8`` and ``16`` (also with ``--scheme lsq``), for both runtimes, and by tf.lite's
int8 and 16x8 after training (in LiteRT), calibrated on 500 examples. RMSEs are of all test examples.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers

from lqconvert.runtime.litert import Runner

COLUMNS = ("model", "seed", "float", "tf.lite int8", "tf.lite 16x8", "8: litert", "8: tflm", "16: litert")
COLUMNS += ("16: tflm", "16 lsq: litert", "16 lsq: tflm", "bytes of tf.lite 16x8", "8", "16", "16 lsq")
Arrays = dict[str, np.ndarray]


def regression(rng: np.random.Generator) -> tuple[tf_keras.Model, Arrays]:
    """A number from -20 to 20, with fine detail near 0."""
    x = rng.uniform(-3, 3, size=(4000, 3)).astype(np.float32)
    y = np.sin(x[:, 0]) * np.exp(x[:, 1]) + 0.02 * x[:, 2]
    model = tf_keras.Sequential([layers.Input((3,))])
    for layer in (layers.Dense(64, "relu"), layers.Dense(64, "relu"), layers.Dense(1)):
        model.add(layer)
    for rate, epochs in ((3e-3, 150), (3e-4, 60)):
        model.compile(tf_keras.optimizers.Adam(rate), "mse")
        model.fit(x[:3000], y[:3000], 64, epochs, verbose=0)
    return model, {"x_train": x[:3000], "y_train": y[:3000], "x_test": x[3000:], "y_test": y[3000:]}


def super_resolution(rng: np.random.Generator) -> tuple[tf_keras.Model, Arrays]:
    """Images of smooth waves, of twice the size, in both directions."""
    place = np.stack(np.meshgrid(*[np.arange(32) / 16] * 2))
    angle, phase = rng.uniform(0, np.pi, (1500, 4, 1, 1)), rng.uniform(0, 2 * np.pi, (1500, 4, 1, 1))
    along = np.cos(angle) * place[0] + np.sin(angle) * place[1]
    large = np.sin(rng.uniform(2, 14, (1500, 4, 1, 1)) * along + phase).mean(axis=1)[..., np.newaxis]
    large = (0.5 + 0.5 * large).astype(np.float32)
    small = large.reshape(1500, 16, 2, 16, 2, 1).mean(axis=(2, 4))
    inputs = tf_keras.Input((16, 16, 1))
    y = layers.Conv2D(24, 5, padding="same", activation="relu")(inputs)
    y = layers.Conv2D(16, 3, padding="same", activation="relu")(y)
    y = tf.nn.depth_to_space(layers.Conv2D(4, 3, padding="same")(y), 2)
    model = tf_keras.Model(inputs, y)
    for rate, epochs in ((3e-3, 25), (3e-4, 10)):
        model.compile(tf_keras.optimizers.Adam(rate), "mse")
        model.fit(small[:1200], large[:1200], 32, epochs, verbose=0)
    return model, {
        "x_train": small[:1200], "y_train": large[:1200], "x_test": small[1200:], "y_test": large[1200:],
    }  # fmt: skip


def rmse(outputs: np.ndarray, data: Arrays) -> float:
    return float(np.sqrt(np.mean((outputs.reshape(data["y_test"].shape) - data["y_test"]) ** 2)))


def peer(model: tf_keras.Model, data: Arrays, bits: int) -> tuple[float, int]:
    """RMSE and bytes of tf.lite's post-training quantization; NaN and 0 if it refuses the model."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([x[np.newaxis]] for x in data["x_train"][:500])
    ops = tf.lite.OpsSet
    wide = [ops.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8, ops.TFLITE_BUILTINS]
    converter.target_spec.supported_ops = wide if bits == 16 else [ops.TFLITE_BUILTINS_INT8]
    kind = tf.int16 if bits == 16 else tf.int8
    converter.inference_input_type = converter.inference_output_type = kind
    try:
        tflite = converter.convert()
    except Exception:  # whatever it raises
        return math.nan, 0
    return rmse(Runner(tflite).run([data["x_test"]]), data), len(tflite)


def ours(folder: Path, bits: int, *options: str) -> tuple[list[float], int]:
    """RMSEs in LiteRT and TFLite Micro, and bytes for TFLite Micro."""
    command = [sys.executable, "-m", "lqconvert", "quantize", "model.h5", "--data", "data.npz", "--json"]
    command += [
        "--target",
        "litert",
        "--target",
        "tflm",
        "--activations",
        str(bits),
        "-o",
        f"{bits}.tflite",
        *options,
    ]
    done = subprocess.run([*command, "--quiet"], cwd=folder, capture_output=True, text=True, check=True)
    files = json.loads(done.stdout)["files"]
    errors = [score["value"] for each in files for score in each["scores"] if score["metric"] == "RMSE"]
    return errors, files[1]["proven"]["size"]


def main() -> None:
    parser = argparse.ArgumentParser(description="8-bit and 16-bit activations")
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    for make in (regression, super_resolution):
        for seed in range(seeds):
            tf_keras.utils.set_random_seed(seed)
            model, data = make(np.random.default_rng(seed))
            with tempfile.TemporaryDirectory() as name:
                model.save(Path(name) / "model.h5")
                np.savez(Path(name) / "data.npz", **data)
                (narrow, small), (wide, large) = (ours(Path(name), bits) for bits in (8, 16))
                exact, largest = ours(Path(name), 16, "--scheme", "lsq")
            (int8, _), (int16, size) = (peer(model, data, bits) for bits in (8, 16))
            errors = rmse(model.predict(data["x_test"], verbose=0), data), int8, int16, *narrow, *wide, *exact
            cells = [make.__name__, seed, *(f"{each:.4g}" for each in errors)]
            cells += [f"{each:,}" for each in (size, small, large, largest)]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
