"""The benchmarks say what they lack before they train anything."""

import dataclasses
import sys

import pytest
from bench import networks


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
