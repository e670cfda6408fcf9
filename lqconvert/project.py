"""Defaults of a project: the table [tool.lqconvert] of its pyproject.toml."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from lqconvert.errors import LqError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAME = "pyproject.toml"


def find(folder: Path) -> Path | None:
    """The pyproject.toml of a folder, or of the nearest one above that has one."""
    folder = folder.resolve()
    return next((each / NAME for each in (folder, *folder.parents) if (each / NAME).is_file()), None)


def defaults(path: Path, commands: Mapping[str, click.Command]) -> dict[str, dict[str, Any]]:
    """What a pyproject.toml says of the commands' options.

    A key in [tool.lqconvert.COMMAND] is that command's; one in [tool.lqconvert] itself is of all that have
    such an option. Keys are the options' names without the dashes in front.

    Returns:
        values by option (as click names it) by command: a click default_map.

    Raises:
        LqError: if the file is no TOML, or no command has such an option.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("lqconvert", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, AttributeError) as error:
        raise LqError(f"{path}: cannot be read ({error})") from error
    if not isinstance(table, dict):
        raise LqError(f"{path}: lqconvert is no table in [tool]")
    shared = {key: value for key, value in table.items() if key not in commands}
    options = {name: _options(command) for name, command in commands.items()}
    for key in shared:
        if not any(key in known for known in options.values()):
            raise LqError(f"{path}: [tool.lqconvert] has '{key}', which is no command and no option")
    found: dict[str, dict[str, Any]] = {}
    for name, known in options.items():
        own = table.get(name, {})
        if not isinstance(own, dict):
            raise LqError(f"{path}: {name} is no table in [tool.lqconvert]")
        for key in own:
            if key not in known:
                raise LqError(f"{path}: [tool.lqconvert.{name}] has '{key}', which is no option of it")
        values = ((known[key], value) for key, value in (shared | own).items() if key in known)
        pairs = ((option.name or "", _value(option, value)) for option, value in values)
        found[name] = {option: value for option, value in pairs if value is not None}
    return found


def _options(command: click.Command) -> dict[str, click.Option]:
    """A command's options by their names without dashes, with "-" or "_" within."""
    named = {
        opt.lstrip("-"): option
        for option in command.params
        if isinstance(option, click.Option)
        for opt in option.opts
    }
    return named | {name.replace("-", "_"): option for name, option in named.items()}


def _value(option: click.Option, value: Any) -> Any:
    """What click takes: a list for an option that may be repeated, what a flag stands for, None for false."""
    if option.multiple and not isinstance(value, list):
        return [value]
    if option.is_flag and not option.is_bool_flag:
        return option.flag_value if value is True else None
    return value
