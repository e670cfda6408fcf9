"""Schemes x granularities x penalties from one float model: a study that Optuna keeps, and its figures."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import logging
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from lqconvert.data.arrays import DataLike, checksum, data_name
from lqconvert.errors import LqError
from lqconvert.exporting.codes import load_kernels
from lqconvert.keras_loader.in_memory import ModelLike, default_output, model_label
from lqconvert.pipeline.settings import Settings
from lqconvert.quantization.granularity import GRANULARITIES
from lqconvert.quantization.schemes import SCHEMES
from lqconvert.utils.output_files import make_folders, refuse_links, write_all
from lqconvert.utils.text import csv_cell

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lqconvert.pipeline.settings import QuantizeKeywords

log = logging.getLogger(__name__)

#: A run whose process has sent no signal for this many seconds counts as dead and is repeated.
GRACE = 120
#: The end of a SQLite journal that names other files, which SQLite would remove: one over several databases.
JOURNAL_OF_SEVERAL = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"


@dataclass(frozen=True)
class Run:
    """One combination of settings, and the measurements of its exported file.

    ``penalty`` is a factor on the scheme's default penalty; ``integers`` counts the different codes of all
    kernels.
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
        """The name of its files in the folder."""
        return _name(self.scheme, self.granularity, self.penalty)


def _name(scheme: str, granularity: str, penalty: float) -> str:
    return f"{scheme}_{granularity}_{penalty:g}"


def sweep(
    model: ModelLike,
    data: DataLike,
    output: str | Path | None = None,
    *,
    schemes: Sequence[str],
    granularities: Sequence[str],
    penalties: Sequence[float],
    storage: str | None = None,
    done: Callable[[Run], None] = lambda _: None,
    so_far: Callable[[list[Run]], object] = lambda _: None,
    settings: Settings | None = None,
    **keywords: Unpack[QuantizeKeywords],
) -> list[Run]:
    """Quantizes a model with every combination of settings, and continues an earlier sweep.

    A run without a file is logged as a warning, and the next sweep tries it again.

    Args:
        model, data: see :func:`lqconvert.quantize`.
        output: a folder for the files of every run, for ``sweep.csv`` with all finished runs, and by default
            for the study. By default, it has the model's name.
        penalties: factors on each scheme's default penalty (its gamma, or its threshold).
        storage: an Optuna storage URL, for several machines that share one study (and the folder). By
            default, a SQLite file in the folder.
        done, so_far: called after every run: with this run, and with all finished runs in the order of the
            grid.
        settings, keywords: as for :func:`lqconvert.quantize`.

    Returns:
        The runs that made a file, in the order of the grid.

    Raises:
        LqError: if Optuna is missing. If no run made a file: the error of :func:`lqconvert.quantize`.
        KeyboardInterrupt: the next sweep repeats the interrupted run.
    """
    try:
        import optuna
    except ImportError as error:
        raise LqError("a sweep needs Optuna: pip install 'lqconvert[sweep]'") from error
    from optuna.trial import TrialState

    folder = default_output(model, ".sweep") if output is None else Path(output)
    make_folders([folder / "sweep.csv"])
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    common = Settings.of(keywords, settings)  # the same for all runs
    asked = {name: value for name, value in common.changes().items() if name != "trust_model"}
    given = ", ".join(f"{name} {value}" for name, value in sorted(asked.items()))
    study_name = f"{_model_label(model)} on {_data_label(data)}, {given}"
    # So that two processes do not make the same tables at once or take the same run.
    lock = FileLock(folder / ".study.lock")
    database = folder / "study.db"
    if storage is None:
        _refuse_foreign(database)
    refuse_links(folder / ".study.lock")
    with lock:
        study = optuna.create_study(
            study_name=study_name,
            storage=optuna.storages.RDBStorage(
                storage or f"sqlite:///{database}",
                heartbeat_interval=GRACE // 4,
                grace_period=GRACE,
            ),
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )
    failed: dict[str, LqError] = {}

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        lock.release()  # the study knows now that this run is in progress
        scheme = trial.suggest_categorical("scheme", list(SCHEMES))
        granularity = trial.suggest_categorical("granularity", GRANULARITIES)
        penalty = trial.suggest_float("penalty", 1e-9, 1e9, log=True)
        try:
            run = _run(model, data, folder, scheme, granularity, penalty, common)
        except LqError as error:
            name = _name(scheme, granularity, penalty)
            failed[name] = error
            log.warning(f"{name}: {error}")
            raise
        trial.set_user_attr("run", dataclasses.asdict(run))
        trial.set_user_attr("file", _checksum(folder / f"{run.name}.tflite"))
        done(run)
        return run.validation_score, run.deflated_bytes

    parameters = ("scheme", "granularity", "penalty")
    grid: list[dict[str, Any]] = [
        dict(zip(parameters, values, strict=True))
        for values in itertools.product(schemes, granularities, penalties)
    ]

    def settings_of(state: TrialState) -> list[dict[str, Any]]:
        trials = study.get_trials(deepcopy=False, states=(state,))
        # The complete settings of a trial: its parameters are added one after the other.
        return [trial.system_attrs.get("fixed_params", trial.params) for trial in trials]

    def complete() -> list[optuna.trial.FrozenTrial]:
        """The trials of a sweep with these settings whose files still exist."""
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        files = [_checksum(folder / f"{_name(**trial.params)}.tflite") for trial in trials]
        return [each for each, file in zip(trials, files, strict=True) if file == each.user_attrs["file"]]

    def table() -> list[Run]:
        """The runs that made a file, in the order of the grid, after they were written to the table."""
        by_setting = {_name(**trial.params): Run(**trial.user_attrs["run"]) for trial in complete()}
        runs = [by_setting[_name(**setting)] for setting in grid if _name(**setting) in by_setting]
        if runs:
            write_csv(folder / "sweep.csv", runs)
        return runs

    while True:
        with lock:
            optuna.storages.fail_stale_trials(study)
            running = settings_of(TrialState.RUNNING)  # before the finished ones: a run may end meanwhile
            made = [trial.params for trial in complete()]
            left = [setting for setting in grid if setting not in made and _name(**setting) not in failed]
            if not left:
                break
            free = [setting for setting in left if setting not in running]
            if free:
                if not settings_of(TrialState.WAITING):
                    study.enqueue_trial(free[0])
                study.optimize(objective, n_trials=1, catch=(LqError,))
                with lock:
                    runs = table()
                if runs:
                    so_far(runs)
                continue
        time.sleep(5)  # another process has the last runs, or died during them
    with lock:
        runs = table()
    if not runs:
        raise next(iter(failed.values()))
    return runs


