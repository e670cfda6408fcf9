"""Detects models that were trained on all training data, including the validation split.

Such a model has memorized the validation labels, and no other weights reach its accuracy there. Then one half
of the test part replaces the validation split, and the other half is used for the report.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import tf_keras

from lqconvert.data.dataset import Data, Split
from lqconvert.data.preprocessing import Preprocessing
from lqconvert.errors import LqError
from lqconvert.quantization.model_outputs import logits_of, predict

log = logging.getLogger(__name__)

#: The smallest half of the test part that a run can be steered by.
SMALLEST_HALF = 100
#: A model that has memorized its labels is better by at least half a point and by two standard errors.
BY_HEART, SURE = 0.005, 2.0


def steer(
    folded: tf_keras.Model,
    data: Data,
    preprocessing: Preprocessing,
    steer_on: str,
) -> tuple[Data, bool]:
    """The data, with the examples that budgets are judged on in place of the validation split.

    Args:
        folded: the float model, with separate activations.
        steer_on: one of :data:`.budget.STEER_ON`. "auto" takes a half of the test part if the model is
            better on the validation split than on that half, by more than chance.

    Returns:
        the data, and whether a half of the test part replaces the validation split.

    Raises:
        LqError: if the test part is asked for, but there is none with labels.
    """
    answers = data.labelled and all(head.task != "reconstruction" for head in data.heads)
    usable = data.own_test and answers and data.test.size >= 2 * SMALLEST_HALF
    if steer_on == "test-half" and not usable:
        least = 2 * SMALLEST_HALF
        raise LqError(f"{data.name}: has no test part with {least} labelled examples", hint="test_half")
    if steer_on == "validation" or not usable:
        return data, False
    order = np.random.default_rng(0).permutation(data.test.size)  # the same in every run
    half, other = (data.test.pick(np.sort(part)) for part in np.array_split(order, 2))
    if steer_on == "auto":
        logits = logits_of(folded)
        known, unknown = (_qualities(logits, data, split, preprocessing) for split in (data.validation, half))
        gap = known.mean(axis=1) - unknown.mean(axis=1)
        error = np.sqrt(known.var(axis=1) / known.shape[1] + unknown.var(axis=1) / unknown.shape[1])
        if not np.any(gap > np.maximum(BY_HEART, SURE * error)):
            return data, False
        place = int(np.argmax(gap))
        better = f"{100 * gap[place]:.1f} points better"
        log.info(
            f"the float model is {better} on validation data than on test data: it was trained on both splits"
        )
    log.info(
        f"the budget is judged on {half.size:,} test examples, the report uses the other {other.size:,}; "
        "all training data are for training"
    )
    train = data.train.with_more(data.validation)
    return replace(data, train=train, validation=half, test=other), True


def _qualities(logits: tf_keras.Model, data: Data, split: Split, preprocessing: Preprocessing) -> np.ndarray:
    """Qualities, [criteria, n]."""
    answers = predict(logits, split, preprocessing)
    return data.heads.unweighted.qualities(answers, split.y, data.heads.activated(answers))
