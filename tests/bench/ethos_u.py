"""Quantizes networks for an Ethos-U. Prints Vela's figures, and those of tf.lite's int8 of the same model.

    LQCONVERT_DATA=... python tests/bench/ethos_u.py digits resnet-8 cifar-cnn mobilenet

Float models are trained as in networks.py and kept in --folder; digits is the sample. mobilenet is
MobileNetV2 of width 0.35 for ten classes of 64x64 images, trained from scratch. Scores are of the int8 files
in LiteRT, on the whole test split.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import networks
import numpy as np
import tf_keras
from networks import IMAGENETTE, NETWORKS, Network

import lqconvert
from lqconvert.data.preprocessing import PREPROCESSINGS
from lqconvert.keras_loader.load import load_model
from lqconvert.runtime.ethos_u import NpuFigures, compiled
from lqconvert.runtime.litert import Runner

SAMPLE = Path(__file__).parents[2] / "sample_models" / "digits_cnn.h5"


def mobilenet() -> tf_keras.Model:
    base = tf_keras.applications.MobileNetV2(
        (64, 64, 3), 0.35, include_top=False, weights=None, pooling="avg"
    )
    for layer in base.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = 0.9  # its 0.999 is for training that takes far more steps
    return tf_keras.Model(base.input, tf_keras.layers.Dense(10, activation="softmax")(base.output))


NETWORKS |= {
    "digits": Network(lambda: load_model(SAMPLE), "digits", 0, 0.0, preprocessing=PREPROCESSINGS["none"]),
    "mobilenet": Network(mobilenet, IMAGENETTE, 30, 2e-3, augment=True),
}


def row(name: str, score: float, npu: NpuFigures) -> str:
    figures = npu.weight_bytes, npu.constant_bytes, npu.size, npu.arena_bytes, npu.cycles
    listed = " | ".join(f"{figure:,}" for figure in figures)
    return f"| {name} | {score:.2%} | {listed} | {', '.join(npu.on_cpu) or 'nothing'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=tuple(NETWORKS))
    parser.add_argument("--target", default="ethos-u55-128")
    parser.add_argument("--folder", type=Path, default=Path("build/ethos_u"))
    parser.add_argument("--effort", default="normal")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    settings.folder.mkdir(parents=True, exist_ok=True)
    if "digits" in settings.names:
        shutil.copy(SAMPLE, settings.folder / "digits.h5")
    print("| file | test accuracy | encoded weights | constants | file | arena | cycles | on the CPU |")
    for name in settings.names:
        network, path = NETWORKS[name], networks.float_model(name, settings.folder)
        model = load_model(path)
        theirs = networks.post_training(model, network)
        test = network.load(model).test
        x = np.concatenate([x for _, x, _ in test.batches(256, preprocessing=network.preprocessing)])
        accuracy = float(np.mean(Runner(theirs).run([x]).argmax(axis=1) == test.y.ravel()))
        print(row(f"{name}, tf.lite int8", accuracy, compiled(theirs, settings.target).figures), flush=True)
        start = time.monotonic()
        report = lqconvert.quantize(
            path,
            network.data,
            settings.folder / f"{name}.tflite",
            targets=[settings.target],
            preprocess=network.preprocessing,
            effort=settings.effort,
            seed=settings.seed,
        )
        minutes = (time.monotonic() - start) / 60
        (file,) = report.files
        print(row(f"{name}, lqconvert", file.score or 0.0, file.proven.npu), flush=True)
        print(f"{name}: float {report.float_.score:.2%}, {minutes:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
