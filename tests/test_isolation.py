"""Files from strangers run in their own processes, which end whatever the files do."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import small_tasks
from click.testing import CliRunner
from fuzzing import shared_vector

from lqconvert import LqError, evaluate, explain, inspect
from lqconvert.analysis.check import check
from lqconvert.cli.main import main
from lqconvert.data.preprocessing import PREPROCESSINGS
from lqconvert.errors import CannotRun
from lqconvert.exporting.codes import Codes, Int8File, LayerCodes, TensorCodes
from lqconvert.runtime.litert import KERNELS, Runner, isolated
from lqconvert.tflite.flatbuffer import VECTOR_READS, read
from lqconvert.utils.worker import started

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and PR_SET_PDEATHSIG")


def looping(threshold: str) -> bytes:
    """A float classifier of 8x8 images with a WHILE that ends where their sum is not over 0 (">", ">=")."""
    import tensorflow as tf

    weights = tf.ones((64, 10))
    goes_on = {">": lambda v: v > 0.0, ">=": lambda v: v >= 0.0}[threshold]

    @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 1), tf.float32)])
    def classify(x):
        total = tf.reduce_sum(tf.abs(x))
        total = tf.while_loop(goes_on, lambda v: [tf.maximum(v, 1.0)], [total])[0]
        return tf.matmul(tf.reshape(x, (1, 64)), weights) + total

    return tf.lite.TFLiteConverter.from_concrete_functions([classify.get_concrete_function()]).convert()


def hungry() -> bytes:
    """One that fills as many values as its input says: none on zeros, 8 GB on pixels."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 1), tf.float32)])
    def classify(x):
        count = tf.cast(tf.minimum(tf.reduce_sum(tf.abs(x)) * 1e9, 2e9), tf.int32)
        return tf.reshape(x, (1, 64))[:, :10] + tf.reduce_max(tf.fill([count + 1], 0.0))

    return tf.lite.TFLiteConverter.from_concrete_functions([classify.get_concrete_function()]).convert()


def test_one_process_answers_for_all_batches(monkeypatch, tmp_path):
    """One to open the file, one for each candidate of the preprocessing, one for the test data."""
    processes = []

    def counted(*arguments, **pipes):
        processes.append(arguments)
        return started(*arguments, **pipes)

    _, data, file = small_tasks.int8("detector", tmp_path)
    monkeypatch.setattr("lqconvert.runtime.litert.started", counted)
    evaluate(file, str(data))
    assert len(processes) == 2 + len(PREPROCESSINGS)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A folder of files that end on zeros alone, that never end, and that take all memory."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, tflite in {"loop": looping(">"), "endless": looping(">="), "hungry": hungry()}.items():
        (folder / f"{name}.tflite").write_bytes(tflite)
    return folder


@pytest.mark.parametrize("name", ["loop", "hungry"])
@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "FILE", "--data", "digits"],
        ["check", "FILE", "--data", "digits", "--min-accuracy", "0.1"],
        ["compare", "FILE", "FILE", "--data", "digits"],
    ],
)
def test_a_file_that_misbehaves_on_real_inputs_ends_in_one_line(name, command, hostile):
    file = str(hostile / f"{name}.tflite")
    start = time.monotonic()
    result = CliRunner().invoke(main, [file if part == "FILE" else part for part in command])
    assert time.monotonic() - start < 20
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"error: {file}: LiteRT cannot run the file: ")


def test_codes_whose_file_never_ends_are_refused(hostile, tmp_path):
    kernel = TensorCodes(np.ones((4, 3), np.int32), np.ones((1, 1), np.float32))
    codes = Codes({"dense": LayerCodes("dense", "Dense", kernel, np.zeros(3, np.float32))})
    codes.save(tmp_path / "m.codes.npz", Int8File((hostile / "loop.tflite").read_bytes(), ["dense"], (1, 0)))
    result = CliRunner().invoke(main, ["export", str(tmp_path / "m.codes.npz")])
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1


def workers_of(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in children if b"lqconvert." in Path(f"/proc/{child}/cmdline").read_bytes()]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds: float):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} seconds")


@linux
def test_a_worker_ends_with_its_parent(hostile):
    check = "from lqconvert.runtime.litert import check_loads; check_loads(open(sys.argv[1], 'rb').read())"
    command = [sys.executable, "-c", f"import sys; {check}", str(hostile / "endless.tflite")]
    parent = subprocess.Popen(command)
    try:
        (worker,) = wait_for(lambda: workers_of(parent.pid), 60)
        # Once it has said whom it belongs to: Python takes a moment to start.
        wait_for(lambda: "litert" in Path(f"/proc/{worker}/maps").read_text(), 60)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not alive(worker), 5)


@linux
def test_no_worker_is_left_after_an_error(hostile):
    with isolated((hostile / "loop.tflite").read_bytes()) as file:
        (worker,) = workers_of(os.getpid())
        with pytest.raises(CannotRun, match="too long"):
            file.invoke(np.ones((1, 8, 8, 1), np.float32))
    assert not alive(worker)


def test_isolated_files_give_what_others_give(int8):
    tflite = int8.read_bytes()
    images = np.random.default_rng(0).integers(-128, 128, (7, 8, 8, 1)).astype(np.int8)
    with isolated(tflite, tuple(KERNELS)) as file:
        outputs = file.invoke_all(images)
        assert file.input_shapes == Runner(tflite).input_shapes
        assert file.quantizations == Runner(tflite).quantizations
    for kernels in KERNELS:
        np.testing.assert_array_equal(outputs[kernels], Runner(tflite, kernels).invoke(images))


@pytest.mark.parametrize("kind", ["operators", "shapes", "scales", "names"])
def test_a_vector_is_not_read_more_often_than_its_file_has_room_for(kind):
    read(shared_vector(VECTOR_READS, 100, kind))  # a few readers are common
    start = time.monotonic()
    with pytest.raises(LqError, match="than fit in it"):
        read(shared_vector(100_000, 200_000, kind))
    assert time.monotonic() - start < 5


def test_threads_get_what_one_thread_gets(int8, tmp_path):
    good, damaged = int8.read_bytes(), bytearray(int8.read_bytes())
    rng = np.random.default_rng(0)
    for number in range(6):
        at = int(rng.integers(8, 400))
        damaged[at : at + 4] = rng.bytes(4)
        (tmp_path / f"{number}.tflite").write_bytes(bytes(damaged) if number % 2 else good)

    def answer(number: int) -> list[str]:
        found = []
        for work in (inspect, explain, lambda path: check(path, max_size=10_000)):
            try:
                found.append(work(tmp_path / f"{number % 6}.tflite").to_json())
            except LqError as error:
                found.append(str(error))
        return found

    alone = [answer(number) for number in range(6)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(answer, range(12)))
    assert together == alone * 2
    assert len({tuple(answers) for answers in alone}) > 2
