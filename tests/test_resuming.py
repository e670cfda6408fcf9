"""Interrupted runs: killed, terminated, without disk space or diverged, they lose no results."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from click.testing import CliRunner
from conftest import BRIEF, run_lengths, step_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tf_keras import layers

import lqconvert
from lqconvert import Budget, LqError, load_data, quantize, target
from lqconvert.cli.hints import with_hint
from lqconvert.cli.main import main
from lqconvert.training.budget import Steering
from lqconvert.training.checkpoint import Checkpoint, locked
from lqconvert.training.pacing import Pace

pytestmark = pytest.mark.slow
CYCLE = 10  # steps of each of six
#: The command line, with a checkpoint after every step, and time to be killed in.
EAGER = f"""
import time
import lqconvert.pipeline.settings as s
from lqconvert.cli.hints import with_hint
from lqconvert.cli.main import main
from lqconvert.training.trainer import Trainer
s.DEFAULTS = s.DEFAULTS.replaced(save_seconds=0, **{BRIEF})
run = Trainer.run
Trainer.run = lambda *arguments: (time.sleep(0.3), run(*arguments))[1]
main()
"""


@pytest.fixture(scope="module", autouse=True)
def short_runs():
    with run_lengths(**BRIEF):
        yield


def learned(output):
    """The bytes of all arrays of a run's codes, and of its file."""
    with np.load(output.with_suffix(".codes.npz")) as arrays:
        return {name: arrays[name].tobytes() for name in arrays.files}, output.read_bytes()


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A model of one layer, whose answer is the digit with the nearest mean, and its data."""
    x, y = load_data("digits", (8, 8, 1), 10).train.arrays()
    means = np.stack([x[y == digit].reshape(-1, 64).mean(axis=0) for digit in range(10)])
    dense = layers.Dense(10, "softmax")
    model = tf_keras.Sequential([layers.Input((8, 8, 1)), layers.Flatten(), dense])
    dense.set_weights([means.T / 16, -(means**2).sum(axis=1) / 32])
    path = tmp_path_factory.mktemp("job") / "means.h5"
    model.save(path)
    return path, "digits"


@pytest.fixture(scope="module")
def undisturbed(job, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "m.tflite"
    quantize(*job, output)
    assert [
        path.name for path in output.parent.iterdir() if "resume" in path.name or "lock" in path.name
    ] == []
    return learned(output)


class Died(Exception):
    pass


def dies_at(look):
    looks = []

    def progress(at):
        looks.append(at)
        if len(looks) == look:
            raise Died

    return progress


def test_a_run_to_a_size_goes_back_to_the_same_weights(job, tmp_path, monkeypatch):
    """These runs continue from the first cycle's weights, as if only these were above the size."""
    monkeypatch.setattr(Steering, "exceeds", lambda self, point: point.step == 10)
    monkeypatch.setattr(Steering, "NEAR", 2.0)
    once, again = tmp_path / "a" / "m.tflite", tmp_path / "b" / "m.tflite"
    settings = {"epochs": 7, "budget": Budget(max_size=30_000)}
    report = quantize(*job, once, **settings)
    with pytest.raises(Died):
        quantize(*job, again, **settings, progress=dies_at(6))
    resumed = quantize(*job, again, **settings, resume=True)
    assert resumed.curve == report.curve
    assert learned(again) == learned(once)


def test_a_run_against_time_goes_on_with_its_cycles(job, tmp_path):
    output, settings = tmp_path / "m.tflite", {"epochs": 1000, "max_minutes": 1000}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pace, "stepped", lambda self, *_: self.go_on(20))  # as if no more had fitted
        with pytest.raises(Died):
            quantize(*job, output, **settings, progress=dies_at(4))
    report = quantize(*job, output, **settings, resume=True)
    assert [point.step for point in report.curve] == [0, 0, 20, 40, 60, 80, 100, 120]


def test_terminated_and_then_killed_between_two_looks(job, undisturbed, tmp_path):
    output = tmp_path / "m.tflite"
    arguments = ["quantize", str(job[0]), "--data", job[1], "-o", str(output), "--resume"]
    checkpoint, before = output.with_suffix(".resume.npz"), 0
    for how in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(
            [sys.executable, "-c", EAGER, *arguments], stderr=subprocess.PIPE, text=True
        )
        while not (checkpoint.exists() and (step := step_of(checkpoint)) % CYCLE and step > before):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(how)
        _, errors = process.communicate()
        if how == signal.SIGTERM:
            assert process.returncode == 128 + signal.SIGTERM
            assert "quantize --resume continues from the checkpoint" in errors
            assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]
        before = step_of(checkpoint)
        assert not output.exists()
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert f"continuing from step {before:,}" in result.stderr
    assert learned(output) == undisturbed
    assert not checkpoint.exists()


