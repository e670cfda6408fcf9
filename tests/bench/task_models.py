"""The tasks of tasks.py: data made up with seeds, and a small model trained on them within a minute."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tf_keras
from task_scores import Metric, auc, balanced, cosine, mae, mean_auc, micro_f1, miou, r2, recall, top1

import lqconvert

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Made:
    """A trained model, its metrics, and the arrays of its data, by input ("x" of a single one) and label."""

    model: Any
    train: Arrays
    test: Arrays
    metrics: list[Metric]
    data: str = ""  # a name, or "images" for class folders, as --data; else all arrays in an .npz
    dynamic: bool = False  # compare with tf.lite's dynamic range: its calibration crashes on a GRU

    @property
    def inputs(self) -> list[str]:
        names = [tensor.name.split(":")[0] for tensor in self.model.inputs]
        return names if len(names) > 1 else ["x"]

    @property
    def outputs(self) -> list[str]:
        return list(self.model.output_names) if len(self.model.outputs) > 1 else [""]


class Skipped(Exception):
    """The data are not here."""


CLASSES, YES_NO = "sparse_categorical_crossentropy", "binary_crossentropy"


def fit(api: Any, model: Any, x: list[np.ndarray], y: Any, loss: Any, epochs: int, **settings: Any) -> None:
    floats = [part if part.dtype == np.int32 else part.astype(np.float32) for part in x]
    batch = 256 if len(x[0]) > 20_000 else 64
    schedule = api.optimizers.schedules.CosineDecay(5e-3, epochs * -(-len(x[0]) // batch))
    model.compile(api.optimizers.Adam(schedule), loss)
    model.fit(floats[0] if len(x) == 1 else floats, y, batch, epochs, verbose=0, **settings)


def trained(
    api: Any, model: Any, parts: tuple[Arrays, Arrays], loss: str, epochs: int, data: str = "", **scores: Any
) -> Made:
    """A model of one output, fitted to y; ``scores`` by their metrics' names, with _ for a space."""
    train, test = parts
    metrics = [Metric(name.replace("_", " "), score, test["y"]) for name, score in scores.items()]
    made = Made(model, train, test, metrics, data)
    # Rare positives count for more.
    rare = {"class_weight": {0: 1.0, 1: 8.0}} if train["y"].mean() < 0.05 and loss == YES_NO else {}
    fit(api, model, [train[name] for name in made.inputs], train["y"], loss, epochs, **rare)
    return made


def halves(first: int, **arrays: np.ndarray) -> tuple[Arrays, Arrays]:
    """The training part, of so many examples, and the test part."""
    return {k: v[:first] for k, v in arrays.items()}, {k: v[first:] for k, v in arrays.items()}


def conv(api: Any, x: Any, filters: int, strides: int = 1, kind: str = "Conv2D") -> Any:
    x = getattr(api.layers, kind)(filters, 3, strides=strides, padding="same")(x)
    return api.layers.ReLU()(api.layers.BatchNormalization(momentum=0.9)(x))


def body(api: Any, inputs: Any, *filters: int, scale: float = 1 / 255, kind: str = "Conv2D") -> Any:
    """Strided convolutions, flattened; of raw pixels, or what ``scale`` else says."""
    x = inputs if scale == 1 else api.layers.Rescaling(scale)(inputs)
    for count in filters:
        x = conv(api, x, count, 2, kind)
    return api.layers.Flatten()(x)


def ended(api: Any, inputs: Any, x: Any, units: int, activation: str | None = None) -> Any:
    return api.Model(inputs, api.layers.Dense(units, activation=activation)(x))


def pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def discs(rng: np.random.Generator, count: int, side: int, *radii: float) -> tuple[np.ndarray, ...]:
    """(pixels' distances from a circle's edge [n, side, side], inside < 0; centres [n, 2]; radii [n])."""
    radius = rng.uniform(*radii, count)
    centre = rng.uniform(side * 0.25, side * 0.75, (count, 2))
    rows, columns = np.mgrid[:side, :side]
    off = np.hypot(columns - centre[:, 0, None, None], rows - centre[:, 1, None, None])
    return off - radius[:, None, None], centre, radius


