"""Scores, and the variations of images that do not change a model's outputs."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

from lqconvert.data.dataset import Data, Split
from lqconvert.data.preprocessing import Preprocessing
from lqconvert.metrics import (
    METRICS,
    TEMPERATURES,
    confidences,
    guesses,
    log_likelihoods,
    log_softmax,
    sigmoid,
)
from lqconvert.quantization.model_outputs import joined
from lqconvert.tasks import Head, Heads, Output
from lqconvert.training.augmentation import Augmentation, choose_augmentation

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(500, 4))
LABELS = np.array([RNG.choice(4, p=p) for p in np.exp(log_softmax(LOGITS))])


def accuracy(outputs, labels):
    return METRICS["accuracy"].measure(outputs, labels, 0.5)


@pytest.mark.parametrize("measure", [confidences, log_likelihoods])
def test_what_a_model_knows_does_not_depend_on_how_sure_it_is(measure):
    known = measure(LOGITS, LABELS)
    assert measure(4 * LOGITS, LABELS) == pytest.approx(known)
    for factor in (1.02, 1.04, 1.06, 1.1, 1.15):  # between the temperatures that are tried
        assert measure(factor * LOGITS, LABELS).mean() == pytest.approx(known.mean(), abs=1e-3)


def test_confidence_is_that_in_the_right_class_where_probabilities_are_true():
    # Labels were drawn from the softmax: the temperature is near 1.
    probabilities = np.exp(log_softmax(LOGITS))
    known = confidences(LOGITS, LABELS).mean()
    assert known == pytest.approx(probabilities[range(500), LABELS].mean(), abs=0.03)
    assert known == pytest.approx(1 - np.mean(np.sum((probabilities - np.eye(4)[LABELS]) ** 2, 1)), abs=0.005)
    assert log_likelihoods(LOGITS, LABELS).mean() == pytest.approx(
        log_softmax(LOGITS)[range(500), LABELS].mean(), abs=0.005
    )


def test_answers_with_axes_of_length_1_count_as_others():
    deep = LOGITS.reshape(500, 1, 1, 4)
    assert accuracy(deep, LABELS) == accuracy(LOGITS, LABELS)
    for measure in (confidences, log_likelihoods):
        np.testing.assert_array_equal(measure(deep, LABELS), measure(LOGITS, LABELS))


@pytest.mark.parametrize("name", ["flatten", "concatenate", "joined", "joined_0"])
def test_outputs_are_joined_whatever_layers_are_called(name):
    x = layers.Input((2, 3))
    y = layers.Flatten(name=name)(x)
    both = joined(tf_keras.Model(x, [y, x]))
    values = np.arange(12.0).reshape(2, 2, 3)
    np.testing.assert_array_equal(both(values), np.tile(values.reshape(2, 6), 2))


def test_two_classes_in_one_unit():
    logits = LOGITS[:, :1]
    labels = (RNG.uniform(size=500) < sigmoid(logits)[:, 0]).astype(int)
    both = np.concatenate([np.zeros_like(logits), logits], axis=1)
    for measure in (confidences, log_likelihoods):
        assert measure(logits, labels) == pytest.approx(measure(both, labels))
    assert accuracy(sigmoid(logits), labels) == accuracy(both, labels)


CLASSES = Heads((Head(Output("", (2,)), "classification", judged=("accuracy",)),))


def brightest(side):
    """Images with a bright spot in the left or right half; class 1 if ``side(x)``; and their data set."""
    x = RNG.integers(0, 50, (400, 16, 16, 1)).astype(np.uint8)
    columns = RNG.integers(3, 13, 400)
    columns[columns == 8] = 9
    x[np.arange(400), RNG.integers(3, 13, 400), columns] = 255
    y = side(columns).astype(np.int64)
    split = Split(y, lambda index: x[index], (((16, 16, 1), "uint8"), ((), "int64")))
    return Data("spots", split, split, split, CLASSES, True)


def spots(side):
    def predict(images):
        columns = images.max(axis=(1, 3)).argmax(axis=1)
        return np.eye(2)[side(columns).astype(int)]

    return predict


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (lambda columns: columns > 8, Augmentation(mirror=False, shift=0.0)),
        (lambda columns: abs(columns - 7.5) < 3.2, Augmentation(mirror=True, shift=0.0)),
        (lambda columns: columns >= 0, Augmentation(mirror=True, shift=1 / 8)),
    ],
)
def test_only_variations_that_the_model_does_not_mind(side, expected):
    assert choose_augmentation(spots(side), brightest(side), Preprocessing()) == expected


@pytest.mark.parametrize(
    ("known", "others", "blend"), [(1.0, 0.8, True), (0.9, 0.8, False), (1.0, 0.97, False)]
)
def test_images_that_the_model_knows_by_heart_are_blended(known, others, blend):
    x = np.broadcast_to(RNG.integers(0, 256, (400, 1, 1, 1)).astype(np.uint8), (400, 16, 16, 1))

    def answers(images):
        return np.eye(2)[(images.mean(axis=(1, 2, 3)) > 128).astype(int)]

    def split(right):
        y = answers(x).argmax(axis=1)
        y[round(400 * right) :] ^= 1
        return Split(y, lambda index: x[index], (((16, 16, 1), "uint8"), ((), "int64")))

    data = Data("greys", split(known), split(others), split(others), CLASSES, True)
    assert choose_augmentation(answers, data, Preprocessing()) == Augmentation(True, 1 / 8, blend)


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_images_are_blended_with_the_same_partner_wherever_they_are(parts):
    size, blend = 38, Augmentation(blend=True)
    images = np.tile(np.eye(size, dtype=np.float32)[:, None, None], (1, 16, 16, 1))  # a channel for each
    mine = [blend(images[part::parts], (0, 1), part, parts, size) for part in range(parts)]
    for part, blended in enumerate(mine):
        assert blended.shape == images[part::parts].shape
        for number, ratios in zip(range(part, size, parts), np.array(blended[:, 3, 5]), strict=True):
            assert ratios.sum() == pytest.approx(1)
            partner = number if number >= 32 else (number + 16) % 32
            assert set(np.flatnonzero(ratios)) == {number, partner}
    again = blend(images, (0, 1)).numpy()
    assert all(np.array_equal(again[part::parts], blended) for part, blended in enumerate(mine))
    assert not np.array_equal(again, blend(images, (0, 2)))


def test_images_are_moved_whole():
    images = tf.reshape(tf.range(2.0 * 16 * 16 * 3), (2, 16, 16, 3))
    moved = Augmentation(shift=1 / 8)(images, seed=(0, 1)).numpy()
    assert moved.shape == images.shape
    inner = moved[:, 4:12, 4:12]
    found = [
        np.array_equal(inner, images[:, 4 + r : 12 + r, 4 + c : 12 + c])
        for r in range(-2, 3)
        for c in range(-2, 3)
    ]
    assert sum(found) == 1
    mirrored = Augmentation(mirror=True)(images, seed=(0, 1)).numpy()
    assert all(
        np.array_equal(m, i) or np.array_equal(m, i[:, ::-1])
        for m, i in zip(mirrored, images.numpy(), strict=True)
    )


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([[0.4], [0.6], [1.0000001]], [0, 1, 1]),
        ([[-3.0], [0.2], [4.0]], [0, 1, 1]),
        ([[0.1, 0.9], [2.0, -1.0]], [1, 0]),
    ],
    ids=["probabilities", "logits", "of two"],
)
def test_guesses(outputs, expected):
    assert guesses(np.array(outputs, np.float32)).tolist() == expected


def test_the_best_of_several_maxima_is_found():
    """Of few answers that are sure, some of them wrong, and many that are hardly better than chance."""
    for seed in range(100):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, 200)
        right = rng.random(200) < 0.7
        sizes = np.where(rng.random(200) < 0.5, 12.0, 0.3)
        answers = np.where(right, labels, 1 - labels)
        logits = np.zeros((200, 2))
        logits[np.arange(200), answers] = sizes
        found = confidences(logits, labels).mean()
        probabilities = [np.exp(log_softmax(logits / t)) for t in TEMPERATURES]
        every = [np.mean(2 * p[np.arange(200), labels] - np.sum(p**2, axis=1)) for p in probabilities]
        assert found == pytest.approx(max(every), abs=2e-3)
