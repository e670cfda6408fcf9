"""Data from every source in three splits that never mix."""

import io
import os
import struct
import sys
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from lqconvert import LqError, load_data
from lqconvert.data import image_files as images_of
from lqconvert.data.image_files import ImageFolder, ZippedImages
from lqconvert.data.preprocessing import PREPROCESSINGS, Preprocessing, choose_preprocessing
from lqconvert.tasks import Output, Wishes

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (60, 6, 5, 3), dtype=np.uint8)
Y = np.arange(60) % 2


def png(image: np.ndarray) -> bytes:
    return tf.io.encode_png(image).numpy()


def image_files(layout: str) -> dict[str, bytes]:
    """Names and contents of X as class folders cat and dog; of 60 images 20 are test images where asked."""
    part = {
        "plain": lambda i: "",
        "train and test": lambda i: "test/" if i < 20 else "train/",
        "within": lambda i: "test/Testing/" if i < 20 else "test/Training/",
        "deep": lambda i: "test/pets/" if i < 20 else "train/pets/",
    }[layout]
    return {f"{part(i)}{('cat', 'dog')[Y[i]]}/{i:02}.png": png(X[i]) for i in range(60)}


SOME = image_files("plain")


@pytest.fixture(params=["folder", "zip"])
def images(request, tmp_path):
    """Writes files as a folder or as a zip."""

    def write(files: dict[str, bytes]) -> str:
        if request.param == "zip":
            with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
            return str(tmp_path / "images.zip")
        for name, content in files.items():
            (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "images" / name).write_bytes(content)
        return str(tmp_path / "images")

    return write


def splits(data):
    return data.train, data.validation, data.test


def keys(split):
    """The examples of a split as a set: all of X differ."""
    return {x.tobytes() for x in split.arrays()[0]}