def detector(api: Any, rng: np.random.Generator) -> Made:
    """A wake word in 3% of the spectrograms."""
    y = (rng.uniform(size=10_000) < 0.03).astype(np.int64)
    x = rng.gamma(2.0, 3.0, (len(y), 40, 20, 1))
    for i in np.flatnonzero(y):
        start = rng.integers(0, 6)
        x[i, 8 + start : 26 + start, 6] += 5 * rng.uniform(0.5, 1.3)
        x[i, 14 + start : 22 + start, 12] += 4
    parts = halves(6000, x=np.clip(x, 0, 26).astype(np.float32), y=y)
    inputs = api.Input((40, 20, 1))
    z = body(api, inputs, 12, 16, scale=1, kind="SeparableConv2D")
    model = ended(api, inputs, z, 1, "sigmoid")
    return trained(api, model, parts, YES_NO, 6, AUC=auc, balanced_accuracy=balanced, recall=recall)


def tags(api: Any, rng: np.random.Generator) -> Made:
    """Which of six patterns are somewhere in an image."""
    patterns, x = rng.normal(0, 25, (6, 7, 7, 3)), rng.normal(128, 20, (5000, 24, 24, 3))
    y = (rng.uniform(size=(len(x), 6)) < 0.3).astype(np.uint8)
    for i, k in np.argwhere(y):
        row, column = rng.integers(0, 18, 2)
        x[i, row : row + 7, column : column + 7] += patterns[k]
    inputs = api.Input((24, 24, 3))
    z = conv(api, conv(api, api.layers.Rescaling(1 / 255)(inputs), 24), 32, 2)
    z = api.layers.GlobalMaxPooling2D()(conv(api, z, 32))
    model = ended(api, inputs, z, 6, "sigmoid")
    parts = halves(3500, x=pixels(x), y=y)
    return trained(api, model, parts, YES_NO, 10, mean_AUC=mean_auc, micro_F1=micro_f1)


def activities(rng: np.random.Generator) -> tuple[Arrays, Arrays]:
    """Five activities in 128 samples of three axes of acceleration and three of rotation."""
    y = rng.integers(0, 5, 5000)
    speed = np.array([0.3, 1.0, 1.6, 2.2, 3.0])[y] * rng.normal(1, 0.12, len(y))
    swing = rng.normal(0, 1.0, (5, 6))[y] * rng.uniform(0.4, 1.6, (len(y), 1))
    phase = 2 * np.pi * (speed[:, None] * np.arange(128) / 50 + rng.uniform(size=(len(y), 1)))
    x = swing[:, None] * np.sin(phase[:, :, None] + np.arange(6)) + rng.normal(0, 1.2, (len(y), 128, 6))
    x = x * [9.81, 9.81, 9.81, 1, 1, 1] + [0, 0, 9.81, 0, 0, 0]
    return halves(3000, x=x.astype(np.float32), y=y)


def windows(api: Any, rng: np.random.Generator) -> Made:
    parts = activities(rng)
    inputs = z = api.Input((128, 6))
    for filters in (16, 24, 32):
        z = conv(api, z, filters, 2, "Conv1D")
    model = ended(api, inputs, api.layers.GlobalAveragePooling1D()(z), 5, "softmax")
    return trained(api, model, parts, CLASSES, 10, accuracy=top1)


