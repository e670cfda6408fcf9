"""Names have no effect, whatever a file is called or contains, in everything that is printed or written."""

import ast
import html
import io
import json
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest
import rich.console
from ai_edge_litert import schema_py_generated as schema
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import lqconvert
from lqconvert import LqError
from lqconvert.cli.main import main
from lqconvert.errors import about, without
from lqconvert.sweeps.study import write_csv
from lqconvert.tflite.c_source import c_sources
from lqconvert.tflite.editing import add_constant, add_tensor, new_operator
from lqconvert.tflite.flatbuffer import read, write
from lqconvert.tflite.graph import Graph, Model, Port, Quantization, Signature
from lqconvert.utils import text
from lqconvert.utils.terminal import Shown, Stream, Table

PACKAGE = Path(lqconvert.__file__).parent
EVIL = "x\n\n::warning title=a::all is well\r|\t| </td><img src=https://e.example/p.png> "
EVIL += "`[c](https://e.example)` "
EVIL += "\x1b[31m\x1b]0;owned\x07\u202e\u2028 ##[error]z :bomb: [red]y[/red] @me \ud800\x85\ufffe \\"
#: Parts of names in the tests: words, and text that some program takes for a command.
WORDS = (
    "a|é|日本| |:|::|#|##[|##vso[|\\|`|<|>|&|]]>|*/|/*|//|??/|[red]|:bomb:|@a|www.e.example|https://e|$x$|="
)
HIDDEN = "\n,\r\n,\t,\0,\x1b[2J,\x07,\x9b,\u202e,\u2066,\u2028,\ufeff,\ufffe,\ue000,\ud800,\udcff,\U000e0041"
PIECES = st.sampled_from([*WORDS.split("|"), "|", *HIDDEN.split(",")])
CUSTOM = "all is well | <img src=x> `@me` \x1b[31m\u202e ##[error]:bomb:"  # of an operator
NAMES = st.one_of(st.lists(PIECES, max_size=12).map("".join), st.text(max_size=20))


def hidden(shown, *allowed):
    """The characters of a text that are not seen, but line ends."""
    return {c for c in shown if not c.isprintable() and unicodedata.category(c) != "Zs"} - {"\n", *allowed}


def refuse_commands(shown):
    assert not hidden(shown)
    assert not [line for line in shown.split("\n") if line.lstrip().startswith("::")]
    assert "##" not in shown


@given(NAMES)
def test_any_name_becomes_one_printable_line(name):
    shown = text.printable(name)
    assert not hidden(shown)
    assert "\n" not in shown
    assert text.printable(shown) == shown
    shown.encode()


@given(NAMES, st.integers(20, 60))
def test_a_long_name_is_shortened_in_its_middle(name, most):
    shown = text.printable(name, most)
    assert len(shown) <= most
    assert text.printable(shown, most) == shown


def test_ordinary_names_stay_as_they_are():
    for name in (
        "conv2d_1/BiasAdd;conv2d_1/Conv2D",
        "C:\\models\\ä ö.tflite",
        "模型　3.h5",
        "a::b",
        "naïve…",
    ):
        assert text.printable(name) == name


@given(st.dictionaries(NAMES, NAMES, max_size=3))
def test_json_reads_back(value):
    written = text.to_json(value)
    refuse_commands(written)
    back = json.loads(written)
    json.dumps(back, ensure_ascii=False).encode()  # no lone surrogates
    if not re.search("[\ud800-\udfff]", "".join([*value, *value.values()])):
        assert back == value


@given(NAMES, st.booleans())
def test_markdown_is_one_cell_of_text(name, code):
    shown = text.markdown(name, code=code)
    assert not hidden(shown)
    assert "|" not in shown
    plain = re.sub(r"^<code>(.*)</code>$|^`([^`]*)`$", r"\1\2", shown)
    assert not re.search(r"[<>`*\[\]@:]|&(?!#\d+;)|\\(?!_)", plain)
    if "<code>" not in shown and not code:
        assert "www." not in shown.lower()
    if text.printable(name).strip():
        assert html.unescape(plain).replace("\\_", "_") == text.printable(name)