def assert_disjoint_and_complete(data, examples):
    parts = [keys(split) for split in splits(data)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == len(examples)
    assert set.union(*parts) == {x.tobytes() for x in examples}


@pytest.mark.parametrize(
    ("layout", "test_size"), [("plain", 12), ("train and test", 20), ("within", 20), ("deep", 20)]
)
def test_image_folders(images, layout, test_size):
    data = load_data(images(image_files(layout)), (6, 5, 3), 2)
    assert data.class_names == ["cat", "dog"]
    assert data.heads.single.classifies
    assert data.integer_pixels
    assert data.test.size == test_size
    assert_disjoint_and_complete(data, X)
    truth = {x.tobytes(): y for x, y in zip(X, Y, strict=True)}
    for split in splits(data):
        for x, y in zip(*split.arrays(), strict=True):
            assert truth[x.tobytes()] == y
    if layout != "plain":
        assert keys(data.test) == {x.tobytes() for x in X[:20]}


@pytest.mark.parametrize("kept", [0, 10])
def test_images_that_are_not_kept_are_decoded_again(images, kept, monkeypatch):
    monkeypatch.setattr("lqconvert.data.sources.CACHED_BYTES", kept * X[0].nbytes)
    data = load_data(images(image_files("plain")), (6, 5, 3), 2)
    for _ in range(2):
        assert_disjoint_and_complete(data, X)


def test_names_of_images_may_have_any_letters(images):
    data = load_data(
        images({f"{'пёс' if n % 2 else 'кот'}/{n}é.png": png(x) for n, x in enumerate(X)}), (6, 5, 3), 2
    )
    assert data.class_names == ["кот", "пёс"]
    assert_disjoint_and_complete(data, X)


def test_what_others_leave_beside_images_is_none(images):
    beside = ("__MACOSX/cat/._00.png", "cat/._00.png", ".thumbnails/00.png", "cat/.ipynb_checkpoints/00.png")
    data = load_data(images(image_files("plain") | dict.fromkeys(beside, b"no image")), (6, 5, 3), 2)
    assert data.class_names == ["cat", "dog"]
    assert_disjoint_and_complete(data, X)


def test_images_are_resized_and_turned_gray(images):
    data = load_data(images(image_files("plain")), (4, 4, 1), 2)
    assert data.train.arrays()[0].shape[1:] == (4, 4, 1)


def test_a_broken_image_is_named(images):
    files = image_files("plain") | {"cat/00.png": b"not an image"}
    data = load_data(images(files), (6, 5, 3), 2)
    with pytest.raises(LqError, match=r"00\.png is not a readable image"):
        [split.arrays() for split in splits(data)]


@pytest.mark.parametrize(
    ("files", "shape", "outputs", "message"),
    [
        ({"readme.txt": b""}, (6, 5, 3), 2, "no images in class folders"),
        (image_files("plain"), (6, 5), 2, "not images"),
        (image_files("plain"), (None, None, 3), 2, "size is unknown"),
        ({f"{n}/{n}.png": png(X[0]) for n in range(30)}, (6, 5, 3), 10, "30 class folders, but the model"),
        (image_files("plain"), (6, 5, 3), 10, "2 class folders, but the model"),
        (image_files("plain") | {"cat/more/1.png": png(X[0])}, (6, 5, 3), 2, "at different depths"),
    ],
)
def test_unusable_images(images, files, shape, outputs, message):
    with pytest.raises(LqError, match=message):
        load_data(images(files), shape, outputs)


def test_class_folders_may_be_links(tmp_path):
    for name, content in image_files("plain").items():
        (tmp_path / "elsewhere" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "elsewhere" / name).write_bytes(content)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (tmp_path / "elsewhere" / "cat").rename(tmp_path / "images" / "cat")
    (tmp_path / "images" / "cat" / "up").symlink_to(tmp_path / "images")  # goes in circles
    data = load_data(str(tmp_path / "images"), (6, 5, 3), 2)
    assert data.class_names == ["cat", "dog"]
    assert_disjoint_and_complete(data, X)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("bmp", "RGB"), ("bmp", "L"), ("bmp", "P"), ("gif", "P"), ("png", "P"), ("jpg", "CMYK")],
)
def test_kinds_of_images(suffix, mode, channels, tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    smooth = np.linspace((0, 40, 200), (250, 90, 10), 64)[:, np.newaxis] * np.ones((1, 64, 1))
    image = image_module.fromarray(smooth.astype(np.uint8)).convert(mode)
    for number in range(30):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    data = load_data(str(tmp_path / "images"), (64, 64, channels), 2)
    if (suffix, mode) == ("bmp", "P"):
        with pytest.raises(LqError, match="bmp is not a readable image"):
            data.train.arrays(1)
        return
    (found, *_), _ = data.train.arrays(1)
    expected = np.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(64, 64, channels)
    assert np.abs(found.astype(int) - expected).mean() < 3


def test_no_zip(tmp_path):
    (tmp_path / "x.zip").write_text("no")
    with pytest.raises(LqError, match="not a readable zip"):
        load_data(str(tmp_path / "x.zip"), (6, 5, 3), 2)


def test_one_long_name_among_many_takes_no_memory(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in (f"cat/{'x' * 60_000}.png", *(f"cat/{n}.png" for n in range(2_000))):
            archive.writestr(name, b"")
    tracemalloc.start()
    try:
        images = ZippedImages(tmp_path / "x.zip")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(images) == 2_001
    assert images.name(2_000) == f"cat/{'x' * 60_000}.png"
    assert peak < 10e6


def test_threads_share_a_zip(tmp_path):
    """Python 3.12.1's own reading fails here where files have an extra field, as those of the command zip."""
    contents = [bytes([number]) * 2_000 for number in range(250)]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number, content in enumerate(contents):
            info = zipfile.ZipInfo(f"cat/{number:03}.png")
            info.extra = b"UT\x05\x00\x01time"
            archive.writestr(info, content)
    images = ZippedImages(tmp_path / "x.zip")
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            read = list(threads.map(images.read, [*range(250)] * 20))
    finally:
        sys.setswitchinterval(before)
    assert read == contents * 20


@pytest.mark.parametrize("given_test", [True, False])
def test_npz(given_test, tmp_path):
    test = {"x_test": X[:20], "y_test": Y[:20]} if given_test else {}
    np.savez(
        tmp_path / "data.npz",
        x_train=X[20:] if given_test else X,
        y_train=Y[20:] if given_test else Y,
        **test,
    )
    data = load_data(str(tmp_path / "data.npz"), (6, 5, 3), 2)
    assert data.test.size == (20 if given_test else 12)
    assert_disjoint_and_complete(data, X)


def test_the_splits_are_the_same_in_every_run(tmp_path):
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    one, other = (load_data(str(tmp_path / "data.npz"), (6, 5, 3), 2) for _ in range(2))
    for a, b in zip(splits(one), splits(other), strict=True):
        np.testing.assert_array_equal(a.arrays()[0], b.arrays()[0])


def test_an_npz_may_hold_more(tmp_path):
    np.savez(tmp_path / "data.npz", x=X, y=Y, class_names=np.array(["cat", "dog"]), count=60)
    assert_disjoint_and_complete(load_data(str(tmp_path / "data.npz"), (6, 5, 3), 2), X)


def test_npy_has_no_labels(tmp_path):
    np.save(tmp_path / "x.npy", X)
    data = load_data(str(tmp_path / "x.npy"), (6, 5, 3), 2)
    assert data.heads.single.task == "raw"
    assert not data.labelled
    assert data.train.arrays()[1].shape == (data.train.size, 0)
    assert_disjoint_and_complete(data, X)


@pytest.mark.parametrize(
    ("y", "task"),
    [
        (np.eye(2)[Y], "binary"),
        (Y[:, np.newaxis], "binary"),
        (Y.astype(bool), "binary"),
        (np.array(["cat", "dog"])[Y], "binary"),
        (RNG.normal(size=(60, 2)), "regression"),
        (RNG.integers(0, 2, (60, 2)), "multi-label"),
    ],
    ids=["one-hot", "column", "booleans", "names", "values", "several of them"],
)
def test_kinds_of_labels(y, task, tmp_path):
    np.savez(tmp_path / "data.npz", x=X, y=y)
    data = load_data(str(tmp_path / "data.npz"), (6, 5, 3), 2)
    assert data.heads.single.task == task
    if task == "binary":
        assert set(data.train.arrays()[1]) == {0, 1}


KIND, AGE, EXTRA = Output("kind", (3,), "softmax"), Output("age", (1,)), Output("extra", (2,))
KINDS, AGES = np.arange(60) % 3, RNG.normal(40, 9, 60).astype(np.float32)


def labels_by_output(data):
    """All splits, in the order of the examples."""
    columns = np.concatenate([split.y for split in splits(data)])
    numbers = np.concatenate([split.arrays()[0] for split in splits(data)])
    order = [next(i for i, x in enumerate(X) if np.array_equal(x, one)) for one in numbers]
    return [labels[np.argsort(order)] for labels in data.heads.cut_labels(columns)]


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": X, "kind": KINDS, "age": AGES},
        {"x": X, "y_kind": KINDS, "y_age": AGES[:, np.newaxis]},
        {"x": X, "y_kind": np.array(["a", "b", "c"])[KINDS], "age": AGES},
        {"x": X, "y": np.concatenate([np.eye(3)[KINDS], AGES[:, np.newaxis]], axis=1)},
        {
            "x_train": X[20:],
            "kind_train": KINDS[20:],
            "y_age_train": AGES[20:],
            "x_test": X[:20],
            "kind_test": KINDS[:20],
            "y_age_test": AGES[:20],
        },
    ],
    ids=["NAME", "y_NAME", "names of classes", "columns of y", "train and test"],
)
def test_labels_of_several_outputs(arrays, tmp_path):
    np.savez(tmp_path / "data.npz", **arrays)
    data = load_data(str(tmp_path / "data.npz"), (6, 5, 3), [KIND, AGE])
    assert [head.task for head in data.heads] == ["classification", "regression"]
    kinds, ages = labels_by_output(data)
    np.testing.assert_array_equal(kinds, KINDS)
    np.testing.assert_allclose(ages[:, 0], AGES)
    assert data.notes == ()


