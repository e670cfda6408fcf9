"""Quantization without training: bisection finds the price of a bit that suits the budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from lqconvert.data.dataset import Data, as_numpy
from lqconvert.data.preprocessing import Preprocessing
from lqconvert.exporting.codes import Codes
from lqconvert.quantization.calibrate import at_full_width
from lqconvert.quantization.layers import QuantizedLayer
from lqconvert.quantization.model_outputs import logits_of, predict
from lqconvert.quantization.post_training import PostTraining
from lqconvert.quantization.walk import activation_bytes
from lqconvert.training.budget import Budget, Point, Steering
from lqconvert.training.finetune import Evaluator, Finetuned, Progress, steering_of
from lqconvert.training.trainer import assign, values

#: The first price of a bit (in nats of an example's log-likelihood). The factor by which it changes until one
#: price holds the budget and another does not. How often the interval between them is halved (in logarithms).
START, FACTOR, HALVINGS = 1e-7, 8.0, 3
#: Then layers are rounded in order, which takes longer: for this many prices, up to this factor higher.
IN_ORDER, HIGHER = 3, 1.6
#: The lowest price keeps 8 bits; at the highest, no weight is left.
LEAST, MOST = 1e-14, 1e2
#: Rounding errors are weighed on this many training inputs. More of them (``PER_INPUT`` for each input of a
#: Dense layer that has one row in an example) are used if they take at most ``MOST_BYTES``.
LEAST_EXAMPLES, MOST_EXAMPLES, PER_INPUT, MOST_BYTES = 1024, 8192, 8, 1 << 28
#: The largest batch, and about the most memory for its activations, which gradients keep.
BATCH, ACTIVATION_BYTES = 1024, 1 << 30


def post_train(
    model: tf_keras.Model,
    teacher: tf_keras.Model,
    folded: tf_keras.Model,
    data: Data,
    preprocessing: Preprocessing,
    *,
    seed: int,
    budget: Budget,
    file_size: Callable[[Codes], int],
    progress: Callable[[Progress], None] = lambda _: None,
) -> Finetuned:
    """Rounds the weights of a calibrated model to the codes that serve the budget best. Nothing is trained.

    Args:
        model: a calibrated model from :func:`lqconvert.rewrite`. It is changed in place.
        teacher: the float model from :func:`.fold_batchnorm.fold`, whose outputs are the aim.
        folded: the float model of the same weights: the teacher, or what pruning left of it.
        data: budgets are judged on its validation split, rounding errors are weighed on training inputs.
        seed: chooses the training inputs.
        budget: without one, weights are rounded for the least damage, with the calibrated scales.
        file_size: (codes) -> the bytes of their file.
        progress: called after every rounding.

    Raises:
        KeyboardInterrupt: if Ctrl-C comes before the first rounding was evaluated.
    """
    logits = predict(logits_of(teacher), data.validation, preprocessing)
    search = _Search(
        model,
        Evaluator(model, data, preprocessing, logits, file_size),
        steering_of(budget, data, logits),
        progress,
    )
    finished = True
    try:
        search.run(PostTraining(model, folded, data.heads, rounding_inputs(model, data, preprocessing, seed)))
    except KeyboardInterrupt:
        finished = False
        if not search.points:
            raise
    assign(model.variables, search.best_variables)
    best, steering = search.best, search.steering
    return Finetuned(
        finished,
        best,
        steering.holds(best),
        steering.required,
        steering.tolerances(best),
        False,
        search.points,
    )


def rounding_inputs(model: tf_keras.Model, data: Data, preprocessing: Preprocessing, seed: int) -> list[Any]:
    """Batches of training inputs: as many as the errors of a rewritten model have to be weighed on."""
    inputs = [
        layer.input.shape[-1]
        for layer in model.layers
        if isinstance(layer, QuantizedLayer) and len(layer.input.shape) == 2
    ]
    examples = min(max(LEAST_EXAMPLES, *(PER_INPUT * n for n in inputs), 0), MOST_EXAMPLES)
    size = 4 * sum(tf.TensorShape(each.shape[1:]).num_elements() for each in model.inputs)
    examples = max(min(examples, MOST_BYTES // size), LEAST_EXAMPLES)
    size = min(BATCH, max(1, ACTIVATION_BYTES // (2 * activation_bytes(model))))
    batches = data.train.batches(size, shuffle_seed=seed, preprocessing=preprocessing)
    return [as_numpy(x) for _, x, _ in batches.take(-(-examples // size))]


class _Search:
    def __init__(
        self,
        model: tf_keras.Model,
        evaluator: Evaluator,
        steering: Steering,
        progress: Callable[[Progress], None],
    ) -> None:
        self.model, self.evaluator, self.steering, self.progress = model, evaluator, steering, progress
        self.points: list[Point] = []
        self.place = 0  # index of the best point
        self.best_variables: list[Any] = []

    @property
    def best(self) -> Point:
        return self.points[self.place]

    def run(self, post: PostTraining) -> None:
        """Tries prices, and keeps the variables that serve the budget best."""
        if not self.steering.budget.steers:
            post.round_in_order(0.0)
            self._see(0.0)
            return
        with at_full_width(self.model):  # plain int8: the result if nothing smaller holds the budget
            self._see(0.0)
        low, high = 0.0, math.inf
        price = START
        while LEAST < price < MOST and not (low and high < math.inf):
            low, high = (low, price) if self._enough(post.round, price) else (price, high)
            price = price * FACTOR if high == math.inf else price / FACTOR
        if low and high < math.inf:
            low, high = self._halved(post.round, math.sqrt(low * high), low, high, HALVINGS)
            self._halved(post.round_in_order, high, low, HIGHER * high, IN_ORDER)

    def _halved(
        self, round_: Callable[[float], None], price: float, low: float, high: float, times: int
    ) -> tuple[float, float]:
        """The part of an interval of prices that remains after some trials, the first at ``price``."""
        for _ in range(times):
            low, high = (low, price) if self._enough(round_, price) else (price, high)
            price = math.sqrt(low * high)
        return low, high

    def _enough(self, round_: Callable[[float], None], price: float) -> bool:
        """Whether a higher price is useless: the size is reached, or too much accuracy is lost."""
        round_(price)
        point = self._see(price)
        if self.steering.budget.max_size is not None:
            return self.steering.fits(point)
        return not self.steering.holds(point)

    def _see(self, price: float) -> Point:
        point = self.evaluator(len(self.points), price)
        self.steering.see(point)
        self.points.append(point)
        if not self.best_variables or self.steering.rank(point) >= self.steering.rank(self.best):
            self.place, self.best_variables = len(self.points) - 1, values(self.model.variables)
        self.progress(Progress(0, math.nan, self.evaluator.codes_in_use, point))
        return point
