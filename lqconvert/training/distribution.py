"""Fine-tuning on several devices or machines, with TensorFlow's own strategies.

Every worker runs the same command and makes the same decisions, from the numbers of the first worker (the
chief). The result is that of one device, except that the parts of a batch are summed in another order.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tensorflow as tf
import tf_keras

from lqconvert.errors import LqError, first_line
from lqconvert.quantization.layers import ActivationQuantizer
from lqconvert.utils.output_files import Paths

#: The errors that TensorFlow raises if another worker is gone.
LOST = tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError

#: The largest message between workers, in numbers of four bytes.
PIECE = 1 << 16


@dataclass(frozen=True)
class Distribution:
    """The devices that share each batch. By default, the one device that TensorFlow chooses.

    >>> Distribution().replicas, Distribution().chief
    (1, True)
    """

    strategy: tf.distribute.Strategy = field(default_factory=tf.distribute.get_strategy)
    worker: int = 0
    workers: int = 1

    @classmethod
    def of(cls, name: str) -> Distribution:
        """The devices of this process and of others. Must be made before TensorFlow computes anything.

        Args:
            name: "mirrored" for all GPUs of this machine, or "multi-worker" for the processes, on this
                machine or on several, that the environment variable TF_CONFIG lists.

        Raises:
            LqError: if TF_CONFIG is missing or makes no sense, or another worker cannot be reached.
        """
        if name == "mirrored":
            devices = cls(tf.distribute.MirroredStrategy())
        else:
            place = _place(os.environ.get("TF_CONFIG", ""))
            try:
                with _default_signals():  # it may wait for the other workers forever
                    devices = cls(tf.distribute.MultiWorkerMirroredStrategy(), *place)
            except (RuntimeError, *LOST) as error:
                raise LqError(f"multi-worker: {first_line(error)}") from error
        return devices if devices.replicas > 1 else cls()

    @property
    def chief(self) -> bool:
        """Whether this worker is the chief, which writes the files."""
        return self.worker == 0

    @property
    def replicas(self) -> int:
        """The number of devices of all workers together."""
        return self.strategy.num_replicas_in_sync

    def __str__(self) -> str:
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        return f"{self.replicas} x {kind} in {self.workers} process{'es' if self.workers > 1 else ''}"

    def copied(self, model: tf_keras.Model) -> tf_keras.Model:
        """A copy of a model on all devices, with the chief's values. With one device, the model itself."""
        if self.replicas == 1:
            return model
        with self.strategy.scope():
            copy = tf_keras.models.clone_model(model)
        for variable, original in zip(copy.variables, model.variables, strict=True):
            variable.assign(self.agreed(original.numpy()))
        for layer in copy.layers:
            if isinstance(layer, ActivationQuantizer):
                layer.follows = False  # it is calibrated; devices cannot agree on a range within a step
        return copy

    def agreed(self, numbers: np.ndarray) -> np.ndarray:
        """The chief's numbers, bit by bit, on every worker. Shape and type must be equal everywhere."""
        return np.frombuffer(self._chiefs(numbers.tobytes()), numbers.dtype).reshape(numbers.shape)

    @contextmanager
    def placed(self, output: str | Path, page: str | Path | None) -> Iterator[tuple[Path, Path | None]]:
        """The paths of the .tflite and the page: as given on the chief, in a temporary folder on others.

        The chief's checkpoint is copied into this folder.

        Raises:
            LqError: if another worker is lost.
        """
        output, page = Path(output), None if page is None else Path(page)
        if self.workers == 1:
            yield output, page
            return
        try:
            checkpoint = Paths(output, ()).checkpoint
            learned = self._chiefs(checkpoint.read_bytes() if self.chief and checkpoint.exists() else b"")
            if self.chief:
                yield output, page
                return
            with TemporaryDirectory() as folder:
                if learned:
                    (Path(folder) / checkpoint.name).write_bytes(learned)
                yield Path(folder) / output.name, page and Path(folder) / page.name
        except LOST as error:
            raise LqError("another worker was lost", hint="restart") from error

    def check_alike(self, identity: dict[str, str]) -> None:
        """Raises an LqError on a worker whose settings differ from the chief's."""
        chiefs = json.loads(self._chiefs(json.dumps(identity).encode()))
        for name, value in identity.items():
            if chiefs.get(name) != value:
                what = f"{name} is {value}, not {chiefs.get(name)}"
                raise LqError(f"worker {self.worker} was given other settings than the chief: {what}")

    def _chiefs(self, data: bytes) -> bytes:
        """The chief's data, on every worker."""
        if self.workers == 1:
            return data
        size = self._sum(np.array([len(data)], np.int64).view(np.int32)).numpy()
        (length,) = size.view(np.int64)
        padded = np.frombuffer(data[:length].ljust(-(-length // 4) * 4, b"\0"), np.int32)
        pieces = [self._sum(padded[at : at + PIECE]).numpy() for at in range(0, len(padded), PIECE)]
        return b"".join(piece.tobytes() for piece in pieces)[:length]

    @cached_property
    def _sum(self) -> Callable[[np.ndarray], tf.Tensor]:
        """Sums the first device's numbers, int32 [n], with zeros from all other devices."""

        def of_first(numbers: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            numbers = tf.where(tf.equal(context.replica_id_in_sync_group, 0), numbers, 0)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, numbers)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)])
        def total(numbers: tf.Tensor) -> tf.Tensor:
            return self.strategy.experimental_local_results(self.strategy.run(of_first, (numbers,)))[0]

        return total


@contextmanager
def _default_signals() -> Iterator[None]:
    """Lets Ctrl-C end the process at once: Python's own handler waits until native code returns.

    Meanwhile TensorFlow takes over SIGTERM and ignores it. Afterwards the old handler is restored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _place(config: str) -> tuple[int, int]:
    """This worker's number (0 is the chief) and the number of workers, from the text of TF_CONFIG."""
    if not config:
        raise LqError("multi-worker: the environment variable TF_CONFIG, which lists the workers, is not set")
    try:
        parsed = json.loads(config)
        counts = {kind: len(parsed["cluster"].get(kind, ())) for kind in ("chief", "worker")}
        workers = [(kind, index) for kind, count in counts.items() for index in range(count)]
        return workers.index((parsed["task"]["type"], int(parsed["task"]["index"]))), len(workers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        example = '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
        raise LqError(f"multi-worker: TF_CONFIG has another form than {example}") from error