def test_an_output_without_labels_is_held_against_float(tmp_path):
    np.savez(tmp_path / "data.npz", x=X, kind=KINDS, ages=AGES, other=AGES)
    data = load_data(str(tmp_path / "data.npz"), (6, 5, 3), [KIND, AGE])
    assert [head.task for head in data.heads] == ["classification", "raw"]
    assert data.heads.criterion_labels == ["kind accuracy", "age R² to float"]
    assert data.notes == (f"{tmp_path / 'data.npz'}: nothing uses ages, other",)


@pytest.mark.parametrize(
    ("arrays", "unused"),
    [
        ({"x": X, "y": Y, "weights": AGES}, "weights"),
        ({"x_train": X, "y_train": Y, "x_val": X, "y_val": Y}, "x_val, y_val"),
        ({"x": X, "labels": Y}, "labels"),
    ],
)
def test_arrays_that_nothing_uses_are_named(arrays, unused, tmp_path):
    np.savez(tmp_path / "data.npz", **arrays)
    data = load_data(str(tmp_path / "data.npz"), (6, 5, 3), 2)
    assert data.notes == (f"{tmp_path / 'data.npz'}: nothing uses {unused}",)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X, "y": KINDS}, "the model has several outputs; give the labels of each by its name: kind, a"),
        ({"x": X, "kind": KINDS, "age": AGES[:50]}, "60 inputs but 50 labels"),
        ({"x": X, "kind": KINDS + 1, "age": AGES}, "label 3 is out of range: the model has 3 outputs"),
        ({"x": X, "kind": KINDS, "age": np.zeros((60, 2))}, "labels of 2 values .*, but the model gives 1"),
        ({"x": X, "kind": np.float32(1)}, r"kind: a float32 of shape \(\); give numbers"),
        ({"x_train": X, "kind_train": KINDS, "x_test": X}, "the test part has none"),
    ],
)
def test_labels_of_several_outputs_that_do_not_fit(arrays, message, tmp_path):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(LqError, match=message) as raised:
        load_data(str(tmp_path / "data.npz"), (6, 5, 3), [KIND, AGE])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("function", ["by_name", "in_order", "as_tuple", "of_parts"])
