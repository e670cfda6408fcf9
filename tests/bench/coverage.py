"""Converts Keras's architectures and a zoo of small models, and prints the result for each.

    python tests/bench/coverage.py                      # one architecture of every family, and the zoo
    python tests/bench/coverage.py --all                # every architecture
    python tests/bench/coverage.py tf_keras.MobileNetV2 keras.ConvNeXtTiny zoo.lstm

Weights are random, with the statistics of BatchNormalization taken from the images so that signals keep
their size through a hundred layers; the images are smooth noise. There is no training: what is measured is
the conversion. Agreement is that of the likeliest class among 10, from the logits, on 200 images, in LiteRT;
networks with random weights are chaotic (weights of 8 bits alone cost MobileNet a quarter), so the
error stands beside it: root mean square, in steps of the output's scale and relative to how much the logits
differ from image to image. So does tf.lite's post-training quantization of the same model and images.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
sys.path.insert(0, str(Path(__file__).parent.parent))

import keras
import numpy as np
import tensorflow as tf
import tf_keras
import zoo

from lqconvert import LqError, calibrate, export, load_model, rewrite
from lqconvert.keras_loader.load import random_inputs
from lqconvert.quantization.rewrite import float_layers
from lqconvert.runtime.litert import Runner
from lqconvert.tflite.flatbuffer import read

APIS = {"tf_keras": tf_keras, "keras": keras}
#: The smallest architecture of each family.
FAMILIES = {
    "tf_keras": [
        *("ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionResNetV2"),
        *("InceptionV3", "MobileNet", "MobileNetV2", "MobileNetV3Small", "NASNetMobile", "RegNetX002"),
        *("RegNetY002", "ResNet50", "ResNet50V2", "ResNetRS50", "VGG16", "Xception"),
    ]
}
FAMILIES["keras"] = [name for name in FAMILIES["tf_keras"] if hasattr(keras.applications, name)]
SIDES = {"InceptionResNetV2": 75, "InceptionV3": 75, "Xception": 71}
IMAGES = 200


@dataclass(frozen=True)
class Row:
    """The result for a model."""

    outcome: str  # integer, the layers that stay float, or why it is refused
    agreement: float = float("nan")
    steps: float = float("nan")  # rms error against the float model, in steps of the output's scale
    relative: float = float("nan")  # and relative to the spread of the outputs over the images
    parameters: int = 0
    size: int = 0
    peer_agreement: float = float("nan")  # of tf.lite's post-training quantization
    peer_relative: float = float("nan")


def smooth_images(count: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """float32 in -1..1: noise, each image with a colour, a contrast and sizes of its patches of its own."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(-0.8, 0.8, (count, 1, 1, shape[2])) * np.ones(shape)
    contrasts = rng.dirichlet([0.3] * 4, count) * rng.uniform(0.1, 1.0, (count, 1))
    for cells, contrast in zip((2, 4, 8, 16), contrasts.T, strict=True):
        noise = rng.normal(size=(count, cells, cells, shape[2]))
        grown = tf.image.resize(noise, shape[:2]).numpy()
        images = images + grown * contrast[:, np.newaxis, np.newaxis, np.newaxis]
    return np.clip(images, -1, 1).astype(np.float32)


def application(api: Any, name: str) -> tuple[Any, np.ndarray]:
    """The architecture with random weights, and images for it."""
    side = next((size for prefix, size in SIDES.items() if name.startswith(prefix)), 64)
    settings = {"weights": None, "classes": 10, "classifier_activation": None, "input_shape": (side, side, 3)}
    api.utils.set_random_seed(0)
    model = getattr(api.applications, name)(**settings)
    images = smooth_images(IMAGES + 100, (side, side, 3))
    if any(type(layer).__name__ in ("Rescaling", "Normalization") for layer in model.layers):
        images = np.round(127.5 * (images + 1))
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            layer.momentum = 0.0
    model(images[:64], training=True)
    return model, images


