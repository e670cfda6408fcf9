"""Each default is defined once. Keywords, options and messages follow from the settings."""

import ast
import dataclasses
import logging
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import lqconvert
from lqconvert.cli.main import main
from lqconvert.cli.messages import passed_on
from lqconvert.cli.options import BOARDS, IO, PREFERENCES, RUNTIMES, SCHEMES, SWEPT, TARGETS
from lqconvert.errors import LqError
from lqconvert.pipeline import settings as module
from lqconvert.pipeline.settings import DEFAULTS, ExportKeywords, OutputSettings, QuantizeKeywords, Settings
from lqconvert.quantization.granularity import GRANULARITIES
from lqconvert.quantization.recipes import DEFAULT_SCHEME, EFFORTS, RECIPES, ROUNDINGS
from lqconvert.tasks import Wishes
from lqconvert.training.checkpoint import Checkpoint

PACKAGE = Path(lqconvert.__file__).parent
GROUPS = [type(getattr(DEFAULTS, group.name)) for group in dataclasses.fields(Settings)]
VALUES = DEFAULTS._values()
#: Options that become a part of a setting. All others have a setting's name.
OTHERS = {
    "quantize": {
        *("model", "data", "output", "resume", "distribute", "dry_run", "log", "tensorboard"),
        *("as_json", "quiet", "debug"),
        *("scheme", "bits", "penalty", "max_drop", "max_size", "max_ram", "max_latency"),
        *("tasks", "metrics", "weights", "threshold", "classes", "strip_all", "int4_convolutions"),
        *("board", "prefer"),
    },
    "export": {
        *("codes", "output", "data", "as_json", "debug"),
        *("board", "prefer", "max_ram", "max_latency", "strip_all", "int4_convolutions"),
    },
    "sweep": {
        *("model", "data", "output", "quiet", "debug"),
        *("schemes", "granularities", "penalties", "storage"),
    },
}
#: Without TensorFlow, and without saying anything, whatever is logged.
QUIET = """
import logging, sys, lqconvert
logging.getLogger("lqconvert.pipeline.quantize").warning("something")
import lqconvert.pipeline.settings
assert "tensorflow" not in sys.modules and "ai_edge_litert" not in sys.modules
"""


def options_of(command):
    """The values of a command's options if only required ones are given."""
    required = ["file"] if command == "export" else ["file", "--data", "digits"]
    return main.commands[command].make_context(command, required).params


@pytest.mark.parametrize("command", OTHERS)
def test_an_options_default_is_the_settings(command):
    options = options_of(command)
    assert OTHERS[command] <= set(options)
    own = {name: value for name, value in options.items() if name not in OTHERS[command]}
    assert own == {name: VALUES[name] for name in own}


def test_defaults_of_options_that_are_part_of_a_setting():
    options = options_of("quantize")
    assert options["scheme"] == DEFAULT_SCHEME == DEFAULTS.scheme.name
    assert 2 ** (options["bits"] - 1) - 1 == DEFAULTS.scheme.limit
    wishes = {name: dict(options[name]) for name in ("tasks", "metrics", "weights")}
    assert Wishes(**wishes, threshold=options["threshold"]) == DEFAULTS.data.wishes
    for name in ("penalty", "max_drop", "max_size", "max_ram", "max_latency", "classes"):
        assert options[name] is None
    assert not options["strip_all"]
    assert not options["int4_convolutions"]


def test_keywords_are_the_settings():
    types = {field.name: field.type for group in GROUPS for field in dataclasses.fields(group)}
    assert set(QuantizeKeywords.__annotations__) == set(types)
    assert set(ExportKeywords.__annotations__) == set(types) & {
        field.name for field in dataclasses.fields(OutputSettings) if field.name != "report"
    }
    for name, hint in QuantizeKeywords.__annotations__.items():
        own = hint.__forward_arg__ if isinstance(hint, typing.ForwardRef) else hint
        assert own in (types[name], f"{types[name]} | None"), name


def test_each_keyword_is_described():
    described = (ExportKeywords.__doc__ or "") + (QuantizeKeywords.__doc__ or "")
    names = {name.strip() for line in described.splitlines() for name in line.split(":")[0].split(",")}
    assert set(QuantizeKeywords.__annotations__) <= names


def test_tables_of_names_are_those_of_the_code():
    """Help texts are shown without what these modules import."""
    from lqconvert.quantization import layers, schemes
    from lqconvert.tflite import boards, io_types, targets

    assert set(SCHEMES) == set(schemes.SCHEMES) - {"fixed"}
    for name, recipe in RECIPES.items():
        scheme = schemes.SCHEMES[name]
        assert scheme.recipe is recipe
        assert recipe.granularity in GRANULARITIES
        fields = {field.name for field in dataclasses.fields(scheme)}
        assert {recipe.penalty} - {None} == fields & {"gamma", "threshold"}
        assert (name in SWEPT) == (scheme().scaled(2.0) != scheme())
    assert tuple(layers.ROUNDINGS) == ROUNDINGS
    assert tuple(targets.TARGETS) == TARGETS
    assert tuple(targets.RUNTIMES) == RUNTIMES
    assert targets.PREFERENCES == PREFERENCES
    assert tuple(boards.BOARDS) == BOARDS
    assert tuple(io_types.TYPES) == IO


