"""The commands. They call the public functions of lqconvert, and import TensorFlow late."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lqconvert import __version__
from lqconvert.cli import imports
from lqconvert.cli.config import defaults, find
from lqconvert.cli.hints import with_hint
from lqconvert.cli.messages import passed_on
from lqconvert.cli.options import (
    MAX_DROP,
    RUNTIMES,
    SCHEMES,
    SWEPT,
    BitsType,
    NamedType,
    PreprocessingType,
    SizeType,
    by_scheme,
    metric_limits,
    metric_options,
    model_options,
    quiet_option,
    target_options,
    target_settings,
    task_options,
    task_wishes,
)
from lqconvert.cli.signals import Guard, guarded
from lqconvert.errors import LqError, Terminated
from lqconvert.keras_loader.in_memory import default_output
from lqconvert.pipeline.settings import DEFAULTS, Settings
from lqconvert.quantization.granularity import GRANULARITIES
from lqconvert.quantization.recipes import DEFAULT_SCHEME, EFFORTS, RECIPES, ROUNDINGS
from lqconvert.training.budget import STEER_ON, Budget
from lqconvert.utils.terminal import Console, Table, install, move_stderr, narrow, say, spelled
from lqconvert.utils.text import printable

#: Options of which a run takes one at most.
BUDGETS = ("max_drop", "max_size", "penalty")
#: What remains if a command is interrupted.
_LEFT = {
    "quantize": "no file was made; quantize --resume continues from the checkpoint, if there is one",
    "sweep": "finished runs are kept, in the table and the figures; run the same command again to continue",
}


class _Command(click.Command):
    """Ends with exit code 0 only if it ran to its end: called code cannot end it earlier with 0."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.exceptions.Exit as end:
            if end.exit_code:
                raise
            raise LqError("called code ended the command early") from end


