"""Checkpoints: what a run has learned so far, in a file. A run that died continues from there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from lqconvert.errors import LqError
from lqconvert.training.budget import Point
from lqconvert.utils.npz import load_npz
from lqconvert.utils.output_files import UNFINISHED, refuse_links, write_all


@dataclass
class Checkpoint:
    """The state of fine-tuning between two steps.

    It is complete together with the run's settings: random choices depend on the seed and the step alone, and
    steering depends on the points alone, so neither has a state of its own.
    """

    step: int
    variables: list[np.ndarray]  # the model's
    optimizer: list[np.ndarray]
    best_variables: list[np.ndarray]  # the model's at the best evaluation
    points: list[Point]
    best: int  # index into ``points``
    rollbacks: int
    cycle: int  # the number of steps in it
    larger_variables: list[np.ndarray] = field(default_factory=list)  # at the smallest point over a size
    #: :attr:`.Pruning.kept` of the run's model, if channels were removed
    units: list[np.ndarray] = field(default_factory=list)

    ARRAYS = ("variables", "optimizer", "best_variables", "larger_variables", "units")

    def save(self, path: Path, identity: dict[str, str]) -> None:
        """Writes the file. If that fails, an older file stays as it is.

        Args:
            identity: the run's settings, and checksums of its model and data. :meth:`load` refuses a
                checkpoint with another identity.

        Raises:
            LqError: if it cannot be written.
        """
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in self.ARRAYS}
        plain["points"] = [dataclasses.asdict(point) for point in self.points]
        text = json.dumps({"identity": identity, **plain})
        arrays = {f"{kind}/{n}": value for kind in self.ARRAYS for n, value in enumerate(getattr(self, kind))}

        def write(part: Path) -> None:
            with part.open("wb") as file:
                np.savez(file, state=np.frombuffer(text.encode(), np.uint8), **arrays)

        write_all({path: write})

    @classmethod
    def load(cls, path: Path, identity: dict[str, str]) -> Checkpoint:
        """Reads what :meth:`save` wrote with the same identity.

        Raises:
            LqError: if the file is another run's, or no checkpoint.
        """
        try:
            arrays = load_npz(path)
            plain = json.loads(arrays.pop("state").tobytes())
            written = dict(plain.pop("identity"))
            for kind in cls.ARRAYS:
                count = sum(name.startswith(f"{kind}/") for name in arrays)
                plain[kind] = [arrays[f"{kind}/{n}"] for n in range(count)]
            plain["points"] = [Point.of_json(point) for point in plain["points"]]
            checkpoint = cls(**plain)
        except LqError as error:
            raise LqError(str(error), hint="fresh_start") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LqError(f"{path}: not a checkpoint of lqconvert", hint="fresh_start") from error
        differ = [
            f"{name}={written.get(name, 'none')} (now {identity.get(name, 'none')})"
            for name in dict.fromkeys((*written, *identity))
            if written.get(name) != identity.get(name)
        ]
        if differ:
            listed = ", ".join(differ)
            raise LqError(f"{path}: belongs to a run with other settings: {listed}", hint="fresh_start")
        return checkpoint


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keeps other runs from writing the same file at the same time.

    Raises:
        LqError: if another run does so, or the lock cannot be made.
    """
    path = output.with_name(f".{output.name}.lock")
    refuse_links(path)  # filelock does not follow links either
    if path.exists() and not path.is_file():
        raise LqError(f"{path}: not a regular file, so it cannot be locked; remove it, or give another name")
    try:
        with FileLock(path, timeout=0):
            UNFINISHED.add(path)
            try:
                yield
            finally:
                UNFINISHED.discard(path)
                path.unlink(missing_ok=True)
    except Timeout as error:
        raise LqError(
            f"{output}: another run is writing it; wait until it ends, or give another name"
        ) from error
    except PermissionError as error:
        if Path(str(error.filename)) != path:
            raise
        raise LqError(f"{path}: left by a run of another user; remove it, or give another name") from error
