"""Every metric equals scikit-learn's. The values for each example have it as their mean, with its error."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sk

from lqconvert.metrics import METRICS, agreement, balance, class_overlaps, confidences

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(2, 40)


def value(name, outputs, labels, threshold=0.5):
    return METRICS[name].measure(outputs, labels, threshold)


def softmax(logits):
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


# Against scikit-learn


@given(SEEDS, SIZES, st.integers(2, 7), st.booleans())
@settings(deadline=None)
def test_classification(seed, n, classes, logits):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, rng.integers(1, classes + 1), n)  # some classes may be absent
    outputs = rng.normal(size=(n, classes)) * 3 if logits else softmax(rng.normal(size=(n, classes)))
    guessed = outputs.argmax(axis=1)
    assert value("accuracy", outputs, labels) == pytest.approx(sk.accuracy_score(labels, guessed))
    recall = sk.recall_score(labels, guessed, labels=np.unique(labels), average="macro", zero_division=0)
    assert value("balanced accuracy", outputs, labels) == pytest.approx(recall)
    if classes > 5:
        top = sk.top_k_accuracy_score(labels, outputs, k=5, labels=np.arange(classes))
        assert value("top-5", outputs, labels) == pytest.approx(top)


@pytest.mark.parametrize("form", ["one probability", "one logit", "two probabilities", "two logits"])
@given(SEEDS, SIZES, st.sampled_from([0.2, 0.5, 0.8]))
@settings(deadline=None, max_examples=40)
def test_two_classes(form, seed, n, threshold):
    """Scores have few values, and so ties; one class may be absent."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(-4, 5, n) * 0.75 + 0.1
    logits[0] = -2.9  # or logits might look like probabilities
    probabilities = 1 / (1 + np.exp(-logits))
    labels = (rng.uniform(size=n) < rng.uniform()).astype(np.int64)
    outputs = {
        "one probability": probabilities[:, np.newaxis],
        "one logit": logits[:, np.newaxis],
        "two probabilities": np.stack([1 - probabilities, probabilities], axis=1),
        "two logits": np.stack([-logits / 2, logits / 2], axis=1),
    }[form]
    guessed = (probabilities > threshold).astype(int)
    assert value("accuracy", outputs, labels, threshold) == pytest.approx(sk.accuracy_score(labels, guessed))
    expected = {
        "precision": sk.precision_score(labels, guessed, zero_division=0) if labels.any() else np.nan,
        "recall": sk.recall_score(labels, guessed, zero_division=np.nan),
        "F1": sk.f1_score(labels, guessed, zero_division=0) if labels.any() else np.nan,
        "AUC": sk.roc_auc_score(labels, probabilities) if 0 < labels.sum() < n else np.nan,
    }
    for name, other in expected.items():
        assert value(name, outputs, labels, threshold) == pytest.approx(other, nan_ok=True), name


@given(SEEDS, SIZES, st.integers(2, 5), st.sampled_from([0.3, 0.5]), st.booleans())
@settings(deadline=None)
def test_several_labels(seed, n, count, threshold, logits):
    rng = np.random.default_rng(seed)
    values = rng.integers(-3, 4, (n, count)) + 0.5
    values[0] = -3  # or logits might look like probabilities
    probabilities = 1 / (1 + np.exp(-values))
    labels = rng.integers(0, 2, (n, count)).astype(np.float32)
    outputs = values if logits else probabilities
    guessed = probabilities > threshold
    f1 = sk.f1_score(labels.ravel(), guessed.ravel(), zero_division=0) if labels.any() else np.nan
    assert value("micro-F1", outputs, labels, threshold) == pytest.approx(f1, nan_ok=True)
    vary = [k for k in range(count) if 0 < labels[:, k].sum() < n]  # of the others there is no AUC
    areas = [sk.roc_auc_score(labels[:, k], probabilities[:, k]) for k in vary]
    mean = np.mean(areas) if areas else np.nan
    assert value("mean AUC", outputs, labels, threshold) == pytest.approx(mean, nan_ok=True)


