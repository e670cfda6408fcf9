"""The borders of the packages: what each may import, and that only the command line names options."""

import ast
import re
from pathlib import Path

import pytest

import lqconvert
from lqconvert.cli.hints import HINTS
from lqconvert.cli.main import main

PACKAGE = Path(lqconvert.__file__).parent
#: The lowest level first. ``errors`` is at the level of ``utils``, which makes messages printable.
LEVELS = (
    ("utils", "errors"),
    ("metrics", "tasks"),
    ("data",),
    ("tflite",),
    ("keras_loader",),
    ("quantization",),
    ("exporting",),
    ("runtime",),
    ("training",),
    ("analysis",),
    ("reports",),
    ("pipeline",),
    ("sweeps",),
    ("cli",),
)
LEVEL_OF = {name: number for number, names in enumerate(LEVELS) for name in names}
#: Packages that do not import TensorFlow.
LIGHT = ("utils", "errors", "metrics", "tasks", "tflite", "cli")
TENSORFLOW = {"tensorflow", "tf_keras", "keras", "tensorflow_model_optimization"}
MODULES = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix()
    for path in PACKAGE.rglob("*.py")
    if path.parent != PACKAGE or path.stem in LEVEL_OF
)


def imported(source: str, *, late: bool) -> set[str]:
    """Modules that a source imports. Unless ``late``, only those that are imported with it."""
    tree = ast.parse(source)
    skipped = set()
    if not late:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) or (
                isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            ):
                skipped |= set(ast.walk(node))
    names = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def climbs(module: str, source: str) -> list[str]:
    """The imports of a module from higher levels, including those in functions."""
    level = LEVEL_OF[module.split("/")[0]]
    parts = [name.split(".") for name in imported(source, late=True)]
    wanted = {name[1] for name in parts if name[0] == "lqconvert" and len(name) > 1}
    return sorted(name for name in wanted if LEVEL_OF.get(name, -1) > level)


def heavy(module: str, source: str) -> list[str]:
    """The parts of TensorFlow that are imported with a module that must not import it."""
    if module.split("/")[0] not in LIGHT:
        return []
    return sorted(TENSORFLOW & {name.split(".")[0] for name in imported(source, late=False)})


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    source = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    assert climbs(module, source) == []
    assert heavy(module, source) == []


def test_every_package_has_a_floor():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages == set(LEVEL_OF) - {"errors", "metrics", "tasks"}


@pytest.mark.parametrize(
    ("module", "source", "up", "tensorflow"),
    [
        ("tflite/packing", "from lqconvert.pipeline.quantize import quantize", ["pipeline"], []),
        ("data/dataset", "def f():\n    import lqconvert.cli.main", ["cli"], []),
        ("utils/text", "import tensorflow as tf", [], ["tensorflow"]),
        ("utils/text", "def f():\n    import tensorflow as tf", [], []),
        ("tflite/packing", "from lqconvert import training", ["training"], []),
        ("training/budget", "import tf_keras\nfrom lqconvert.utils.text import printable", [], []),
    ],
)
def test_a_forbidden_import_is_found(module, source, up, tensorflow):
    assert climbs(module, source) == up
    assert heavy(module, source) == tensorflow


def test_only_the_command_line_names_options():
    """Except the advice of ``explain``, about options of ``quantize``, and what calls Vela's command line."""
    option = re.compile(r"(?<![\w`-])--[a-z]")
    named = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "cli" and path.name not in ("savings.py", "vela_worker.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and option.search(node.value)
    ]
    assert named == []


def test_each_hint_has_a_row_or_is_an_option():
    options = {
        opt.removeprefix("--").replace("-", "_")
        for command in main.commands.values()
        for parameter in command.params
        for opt in parameter.opts
    }
    text = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    hints = set(re.findall(r'(?:hint=|"hint": )"(\w+)"', text))
    assert set(HINTS) - {"litert"} <= hints <= set(HINTS) | options
