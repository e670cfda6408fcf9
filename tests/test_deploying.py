"""The pages on deploying: the program for TFLite Micro, the quoted messages, the notebook."""

import ast
import json
import logging
import os
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import run_lengths

import lqconvert
from lqconvert.runtime.tflm import run_micro

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PROGRAM = DOCS / "micro" / "main.cc"
#: The library and the program have to agree on the first.
FLAGS = ["-std=c++17", "-DTF_LITE_STATIC_MEMORY", "-fno-rtti", "-fno-exceptions", "-Wall"]

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the source distribution has no docs")


@pytest.fixture(scope="module")
def firmware(run, tmp_path_factory):
    """A folder with the digits sample as model.tflite, model.h and model.cc for TFLite Micro."""
    folder = tmp_path_factory.mktemp("firmware")
    codes = run[1] / "digits.codes.npz"
    lqconvert.export_codes(codes, folder / "model.tflite", targets=[lqconvert.target("tflm")], c_array=True)
    return folder


def compiled(*arguments):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    result = subprocess.run(["g++", *FLAGS, *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_program_fits_what_is_generated(firmware, tmp_path):
    for header in re.findall(r'#include "(tensorflow/.*)"', PROGRAM.read_text()):
        (tmp_path / header).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / header).write_text('#include "tflm_declarations.h"\n')
    includes = [f"-I{folder}" for folder in (firmware, tmp_path, Path(__file__).parent)]
    compiled("-Wextra", "-Werror", "-fsyntax-only", *includes, PROGRAM, firmware / "model.cc")


def test_the_program_registers_every_operator(firmware):
    adders = r"resolver\.(Add\w+)\(\)"
    wanted = set(re.findall(adders, (firmware / "model.h").read_text()))
    registered = re.findall(adders, PROGRAM.read_text())
    assert wanted
    assert wanted <= set(registered)
    assert f"MicroMutableOpResolver<{len(registered)}>" in PROGRAM.read_text()


def test_the_page_shows_the_header_as_it_is(firmware):
    page = (DOCS / "microcontroller.md").read_text()
    shown = re.search(r"```cpp\n(extern .*?)// The operators", page, re.DOTALL)
    generated = re.search(r"(extern .*?)// The operators", (firmware / "model.h").read_text(), re.DOTALL)
    number = re.compile(r"-?\b\d[\d.]*f?\b")  # those of another run
    assert number.sub("N", shown[1]) == number.sub("N", generated[1])
    (included,) = re.findall(r'--8<-- "(.*)"', page)
    assert ROOT / included == PROGRAM


def test_the_program_runs_in_a_checkout(firmware, tmp_path):
    """With TFLM_ROOT: against its headers and, where the library was built (make microlite), on images."""
    if "TFLM_ROOT" not in os.environ:
        pytest.skip("needs TFLM_ROOT, a checkout of tflite-micro with its downloads")
    checkout = Path(os.environ["TFLM_ROOT"])
    downloads = checkout / "tensorflow/lite/micro/tools/make/downloads"
    folders = [firmware, checkout, *(downloads / name for name in ("flatbuffers/include", "gemmlowp", "ruy"))]
    objects = [tmp_path / "main.o", tmp_path / "model.o"]
    for source, target in zip((PROGRAM, firmware / "model.cc"), objects, strict=True):
        compiled("-Os", *(f"-I{folder}" for folder in folders), "-c", source, "-o", target)
    libraries = sorted(checkout.glob("gen/linux_x86_64_*/lib/libtensorflow-microlite.a"))
    if not libraries:
        pytest.skip("compiled; running needs the library: make microlite")
    compiled(*objects, libraries[0], "-o", tmp_path / "classify")

    images, _ = lqconvert.load_data("digits", (8, 8, 1), 10).test.arrays()
    codes = (images.astype(np.int16) - 128).astype(np.int8)
    expected = run_micro((firmware / "model.tflite").read_bytes(), codes).outputs.reshape(len(images), -1)
    program = subprocess.run([tmp_path / "classify"], input=images.tobytes(), capture_output=True, check=True)
    classes = re.findall(rb"class (\d+), score", program.stderr)
    assert [int(each) for each in classes] == expected.argmax(axis=-1).tolist()


def texts():
    """The string literals of the package, with a NUL for each value that is filled in."""
    for path in (ROOT / "lqconvert").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_quoted_messages_are_those_of_the_source():
    messages = set(texts())
    quoted = re.findall(r"^### `(.*)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert quoted
    for heading in quoted:
        pattern = re.compile(".*".join(map(re.escape, heading.split("..."))), re.DOTALL)
        assert any(map(pattern.search, messages)), heading


@pytest.mark.slow
def test_the_notebook_runs(samples, tmp_path, monkeypatch):
    """Its cells, one after the other, with a short run."""
    pytest.importorskip("tflite_micro")
    folder = tmp_path / "docs"
    folder.mkdir()
    (tmp_path / "sample_models").symlink_to(samples)
    monkeypatch.chdir(folder)
    for name in ("TF_CPP_MIN_LOG_LEVEL", "ABSL_MIN_LOG_LEVEL"):
        monkeypatch.setenv(name, "3")  # a cell sets them: restored after the test
    cells = json.loads((DOCS / "digits.ipynb").read_text())["cells"]
    names = {"__name__": "notebook"}
    try:
        with run_lengths(epochs=1), matplotlib.rc_context({"backend": "agg"}):
            for cell in cells:
                if cell["cell_type"] == "code":
                    exec("".join(cell["source"]), names)
    finally:
        logging.disable(logging.NOTSET)
        plt.close("all")
    assert (folder / "out" / "digits_micro.h").exists()
