"""--epochs and --max-minutes limit a run."""

import json
import math
import re

import numpy as np
import pytest
import small_tasks
from click.testing import CliRunner

from lqconvert import LSQ, Budget, load_data
from lqconvert.cli.main import main
from lqconvert.pipeline.prepare import _steps
from lqconvert.pipeline.settings import Settings
from lqconvert.training.pacing import Pace


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 1800),
        ({"scheme": LSQ()}, 500),
        ({"epochs": 1}, 6),  # of 9, six cycles of a step
        ({"epochs": 1, "batch_size": 256}, 5),  # too few for as many cycles
        ({"epochs": 2, "budget": Budget(max_size=9000)}, 18),
        ({"epochs": 3, "scheme": LSQ()}, 27),
    ],
)
def test_epochs_that_are_given_have_no_minimum(settings, steps, said):
    assert _steps(load_data("digits", (8, 8, 1), 10), Settings.of(settings)) == steps
    bounded = [f"training {steps} steps, for the given epochs" in line for line in said]
    assert any(bounded) == ("epochs" in settings)


@pytest.mark.slow
def test_an_epoch_of_100_unlabelled_images_is_a_step(samples, tmp_path):
    """No minimum of steps turns its seconds into minutes."""
    x = load_data("digits", (8, 8, 1), 10).train.arrays(100)[0].astype(np.float32)[:100]
    np.savez(tmp_path / "x.npz", x=x)
    job = ["quantize", samples / "digits_cnn.h5", "--data", tmp_path / "x.npz", "--epochs", 1]
    result = CliRunner().invoke(main, [*map(str, job), "-o", str(tmp_path / "m.tflite"), "--quiet"])
    assert result.exit_code == 0, result.output
    curve = json.loads((tmp_path / "m.report.json").read_text())["curve"]
    assert {point["step"] for point in curve} == {0, 1}


@pytest.mark.parametrize(("cycles", "evaluations"), [(6, 1), (1, 10)])
@pytest.mark.parametrize(
    ("speed", "evaluation", "seconds", "slower"),
    [
        (100, 0.1, 1000, 1),
        (100, 0.1, 60, 1),
        (1, 0.01, 60, 1),
        (20, 5, 200, 1),
        (100, 0.1, 60, 2),
        (1, 1, 1, 1),
    ],
)
def test_cycles_are_shortened_to_the_time(cycles, evaluations, speed, evaluation, seconds, slower):
    """``speed`` is in steps a second, and later ``slower`` times less. The first steps include tracing."""
    pace, step, now, seen = Pace(6000, cycles, evaluations), 0, 3.0, []
    pace.evaluated(evaluation)
    while step < pace.steps:
        taken = min(max(1, speed // 4), pace.interval - step % pace.interval)
        took = taken / speed * (slower if step > 1000 else 1) + (step == 0)
        step, now = step + taken, now + took
        pace.stepped(step, taken, took, seconds - now)
        if step % pace.interval == 0:
            seen.append(step)
            now += evaluation
    assert now <= seconds + 1 / speed + 0.25 * slower + evaluation or seconds < 5
    if seconds == 1000:
        assert step == 6000  # nothing was cut
    elif seconds > 5 and slower == 1:
        assert step < 6000
        assert len(seen) >= cycles  # all of them came to their ends
        assert now > 0.7 * seconds


def test_without_a_limit_all_steps_are_taken():
    pace = Pace(6000, 6, 1)
    pace.stepped(1, 1, 100.0, math.inf)
    pace.stepped(2, 1, 100.0, math.inf)
    assert (pace.interval, pace.steps) == (1000, 6000)


@pytest.mark.slow
def test_a_run_ends_in_time(tmp_path):
    job = small_tasks.made("multi_label", tmp_path)
    result, report = small_tasks.quantized(tmp_path, 100_000, *job, "--max-minutes", 0.1)
    assert result.exit_code == 0, result.output
    assert re.search("of [0-9,]+ steps, at the time limit", result.stderr)
    assert report["settings"]["max_minutes"] == 0.1
    assert 0 < report["curve"][-1]["step"] < 400_000
    assert [path.suffixes for path in tmp_path.glob("*resume*")] == []