def test_own_function_of_several_outputs(my_data, function, tmp_path):
    np.savez(tmp_path / "labels.npz", kinds=KINDS, ages=AGES)
    data = load_data(f"my_data:{function}", (6, 5, 3), [KIND, AGE])
    assert [head.task for head in data.heads] == ["classification", "regression"]
    kinds, ages = labels_by_output(data)
    np.testing.assert_array_equal(kinds, KINDS)
    np.testing.assert_allclose(ages[:, 0], AGES)


def test_folders_that_are_some_of_the_classes(images, tmp_path):
    """Their names say which: as numbers of outputs, or by a file of the model's classes."""
    numbered = {name.replace("cat", "3").replace("dog", "11"): png for name, png in SOME.items()}
    data = load_data(images(numbered), (6, 5, 3), 20)
    assert {int(label) for split in splits(data) for label in split.y} == {3, 11}


def test_folders_by_the_names_of_the_classes(images):
    names = ("ant", "bee", "cat", "cow", "dog")
    data = load_data(images(SOME), (6, 5, 3), 5, Wishes(classes=names))
    assert data.class_names == list(names)
    assert {int(label) for split in splits(data) for label in split.y} == {2, 4}
    with pytest.raises(LqError, match="folder dog is not one of the given class names"):
        load_data(images(SOME), (6, 5, 3), 5, Wishes(classes=("cat", "ant")))


@pytest.mark.parametrize("channels", [1, 3])
def test_class_folders_of_an_autoencoder_tell_anomalies(images, channels):
    """What is reconstructed are the images; the second class, by name, are anomalies."""
    shape = (6, 5, channels)
    data = load_data(images(SOME), shape, [Output("", shape, "sigmoid")])
    assert data.heads.single.task == "reconstruction"
    for split in splits(data):
        x, labels = split.arrays()
        np.testing.assert_array_equal(labels[:, :-1], x.reshape(len(x), -1))
        assert set(labels[:, -1]) == {0, 1}
    assert [note.split(": ")[1] for note in data.notes] == ["the images in dog count as anomalies"]


def test_maps_of_classes_are_no_class_folders(images):
    with pytest.raises(LqError, match=r"one label for each example, but the model's answers are of shape"):
        load_data(images(SOME), (6, 5, 3), (3, 2, 2))


@pytest.mark.parametrize(
    ("arrays", "outputs", "message"),
    [
        ({"x": X, "y": Y.astype(float)}, 10, "1 values for each example, but the model gives 10; numbers of"),
        ({"x": X, "y": np.zeros((60, 3))}, (4, 2), "3 values for each example, but the model gives 8"),
        (
            {"x": X, "y": Y},
            (4, 2),
            r"one label for each example, but the model's answers are of shape \(4, 2\)",
        ),
        ({"x": X, "y": np.full(60, np.nan)}, 1, "labels contain NaN"),
        ({"x": X, "y": np.full(60, None)}, 2, "Python objects"),
        ({"x_train": X, "y_train": Y, "x_test": X}, 2, "the test part has none"),
    ],
)
def test_unusable_labels(arrays, outputs, message, tmp_path):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(LqError, match=message):
        load_data(str(tmp_path / "data.npz"), (6, 5, 3), outputs)


