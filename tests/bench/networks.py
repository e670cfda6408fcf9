"""Trains the networks of the field, quantizes them with lqconvert and with its peers, and prints one table.

    LQCONVERT_DATA=... python tests/bench/networks.py mlp lenet-300-100 lenet-5 --seeds 3

Float models and results are kept in --folder: the same command continues an interrupted run, and a file
to be made anew has its .result.json removed. ResNet-8 is MLPerf Tiny's, trained anew because its own
weights have seen every image that a split could be taken from; ResNet-18 is of half the width. All rows of a
network share the float model, the splits and the runtime (files for tflm run in TFLite Micro); with
--own-floats each seed's run begins with a float model of its own, and its points are against that one. Bytes
are the whole .tflite, as it is and deflated with the best strategy, and ratios are against the float32
.tflite as it is. Peers fine-tune as many epochs as lqconvert does, with one seed,
or --peer-seeds. ai-edge-quantizer is in the extra bench. What is not there, a package or data, is said before
anything is trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tf_keras import layers

import lqconvert
from lqconvert.data.dataset import Data
from lqconvert.data.preprocessing import PREPROCESSINGS, Preprocessing
from lqconvert.exporting.export import convert
from lqconvert.keras_loader.load import load_model
from lqconvert.runtime.litert import Runner
from lqconvert.tflite.targets import LITERT, TFLM
from lqconvert.training.augmentation import Augmentation
from lqconvert.utils.compression import deflated

DATA = Path(os.environ.get("LQCONVERT_DATA", "."))


@dataclass(frozen=True)
class Network:
    """A float model, how it is trained, and how long it is fine-tuned."""

    build: Callable[[], tf_keras.Model]
    data: str
    epochs: int
    learning_rate: float
    finetuning_epochs: int = lqconvert.Rate.recipe.epochs
    preprocessing: Preprocessing = PREPROCESSINGS["0-1"]
    augment: bool = False
    seed: int = 0  # of the order of its examples

    def load(self, model: tf_keras.Model) -> Data:
        return lqconvert.load_data(self.data, model.input_shape[1:], model.output_shape[-1])


def mlp(*hidden: int) -> tf_keras.Model:
    dense = (layers.Dense(n, activation="relu") for n in hidden)
    return tf_keras.Sequential([layers.Input((784,)), *dense, layers.Dense(10, activation="softmax")])


def lenet_5() -> tf_keras.Model:
    """The Caffe variant: 431k parameters."""
    first = [layers.Input((28, 28, 1)), layers.Conv2D(20, 5), layers.MaxPooling2D(), layers.Conv2D(50, 5)]
    last = [layers.Flatten(), layers.Dense(500, activation="relu"), layers.Dense(10, activation="softmax")]
    return tf_keras.Sequential([*first, layers.MaxPooling2D(), *last])


def cifar_cnn() -> tf_keras.Model:
    """The thesis's: six convolutions, each with ReLU before BatchNormalization."""
    model = tf_keras.Sequential([layers.Input((32, 32, 3))])
    for filters, dropout in ((32, 0.2), (64, 0.3), (128, 0.4)):
        for _ in range(2):
            model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
            model.add(layers.BatchNormalization())
        model.add(layers.MaxPooling2D())
        model.add(layers.Dropout(dropout))
    for layer in (layers.Flatten(), layers.Dense(128, activation="relu"), layers.BatchNormalization()):
        model.add(layer)
    model.add(layers.Dropout(0.5))
    model.add(layers.Dense(10, activation="softmax"))
    return model


def resnet(size: int, widths: tuple[int, ...], blocks: int, *, shrinks: bool = False) -> tf_keras.Model:
    """A stage of residual blocks for every width; ``shrinks``: the image is first scaled down by 4."""

    def convolved(x: Any, filters: int, size: int, strides: int) -> Any:
        x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    def block(x: Any, filters: int, strides: int) -> Any:
        y = layers.ReLU()(convolved(x, filters, 3, strides))
        y = convolved(y, filters, 3, 1)
        same = strides == 1
        return layers.ReLU()(layers.Add()([x if same else convolved(x, filters, 1, strides), y]))

    inputs = layers.Input((size, size, 3))
    x = layers.ReLU()(convolved(inputs, widths[0], 3, 2 if shrinks else 1))
    if shrinks:
        x = layers.MaxPooling2D()(x)
    for stage, filters in enumerate(widths):
        for index in range(blocks):
            x = block(x, filters, 2 if stage and not index else 1)
    x = layers.GlobalAveragePooling2D()(x)
    return tf_keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


