"""Packages: folders that build, with a self-test."""

import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tf_keras
from bench import boards
from click.testing import CliRunner
from tf_keras import layers

import lqconvert
from lqconvert import LqError, export_codes
from lqconvert.cli import options
from lqconvert.cli.main import main
from lqconvert.runtime.tflm import invoke_micro
from lqconvert.runtime.verify import Limits
from lqconvert.tflite import targets
from lqconvert.tflite.interface import Interface
from lqconvert.tflite.packages import PACKAGES, examples_of_test, package_paths
from lqconvert.tflite.targets import MICRO_PACKAGE

pytest.importorskip("tflite_micro", reason="TFLite Micro's interpreter is for Linux only")

FLAGS = ["-std=c++17", "-DTF_LITE_STATIC_MEMORY", "-fno-rtti", "-fno-exceptions"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def codes(run):
    return run[1] / "digits.codes.npz"


@pytest.fixture(scope="module")
def several(once):
    """The codes of a recurrent model with two inputs and two outputs."""

    def quantized(folder):
        rng = np.random.default_rng(0)
        words, numbers = layers.Input((6,), dtype="int32", name="words"), layers.Input((4,), name="numbers")
        x = layers.LSTM(4)(layers.Embedding(20, 4)(words))
        x = layers.Concatenate()([x, layers.Dense(3, name="shared")(numbers)])
        outputs = [layers.Dense(2, name="first")(x), layers.Dense(3, "softmax", name="second")(x)]
        model = tf_keras.Model([words, numbers], outputs)
        x = {"words": rng.integers(0, 20, (200, 6)), "numbers": rng.normal(0, 1, (200, 4)).astype(np.float32)}
        np.savez(folder / "x.npz", **x)
        settings = {"scheme": lqconvert.LSQ(), "epochs": 1}
        lqconvert.quantize(model, folder / "x.npz", folder / "m.tflite", **settings)

    folder, _ = once("several", quantized)
    return folder / "m.codes.npz"


def made(codes, folder, package, **settings):
    target = "tflm" if package == "cmake" else "tflm-no-decode"
    export_codes(codes, folder / "m.tflite", targets=[target], package=package, **settings)
    return folder / f"m-{package}"


def checked(folder, tmp_path):
    """Checks the syntax of all sources, against declarations of what they use of the library."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    sources = [*folder.rglob("*.cpp"), *folder.rglob("*.ino")]
    texts = "".join(path.read_text() for path in sources)
    headers = {
        *re.findall(r'#include "(tensorflow/.*)"', texts),
        *re.findall(r"#include <(Tensor.*)>", texts),
    }
    for header in headers:
        (tmp_path / "include" / header).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "include" / header).write_text('#include "tflm_declarations.h"\n')
    (tmp_path / "Arduino.h").write_text("void delay(int);\n")
    includes = [f"-I{each}" for each in (tmp_path / "include", HERE, folder)]
    for source in sources:
        added = ["-include", str(tmp_path / "Arduino.h"), "-x", "c++"] if source.suffix == ".ino" else []
        command = ["g++", *FLAGS, *WARNINGS, "-fsyntax-only", *includes, *added, str(source)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    return sources


def test_the_command_line_has_all_packages():
    assert tuple(PACKAGES) == options.PACKAGES


@pytest.mark.parametrize("package", PACKAGES)
def test_sources_fit_the_library(package, codes, tmp_path):
    folder = made(codes, tmp_path, package)
    if package in ("esp-idf", "arduino"):  # cmake's and zephyr's sources are the first one's
        assert len(checked(folder, tmp_path)) == 4
    there = [path for path in folder.rglob("*") if path.is_file()]
    own, users = package_paths(package, folder)
    assert sorted(there) == sorted([*own, *users])
    assert all("made by lqconvert" in path.read_text() or path.name == "model.cpp" for path in own)


def test_several_inputs_with_a_state(several, tmp_path):
    folder = made(several, tmp_path, "cmake")
    checked(folder, tmp_path)
    header = (folder / "src/network.h").read_text()
    assert "// Input 0: int32 1x6 words" in header
    assert "// Output 1: int8 1x3 second" in header
    assert "bool Reset();" in header
    assert "SetPixels" not in header
    assert "network.SetCodes(input_1[example], 1);" in (folder / "src/self_test.cpp").read_text()


def arrays(text, name):
    """The values of an array in a self-test."""
    body = re.search(rf"{name}\[kExamples\]\[\d+\] = {{(.*?)}};", text, re.DOTALL)[1]
    return np.array([row.split(",") for row in re.findall(r"{(.*?)}", body)], float)


def test_the_outputs_are_those_of_tflite_micro(codes, tmp_path):
    folder = made(codes, tmp_path, "cmake", data="digits")
    text = (folder / "src/self_test.cpp").read_text()
    inputs, outputs = arrays(text, "input_0"), arrays(text, "output_0")
    assert len(inputs) == 16
    assert "output_0[example], 0.0f, differences)" in text
    found = invoke_micro((tmp_path / "m.tflite").read_bytes(), inputs.reshape(-1, 8, 8, 1).astype(np.int8))
    np.testing.assert_array_equal(found.reshape(16, -1), outputs)
    assert len(np.unique(outputs.argmax(axis=1))) > 5  # of several classes


def test_large_inputs_make_a_shorter_test():
    detail = {"name": "x", "shape": np.array([1, 96, 96, 3]), "dtype": np.int8, "quantization": (1.0, 0)}
    assert examples_of_test(Interface([detail], [])) == 2
    detail["shape"] = np.array([1, 224, 224, 3])
    assert examples_of_test(Interface([detail], [])) == 1


def test_names_of_classes_are_only_text(codes, tmp_path):
    """They come from folders of images: of strangers."""
    hostile = 'a"; system("rm"); //\n??/ é \x1b'
    images, labels = lqconvert.load_data("digits", (8, 8, 1), 10).test.arrays()
    names = [hostile, *map(str, range(1, 10))]
    data = tmp_path / "data"
    from PIL import Image

    for image, label in zip(images[:60], labels[:60], strict=True):
        folder = data / names[label].replace("/", "_").replace("\n", " ")
        folder.mkdir(parents=True, exist_ok=True)
        count = len(list(folder.iterdir()))
        Image.fromarray(image[..., 0].astype("uint8")).save(folder / f"{count}.png")
    if len(list(data.iterdir())) < 10:
        pytest.skip("the first images have too few classes")
    folder = made(codes, tmp_path, "cmake", data=data)
    text = (folder / "src/network.cpp").read_text()
    assert "kClasses[10] = {" in text
    checked(folder, tmp_path)
    assert 'system("rm")' not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "litert", "--package", "cmake"], "no cmake package for litert"),
        (
            ["--target", "int8", "--board", "esp32"],
            "the RAM of a file for int8 is not known; use --target tflm",
        ),
        (["--target", "ethos-u55-128", "--package", "zephyr"], "no zephyr package for ethos-u55-128"),
        (["--target", "tflm", "--package", "arduino"], "has no DECODE; use --target tflm-no-decode"),
    ],
)
def test_mistakes(arguments, message, codes, tmp_path):
    path = tmp_path / "m.tflite"
    result = CliRunner().invoke(main, ["export", str(codes), *arguments, "-o", str(path)])
    assert result.exit_code == 1
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_scales_that_arduinos_library_ignores(codes, several, tmp_path, caplog):
    """It computes a Dense layer by its first scale; `several` has one for each unit, the digits' have one."""
    made(codes, tmp_path, "arduino")
    made(several, tmp_path, "zephyr")
    assert "takes one scale" not in caplog.text
    made(several, tmp_path, "arduino")
    assert "for the Nano 33 BLE takes one scale for a Dense layer: outputs will be wrong" in caplog.text


def test_what_the_user_has_changed_stays(codes, tmp_path):
    folder = made(codes, tmp_path, "zephyr")
    program, network = folder / "src/main.cpp", folder / "src/network.cpp"
    program.write_text("// my program\n")
    generated = network.read_text()
    network.write_text(f"{generated}// a change\n")
    made(codes, tmp_path, "zephyr")
    assert program.read_text() == "// my program\n"
    assert network.read_text() == generated
    network.write_text("// mine\n")
    with pytest.raises(LqError, match=r"network\.cpp: exists, and lqconvert did not write it"):
        made(codes, tmp_path, "zephyr")
    shutil.rmtree(folder)
    folder.write_text("a file")
    with pytest.raises(LqError, match="m-zephyr: is a file; a folder of that name"):
        made(codes, tmp_path, "zephyr")
    with pytest.raises(LqError, match="package 'make': not one of cmake, esp-idf, arduino, zephyr"):
        made(codes, tmp_path, "make")
    with pytest.raises(LqError, match="Arduino takes only letters"):
        export_codes(codes, tmp_path / "a (1).tflite", targets=["int8"], package="arduino")


def test_the_first_target_that_the_library_runs_is_packed(codes, tmp_path, caplog):
    settings = {"targets": ["litert", "tflm", "tflm-no-decode"], "package": "zephyr"}
    exports = export_codes(codes, tmp_path / "m.tflite", **settings)
    text = (tmp_path / "m-zephyr/src/model.h").read_text()
    assert "AddDecode" not in text
    assert f"g_model_len = {exports.files[2].proven.size};" in text
    assert str(tmp_path / "m-zephyr/src/model.h") in exports.written
    # RAM is limited where it is known, and said not to be where it is not.
    settings = {"targets": ["litert", "tflm-no-decode"], "limits": Limits(max_ram=1 << 20)}
    export_codes(codes, tmp_path / "n.tflite", **settings)
    assert "the RAM of the file for litert is not limited" in caplog.text


def test_the_arena_of_an_int8_file_is_measured(codes, tmp_path):
    export_codes(codes, tmp_path / "m.tflite", targets=["int8"], package="zephyr")
    arena = int(re.search(r"arena\[(\d+)\]", (tmp_path / "m-zephyr/src/network.cpp").read_text())[1])
    assert 3_000 < arena < 10_000


@pytest.mark.parametrize(("io", "unit"), [("int8", 3.0), ("int16", 384.0), ("float32", 3 / 256)])
def test_the_tolerance_is_in_steps(io, unit, codes, tmp_path, monkeypatch):
    """Without TFLite Micro's interpreter, outputs are LiteRT's; int8's step of a softmax is 1/256."""
    version = importlib.metadata.version
    monkeypatch.setattr(targets, "_version", lambda name: "" if name == MICRO_PACKAGE else version(name))
    folder = made(codes, tmp_path, "cmake", io=io)
    text = (folder / "src/self_test.cpp").read_text()
    tolerance = float(re.search(r"output_0\[example\], ([\d.]+)f, ", text)[1])
    assert tolerance == pytest.approx(unit, rel=0.01)
    assert "within some steps: not verified" in (folder / "README.md").read_text()
    if io == "float32":
        checked(folder, tmp_path)


def built(folder, build):
    """The end of a cmake package's self-test."""
    configure = ["cmake", "-S", folder, "-B", build, f"-DTFLM_DIR={os.environ['TFLM_ROOT']}"]
    for command in (configure, ["cmake", "--build", build]):
        subprocess.run(command, check=True, capture_output=True)
    return subprocess.run([build / "self_test"], capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
def test_a_library_for_this_computer_is_not_linked_for_a_board(codes, tmp_path):
    folder, library = made(codes, tmp_path, "cmake"), tmp_path / "gen/here/lib/libtensorflow-microlite.a"
    library.parent.mkdir(parents=True)
    library.touch()
    configure = ["cmake", "-S", folder, "-B", tmp_path / "build", f"-DTFLM_DIR={tmp_path}"]
    board = ["-DCMAKE_SYSTEM_NAME=Generic", "-DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY"]
    result = subprocess.run([*configure, *board], capture_output=True, text=True)
    assert "and TFLM_LIBRARY to the library" in " ".join(result.stderr.split())
    subprocess.run([*configure, *board, f"-DTFLM_LIBRARY={library}"], check=True, capture_output=True)


@pytest.mark.skipif(
    "TFLM_ROOT" not in os.environ or shutil.which("cmake") is None,
    reason="needs cmake and TFLM_ROOT, a checkout of tflite-micro with its library (make microlite)",
)
@pytest.mark.parametrize("which", ["codes", "several"])
def test_the_self_test_passes_and_finds_a_changed_byte(which, tmp_path, request):
    folder = made(request.getfixturevalue(which), tmp_path, "cmake")
    done = built(folder, tmp_path / "build")
    assert done.returncode == 0, done.stderr
    assert re.search(r"PASS: \d+ examples, \d+ bytes of arena", done.stderr)
    boards.change_a_byte(folder)
    done = built(folder, tmp_path / "build")
    assert done.returncode == 1
    assert re.search(r"FAIL: \d+ values differ, by at most \d+", done.stderr)


@pytest.mark.skipif(
    "TFLM_ROOT" not in os.environ or bool(boards.missing()),
    reason=f"needs TFLM_ROOT, a checkout of tflite-micro, and {', '.join(boards.PROGRAMS)}",
)
@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("which", ["codes", "several"])
def test_the_self_test_in_qemu(which, tmp_path, request):
    """The first one builds the library, which takes minutes; pytest's cache keeps it."""
    tflm = Path(os.environ["TFLM_ROOT"]).resolve()
    library = boards.libraries(request.config.cache.mkdir("boards"), tflm)["portable"]
    folder = made(request.getfixturevalue(which), tmp_path, "cmake")
    done = boards.in_qemu(boards.program(folder, tmp_path / "build", tflm, library))
    assert done.returncode == 0, done.stderr
    assert boards.PASSED.search(done.stderr)
    boards.change_a_byte(folder)
    done = boards.in_qemu(boards.program(folder, tmp_path / "build", tflm, library))
    assert done.returncode == 1
    assert boards.DIFFERS.search(done.stderr)