FUNCTIONS = """
import numpy as np, tensorflow as tf
x, y = np.load({path!r} + "/x.npy"), np.arange(60) % 2
dataset = lambda: tf.data.Dataset.from_tensor_slices((x, y))
arrays = lambda: (x, y)
unlabeled = lambda: x
two_parts = lambda: ((x[20:], y[20:]), (x[:20], y[:20]))
batches = lambda: dataset().batch(7)
two_datasets = lambda: (dataset().skip(20), dataset().take(20))
three_arrays = lambda: (x, y, y)
three_parts = lambda: ((x, y), (x, y), (x, y))
empty = lambda: dataset().take(0)
endless = lambda: dataset().repeat()
labels = lambda: [np.load({path!r} + "/labels.npz")[name] for name in ("kinds", "ages")]
by_name = lambda: (x, dict(zip(("kind", "age"), labels())))
by_colour = lambda: (x, dict(colour=y))
in_order = lambda: (x, labels())
as_tuple = lambda: (x, tuple(labels()))
of_parts = lambda: ((x[20:], [y[20:] for y in labels()]), (x[:20], [y[:20] for y in labels()]))
ragged = lambda: dataset().batch(7).map(lambda x, y: (x[:, : 1 + tf.cast(y[0], tf.int32)], y))
"""


@pytest.fixture
def my_data(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "my_data.py").write_text(FUNCTIONS.format(path=str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("my_data", None)


@pytest.mark.parametrize(
    ("function", "test_size"),
    [
        ("dataset", 12),
        ("batches", 12),
        ("arrays", 12),
        ("unlabeled", 12),
        ("two_parts", 20),
        ("two_datasets", 20),
    ],
)
def test_own_function(my_data, function, test_size):
    data = load_data(f"my_data:{function}", (6, 5, 3), 2)
    assert data.labelled == (function != "unlabeled")
    assert data.test.size == test_size
    assert_disjoint_and_complete(data, X)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_data:nothing", "cannot call nothing"),
        ("no_module:f", "cannot call f"),
        ("my_data:empty", "is empty"),
        ("my_data:endless", r"never ends; leave out repeat\(\)"),
        ("my_data:ragged", "examples are of different shapes"),
        ("my_data:three_arrays", r"gave 3 values instead of \(x, y\)"),
        ("my_data:three_parts", r"gave 3 values instead of \(x, y\)"),
        ("my_data:x", "cannot call x"),
        ("my_data:by_colour", "labels of colour, but the model's outputs are $"),
    ],
)
def test_own_function_that_fails(my_data, spec, message):
    with pytest.raises(LqError, match=message):
        load_data(spec, (6, 5, 3), 2)