def _refuse_foreign(database: Path) -> None:
    """Refuses a database if SQLite would write to, or remove, files that are not the study's."""
    journal = database.with_name(f"{database.name}-journal")
    refuse_links(database, journal, *(database.with_name(f"{database.name}-{end}") for end in ("wal", "shm")))
    try:
        with journal.open("rb") as file:
            file.seek(max(0, journal.stat().st_size - len(JOURNAL_OF_SEVERAL)))
            several = file.read() == JOURNAL_OF_SEVERAL
    except OSError:
        return
    if several:
        raise LqError(f"{journal}: names other files, and no sweep wrote it; remove it and {database.name}")


def _model_label(model: ModelLike) -> str:
    """A model's name and a checksum: of its file, or of the weights of a model in memory."""
    if isinstance(model, (str, Path)):
        return f"{Path(model).name}{_checksum(Path(model))}"
    return model_label(model)


def _data_label(data: DataLike) -> str:
    if isinstance(data, (str, Path)):
        return f"{Path(data).name}{_checksum(Path(data))}"
    return f"{data_name(data)} {checksum(data):08x}"


def _checksum(path: Path) -> str:
    """A checksum of a file's content, to recognize another file of the same name; "" for a folder."""
    if not path.is_file():
        return ""
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            checksum = zlib.crc32(part, checksum)
    return f" {checksum:08x}"


def _run(
    model: ModelLike,
    data: DataLike,
    folder: Path,
    scheme_name: str,
    granularity: str,
    penalty: float,
    settings: Settings,
) -> Run:
    from lqconvert.pipeline.quantize import quantize

    scheme = SCHEMES[scheme_name]().scaled(penalty)
    output = folder / f"{_name(scheme_name, granularity, penalty)}.tflite"
    start = time.monotonic()
    report = quantize(model, data, output, settings=settings.replaced(scheme=scheme, granularity=granularity))
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
    """Writes data classes of one type as a table with a header."""

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(rows[0])])
            writer.writeheader()
            for row in rows:
                writer.writerow({name: csv_cell(value) for name, value in dataclasses.asdict(row).items()})

    write_all({path: write})
