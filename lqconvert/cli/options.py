"""Types of option values, and the options that several commands share."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

import click

from lqconvert.data.preprocessing import Preprocessing
from lqconvert.metrics import METRICS
from lqconvert.pipeline.settings import DEFAULTS
from lqconvert.quantization.recipes import RECIPES
from lqconvert.tasks import TASKS, Wishes, users_metric
from lqconvert.utils.input_files import read_text

SCHEMES = tuple(RECIPES)
SWEPT = tuple(name for name, recipe in RECIPES.items() if recipe.penalty is not None)
RUNTIMES = ("litert", "tflm")
TARGETS = (
    *RUNTIMES,
    *("tflm-no-decode", "int8"),
    *(f"ethos-u55-{macs}" for macs in (32, 64, 128, 256)),
    *(f"ethos-u65-{macs}" for macs in (256, 512)),
    *(f"ethos-u85-{macs}" for macs in (128, 256, 512, 1024, 2048)),
)
BOARDS = (
    *("arduino-nano-33-ble", "arduino-portenta-h7", "arduino-uno-r4", "microbit-v2"),
    *("raspberry-pi-pico", "raspberry-pi-pico-2", "esp32", "esp32-c3", "esp32-s3"),
    *("nucleo-g071rb", "nucleo-l432kc", "nucleo-f446re", "nucleo-h743zi"),
)
PACKAGES = ("cmake", "esp-idf", "arduino", "zephyr")
PREFERENCES = ("flash", "ram", "latency")
IO = ("int8", "uint8", "int16", "float32")


def by_scheme(field: str) -> str:
    """A field of the recipes, for a help text. The value of most schemes comes last.

    >>> by_scheme("granularity")
    'mixed for rate, else output-channel-wise'
    """
    values = {name: dataclasses.asdict(recipe)[field] for name, recipe in RECIPES.items()}
    ((most, _),) = Counter(values.values()).most_common(1)
    own = [f"{value} for {name}" for name, value in values.items() if value != most]
    return ", ".join([*own, f"else {most}"])


class PreprocessingType(click.ParamType):
    name = "none|0-1|-1-1|SCALE,OFFSET"

    def convert(self, value: Any, param: Any, ctx: Any) -> Preprocessing:
        if isinstance(value, Preprocessing):
            return value
        try:
            return Preprocessing.parse(value)
        except ValueError:
            self.fail(f"'{value}' is not none, 0-1, -1-1 or SCALE,OFFSET (two numbers)", param, ctx)


class ShapeType(click.ParamType):
    name = "N,N,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        if not re.fullmatch(r"[1-9][0-9]*(,[1-9][0-9]*)*", str(value)):
            self.fail(f"'{value}' is not a shape such as 96,96,3", param, ctx)
        return tuple(int(part) for part in str(value).split(","))


class SizeType(click.ParamType):
    """Bytes, with or without a unit.

    >>> [SizeType().convert(size, None, None) for size in ("20000", "64KB", "64KiB")]
    [20000, 64000, 65536]
    """

    name = "BYTES"
    UNITS: ClassVar[dict[str, int]] = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "KIB": 1024, "MIB": 1024**2}

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([a-zA-Z]*)", str(value))
        if match is None or match[2].upper() not in self.UNITS:
            self.fail(f"'{value}' is not a size such as 64KB, 0.5MB or 20000", param, ctx)
        size = int(float(match[1]) * self.UNITS[match[2].upper()])
        if size < 1:
            self.fail(f"'{value}' is less than a byte", param, ctx)
        return size


class BitsType(click.Choice):
    """A number of bits out of a few. click before 8.2 chooses among texts only."""

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        return int(super().convert(str(value), param, ctx))


class NamedType(click.ParamType):
    """VALUE, or OUTPUT=VALUE where a model has several outputs: a pair (output or "", value)."""

    def __init__(self, values: Iterable[str] = (), *, number: bool = False) -> None:
        self.values, self.number = tuple(values), number
        what = "W" if number else "|".join(self.values) or "NAME|MODULE:FUNCTION"
        self.name = f"[OUTPUT=]{what}"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        output, _, given = str(value).rpartition("=")
        if self.number:
            try:
                weight = float(given)
            except ValueError:
                weight = -1.0
            if not 0 < weight < math.inf:
                self.fail(f"'{given}' is not a positive number", param, ctx)
            return output, weight
        known = {name.lower(): name for name in self.values}
        if given.lower() not in known and not (":" in given and param.name == "metrics"):
            self.fail(f"'{given}' is not one of {', '.join(self.values)}", param, ctx)
        return output, known.get(given.lower(), given)


def task_options(command: Any) -> Any:
    """The options for tasks and metrics, shared by the commands that score."""
    options = (
        click.option(
            "--task",
            "tasks",
            multiple=True,
            type=NamedType(TASKS),
            help="Task of the model, or of one of its outputs.  [default: detected]",
        ),
        click.option(
            "--metric",
            "metrics",
            multiple=True,
            type=NamedType(METRICS),
            help="Metric that budgets limit. module:function is yours: (y_true, y_pred), higher is better.  "
            "[default: depends on the task]",
        ),
        click.option(
            "--threshold",
            type=click.FloatRange(0, 1),
            default=DEFAULTS.data.wishes.threshold,
            show_default=True,
            help="Probability from which an output counts as positive (binary and multi-label).",
        ),
        click.option(
            "--classes",
            type=click.Path(),
            help="Text file with the class names, one per line, in the order of the outputs.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def task_wishes(settings: dict[str, Any]) -> Wishes:
    """The values of :func:`task_options` as the API takes them. They are removed from the settings."""
    path = settings.pop("classes")
    names = [line.strip() for line in read_text(path).splitlines()] if path else []
    for _, metric in settings["metrics"]:
        if metric not in METRICS:
            users_metric(metric)
    return Wishes(
        tasks=dict(settings.pop("tasks")),
        metrics=dict(settings.pop("metrics")),
        weights=dict(settings.pop("weights", ())),
        threshold=settings.pop("threshold"),
        classes=tuple(name for name in names if name),
    )


def metric_options(command: Any) -> Any:
    """A limit for each metric: --min-accuracy, --max-mae, ..."""
    for metric in reversed(METRICS.values()):
        if metric.against_float:  # it has no limit
            continue
        bound = click.FloatRange(0) if metric.error else click.FloatRange(max=1)
        command = click.option(
            f"--{metric.option}",
            metric.option.replace("-", "_"),
            type=bound,
            metavar="VALUE",
            help=f"{'Largest' if metric.error else 'Smallest'} {metric.name} allowed on the test split.",
        )(command)
    return command


def metric_limits(settings: dict[str, Any]) -> dict[str, float]:
    """The values of :func:`metric_options`, by metric. They are removed from the settings."""
    given = {metric.name: settings.pop(metric.option.replace("-", "_"), None) for metric in METRICS.values()}
    return {name: value for name, value in given.items() if value is not None}


quiet_option = click.option("--quiet", is_flag=True, help="Print nothing but errors on stderr.")


MAX_DROP = (
    "Accuracy budget: make the smallest file whose validation metrics drop at most POINTS percentage points "
    "below the float model's; exit code 3 if there is none.  [default: no measurable drop, or the best file]"
)


def model_options(command: Any) -> Any:
    """The options for reading a model, shared by the commands that read one."""
    shape = click.option(
        "--input-shape", type=ShapeType(), help="Input size, if the model leaves it open, such as 96,96,3."
    )
    trust = click.option(
        "--trust-model",
        is_flag=True,
        help="Allow Lambda layers. This runs Python code from the model file with your rights.",
    )
    return shape(trust(command))


def target_options(command: Any) -> Any:
    """The options for targets, shared by the commands that write files."""
    options = (
        click.option(
            "--target",
            "targets",
            multiple=True,
            type=click.Choice(TARGETS),
            metavar="NAME",
            default=DEFAULTS.output.targets,
            show_default=True,
            help="What to make a file for: litert (phones), tflm (TFLite Micro, microcontrollers), int8 (any "
            "runtime), ethos-u55-128 (Arm's NPU), ... lqconvert targets lists them. Repeat it to make "
            "several files.",
        ),
        click.option(
            "--io",
            type=click.Choice(IO),
            help="Type of the file's inputs and outputs.  [default: int8 (int16 with --activations 16), or "
            "float32 if input columns need scaling in float]",
        ),
        click.option(
            "--max-ram",
            type=SizeType(),
            help="Budget for the tensor arena in TFLite Micro, measured on this machine, or for an Ethos-U's "
            "SRAM, as its compiler reckons it.",
        ),
        click.option(
            "--board",
            type=click.Choice(BOARDS),
            metavar="NAME",
            help="Make a file that takes at most half of the flash and RAM of a board; lqconvert targets "
            "lists boards. --max-ram replaces the half of the RAM.",
        ),
        click.option(
            "--prefer",
            type=click.Choice(PREFERENCES),
            help="flash: use every packing that saves a byte. ram or latency: use none that takes more of it "
            "than int8.  [default: packings that take RAM and time have to make the file 2% smaller]",
        ),
        click.option(
            "--max-latency",
            type=click.FloatRange(min=0, min_open=True),
            metavar="RATIO",
            help="Latency budget: at most RATIO times the latency of the plain int8 file. Below 1, "
            "only quantize can reach it: it removes channels.",
        ),
        click.option(
            "--c-array", is_flag=True, help="Also write the file as C++ source (.cc and .h); not for litert."
        ),
        click.option(
            "--package",
            type=click.Choice(PACKAGES),
            help="Also write a folder that builds for a microcontroller, with a self-test.",
        ),
        click.option("--gzip", is_flag=True, help="Also write a .tflite.gz for downloads."),
        click.option(
            "--strip-all",
            is_flag=True,
            help="Remove the names of inputs and outputs from the file, which saves some bytes.",
        ),
        click.option(
            "--int4-convolutions",
            is_flag=True,
            help="For litert: allow 4-bit convolutions. Smaller, but 4 to 7 times slower, and outputs may "
            "differ by one quantization step.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def target_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The values of :func:`target_options` as the API takes them. They are removed from the settings."""
    from lqconvert.runtime.verify import Limits
    from lqconvert.tflite.targets import target

    shared = {name: settings.pop(name) for name in ("prefer", "int4_convolutions", "strip_all")}
    board = settings.pop("board")
    limits = Limits.of_board(board) if board else Limits()
    given = {name: settings.pop(name) for name in ("max_ram", "max_latency")}
    return {
        "targets": [target(name, **shared) for name in dict.fromkeys(settings.pop("targets"))],
        "limits": dataclasses.replace(limits, **{name: value for name, value in given.items() if value}),
        "c_array": settings.pop("c_array"),
        "gzip": settings.pop("gzip"),
        "package": settings.pop("package"),
        "io": settings.pop("io"),
    }