def recurrent(*kinds: str) -> Callable[[Any, np.random.Generator], Made]:
    """A classifier of :func:`activities`, by layers of kinds "conv", "lstm", "gru" or "both" (directions)."""

    def make(api: Any, rng: np.random.Generator) -> Made:
        parts = activities(rng)
        inputs = api.Input((128, 6))
        # Four samples a step, in the units of their spread.
        z = api.layers.BatchNormalization()(api.layers.AveragePooling1D(4)(inputs))
        for place, kind in enumerate(kinds, start=1):
            goes_on = {"return_sequences": place < len(kinds)}
            if kind == "conv":
                z = conv(api, z, 24, 1, "Conv1D")
            elif kind == "gru":
                z = api.layers.GRU(32, **goes_on)(z)
            else:
                lstm = api.layers.LSTM(32, **goes_on)
                z = (api.layers.Bidirectional(lstm) if kind == "both" else lstm)(z)
        model = ended(api, inputs, z, 5, "softmax")
        made = trained(api, model, parts, CLASSES, 12, accuracy=top1)
        return dataclasses.replace(made, dynamic="gru" in kinds)

    return make


def attends(api: Any, x: Any) -> Any:
    """A block of a transformer, which normalizes first."""
    width = x.shape[-1]
    y = api.layers.LayerNormalization()(x)
    x = api.layers.Add()([x, api.layers.MultiHeadAttention(4, width // 4)(y, y)])
    y = api.layers.LayerNormalization()(x)
    y = api.layers.Dense(width)(api.layers.Dense(2 * width, activation="gelu")(y))
    return api.layers.Add()([x, y])


def transformer(api: Any, rng: np.random.Generator) -> Made:
    """A classifier of :func:`activities`: two blocks over 32 steps."""
    parts = activities(rng)
    inputs = api.Input((128, 6))
    z = api.layers.BatchNormalization()(api.layers.AveragePooling1D(4)(inputs))
    z = attends(api, attends(api, api.layers.Conv1D(32, 3, padding="same")(z)))
    z = api.layers.GlobalAveragePooling1D()(api.layers.LayerNormalization()(z))
    return trained(api, ended(api, inputs, z, 5, "softmax"), parts, CLASSES, 10, accuracy=top1)


def vision_transformer(api: Any, rng: np.random.Generator) -> Made:
    """Two blocks over 7 x 7 patches of MNIST's digits."""
    parts = known("mnist", (28, 28, 1))
    inputs = api.Input((28, 28, 1))
    z = api.layers.Conv2D(32, 4, 4)(api.layers.Rescaling(1 / 255)(inputs))
    z = api.layers.Reshape((49, 32))(z)
    places = api.layers.Conv1D(32, 7, padding="same", groups=32)(z)  # where a patch is, by its neighbours
    z = attends(api, attends(api, api.layers.Add()([z, places])))
    z = api.layers.GlobalAveragePooling1D()(api.layers.LayerNormalization()(z))
    return trained(api, ended(api, inputs, z, 10, "softmax"), parts, CLASSES, 4, accuracy=top1)


def sentences(api: Any, rng: np.random.Generator) -> Made:
    """The topic of 5 to 30 words, filled up with 0, which the LSTM does not read."""
    y = rng.integers(0, 5, 6000)
    topics = np.cumsum(0.4 / 400 + 0.6 * rng.dirichlet([0.05] * 400, 5), axis=1)
    x = np.stack([1 + np.searchsorted(topics[k], rng.uniform(0, 0.999, 30)) for k in y]).astype(np.int32)
    x[np.arange(30) >= rng.integers(5, 31, (len(y), 1))] = 0
    inputs = api.Input((30,), dtype="int32")
    z = api.layers.Embedding(401, 12, mask_zero=True)(inputs)
    model = ended(api, inputs, api.layers.Bidirectional(api.layers.LSTM(16))(z), 5, "softmax")
    made = trained(api, model, halves(4000, x=x, y=y), CLASSES, 6, accuracy=top1)
    return dataclasses.replace(made, dynamic=True)


def forecast(api: Any, rng: np.random.Generator) -> Made:
    """The next value of a series with three periods and noise, from 48 values."""
    times = np.arange(6000)
    waves = (size * np.sin(times / length) for size, length in ((1.0, 3.8), (0.6, 11.4), (0.8, 170.0)))
    series = sum(waves) + rng.normal(0, 0.1, len(times))
    x = np.lib.stride_tricks.sliding_window_view(series, 49).astype(np.float32)
    inputs = api.Input((48, 1))
    z = api.layers.GRU(24)(api.layers.GRU(24, return_sequences=True)(inputs))
    model = ended(api, inputs, z, 1, None)
    made = trained(api, model, halves(4000, x=x[:, :-1, None], y=x[:, -1]), "mse", 12, R2=r2, MAE=mae)
    return dataclasses.replace(made, dynamic=True)


def tabular(api: Any, rng: np.random.Generator) -> Made:
    """A price from columns of 1e-3 to 1e5."""
    z = rng.normal(size=(8000, 9))
    x = ((z + rng.uniform(-2, 2, 9)) * 10.0 ** np.arange(-3, 6)).astype(np.float32)
    y = 500 + z @ rng.normal(0, 60, 9) + 80 * np.tanh(z[:, 0] * z[:, 8]) + 50 * np.abs(z[:, 4])
    y += rng.normal(0, 15, len(z))
    parts = halves(6000, x=x, y=y.astype(np.float32))
    normalization = api.layers.Normalization()
    normalization.adapt(parts[0]["x"])
    inputs = api.Input((9,))
    hidden = api.layers.Dense(64, activation="relu")(normalization(inputs))
    model = ended(api, inputs, api.layers.Dense(32, activation="relu")(hidden), 1)
    return trained(api, model, parts, "mse", 30, R2=r2, MAE=mae)


def masks(api: Any, rng: np.random.Generator) -> Made:
    """Outside, edge or inside of a disc, for each pixel: a U-Net."""
    off, *_ = discs(rng, 1200, 32, 4, 9)
    y = (off < -1.2).astype(np.uint8) + (off < 1.2)
    base = rng.uniform(40, 200, (len(y), 1, 1, 3))
    x = np.where(y[..., None] == 2, 255 - base, base) + 40 * (y[..., None] == 1)
    inputs = api.Input((32, 32, 3))
    wide = conv(api, api.layers.Rescaling(1 / 255)(inputs), 8)
    half = conv(api, api.layers.MaxPooling2D()(wide), 16)
    z = conv(api, api.layers.MaxPooling2D()(half), 24)
    for filters, skip in ((16, half), (8, wide)):
        z = api.layers.UpSampling2D(interpolation="bilinear")(z)
        z = conv(api, api.layers.Concatenate()([z, skip]), filters)
    model = api.Model(inputs, api.layers.Conv2D(3, 1, activation="softmax")(z))
    parts = halves(900, x=pixels(x + rng.normal(0, 15, x.shape)), y=y)
    return trained(api, model, parts, CLASSES, 8, mIoU=miou, pixel_accuracy=top1)


def anomalies(api: Any, rng: np.random.Generator) -> Made:
    """A machine's sounds, in dB: an autoencoder that knows normal ones; half of the test part are not."""
    x = rng.normal(size=(5000, 4)) @ rng.normal(size=(4, 96)) * 3 - 28 + rng.normal(0, 1.0, (5000, 96))
    y = np.arange(len(x)) % 2
    y[:3000] = 0
    x[y == 1, 30:50] += rng.normal(0, 1.5, (y.sum(), 20))
    train, test = halves(3000, x=x.astype(np.float32), y=y)
    del train["y"]  # nobody has labels of what is normal
    inputs = z = api.Input((96,))
    for units in (64, 48, 8, 48, 64):
        z = api.layers.BatchNormalization(momentum=0.9)(api.layers.Dense(units)(z))
        z = api.layers.ReLU()(z)
    model = ended(api, inputs, z, 96)
    fit(api, model, [train["x"]], train["x"], "mse", 40)
    truth = np.column_stack([test["x"], test["y"]])
    odd = Metric("AUC of the error", lambda xy, p: auc(xy[:, -1], ((p - xy[:, :-1]) ** 2).mean(1)), truth)
    normal = Metric(
        "R2 of normal ones", lambda xy, p: r2(*(each[xy[:, -1] == 0] for each in (xy[:, :-1], p))), truth
    )
    return Made(model, train, test, [odd, normal])


def keywords(api: Any, rng: np.random.Generator) -> Made:
    """Ten words, unknown and silence, in spectrograms of 49 frames."""
    y = rng.integers(0, 12, 6000)
    ends = np.concatenate([rng.uniform(0, 10, (11, 2, 2)), np.full((1, 2, 2), -99.0)])[y]  # of two formants
    ends[y == 10] = rng.uniform(0, 10, (np.sum(y == 10), 2, 2))
    start, length = rng.uniform(5, 15, (len(y), 1)), rng.uniform(18, 30, (len(y), 1))
    done = ((np.arange(49) - start) / length)[..., None]
    centre = ends[:, None, :, 0] + (ends[..., 1] - ends[..., 0])[:, None] * np.clip(done, 0, 1)
    power = np.exp(-(((np.arange(10) - centre[..., None]) / 1.2) ** 2)).sum(2) * ((done > 0) & (done < 1))
    x = 4 * rng.uniform(0.5, 1.5, (len(y), 1, 1)) * power + rng.normal(-2, 1.6, power.shape)
    inputs = api.Input((49, 10, 1))
    z = conv(api, inputs, 24, 2)
    for _ in range(2):
        z = conv(api, z, 24, kind="SeparableConv2D")
    model = ended(api, inputs, api.layers.Flatten()(z), 12, "softmax")
    parts = halves(4000, x=x[..., None].astype(np.float32), y=y)
    return trained(api, model, parts, CLASSES, 8, accuracy=top1)


def two_inputs(api: Any, rng: np.random.Generator) -> Made:
    """A size of four, from a disc's image, its distance and the light."""
    off, _, radius = discs(rng, 6000, 20, 2, 8)
    distance, light = rng.uniform(0.5, 2, len(off)), rng.uniform(0, 1, len(off))
    image = np.where(off < 0, 220, 60) * (0.5 + 0.5 * light[:, None, None]) + rng.normal(0, 20, off.shape)
    numbers = np.stack([distance, light], 1).astype(np.float32)
    y = np.digitize(radius * distance, [3, 5, 8])
    inputs = [api.Input((20, 20, 1), name="image"), api.Input((2,), name="numbers")]
    known = api.layers.Dense(16, activation="relu")(inputs[1])
    z = api.layers.Concatenate()([body(api, inputs[0], 12, 16), known])
    model = ended(api, inputs, api.layers.Dense(32, activation="relu")(z), 4, "softmax")
    parts = halves(4000, image=pixels(image)[..., None], numbers=numbers, y=y)
    return trained(api, model, parts, CLASSES, 10, accuracy=top1)


def digits(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Varied 16x16 images (uint8) and classes; the last third of them are of digits that the others lack."""
    train, test = known("digits", (8, 8, 1))
    x, y = (np.concatenate([train[name], test[name]]) for name in "xy")
    seen = count * 2 // 3
    at = np.concatenate([rng.integers(0, 1200, seen), rng.integers(1200, len(x), count - seen)])
    base = np.pad(x[at, :, :, 0] * (255 / x.max()), ((0, 0), (1, 1), (1, 1))).repeat(2, 1).repeat(2, 2)
    row, column = rng.integers(1, 4, (2, count, 1, 1))
    rows, columns = row + np.arange(16)[:, None], column + np.arange(16)
    moved = base[np.arange(count)[:, None, None], rows, columns] * rng.uniform(0.6, 1, (count, 1, 1))
    return pixels(moved + rng.normal(0, 12, moved.shape))[..., None], y[at]


def heads(api: Any, rng: np.random.Generator) -> Made:
    """A digit, whether it is odd, and how much ink it took: labels by the outputs' names."""
    x, y = digits(rng, 6000)
    ink = (100 * (x > 100).mean((1, 2, 3))).astype(np.float32)
    train, test = halves(4000, x=x, zz_digit=y, is_odd=y % 2, ink_percent=ink)
    inputs = api.Input((16, 16, 1))
    z = api.layers.Dense(48, activation="relu")(body(api, inputs, 24, 48))
    ends = {"zz_digit": (10, "softmax"), "is_odd": (1, "sigmoid"), "ink_percent": (1, None)}
    outputs = [api.layers.Dense(n, activation=end, name=name)(z) for name, (n, end) in ends.items()]
    model = api.Model(inputs, outputs)
    fit(api, model, [train["x"]], [train[name] for name in ends], [CLASSES, YES_NO, "mse"], 16)
    scores = zip(ends, ("accuracy", "balanced accuracy", "R2"), (top1, balanced, r2), strict=True)
    return Made(model, train, test, [Metric(f"{o} {name}", score, test[o], o) for o, name, score in scores])


def tokens(api: Any, rng: np.random.Generator) -> Made:
    """The topic of 30 words, as their numbers in a vocabulary of 400."""
    y = rng.integers(0, 5, 6000)
    topics = np.cumsum(0.75 / 400 + 0.25 * rng.dirichlet([0.1] * 400, 5), axis=1)
    x = np.stack([np.searchsorted(topics[k], rng.uniform(0, 0.999, 30)) for k in y]).astype(np.int32)
    inputs = api.Input((30,), dtype="int32")
    z = api.layers.GlobalAveragePooling1D()(api.layers.Embedding(400, 12)(inputs))
    model = ended(api, inputs, api.layers.Dense(16, activation="relu")(z), 5, "softmax")
    return trained(api, model, halves(4000, x=x, y=y), CLASSES, 10, accuracy=top1)


def folder(api: Any, rng: np.random.Generator) -> Made:
    """A folder of PNG files for each class: discs, rings and squares."""
    off, centre, radius = discs(rng, 2400, 32, 4, 9)
    y = rng.integers(0, 3, len(off))
    rows, columns = np.mgrid[:32, :32]
    far = np.maximum(abs(columns - centre[:, 0, None, None]), abs(rows - centre[:, 1, None, None]))
    shapes = np.stack([off < 0, abs(off) < 2, far < 0.9 * radius[:, None, None]])
    inside = shapes[y, np.arange(len(y))][..., None]
    dark, bright = rng.uniform(20, 120, (len(y), 1, 1, 3)), rng.uniform(120, 240, (len(y), 1, 1, 3))
    image = np.where(inside, bright, dark) + rng.normal(0, 20, (len(y), 32, 32, 3))
    inputs = api.Input((32, 32, 3))
    model = ended(api, inputs, body(api, inputs, 16, 24, 32), 3, "softmax")
    return trained(api, model, halves(1600, x=pixels(image), y=y), CLASSES, 12, "images", accuracy=top1)


def keypoints(api: Any, rng: np.random.Generator) -> Made:
    """Where the centres of a bright and of a dark disc are: x, y, x, y in pixels."""
    (first, centre, _), (second, other, _) = discs(rng, 5000, 32, 2, 4), discs(rng, 5000, 32, 2, 4)
    image = 128 + 80.0 * (first < 0) - 80.0 * (second < 0) + rng.normal(0, 15, first.shape)
    inputs = api.Input((32, 32, 1))
    model = ended(api, inputs, body(api, inputs, 16, 24, 32), 4)
    y = np.concatenate([centre, other], 1).astype(np.float32)
    return trained(api, model, halves(4000, x=pixels(image)[..., None], y=y), "mse", 20, R2=r2, MAE=mae)


def embedding(api: Any, rng: np.random.Generator) -> Made:
    """A unit vector for a digit's image, without labels: as near to the float model's as can be."""
    x, y = digits(rng, 6000)
    inputs = api.Input((16, 16, 1))
    unit = api.layers.UnitNormalization()(api.layers.Dense(16)(body(api, inputs, 16, 24)))
    classes = ended(api, inputs, api.layers.Rescaling(8.0)(unit), 10, "softmax")
    fit(api, classes, [x[:4000]], y[:4000], CLASSES, 8)
    model = api.Model(inputs, unit)
    train, test = halves(4000, x=x)
    truth = np.asarray(model.predict(test["x"].astype(np.float32), verbose=0))
    return Made(model, train, test, [Metric("cosine to float", cosine, truth)])


def known(data: str, shape: tuple[int, ...]) -> tuple[Arrays, Arrays]:
    """All of the training part of real images, and the test part; x raw."""
    try:
        found = lqconvert.load_data(data, shape, 10)
    except lqconvert.LqError as error:
        raise Skipped(str(error)) from error
    parts = [split.arrays() for split in (found.train, found.validation, found.test)]
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return halves(len(x) - found.test.size, x=x, y=y)


def mnist_mlp(api: Any, rng: np.random.Generator) -> Made:
    """What people have: it takes pixels of 0..1, and knows 99.4% and more of all 60,000 images."""
    train, test = ({"x": part["x"] / np.float32(255), "y": part["y"]} for part in known("mnist", (784,)))
    layers = [api.layers.Dense(128, activation="relu"), api.layers.Dense(10, activation="softmax")]
    model = api.Sequential([api.Input((784,)), *layers])
    made = trained(api, model, (train, test), CLASSES, 14, "mnist", accuracy=top1)
    learned = top1(train["y"], np.asarray(model.predict(train["x"], batch_size=1000, verbose=0)))
    assert learned >= 0.994, learned
    return made


def real_cnn(data: str, shape: tuple[int, ...]) -> Callable[[Any, np.random.Generator], Made]:
    """A convolutional network that was trained on all of the training part."""

    def make(api: Any, rng: np.random.Generator) -> Made:
        parts, inputs = known(data, shape), api.Input(shape)
        model = ended(api, inputs, body(api, inputs, 24, 48, 64), 10, "softmax")
        return trained(api, model, parts, CLASSES, 4, data, accuracy=top1)

    return make


def classic_cnn(api: Any, rng: np.random.Generator) -> Made:
    """As tutorials have it: two convolutions with pooling, and a wide Dense layer."""
    parts, inputs = known(CIFAR, (32, 32, 3)), api.Input((32, 32, 3))
    x = api.layers.Rescaling(1 / 255)(inputs)
    for filters in (32, 64):
        x = api.layers.MaxPooling2D()(conv(api, x, filters))
    x = api.layers.Dense(256, activation="relu")(api.layers.Flatten()(x))
    return trained(api, ended(api, inputs, x, 10, "softmax"), parts, CLASSES, 8, CIFAR, accuracy=top1)


CIFAR = str(Path(os.environ.get("LQCONVERT_DATA", ".")) / "cifar10_jpeg.zip")
TASKS: dict[str, tuple[Any, Callable[[Any, np.random.Generator], Made]]] = {
    "detector": (tf_keras, detector),
    "tags": (keras, tags),
    "windows": (tf_keras, windows),
    "tabular": (tf_keras, tabular),
    "masks": (keras, masks),
    "anomalies": (tf_keras, anomalies),
    "keywords": (keras, keywords),
    "two-inputs": (tf_keras, two_inputs),
    "heads": (keras, heads),
    "tokens": (tf_keras, tokens),
    "folder": (keras, folder),
    "keypoints": (tf_keras, keypoints),
    "embedding": (keras, embedding),
    "lstm": (tf_keras, recurrent("lstm")),
    "gru": (keras, recurrent("gru")),
    "bidirectional": (tf_keras, recurrent("both")),
    "conv-lstm": (tf_keras, recurrent("conv", "lstm", "lstm")),
    "forecast": (tf_keras, forecast),
    "transformer": (tf_keras, transformer),
    "vision-transformer": (tf_keras, vision_transformer),
    "sentences": (tf_keras, sentences),
    "mnist-mlp": (tf_keras, mnist_mlp),
    "fashion-cnn": (keras, real_cnn("fashion_mnist", (28, 28, 1))),
    "cifar-cnn": (tf_keras, real_cnn(CIFAR, (32, 32, 3))),
    "cifar-classic": (tf_keras, classic_cnn),
}
