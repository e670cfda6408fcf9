"""Several devices and processes that share batches learn what one device learns."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tf_keras
from click.testing import CliRunner
from conftest import step_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tf_keras import layers

from lqconvert import LqError, load_data
from lqconvert.cli.main import main
from lqconvert.training.distribution import Distribution

pytestmark = pytest.mark.slow

#: In another module, so that it can run in processes with different devices.
DEVICES = """
import json, sys
import numpy as np, tensorflow as tf, tf_keras
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from lqconvert import Budget, Rate, calibrate, load_data, load_model, rewrite
from lqconvert.training.augmentation import Augmentation
from lqconvert.training.distribution import Distribution
from lqconvert.training.finetune import FinetuneSettings, finetune
from lqconvert.quantization.fold_batchnorm import fold
from lqconvert.data.preprocessing import PREPROCESSINGS
from lqconvert.training.trainer import Trainer, values

def prepared():
    tf_keras.utils.set_random_seed(0)
    model, data = load_model(sys.argv[1]), load_data("digits", (8, 8, 1), 10)
    quantized = rewrite(model, Rate(), granularity="mixed")
    calibrate(quantized, [data.train.arrays(256)[0].astype(np.float32)])
    return quantized, fold(model), data, PREPROCESSINGS["none"]

def learned(distribution, **settings):
    quantized, *job = prepared()
    settings |= {"batch_size": 99, "learning_rate": 1e-3, "distribution": distribution}
    trainer = Trainer.of(quantized, *job, **settings)
    loss = trainer.run(20, 1.0)
    trainer.copy_to(quantized)
    return [loss, *values(quantized.variables)]

two = Distribution(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
varied = {"augmentation": Augmentation(mirror=True, shift=1 / 8, blend=True)}
for settings in ({}, {"cached_bytes": 0, **varied}):
    pairs = zip(learned(None, **settings), learned(two, **settings), strict=True)
    print(max(float(np.abs(np.float32(a) - np.float32(b)).max()) for a, b in pairs))

class Saved(Exception):
    pass

def begins(distribution):
    def save(checkpoint):
        begun.extend(checkpoint.variables)
        raise Saved

    begun, (quantized, *job) = [], prepared()
    try:
        settings = FinetuneSettings(500, 128, 2e-4, 0, 60, budget=Budget(max_drop=0.0))
        calls = {"file_size": lambda codes: 1, "save": save}
        finetune(quantized, *job, settings, distribution=distribution, **calls)
    except Saved:
        return begun

print(all(map(np.array_equal, begins(None), begins(two))))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small classifier of the digits, hardly trained."""
    tf_keras.utils.set_random_seed(0)
    convolution = layers.Conv2D(4, 3, strides=2, activation="relu")
    model = tf_keras.Sequential([layers.Input((8, 8, 1)), convolution, layers.Flatten(), layers.Dense(10)])
    x, y = load_data("digits", (8, 8, 1), 10).train.arrays()
    model.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x.astype(np.float32), y, epochs=10, verbose=0)
    path = tmp_path_factory.mktemp("model") / "model.h5"
    model.save(path)
    return path


def test_two_devices_learn_what_one_does(model):
    """Equal except for float32's rounding, in 20 steps over two passes. Halves of batches differ in size."""
    command = [sys.executable, "-c", DEVICES, str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    *apart, begin_alike = done.stdout.split()
    apart = [float(line) for line in apart]
    assert len(apart) == 2
    assert begin_alike == "True"
    assert max(apart) < 1e-4  # of weights that learn 1e-3 a step; at most 1e-5 was seen, with one thread
    assert max(apart) > 0  # they did sum in another order


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 300), st.integers(1, 7), st.integers(0, 9))
def test_the_parts_of_a_batch_are_the_batch(batch_size, parts, start):
    train = load_data("digits", (8, 8, 1), 10).train
    whole = train.stream(batch_size, seed=3, start=start).take(4)
    dealt = iter(train.stream(batch_size, seed=3, start=start, parts=parts, given=range(parts)))
    for step, _, size, index, x, _ in whole:
        together = [next(dealt) for _ in range(parts)]
        assert {int(each[0]) for each in together} == {int(step)}
        assert [int(each[1]) for each in together] == list(range(parts))
        assert {int(each[2]) for each in together} == {int(size)} == {len(index)}
        for part, (*_, part_index, part_x, _) in enumerate(together):
            assert np.array_equal(part_index, index[part::parts])
            assert np.array_equal(part_x, x[part::parts])


