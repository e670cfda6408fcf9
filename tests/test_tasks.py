"""Tasks of outputs: their detection, loss, metrics and budgets, and what is printed about them."""

import functools

import numpy as np
import pytest
import small_tasks
import tensorflow as tf
import tf_keras
from click.testing import CliRunner
from conftest import run_lengths
from tf_keras import layers

from lqconvert import LqError, evaluate, load_model
from lqconvert.cli.main import main
from lqconvert.data.dataset import Data, Split
from lqconvert.data.preprocessing import Preprocessing
from lqconvert.metrics import balance, log_softmax, sigmoid
from lqconvert.quantization.model_outputs import outputs_of
from lqconvert.tasks import Head, Heads, Output, Score, Wishes, as_labels, find_head, head_labels
from lqconvert.training.memorized import steer
from lqconvert.training.trainer import _distillation, _head_loss

RNG = np.random.default_rng(0)
N = 40
CLASS = np.arange(N) % 4
TWO = np.arange(N) % 2
IMAGES = RNG.uniform(size=(N, 4, 4, 1)).astype(np.float32)
ROWS = RNG.normal(size=(N, 6)).astype(np.float32)
MASKS = RNG.integers(0, 3, (N, 4, 4))
SPOTS = RNG.integers(0, 2, (N, 4, 4))

SOFTMAX, LOGITS = Output("", (4,), "softmax"), Output("", (4,))
PAIR, SIGMOID, LINEAR = Output("", (2,), "softmax"), Output("", (1,), "sigmoid"), Output("", (1,))
SEVERAL = Output("", (4,), "sigmoid")
MAP, LOGIT_MAP = Output("", (4, 4, 3), "softmax"), Output("", (4, 4, 3))
SPOT_MAP, LOGIT_SPOTS = Output("", (4, 4, 1), "sigmoid"), Output("", (4, 4, 1))
AGAIN, UNIT = Output("", (6,)), Output("", (6,), "l2")