def post_training(model: Any, examples: np.ndarray, seen: np.ndarray) -> np.ndarray | None:
    """The outputs of tf.lite's int8 file of the same model, calibrated on the same images."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[np.newaxis]] for image in seen)
    converter.inference_input_type = converter.inference_output_type = tf.int8
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    try:
        return Runner(converter.convert()).run([examples])
    except Exception as error:
        print(f"tf.lite: {str(error).strip().splitlines()[0][:100]}", file=sys.stderr)
        return None


def _relative(outputs: np.ndarray, truth: np.ndarray) -> float:
    spread = float(np.sqrt(np.mean((truth - truth.mean(0)) ** 2)))
    return float(np.sqrt(np.mean((outputs - truth) ** 2))) / (spread + 1e-12)


def row(build: Callable[[], tuple[Any, np.ndarray | None]], suffix: str) -> Row:
    """Saves, loads, rewrites, calibrates, exports and runs a model."""
    model, inputs = build()
    compares = inputs is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        model.save(path)
        try:
            loaded = load_model(path)
            quantized = rewrite(loaded)
            inputs = random_inputs(loaded, IMAGES + 100) if inputs is None else [inputs]
            examples, seen = [x[:IMAGES] for x in inputs], [x[IMAGES:] for x in inputs]
            single = len(inputs) == 1
            calibrate(quantized, [seen[0] if single else seen])
            exported = export(quantized, seen if single else [])
        except LqError as error:
            return Row(f"refused: {error}")
    runner = Runner(exported.tflite)
    outputs = runner.run([examples[0] if single else tuple(examples)])
    peer = post_training(loaded, examples[0], seen[0]) if compares else None
    truth = loaded.predict(examples[0] if single else examples, batch_size=50, verbose=0)
    truth = np.concatenate(
        [y.reshape(len(y), -1) for y in (truth if isinstance(truth, list) else [truth])], axis=1
    )
    outputs = outputs.reshape(truth.shape)
    error = float(np.sqrt(np.mean((outputs - truth) ** 2)))
    kept = float_layers(quantized)
    codes = {operator.name for operator in read(exported.tflite).main.operators}
    assert kept or not codes & {"DEQUANTIZE"}
    named = ", ".join(f"{name} ({what})" for name, what in list(kept.items())[:2])
    return Row(
        f"{len(kept)} float: {named}{', ...' if len(kept) > 2 else ''}" if kept else "integer only",
        float(np.mean(outputs.argmax(1) == truth.argmax(1))),
        error / exported.output_scale,
        _relative(outputs, truth),
        loaded.count_params(),
        len(exported.tflite),
        float("nan") if peer is None else float(np.mean(peer.argmax(1) == truth.argmax(1))),
        float("nan") if peer is None else _relative(peer, truth),
    )


def builder(name: str) -> Callable[[], tuple[Any, np.ndarray | None]]:
    source, _, model = name.partition(".")
    if source.startswith("zoo"):
        return lambda: (zoo.ZOO[model].build(APIS["keras" if source == "zoo3" else "tf_keras"]), None)
    return lambda: application(APIS[source], model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--all", action="store_true", help="every architecture, not one of each family")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    names = arguments.names
    if not names:
        families = {
            source: [name for name in sorted(vars(api.applications)) if name[0].isupper()]
            if arguments.all
            else FAMILIES[source]
            for source, api in APIS.items()
        }
        names = [f"{source}.{name}" for source, models in families.items() for name in models]
        sources = {"tf_keras": "zoo", "keras": "zoo3"}
        names += [f"{sources[api]}.{name}" for name, feature in zoo.ZOO.items() for api in feature.apis]
    columns = ("model", "parameters", "bytes", "outcome", "agreement", "steps", "error")
    columns += ("tf.lite agrees", "its error", "seconds", "peak GB")
    print(f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|")
    for name in names:
        start = time.time()
        made = row(builder(name), ".keras" if name.startswith(("keras.", "zoo3.")) else ".h5")
        tf_keras.backend.clear_session()
        keras.backend.clear_session()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        figures = f"{made.agreement:.1%} | {made.steps:.2f} | {made.relative:.1%}"
        figures += f" | {made.peer_agreement:.1%} | {made.peer_relative:.1%}"
        print(
            f"| {name} | {made.parameters:,} | {made.size:,} | {made.outcome} | {figures} "
            f"| {time.time() - start:.0f} | {peak:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
