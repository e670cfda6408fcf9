"""Runs the reference's MNIST experiment and prints its figures next to ours.

A. Chinbat, "Learned Quantization Schemes for Data-centric ML Pipelines", TU Berlin, 2025: 784-128-10 on raw
0..255 pixels, Adam 1e-4, batch 32, 20 epochs, seed 42. From the trained model, 20 epochs more with floor
rounding and scales that start at 100 x float32 epsilon and are trained at the same rate. As in the thesis,
the test split is the validation data; nothing is chosen by it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tf_keras
from tf_keras import layers

from lqconvert.data.dataset import Split
from lqconvert.data.sources import load_data
from lqconvert.exporting.export import learned_codes
from lqconvert.quantization.layers import MINIMUM_SCALE
from lqconvert.quantization.rewrite import rewrite
from lqconvert.quantization.schemes import Difference, GradientThreshold, Inverse, MaxBin, Scheme

#: Scheme and the reference's (zipped MB, row-wise). The reference has no separate figures column-wise.
RUNS: tuple[tuple[Scheme, str], ...] = (
    (GradientThreshold(limit=None, threshold=1e-10), "0.05 MB, 7x, 24 codes -12..11"),
    (Difference(limit=None, gamma=1e-7), "0.03 MB, 12x, codes -6..2"),
    (MaxBin(limit=None, gamma=1e-8), "0.04 MB, 9x"),
    (Inverse(limit=None, gamma=1e-9), "0.04 MB, 9x"),
)


@dataclass(frozen=True)
class Reproduced:
    """One run: integers in use over all kernels and biases, their range, test accuracy, zipped bytes."""

    scheme: str
    granularity: str
    integers: int
    smallest: int
    largest: int
    accuracy: float
    zipped: int
    reference: str


def reproduce_mnist(
    *, epochs: int = 20, seed: int = 42, done: Callable[[Reproduced], None] = lambda _: None
) -> tuple[float, int, list[Reproduced]]:
    """(float accuracy, bytes of the float32 weights, zipped, the eight runs)."""
    data = load_data("mnist", (784,), 10)
    train, test = _arrays(data.train, data.validation), _arrays(data.test)
    tf_keras.utils.set_random_seed(seed)
    inputs = tf_keras.Input((784,))
    hidden = layers.Dense(128, activation="relu")(inputs)
    model = tf_keras.Model(inputs, layers.Dense(10, activation="softmax")(hidden))
    accuracy = _fit(model, train, test, epochs)
    runs = []
    for scheme, reference in RUNS:
        for granularity in ("row-wise", "column-wise"):
            tf_keras.utils.set_random_seed(seed)
            quantized = rewrite(
                model,
                scheme,
                granularity=granularity,
                rounding="floor",
                start=MINIMUM_SCALE,
                log_scale=False,
                biases=True,
                activations=None,
            )
            reached = _fit(quantized, train, test, epochs)
            tensors = []
            for layer in learned_codes(quantized).layers.values():
                assert layer.bias_codes is not None
                tensors += [layer.kernel.codes, layer.bias_codes.codes]
            used = np.unique(np.concatenate([codes.ravel() for codes in tensors]))
            smallest, largest = int(used[0]), int(used[-1])
            narrow = np.promote_types(np.min_scalar_type(smallest), np.min_scalar_type(-abs(largest) - 1))
            zipped = _zipped([codes.astype(narrow) for codes in tensors])
            name = scheme.name
            runs.append(
                Reproduced(name, granularity, len(used), smallest, largest, reached, zipped, reference)
            )
            done(runs[-1])
    return accuracy, _zipped(model.get_weights()), runs


def _arrays(*splits: Split) -> tuple[np.ndarray, np.ndarray]:
    parts = [split.arrays() for split in splits]
    return np.concatenate([x for x, _ in parts]).astype(np.float32), np.concatenate([y for _, y in parts])


def _fit(model: tf_keras.Model, train: tuple, test: tuple, epochs: int) -> float:
    """Trains as the reference does and returns the test accuracy."""
    model.compile(tf_keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", ["accuracy"])
    model.fit(*train, batch_size=32, epochs=epochs, verbose=0)
    return float(model.evaluate(*test, batch_size=1000, verbose=0)[1])


def _zipped(tensors: list[np.ndarray]) -> int:
    """Bytes of a zip archive of the tensors as the reference writes it: one deflated .npy for each."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, tensor in enumerate(tensors):
            array = io.BytesIO()
            np.save(array, tensor)
            archive.writestr(f"{number}.npy", array.getvalue())
    return len(file.getvalue())