@pytest.mark.parametrize(
    ("task", "output", "labels", "inputs"),
    [
        ("classification", SOFTMAX, CLASS, ROWS),
        ("classification", LOGITS, CLASS, ROWS),
        ("classification", LOGITS, CLASS[:, np.newaxis], ROWS),
        ("classification", SOFTMAX, CLASS.astype(float), ROWS),
        ("classification", SOFTMAX, np.eye(4)[CLASS], ROWS),
        ("classification", LOGITS, np.eye(4, dtype=int)[CLASS], ROWS),
        ("classification", SOFTMAX, 0.9 * np.eye(4)[CLASS] + 0.025, ROWS),
        ("classification", SOFTMAX, np.array(["a", "b", "c", "d"])[CLASS], ROWS),
        ("classification", Output("", (1, 1, 4)), CLASS, ROWS),
        ("binary", PAIR, TWO, ROWS),
        ("binary", PAIR, np.eye(2)[TWO], ROWS),
        ("binary", PAIR, np.array(["no", "yes"])[TWO], ROWS),
        ("binary", SIGMOID, TWO, ROWS),
        ("binary", SIGMOID, TWO.astype(np.float32), ROWS),
        ("binary", SIGMOID, TWO.astype(bool)[:, np.newaxis], ROWS),
        ("binary", LINEAR, TWO, ROWS),
        ("binary", LINEAR, np.array(["no", "yes"])[TWO], ROWS),
        ("regression", LINEAR, TWO.astype(np.float32), ROWS),
        ("regression", LINEAR, 1990 + CLASS, ROWS),
        ("regression", SIGMOID, RNG.uniform(size=N), ROWS),
        ("regression", LOGITS, RNG.normal(size=(N, 4)), ROWS),
        ("regression", LOGIT_SPOTS, RNG.normal(size=(N, 4, 4)), ROWS),
        ("multi-label", SEVERAL, RNG.integers(0, 2, (N, 4)), ROWS),
        ("multi-label", LOGITS, RNG.integers(0, 2, (N, 4)).astype(bool), ROWS),
        ("segmentation", MAP, MASKS, ROWS),
        ("segmentation", MAP, MASKS[..., np.newaxis].astype(np.uint8), ROWS),
        ("segmentation", LOGIT_MAP, MASKS, ROWS),
        ("segmentation", MAP, np.eye(3)[MASKS], ROWS),
        ("segmentation", SPOT_MAP, SPOTS, ROWS),
        ("segmentation", SPOT_MAP, SPOTS[..., np.newaxis].astype(np.float32), IMAGES),
        ("segmentation", LOGIT_SPOTS, SPOTS.astype(bool), ROWS),
        ("reconstruction", AGAIN, None, ROWS),
        ("reconstruction", AGAIN, ROWS, ROWS),
        ("reconstruction", AGAIN, TWO, ROWS),
        ("reconstruction", SPOT_MAP, None, IMAGES),
        ("reconstruction", SPOT_MAP, TWO.astype(bool), IMAGES),
        ("reconstruction", SPOT_MAP, (255 * IMAGES).astype(np.uint8), (255 * IMAGES).astype(np.uint8)),
        ("raw", SOFTMAX, None, ROWS),
        ("raw", Output("", (6,), "softmax"), None, ROWS),
        ("raw", Output("", (9, 5)), None, IMAGES),
        ("embedding", UNIT, None, ROWS),
    ],
)
def test_the_task_is_found_out(task, output, labels, inputs):
    head = find_head("data", output, labels, inputs, Wishes())
    assert head.task == task
    if task not in ("reconstruction", "raw", "embedding"):
        normal = head_labels("data", head, labels, N)
        assert np.array_equal(as_labels(normal.reshape(N, -1).astype(np.float32), task), normal)
        expected = {"classification": CLASS, "binary": TWO}.get(task)
        if expected is not None:
            np.testing.assert_array_equal(normal, expected)
        if task == "segmentation":
            np.testing.assert_array_equal(normal, (MASKS if output.classes == 3 else SPOTS).reshape(N, -1))


@pytest.mark.parametrize(
    ("output", "labels", "message"),
    [
        (SOFTMAX, CLASS + 1, "label 4 is out of range: the model has 4 outputs"),
        (SOFTMAX, CLASS - 1, "label -1 is out of range"),
        (SOFTMAX, np.array(list("abcde"))[np.arange(N) % 5], "label 4 is out of range"),
        (MAP, MASKS + 1, "label 3 is out of range: the model has 3 outputs"),
        (SPOT_MAP, 255 * SPOTS, "label 255 is out of range"),
        (MAP, CLASS, r"one label for each example, but the model's answers are of shape \(4, 4, 3\)"),
        (MAP, np.zeros((N, 5, 5), int), "labels of 25 values for each example, but the model gives 48"),
        (LOGITS, CLASS.astype(float), "numbers of classes have to be integers"),
        (LOGITS, np.zeros((N, 4), complex), "labels of type complex128"),
        (LOGITS, np.full((N, 4), np.inf), "NaN or infinite"),
    ],
)
def test_labels_that_do_not_fit_are_refused(output, labels, message):
    with pytest.raises(LqError, match=message) as raised:
        find_head("data", output, labels, ROWS, Wishes())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("wishes", "output", "labels", "message"),
    [
        (Wishes(tasks={"": "regression"}), SOFTMAX, None, "regression needs labels"),
        (Wishes(metrics={"": "MAE"}), SOFTMAX, CLASS, "metric MAE: not one of classification; choose accur"),
        (Wishes(metrics={"": "no.module:f"}), SOFTMAX, CLASS, "metric no.module:f: cannot be imported"),
        (Wishes(tasks={"": "segmentation"}), MAP, CLASS, r"labels of shape \(\), but segmentation takes 16"),
    ],
)
def test_wishes_that_do_not_fit_are_refused(wishes, output, labels, message):
    with pytest.raises(LqError, match=message):
        find_head("data", output, labels, ROWS, wishes)