@pytest.fixture(scope="module")
def left(job, tmp_path_factory):
    """The checkpoint of a run that died at its first evaluation after the first step."""
    output = tmp_path_factory.mktemp("left") / "m.tflite"
    with pytest.raises(Died):
        quantize(*job, output, progress=dies_at(4))
    return output.with_suffix(".resume.npz")


def test_a_run_that_died_ends_as_if_it_had_not(job, left, undisturbed, tmp_path, said):
    shutil.copy(left, tmp_path)
    quantize(*job, tmp_path / "m.tflite", resume=True)
    assert f"continuing from step {CYCLE}" in said
    assert learned(tmp_path / "m.tflite") == undisturbed


def test_another_run_is_not_gone_on_from(job, left, tmp_path):
    """All that differs is named, and nothing else."""
    shutil.copy(left, tmp_path)
    changes = {"granularity": "row-wise", "epochs": 2, "targets": [target("litert", strip_all=True)]}
    with pytest.raises(LqError) as refusal:
        quantize(*job, tmp_path / "m.tflite", resume=True, **changes)
    differ = (
        "granularity=mixed (now row-wise), epochs=7 (now 2), steps=60 (now 18), strip_all=False (now True)"
    )
    assert str(refusal.value).endswith(f": {differ}")


def test_nor_one_with_another_seed(job, left, tmp_path):
    shutil.copy(left, tmp_path)
    with pytest.raises(LqError, match=re.escape(": seed=0 (now 1), data=")):
        quantize(*job, tmp_path / "m.tflite", resume=True, seed=1)


def test_nor_one_on_other_data_of_the_same_sizes(job, left, tmp_path):
    shutil.copy(left, tmp_path)
    with np.load(Path(lqconvert.__file__).with_name("data") / "digits.npz") as arrays:
        np.savez(tmp_path / "data.npz", x=arrays["x"][::-1], y=arrays["y"][::-1])
    with pytest.raises(LqError, match=r": data=1,079 train.* \(now 1,079 train"):
        quantize(job[0], str(tmp_path / "data.npz"), tmp_path / "m.tflite", resume=True)


@pytest.mark.parametrize("damage", ["cut", "other arrays", "a pickle"])
def test_a_damaged_checkpoint_is_refused(damage, left, tmp_path):
    path = tmp_path / "m.resume.npz"
    if damage == "cut":
        path.write_bytes(left.read_bytes()[:-500])
    elif damage == "other arrays":
        np.savez(path, x=np.zeros(3))
    else:
        np.savez(path, state=np.array([{"step": 1}], object))
    with pytest.raises(LqError, match=r"m\.resume\.npz") as refusal:
        Checkpoint.load(path, {})
    assert with_hint("", refusal.value.hint) == "; leave out --resume"


def test_one_run_at_a_time(job, tmp_path):
    output = tmp_path / "m.tflite"
    with locked(output), pytest.raises(LqError, match="another run is writing it"):
        quantize(*job, output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [MemoryError("of 9 GB"), tf.errors.ResourceExhaustedError(None, None, "OOM: of 9 GB\nmore")]
)
def test_out_of_memory_is_told_in_a_line(error, job, left, tmp_path, monkeypatch):
    def refused(*_):
        raise error

    output = tmp_path / "m.tflite"
    shutil.copy(left, output.with_suffix(".resume.npz"))
    monkeypatch.setattr("lqconvert.training.trainer.Trainer.run", refused)
    arguments = ["quantize", str(job[0]), "--data", job[1], "-o", str(output), "--resume"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: out of memory (")
    assert "of 9 GB); give it more and --resume, or a smaller --batch-size" in last
    assert [path.name for path in tmp_path.iterdir()] == ["m.resume.npz"]


def test_a_full_disk_leaves_the_checkpoint_before(job, left, tmp_path):
    """A limited file size replaces a full disk: the operating system fails in the same place."""
    path = tmp_path / left.name
    shutil.copy(left, path)
    before, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))  # noqa: E731
    try:
        with pytest.raises(LqError, match=r"m\.resume\.npz: cannot be written \(File too large\)"):
            quantize(*job, tmp_path / "m.tflite", resume=True, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_data_that_disappear_are_named(job, tmp_path, monkeypatch):
    monkeypatch.setattr("lqconvert.data.sources.CACHED_BYTES", 0)
    data = tmp_path / "images"
    rng = np.random.default_rng(0)
    for number in range(60):
        path = data / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(rng.integers(0, 256, (8, 8, 1), np.uint8)).numpy())
    arguments = ["quantize", str(job[0]), "--data", str(data), "-o", str(tmp_path / "m.tflite")]
    arguments += ["--preprocess", "none"]
    gone = lambda _: shutil.rmtree(data, ignore_errors=True)  # noqa: E731
    monkeypatch.setattr("lqconvert.training.loggers.JsonLines.progress", lambda self, at: gone(at))
    result = CliRunner().invoke(main, [*arguments, "--log", str(tmp_path / "log")])
    assert result.exit_code == 1
    assert re.search(r"images: \d+/\d+\.png is not a readable image", " ".join(result.stderr.split()))
    assert not (tmp_path / "m.tflite").exists()


