"""The packages of the house: each imports only those below it, and some of them nothing of TensorFlow."""

import ast
from pathlib import Path

import pytest

import lqconvert

PACKAGE = Path(lqconvert.__file__).parent
#: From the ground up. ``errors`` goes with ``utils``: messages are made printable there.
FLOORS = (
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
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
#: What starts with the interpreter, before TensorFlow could be there.
LIGHT = ("utils", "errors", "metrics", "tasks", "tflite", "cli")
TENSORFLOW = {"tensorflow", "tf_keras", "keras", "tensorflow_model_optimization"}
MODULES = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix()
    for path in PACKAGE.rglob("*.py")
    if path.parent != PACKAGE or path.stem in FLOOR_OF
)


def imported(source: str, *, late: bool) -> set[str]:
    """Modules that a source imports; unless ``late``, only those that it takes to be imported itself."""
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
    """The imports of a module that go up in the house, also those within functions."""
    floor = FLOOR_OF[module.split("/")[0]]
    parts = [name.split(".") for name in imported(source, late=True)]
    wanted = {name[1] for name in parts if name[0] == "lqconvert" and len(name) > 1}
    return sorted(name for name in wanted if FLOOR_OF.get(name, -1) > floor)


def heavy(module: str, source: str) -> list[str]:
    """What of TensorFlow is imported with a module that has to do without."""
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
    assert packages == set(FLOOR_OF) - {"errors", "metrics", "tasks"}


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