def test_offline_the_place_to_put_the_file_is_named(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setenv("LQCONVERT_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tf_keras.datasets.fashion_mnist.load_data", no_network)
    with pytest.raises(LqError, match=r"Put fashion_mnist\.npz .* into .*cache/lqconvert"):
        load_data("fashion_mnist", (28, 28), 10)
    np.savez(tmp_path / "fashion_mnist.npz", x_train=X, y_train=Y, x_test=X[:20], y_test=Y[:20])
    assert load_data("fashion_mnist", (6, 5, 3), 10).test.size == 20


@pytest.mark.parametrize("content", [b"no archive", pytest.param(None, id="pickled")])
def test_unreadable_npz_runs_nothing(content, tmp_path):
    path = tmp_path / "data.npz"
    if content is None:
        file = io.BytesIO()
        np.savez(file, x=np.array([print], object), y=np.zeros(1))
        content = file.getvalue()
    path.write_bytes(content)
    with pytest.raises(LqError, match="not a readable"):
        load_data(str(path), (2,), 2)


@pytest.mark.parametrize("outputs", ["two", "two logits", "one", "one logit"])
@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_preprocessing_is_found(name, outputs, tmp_path):
    """A confident classifier of mean brightness, trained on one of the preprocessings."""
    truth = PREPROCESSINGS[name]
    x = RNG.integers(0, 256, (600, 4), dtype=np.uint8)
    y = (x.mean(axis=1) > 127).astype(np.int64)
    np.savez(tmp_path / "data.npz", x=x, y=y)

    def model(batches):
        raw = (np.concatenate(list(batches)) - truth.offset) / truth.scale
        logit = np.clip((raw.mean(axis=1) - 127) / 8, -50, 50)
        p = 1 / (1 + np.exp(-logit))
        one, other = (logit / 2, -logit / 2) if "logit" in outputs else (p, 1 - p)
        return np.stack([other, one], axis=1) if "two" in outputs else one[:, np.newaxis]

    found = choose_preprocessing(model, load_data(str(tmp_path / "data.npz"), (4,), 2))
    assert found.preprocessing == truth
    assert set(found.scores) == set(PREPROCESSINGS)


def test_among_logits_of_like_accuracy_the_likelihood_decides(tmp_path):
    """A network without biases predicts the same classes for scaled inputs."""
    x = RNG.integers(0, 256, (4000, 2), dtype=np.uint8)
    slope = 4 * (x[:, 0].astype(float) - x[:, 1]) / 255
    y = (RNG.random(4000) < 1 / (1 + np.exp(-slope))).astype(np.int64)
    np.savez(tmp_path / "data.npz", x=x, y=y)

    def model(batches):
        inputs = np.concatenate(list(batches))
        logit = 4 * (inputs[:, 0] - inputs[:, 1])
        return np.stack([-logit / 2, logit / 2], axis=1)

    found = choose_preprocessing(model, load_data(str(tmp_path / "data.npz"), (2,), 2))
    assert len(set(found.scores.values())) == 1
    assert found.preprocessing == PREPROCESSINGS["0-1"]


@pytest.mark.parametrize("text", ["none", "0-1", "-1-1", "0.5,-3"])
def test_preprocessing_names_round_trip(text):
    assert str(Preprocessing.parse(text)) == text


@pytest.mark.parametrize("text", ["", "2", "0,1", "a,b", "1,2,3", "1,nan", "inf,0"])
def test_unknown_preprocessings(text):
    with pytest.raises(ValueError):  # noqa: PT011
        Preprocessing.parse(text)


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_folders_that_link_to_each_other(tmp_path):
    """Each folder is entered once, by the shortest path, even if there are many paths."""
    for name in "ab":
        (tmp_path / "img" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "img" / name / f"{number}.png").write_bytes(b"")
    for number in range(5):
        (tmp_path / "img" / "a" / f"to_b{number}").symlink_to("../b")
        (tmp_path / "img" / "b" / f"to_a{number}").symlink_to("../a")
        (tmp_path / "img" / "b" / f"up{number}").symlink_to("..")
    found = ImageFolder(tmp_path / "img")
    assert [found.name(number) for number in range(len(found))] == [
        f"{x}/{n}.png" for x in "ab" for n in range(3)
    ]


def test_folders_with_more_than_data_sets_have(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for number in range(6):
        (tmp_path / "a" / f"{number}.png").write_bytes(b"")
    monkeypatch.setattr(images_of, "MOST_ENTRIES", 5)
    with pytest.raises(LqError, match="more than 5 files"):
        ImageFolder(tmp_path)
    monkeypatch.setattr(images_of, "MOST_ENTRIES", 50)
    monkeypatch.setattr(images_of, "DEEPEST", 1)
    with pytest.raises(LqError, match="folders 1 deep"):
        ImageFolder(tmp_path)


def gif(frames, width, height):
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x01\x44\0"
    extension = b"\x21\xf9\x04\0\0\0\0\0"
    return (
        b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6) + (extension + frame) * frames + b";"
    )


def jpeg(width, height):
    data = bytearray(tf.io.encode_jpeg(X[0]).numpy())
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 1 << 15, 1 << 13),
        b"BM" + bytes(16) + struct.pack("<ii", 1 << 15, -(1 << 13)),
        gif(5, 1 << 13, 1 << 13),
        jpeg(60_000, 50_000),
    ],
    ids=["png", "bmp", "gif", "jpg"],
)
def test_images_of_more_pixels_than_there_are_cameras(data):
    """Files of kilobytes that would unpack to gigabytes. A .gif unpacks all of its frames."""
    with pytest.raises(ValueError, match="pixels"):
        images_of.decoded(data, 3)


def test_integers_become_floats_as_they_are_asked_for(tmp_path):
    x = np.arange(-100, 100, dtype=np.int8).reshape(100, 2)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(100) % 2)
    data = load_data(str(tmp_path / "x.npz"), (2,), 2)
    found, _ = data.train.arrays()
    assert found.dtype == np.float32
    assert found.min() < 0
    assert set(map(tuple, found)) <= set(map(tuple, x.astype(np.float32)))


