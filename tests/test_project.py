"""A pyproject.toml may be a stranger's: it cannot run code or change files that are not lqconvert's."""

import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from lqconvert.cli.config import MAX_BYTES, MAX_DOTS, PLAIN, READ, WRITTEN, find
from lqconvert.cli.main import main

OPTIONS = {
    (name, option.lstrip("-"))
    for name, command in main.commands.items()
    for parameter in command.params
    for option in parameter.opts
    if option.startswith("--")
}
#: Settings that only the command line may have.
REFUSED = {"trust-model", "storage", "debug", "dry-run", "metric"}


@pytest.fixture
def project(tmp_path, monkeypatch, int8):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "model.tflite").write_bytes(int8.read_bytes())
    monkeypatch.chdir(folder)
    return folder


def run(table, *lines, arguments=("check", "model.tflite")):
    Path("pyproject.toml").write_text("\n".join([f"[tool.lqconvert{table}]", *lines]))
    return CliRunner().invoke(main, arguments)


def refused(result, *parts):
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert all(part in line for part in (*parts, "on the command line"))


def test_every_option_is_either_harmless_or_refused_or_a_path():
    names = {option for _, option in OPTIONS}
    assert PLAIN | READ | set(WRITTEN) | {"output"} | REFUSED == names
    assert not (PLAIN | READ | set(WRITTEN)) & REFUSED


@pytest.mark.parametrize("option", sorted(REFUSED))
@pytest.mark.parametrize("dashes", ["-", "_"])
def test_what_loosens_safety_is_not_taken(option, dashes, project):
    key = option.replace("-", dashes)
    refused(run("", f"{key} = true", 'max-size = "1MB"'), f"{option} = 'True'", f"--{option}")


@pytest.mark.parametrize("command", ["quantize", "check", "evaluate", "compare", "export", "sweep"])
@pytest.mark.parametrize(
    "data", ["evil:run", "tfds:mnist", "kaggle:x", "file:///etc", "C:\\x", "~/x", "../x"]
)
def test_data_neither_run_nor_lie_elsewhere(command, data, project):
    (project / "evil.py").write_text("raise SystemExit(open('ran', 'w'))")
    refused(run(f".{command}", f"data = '{data}'", arguments=["inspect", "model.tflite"]), "data", "--data")
    assert not (project / "ran").exists()


@pytest.mark.parametrize("value", ['["evil:run"]', "5", "true", '""', '"a\\u0000b"', "{a = 1}"])
def test_a_path_is_text(value, project):
    refused(run(".check", f"data = {value}"), "is not a path")


@pytest.mark.parametrize("key", ["data", "baseline", "against", "junit", "save-baseline"])
@pytest.mark.parametrize("way", ["..", "absolute", "link", "link to a folder", "links in a circle"])
def test_a_path_stays_in_the_project(key, way, project):
    outside = project.parent / "outside"
    outside.mkdir()
    name = {"junit": "x.xml", "save-baseline": "x.json", "against": "x.json"}.get(key, "x.npz")
    (outside / name).write_text("before")
    paths = {
        "..": f"../outside/{name}",
        "absolute": str(outside / name),
        "link to a folder": f"folder/{name}",
    }
    (project / "folder").symlink_to(outside)
    (project / name).symlink_to(outside / name if way == "link" else name)
    refused(run(".check", 'max-size = "1MB"', f'{key} = "{paths.get(way, name)}"'), key)
    assert (outside / name).read_text() == "before"


@pytest.mark.parametrize(
    ("command", "key", "path"),
    [
        ("check", "junit", ".bashrc"),
        ("check", "junit", "Makefile"),
        ("check", "junit", "pom.xml"),
        ("check", "junit", ".github/x.xml"),
        ("check", "junit", "x.xml/"),
        ("check", "save-baseline", "package.json"),
        ("check", "save-baseline", "x.tflite"),
        ("quantize", "log", "package.json"),
        ("quantize", "log", ".git/config.jsonl"),
        ("quantize", "report", "index.html"),
        ("quantize", "output", "evil.py"),
        ("quantize", "output", "other.tflite"),
        ("quantize", "o", "evil.py"),
        ("quantize", "tensorboard", "src"),
        ("quantize", "tensorboard", ".git"),
        ("sweep", "output", "src"),
        ("sweep", "output", "."),
        ("export", "output", "evil.py"),
    ],
)
def test_nothing_is_replaced_that_lqconvert_did_not_write(command, key, path, project):
    (project / "src").mkdir()
    (project / "x.xml").mkdir()
    kept = [
        ".bashrc",
        "Makefile",
        "pom.xml",
        "package.json",
        "index.html",
        "evil.py",
        "other.tflite",
        "src/a",
    ]
    for each in kept:
        (project / each).write_text("before")
    result = run(f".{command}", f'{key} = "{path}"', 'max-size = "1MB"' if command == "check" else "")
    refused(result, key)
    assert all((project / each).read_text() == "before" for each in kept)