CIFAR, IMAGENETTE = str(DATA / "cifar10_jpeg.zip"), str(DATA / "imagenette96_jpeg.zip")
NETWORKS = {
    "mlp": Network(lambda: mlp(128), "mnist", 15, 1e-3, 40),
    "lenet-300-100": Network(lambda: mlp(300, 100), "mnist", 15, 1e-3, 40),
    "lenet-5": Network(lenet_5, "mnist", 15, 1e-3, 20),
    "resnet-8": Network(lambda: resnet(32, (16, 32, 64), 1), CIFAR, 40, 4e-3, 16, augment=True),
    "cifar-cnn": Network(cifar_cnn, CIFAR, 20, 2e-3, 8, augment=True),
    "resnet-18": Network(
        lambda: resnet(64, (32, 64, 128, 256), 2, shrinks=True), IMAGENETTE, 60, 2e-3, 36, augment=True
    ),
}


def fit(
    model: tf_keras.Model,
    network: Network,
    *,
    epochs: int,
    rate: float,
    callbacks: Any = (),
) -> tf_keras.Model:
    data = network.load(model)
    steps = -(-data.train.size // 128)
    schedule = tf_keras.optimizers.schedules.CosineDecay(rate, epochs * steps)
    model.compile(tf_keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", ["accuracy"])
    augment = Augmentation(mirror=True, shift=1 / 8) if network.augment else Augmentation()
    batches = data.train.stream(128, seed=network.seed, preprocessing=network.preprocessing)
    train = batches.map(lambda step, part, size, index, x, y: (augment(x, tf.stack([np.int64(0), step])), y))
    model.fit(train, steps_per_epoch=steps, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


#: Of a network's float model; --own-floats takes the numbers after it for all but the first.
SEED = 42


def float_model(name: str, folder: Path, seed: int = SEED) -> Path:
    path = folder / (f"{name}.h5" if seed == SEED else f"{name}.{seed}.h5")
    if not path.exists():
        network = NETWORKS[name]
        tf_keras.utils.set_random_seed(seed)
        # Half the minutes in bfloat16; the variables are float32 all the same.
        tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
        trained = fit(network.build(), network, epochs=network.epochs, rate=network.learning_rate)
        tf_keras.mixed_precision.set_global_policy("float32")
        model = network.build()
        model.set_weights(trained.get_weights())
        model.save(path, include_optimizer=False)
    return path


def float_tflite(path: Path) -> bytes:
    return convert(load_model(path), integer=False)


def post_training(model: tf_keras.Model, network: Network) -> bytes:
    # Of a model of quantization-aware training the ranges are its own.
    return tf_lite_int8(model, _examples(network, model))


def tf_lite_int8(model: tf_keras.Model, examples: np.ndarray) -> bytes:
    """tf.lite int8 with a representative data set."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    converter.representative_dataset = lambda: ([example[np.newaxis]] for example in examples)
    return converter.convert()


def _examples(network: Network, model: tf_keras.Model) -> np.ndarray:
    preprocessing = network.preprocessing
    train = network.load(model).train
    raw, _ = train.pick(np.random.default_rng(0).permutation(train.size)[:500]).arrays()  # of all classes
    return raw.astype(np.float32) * np.float32(preprocessing.scale) + np.float32(preprocessing.offset)


def quantization_aware(model: tf_keras.Model, network: Network) -> bytes:
    tools = tfmot.quantization.keras

    def annotated(layer: Any) -> Any:
        plain = isinstance(layer, layers.BatchNormalization | layers.InputLayer)
        return layer if plain else tools.quantize_annotate_layer(layer)

    try:
        quantized = tools.quantize_model(model)
    except RuntimeError:  # it refuses BatchNormalization behind an activation
        quantized = tools.quantize_apply(tf_keras.models.clone_model(model, clone_function=annotated))
    fit(quantized, network, epochs=network.finetuning_epochs, rate=2e-4)
    return post_training(quantized, network)


def pruned(sparsity: float) -> Callable[[tf_keras.Model, Network], bytes]:
    def run(model: tf_keras.Model, network: Network) -> bytes:
        end = network.finetuning_epochs * network.load(model).train.size // 128 // 2
        schedule = tfmot.sparsity.keras.PolynomialDecay(0.3, sparsity, 0, end)
        sparse = tfmot.sparsity.keras.prune_low_magnitude(model, schedule)
        callbacks = [tfmot.sparsity.keras.UpdatePruningStep()]
        fit(sparse, network, epochs=network.finetuning_epochs, rate=1e-3, callbacks=callbacks)
        return post_training(tfmot.sparsity.keras.strip_pruning(sparse), network)

    return run


def clustered(clusters: int) -> Callable[[tf_keras.Model, Network], bytes]:
    def run(model: tf_keras.Model, network: Network) -> bytes:
        start = tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS
        shared = tfmot.clustering.keras.cluster_weights(model, clusters, start)
        fit(shared, network, epochs=network.finetuning_epochs, rate=2e-4)
        return post_training(tfmot.clustering.keras.strip_clustering(shared), network)

    return run


def ai_edge_quantizer(bits: int) -> Callable[[tf_keras.Model, Network], bytes]:
    """Post-training quantization of the float .tflite: weights of 8 or 4 bits, activations of 8."""
    return lambda model, network: edge_quantized(model, _examples(network, model), bits)


def edge_quantized(
    model: tf_keras.Model, examples: np.ndarray, bits: int, algorithm: str = "min_max_uniform_quantize"
) -> bytes:
    """Its static quantization; operators that the algorithm does not know are quantized by extremes."""
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe_manager

    tflite = convert(model, integer=False)
    recipes, names = recipe_manager.RecipeManager(), qtyping.TFLOperationName
    add = functools.partial(
        recipes.add_static_config, regex=".*", activation_num_bits=8, weight_num_bits=bits
    )
    add(operation_name=names.ALL_SUPPORTED)
    for name in (names.FULLY_CONNECTED, names.CONV_2D):
        if algorithm_manager.is_op_registered(algorithm, name):
            add(operation_name=name, algorithm_key=algorithm)
    quantize = quantizer.Quantizer(tflite, recipes.get_quantization_recipe())
    runner = Runner(tflite).interpreter
    signature = next(iter(runner.get_signature_list()))
    (input_name,) = runner.get_signature_list()[signature]["inputs"]
    given = {signature: [{input_name: example[np.newaxis]} for example in examples]}
    return bytes(quantize.quantize(quantize.calibrate(given)).quantized_model)


PEERS: dict[str, Callable[[tf_keras.Model, Network], bytes]] = {
    "tf.lite int8 PTQ": post_training,
    "ai-edge-quantizer int8": ai_edge_quantizer(8),
    "ai-edge-quantizer int4": ai_edge_quantizer(4),
    "tfmot QAT": quantization_aware,
    "tfmot pruning 90%, int8": pruned(0.9),
    "tfmot pruning 95%, int8": pruned(0.95),
    "tfmot clustering 16, int8": clustered(16),
}


@dataclass(frozen=True)
class Result:
    """What one file measured, and how long it took to make."""

    size: int
    packed: int
    score: float
    seconds: float
    latency_s: float = 0.0
    arena: int = 0


def kept(path: Path, make: Callable[[], dict[str, Result]]) -> dict[str, Result]:
    """The results in a file, made first where it is not there."""
    if not path.exists():
        results = {label: dataclasses.asdict(result) for label, result in make().items()}
        path.write_text(json.dumps(results))
    return {label: Result(**result) for label, result in json.loads(path.read_text()).items()}


def measured(make: Callable[[], bytes], data: Data, preprocessing: Preprocessing) -> dict[str, Result]:
    """Makes a file and measures it in LiteRT."""
    start = time.time()
    tflite = make()
    seconds = round(time.time() - start, 1)
    runner = Runner(tflite)
    outputs = runner.run(x.numpy() for _, x, _ in data.test.batches(256, preprocessing=preprocessing))
    score = float(np.mean(outputs.argmax(axis=1) == data.test.y))
    return {"": Result(len(tflite), deflated(tflite), score, seconds, runner.latency())}


def learned(
    name: str, model: Path, output: Path, budget: lqconvert.Budget, seed: int, epochs: int | None
) -> dict[str, Result]:
    """lqconvert's files: plain int8, and one for each target."""
    network, start = NETWORKS[name], time.time()
    report = lqconvert.quantize(
        model,
        network.data,
        output,
        targets=[TFLM, LITERT],
        scheme=lqconvert.Rate(),
        budget=budget,
        preprocess=network.preprocessing,
        epochs=network.finetuning_epochs if epochs is None else epochs,
        seed=seed,
    )
    seconds, int8 = round(time.time() - start, 1), report.int8
    plain = Result(int8.size, int8.deflated_bytes, int8.score, seconds, int8.latency_s)
    results = {"int8": plain}
    for file in report.files:
        proven, arena = file.proven, file.proven.arena_bytes or 0
        # Where only a part of the test split was run, its difference from float on that part counts.
        score = report.float_.score + file.score - file.float_score
        results[proven.target] = Result(
            proven.size, proven.deflated_bytes, score, seconds, proven.latency_s, arena
        )
    return results


def row(name: str, method: str, results: list[Result], originals: list[Result]) -> str:
    """A line of the table: the mean of the results, and the spread of their scores over their originals'."""
    original, drops = originals[0], [a.score - b.score for a, b in zip(results, originals, strict=True)]
    size, packed, score, seconds, latency, arena = np.mean(
        [dataclasses.astuple(result) for result in results], axis=0
    )
    spread = f" +- {100 * np.std(drops):.2f}" if len(results) > 1 else ""
    accuracy = f"{100 * score:.2f}% | {100 * np.mean(drops):+.2f}{spread}"
    sizes = f"{size:,.0f} | {original.size / size:.1f}x | {packed:,.0f} | {original.size / packed:.1f}x"
    took = f"{1e3 * latency:.3f} ms | {arena:,.0f} | {seconds / 60:.1f}"
    return f"| {name} | {method} | {sizes} | {accuracy} | {took} |"


def missing(names: Collection[str], peers: Collection[str] = ()) -> str:
    """The packages and data that a run of these networks and peers needs and that are missing."""
    if any("ai-edge-quantizer" in peer for peer in peers) and not find_spec("ai_edge_quantizer"):
        return "ai-edge-quantizer is not installed: pip install -e '.[bench]', or name the other --peers"
    for name in names:
        try:
            NETWORKS[name].load(NETWORKS[name].build())
        except lqconvert.LqError as error:
            return f"{name} cannot be trained: {error} (LQCONVERT_DATA names the folder of the data)"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--own-floats", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    parser.add_argument("--max-drop", type=float, default=0.0)
    parser.add_argument("--max-size", type=int)
    parser.add_argument("--epochs", type=int, help="of lqconvert; 0 is without training")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--peer-seeds", type=int, default=1)
    arguments = parser.parse_args()
    if reason := missing(arguments.networks, arguments.peers):
        parser.error(reason)
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    size = arguments.max_size
    budget = lqconvert.Budget(max_drop=None if size else arguments.max_drop, max_size=size)
    asked = f"{size}B" if size else f"{arguments.max_drop:g}points"
    asked += "" if arguments.epochs is None else f".{arguments.epochs}epochs"
    columns = ("network", "method", "bytes", "ratio", "deflated", "ratio", "accuracy", "points")
    columns += ("latency", "arena", "minutes")
    print(f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|")
    for name in arguments.networks:
        network, own = NETWORKS[name], arguments.own_floats
        paths = [float_model(name, folder, SEED + own * seed) for seed in range(max(1, arguments.seeds))]
        data = network.load(load_model(paths[0]))

        def one(stem: str, label: str, make: Callable[[], bytes]) -> Result:
            results = folder / f"{stem}.{label}.result.json"
            return kept(results, lambda: measured(make, data, network.preprocessing))[""]  # noqa: B023

        originals = [one(path.stem, "float32", functools.partial(float_tflite, path)) for path in paths]
        for original in originals if own else originals[:1]:
            print(row(name, "float32", [original], [original]), flush=True)
        runs = []
        for seed, path in enumerate(paths[: arguments.seeds]):
            output = folder / f"{path.stem}.{asked}.{seed}.tflite"
            make = functools.partial(learned, name, path, output, budget, seed, arguments.epochs)
            runs.append(kept(output.with_suffix(".result.json"), make))
        for label in runs[0] if runs else ():
            method = f"lqconvert {label}, {budget}, {len(runs)} seeds"
            print(row(name, method, [run[label] for run in runs], originals), flush=True)
        for method in arguments.peers:
            label = method.replace(" ", "-").replace("%,", "").replace(",", "")
            files = []
            for seed in range(arguments.peer_seeds):
                tf_keras.utils.set_random_seed(seed)
                seeded = dataclasses.replace(network, seed=seed)
                make = functools.partial(PEERS[method], load_model(paths[0]), seeded)
                files.append(one(name, f"{label}.{seed}" if seed else label, make))
            print(row(name, method, files, originals[:1] * len(files)), flush=True)


if __name__ == "__main__":
    main()
