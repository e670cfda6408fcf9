"""The command line: a thin skin over :func:`lqconvert.convert.quantize`. TensorFlow is imported late."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from typing import Any, ClassVar

import click

from lqconvert import __version__
from lqconvert.budget import Budget
from lqconvert.datasets import Preprocessing
from lqconvert.errors import LqError

SCHEMES = ("rate", "lsq", "gradient-threshold", "maxbin", "inverse", "difference")
SWEPT = tuple(scheme for scheme in SCHEMES if scheme != "lsq")
TARGETS = ("litert", "tflm")
GRANULARITIES = ("mixed", "scalar", "row-wise", "column-wise", "channel-wise", "output-channel-wise")


class _Preprocessing(click.ParamType):
    name = "none|0-1|-1-1|SCALE,OFFSET"

    def convert(self, value: Any, param: Any, ctx: Any) -> Preprocessing:
        if isinstance(value, Preprocessing):
            return value
        try:
            return Preprocessing.parse(value)
        except ValueError:
            self.fail(f"'{value}' is none of none, 0-1, -1-1 and SCALE,OFFSET (two numbers)", param, ctx)


class _Shape(click.ParamType):
    name = "N,N,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        if not re.fullmatch(r"[1-9][0-9]*(,[1-9][0-9]*)*", str(value)):
            self.fail(f"'{value}' is no shape, such as 96,96,3", param, ctx)
        return tuple(int(part) for part in value.split(","))


class _Size(click.ParamType):
    name = "BYTES"
    UNITS: ClassVar[dict[str, int]] = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "KIB": 1024, "MIB": 1024**2}

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([a-zA-Z]*)", str(value))
        if match is None or match[2].upper() not in self.UNITS:
            self.fail(f"'{value}' is no size, such as 64KB, 0.5MB or 20000", param, ctx)
        return int(float(match[1]) * self.UNITS[match[2].upper()])


MAX_DROP = "Make the smallest file at most so far under float on validation data.  [default: 0]"


def _model_options(command: Any) -> Any:
    """How a model is read, shared by the commands that read one."""
    shape = click.option(
        "--input-shape", type=_Shape(), help="The input's size, where the model leaves it open: 96,96,3."
    )
    trust = click.option(
        "--trust-model",
        is_flag=True,
        help="Allow Lambda layers: Python code in the model is then run, with all your rights.",
    )
    return shape(trust(command))


def _target_options(command: Any) -> Any:
    """The options of what the file is made for, shared by the commands that write one."""
    options = (
        click.option(
            "--target",
            "targets",
            multiple=True,
            type=click.Choice(TARGETS),
            default=("litert",),
            show_default=True,
            help="litert: phones; tflm: microcontrollers (TFLite Micro). Each gets a file of its own.",
        ),
        click.option("--max-ram", type=_Size(), help="Tensor arena on tflm, as measured on this machine."),
        click.option(
            "--max-latency",
            type=click.FloatRange(min=1),
            metavar="RATIO",
            help="At most so many times as slow as plain int8.",
        ),
        click.option("--c-array", is_flag=True, help="Write a .cc and a .h beside tflm's .tflite."),
        click.option("--gzip", is_flag=True, help="Write a .tflite.gz, too: the smallest download."),
        click.option("--strip-all", is_flag=True, help="Drop the names of inputs and outputs, too."),
        click.option(
            "--int4-convolutions",
            is_flag=True,
            help="On litert, convolutions of 4 bits: 4 to 7 times as slow in XNNPACK, a step off.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _target_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """What :func:`_target_options` gave, as the API takes it; they are taken from the settings."""
    from lqconvert.proving import Limits
    from lqconvert.targets import target

    shared = {name: settings.pop(name) for name in ("int4_convolutions", "strip_all")}
    return {
        "targets": [target(name, **shared) for name in dict.fromkeys(settings.pop("targets"))],
        "limits": Limits(settings.pop("max_ram"), settings.pop("max_latency")),
        "c_array": settings.pop("c_array"),
        "gzip": settings.pop("gzip"),
    }


class _Group(click.Group):
    """Ends a mistake of the user's in two lines at most and exit code 1; --debug shows the traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        debug = "--debug" in sys.argv
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, click.ClickException):
            raise
        except LqError as error:
            if debug:
                raise
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted: nothing was written", err=True)
        except Exception as error:
            if debug:
                raise
            click.echo(f"error: {_first_line(error)} (--debug shows where)", err=True)
        ctx.exit(1)


