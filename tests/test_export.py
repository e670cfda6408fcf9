"""lqconvert export: files for other targets of the codes of an earlier run."""

import gzip
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

import lqconvert
from lqconvert import export_codes
from lqconvert.cli.main import main
from lqconvert.exporting.codes import Int8File
from lqconvert.runtime.litert import Runner

pytest.importorskip("tflite_micro", reason="TFLite Micro's interpreter is for Linux only")


def test_a_run_writes_a_file_for_every_target(run):
    report, folder = run
    assert [file.proven.target for file in report.files] == ["tflm", "litert"]
    for file, name in zip(report.files, ("digits.tflite", "digits.litert.tflite"), strict=True):
        assert file.path == str(folder / name)
        assert (folder / name).stat().st_size == file.proven.size < report.int8.size
        assert file.score == report.int8.score
        assert file.examples == report.splits["test"]
    assert json.loads((folder / "digits.report.json").read_text())["files"][0]["proven"]["arena_bytes"] > 0


def test_saved_codes_make_the_same_files(run, tmp_path):
    report, folder = run
    options = ["--target", "litert", "--target", "tflm", "--data", "digits", "-o", str(tmp_path / "m.tflite")]
    result = CliRunner().invoke(main, ["export", str(folder / "digits.codes.npz"), *options])
    assert result.exit_code == 0, result.output
    assert result.stdout.count(f"{report.int8.score:.2%}") == 2
    assert (tmp_path / "m.tflite").read_bytes() == (folder / "digits.litert.tflite").read_bytes()
    assert (tmp_path / "m.tflm.tflite").read_bytes() == (folder / "digits.tflite").read_bytes()


def test_without_data_random_inputs_prove(run, tmp_path):
    _, folder = run
    exports = export_codes(folder / "digits.codes.npz", tmp_path / "m.tflite")
    assert exports.files[0].score is None
    assert exports.files[0].proven.examples == 256
    assert (tmp_path / "m.tflite").read_bytes() == (folder / "digits.litert.tflite").read_bytes()


@pytest.mark.parametrize(("target", "always"), [("litert", False), ("tflm-no-decode", False), ("tflm", True)])
def test_names_are_stripped_where_nothing_reads_them(target, always, run, tmp_path):
    _, folder = run
    stripped = []
    for options in ([], ["--strip-all"]):
        path = tmp_path / f"m{len(options)}.tflite"
        arguments = [str(folder / "digits.codes.npz"), "--target", target, *options, "-o", str(path)]
        result = CliRunner().invoke(main, ["export", *arguments])
        assert result.exit_code == 0, result.output
        stripped.append(b"serving_default" not in path.read_bytes())
    assert stripped == [always, True]


def test_a_file_that_only_micro_loads_is_evaluated_there(run, tmp_path):
    _, folder = run
    export_codes(
        folder / "digits.codes.npz", tmp_path / "m.tflite", targets=lqconvert.target("tflm", prefer="ram")
    )
    assert b"TFLM_DECODE" not in (tmp_path / "m.tflite").read_bytes()
    evaluation = lqconvert.evaluate(tmp_path / "m.tflite", "digits")
    assert evaluation.runtime.startswith("tflite-micro")


def test_all_that_can_be_asked_for(run, tmp_path):
    _, folder = run
    options = ["--target", "tflm", "--c-array", "--gzip", "--strip-all", "-o", str(tmp_path / "m.tflite")]
    result = CliRunner().invoke(main, ["export", str(folder / "digits.codes.npz"), *options])
    assert result.exit_code == 0, result.output
    assert "resolver.AddDecode()" in " ".join(result.stdout.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.cc", "m.h", "m.tflite", "m.tflite.gz"]
    assert gzip.decompress((tmp_path / "m.tflite.gz").read_bytes()) == (tmp_path / "m.tflite").read_bytes()


def test_the_default_name(run, tmp_path):
    codes = shutil.copy(run[1] / "digits.codes.npz", tmp_path)
    result = CliRunner().invoke(main, ["export", codes, "--target", "tflm"])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.codes.npz", "digits.tflm.tflite"]


def test_the_codes_hold_the_plain_int8_file(run):
    report, folder = run
    file = Int8File.load(folder / "digits.codes.npz")
    assert len(file.tflite) == report.int8.size
    assert sorted(file.layers) == sorted(row.name for row in report.layers)
    inputs = np.zeros((1, 8, 8, 1), np.float32)
    assert Runner(file.tflite).run([inputs]).shape == (1, 10)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, [], "no such file"),
        (b"not a zip", [], "not the .codes.npz that lqconvert quantize writes"),
        ("foreign", [], "not the .codes.npz that lqconvert quantize writes"),
        ("codes", ["--max-ram", "9KB"], "use --target tflm"),
        ("codes", ["--target", "tflm", "--max-ram", "1000"], "is within the limits"),
        ("codes", ["--data", "nowhere.npz"], "nowhere.npz"),
        ("codes", ["--c-array"], "phones load the .tflite itself"),
        ("array", [], "not the .codes.npz that lqconvert quantize writes"),
        ("broken", [], "LiteRT cannot load the int8 file in it"),
        ("short", [], "the file has 4 kernels, but 1 names of layers are given"),
    ],
)
def test_mistakes(content, options, message, run, tmp_path):
    path, output = tmp_path / "m.codes.npz", tmp_path / "out" / "m.tflite"
    if content == "codes":
        path = run[1] / "digits.codes.npz"
    elif content == "short":
        arrays = dict(np.load(run[1] / "digits.codes.npz"))
        np.savez(path, **arrays | {"int8.layers": arrays["int8.layers"][:1]})
    elif content == "foreign":
        np.savez(path, x=np.zeros(3))
    elif content == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif content == "broken":
        layers = {"int8.layers": ["a"], "int8.preprocess": [1.0, 0.0]}
        np.savez(path, **{"int8.tflite": np.zeros(99, np.uint8)}, **layers)
    elif content is not None:
        path.write_bytes(content)
    result = CliRunner().invoke(main, ["export", str(path), "-o", str(output), *options])
    assert result.exit_code == (3 if "limits" in message else 1)
    assert message in " ".join(result.stderr.split())
    assert not output.parent.exists() or list(output.parent.iterdir()) == []
