import contextlib
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np
import pytest
from filelock import FileLock

WORKER = "PYTEST_XDIST_WORKER" in os.environ

ROOT = Path(__file__).parent.parent
#: Short fine-tuning, for tests whose outcome does not depend on what it learns: 60 steps of the digits.
BRIEF = {"epochs": 7}
#: Fixtures that are whole runs: the tests that ask for one are slow.
RUNS = {"run", "digits_run"}
#: Files that take more than a minute, the longest first.
LONG = (
    *("test_docs", "test_coverage", "test_distributing", "test_quantize", "test_pipeline", "test_resuming"),
    *("test_hostile", "test_post_training", "test_html_report", "test_check", "test_fronts", "test_tasks"),
    *("test_deploying", "test_budget"),
)


@pytest.hookimpl(tryfirst=True)  # before -m chooses among the tests
def pytest_collection_modifyitems(items):
    """Marks tests that use a run as slow. The longest files come first, so that none is last."""
    for item in items:
        if RUNS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    order = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def samples() -> Path:
    return ROOT / "sample_models"


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """A function that has a folder of a name filled, by the first worker that asks for it, for all of them.

    It gives that folder, and what ``fill`` gave of it.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if WORKER else base

    def once(name, fill):
        folder, filled = base / name, base / f"{name}.pickle"
        with FileLock(base / f"{name}.lock"):
            if not filled.exists():
                folder.mkdir(exist_ok=True)
                filled.write_bytes(pickle.dumps(fill(folder)))
        return folder, pickle.loads(filled.read_bytes())

    return once


@pytest.fixture(scope="session")
def run(samples, once):
    """The report of a run for both targets on the digits sample, and its folder, which stays as it is."""
    import lqconvert

    pytest.importorskip("tflite_micro", reason="TFLite Micro's interpreter is for Linux only")

    def quantized(folder):
        targets = [lqconvert.target("tflm"), lqconvert.target("litert")]
        job = samples / "digits_cnn.h5", "digits", folder / "digits.tflite"
        return lqconvert.quantize(*job, targets=targets, scheme=lqconvert.Rate(), epochs=20)

    folder, report = once("run", quantized)
    return report, folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """Models and data outside of the project. Tests that need them are skipped without them."""
    folder = ROOT.parent / "shared"
    if not folder.exists():
        pytest.skip("needs the folder shared/ beside the checkout (models and data that are not committed)")
    return folder


@pytest.fixture(scope="session")
def int8(samples, once) -> Path:
    """The digits sample as a plain int8 .tflite, not trained."""
    import lqconvert

    def exported(folder):
        model = lqconvert.rewrite(lqconvert.load_model(samples / "digits_cnn.h5"), lqconvert.LSQ())
        x = lqconvert.load_data("digits", (8, 8, 1), 10).train.arrays(256)[0].astype("float32")
        lqconvert.calibrate(model, [x])
        (folder / "digits.tflite").write_bytes(lqconvert.export(model).tflite)

    folder, _ = once("int8", exported)
    return folder / "digits.tflite"


@pytest.fixture(scope="session")
def digits_run(samples, once):
    """The folder and the output of the digits sample's run with the command line's defaults."""
    from click.testing import CliRunner

    from lqconvert.cli.main import main

    def quantized(folder):
        command = ["quantize", str(samples / "digits_cnn.h5"), "--data", "digits"]
        command += ["-o", str(folder / "digits.tflite"), "--quiet", "--json"]
        result = CliRunner().invoke(main, command)
        said = {name: getattr(result, name) for name in ("exit_code", "output", "stdout", "stderr")}
        return SimpleNamespace(**said)

    return once("digits", quantized)


@contextlib.contextmanager
def run_lengths(**lengths):
    """Other defaults for the lengths of runs, for which the command line has no options."""
    from lqconvert.pipeline import settings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "DEFAULTS", settings.DEFAULTS.replaced(**lengths))
        yield


@pytest.fixture(scope="module")
def short_cycles():
    """Short fine-tuning that is enough for small models."""
    with run_lengths(minimum_cycle=100):
        yield


@pytest.fixture
def brief():
    with run_lengths(**BRIEF):
        yield


@pytest.fixture
def said():
    """The lines that the package logs of its progress."""
    from lqconvert.cli.messages import passed_on

    lines = []
    with passed_on("lqconvert", lines.append):
        yield lines


def step_of(checkpoint: Path) -> int:
    """The step of the checkpoint that a run left."""
    with np.load(checkpoint) as arrays:
        return json.loads(arrays["state"].tobytes())["step"]