def _first_line(error: Exception) -> str:
    """The user's mistake that a tf.data worker wrapped, or the error's first line."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    wrapped = [line for line in lines if "LqError: " in line]
    return wrapped[0].split("LqError: ", 1)[1] if wrapped else f"{type(error).__name__}: {lines[0][:300]}"


@click.group(cls=_Group)
@click.version_option(__version__)
def main() -> None:
    """Makes trained Keras models small enough for phones and microcontrollers."""


@main.command()
@click.argument("model", type=click.Path())
@click.option("--data", required=True, help="digits, mnist, cifar10, a .npz, a folder or zip of images, ...")
@click.option("-o", "--output", type=click.Path(), help="The .tflite to write.  [default: MODEL.tflite]")
@_target_options
@click.option("--report", "html", type=click.Path(), help="Write a page with figures, too: an .html file.")
@click.option("--scheme", type=click.Choice(SCHEMES), default="rate", show_default=True)
@click.option("--max-drop", type=click.FloatRange(min=0), metavar="POINTS", help=MAX_DROP)
@click.option("--max-size", type=_Size(), help="Make the best file of at most these bytes.")
@click.option("--bits", type=click.IntRange(2, 8), default=8, show_default=True, help="Width of the codes.")
@click.option("--penalty", type=float, help="The scheme's gamma (or lambda), fixed: no budget.")
@click.option(
    "--granularity",
    type=click.Choice(GRANULARITIES),
    help="Which weights share a scale.  [default: mixed for rate, else output-channel-wise]",
)
@click.option("--rounding", type=click.Choice(("nearest", "floor")), default="nearest", show_default=True)
@click.option(
    "--start", type=click.FloatRange(min=0, min_open=True), help="Starting scale.  [default: calibrated]"
)
@click.option(
    "--preprocess", type=_Preprocessing(), help="What the model was trained on.  [default: found out]"
)
@click.option("--epochs", type=click.IntRange(1), help="[default: 20 for rate, 10 for the thesis's, else 3]")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Of the scales.  [default: 3e-3 for rate, 1e-3 for the thesis's, else 2e-4]",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Start from the best weights of an interrupted run.")
@click.option("--strict", is_flag=True, help="Refuse layers that would stay float.")
@_model_options
@click.option("--debug", is_flag=True, help="Show tracebacks and what the steps say.")
def quantize(
    model: str,
    data: str,
    output: str | None,
    scheme: str,
    max_drop: float | None,
    max_size: int | None,
    bits: int,
    penalty: float | None,
    debug: bool,
    **settings: Any,
) -> None:
    """Quantizes a Keras MODEL to an integer-only .tflite for a target and measures the file."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    if sum(option is not None for option in (max_drop, max_size, penalty)) > 1:
        raise click.UsageError("--max-drop, --max-size and --penalty exclude one another")
    if scheme == "rate" and max_size is None and penalty is None:
        max_drop = max_drop or 0.0
    budget = Budget(max_drop, max_size)
    if not os.path.exists(model):
        raise LqError(f"{model}: no such file")
    _import_quietly(debug)
    from lqconvert.convert import quantize as run

    console = Console(stderr=True)
    columns = "[progress.description]{task.description}"
    parts = TextColumn(columns), BarColumn(), TimeRemainingColumn()
    with Bar(*parts, console=console, transient=True) as bar:
        task = bar.add_task("loading", total=None)

        def progress(at: Any) -> None:
            point = at.point
            text = f"step {point.step}/{at.steps}  loss {at.loss:.4f}  validation {point.score:.4f}"
            text += f"  {at.codes} codes  ~{point.bytes:,} bytes"
            bar.update(task, description=text, completed=point.step, total=at.steps)

        report = run(
            model,
            data,
            output or os.path.splitext(model.rstrip("/"))[0] + ".tflite",
            scheme=_scheme(scheme, bits, penalty),
            budget=budget,
            preprocess=settings.pop("preprocess"),
            **_target_settings(settings),
            progress=progress,
            say=console.print,
            **settings,
        )
    report.print(Console())


@main.command()
@click.argument("codes", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="The .tflite.  [default: CODES.TARGET.tflite]")
@click.option("--data", help="As for quantize: scores the file on the test split, too.")
@_target_options
@click.option("--debug", is_flag=True, help="Show tracebacks and what the steps say.")
def export(codes: str, output: str | None, data: str | None, debug: bool, **settings: Any) -> None:
    """Makes files for other targets of the CODES (.codes.npz) of an earlier run, without training."""
    from pathlib import Path

    from rich.console import Console

    if not os.path.exists(codes):
        raise LqError(f"{codes}: no such file")
    _import_quietly(debug)
    from lqconvert.convert import export_codes

    name = Path(codes).name.removesuffix(".npz").removesuffix(".codes")
    path = Path(output) if output else Path(codes).with_name(f"{name}.{settings['targets'][0]}.tflite")
    export_codes(codes, path, data_spec=data, **_target_settings(settings)).print(Console())


@main.command()
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_model_options
@click.option("--debug", is_flag=True, help="Show tracebacks and what the steps say.")
def inspect(file: str, as_json: bool, debug: bool, **settings: Any) -> None:
    """Says what is in FILE: a Keras model, a .tflite, or the .codes.npz of a run. No data, no training.

    Of a model it says what quantize makes of every layer, and which targets run that.
    """
    from rich.console import Console

    _import_quietly(debug)
    from lqconvert.inspecting import ModelInspection
    from lqconvert.inspecting import inspect as run

    inspection = run(file, **settings)
    if as_json:
        click.echo(inspection.to_json())
    else:
        inspection.print(Console(markup=False))  # names in files may have brackets
    if isinstance(inspection, ModelInspection) and inspection.refused:
        raise LqError(inspection.refused)


