"""Sweeps: every combination once, resumed after an interruption, with its table and figures."""

import csv

import numpy as np
import pytest
from click.testing import CliRunner

from lqconvert import sweeping
from lqconvert.cli import main
from lqconvert.codes import load_kernels
from lqconvert.sensitivity import sensitivities

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def folder(samples, tmp_path_factory):
    """A sweep of two penalties that was interrupted in the second and then went on."""
    folder = tmp_path_factory.mktemp("sweep")
    job = ["sweep", str(samples / "digits_cnn.h5"), "--data", "digits", "-o", str(folder), "--epochs", "1"]
    job += ["--scheme", "rate", "--granularity", "mixed", "--penalty", "0.5", "--penalty", "4"]
    whole, calls = sweeping._run, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeping, "_run", interrupted)
        assert CliRunner().invoke(main, job).exit_code == 1
        result = CliRunner().invoke(main, job)
    assert result.exit_code == 0, result.output
    assert len(calls) == 3  # the finished one was not repeated
    return folder


def test_the_table_tells_what_the_files_hold(folder):
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert [float(row["penalty"]) for row in rows] == [0.5, 4]
    for row in rows:
        name = f"{row['scheme']}_{row['granularity']}_{float(row['penalty']):g}"
        assert int(row["bytes"]) == (folder / f"{name}.tflite").stat().st_size
        kernels = load_kernels(folder / f"{name}.codes.npz")
        assert int(row["integers"]) == len(np.unique(np.concatenate([k.ravel() for k in kernels.values()])))
    assert int(rows[1]["deflated_bytes"]) < int(rows[0]["deflated_bytes"])


@pytest.mark.parametrize(
    "name", ["pareto", "epochs", "sensitivity", "rate_mixed_0.5.codes", "rate_mixed_4.codes"]
)
def test_figures(folder, name):
    assert (folder / f"{name}.png").read_bytes().startswith(PNG)


def test_coarser_layers_score_lower(samples):
    rows = sensitivities(samples / "digits_cnn.h5", "digits", bits=(2, 8))
    assert {row.layer for row in rows} == {"conv2d", "conv2d_1", "conv2d_2", "dense"}
    assert all(row.drop == 0 for row in rows if row.bits == 8)
    assert sum(row.drop for row in rows if row.bits == 2) > 0
