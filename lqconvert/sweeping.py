"""Schemes x granularities x penalties from one float model: a study that Optuna keeps, and its figures."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lqconvert.codes import load_kernels
from lqconvert.errors import LqError
from lqconvert.granularity import GRANULARITIES
from lqconvert.schemes import SCHEMES

#: A run whose process has not been heard of for this long (in seconds) counts as dead and is repeated.
GRACE = 120


@dataclass(frozen=True)
class Run:
    """One setting and what its exported file measured.

    ``penalty`` is a factor on the scheme's own; ``integers`` counts the different codes of all kernels.
    """

    scheme: str
    granularity: str
    penalty: float
    integers: int
    bytes: int
    deflated_bytes: int
    validation_score: float
    test_score: float
    minutes: float

    @property
    def name(self) -> str:
        """What its files in the folder are called."""
        return _name(self.scheme, self.granularity, self.penalty)


def _name(scheme: str, granularity: str, penalty: float) -> str:
    return f"{scheme}_{granularity}_{penalty:g}"


def sweep(
    model_path: str | Path,
    data_spec: str,
    folder: str | Path,
    *,
    schemes: Sequence[str],
    granularities: Sequence[str],
    penalties: Sequence[float],
    storage: str | None = None,
    done: Callable[[Run], None] = lambda _: None,
    **settings: Any,
) -> list[Run]:
    """Quantizes a model under every combination of settings; goes on where an earlier sweep stopped.

    Args:
        model_path, data_spec: see :func:`lqconvert.quantize`.
        folder: gets the files of every run, ``sweep.csv`` and, by default, the study.
        penalties: factors on each scheme's own penalty (its gamma, or its threshold).
        storage: an Optuna storage URL, for several machines that share one study; otherwise a SQLite
            file in the folder. They share the folder, too.
        done: called after every run.
        settings: for :func:`lqconvert.quantize`.

    Returns:
        The runs of this grid, in its order.

    Raises:
        LqError: where Optuna is missing, and what :func:`lqconvert.quantize` raises.
        KeyboardInterrupt: the run that was interrupted is repeated next time.
    """
    try:
        import optuna
    except ImportError as error:
        raise LqError("a sweep needs Optuna: pip install 'lqconvert[sweep]'") from error
    from optuna.trial import TrialState

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    named = {name: value for name, value in settings.items() if name != "trust_model"}  # changes no result
    given = ", ".join(f"{name} {value}" for name, value in sorted(named.items()) if value is not None)
    study = optuna.create_study(
        study_name=f"{Path(model_path).name} on {Path(data_spec).name}, {given}",
        storage=optuna.storages.RDBStorage(
            storage or f"sqlite:///{folder / 'study.db'}", heartbeat_interval=GRACE // 4, grace_period=GRACE
        ),
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        run = _run(
            model_path,
            data_spec,
            folder,
            trial.suggest_categorical("scheme", list(SCHEMES)),
            trial.suggest_categorical("granularity", GRANULARITIES),
            trial.suggest_float("penalty", 1e-9, 1e9, log=True),
            settings,
        )
        trial.set_user_attr("run", dataclasses.asdict(run))
        done(run)
        return run.validation_score, run.deflated_bytes

    names = ("scheme", "granularity", "penalty")
    grid: list[dict[str, Any]] = [
        dict(zip(names, values, strict=True))
        for values in itertools.product(schemes, granularities, penalties)
    ]
    while True:
        optuna.storages.fail_stale_trials(study)
        states = {
            state: [trial.params or trial.system_attrs.get("fixed_params", {}) for trial in trials]
            for state in (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
            for trials in [study.get_trials(deepcopy=False, states=(state,))]
        }
        left = [params for params in grid if params not in states[TrialState.COMPLETE]]
        if not left:
            break
        free = [params for params in left if params not in states[TrialState.RUNNING]]
        if not free:  # another process is at the last ones, or died at them
            time.sleep(5)
            continue
        if not states[TrialState.WAITING]:
            study.enqueue_trial(free[0])
        study.optimize(objective, n_trials=1)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    by_setting = {_name(**trial.params): Run(**trial.user_attrs["run"]) for trial in complete}
    runs = [by_setting[_name(**params)] for params in grid]
    write_csv(folder / "sweep.csv", runs)
    return runs


def _run(
    model_path: str | Path,
    data_spec: str,
    folder: Path,
    scheme_name: str,
    granularity: str,
    penalty: float,
    settings: dict[str, Any],
) -> Run:
    from lqconvert.convert import quantize

    scheme = SCHEMES[scheme_name]().scaled(penalty)
    output = folder / f"{_name(scheme_name, granularity, penalty)}.tflite"
    start = time.monotonic()
    report = quantize(model_path, data_spec, output, scheme=scheme, granularity=granularity, **settings)
    if not report.finished:
        raise KeyboardInterrupt
    kernels = load_kernels(output.with_suffix(".codes.npz"))
    return Run(
        scheme_name,
        granularity,
        penalty,
        len(np.unique(np.concatenate([kernel.ravel() for kernel in kernels.values()]))),
        report.files[0].proven.size,
        report.int8.deflated_bytes,
        report.best.score,
        report.int8.score,
        round((time.monotonic() - start) / 60, 2),
    )


def write_csv(path: Path, rows: Sequence[Any]) -> None:
    """Writes data classes of one kind as a table with a header."""
    partial = path.with_name(f".{path.name}.part")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(rows[0])])
        writer.writeheader()
        writer.writerows(map(dataclasses.asdict, rows))
    partial.replace(path)