def test_what_lqconvert_wrote_is_replaced(project):
    lines = 'max-size = "1MB"', 'junit = "out/x.xml"', 'save-baseline = "out/b.json"'
    for _ in range(2):
        assert run(".check", *lines).exit_code == 0
    assert run(".check", *lines, 'against = "out/b.json"').exit_code == 0


def test_a_file_that_is_written_is_no_budget(project):
    result = run(".check", 'save-baseline = "b.json"')
    assert result.exit_code == 2
    assert "no budget to check" in result.stderr
    assert not (project / "b.json").exists()


def test_the_command_line_may_name_what_the_project_may_not(project):
    result = run(".check", 'max-size = "1MB"', arguments=["check", "model.tflite", "--junit", "../out.XML"])
    assert result.exit_code == 0
    assert (project.parent / "out.XML").exists()


@pytest.mark.parametrize("marker", ["folder", "file", "nothing"])
def test_the_search_ends_at_the_repositorys_root(marker, tmp_path):
    inner = tmp_path / "repository" / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    root = tmp_path / "repository"
    if marker == "folder":
        (root / ".git").mkdir()
    elif marker == "file":  # of a submodule or another worktree
        (root / ".git").write_text("gitdir: ...")
    assert find(inner) is None
    (root / "pyproject.toml").touch()
    assert find(inner) == (None if marker == "nothing" else root / "pyproject.toml")
    assert find(root) == root / "pyproject.toml"


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 50_000,
        "x = " + "9" * 10_000,
        "a." * (MAX_BYTES // 2 - 30) + "a = 1",
        "[" + "a." * MAX_DOTS + "a]\n" + "\n".join(f"b{n}.c = 1" for n in range(MAX_BYTES // 12)) + "\n[",
        "#" * (MAX_BYTES + 1),
        "\udcff",
    ],
    ids=["deep", "long number", "long key", "keys of a long one", "large", "no UTF-8"],
)
def test_a_file_that_is_hard_to_read(text, project):
    (project / "pyproject.toml").write_bytes(text.encode(errors="surrogateescape"))
    began = time.process_time()
    result = CliRunner().invoke(main, ["check", "model.tflite", "--max-size", "1MB"])
    assert time.process_time() - began < 5
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1


WAYS_OUT = {
    "exit": "raise SystemExit",
    "exit 0": "import sys; sys.exit(0)",
    "generator": "raise GeneratorExit",
    "interrupt": "raise KeyboardInterrupt",
    "own": "raise type('Mine', (BaseException,), {})",
    "click": "import click; raise click.exceptions.Exit(0)",
    "click's abort": "import click; click.get_current_context().exit(0)",
    "lazily": "return type('Array', (), {'__array__': lambda *_, **__: exit(0)})()",
    "nothing": "return None",
}


@pytest.mark.parametrize("way", WAYS_OUT)
def test_no_way_out_of_a_users_function_passes_a_check(way, project):
    (project / f"mine_{abs(hash(way))}.py").write_text(f"def run():\n    {WAYS_OUT[way]}\n")
    data = f"mine_{abs(hash(way))}:run"
    result = CliRunner().invoke(main, ["check", "model.tflite", "--max-size", "1MB", "--data", data])
    assert result.exit_code == (130 if way == "interrupt" else 1)
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stderr


def test_nor_does_an_exit_as_its_module_is_imported(project):
    (project / "ending.py").write_text("raise SystemExit(0)")
    command = ["lqconvert", "check", "model.tflite", "--max-size", "1MB", "--data", "ending:run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot call run of the Python module ending: SystemExit(0)" in done.stderr


@pytest.mark.parametrize("value", ["nan", "-nan"])
def test_a_budget_that_is_no_number_does_not_hold(value, project):
    assert run(".check", f"min-accuracy = {value}", 'data = "digits"').exit_code != 0