@pytest.mark.parametrize("field", ["tasks", "metrics", "weights"])
def test_wishes_name_outputs_that_there_are(field):
    with pytest.raises(LqError, match="the model's outputs are age, kind"):
        Wishes(**{field: {"colour": 1}}).check([Output("age", (1,)), Output("kind", (3,))])


def test_a_task_that_is_given_wins():
    years = find_head("data", SOFTMAX, np.eye(4)[CLASS], ROWS, Wishes(tasks={"": "regression"}))
    assert (years.task, years.label_size) == ("regression", 4)
    assert find_head("data", SOFTMAX, CLASS, ROWS, Wishes(tasks={"": "raw"})).label_size == 0


@pytest.mark.parametrize(
    ("output", "counts", "judged"),
    [
        (SOFTMAX, (10, 10, 10, 10), ("accuracy",)),
        (SOFTMAX, (20, 20, 20, 4), ("balanced accuracy",)),
        (SOFTMAX, (20, 20, 20, 0), ("accuracy",)),  # a class that is absent is not rare
        (SIGMOID, (30, 12), ("accuracy",)),
        (SIGMOID, (97, 3), ("balanced accuracy", "AUC")),
        (PAIR, (97, 3), ("balanced accuracy", "AUC")),
    ],
)
def test_no_rare_class_pays_for_the_bytes(output, counts, judged):
    labels = np.repeat(np.arange(len(counts)), counts)
    inputs = np.zeros((len(labels), 6), np.float32)
    head = find_head("data", output, labels, inputs, Wishes())
    assert head.judged == judged
    assert [metric.name for metric in head.metrics][: len(judged)] == list(judged)
    assert bool(head.class_weights) == head.uneven == (judged[0] != "accuracy")
    if head.uneven:
        there = np.array(head.class_weights)[labels]
        np.testing.assert_allclose(there, np.sqrt(balance(labels)))
    chosen = find_head("data", output, labels, inputs, Wishes(metrics={"": "accuracy"}))
    assert chosen.judged == ("accuracy",)


def test_names_of_classes_are_numbered_in_order():
    names = np.array(["dog", "cat", "owl", "ant"])[CLASS]
    head = find_head("data", SOFTMAX, names, ROWS, Wishes())
    assert head.class_names == ("ant", "cat", "dog", "owl")
    np.testing.assert_array_equal(np.array(head.class_names)[head_labels("data", head, names, N)], names)
    with pytest.raises(LqError, match="the test part has classes that the training part does not have"):
        head_labels("data", head, np.array(["bee"] * N), N)


@pytest.mark.parametrize(
    ("tail", "activation"),
    [
        ([layers.Dense(3, "softmax")], "softmax"),
        ([layers.Dense(3), layers.Softmax()], "softmax"),
        ([layers.Dense(3, "sigmoid")], "sigmoid"),
        ([layers.Dense(3)], ""),
        ([layers.Dense(3, "relu")], ""),
        ([layers.Dense(3), layers.UnitNormalization()], "l2"),
    ],
)
def test_what_is_known_of_a_models_output(tail, activation, tmp_path):
    tf_keras.Sequential([layers.Input((6,)), *tail]).save(tmp_path / "model.keras")
    (output,) = outputs_of(load_model(tmp_path / "model.keras"))
    assert (output.shape, output.activation) == ((3,), activation)


# Losses


def cross_entropy(logits, probabilities):
    return -np.sum(probabilities * log_softmax(logits), axis=-1)


def binary_cross_entropy(logits, probabilities):
    return -(probabilities * np.log(sigmoid(logits)) + (1 - probabilities) * np.log(sigmoid(-logits)))


def softmax(logits):
    return np.exp(log_softmax(logits))