class _Group(click.Group):
    """Shows errors of the user in two lines at most, with exit code 1; --debug shows the traceback."""

    command_class = _Command

    def main(self, *args: Any, **settings: Any) -> Any:
        install()
        imports.install()
        try:
            return super().main(*args, **settings)
        except LqError as error:  # from stdout, after the command has ended
            if "--debug" in sys.argv:
                raise
            say(f"error: {error}", err=True)
            sys.exit(error.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        debug = "--debug" in sys.argv
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            # Its message may contain a value from pyproject.toml.
            error.message = printable(error.message)  # type: ignore[misc]
            raise
        except (click.exceptions.Exit, click.Abort):
            raise
        except BaseException as error:
            ended_by = _ended_by(error, ctx.obj)
            if ended_by is not None:
                ctx.obj.end(ended_by)
                say(ctx.obj.messages[ended_by], err=True)
                ctx.exit(128 + ended_by)
            if debug and not isinstance(error, SystemExit):
                raise
            say(f"error: {_said(error, ctx.invoked_subcommand == 'quantize')}", err=True)
            ctx.exit(error.exit_code if isinstance(error, LqError) else 1)


def _ended_by(error: BaseException, guard: Guard | None) -> int | None:
    """The signal that ended a command, even if it was raised as another error."""
    if guard is None:
        return None
    if isinstance(error, Terminated) or signal.SIGTERM in guard.received:
        return signal.SIGTERM
    if isinstance(error, KeyboardInterrupt) or (guard.received and not isinstance(error, LqError)):
        return signal.SIGINT
    return None


def _said(error: BaseException, trains: bool) -> str:
    """The message of an error for the user."""
    if isinstance(error, LqError):
        return with_hint(str(error), error.hint)
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        line = _first_line(error)
        if trains:
            return f"out of memory ({line}); give it more and --resume, or a smaller --batch-size"
        return f"out of memory ({line})"
    return f"{_first_line(error)} (--debug shows where)"


def _first_line(error: BaseException) -> str:
    """The LqError that a tf.data worker wrapped, or the first line of the error."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    wrapped = [line for line in lines if "LqError: " in line]
    return wrapped[0].split("LqError: ", 1)[1] if wrapped else f"{type(error).__name__}: {lines[0][:300]}"


@click.group(cls=_Group)
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context) -> None:
    """Makes trained Keras models small enough for phones and microcontrollers.

    You can set defaults of most options in the table [tool.lqconvert.COMMAND] of your pyproject.toml.
    """
    left = _LEFT.get(context.invoked_subcommand or "", "nothing was written")
    context.obj = context.with_resource(guarded(left))
    project = find(Path.cwd())
    if project is not None:
        context.default_map = defaults(project, main.commands)


@main.command()
@click.argument("model", type=click.Path())
@click.option("--data", required=True, help="digits, mnist, a .npz, a .csv, a folder or zip of images, ...")
@click.option("-o", "--output", type=click.Path(), help="Path of the .tflite.  [default: MODEL.tflite]")
@target_options
@click.option("--report", type=click.Path(), help="Also write the report as a page with charts (.html).")
@click.option(
    "--scheme",
    type=click.Choice(SCHEMES),
    default=DEFAULT_SCHEME,
    show_default=True,
    help="How scales are learned. rate makes the smallest files; lsq keeps --bits for every weight.",
)
@click.option("--max-drop", type=click.FloatRange(min=0), metavar="POINTS", help=MAX_DROP)
@click.option(
    "--max-size", type=SizeType(), help="Size budget: make the most accurate file of at most BYTES."
)
@click.option(
    "--bits", type=click.IntRange(2, 8), default=8, show_default=True, help="Bits of a weight, at most."
)
@click.option(
    "--penalty", type=click.FloatRange(min=0), help="Fixed penalty weight of the scheme, instead of a budget."
)
@click.option(
    "--granularity",
    type=click.Choice(GRANULARITIES),
    help=f"Which weights share one scale.  [default: {by_scheme('granularity')}]",
)
@click.option(
    "--rounding",
    type=click.Choice(ROUNDINGS),
    default=DEFAULTS.quantization.rounding,
    show_default=True,
)
@click.option(
    "--start",
    type=click.FloatRange(min=0, min_open=True),
    help="Starting value of all scales.  [default: calibrated]",
)
@click.option(
    "--activations",
    type=BitsType(("8", "16")),
    default=DEFAULTS.quantization.activations,
    show_default=True,
    help="Bits of activations. 16 is for results that need finer steps than int8 has, such as regressions; "
    "in LiteRT it is several times slower.",
)
@click.option(
    "--preprocess", type=PreprocessingType(), help="How inputs were scaled for training.  [default: detected]"
)
@click.option(
    "--effort",
    type=click.Choice(tuple(EFFORTS)),
    default=DEFAULTS.training.effort,
    show_default=True,
    help="fast: a file in seconds, without training. high: four times the steps, usually for a smaller file.",
)
@click.option(
    "--epochs",
    type=click.IntRange(0),
    help="Training epochs, instead of --effort. 0: no training (post-training quantization).  "
    f"[default: {by_scheme('epochs')}; more if they give fewer than {DEFAULTS.training.minimum_steps} steps]",
)
@click.option(
    "--max-minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop fine-tuning after this time and use the best weights so far.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=DEFAULTS.training.batch_size,
    show_default=True,
    help="Training examples in a step.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    help=f"Learning rate of the scales.  [default: {by_scheme('learning_rate')}]",
)
@task_options
@click.option(
    "--steer-on",
    type=click.Choice(STEER_ON),
    default=DEFAULTS.data.steer_on,
    show_default=True,
    help="Data that budgets are judged on. test-half: half of the test split, and the report uses the rest.",
)
@click.option(
    "--weight",
    "weights",
    multiple=True,
    type=NamedType(number=True),
    help="Weight of an output's loss in the sum over all outputs.",
)
@click.option(
    "--seed", type=int, default=DEFAULTS.training.seed, show_default=True, help="Seed of all random choices."
)
@click.option("--resume", is_flag=True, help="Continue an interrupted run.")
@click.option("--log", type=click.Path(), help="Append a line of JSON for each evaluation to this file.")
@click.option("--tensorboard", type=click.Path(), help="Also write summaries for TensorBoard to this folder.")
@click.option(
    "--strict",
    is_flag=True,
    help="Refuse models with layers that have no integer kernel (they stay float otherwise).",
)
@click.option(
    "--distribute",
    type=click.Choice(("mirrored", "multi-worker")),
    help="Split each batch over all GPUs (mirrored), or over the processes in TF_CONFIG (multi-worker).",
)
@click.option("--dry-run", is_flag=True, help="Print what would be done, without training or writing files.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@quiet_option
@model_options
@click.option("--debug", is_flag=True, help="Show tracebacks and the messages of TensorFlow.")
def quantize(
    model: str,
    data: str,
    output: str | None,
    resume: bool,
    distribute: str | None,
    dry_run: bool,
    log: str | None,
    tensorboard: str | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Quantizes a Keras MODEL to an integer-only .tflite for a target and measures the file."""
    penalty, budget = _penalty_or_budget(options)
    _effort_or_epochs(options)
    if not os.path.exists(model):
        raise LqError(f"{model}: no such file")
    _import_quietly(debug)
    from lqconvert.cli.progress import shown
    from lqconvert.pipeline.plan import plan
    from lqconvert.pipeline.quantize import quantize as run
    from lqconvert.training.distribution import Distribution
    from lqconvert.training.loggers import JsonLines, TensorBoard

    if distribute == "multi-worker" and not quiet:
        say("waiting for all workers of TF_CONFIG", err=True)
    distribution = Distribution.of(distribute) if distribute and not dry_run else Distribution()
    # Only the chief prints.
    quiet = quiet or not distribution.chief
    console = Console(stderr=True, soft_wrap=True, quiet=quiet)
    if distribute and not dry_run and distribution.replicas == 1:
        console.print(f"--distribute {distribute}: there is only one device, so batches are not split")
    scheme = _scheme(options.pop("scheme"), options.pop("bits"), penalty)
    options |= target_settings(options) | {"wishes": task_wishes(options)}
    settings = Settings.of(options | {"scheme": scheme, "budget": budget})
    job = model, data, output or default_output(model, ".tflite")
    if dry_run:
        with passed_on("lqconvert", console.print):
            _show(plan(*job, settings=settings, resume=resume), as_json)
        return
    summaries = TensorBoard(tensorboard) if tensorboard and distribution.chief else None
    lines = JsonLines(log) if log and distribution.chief else None
    messages = (console.print,) if lines is None else (console.print, lines.say)
    with passed_on("lqconvert", *messages), shown(console, console.print) as view:

        def progress(at: Any) -> None:
            for each in (view, summaries, lines):
                if each is not None:
                    each.progress(at)

        report = run(
            *job,
            settings=settings,
            resume=resume,
            distribution=distribution,
            progress=progress,
            tick=view.tick,
        )
    if distribution.chief:
        _show(report, as_json)
    if not report.finished:  # there is a file, but of an interrupted run
        click.get_current_context().exit(128 + signal.SIGINT)


def _on_command_line(names: Sequence[str]) -> list[str]:
    """Those of the options that the command line gives. They have priority over pyproject.toml."""
    source = click.get_current_context().get_parameter_source
    return [name for name in names if source(name) is ParameterSource.COMMANDLINE]


def _penalty_or_budget(options: dict[str, Any]) -> tuple[float | None, Budget]:
    """The --penalty, and the budget. Both are removed from the options."""
    asked = {name: options.pop(name) for name in BUDGETS}
    given = _on_command_line(BUDGETS)
    if given:
        asked = {name: value if name in given else None for name, value in asked.items()}
    if sum(value is not None for value in asked.values()) > 1:
        raise click.UsageError("--max-drop, --max-size and --penalty exclude one another")
    scheme, penalty = options["scheme"], asked.pop("penalty")
    if RECIPES[scheme].penalty is None and penalty is not None:
        raise click.UsageError(f"--scheme {scheme} has no penalty")
    if any(value is not None for value in asked.values()):
        return None, Budget(**asked)
    steered = scheme == DEFAULT_SCHEME and penalty is None
    return penalty, DEFAULTS.budget if steered else Budget(asked=False)


def _effort_or_epochs(options: dict[str, Any]) -> None:
    """Removes the --epochs of a pyproject.toml if the command line has an --effort."""
    given = _on_command_line(("effort", "epochs"))
    if len(given) == 2:
        raise click.UsageError("--effort and --epochs exclude one another")
    if given == ["effort"]:
        options["epochs"] = None


@main.command()
@click.argument("codes", type=click.Path())
@click.option(
    "-o", "--output", type=click.Path(), help="Path of the .tflite.  [default: CODES.TARGET.tflite]"
)
@click.option("--data", help="Data to score the file on, as for quantize.")
@target_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--debug", is_flag=True, help="Show tracebacks and the messages of TensorFlow.")
def export(
    codes: str, output: str | None, data: str | None, as_json: bool, debug: bool, **settings: Any
) -> None:
    """Makes files for other targets from the CODES (.codes.npz) of an earlier run, without training."""
    if not os.path.exists(codes):
        raise LqError(f"{codes}: no such file")
    _import_quietly(debug)
    from lqconvert.pipeline.quantize import export_codes

    name = Path(codes).name.removesuffix(".npz").removesuffix(".codes")
    path = Path(output) if output else Path(codes).with_name(f"{name}.{settings['targets'][0]}.tflite")
    _show(export_codes(codes, path, data=data, **target_settings(settings)), as_json)


@main.command()
def targets() -> None:
    """Lists the values of --target (what executes the files, and how it can store weights) and of --board."""
    from lqconvert.tflite.boards import BOARDS
    from lqconvert.tflite.targets import TARGETS

    table = narrow("target", "executed by", "weights", "verified with", whole=("target",))
    for each in TARGETS.values():
        packings = ", ".join(("int8", *(packing.name for packing in each.packings)))
        stored = f"{packings}, Vela's code" if each.accelerator else packings
        table.add_row(each.name, each.executes, stored, ", ".join(each.packages))
    Console().print(table)
    say()
    boards = narrow("board", "chip", "flash", "RAM", "of it for a model", whole=("board",))
    for board in BOARDS.values():
        half = f"{board.model_flash:,} and {board.model_ram:,}"
        boards.add_row(board.name, board.chip, f"{board.flash:,}", f"{board.ram:,}", half)
    Console().print(boards)


@main.command()
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@model_options
@click.option("--debug", is_flag=True, help="Show tracebacks and the messages of TensorFlow.")
def inspect(file: str, as_json: bool, debug: bool, **settings: Any) -> None:
    """Shows what is in FILE: a Keras model, a .tflite, or the .codes.npz of a run. No data, no training.

    For a model, it shows how quantize converts every layer, and which targets can run it.
    """
    _import_quietly(debug)
    from lqconvert.analysis.inspect import ModelInspection
    from lqconvert.analysis.inspect import inspect as run

    inspection = run(file, **settings)
    _show(inspection, as_json)
    if isinstance(inspection, ModelInspection) and inspection.refused:
        raise LqError(inspection.refused, hint=inspection.hint)


@main.command()
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@model_options
@click.option("--debug", is_flag=True, help="Show tracebacks and the messages of TensorFlow.")
def explain(file: str, as_json: bool, debug: bool, **settings: Any) -> None:
    """Shows where the bytes of FILE go, layer by layer, and what would make it smaller.

    FILE is one that inspect takes. No data, no training. For a Keras model, it also estimates other
    architectures.
    """
    _import_quietly(debug)
    from lqconvert.analysis.explain import explain as run

    _show(run(file, **settings), as_json)


@main.command()
@click.argument("file", type=click.Path())
@click.option("--data", required=True, help="As for quantize.")
@click.option(
    "--target",
    type=click.Choice(RUNTIMES),
    help="Runtime to run it in.  [default: litert, unless only tflm runs the file]",
)
@click.option("--preprocess", type=PreprocessingType(), help="As for quantize.")
@task_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@model_options
@click.option("--debug", is_flag=True, help="Show tracebacks and the messages of TensorFlow.")
def evaluate(file: str, data: str, as_json: bool, debug: bool, **settings: Any) -> None:
    """Measures size, accuracy and latency of FILE: a .tflite of any tool, or a Keras model."""
    _import_quietly(debug)
    from lqconvert.analysis.evaluate import evaluate as run

    _show(run(file, data, wishes=task_wishes(settings), **settings), as_json)


@main.command()
@click.argument("files", type=click.Path(), nargs=-1, required=True)
@click.option("--data", required=True, help="As for quantize.")
@click.option(
    "--preprocess",
    type=PreprocessingType(),
    help="How inputs were scaled for training, for all files.  [default: detected for each]",
)
@task_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@model_options
@click.option("--debug", is_flag=True, help="Show tracebacks and the messages of TensorFlow.")
def compare(files: tuple[str, ...], data: str, as_json: bool, debug: bool, **settings: Any) -> None:
    """Compares FILES: .tflite files of any tools, and Keras models (as float32 .tflite).

    The other files are compared with the first one, also layer by layer.
    """
    if len(files) < 2:
        raise click.UsageError("give two files or more; lqconvert evaluate measures one")
    _import_quietly(debug)
    from lqconvert.analysis.compare import compare as run

    _show(run(files, data, wishes=task_wishes(settings), **settings), as_json)


@main.command()
@click.argument("files", type=click.Path(), nargs=-1, required=True)
@click.option("--max-size", type=SizeType(), help="Largest size allowed, for each file.")
@click.option(
    "--max-ram",
    type=SizeType(),
    help="Largest tensor arena allowed in TFLite Micro, measured on this machine.",
)
@metric_options
@click.option(
    "--max-drop",
    type=click.FloatRange(0),
    metavar="POINTS",
    help="Largest drop allowed of the judged metrics, in percentage points below --baseline or --against.",
)
@click.option("--baseline", type=click.Path(), help="Float model or .tflite to compare the scores with.")
@click.option("--data", help="Data to score the file on, as for quantize.")
@click.option("--target", type=click.Choice(RUNTIMES), help="Runtime that must be able to run the file.")
@click.option(
    "--against", type=click.Path(), help="Measurements of --save-baseline. Fails if the file has grown since."
)
@click.option(
    "--save-baseline", type=click.Path(), help="Save the measurements for --against, if all budgets hold."
)
@click.option("--preprocess", type=PreprocessingType(), help="As for quantize.")
@task_options
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.option("--markdown", "form", flag_value="markdown", help="Print a table for a job summary.")
@click.option("--junit", type=click.Path(), help="Write JUnit XML.")
@click.option("--debug", is_flag=True, help="Show tracebacks and the messages of TensorFlow.")
def check(
    files: tuple[str, ...],
    data: str | None,
    against: str | None,
    save_baseline: str | None,
    form: str | None,
    junit: str | None,
    debug: bool,
    **settings: Any,
) -> None:
    """Checks FILES, .tflite files of any tool, against budgets. The exit code is 1 if one is exceeded."""
    if len(files) > 1 and (against or save_baseline or junit or form == "json"):
        raise click.UsageError("--against, --save-baseline, --junit and --json take a single file")
    limits = metric_limits(settings)
    budgets = ("max_size", "max_ram", "max_drop", "target")
    source = click.get_current_context().get_parameter_source("save_baseline")
    asked = against or (save_baseline and source is ParameterSource.COMMANDLINE)
    if not asked and not limits and all(settings[name] is None for name in budgets):
        raise click.UsageError("no budget to check: give --max-size, --min-accuracy, --against, ...")
    _import_quietly(debug)

    from lqconvert.analysis.check import Measurements
    from lqconvert.analysis.check import check as run
    from lqconvert.utils.output_files import Writer, make_folders, write_all

    wishes = task_wishes(settings)
    make_folders(Path(path) for path in (junit, save_baseline) if path is not None)
    before = None if against is None else Measurements.load(against)
    results, broken = [], False
    for file in files:
        try:
            result = run(file, data=data, against=before, limits=limits, wishes=wishes, **settings)
        except LqError as error:
            if len(files) == 1:
                raise
            say(f"error: {with_hint(str(error), error.hint)}", err=True)
            broken = True
            continue
        if form is not None:
            text = result.to_json() if form == "json" else spelled(result.to_markdown()) + "\n"
            say(*text.split("\n"))
        else:
            if len(files) > 1:
                say(f"{file}:")
            result.print(Console())
        results.append(result)
    writers: dict[Path, Writer] = {}
    if junit is not None:
        writers[Path(junit)] = lambda path: path.write_bytes(result.to_junit().encode())
    if save_baseline is not None and result.holds:
        writers[Path(save_baseline)] = lambda path: path.write_bytes(result.measured.to_json().encode())
    write_all(writers)
    if broken or not results or not all(result.holds for result in results):
        click.get_current_context().exit(1)


@main.command()
@click.argument("model", type=click.Path())
@click.option("--data", required=True, help="The data, as for quantize.")
@click.option("-o", "--output", type=click.Path(), help="Folder for the results.  [default: MODEL.sweep]")
@click.option(
    "--scheme", "schemes", multiple=True, type=click.Choice(SWEPT), default=SWEPT, show_default=True
)
@click.option(
    "--granularity",
    "granularities",
    multiple=True,
    type=click.Choice(GRANULARITIES),
    default=("mixed", "output-channel-wise"),
    show_default=True,
)
@click.option(
    "--penalty",
    "penalties",
    multiple=True,
    type=click.FloatRange(min=0, min_open=True),
    default=(0.1, 1.0, 10.0),
    show_default=True,
    help="Factors on the default penalty weight of each scheme.",
)
@click.option("--preprocess", type=PreprocessingType(), help="As for quantize.")
@click.option("--epochs", type=click.IntRange(1), help="As for quantize.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="As for quantize.")
@click.option("--seed", type=int, default=DEFAULTS.training.seed, show_default=True)
@click.option(
    "--storage", help="URL of an Optuna storage that several machines share.  [default: a SQLite file]"
)
@quiet_option
@model_options
@click.option("--debug", is_flag=True, help="Show tracebacks and the messages of TensorFlow.")
def sweep(
    model: str,
    data: str,
    output: str | None,
    schemes: tuple[str, ...],
    granularities: tuple[str, ...],
    penalties: tuple[float, ...],
    storage: str | None,
    quiet: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Quantizes MODEL with all combinations of schemes, granularities and penalty weights, and draws figures.

    To continue an interrupted sweep, run the same command again.
    """

    if not os.path.exists(model):
        raise LqError(f"{model}: no such file")
    _import_quietly(debug)
    from lqconvert.sweeps.study import sweep as run_sweep
    from lqconvert.sweeps.study import write_csv

    folder = Path(output or default_output(model, ".sweep"))
    console = Console(stderr=True, soft_wrap=True, quiet=quiet)
    from lqconvert.sweeps.figures import draw
    from lqconvert.sweeps.sensitivity import sensitivities

    # First, so that errors in the model or the data show once, and not in each run.
    shared = ("preprocess", "input_shape", "trust_model")
    rows = sensitivities(model, data, **{name: options[name] for name in shared})

    def draw_all(runs: list[Any]) -> list[Path]:
        write_csv(folder / "sensitivity.csv", rows)
        return draw(folder, runs, rows)

    with passed_on("lqconvert.sweeps", console.print):
        runs = run_sweep(
            model,
            data,
            folder,
            schemes=schemes,
            granularities=granularities,
            penalties=penalties,
            storage=storage,
            done=lambda run: console.print(f"{run.name}: {run.bytes:,} bytes, {run.test_score:.4g}"),
            so_far=draw_all,
            settings=Settings.of(options),
        )
    paths = draw_all(runs)
    table = Table("scheme", "scales", "penalty", "integers", "bytes", "deflated", "test score", "minutes")
    for each in runs:
        table.add_row(
            each.scheme,
            each.granularity,
            f"x{each.penalty:g}",
            str(each.integers),
            f"{each.bytes:,}",
            f"{each.deflated_bytes:,}",
            f"{each.test_score:.4g}",
            f"{each.minutes:.1f}",
        )
    layers = Table("layer", "weights", "bits", "validation score", "drop")
    for row in rows:
        layers.add_row(row.layer, f"{row.weights:,}", str(row.bits), f"{row.score:.4g}", f"{row.drop:.3g}")
    for each_table in (table, layers):
        Console().print(each_table)
    figures = ", ".join(path.name for path in paths[:2])
    say(f"figures: {figures}, ... in {folder}")


@main.command()
@click.argument("experiment", type=click.Choice(("mnist",)))
@click.option("--epochs", type=click.IntRange(1), default=20, show_default=True)
@click.option("--seed", type=int, default=42, show_default=True)
@click.option("--debug", is_flag=True, help="Show tracebacks and the messages of TensorFlow.")
def reproduce(experiment: str, epochs: int, seed: int, debug: bool) -> None:
    """Runs the reference's MNIST experiment and prints its published figures next to the measured ones."""
    _import_quietly(debug)
    from lqconvert.sweeps.reproduce import reproduce_mnist

    def done(run: Any) -> None:
        say(
            f"{run.scheme:19}{run.granularity:12}{run.integers:5} integers {run.smallest:5}..{run.largest:<5}"
            f"{run.accuracy:8.2%}{run.zipped:9,} bytes zipped   reference: {run.reference}"
        )

    accuracy, size, runs = reproduce_mnist(epochs=epochs, seed=seed, done=done)
    say(f"float32 {accuracy:.2%}, {size:,} bytes zipped (reference: about 97%, 0.36 MB)")
    for run in runs:
        say(f"{run.scheme:19}{run.granularity:12}{size / run.zipped:6.1f}x smaller")


def _show(result: Any, as_json: bool) -> None:

    if as_json:
        say(*result.to_json().rstrip().split("\n"))
    else:
        result.print(Console())


def _scheme(name: str, bits: int, penalty: float | None) -> Any:
    from lqconvert.quantization.schemes import SCHEMES as classes

    given: dict[str, Any] = {} if penalty is None else {str(RECIPES[name].penalty): penalty}
    return classes[name](limit=2 ** (bits - 1) - 1, **given)


def _is_own(record: logging.LogRecord) -> bool:
    """Whether lqconvert logged it. The commands show its progress and warnings themselves."""
    return record.name.split(".")[0] == "lqconvert"


def _import_quietly(debug: bool) -> None:
    """Keeps messages of TensorFlow's native code off stderr, where only our own messages appear."""
    if debug:
        logging.basicConfig(level=logging.INFO)
        logging.getLogger("lqconvert").setLevel(logging.DEBUG)
        for handler in logging.getLogger().handlers:
            handler.addFilter(lambda record: record.levelno < logging.INFO or not _is_own(record))
        return
    warnings.simplefilter("ignore")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("ABSL_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    logging.getLogger("absl").setLevel(logging.ERROR)
    move_stderr()