class Workers:
    """Two processes on loopback, started with the same command line."""

    def __init__(self, *arguments, setup="", others=()):
        sockets = [socket.socket() for _ in range(2)]
        for each in sockets:
            each.bind(("localhost", 0))
        workers = [f"localhost:{each.getsockname()[1]}" for each in sockets]
        for each in sockets:
            each.close()
        code = f"import lqconvert.pipeline.settings as s\n{setup}\n"
        code += "from lqconvert.cli.main import main; main()"
        self.processes = []
        for index, added in enumerate(((), others)):
            config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
            command = [sys.executable, "-c", code, "quantize", *map(str, arguments), *added]
            process = subprocess.Popen(
                [*command, "--distribute", "multi-worker"],
                env=os.environ | {"TF_CONFIG": json.dumps(config)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            self.processes.append(process)

    def ended(self):
        """For each process: its stdout, its stderr and its exit code."""
        try:
            said = [process.communicate(timeout=300) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(*each, process.returncode) for each, process in zip(said, self.processes, strict=True)]


def codes(output):
    with np.load(output.with_suffix(".codes.npz")) as arrays:
        return np.concatenate([arrays[name].ravel() for name in arrays.files if name.endswith("/codes")])


@pytest.fixture(scope="module")
def job(model):
    return model, "--data", "digits", "--epochs", "1", "--penalty", "0.5"


#: A checkpoint after every step, and half a second in front of each: time to be killed in.
SLOW = """
import time
from lqconvert.training.trainer import Trainer
s.DEFAULTS = s.DEFAULTS.replaced(save_seconds=0)
run = Trainer.run
Trainer.run = lambda *arguments: (time.sleep(0.5), run(*arguments))[1]
"""


@pytest.fixture(scope="module")
def continued(job, tmp_path_factory):
    """The file of two workers, one of which died; what both wrote when they were started again."""
    output = tmp_path_factory.mktemp("two") / "m.tflite"
    workers = Workers(*job, "-o", output, setup=SLOW)
    checkpoint = output.with_suffix(".resume.npz")
    while not (checkpoint.exists() and step_of(checkpoint)):
        assert [process.poll() for process in workers.processes] == [None, None]
        time.sleep(0.02)
    workers.processes[1].send_signal(signal.SIGKILL)
    chief, _ = workers.ended()
    assert chief[2] == 1
    assert "error: another worker was lost; start all of them again, with --resume" in chief[1]
    assert not output.exists()
    return output, *Workers(*job, "-o", output, "--resume").ended()


def test_workers_go_on_from_the_checkpoint(continued):
    output, chief, other = continued
    assert (chief[2], other[2]) == (0, 0), (chief[1], other[1])
    assert "each batch is split over 2 x CPU in 2 processes" in chief[1]
    assert "continuing from step" in chief[1]  # the checkpoint is sent in several pieces
    assert "test accuracy" in chief[0]
    assert other[0] == ""  # only the chief prints
    assert "each batch" not in other[1]
    assert not output.with_suffix(".resume.npz").exists()


def test_two_workers_learn_the_codes_of_one(job, continued, tmp_path):
    """After 9 steps, whatever died on the way. Another seed changes 17% of the codes."""
    (two, *_), one = continued, tmp_path / "m.tflite"
    result = CliRunner().invoke(main, ["quantize", *map(str, job), "-o", str(one)])
    assert result.exit_code == 0, result.output
    assert {path.name for path in two.parent.iterdir()} == {path.name for path in one.parent.iterdir()}
    apart = np.abs(codes(one).astype(int) - codes(two))
    assert np.mean(apart > 0) <= 0.05
    assert np.mean(apart > 1) <= 0.005


def test_workers_that_are_to_make_different_files_are_told(job, tmp_path):
    output = tmp_path / "m.tflite"
    chief, other = Workers(*job, "-o", output, others=("--seed", "1")).ended()
    assert (chief[2], other[2]) == (1, 1)
    assert "error: worker 1 was given other settings than the chief: seed is 1, not 0" in other[1]
    assert "another worker was lost" in chief[1]
    assert not output.exists()


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (None, "the environment variable TF_CONFIG, which lists the workers, is not set"),
        ("{", "TF_CONFIG has another"),
        ("[]", "TF_CONFIG has another"),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
            "TF_CONFIG has another",
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
            "TF_CONFIG has another",
        ),
    ],
)
def test_workers_that_nobody_listed(config, what, job, tmp_path, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    arguments = ["quantize", *map(str, job), "-o", str(tmp_path / "m.tflite"), "--distribute", "multi-worker"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert f"error: multi-worker: {what}" in result.stderr
    with pytest.raises(LqError, match="multi-worker"):
        Distribution.of("multi-worker")


def test_one_device_is_no_distribution(model, tmp_path):
    """Which is said first; test_docs.py has a whole run."""
    assert Distribution.of("mirrored") == Distribution()
    job = model, "--data", tmp_path / "no.npz", "--distribute", "mirrored"
    result = CliRunner().invoke(main, ["quantize", *map(str, job)])
    assert result.exit_code == 1
    first, last = result.stderr.splitlines()
    assert first.startswith("--distribute mirrored: there is only one device")
    assert "no.npz" in last