def loss_of(head, teacher, labels, student, spread):
    """[n], in NumPy: half towards the labels and half towards the teacher."""
    n = len(student)
    by_class = (each.reshape(n, -1, head.output.classes) for each in (teacher, student))
    activation, task = head.output.activation, head.task
    if task in ("classification", "segmentation") and activation != "sigmoid" and head.output.classes > 1:
        t, s = by_class
        hard = cross_entropy(s, np.eye(head.output.classes)[labels.astype(int)].reshape(s.shape))
        return np.mean(cross_entropy(s, softmax(t)) + hard, axis=1) / 2
    if task in ("binary", "segmentation", "multi-label"):
        soft = binary_cross_entropy(student, sigmoid(teacher))
        return np.mean(soft + binary_cross_entropy(student, labels), axis=1) / 2
    if task in ("regression", "reconstruction"):
        if activation == "sigmoid":
            teacher, student = sigmoid(teacher), sigmoid(student)
        soft, hard = (student - teacher) ** 2, (student - labels[:, : student.shape[1]]) ** 2
        return np.mean((soft + hard) / spread, axis=1) / 2
    if activation == "softmax":
        t, s = by_class
        return np.mean(cross_entropy(s, softmax(t)), axis=1)
    if activation == "sigmoid":
        return np.mean(binary_cross_entropy(student, sigmoid(teacher)), axis=1)
    return np.mean((student - teacher) ** 2 / spread, axis=1)


LOSSES = [
    (SOFTMAX, "classification", CLASS[:, np.newaxis]),
    (LOGITS, "classification", CLASS[:, np.newaxis]),
    (SIGMOID, "binary", TWO[:, np.newaxis]),
    (LINEAR, "binary", TWO[:, np.newaxis]),
    (SEVERAL, "multi-label", RNG.integers(0, 2, (N, 4))),
    (LOGITS, "multi-label", RNG.integers(0, 2, (N, 4))),
    (MAP, "segmentation", MASKS.reshape(N, -1)),
    (LOGIT_MAP, "segmentation", MASKS.reshape(N, -1)),
    (SPOT_MAP, "segmentation", SPOTS.reshape(N, -1)),
    (LOGITS, "regression", RNG.normal(size=(N, 4))),
    (SIGMOID, "regression", RNG.uniform(size=(N, 1))),
    (AGAIN, "reconstruction", np.concatenate([ROWS, np.full((N, 1), np.nan)], axis=1)),
    (SOFTMAX, "raw", np.zeros((N, 0))),
    (SEVERAL, "raw", np.zeros((N, 0))),
    (LOGITS, "raw", np.zeros((N, 0))),
    (UNIT, "embedding", np.zeros((N, 0))),
]


@pytest.mark.parametrize(("output", "task", "labels"), LOSSES)
def test_the_loss_and_its_gradient_are_the_formulas(output, task, labels):
    rng = np.random.default_rng(1)
    teacher, student = rng.normal(size=(2, N, output.size))
    head, spread = Head(output, task, label_size=labels.shape[1]), np.array([1.7], np.float32)
    loss = _head_loss(head, spread, blended=False)
    x = tf.constant(student, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        values = loss(tf.constant(teacher, tf.float32), tf.constant(labels, tf.float32), x)
    np.testing.assert_allclose(values, loss_of(head, teacher, labels, student, spread), rtol=2e-5)
    gradient, step = tape.gradient(values, x).numpy(), 1e-5
    for place in rng.integers(0, output.size, 3):
        moved = np.zeros_like(student)
        moved[:, place] = step
        up, down = (loss_of(head, teacher, labels, student + sign * moved, spread) for sign in (1, -1))
        np.testing.assert_allclose(gradient[:, place], (up - down) / (2 * step), atol=2e-5)


@pytest.mark.parametrize(("output", "task", "labels"), LOSSES)
def test_labels_of_blended_examples_do_not_count(output, task, labels):
    teacher, student = np.random.default_rng(1).normal(size=(2, N, output.size)).astype(np.float32)
    head = Head(output, task, label_size=labels.shape[1])
    loss = _head_loss(head, np.ones(1, np.float32), blended=True)
    one, other = (loss(teacher, np.float32(each), student) for each in (labels, 0 * np.nan_to_num(labels)))
    np.testing.assert_array_equal(one, other)


def test_of_rare_classes_the_teacher_says_more_and_the_labels_nothing():
    labels = np.repeat([0, 1], [35, 5])
    head = find_head("data", SIGMOID, labels, ROWS, Wishes())
    teacher, student = np.random.default_rng(1).normal(size=(2, N, 1)).astype(np.float32)
    columns = labels[:, np.newaxis].astype(np.float32)
    loss = _head_loss(head, np.ones(1), blended=False)(teacher, columns, student)
    soft = binary_cross_entropy(student, sigmoid(teacher))[:, 0]
    np.testing.assert_allclose(loss, soft * np.sqrt(balance(labels)), rtol=1e-5)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 0.5)])