@given(NAMES)
def test_xml_parses(name):
    element = ElementTree.Element("a", b=text.xml(name))
    element.text = text.xml(name)
    back = ElementTree.fromstring(ElementTree.tostring(element, encoding="utf-8"))
    assert (back.get("b"), back.text or "") == (text.printable(name), text.printable(name))


@given(NAMES)
def test_c_stays_in_its_comment(name):
    comment = text.c_comment(name)
    assert re.fullmatch(r"[ -~]*", comment)
    assert not re.search(r"\\|\?\?|/\*|\*/", comment)
    assert re.fullmatch(r"[A-Za-z_]\w*", text.c_identifier(name), re.ASCII)


@given(NAMES)
def test_csv_has_no_formulas(name):
    assert text.csv_cell(name)[:1] not in ("=", "+", "-", "@")
    assert text.csv_cell(-0.5) == -0.5


@given(NAMES)
def test_messages_of_errors_are_one_line(name):
    for error in (LqError(f"{name}: no such file"), lqconvert.BudgetMissed(name)):
        assert not hidden(str(error))
        assert "\n" not in str(error)
    inner = LqError(about(name, LqError("is damaged")))
    assert about(name, inner) == str(inner)
    assert without(name, inner) == "is damaged"


@given(st.lists(st.tuples(st.booleans(), NAMES), max_size=6))
def test_streams_begin_no_commands(writes):
    raw = io.StringIO()
    stream = Stream.of(raw)
    for own, name in writes:
        if own:
            stream.put(f"\x1b[1m{text.printable(name)}\x1b[0m\n"[: len(name) + 4])
        else:
            stream.write(name)
    shown = re.sub(r"\x1b\[\d*m?", "", raw.getvalue())
    assert not hidden(shown, "\t")
    assert not re.search(r"(?m)^\s*:", shown)
    assert "##" not in raw.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", "shift_jis"])
def test_streams_take_any_text(encoding):
    buffer = io.BytesIO()
    raw = io.TextIOWrapper(buffer, encoding=encoding)
    Stream.of(raw).write("é 日本 ✅ \udcff \ud800\n")
    assert buffer.getvalue().decode(encoding).endswith("\n")


def test_streams_take_bytes_too():
    raw = io.StringIO()
    Stream.of(raw).buffer.write(b"::a \x1b\xff \xc3\xa9\n")
    assert raw.getvalue() == "\\x3a:a \\x1b\\xff é\n"


@settings(max_examples=50)
@given(NAMES)
def test_a_console_of_any_settings_prints_names(name):
    class Answer(Shown):
        def shown(self):
            yield f"a {name}"
            table = Table(f"b {name}", title=f"c {name}")
            table.add_row(f"d {name}")
            yield table

    console = rich.console.Console(file=io.StringIO(), width=500, force_terminal=False)
    Answer().print(console)
    shown = console.file.getvalue()
    assert not hidden(shown)
    for letter in "abd":
        assert f"{letter} {text.printable(name)}".rstrip() in shown


# All that is shown goes out through one place.

PLACES = {
    "rich": {
        "utils/terminal.py",
        "cli/main.py",
        "analysis/check.py",
    },  # progress bars; a line with a coloured word
    "rich.console": {"utils/terminal.py"},
    "rich.table": {"utils/terminal.py"},
    "rich.segment": {"utils/terminal.py"},
    "rich.box": {"utils/terminal.py"},
    "rich.progress": {"cli/progress.py"},
    "rich.text": {"utils/terminal.py", "analysis/check.py"},
}


#: Modules that write JSON for lqconvert itself or for Keras only.
OWN_JSON = {
    *("utils/text.py", "training/checkpoint.py", "training/distribution.py"),
    *(
        "keras_loader/archive_checks.py",
        "keras_loader/build.py",
        "runtime/litert.py",
        "runtime/litert_worker.py",
    ),
}


MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("module_path", MODULES)
def test_nobody_else_prints(module_path):
    for node in ast.walk(ast.parse((PACKAGE / module_path).read_text(encoding="utf-8"))):
        modules = []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            if module.split(".")[0] == "rich":
                assert module_path in PLACES[module], f"line {node.lineno} imports {module}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            where = f"line {node.lineno}: {called}"
            # It is run for its parent alone, which reads what it prints.
            assert called not in ("click.echo", "click.secho", "ElementTree.dump"), where
            assert called != "print" or module_path == "runtime/tflm_worker.py", where
            assert not re.fullmatch(r"sys\.std(out|err)\.write", called), where
            if called.endswith((".read_text", ".write_text")):  # our own read_text is of UTF-8
                assert "encoding" in [keyword.arg for keyword in node.keywords], where
            binary = "os.open", "archive.open", "before.open", "after.open"
            if called.split(".")[-1] in ("open", "fdopen") and called not in binary:
                modes = [each.value for each in node.args if isinstance(each, ast.Constant)]
                as_text = any(re.fullmatch("[rwax]t?", str(mode)) for mode in modes) or not node.args
                named = "encoding" in [keyword.arg for keyword in node.keywords]
                assert named or not as_text, where
            if called == "json.dumps":  # of what is read by ourselves
                assert module_path in OWN_JSON, where


# What files are called, and what is in them.


