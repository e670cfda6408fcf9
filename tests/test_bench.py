"""The benchmarks say what they lack before they train anything."""

import dataclasses
import sys

import numpy as np
import pytest
import tf_keras
from bench import networks, post_training


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys):
    """The error of networks.py for these arguments. It must not leave anything in its folder."""

    def run(*arguments):
        folder = tmp_path / "bench"
        monkeypatch.setattr(sys, "argv", ["networks.py", *arguments, "--folder", str(folder)])
        with pytest.raises(SystemExit):
            networks.main()
        assert not folder.exists()
        return capsys.readouterr().err

    return run


def test_a_package_that_is_not_installed(refusal, monkeypatch):
    monkeypatch.setattr(networks, "find_spec", lambda name: None)
    assert "pip install -e '.[bench]'" in refusal("mlp")
    assert networks.missing([], ["tf.lite int8 PTQ"]) == ""


def test_data_that_are_not_there(refusal, monkeypatch):
    network = dataclasses.replace(networks.NETWORKS["resnet-8"], data="nowhere/cifar10.zip")
    monkeypatch.setitem(networks.NETWORKS, "resnet-8", network)
    message = refusal("resnet-8", "--peers")
    assert "nowhere/cifar10.zip" in message
    assert "LQCONVERT_DATA" in message


def test_post_training_lacks_a_peer(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(post_training, "find_spec", lambda name: None if name == "nncodec" else name)
    monkeypatch.setattr(sys, "argv", ["post_training.py", "mlp", "--folder", str(tmp_path / "bench")])
    with pytest.raises(SystemExit):
        post_training.main()
    assert "nncodec is not installed: pip install -e '.[bench]'" in capsys.readouterr().err
    assert not (tmp_path / "bench").exists()
    assert post_training.missing(["resnet-50"]) == ""  # no peer quantizes it


def test_what_nncodec_decodes_is_the_model():
    """BatchNormalization comes back as scale and offset, and computes the same."""
    layers = tf_keras.layers
    model = tf_keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization()])
    model.set_weights([np.random.default_rng(0).uniform(0.5, 2, w.shape) for w in model.get_weights()])
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3))
    before = model.predict_on_batch(x)
    weights = post_training.weights_of(model)
    assert next(iter(weights.values())).shape == (4, 3, 3, 3)  # outputs first, as it codes matrices
    post_training.assign(model, weights)
    np.testing.assert_allclose(model.predict_on_batch(x), before, rtol=1e-4)


@pytest.mark.parametrize(
    ("drops", "chosen"),
    [({"a": 0.1, "b": 0.2}, "b"), ({"a": 0.5, "b": 0.2}, "b"), ({"a": 0.5, "b": 0.9}, "a")],
)
def test_a_peers_best_algorithm(drops, chosen):
    """Of those within the drop the smallest, b; else the most accurate."""
    sizes = {"a": 100, "b": 80}
    made = {
        name: [post_training.Result(sizes[name], sizes[name], 0.9 - drop / 100)]
        for name, drop in drops.items()
    }
    made["c"] = [post_training.Result(said="cannot")]
    assert post_training.best(made, post_training.Result(400, 400, 0.9), 0.3) == chosen