def test_the_page_on_schemes_has_their_defaults():
    from lqconvert.quantization.schemes import SCHEMES as classes

    page = (PACKAGE.parent / "docs" / "schemes.md").read_text(encoding="utf-8")
    for name, recipe in RECIPES.items():
        penalty = (
            f"{recipe.penalty} = {getattr(classes[name](), recipe.penalty)}" if recipe.penalty else "none"
        )
        row = [f"`{name}`", recipe.epochs, recipe.learning_rate, recipe.granularity, penalty]
        assert f"\n| {' | '.join(map(str, row))} |\n" in page


def test_what_the_user_left_open_follows_the_scheme():
    from lqconvert import LSQ, Budget, Rate

    assert (DEFAULTS.granularity, DEFAULTS.epochs, DEFAULTS.learning_rate) == ("mixed", 20, 3e-3)
    assert DEFAULTS.budget == Budget(max_drop=0.0, asked=False)
    assert DEFAULTS.replaced(scheme=Rate()).budget == Budget(asked=False)
    assert DEFAULTS.replaced(epochs=0).epochs == 0
    assert [DEFAULTS.replaced(effort=effort).epochs for effort in EFFORTS] == [0, 20, 80]
    assert DEFAULTS.replaced(effort="high", epochs=7).epochs == 7
    coarse = DEFAULTS.replaced(scheme=LSQ(), epochs=7)
    assert (coarse.granularity, coarse.epochs, coarse.learning_rate) == ("output-channel-wise", 7, 2e-4)


def test_keywords_change_settings():
    settings = Settings.of({"seed": 1, "targets": ["tflm", "litert"], "limits": None})
    assert settings.changes() == {"seed": 1, "targets": ["tflm", "litert"]}
    assert [target.name for target in settings.output.runtimes] == ["tflm", "litert"]
    assert Settings.of({"epochs": 2}, settings).changes() == settings.changes() | {"epochs": 2}
    with pytest.raises(TypeError, match="epoch"):
        Settings.of({"epoch": 1})
    with pytest.raises(LqError, match="effort 'quick': not one of fast, normal, high"):
        Settings.of({"effort": "quick"})


def test_defaults_can_be_replaced_as_a_whole(monkeypatch):
    monkeypatch.setattr(module, "DEFAULTS", DEFAULTS.replaced(minimum_steps=7))
    assert Settings.of({"seed": 1}).training.minimum_steps == 7


def test_another_runs_checkpoint_names_the_settings_that_differ(tmp_path):
    path = tmp_path / "m.resume.npz"
    Checkpoint(1, [], [], [], [], 0, 0, 3).save(path, {"seed": "0", "epochs": "20", "io": "int8"})
    assert Checkpoint.load(path, {"seed": "0", "epochs": "20", "io": "int8"}).step == 1
    with pytest.raises(LqError) as raised:
        Checkpoint.load(path, {"seed": "1", "epochs": "20", "start": "0.5"})
    what = "seed=0 (now 1), io=int8 (now none), start=none (now 0.5)"
    assert str(raised.value) == f"{path}: belongs to a run with other settings: {what}"


def test_what_is_logged_is_passed_on_in_order():
    logger, lines = logging.getLogger("lqconvert.pipeline.prepare"), []
    with passed_on("lqconvert", lines.append, lambda line: lines.append(f"and {line}")):
        logger.info("100% of it")
        logger.debug("how")
        logger.warning("far off")
    logger.info("later")
    assert lines == ["100% of it", "and 100% of it", "far off", "and far off"]
    assert logging.getLogger("lqconvert").level == logging.NOTSET


def test_a_message_that_cannot_be_kept_ends_the_run():
    def full(line):
        raise LqError("no room")

    with passed_on("lqconvert", full), pytest.raises(LqError, match="no room"):
        logging.getLogger("lqconvert.training.finetune").info("a line")


def test_a_program_that_asks_for_nothing_sees_nothing():
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def parameters(function):
    every = function.args
    listed = [*every.posonlyargs, *every.args, *every.kwonlyargs, every.vararg, every.kwarg]
    return {each.arg for each in listed if each is not None} - {"self", "cls"}


def test_no_function_has_more_than_12_parameters():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert len(parameters(node)) <= 12, f"{path.name}: {node.name}"
