"""Quantization without training: bisection finds the price of a bit that suits the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tf_keras

from lqconvert.data.dataset import Data
from lqconvert.data.preprocessing import Preprocessing
from lqconvert.exporting.codes import Codes
from lqconvert.quantization.calibrate import at_full_width
from lqconvert.quantization.model_outputs import logits_of, predict
from lqconvert.quantization.post_training import PostTraining
from lqconvert.training.budget import Budget, Point, Steering
from lqconvert.training.finetune import Evaluator, Finetuned, Progress, steering_of
from lqconvert.training.trainer import assign, values

#: The first price of a bit (in nats of an example's log-likelihood). The factor by which it changes until one
#: price holds the budget and another does not. How often the interval between them is halved (in logarithms).
START, FACTOR, HALVINGS = 1e-7, 8.0, 4
#: The lowest price keeps 8 bits; at the highest, no weight is left.
LEAST, MOST = 1e-14, 1e2


def post_train(
    model: tf_keras.Model,
    teacher: tf_keras.Model,
    data: Data,
    preprocessing: Preprocessing,
    batches: Sequence[Any],
    *,
    budget: Budget,
    file_size: Callable[[Codes], int],
    progress: Callable[[Progress], None] = lambda _: None,
) -> Finetuned:
    """Rounds the weights of a calibrated model to the codes that serve the budget best. Nothing is trained.

    Args:
        model: a calibrated model from :func:`lqconvert.rewrite`. It is changed in place.
        teacher: the float model from :func:`.fold_batchnorm.fold`.
        data: only its validation split is used: budgets are judged on it.
        batches: unlabelled inputs, preprocessed. Rounding errors are weighed on them.
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
        search.run(PostTraining(model, teacher, data.heads, batches))
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
            self._try(post, 0.0)
            return
        with at_full_width(self.model):  # plain int8: the result if nothing smaller holds the budget
            self._see(0.0)
        low, high = 0.0, math.inf
        price = START
        while LEAST < price < MOST and not (low and high < math.inf):
            low, high = (low, price) if self._enough(post, price) else (price, high)
            price = price * FACTOR if high == math.inf else price / FACTOR
        for _ in range(HALVINGS if low and high < math.inf else 0):
            price = math.sqrt(low * high)
            low, high = (low, price) if self._enough(post, price) else (price, high)

    def _enough(self, post: PostTraining, price: float) -> bool:
        """Whether a higher price is useless: the size is reached, or too much accuracy is lost."""
        point = self._try(post, price)
        if self.steering.budget.max_size is not None:
            return self.steering.fits(point)
        return not self.steering.holds(point)

    def _try(self, post: PostTraining, price: float) -> Point:
        post.round(price)
        return self._see(price)

    def _see(self, price: float) -> Point:
        point = self.evaluator(len(self.points), price)
        self.steering.see(point)
        self.points.append(point)
        if not self.best_variables or self.steering.rank(point) >= self.steering.rank(self.best):
            self.place, self.best_variables = len(self.points) - 1, values(self.model.variables)
        self.progress(Progress(0, math.nan, self.evaluator.codes_in_use, point))
        return point