def test_losses_of_several_outputs_add_up_by_their_weights(weights):
    rng = np.random.default_rng(1)
    kinds = Head(SOFTMAX, "classification", label_size=1, weight=weights[0])
    sizes = Head(LINEAR, "regression", label_size=1, weight=weights[1])
    spreads = [np.ones(1, np.float32), np.array([100.0], np.float32)]
    teacher, student = rng.normal(size=(2, N, 5)).astype(np.float32)
    labels = np.stack([CLASS, 10 * rng.normal(size=N)], axis=1).astype(np.float32)
    loss = _distillation(Heads((kinds, sizes)), spreads, blended=False)
    values = loss(np.concatenate([teacher, labels], axis=1), student)
    first = loss_of(kinds, teacher[:, :4], labels[:, :1], student[:, :4], spreads[0])
    second = loss_of(sizes, teacher[:, 4:], labels[:, 1:], student[:, 4:], spreads[1])
    expected = (weights[0] * first + weights[1] * second) / sum(weights)
    np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_heads_take_outputs_and_labels_apart_and_together():
    heads = Heads(
        (
            Head(Output("kind", (4,), "softmax"), "classification", judged=("accuracy",)),
            Head(Output("mask", (4, 4, 3), "softmax"), "segmentation", label_size=16, judged=("mIoU",)),
            Head(Output("rest", (2,)), "raw", label_size=0, judged=("R² to float",)),
        )
    )
    labels = [CLASS, MASKS.reshape(N, 16), np.zeros((N, 0), np.float32)]
    joined = heads.join_labels(labels)
    assert joined.shape == (N, 17)
    for one, other in zip(heads.cut_labels(joined), labels, strict=True):
        np.testing.assert_array_equal(one, other)
    logits = np.random.default_rng(0).normal(size=(N, 54))
    kind, mask, rest = heads.cut(heads.activated(logits))
    assert kind.sum(axis=1) == pytest.approx(1)
    assert mask.shape == (N, 4, 4, 3)
    assert mask.sum(axis=-1) == pytest.approx(1)
    np.testing.assert_array_equal(rest, logits[:, 52:])
    outputs = heads.activated(logits)
    scores = heads.scores(outputs, joined, outputs)
    labelled = ["kind accuracy", "mask mIoU", "mask pixel accuracy"]
    assert [score.label for score in scores] == [*labelled, "rest R² to float"]
    assert heads.criterion_labels == ["kind accuracy", "mask mIoU", "rest R² to float"]
    judged = heads.judged_scores(outputs, joined, outputs)
    assert judged == [score.value for score in scores if score.label in heads.criterion_labels]
    assert heads.qualities(logits, joined, outputs).shape == (3, N)
    assert [score.label for score in heads.scores(outputs, joined, None)] == labelled


# Models that have memorized the validation split


def split_of(x, y):
    return Split(y, lambda index: x[index], (((2,), "float32"), ((), "int64")))


def data_of(validation, test, *, own_test=True):
    heads = Heads((Head(Output("", (2,)), "binary", judged=("accuracy",)),))
    return Data("points", validation, validation, test, heads, False, own_test=own_test)