NUMBERS = RNG.normal(size=(60, 3)).round(3)
WHOLE, NAMES = np.arange(60) % 3, np.array(["cat", "dog", "cow"])[np.arange(60) % 3]


def table(header, *columns):
    rows = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
    return "\n".join([*([header] if header else []), *rows])


@pytest.mark.parametrize(
    ("text", "output", "task", "labels"),
    [
        (table("a,b,price,c", *NUMBERS.T[:2], WHOLE / 2, NUMBERS.T[2]), 1, "regression", WHOLE / 2),
        (table("a,b,c,Label", *NUMBERS.T, NAMES), 3, "classification", [0, 2, 1] * 20),
        (table("", *NUMBERS.T, WHOLE), 3, "classification", WHOLE),
        (table("", *NUMBERS.T, *NUMBERS.T[:2]), 2, "regression", NUMBERS[:, :2]),
        (table("a,b,c", *NUMBERS.T), 5, "raw", np.zeros((60, 0))),
        ("\ufeff" + table("a,b,c,y", *NUMBERS.T, WHOLE) + "\n\n", 3, "classification", WHOLE),
    ],
    ids=["by the output's name", "names of classes", "no header", "several", "no labels", "a mark in front"],
)
def test_tables(text, output, task, labels, tmp_path):
    (tmp_path / "data.csv").write_text(text, encoding="utf-8")
    data = load_data(str(tmp_path / "data.csv"), (3,), [Output("price", (output,))])
    assert data.heads.single.task == task
    parts = [split.arrays() for split in splits(data)]
    x, y = (np.concatenate(each) for each in zip(*parts, strict=True))
    places = [int(np.flatnonzero((NUMBERS.astype(np.float32) == row).all(axis=1))[0]) for row in x]
    assert sorted(places) == list(range(60))
    np.testing.assert_allclose(y.reshape(60, -1), np.reshape(labels, (60, -1))[places], rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty table"),
        ("a,b\n1,2", "2 columns, 0 of them labels, but the model takes 3 values"),
        ("a,b,c\n1,z,3", "row 2 has 'z' instead of a number"),
        ("1,2,3\n1,2", "row 2 has 2 columns, the first has 3"),
        ("a,b,c\n1,2,nan\n" + "1,2,3\n" * 30, "NaN or infinite"),
        ("a,b,c\n1,2,3", "1 examples are too few"),
        ('a,b,c\n1,2,"' + "3" * 200_000, "not a readable .csv"),
    ],
)
def test_unusable_tables(text, message, tmp_path):
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(LqError, match=message) as caught:
        load_data(str(tmp_path / "data.csv"), (3,), 1)
    assert len(str(caught.value).splitlines()) == 1


MASKS = (RNG.random((30, 8, 6)) > 0.5).astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "mask", "level", "classes"),
    [
        ("images/{}.png", "masks/{}.png", 255, 1),
        ("Images/{}.jpg", "Labels/{}_mask.png", 1, 3),
        ("{part}/images/{}.png", "{part}/masks/{}.png", 1, 2),
    ],
)
def test_images_and_their_masks(image, mask, level, classes, images):
    files = {}
    for number, values in enumerate(MASKS):
        part = "test" if number < 10 else "train"
        picture = np.full((8, 6, 3), number, np.uint8)
        encoded = tf.io.encode_jpeg(picture).numpy() if image.endswith("jpg") else png(picture)
        files[image.format(number, part=part)] = encoded
        files[mask.format(number, part=part)] = png(level * values[..., np.newaxis])
    data = load_data(images(files), (8, 6, 3), [Output("mask", (8, 6, classes), "sigmoid")])
    assert data.heads.single.task == "segmentation"
    assert data.own_test == ("part" in image)
    for split in splits(data):
        x, y = split.arrays()
        np.testing.assert_array_equal(y, MASKS[x[:, 0, 0, 0]].reshape(len(x), -1))


def test_an_image_without_a_mask_is_named(images):
    files = {name: png(np.zeros((8, 6, 3), np.uint8)) for name in ("images/1.png", "masks/2.png")}
    with pytest.raises(LqError, match=r"images/1\.png has no mask of the same name"):
        load_data(images(files), (8, 6, 3), [Output("mask", (8, 6, 2), "softmax")])
