"""Logs of a run's progress: a line of JSON, or TensorBoard summaries, for every evaluation."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import math
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lqconvert.errors import LqError
from lqconvert.utils.output_files import make_folders, refuse_links
from lqconvert.utils.text import to_json

if TYPE_CHECKING:
    from lqconvert.training.finetune import Progress


class JsonLines:
    """Appends a line of JSON for each call as ``progress`` of :func:`lqconvert.quantize` and each message.

    Raises:
        LqError: if the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        make_folders([self.path])
        existed = os.path.lexists(self.path)
        self._write()  # so that a file that cannot be written is an error before the run
        if not existed:
            self.path.unlink()  # a run that is refused leaves no file

    def progress(self, at: Progress) -> None:
        loss = at.loss if math.isfinite(at.loss) else None  # JSON has no NaN
        point = dataclasses.asdict(at.evaluation) | {
            "score": at.evaluation.score,
            "quality": at.evaluation.quality,
        }
        self._write(steps=at.steps, training_loss=loss, codes=at.codes, **point)

    def say(self, message: str) -> None:
        self._write(message=message)

    def _write(self, **entry: object) -> None:
        try:
            with open(self.path, "a", encoding="utf-8", opener=_opened) as file:
                if entry:
                    file.write(to_json({"time": round(time.time(), 3), **entry}, indent=None) + "\n")
        except OSError as error:
            refuse_links(self.path)
            raise LqError(f"{self.path}: cannot be written ({error.strerror})") from error


def _opened(path: str, flags: int) -> int:
    """Opens a file without following links, and without waiting for the reader of a pipe."""
    extra = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    opened = os.open(path, flags | extra, 0o666)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EINVAL, "no file", path)
    return opened


class TensorBoard:
    """Writes summaries for each call as ``progress`` of :func:`lqconvert.quantize`.

    Raises:
        LqError: if the folder cannot be written, or TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        import tensorflow as tf

        if importlib.util.find_spec("tensorboard") is None:
            raise LqError("TensorBoard is not installed; try: pip install 'lqconvert[tensorboard]'")
        make_folders([Path(folder) / "summaries"])
        try:
            self.writer = tf.summary.create_file_writer(str(folder))
        except tf.errors.OpError as error:
            raise LqError(f"{folder}: cannot be written ({error.message})") from error

    def progress(self, at: Progress) -> None:
        import tensorflow as tf

        values = {"training_loss": at.loss, "codes": at.codes}
        for name, value in dataclasses.asdict(at.evaluation).items():
            first, *others = value if isinstance(value, tuple) else (value,)
            singular = {"scores": "score", "qualities": "quality", "errors": "error"}.get(name, name)
            values |= {singular: first} | {f"{singular}/{n}": each for n, each in enumerate(others, 2)}
        step = values.pop("step")
        with self.writer.as_default(step=step):
            for name, value in values.items():
                if math.isfinite(value):
                    tf.summary.scalar(name, value)
        self.writer.flush()