@pytest.fixture
def oracle():
    """Logits of a model that takes the right class from its first input, and says it if the second is 1."""
    x = tf_keras.Input((2,))
    side = layers.Multiply()([x[:, :1], x[:, 1:]])
    return tf_keras.Model(x, layers.Concatenate()([-side, side]))


def points(n, known):
    """The oracle knows a share of the labels, and guesses the others."""
    rng = np.random.default_rng(n)
    y = rng.integers(0, 2, n)
    right = rng.uniform(size=n) < known
    first = np.where(right, 2 * y - 1, rng.choice([-1, 1], n))
    return split_of(np.stack([first, 3 * np.ones(n)], axis=1).astype(np.float32), y)


@pytest.mark.parametrize(("known", "steers_on_test"), [(1.0, True), (0.8, False)])
def test_answers_known_by_heart_are_no_bar(oracle, known, steers_on_test, said):
    data = data_of(points(800, known), points(1001, 0.8))
    found, on_test = steer(oracle, data, Preprocessing(), "auto")
    assert on_test == steers_on_test
    if not steers_on_test:
        assert found is data
        assert said == []
        return
    assert "points better on validation data than on test data: it was trained on both" in said[0]
    assert "the budget is judged on 501 test examples, the report uses the other 500" in said[1]
    assert (found.train.size, found.validation.size, found.test.size) == (1600, 501, 500)


def test_halves_are_apart_and_always_the_same(oracle):
    n = 900
    x = np.stack([np.arange(n), np.ones(n)], axis=1).astype(np.float32)
    data = data_of(points(800, 0.5), split_of(x, np.arange(n) % 2))
    halves = []
    for seed in (0, 1):
        tf_keras.utils.set_random_seed(seed)
        found, on_test = steer(oracle, data, Preprocessing(), "test-half")
        assert on_test
        halves.append([split.arrays()[0][:, 0].tolist() for split in (found.validation, found.test)])
    assert halves[0] == halves[1]
    steered, reported = map(set, halves[0])
    assert not steered & reported
    assert steered | reported == set(range(n))


@pytest.mark.parametrize("steer_on", ["auto", "validation", "test-half"])
@pytest.mark.parametrize(("size", "own_test"), [(900, False), (150, True)])
def test_without_a_test_part_there_is_no_half_of_it(oracle, steer_on, size, own_test):
    data = data_of(points(800, 1.0), points(size, 0.5), own_test=own_test)
    if steer_on == "test-half":
        with pytest.raises(LqError, match="points: has no test part with 200 labelled"):
            steer(oracle, data, Preprocessing(), steer_on)
    else:
        assert steer(oracle, data, Preprocessing(), steer_on) == (data, False)


# Whole runs

SHORTEST = {"minimum_steps": 12, "minimum_cycle": 2}


@pytest.fixture
def quantize(tmp_path):
    """Runs the command briefly, see :func:`small_tasks.quantized`."""
    with run_lengths(**SHORTEST):
        yield functools.partial(small_tasks.quantized, tmp_path, 1)


@pytest.fixture(scope="module")
def task_run(tmp_path_factory):
    """A brief run of a task by its name, each made once: its model, its data, its result and its report."""

    def made(name):
        model, data = small_tasks.made(name, folder := tmp_path_factory.mktemp(name))
        options = ("--weight", "age=2") if name == "two_outputs" else ()
        result, report = small_tasks.quantized(folder, 1, model, data, *options)
        assert result.exit_code == 0, result.output
        return model, data, result, report

    with run_lengths(**SHORTEST):
        yield functools.cache(made)


