"""Sweeps: every combination once, resumed after an interruption, with its table and figures."""

import csv
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tf_keras
from click.testing import CliRunner

from lqconvert import LqError, load_data
from lqconvert.cli.main import main
from lqconvert.exporting.codes import load_kernels
from lqconvert.sweeps import study
from lqconvert.sweeps.sensitivity import sensitivities
from lqconvert.sweeps.study import sweep

pytestmark = pytest.mark.slow

PNG = b"\x89PNG"


FIGURES = {"pareto", "epochs", "sensitivity", "rate_mixed_0.5.codes", "rate_mixed_4.codes"}


def table(folder):
    return list(csv.DictReader((folder / "sweep.csv").open()))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model of the digits."""
    path = tmp_path_factory.mktemp("model") / "small.keras"
    small = tf_keras.Sequential(
        [
            tf_keras.layers.Input((8, 8, 1)),
            tf_keras.layers.Flatten(),
            tf_keras.layers.Dense(16, "relu", name="hidden"),
            tf_keras.layers.Dense(10, "softmax", name="digit"),
        ]
    )
    small.compile(tf_keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    x, y = load_data("digits", (8, 8, 1), 10).train.arrays()
    small.fit(x / 255, y, epochs=20, verbose=0)
    small.save(path)
    return path


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A sweep of two penalties that was interrupted in the second and then went on."""
    folder = tmp_path_factory.mktemp("sweep")
    job = ["sweep", str(model), "--data", "digits", "-o", str(folder), "--epochs", "11"]
    job += ["--scheme", "rate", "--granularity", "mixed", "--penalty", "0.5", "--penalty", "4"]
    whole, calls = study._run, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "_run", interrupted)
        stopped = CliRunner().invoke(main, job)
        assert stopped.exit_code == 130
        assert "run the same command again to continue" in stopped.stderr
        size = (folder / "rate_mixed_0.5.tflite").stat().st_size
        assert f"rate_mixed_0.5: {size:,} bytes, " in stopped.stderr
        assert [float(row["penalty"]) for row in table(folder)] == [0.5]
        assert FIGURES - {path.stem for path in folder.glob("*.png")} == {"rate_mixed_4.codes"}
        result = CliRunner().invoke(main, job)
    assert result.exit_code == 0, result.output
    assert len(calls) == 3  # the finished one was not repeated
    return folder


def test_the_table_tells_what_the_files_hold(folder):
    rows = table(folder)
    assert [float(row["penalty"]) for row in rows] == [0.5, 4]
    for row in rows:
        name = f"{row['scheme']}_{row['granularity']}_{float(row['penalty']):g}"
        assert int(row["bytes"]) == (folder / f"{name}.tflite").stat().st_size
        kernels = load_kernels(folder / f"{name}.codes.npz")
        assert int(row["integers"]) == len(np.unique(np.concatenate([k.ravel() for k in kernels.values()])))
    assert int(rows[1]["deflated_bytes"]) < int(rows[0]["deflated_bytes"])


def test_figures(folder):
    assert {path.stem for path in folder.glob("*.png") if path.read_bytes().startswith(PNG)} == FIGURES


def test_the_table_is_written_after_every_run(quick, tmp_path):
    written = []

    def so_far(runs):
        rows = table(tmp_path)
        assert [float(row["penalty"]) for row in rows] == [run.penalty for run in runs]
        written.append(len(rows))

    sweep("m.h5", "digits", tmp_path, penalties=[3, 1, 2], so_far=so_far, **GRID)
    assert written == [1, 1, 2]


def test_coarser_layers_score_lower(model):
    rows = sensitivities(model, "digits", bits=(2, 8))
    assert {row.layer for row in rows} == {"hidden", "digit"}
    assert all(row.drop == 0 for row in rows if row.bits == 8)
    assert sum(row.drop for row in rows if row.bits == 2) > 0


@pytest.fixture
def quick(monkeypatch):
    """Runs that take no time: they are listed, and those of penalty 1 fail."""
    runs = []

    def run(model, data, folder, scheme, granularity, penalty, settings):
        runs.append(penalty)
        if penalty == 1:
            raise LqError("diverges")
        return study.Run(scheme, granularity, penalty, 1, 1, 1, 0.9, 0.9, 0.0)

    monkeypatch.setattr(study, "_run", run)
    return runs


GRID = {"schemes": ["rate"], "granularities": ["mixed"]}


def test_a_run_that_fails_does_not_stop_the_others(quick, tmp_path, said):
    for attempt in range(2):
        runs = sweep("m.h5", "digits", tmp_path, penalties=[1, 2, 3], **GRID)
        assert [run.penalty for run in runs] == [2, 3]
        assert len(table(tmp_path)) == 2
        assert said == ["rate_mixed_1: diverges"] * (attempt + 1)
    assert quick == [1, 2, 3, 1]  # what failed is tried again
    with pytest.raises(LqError, match="diverges"):
        sweep("m.h5", "digits", tmp_path, penalties=[1], **GRID)


def test_a_model_of_the_same_name_is_another_sweep(quick, tmp_path):
    model = tmp_path / "m.h5"
    for content in (b"one", b"one", b"other"):
        model.write_bytes(content)
        sweep(model, "digits", tmp_path, penalties=[2], **GRID)
    assert quick == [2, 2]


def test_other_settings_in_the_same_folder_are_not_mixed_up(quick, tmp_path, monkeypatch):
    """Their files have the same names: what a later sweep wrote over is made again."""
    stub = study._run

    def run(model, data, folder, scheme, granularity, penalty, settings):
        (folder / f"{scheme}_{granularity}_{penalty:g}.tflite").write_text(str(settings))
        return stub(model, data, folder, scheme, granularity, penalty, settings)

    monkeypatch.setattr(study, "_run", run)
    for seed in (0, 0, 1, 0):
        sweep("m.h5", "digits", tmp_path, penalties=[2], seed=seed, **GRID)
        assert f"seed={seed}" in (tmp_path / "rate_mixed_2.tflite").read_text()
    assert quick == [2, 2, 2]


def test_processes_that_share_a_study_do_each_run_once(quick, tmp_path):
    penalties = list(range(2, 10))
    with ThreadPoolExecutor(2) as pool:
        each = [pool.submit(sweep, "m.h5", "digits", tmp_path, penalties=penalties, **GRID) for _ in "ab"]
        assert [[run.penalty for run in done.result()] for done in each] == [penalties] * 2
    assert sorted(quick) == penalties


def test_sensitivities_of_several_inputs(tmp_path):
    inputs = [tf_keras.layers.Input((4,), name=name) for name in "ab"]
    joint = tf_keras.layers.Dense(3)(tf_keras.layers.Concatenate()(inputs))
    tf_keras.Model(inputs, joint).save(tmp_path / "m.h5")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", **{name: rng.normal(size=(99, 4)).astype(np.float32) for name in "ab"})
    coarse, fine = sensitivities(tmp_path / "m.h5", str(tmp_path / "x.npz"), bits=(2, 8))
    assert coarse.drop > 0 == fine.drop