@given(SEEDS, st.integers(1, 6), st.integers(1, 4), st.booleans())
@settings(deadline=None)
def test_segmentation(seed, n, classes, logits):
    """A class at each of 3 x 2 positions; a class that is only guessed takes no part."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, rng.integers(1, max(classes, 2) + 1), (n, 6))
    outputs = rng.normal(size=(n, 3, 2, classes)) * 4
    outputs[0, 0, 0] = -4
    if classes == 1:
        guessed = (outputs > 0).reshape(n, 6).astype(int)
        outputs = outputs if logits else 1 / (1 + np.exp(-outputs))
    else:
        guessed = outputs.argmax(axis=-1).reshape(n, 6)
        outputs = outputs if logits else softmax(outputs)
    there = np.unique(labels)
    each = sk.jaccard_score(labels.ravel(), guessed.ravel(), labels=there, average=None, zero_division=0)
    assert class_overlaps(guessed, labels) == pytest.approx(dict(zip(there.tolist(), each, strict=True)))
    assert value("mIoU", outputs, labels) == pytest.approx(each.mean())
    accuracy = sk.accuracy_score(labels.ravel(), guessed.ravel())
    assert value("pixel accuracy", outputs, labels) == pytest.approx(accuracy)


@given(SEEDS, SIZES, st.integers(1, 4), st.floats(1e-3, 1e5))
@settings(deadline=None)
def test_regression(seed, n, columns, unit):
    rng = np.random.default_rng(seed)
    labels = (unit * (rng.normal(size=(n, columns)) + 3)).astype(np.float32)
    outputs = (labels + unit * rng.normal(size=labels.shape) / 2).astype(np.float32)
    assert value("R²", outputs, labels) == pytest.approx(sk.r2_score(labels, outputs), rel=1e-3, abs=1e-4)
    assert value("MAE", outputs, labels) == pytest.approx(sk.mean_absolute_error(labels, outputs))
    rmse = np.sqrt(sk.mean_squared_error(labels.ravel(), outputs.ravel()))
    assert value("RMSE", outputs, labels) == pytest.approx(rmse)
    together = 1 - np.sum((outputs - labels) ** 2.0) / np.sum((labels - labels.mean(axis=0)) ** 2.0)
    assert value("R² to float", outputs, labels) == pytest.approx(together, rel=1e-3, abs=1e-4)


@given(SEEDS, SIZES)
@settings(deadline=None)
def test_reconstruction(seed, n):
    """Anomalies should not be reconstructed: the larger their errors, the better the AUC."""
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=(n, 6)).astype(np.float32)
    outputs = (targets + rng.normal(size=(n, 6)) * rng.uniform(size=(n, 1))).reshape(n, 2, 3)
    anomalies = rng.integers(0, 2, n)
    usual = anomalies == 0
    labels = np.concatenate([targets, anomalies[:, np.newaxis]], axis=1)
    errors = np.mean((outputs.reshape(n, 6) - targets) ** 2, axis=1)
    both = 0 < anomalies.sum() < n
    area = sk.roc_auc_score(anomalies, errors) if both else np.nan
    assert value("anomaly AUC", outputs, labels) == pytest.approx(area, nan_ok=True)
    rmse = np.sqrt(errors[usual].mean()) if usual.any() else np.nan
    assert value("reconstruction RMSE", outputs, labels) == pytest.approx(rmse, nan_ok=True)
    if usual.sum() > 1:
        explained = 1 - errors[usual].mean() / targets[usual].var(axis=0).mean()
        assert value("reconstruction R²", outputs, labels) == pytest.approx(explained, rel=1e-3, abs=1e-4)
    unknown = np.concatenate([targets, np.full((n, 1), np.nan)], axis=1)
    assert value("reconstruction RMSE", outputs, unknown) == pytest.approx(np.sqrt(errors.mean()))
    assert np.isnan(value("anomaly AUC", outputs, unknown))


@given(SEEDS, SIZES)
@settings(deadline=None, max_examples=30)
def test_against_float(seed, n):
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=(n, 5))
    outputs = teacher + rng.normal(size=(n, 5))
    pairs = sk.pairwise.paired_cosine_distances(outputs, teacher)
    assert value("cosine similarity", outputs, teacher) == pytest.approx(1 - pairs.mean())
    same = np.mean(outputs.argmax(axis=1) == teacher.argmax(axis=1))
    assert value("agreement with float", outputs, teacher) == agreement(outputs, teacher) == same


# Properties


@given(arrays(np.float64, st.integers(2, 30), elements=st.sampled_from([0.0, 0.25, 0.5, 0.75])), SEEDS)
@settings(deadline=None)
def test_auc_is_the_chance_of_a_right_order(scores, seed):
    labels = np.random.default_rng(seed).integers(0, 2, len(scores))
    ones, zeros = scores[labels == 1], scores[labels == 0]
    assume(len(ones) and len(zeros))
    pairs = (ones[:, np.newaxis] > zeros) + 0.5 * (ones[:, np.newaxis] == zeros)
    area = value("AUC", scores[:, np.newaxis], labels)
    assert area == pytest.approx(pairs.mean())
    assert value("AUC", scores[:, np.newaxis] / 2 + 0.1, labels) == pytest.approx(area)  # any rising function
    assert value("AUC", scores[:, np.newaxis], 1 - labels) == pytest.approx(1 - area)


def test_top_5_of_ties_is_for_the_model():
    assert value("top-5", np.zeros((2, 20)), np.array([0, 19])) == 1.0
    assert value("top-5", np.arange(20.0)[np.newaxis], np.array([14])) == 0.0


@pytest.mark.parametrize("outputs", [np.full((9, 1), 3.0), np.arange(9.0)[:, np.newaxis]])
def test_constant_targets_explain_nothing(outputs):
    labels = np.full((9, 1), 3.0, np.float32)
    assert np.isnan(value("R²", outputs, labels))
    assert value("MAE", outputs, labels) == np.abs(outputs - 3).mean()
    assert np.isfinite(METRICS["MAE"].qualities(outputs, labels, 0.5)).all()


@pytest.mark.parametrize("name", METRICS)
def test_whether_there_is_a_number_does_not_depend_on_the_answers(name):
    """Tables have the same rows for every file: here all classes, targets and answers may be constant."""
    rng = np.random.default_rng(5)
    outputs, labels = case(name, 40, rng)
    for truth in (labels, np.zeros_like(labels), np.ones_like(labels)):
        answers = outputs, np.zeros_like(outputs), np.ones_like(outputs), -np.ones_like(outputs)
        known = {bool(np.isnan(value(name, each, truth))) for each in answers}
        assert len(known) == 1


def test_constant_columns_take_no_part():
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(50, 2))
    outputs = labels + 0.3 * rng.normal(size=(50, 2))
    constant = np.full((50, 1), 7.0)
    wider = (np.concatenate([constant, each], axis=1) for each in (outputs + 0.1, labels))
    assert value("R²", *wider) == pytest.approx(value("R²", outputs + 0.1, labels))


@given(arrays(np.int64, st.integers(1, 50), elements=st.integers(0, 4)))
def test_balanced_classes_count_alike(labels):
    weights = balance(labels)
    sums = [weights[labels == label].sum() for label in np.unique(labels)]
    assert weights.mean() == pytest.approx(1)
    assert sums == pytest.approx([sums[0]] * len(sums))


def test_confidences_follow_the_weights_of_rare_classes():
    """The temperature that suits the weighted examples is chosen."""
    rng = np.random.default_rng(0)
    labels = (rng.uniform(size=2000) < 0.05).astype(np.int64)
    logits = np.stack([np.zeros(2000), rng.normal(size=2000) + 2 * labels], axis=1)
    weights = balance(labels)
    assert np.mean(weights * confidences(logits, labels, weights)) >= np.mean(
        weights * confidences(logits, labels)
    )


# What budgets judge


def case(name, n, rng):
    """Outputs and labels as the metric takes them, of a model that is right about as often as models are."""
    if name in ("accuracy", "balanced accuracy", "top-5"):
        labels = rng.choice(12, n, p=np.arange(1, 13) / 78)
        return softmax(2 * np.eye(12)[labels] + rng.normal(size=(n, 12))), labels
    if name in ("AUC", "F1", "precision", "recall"):
        labels = (rng.uniform(size=n) < 0.3).astype(np.int64)
        return (2 * labels - 1 + rng.normal(size=n))[:, np.newaxis], labels
    if name in ("mean AUC", "micro-F1"):
        labels = (rng.uniform(size=(n, 3)) < 0.4).astype(np.float32)
        return 2 * labels - 1 + rng.normal(size=labels.shape), labels
    if name in ("mIoU", "pixel accuracy"):
        labels = rng.integers(0, 3, (n, 6))
        return 2 * np.eye(3)[labels].reshape(n, 3, 2, 3) + rng.normal(size=(n, 3, 2, 3)), labels
    targets = rng.normal(size=(n, 4)) * (1, 2, 3, 4)
    outputs = targets + rng.normal(size=(n, 4))
    if "reconstruction" in name or name == "anomaly AUC":
        anomalies = rng.uniform(size=n) < 0.2
        outputs = outputs + anomalies[:, np.newaxis] * rng.normal(size=(n, 4))
        return outputs, np.concatenate([targets, anomalies[:, np.newaxis]], axis=1).astype(np.float32)
    return outputs, targets.astype(np.float32)


def in_points(metric, number, labels):
    """The number where more is better: errors are counted in standard deviations of the targets."""
    return -number / np.sqrt(np.mean(np.var(labels[:, :4], axis=0))) if metric.error else number


@pytest.mark.parametrize("n", [2, 20, 640, 1000])
@pytest.mark.parametrize("name", METRICS)
def test_the_mean_of_qualities_is_the_metric(name, n):
    """For any number of examples, in which classes may be absent."""
    outputs, labels = case(name, n, np.random.default_rng(1))
    metric = METRICS[name]
    qualities = metric.qualities(outputs, labels, 0.5)
    assert qualities.shape == (n,)
    number = in_points(metric, metric.measure(outputs, labels, 0.5), labels)
    assert qualities.mean() == pytest.approx(number, nan_ok=True)


@pytest.mark.parametrize("name", METRICS)
def test_the_spread_of_qualities_is_the_sampling_error(name):
    """The sampling error of the difference between two models on the same examples equals a bootstrap's."""
    rng = np.random.default_rng(2)
    n = 960
    outputs, labels = case(name, n, rng)
    other = outputs + 0.7 * rng.normal(size=outputs.shape)
    metric = METRICS[name]
    one, two = (metric.qualities(each, labels, 0.5) for each in (outputs, other))
    error = (one - two).std() / np.sqrt(n)
    again = []
    for _ in range(150):
        drawn = rng.integers(0, n, n)
        a, b = (metric.measure(each[drawn], labels[drawn], 0.5) for each in (outputs, other))
        again.append(in_points(metric, a - b, labels))
    assert error == pytest.approx(np.std(again), rel=0.35)  # 32 groups of examples tell no more


@pytest.mark.parametrize("name", METRICS)
def test_a_better_model_has_the_better_quality(name):
    outputs, labels = case(name, 600, np.random.default_rng(3))
    answers = outputs, np.random.default_rng(4).permutation(outputs)
    better, worse = (METRICS[name].qualities(each, labels, 0.5).mean() for each in answers)
    assert better > worse


@pytest.mark.parametrize(
    ("name", "number", "text"),
    [
        ("accuracy", 0.975, "97.50%"),
        ("AUC", 0.99216, "0.9922"),
        ("MAE", 17.6123, "17.61"),
        ("R²", -0.5, "-0.5"),
        ("recall", float("nan"), "-"),
    ],
)
def test_numbers_are_written_as_people_know_them(name, number, text):
    assert METRICS[name].text(number) == text


def test_options_differ():
    options = [metric.option for metric in METRICS.values()]
    assert len(set(options)) == len(options)
    assert all(
        option.isascii()
        for metric, option in zip(METRICS.values(), options, strict=True)
        if not metric.against_float
    )