@pytest.mark.slow
def test_rare_positives_do_not_pay_for_the_bytes(task_run):
    _, _, result, report = task_run("detector")
    assert "task: binary, judged by balanced accuracy and AUC (classes are uneven)" in result.stderr
    assert report["criteria"] == ["balanced accuracy", "AUC"]
    assert report["settings"]["judged"] == {"alarm": ["balanced accuracy", "AUC"]}
    assert_holds(report)
    before, after = (
        {score["metric"]: score["value"] for score in scores}
        for scores in (report["float"]["scores"], report["files"][0]["scores"])
    )
    assert list(after) == ["balanced accuracy", "AUC", "accuracy", "F1", "precision", "recall"]
    for metric in ("balanced accuracy", "AUC"):
        assert after[metric] > before[metric] - 0.03
    rare = report["classes"][1]
    assert (rare["name"], rare["recall"]) == ("1", pytest.approx(after["recall"]))


def assert_holds(report):
    """Every validation quality of the best point is as high as its bar, but for sampling error."""
    qualities = report["best"]["qualities"]
    assert all(quality >= bar - 0.005 for quality, bar in zip(qualities, report["bar"], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", small_tasks.TASKS)
def test_no_task_comes_out_worse_than_of_tf_lite(name, task_run, tmp_path):
    """By more than a point, with these few examples, and no worse than the float model."""
    model, data, _, report = task_run(name)
    ours, floats = (by_label(scores) for scores in (report["files"][0]["scores"], report["float"]["scores"]))
    if name == "embedding":  # without labels it is compared with the float model
        assert report["criteria"] == ["cosine similarity"]
        others = [{"cosine similarity": 1.0}]
    else:
        peer = small_tasks.of_tf_lite(model, data, tmp_path / "peer.tflite")
        measured = evaluate(peer, str(data), preprocess=Preprocessing())
        others = [floats, {score.label: score.value for score in measured.scores}]
    for criterion in report["criteria"]:
        assert ours[criterion] >= max(other[criterion] for other in others) - 0.03, (ours, others)


def by_label(scores):
    return {Score(**each).label: each["value"] for each in scores}


@pytest.mark.slow
def test_every_output_holds_the_budget(task_run):
    *_, report = task_run("two_outputs")
    assert report["criteria"] == ["kind accuracy", "age R²"]
    assert report["settings"]["weights"] == {"kind": 1.0, "age": 2.0}
    assert_holds(report)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [(), ("--max-drop", "0")])
def test_a_file_by_default_and_exit_3_for_budgets_that_were_asked_for(asked, quantize, tmp_path, monkeypatch):
    """For a model that no quantized one reaches."""
    monkeypatch.setattr("lqconvert.training.budget.Steering.holds", lambda *_: False)
    result, report = quantize(*small_tasks.made("regression", tmp_path), *asked)
    if asked:
        assert result.exit_code == 3
        assert "error: no file with a drop of at most 0 points: the best validation quality" in result.stderr
        assert report is None
        assert not list(tmp_path.glob("out*"))
    else:
        assert result.exit_code == 0, result.output
        assert (tmp_path / "out.tflite").exists()
        said = "no file is as good as the float model on validation data. The best one is written: "
        (line,) = [line for line in result.stderr.splitlines() if said in line]
        assert "points below it in quality (R²); set --max-drop to allow a drop" in line


def test_arrays_that_nothing_uses_are_told_of(tmp_path):
    model, data = small_tasks.made("regression", tmp_path)
    with np.load(data) as arrays:
        np.savez(data, **arrays, sample_weight=np.ones(10))
    arguments = ["quantize", str(model), "--data", str(data), "--dry-run"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert f"{data}: nothing uses sample_weight" in result.stderr


def test_what_the_labels_do_not_tell_is_no_worse_than_float():
    """AUC without a positive: a small validation split may have none."""
    head = Head(Output("", (1,), "sigmoid"), "binary", judged=("balanced accuracy", "AUC"), uneven=True)
    logits, labels = RNG.normal(size=(9, 1)), np.zeros(9, np.int64)
    qualities = Heads((head,)).qualities(logits, labels, logits)
    assert np.isfinite(qualities).all()
    assert not qualities[1].any()
