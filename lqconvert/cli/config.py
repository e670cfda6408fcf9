"""Defaults from a project: the table [tool.lqconvert] of its pyproject.toml.

The file comes with a checkout, perhaps from a stranger. So it may set only the options listed here, and name
only files of its own project. It cannot run code or change files that lqconvert did not write.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import click

from lqconvert.errors import LqError
from lqconvert.metrics import METRICS
from lqconvert.utils.file_kinds import BASELINE, JUNIT, LOG, PAGE, SUMMARIES, SWEEP, TFLITE, Kind
from lqconvert.utils.input_files import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAME = "pyproject.toml"
#: Files with more bytes, or lines with more dots, are refused: the time to read a key grows with the square
#: of its dots, up to minutes.
MAX_BYTES, MAX_DOTS = 1 << 17, 200
#: Options that only change what a command does with its arguments.
PLAIN = frozenset(
    (
        *("target", "board", "prefer", "max-ram", "max-latency", "max-size", "max-drop"),
        *(metric.option for metric in METRICS.values() if not metric.against_float),
        *("task", "threshold", "weight", "steer-on"),
        *("c-array", "gzip", "package", "io", "strip-all", "int4-convolutions"),
        *("strict", "resume", "distribute"),
        *("scheme", "bits", "penalty", "granularity", "rounding", "start", "activations"),
        *("preprocess", "input-shape"),
        *("effort", "epochs", "max-minutes", "batch-size", "learning-rate", "seed"),
        *("json", "markdown", "quiet"),
    )
)
#: Options that name a file to read.
READ = frozenset(("data", "baseline", "against", "classes"))
#: Options that name a file to write, and the kind of that file.
WRITTEN: dict[str, Kind] = {
    "report": PAGE,
    "log": LOG,
    "save-baseline": BASELINE,
    "junit": JUNIT,
    "tensorboard": SUMMARIES,
}


def find(folder: Path) -> Path | None:
    """The pyproject.toml of a folder, or of the nearest parent that has one, up to the repository's root.

    The root is the folder with .git. Outside of a repository, only the folder itself is searched: a parent
    may belong to anybody.
    """
    folder = folder.resolve()
    within: list[Path] = []
    for each in (folder, *folder.parents):
        within.append(each)
        if os.path.lexists(each / ".git"):
            break
    else:
        within = [folder]
    return next((each / NAME for each in within if (each / NAME).is_file()), None)


def defaults(path: Path, commands: Mapping[str, click.Command]) -> dict[str, dict[str, Any]]:
    """The values that a pyproject.toml sets for the commands' options.

    A key in [tool.lqconvert.COMMAND] is for that command. A key in [tool.lqconvert] is for all commands that
    have such an option. Keys are the options' names without leading dashes.

    Returns:
        for each command, values by option (as click names it): a click default_map.

    Raises:
        LqError: if the file is no TOML, no command has such an option, or the option must not be set in a
            file.
    """
    table = _table(path)
    shared = {key: value for key, value in table.items() if key not in commands}
    options = {name: _options(command) for name, command in commands.items()}
    for key in shared:
        if not any(key in known for known in options.values()):
            raise LqError(f"{path}: [tool.lqconvert] has {key!r}, which is not a command or an option")
    found: dict[str, dict[str, Any]] = {}
    for name, known in options.items():
        own = table.get(name, {})
        if not isinstance(own, dict):
            raise LqError(f"{path}: {name} is not a table in [tool.lqconvert]")
        for key in own:
            if key not in known:
                raise LqError(
                    f"{path}: [tool.lqconvert.{name}] has {key!r}, which is not an option of this command"
                )
        found[name] = {}
        for key, value in (shared | own).items():
            if key in known:
                _Setting(path, name, key, value).check()
                value = _value(known[key], value)
                if value is not None:
                    found[name][known[key].name or ""] = value
    return found


def _table(path: Path) -> dict[str, Any]:
    """The table [tool.lqconvert] of a pyproject.toml; empty if there is none."""
    text = read_text(path, MAX_BYTES)
    try:
        if any(line.count(".") > MAX_DOTS for line in text.split("\n")):
            raise LqError(f"{path}: a line has more than {MAX_DOTS} dots")
        table = tomllib.loads(text).get("tool", {}).get("lqconvert", {})
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise LqError(f"{path}: cannot be read ({error})") from error
    if not isinstance(table, dict):
        raise LqError(f"{path}: lqconvert is not a table in [tool]")
    return table


def _options(command: click.Command) -> dict[str, click.Option]:
    """A command's options by their names without leading dashes, with "-" and with "_"."""
    named = {
        opt.lstrip("-"): option
        for option in command.params
        if isinstance(option, click.Option)
        for opt in option.opts
    }
    return named | {name.replace("-", "_"): option for name, option in named.items()}


def _value(option: click.Option, value: Any) -> Any:
    """The value as click takes it: a list for repeated options, the value of a flag, None for false."""
    if option.multiple and not isinstance(value, list):
        return [value]
    if option.is_flag and not option.is_bool_flag:
        return option.flag_value if value is True else None
    return value


@dataclass(frozen=True)
class _Setting:
    """A value that a pyproject.toml sets for an option of a command."""

    project: Path
    command: str
    key: str
    value: Any

    def check(self) -> None:
        """Raises an LqError if only the command line may set this value."""
        option = self.key.replace("_", "-")
        if option in PLAIN:
            return
        if option in READ:
            self._check_path()
        elif option in ("o", "output"):
            self._check_written(SWEEP if self.command == "sweep" else TFLITE)
        elif option in WRITTEN:
            self._check_written(WRITTEN[option])
        else:
            raise self._refused("is not taken from a file")

    def _check_path(self) -> Path:
        """The path. Raises an LqError if it leaves the project, also through links."""
        value = self.value
        if not isinstance(value, str) or not value or "\0" in value:
            raise self._refused("is not a path")
        # module:function and tfds:NAME run code; other schemes and drives lead elsewhere.
        if ":" in value or value.startswith("~"):
            raise self._refused("would run code or lead out of the project")
        try:
            path = Path(value).resolve()
        except (OSError, RuntimeError) as error:  # links in a circle
            raise self._refused("cannot be followed") from error
        if not path.is_relative_to(self._root):
            raise self._refused("leads out of the project")
        return path

    def _check_written(self, kind: Kind) -> None:
        path = self._check_path()
        parts = (*PurePath(self.value).parts, *path.relative_to(self._root).parts)
        if any(part.startswith(".") and part != ".." for part in parts):
            raise self._refused("is hidden")
        if kind.suffixes and not path.name.lower().endswith(kind.suffixes):
            raise self._refused(f"does not end in {' or '.join(kind.suffixes)}")
        if not kind.is_own(path):
            raise self._refused("exists, and lqconvert did not write it")

    @property
    def _root(self) -> Path:
        return self.project.parent.resolve()

    def _refused(self, why: str) -> LqError:
        name = self.key.replace("_", "-")
        option = "-o" if name == "o" else f"--{name}"
        given = f"{name} = {str(self.value)[:100]!r}"
        return LqError(f"{self.project}: {given} {why}; give {option} on the command line")