@main.command()
@click.argument("model", type=click.Path())
@click.option("--data", required=True, help="As for quantize.")
@click.option("-o", "--output", type=click.Path(), help="The folder to write.  [default: MODEL.sweep]")
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
    help="Factors on each scheme's own penalty.",
)
@click.option("--preprocess", type=_Preprocessing(), help="As for quantize.")
@click.option("--epochs", type=click.IntRange(1), help="As for quantize.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="As for quantize.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--storage", help="URL of an Optuna storage that several machines share.  [default: SQLite]")
@_model_options
@click.option("--debug", is_flag=True, help="Show tracebacks and what the steps say.")
def sweep(
    model: str,
    data: str,
    output: str | None,
    preprocess: Preprocessing | None,
    input_shape: tuple[int, ...] | None,
    trust_model: bool,
    debug: bool,
    **settings: Any,
) -> None:
    """Quantizes MODEL under all combinations of schemes, granularities and penalties, and draws figures.

    The same command goes on where it was interrupted.
    """
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    if not os.path.exists(model):
        raise LqError(f"{model}: no such file")
    _import_quietly(debug)
    from lqconvert.sweeping import sweep as run_sweep
    from lqconvert.sweeping import write_csv

    folder = Path(output or os.path.splitext(model.rstrip("/"))[0] + ".sweep")
    console = Console(stderr=True)
    runs = run_sweep(
        model,
        data,
        folder,
        preprocess=preprocess,
        input_shape=input_shape,
        trust_model=trust_model,
        done=lambda run: console.print(f"{run.name}: {run.deflated_bytes:,} bytes, {run.test_score:.4f}"),
        **settings,
    )
    from lqconvert.figures import draw
    from lqconvert.sensitivity import sensitivities

    rows = sensitivities(model, data, preprocess=preprocess, input_shape=input_shape, trust_model=trust_model)
    write_csv(folder / "sensitivity.csv", rows)
    paths = draw(folder, runs, rows)
    table = Table("scheme", "scales", "penalty", "integers", "bytes", "deflated", "test score", "minutes")
    for each in runs:
        table.add_row(
            each.scheme,
            each.granularity,
            f"x{each.penalty:g}",
            str(each.integers),
            f"{each.bytes:,}",
            f"{each.deflated_bytes:,}",
            f"{each.test_score:.4f}",
            f"{each.minutes:.1f}",
        )
    layers = Table("layer", "weights", "bits", "validation score", "drop")
    for row in rows:
        layers.add_row(row.layer, f"{row.weights:,}", str(row.bits), f"{row.score:.4f}", f"{row.drop:.2f}")
    for each_table in (table, layers):
        Console().print(each_table)
    Console().print(
        f"figures: {', '.join(path.name for path in paths[:2])}, ... in {folder}", highlight=False
    )


@main.command()
@click.argument("experiment", type=click.Choice(("mnist",)))
@click.option("--epochs", type=click.IntRange(1), default=20, show_default=True)
@click.option("--seed", type=int, default=42, show_default=True)
@click.option("--debug", is_flag=True, help="Show tracebacks and what the steps say.")
def reproduce(experiment: str, epochs: int, seed: int, debug: bool) -> None:
    """Runs the reference's MNIST experiment and prints its figures beside ours."""
    _import_quietly(debug)
    from lqconvert.reproduce import reproduce_mnist

    def done(run: Any) -> None:
        click.echo(
            f"{run.scheme:19}{run.granularity:12}{run.integers:5} integers {run.smallest:5}..{run.largest:<5}"
            f"{run.accuracy:8.2%}{run.zipped:9,} bytes zipped   reference: {run.reference}"
        )

    accuracy, size, runs = reproduce_mnist(epochs=epochs, seed=seed, done=done)
    click.echo(f"float32 {accuracy:.2%}, {size:,} bytes zipped (reference: about 97%, 0.36 MB)")
    for run in runs:
        click.echo(f"{run.scheme:19}{run.granularity:12}{size / run.zipped:6.1f}x smaller")


def _scheme(name: str, bits: int, penalty: float | None) -> Any:
    from lqconvert.schemes import SCHEMES as classes

    limit = 2 ** (bits - 1) - 1
    field = {"gradient-threshold": "threshold", "lsq": None}.get(name, "gamma")
    if field is None or penalty is None:
        return classes[name](limit=limit)
    return classes[name](limit=limit, **{field: penalty})


def _import_quietly(debug: bool) -> None:
    """Keeps the chatter of TensorFlow's native code off stderr, on which only our own messages appear."""
    if debug:
        logging.basicConfig(level=logging.INFO)
        logging.getLogger("lqconvert").setLevel(logging.DEBUG)
        return
    warnings.simplefilter("ignore")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("ABSL_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        native = sys.stderr.fileno() == 2
    except (OSError, ValueError):  # a captured stderr
        return
    if native:
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
