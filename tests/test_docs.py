"""The commands and Python blocks of README and docs/ are run, in order, page by page.

Each page runs in a folder with what its reader has: the project's sample_models/, the reader's own model
(model.h5), another tool's file (other.tflite), and a pyproject.toml that makes runs short.

* Blocks of ``sh`` and ``python`` are executed, and so are the lines after a $ in ``console``.
* A Python block with a title is written to the file of that name.
* ``# exit code N`` behind a command is its exit code, if it is not 0.
* A block without a language is the output of the commands before it. Its lines must occur there in the same
  order. Numbers may differ, and "..." stands for any lines.
* All other blocks have the language ``text``.
"""

import contextlib
import doctest
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import tf_keras
from click.testing import CliRunner
from conftest import ROOT, run_lengths

import lqconvert
from lqconvert.cli.main import main
from lqconvert.exporting.export import convert

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SHELLS = ("sh", "bash", "zsh", "fish", "console")
BRIEF = "[tool.lqconvert.quantize]\nepochs = 0\n[tool.lqconvert.sweep]\nepochs = 2\n"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; ``place`` is for messages."""

    place: str
    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    text, found = page.read_text(), []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        title = re.search(r'title="(.+?)"', match[3])
        found.append(
            Block(
                f"{page.name}:{line}", match[2], title[1] if title else "", textwrap.dedent(match[4]).rstrip()
            )
        )
    return found


def known_extras(command: str) -> None:
    for extra in re.findall(r"\[(\w+)\]", command):
        assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(), f"there is no extra {extra}"


def known_script(command: str) -> None:
    script, *arguments = shlex.split(command)[1:]
    text = (ROOT / script).read_text()
    for option in (argument for argument in arguments if argument.startswith("-")):
        assert f'"{option}"' in text, f"{script} has no option {option}"


def parses(command: str) -> None:
    name, *arguments = shlex.split(command, comments=True)[1:]
    main.commands[name].make_context(name, arguments)


def nothing(command: str) -> None:
    """Another test covers this: the reason names it."""


#: Commands that are not run: a pattern, the reason, and the check that is done instead.
NOT_RUN: list[tuple[str, str, Callable[[str], None]]] = [
    (r"pip install ", "takes a network; the last one would run these tests", known_extras),
    (r"python tests/bench/", "takes minutes to hours", known_script),
    (r"lqconvert sweep build/", "takes half an hour, MNIST and CIFAR-10", parses),
    (r"lqconvert reproduce ", "takes ten minutes and MNIST", parses),
    (r"git clone |make |export TFLM=|g\+\+ |\./classify", "takes TFLite Micro: test_deploying.py", nothing),
    (
        r"lqconvert quantize .*--distribute multi-worker",
        "takes several processes: test_distributing.py",
        parses,
    ),
    (
        r"lqconvert quantize .*(--max-latency 0|--max-ram 5KB)",
        "depends on the machine, and takes a network with channels: test_pruning.py",
        parses,
    ),
    (r"_LQCONVERT_COMPLETE=|echo '\. ~/", "changes the reader's shell: test_ci.py", nothing),
]


@pytest.fixture(scope="module", autouse=True)
def short_runs():
    with pytest.MonkeyPatch.context() as patch, run_lengths(minimum_steps=60, minimum_cycle=20):
        patch.setenv("COLUMNS", "200")  # tables are not wrapped
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        yield


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "sample_models", folder / "sample_models")
    x, y = lqconvert.load_data("digits", (8, 8, 1), 10).train.arrays()
    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [layers.Input((8, 8, 1)), layers.Rescaling(1 / 16), layers.Flatten(), layers.Dense(10, "softmax")]
    )
    model.compile(tf_keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(x.astype("float32"), y, epochs=40, batch_size=64, verbose=0)
    model.save(folder / "model.h5")
    loaded = lqconvert.load_model(folder / "model.h5")
    (folder / "other.tflite").write_bytes(convert(loaded, integer=False))
    (folder / "pyproject.toml").write_text(BRIEF)
    return folder


class Reader:
    """Runs a page's commands in a folder, one after the other."""

    #: What quantize printed and wrote, by command: pages have the same in common.
    quantized: dict[str, tuple[click.testing.Result, dict[Path, bytes]]] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.python: dict[str, object] = {"__name__": "page"}

    def run(self, command: str) -> str:
        """Executes a command and returns its output."""
        code = re.search(r"# exit code (\d)", command)
        expected = int(code[1]) if code else 0
        words = list(shlex.shlex(command, posix=True, punctuation_chars=True))
        if words[0] == "lqconvert" and not set("&|;<>") & {word[0] for word in words}:
            result = self._lqconvert(shlex.split(command, comments=True)[1:])
            output, ended = result.output, result.exit_code
        else:
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
            output, ended = done.stdout + done.stderr, done.returncode
        assert ended == expected, f"{command}\nended with {ended}:\n{output}"
        return output

    def _lqconvert(self, arguments: list[str]) -> click.testing.Result:
        if arguments[0] != "quantize":
            return CliRunner().invoke(main, arguments)
        key = shlex.join(arguments)
        if key not in self.quantized:
            before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
            result = CliRunner().invoke(main, arguments)
            new = [path for path in Path().rglob("*") if path.stat().st_mtime_ns != before.get(path)]
            self.quantized[key] = result, {path: path.read_bytes() for path in new if path.is_file()}
        result, files = self.quantized[key]
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return result

    def execute(self, block: Block) -> str:
        """Executes a block and returns its output."""
        if block.language in SHELLS:
            return "".join(map(self._run_or_look, commands(block)))
        if block.title:
            Path(block.title).write_text(block.text + "\n")
            return ""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block.text, block.place, "exec"), self.python)
        return printed.getvalue()

    def _run_or_look(self, command: str) -> str:
        for pattern, _, look in NOT_RUN:
            if re.match(pattern, command):
                look(command)
                return ""
        return self.run(command)