@pytest.mark.parametrize(("rate", "ends"), [(30.0, True), (1e6, False)])
def test_what_diverges_is_rolled_back_and_slowed_down(rate, ends, job, tmp_path, said):
    output = tmp_path / "m.tflite"
    if ends:
        report = quantize(*job, output, learning_rate=rate)
        assert report.int8.score > report.float_.score - 0.02
    else:
        with pytest.raises(LqError, match="diverges even at low learning rates"):
            quantize(*job, output, learning_rate=rate)
    back = re.compile(r"step \d+: .*; back to step 0, with a third")
    rolled_back = [line for line in said if back.match(line)]
    assert len(rolled_back) >= (1 if ends else 5)


def test_logs(job, tmp_path):
    output, log, folder = (tmp_path / name for name in ("m.tflite", "logs/run.jsonl", "summaries"))
    options = ["--scheme", "lsq", "--log", str(log), "--tensorboard", str(folder)]
    arguments = ["quantize", str(job[0]), "--data", job[1], "-o", str(output), *options]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    entries = [json.loads(line, parse_constant=pytest.fail) for line in log.read_text().splitlines()]
    looks = [entry for entry in entries if "step" in entry]
    curve = json.loads(output.with_suffix(".report.json").read_text())["curve"]
    assert [{name: entry[name] for name in curve[0]} for entry in looks] == curve
    assert [entry["training_loss"] is None for entry in looks] == [True] + [False] * (len(looks) - 1)
    assert any("preprocessing" in entry.get("message", "") for entry in entries)
    (events,) = folder.iterdir()
    steps = [
        event.step
        for event in tf.compat.v1.train.summary_iterator(os.fspath(events))
        if any(value.tag == "score" for value in event.summary.value)
    ]
    assert steps == [entry["step"] for entry in looks]


@pytest.mark.parametrize("before", [None, "a line of an earlier run\n"])
def test_a_refused_run_leaves_the_log_as_it_was(before, job, tmp_path):
    log = tmp_path / "run.jsonl"
    if before is not None:
        log.write_text(before)
    arguments = [str(job[0]), "--data", str(tmp_path / "no.npz"), "-o", str(tmp_path / "m.tflite")]
    result = CliRunner().invoke(main, ["quantize", *arguments, "--log", str(log)])
    assert result.exit_code == 1
    assert "no.npz" in result.stderr
    assert (log.read_text() if log.exists() else None) == before


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 300), st.integers(0, 2**31), st.integers(0, 20))
def test_a_stream_can_begin_anywhere(batch_size, seed, start):
    train = load_data("digits", (8, 8, 1), 10).train
    whole = [index.numpy() for *_, index, _, _ in train.stream(batch_size, seed=seed).take(start + 3)]
    rest = [index.numpy() for *_, index, _, _ in train.stream(batch_size, seed=seed, start=start).take(3)]
    assert all(np.array_equal(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_every_pass_of_a_stream_sees_every_example_once_in_another_order():
    train = load_data("digits", (8, 8, 1), 10).train
    batches = train.stream(100, seed=7).take(3 * -(-train.size // 100))
    index = np.concatenate([index.numpy() for *_, index, _, _ in batches])
    passes = index.reshape(3, train.size)
    assert all(np.array_equal(np.sort(each), np.arange(train.size)) for each in passes)
    assert np.abs(np.corrcoef([np.arange(train.size), *passes]) - np.eye(4)).max() < 0.15
