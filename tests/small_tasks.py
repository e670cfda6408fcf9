"""Models of single layers whose weights fit made-up data: one for each task, without training."""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras
from click.testing import CliRunner, Result
from tf_keras import layers

import lqconvert
from lqconvert.cli.main import main

N = 800


def _with_weights(model: tf_keras.Model, **weights: list) -> tf_keras.Model:
    for name, values in weights.items():
        layer = model.get_layer(name)
        layer.set_weights([np.reshape(v, w.shape) for v, w in zip(values, layer.get_weights(), strict=True)])
    return model


def regression(rng):
    """A number in years: a weighted sum of six columns."""
    x = rng.normal(size=(N, 6)).astype(np.float32)
    y = (40 + x @ np.array([9, -4, 3, 1, 0.5, 2]) + rng.normal(size=N)).astype(np.float32)
    model = tf_keras.Sequential([layers.Input((6,)), layers.Dense(1, name="age")])
    return _with_weights(model, age=[[9, -4, 3, 1, 0.5, 2], [40]]), {"x": x, "y": y}


def detector(rng):
    """One example in twenty is positive, which two columns show."""
    y = (rng.uniform(size=2 * N) < 0.05).astype(np.int64)
    x = (rng.normal(size=(2 * N, 6)) + np.outer(y, [2, 1.5, 0, 0, 0, 0])).astype(np.float32)
    model = tf_keras.Sequential([layers.Input((6,)), layers.Dense(1, "sigmoid", name="alarm")])
    return _with_weights(model, alarm=[[2, 1.5, 0, 0, 0, 0], [-3]]), {"x": x, "y": y}


def segmentation(rng):
    """The class at each of 6 x 6 positions is the brightest of three channels, almost always."""
    x = rng.uniform(size=(N // 4, 6, 6, 3)).astype(np.float32)
    y = (x + 0.1 * rng.normal(size=x.shape)).argmax(axis=-1)
    model = tf_keras.Sequential([layers.Input((6, 6, 3)), layers.Conv2D(3, 1, name="map"), layers.Softmax()])
    return _with_weights(model, map=[8 * np.eye(3), np.zeros(3)]), {"x": x, "y": y}


def two_outputs(rng):
    """A class and a number, of the same columns."""
    x = rng.normal(size=(N, 6)).astype(np.float32)
    y_kind = (x[:, :3] + 0.3 * rng.normal(size=(N, 3))).argmax(axis=1)
    age = (40 + 9 * x[:, 3] + rng.normal(size=N)).astype(np.float32)
    inputs = tf_keras.Input((6,))
    kind = layers.Dense(3, "softmax", name="kind")(inputs)
    model = tf_keras.Model(inputs, [kind, layers.Dense(1, name="age")(inputs)])
    weights = {"kind": [6 * np.eye(6)[:, :3], np.zeros(3)], "age": [9 * np.eye(6)[:, 3], [40]]}
    return _with_weights(model, **weights), {"x": x, "y_kind": y_kind, "age": age}


def multi_label(rng):
    """Each of three tags has a column that shows it, almost always."""
    x = rng.normal(size=(N, 6)).astype(np.float32)
    y = (x[:, :3] + 0.3 * rng.normal(size=(N, 3)) > 0.5).astype(np.int64)
    model = tf_keras.Sequential([layers.Input((6,)), layers.Dense(3, "sigmoid", name="tags")])
    return _with_weights(model, tags=[6 * np.eye(6)[:, :3], [-3, -3, -3]]), {"x": x, "y": y}


def reconstruction(rng):
    """Six columns that three numbers make, but for one example in ten: these are the anomalies."""
    basis = np.linalg.qr(rng.normal(size=(6, 3)))[0]
    y = (rng.uniform(size=N) < 0.1).astype(np.int64)
    x = rng.normal(size=(N, 3)) @ basis.T + (0.05 + y)[:, np.newaxis] * rng.normal(size=(N, 6))
    model = tf_keras.Sequential(
        [layers.Input((6,)), layers.Dense(3, name="code"), layers.Dense(6, name="again")]
    )
    weights = {"code": [basis, np.zeros(3)], "again": [basis.T, np.zeros(6)]}
    return _with_weights(model, **weights), {"x": x.astype(np.float32), "y": y}


def embedding(rng):
    """Six columns as a direction in four dimensions, without labels."""
    model = tf_keras.Sequential(
        [layers.Input((6,)), layers.Dense(4, name="direction"), layers.UnitNormalization()]
    )
    weights = {"direction": [rng.normal(size=(6, 4)), np.zeros(4)]}
    return _with_weights(model, **weights), {"x": rng.normal(size=(N, 6)).astype(np.float32)}


TASKS = {
    each.__name__: each
    for each in (regression, detector, multi_label, segmentation, reconstruction, embedding, two_outputs)
}


def made(name: str, folder: Path) -> tuple[Path, Path]:
    """The model (.h5) and the data (.npz) of a task."""
    model, arrays = TASKS[name](np.random.default_rng(0))
    paths = folder / f"{name}.h5", folder / f"{name}.npz"
    model.save(paths[0])
    np.savez(paths[1], **arrays)
    return paths


def int8(name: str, folder: Path) -> tuple[Path, Path, Path]:
    """The model, the data, and the model as a plain int8 .tflite, not trained."""
    model, data = made(name, folder)
    loaded = lqconvert.load_model(model)
    quantized = lqconvert.rewrite(loaded)
    with np.load(data) as arrays:
        batch = arrays["x"][:256]
    lqconvert.calibrate(quantized, [batch])
    (folder / f"{name}.tflite").write_bytes(lqconvert.export(quantized).tflite)
    return model, data, folder / f"{name}.tflite"


def of_tf_lite(model: Path, data: Path, path: Path) -> Path:
    """The float model as tf.lite's int8, calibrated on some of the data."""
    converter = tf.lite.TFLiteConverter.from_keras_model(lqconvert.load_model(model))
    with np.load(data) as arrays:
        rows = arrays["x"][:256]
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([row[np.newaxis]] for row in rows)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    path.write_bytes(converter.convert())
    return path


def quantized(folder: Path, epochs: int, model, data, *options) -> tuple[Result, dict | None]:
    """Runs the command. Returns its result, and its report if it made one."""
    output = folder / "out.tflite"
    arguments = ["quantize", model, "--data", data, "-o", output, "--epochs", epochs, *options]
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    report = output.with_suffix(".report.json")
    return result, json.loads(report.read_text()) if report.exists() else None
