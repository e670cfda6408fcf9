"""The public names of lqconvert, their types, and the script at the beginning of docs/api.md."""

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from mypy import api as mypy

import lqconvert

SCRIPT = re.search(
    r'```python title="quickstart.py"\n(.*?)```', (ROOT / "docs/api.md").read_text(), re.DOTALL
)[1]


def seen_by_type_checkers() -> dict[str, str]:
    """The modules that the package's own source imports its public names from, where types are checked."""
    tree = ast.parse(Path(lqconvert.__file__).read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(checked.test) == "TYPE_CHECKING"
    assert all(alias.asname == alias.name for node in checked.body for alias in node.names)
    return {alias.name: node.module for node in checked.body for alias in node.names}


def test_type_checkers_see_the_names_that_there_are():
    lazy = {name: f"lqconvert.{home}" for name, home in lqconvert._HOMES.items()}
    assert seen_by_type_checkers() == lazy
    assert sorted(lqconvert.__all__) == sorted(lazy)
    for name, module in lazy.items():
        found = getattr(lqconvert, name)
        assert found is getattr(importlib.import_module(module), name)
        assert found.__module__ == module, f"{name} is at home in {found.__module__}"


def test_names_are_listed():
    assert set(lqconvert.__all__) | {"__version__"} <= set(dir(lqconvert))
    assert not hasattr(lqconvert, "quantise")


def test_functions_have_types():
    for name in lqconvert.__all__:
        found = getattr(lqconvert, name)
        if inspect.isfunction(found):
            kinds = inspect.signature(found)
            bare = [
                each.name for each in kinds.parameters.values() if each.annotation is inspect.Parameter.empty
            ]
            assert bare == [], name
            assert kinds.return_annotation is not inspect.Signature.empty, name
    assert (Path(lqconvert.__file__).parent / "py.typed").is_file()


#: A line more for the script, and the error that mypy finds in it.
LINES = [
    ("", None),
    ("lqconvert.quantise(model, (x, y))", "attr-defined"),
    ("report.ratios", "attr-defined"),
    ("lqconvert.evaluate('digits.tflite', data=3)", "arg-type"),
    ("lqconvert.quantize(model, (x, y), html='page.html')", "call-arg"),
]


def test_the_script_has_types(tmp_path, monkeypatch):
    """Keras has none, which is none of ours."""
    scripts = [tmp_path / f"script{number}.py" for number in range(len(LINES))]
    for script, (line, _) in zip(scripts, LINES, strict=True):
        script.write_text(f"{SCRIPT}{line}\n")
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    options = ["--strict", "--config-file=", "--follow-imports=silent", "--disable-error-code=import-untyped"]
    cache = ["--cache-dir", str(tmp_path / "mypy")]
    said, errors, _ = mypy.run([*options, *cache, *map(str, scripts)])
    found = re.findall(r"script(\d)\.py:\d+: error: .* \[([a-z-]+)\]$", said, re.MULTILINE)
    expected = [(str(number), error) for number, (_, error) in enumerate(LINES) if error]
    assert sorted(found) == expected, said + errors
    assert said.count("error:") == len(expected)


def test_the_script_is_short():
    assert len([line for line in SCRIPT.splitlines() if line.strip()]) <= 12


@pytest.mark.slow
def test_the_script_does_what_it_says(tmp_path, monkeypatch, capsys, short_cycles):
    x, y = lqconvert.load_data("digits", (8, 8, 1), 10).train.arrays()
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", x)
    np.save("classes.npy", y)
    names: dict = {"__name__": "quickstart"}
    exec(compile(SCRIPT, "quickstart.py", "exec"), names)
    report, evaluation, result = (names[name] for name in ("report", "evaluation", "result"))
    assert re.fullmatch(r"sequential\w* \(weights [0-9a-f]{8}\)", report.model)
    assert report.data == "the arrays"
    assert evaluation.score == report.files[0].score > 0.8
    assert result.holds
    assert result.measured.size == Path("digits.tflite").stat().st_size
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0].endswith("on the test split")
    assert "keras" in sys.modules
