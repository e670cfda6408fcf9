"""Trains the networks of the field, quantizes them with lqconvert and with its peers, and prints one table.

    LQCONVERT_DATA=... python tests/bench/networks.py mlp lenet-300-100 lenet-5 --seeds 3

Float models are trained once and kept in --folder. All rows of a network share the float model, the splits
and the runtime; bytes are the whole .tflite, deflated with the best strategy. Ratios are against the float32
.tflite as it is and, in brackets, deflated. Peers fine-tune as many epochs as lqconvert does.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tf_keras import layers

import lqconvert
from lqconvert.datasets import PREPROCESSINGS, Data
from lqconvert.exporting import convert
from lqconvert.packing import deflated
from lqconvert.runtime import Runner

PIXELS = PREPROCESSINGS["0-1"]
EPOCHS = lqconvert.Rate.epochs


def mlp(*hidden: int) -> list[Any]:
    return [layers.Input((784,)), *(layers.Dense(n, activation="relu") for n in hidden)]


def lenet_5() -> list[Any]:
    """The Caffe variant: 431k parameters."""
    first = [layers.Input((28, 28, 1)), layers.Conv2D(20, 5), layers.MaxPooling2D(), layers.Conv2D(50, 5)]
    return [*first, layers.MaxPooling2D(), layers.Flatten(), layers.Dense(500, activation="relu")]


NETWORKS: dict[str, Callable[[], list[Any]]] = {
    "mlp": lambda: mlp(128),
    "lenet-300-100": lambda: mlp(300, 100),
    "lenet-5": lenet_5,
}


def fit(model: tf_keras.Model, data: Data, *, epochs: int, rate: float, callbacks: Any = ()) -> None:
    steps = epochs * -(-data.train.size // 128)
    schedule = tf_keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(tf_keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", ["accuracy"])
    train = data.train.batches(128, shuffle_seed=0, preprocessing=PIXELS).map(lambda _, x, y: (x, y))
    model.fit(train, epochs=epochs, verbose=0, callbacks=list(callbacks))


def float_model(name: str, folder: Path, data: Callable[[tuple], Data]) -> Path:
    path = folder / f"{name}.h5"
    if not path.exists():
        tf_keras.utils.set_random_seed(42)
        model = tf_keras.Sequential([*NETWORKS[name](), layers.Dense(10, activation="softmax")])
        fit(model, data(model.input_shape[1:]), epochs=15, rate=1e-3)
        model.save(path, include_optimizer=False)
    return path


def post_training(model: tf_keras.Model, data: Data) -> bytes:
    """tf.lite int8 with a representative data set."""
    x = data.train.arrays(500)[0].astype(np.float32) * PIXELS.scale
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([example[np.newaxis]] for example in x)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def quantization_aware(model: tf_keras.Model, data: Data) -> bytes:
    quantized = tfmot.quantization.keras.quantize_model(model)
    fit(quantized, data, epochs=EPOCHS, rate=2e-4)
    converter = tf.lite.TFLiteConverter.from_keras_model(quantized)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def pruned(sparsity: float) -> Callable[[tf_keras.Model, Data], bytes]:
    def run(model: tf_keras.Model, data: Data) -> bytes:
        end = EPOCHS * data.train.size // 128 // 2
        schedule = tfmot.sparsity.keras.PolynomialDecay(0.3, sparsity, 0, end)
        sparse = tfmot.sparsity.keras.prune_low_magnitude(model, schedule)
        fit(sparse, data, epochs=EPOCHS, rate=1e-3, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
        return post_training(tfmot.sparsity.keras.strip_pruning(sparse), data)

    return run


def clustered(clusters: int) -> Callable[[tf_keras.Model, Data], bytes]:
    def run(model: tf_keras.Model, data: Data) -> bytes:
        start = tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS
        shared = tfmot.clustering.keras.cluster_weights(model, clusters, start)
        fit(shared, data, epochs=EPOCHS, rate=2e-4)
        return post_training(tfmot.clustering.keras.strip_clustering(shared), data)

    return run


PEERS: dict[str, Callable[[tf_keras.Model, Data], bytes]] = {
    "tf.lite int8 PTQ": post_training,
    "tfmot QAT": quantization_aware,
    "tfmot pruning 90%, int8": pruned(0.9),
    "tfmot pruning 95%, int8": pruned(0.95),
    "tfmot clustering 16, int8": clustered(16),
}


def accuracy(tflite: bytes, data: Data) -> float:
    x, y = data.test.arrays()
    outputs = Runner(tflite).run([x.astype(np.float32) * PIXELS.scale])
    return float(np.mean(outputs.argmax(axis=1) == y))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    parser.add_argument("--no-peers", action="store_true")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print("| network | method | bytes | deflated | ratio | accuracy | minutes |\n" + "| --- " * 7 + "|")
    for name in arguments.networks:
        path = float_model(name, arguments.folder, lambda shape: lqconvert.load_data("mnist", shape, 10))
        model = tf_keras.models.load_model(path, compile=False)
        data = lqconvert.load_data("mnist", model.input_shape[1:], 10)
        original = convert(model, integer=False)

        def row(
            method: str,
            sizes: list[int],
            packed: list[int],
            scores: list[float],
            seconds: float,
            name: str = name,
            original: bytes = original,
        ) -> None:
            size = np.mean(packed)
            ratio = f"{len(original) / size:.1f}x ({deflated(original) / size:.1f}x)"
            spread = f" +- {100 * np.std(scores):.2f}" if len(scores) > 1 else ""
            figures = f"{np.mean(sizes):,.0f} | {size:,.0f} | {ratio} | {100 * np.mean(scores):.2f}%{spread}"
            print(f"| {name} | {method} | {figures} | {seconds / 60:.1f} |", flush=True)

        row("float32", [len(original)], [deflated(original)], [accuracy(original, data)], 0)
        reports, start = [], time.time()
        for seed in range(arguments.seeds):
            output = arguments.folder / f"{name}.{seed}.tflite"
            budget = lqconvert.Budget(max_drop=0.0)
            job = lqconvert.quantize(path, "mnist", output, preprocess=PIXELS, seed=seed, budget=budget)
            reports.append(job)
        exported = [report.exported for report in reports]
        seconds = (time.time() - start) / len(reports)
        sizes, packed = [each.size for each in exported], [each.deflated_bytes for each in exported]
        row(f"lqconvert, {len(reports)} seeds", sizes, packed, [each.score for each in exported], seconds)
        for method, run in {} if arguments.no_peers else PEERS.items():
            tf_keras.utils.set_random_seed(0)
            start = time.time()
            tflite = run(tf_keras.models.load_model(path, compile=False), data)
            row(method, [len(tflite)], [deflated(tflite)], [accuracy(tflite, data)], time.time() - start)


if __name__ == "__main__":
    main()