def tiny(name=b"", custom=None):
    """A .tflite with one operator, perhaps a custom one. Tensors and signature have this name."""
    model, stored = Model.empty(), schema.SubGraphT()
    model.description = stored.name = name
    graph = Graph(stored=stored)
    model.graphs = [graph]
    source = add_tensor(model, "INT8", (1, 4), Quantization.one(1))
    kernel = add_constant(model, np.arange(12, dtype=np.int8).reshape(3, 4), Quantization.one(1))
    bias = add_constant(model, np.zeros(3, np.int32), Quantization.one(1))
    result = add_tensor(model, "INT8", (1, 3), Quantization.one(8))
    options = schema.FullyConnectedOptionsT()
    kind = "FULLY_CONNECTED" if custom is None else "CUSTOM"
    operator = new_operator(
        model, kind, [source, kernel, bias], [result], options if custom is None else None, custom=custom
    )
    graph.inputs, graph.outputs, graph.operators = (source,), (result,), [operator]
    for number, tensor in enumerate(graph.tensors):
        tensor.name = name + b"%d" % number
    model.signatures = [Signature(0, [Port(name, source)], [Port(name, result)], name)]
    return write(model)


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A folder of files with evil names inside and out: two that run, one of a custom operator, data, ..."""
    folder = tmp_path_factory.mktemp("names") / os.fsdecode(b"::error ##[x] \xff \x1b[31m\nb|`<b>")
    folder.mkdir()
    name = EVIL.encode(errors="replace")  # LiteRT runs no file with names of other encodings
    (folder / "a\n::b.tflite").write_bytes(tiny(name))
    (folder / "::c.tflite").write_bytes(tiny(EVIL[::-1].encode(errors="replace")))
    (folder / "custom.tflite").write_bytes(tiny(b"t", custom=CUSTOM))
    (folder / "wild.tflite").write_bytes(tiny(EVIL.encode(errors="surrogatepass")))
    x = np.arange(-64, 64, dtype=np.float32).reshape(32, 4)
    y = np.arange(32) % 3
    np.savez(folder / "d\x1b.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    config = {"name": EVIL, "function": EVIL}
    layers = [{"class_name": kind, "config": config, "module": EVIL} for kind in ("Lambda", EVIL)]
    with h5py.File(folder / "m.h5", "w") as file:
        model = {"class_name": "Functional", "config": {"name": EVIL, "layers": layers}}
        file.attrs["model_config"] = json.dumps(model)
    np.savez(folder / "e.codes.npz", **{f"{name.decode()}/codes": x})
    return folder


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("check custom.tflite --target litert", 1),
        ("check custom.tflite --target litert --json", 1),
        ("check custom.tflite --target litert --markdown --junit ::j.xml", 1),
        ("check a ::c.tflite custom.tflite nowhere.tflite --max-size 1MB", 1),
        ("check nowhere\x1b::.tflite --max-size 1MB", 1),
        ("check a --max-size 1MB --save-baseline \x1bb.json", 0),
        ("check a --max-size 1MB --against a", 1),
        ("check --\x1b[1m\n::x", 2),
        ("check a --max-size \x1b[1m\n::x", 2),
        ("inspect a", 0),
        ("inspect wild.tflite --json", 0),
        ("inspect m.h5", 1),
        ("inspect e.codes.npz", 1),
        ("explain a", 0),
        ("inspect custom.tflite", 0),
        ("evaluate wild.tflite --data d\x1b.npz", 1),
        ("explain ::c.tflite --json", 0),
        ("explain m.h5", 1),
        ("evaluate a --data d\x1b.npz --preprocess none", 0),
        ("evaluate custom.tflite --data d\x1b.npz", 1),
        ("compare a ::c.tflite --data d\x1b.npz --preprocess none", 0),
        ("export e.codes.npz", 1),
        ("quantize m.h5 --data d\x1b.npz", 1),
        ("quantize m.h5 --data \x1b[1m::", 1),
        ("export e.codes.npz --target tflm --c-array -o \x1b.tflite", 1),
    ],
)
def test_commands_show_names(command, code, evil):
    words = [str(evil / "a\n::b.tflite") if word == "a" else word for word in command.split(" ")]
    words = [str(evil / word) if "." in word else word for word in words]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == code, result.output
    refuse_commands(result.output)
    if code == 1 and "check a ::c" not in command:
        assert result.stderr.count("\n") <= 1
    if "--json" in words:
        json.loads(result.stdout)
    if "--markdown" in words:
        rows = result.stdout.rstrip().split("\n")
        assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [4] * 3
        assert "<img" not in result.stdout
        (case,) = ElementTree.parse(evil / "::j.xml").getroot()
        assert "all is well" in case.find("failure").get("message")


def test_nothing_of_a_file_gets_out_of_the_headers_comments(tmp_path):
    named = tiny(EVIL.encode(errors="replace"), custom="Decode\0\n#error from the file\n//\\")
    sources = c_sources(named, tmp_path / "2 ü.tflite", 1000)
    header = sources[tmp_path / "2 ü.h"]
    assert not hidden(header)
    code = [line for line in header.splitlines() if line and not line.startswith("//")]
    assert all(
        re.fullmatch(r"#pragma once|#include <\w+>|(extern|constexpr) [\w \[\]=.*-]+;", each) for each in code
    )
    assert "g__2__" in header
    for name in ('a".tflite', "a\n#error b.tflite", "a\\.tflite"):
        with pytest.raises(LqError, match="no C\\+\\+ source can include"):
            c_sources(named, tmp_path / name, None)


def test_a_long_name_is_not_told_whole_for_each_operator(tmp_path):
    model = read(tiny(b"n" * 100_000))
    model.main.operators *= 500
    (tmp_path / "long.tflite").write_bytes(write(model))
    assert len(lqconvert.inspect(tmp_path / "long.tflite").to_json()) < 5e6


def test_tables_of_a_sweep(tmp_path):
    from lqconvert.sweeps.sensitivity import Sensitivity

    rows = [Sensitivity(f"={EVIL}", 1, 2, -0.5, -0.25)]
    write_csv(tmp_path / "t.csv", rows)
    lines = (tmp_path / "t.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(("\"'=x", "'=x"))
    assert "-0.5" in lines[1]


def test_names_are_no_formulas_of_figures(tmp_path):
    from lqconvert.sweeps.figures import codes, sensitivity
    from lqconvert.sweeps.sensitivity import Sensitivity

    name = f"$\\frac{{$ {CUSTOM}"
    assert codes(tmp_path / "a.png", {name: np.arange(9)}).exists()
    assert sensitivity(tmp_path / "b.png", [Sensitivity(name, 1, 2, 0.5, 0.25)]).exists()


# Streams of all kinds, and files of any name.


def command(line, folder, **environment):
    """What bash makes of a command line: its exit code, and both streams as bytes."""
    python = "import sys; from lqconvert.cli.main import main; main(prog_name='lqconvert')"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "LC_", "LANG"))}
    env |= {"PYTHONPATH": str(PACKAGE.parent), "LC_ALL": "C.UTF-8", **environment}
    shell = f'lqconvert() {{ "$PYTHON" -c "{python}" "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", os.fsencode(shell)],
        cwd=folder,
        env=env | {"PYTHON": sys.executable},
        capture_output=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    for name in ("m.tflite", os.fsdecode(b"x\xff.tflite")):
        (folder / name).write_bytes(tiny(b"t"))
    return folder


CHECK = "lqconvert check m.tflite --max-size"


@pytest.mark.parametrize(
    ("line", "environment", "code", "stdout", "stderr"),
    [
        (f"{CHECK} 1MB 2>&-", {}, 0, b"ok   size", b""),
        (f"{CHECK} 1 2>&-", {}, 1, b"FAIL size", b""),
        (f"{CHECK} 1 >&- 2>&- <&-", {}, 1, b"", b""),
        (f"{CHECK} 1MB >&-", {}, 0, b"", b""),
        (
            "lqconvert check nowhere.tflite --max-size 1MB >&-",
            {},
            1,
            b"",
            b"error: nowhere.tflite: no such file",
        ),
        (f"{CHECK} 1 <&-", {}, 1, b"FAIL size", b""),
        (f"{CHECK} 1MB | true; exit ${{PIPESTATUS[0]}}", {}, 0, b"", b""),
        (f"{CHECK} 1 | true; exit ${{PIPESTATUS[0]}}", {}, 1, b"", b""),
        (
            f"{CHECK} 1MB >/dev/full",
            {},
            1,
            b"",
            b"error: the output cannot be written (No space left on device)",
        ),
        ("lqconvert --help >/dev/full", {}, 1, b"", b"error: the output cannot be written"),
        ("lqconvert check nowhere.tflite --max-size 1MB 2>/dev/full", {}, 1, b"", b""),
        (f"{CHECK} 1MB --markdown", {"PYTHONIOENCODING": "cp1252"}, 0, b"| &#9989; | size |", b""),
        ("lqconvert inspect m.tflite", {"PYTHONIOENCODING": "ascii"}, 0, b"bytes (", b""),
        (
            "lqconvert check ü.tflite --max-size 1MB",
            {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
            1,
            b"",
            b"error: \\xc3\\xbc.tflite: no such file",
        ),
        (
            "lqconvert check x\udcff.tflite --max-size 1 --junit j.xml",
            {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
            1,
            b"FAIL",
            b"",
        ),
        ("lqconvert check x\udcff.tflite --max-size 1MB --markdown", {}, 0, b"<code>x&#92;xff", b""),
        (
            "lqconvert check y\udcff.tflite --max-size 1MB",
            {},
            1,
            b"",
            b"error: y\\xff.tflite: no such file",
        ),
        ("unset HOME TERM; lqconvert inspect x\udcff.tflite", {}, 0, b"bytes (", b""),
    ],
)
def test_streams(line, environment, code, stdout, stderr, folder):
    result = command(line, folder, **environment)
    assert result.returncode == code, result
    assert stdout in result.stdout
    assert result.stderr.startswith(stderr)
    assert result.stderr.count(b"\n") == bool(stderr)
    if "--junit" in line:
        (case,) = ElementTree.parse(folder / "j.xml").getroot()
        assert case.get("classname") == "x\\xff.tflite"


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b"figure.hooks: evil:run\n", None])
def test_no_matplotlibrc_is_read(content, tmp_path):
    """Reports have charts by matplotlib."""
    if content is None:
        os.mkfifo(tmp_path / "matplotlibrc")
    else:
        (tmp_path / "matplotlibrc").write_bytes(content)
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    test = "from lqconvert.cli.main import main; main(['--version'], standalone_mode=False); "
    test += "import matplotlib.pyplot as p; p.figure(); m = p.matplotlib; "
    test += "print('same', m.rcParams['figure.hooks'], 'open' in vars(m))"
    line = f'"$PYTHON" -c "{test}"'
    result = command(line, tmp_path, MATPLOTLIBRC=str(tmp_path), MPLBACKEND="agg")
    assert result.stdout.endswith(b"same [] False\n"), result


def test_commands_import_nothing_that_keras_only_wraps(tmp_path):
    test = "from lqconvert.cli.main import main; main(['--version'], standalone_mode=False); "
    test += "import sys, keras; print([name in sys.modules for name in ('sklearn', 'matplotlib')]); "
    test += "import matplotlib, sklearn"
    result = command(f'"$PYTHON" -c "{test}"', tmp_path)
    assert result.returncode == 0, result
    assert result.stdout.endswith(b"[False, False]\n"), result