def commands(block: Block) -> list[str]:
    lines = [line.strip() for line in block.text.replace("\\\n", " ").splitlines()]
    if block.language == "console":
        return [line[2:] for line in lines if line.startswith("$ ")]
    return [line for line in lines if line and not line.startswith("#")]


def masked(text: str) -> list[str]:
    """The lines of an output without frames, numbers and the space between columns."""
    lines = [re.sub(r"[\u2500-\u257f]", " ", line) for line in text.splitlines()]
    lines = [" ".join(re.sub(r"[+-]?\d[\d,.]*", "#", line).split()) for line in lines]
    return [line for line in lines if line]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_does_what_it_says(page, readers_folder, tmp_path, monkeypatch):
    if "--target tflm" in page.read_text():
        pytest.importorskip("tflite_micro")
    folder = tmp_path / "page"
    shutil.copytree(readers_folder, folder)
    monkeypatch.chdir(folder)
    reader, printed = Reader(), ""
    for block in blocks(page):
        if block.language in (*SHELLS, "python"):
            printed = reader.execute(block)
        elif block.language == "toml" and "tool.lqconvert" in block.text:
            takes_defaults(block.text, folder)
        elif block.language == "":
            lines = iter(masked(printed))
            for line in masked(block.text):
                if line != "...":
                    assert line in lines, f"{block.place}: '{line}' is not printed there, in:\n{printed}"


def takes_defaults(toml: str, folder: Path) -> None:
    project = folder / "project"
    project.mkdir(exist_ok=True)
    (project / "pyproject.toml").write_text(toml)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        result = CliRunner().invoke(main, ["check", "--help"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_within_the_project(page):
    prose = FENCE.sub("", page.read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        path = link.split("#")[0]
        if path and "://" not in link:
            assert (page.parent / path).exists(), link


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs" / "api.md").read_text()
    homes = [f"::: {getattr(lqconvert, name).__module__}.{name}" for name in lqconvert.__all__]
    assert [home for home in homes if f"{home}\n" not in text] == []


WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "lqconvert").rglob("*.py")
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_of_docstrings(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0
