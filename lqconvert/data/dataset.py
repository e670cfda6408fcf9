"""Examples with random access, and batches of them, in three splits: train, validation and test."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lqconvert.tasks import TASKS, Head, Heads

if TYPE_CHECKING:
    import tensorflow as tf

    from lqconvert.data.preprocessing import Preprocessing


@dataclass(frozen=True)
class Split:
    """Examples with random access.

    Attributes:
        y: the labels [n, ...]; float32 [n, 0] without labels.
        fetch: (indices int64 [b]) -> raw x [b, ...]. All examples together may not fit in memory.
        signature: (shape, dtype) of x and of y in a batch, without the batch axis.
        parts: the shapes of several inputs, which are flattened and concatenated in x.
    """

    y: np.ndarray
    fetch: Callable[[np.ndarray], np.ndarray]
    signature: tuple[tuple[tuple[int, ...], str], tuple[tuple[int, ...], str]]
    parts: tuple[tuple[int, ...], ...] = ()

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.y)

    def batches(
        self, batch_size: int, *, shuffle_seed: int | None = None, preprocessing: Preprocessing | None = None
    ) -> tf.data.Dataset:
        """Batches (index int64 [b], x, y). x is raw, or float32 if it is preprocessed.

        With several inputs, x is a tuple of them.
        """
        import tensorflow as tf

        indices = tf.data.Dataset.range(self.size)
        if shuffle_seed is not None:
            indices = indices.shuffle(self.size, seed=shuffle_seed, reshuffle_each_iteration=True)
        return (
            indices.batch(batch_size)
            .map(
                tf.autograph.experimental.do_not_convert(lambda at: (at, *self._fetched(at, preprocessing))),
                num_parallel_calls=2,
            )
            .prefetch(2)
        )

    def stream(
        self,
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        parts: int = 1,
        given: range = range(1),
        preprocessing: Preprocessing | None = None,
    ) -> tf.data.Dataset:
        """Endless batches (step, part, size, index, x, y). Each pass has another random order.

        A batch depends only on ``seed``, TensorFlow's global seed, and its step. So a stream can begin at any
        ``start``: only the order of the examples before it is computed.

        Args:
            parts: the number of parts of each batch. Example n is in part n modulo ``parts``.
            given: the parts to return, one after the other.

        Returns:
            step, part and size (of the whole batch) int64 []; index int64 [b], x and y of the part.
        """
        import tensorflow as tf

        places = tf.data.Dataset.range(self.size).shuffle(self.size, seed, reshuffle_each_iteration=True)
        indices = places.batch(batch_size).repeat().skip(start)
        batches = tf.data.Dataset.zip(tf.data.Dataset.counter(start), indices)

        @tf.autograph.experimental.do_not_convert
        def dealt(step: Any, index: Any) -> tf.data.Dataset:
            size = tf.size(index, tf.int64)
            return tf.data.Dataset.range(given.start, given.stop).map(
                lambda part: (step, part, size, index[part::parts])
            )

        @tf.autograph.experimental.do_not_convert
        def fetched(step: Any, part: Any, size: Any, at: Any) -> tuple[Any, ...]:
            return step, part, size, at, *self._fetched(at, preprocessing)

        return batches.flat_map(dealt).map(fetched, num_parallel_calls=2).prefetch(2)

    def _fetched(self, index: Any, preprocessing: Preprocessing | None) -> tuple[Any, Any]:
        """Tensors (x, y) of the examples at ``index``, an int64 tensor [b]."""
        import tensorflow as tf

        (x_shape, x_dtype), (y_shape, y_dtype) = self.signature
        x, y = tf.numpy_function(
            lambda at: (self.fetch(at), self.y[at]), [index], [x_dtype, y_dtype], stateful=False
        )
        x, y = tf.ensure_shape(x, (None, *x_shape)), tf.ensure_shape(y, (None, *y_shape))
        if preprocessing is not None:
            x = preprocessing(tf.cast(x, tf.float32))
        if self.parts:
            sizes = [math.prod(shape) for shape in self.parts]
            flat = zip(tf.split(x, sizes, axis=1), self.parts, strict=True)
            x = tuple(tf.reshape(part, (-1, *shape)) for part, shape in flat)
        return x, y

    def arrays(self, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The first ``limit`` examples as arrays, raw."""
        first = np.arange(min(self.size, limit or self.size))
        return self.fetch(first), self.y[first]

    def pick(self, indices: np.ndarray) -> Split:
        """The examples at these indices."""
        return replace(self, y=self.y[indices], fetch=lambda index: self.fetch(indices[index]))

    def relabelled(self, y: np.ndarray) -> Split:
        """The same examples with other labels [n, ...]."""
        x, _ = self.signature
        return replace(self, y=y, signature=(x, (y.shape[1:], y.dtype.name)))

    def with_more(self, other: Split) -> Split:
        """These examples, followed by those of another split of the same data."""
        size = self.size

        def fetch(index: np.ndarray) -> np.ndarray:
            behind = index >= size
            first, more = self.fetch(index[~behind]), other.fetch(index[behind] - size)
            x = np.empty((len(index), *first.shape[1:]), first.dtype)
            x[~behind], x[behind] = first, more
            return x

        return replace(self, y=np.concatenate([self.y, other.y]), fetch=fetch)


@dataclass(frozen=True)
class Data:
    """The three splits of one data set.

    Attributes:
        heads: the tasks of the model's outputs. The labels are in their form.
        integer_pixels: whether the raw inputs are integers in 0..255.
        own_test: whether the source has a test part. If not, it was taken from the training part.
        notes: lines that the user should know about the data.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    heads: Heads
    integer_pixels: bool
    own_test: bool = False
    notes: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """The number of examples in each split."""
        return {"train": self.train.size, "validation": self.validation.size, "test": self.test.size}

    @property
    def labelled(self) -> bool:
        return self.heads.labelled

    def held_against_float(self, head: Head) -> Data:
        """The data without the labels of an output, which is then compared with the float model's outputs."""
        place = self.heads.heads.index(head)
        heads = list(self.heads)
        heads[place] = replace(head, task="raw", label_size=0, judged=TASKS["raw"][:1])

        def relabelled(split: Split) -> Split:
            labels = self.heads.cut_labels(split.y)
            labels[place] = labels[place][:, :0]
            return split.relabelled(self.heads.join_labels(labels))

        train, validation, test = map(relabelled, (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test, heads=Heads(tuple(heads)))

    def retargeted(self, target: Callable[[np.ndarray], np.ndarray]) -> Data:
        """The data with converted targets of reconstructions. At first, the targets are the raw inputs."""
        places = [place for place, head in enumerate(self.heads) if head.task == "reconstruction"]
        if not places:
            return self

        def relabelled(split: Split) -> Split:
            labels = self.heads.cut_labels(split.y)
            for place in places:
                size = self.heads.heads[place].output.size
                labels[place] = np.concatenate(
                    [target(labels[place][:, :size]), labels[place][:, size:]], axis=1
                )
            return split.relabelled(self.heads.join_labels(labels))

        splits = (self.train, self.validation, self.test)
        train, validation, test = map(relabelled, splits)
        return replace(self, train=train, validation=validation, test=test)

    @property
    def class_names(self) -> list[str]:
        """The class names of the only output, if there are any."""
        return list(self.heads.single.class_names) if self.heads.single else []


def as_numpy(x: Any) -> Any:
    """The inputs of a batch as an array, or as a list of arrays if there are several inputs."""
    return [part.numpy() for part in x] if isinstance(x, tuple) else x.numpy()
