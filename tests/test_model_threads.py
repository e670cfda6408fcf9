"""Models are loaded in many threads at once, as services do, with the same results as in one thread."""

import threading
from concurrent.futures import ThreadPoolExecutor

import h5py
import keras
import numpy as np
import pytest
import tf_keras

from lqconvert import LqError, inspect, load_data, load_model
from lqconvert.keras_loader.limits import limited_weights

THREADS = 8


def mlp(api):
    x = api.Input((6,))
    y = api.layers.BatchNormalization()(api.layers.Dense(4, activation="relu")(x))
    return api.Model(x, api.layers.Dense(3)(y))


def asking_for_more(path):
    """The same file, with a layer that asks for more weights than it has."""
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = file.attrs["model_config"].replace('"units": 3', '"units": 30000000')


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two good files of each kind, and one that is refused."""
    folder = tmp_path_factory.mktemp("threads")
    for name, api in (
        ("good.h5", tf_keras),
        ("good3.h5", keras),
        ("good.keras", tf_keras),
        ("good3.keras", keras),
    ):
        mlp(api).save(folder / name)
    mlp(tf_keras).save(folder / "good", save_format="tf", save_traces=False)
    for name in ("large.h5", "large3.h5"):
        (folder / name).write_bytes((folder / name.replace("large", "good")).read_bytes())
        asking_for_more(folder / name)
    (folder / "cut.keras").write_bytes((folder / "good3.keras").read_bytes()[:-500])
    np.savez(folder / "data.npz", x=np.zeros((60, 6), np.int8), y=np.arange(60) % 3)
    (folder / "cut.npz").write_bytes((folder / "data.npz").read_bytes()[:-300])
    return sorted(folder.iterdir())


def answer(path):
    """What a file gives, or the error, as text."""
    try:
        if path.suffix == ".npz":
            return str(load_data(str(path), (6,), 3).train.arrays()[0].sum())
        outputs = load_model(path)(np.ones((1, 6), np.float32))
        return ascii(np.round(outputs, 4).tolist())
    except LqError as error:
        return str(error)


def test_models_and_data_in_many_threads(files):
    expected = [answer(path) for path in files]
    assert sum("more than the file has" in text for text in expected) == 2
    work = [(path, text) for path, text in zip(files, expected, strict=True) for _ in range(3)]
    np.random.default_rng(0).shuffle(work)
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(answer, (path for path, _ in work)))
    assert found == [text for _, text in work]


@pytest.mark.slow
def test_what_is_said_of_a_model_in_many_threads(files):
    chosen = [path for path in files if path.name in ("good3.keras", "large.h5")]

    def said(path):
        try:
            return inspect(path)
        except LqError as error:
            return str(error)

    expected = [said(path) for path in chosen]
    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(said, chosen * 4)) == expected * 4


@pytest.mark.parametrize("api", [keras, tf_keras])
def test_what_others_make_meanwhile_is_theirs(api):
    """No class of Keras is another one while models are loaded, and nothing of other threads is counted."""
    layer = api.layers.Layer
    methods = (layer.add_weight, layer.__call__)
    made = []
    with limited_weights(0):
        assert (layer.add_weight, layer.__call__) == methods
        thread = threading.Thread(
            target=lambda: made.append(api.Sequential([api.Input((600,)), api.layers.Dense(600)]))
        )
        thread.start()
        thread.join()
        assert made
        with pytest.raises(LqError, match="more than the file has"), limited_weights(0):
            api.Sequential([api.Input((600,)), api.layers.Dense(600)])
