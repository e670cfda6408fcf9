"""Defaults of a project: the table [tool.lqconvert] of its pyproject.toml."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

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


def defaults(path: Path, commands: dict[str, set[str]]) -> dict[str, dict[str, Any]]:
    """What a pyproject.toml says of the commands' options.

    A key in [tool.lqconvert.COMMAND] is that command's; one in [tool.lqconvert] itself is of all that have
    such an option. Keys are the options' names without the dashes in front.

    Args:
        commands: the names of every command's options, as Python spells them.

    Returns:
        values by option (as Python spells it) by command.

    Raises:
        LqError: if the file is no TOML, or no command has such an option.
    """
    try:
        table = tomllib.loads(path.read_text()).get("tool", {}).get("lqconvert", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, AttributeError) as error:
        raise LqError(f"{path}: cannot be read ({error})") from error
    if not isinstance(table, dict):
        raise LqError(f"{path}: lqconvert is no table in [tool]")
    shared = {key: value for key, value in table.items() if key not in commands}
    known = set().union(*commands.values())
    for key in shared:
        if _python(key) not in known:
            raise LqError(f"{path}: [tool.lqconvert] has '{key}', which is no command and no option")
    found = {}
    for command, options in commands.items():
        own = table.get(command, {})
        if not isinstance(own, dict):
            raise LqError(f"{path}: {command} is no table in [tool.lqconvert]")
        for key in own:
            if _python(key) not in options:
                raise LqError(f"{path}: [tool.lqconvert.{command}] has '{key}', which is no option of it")
        both = {_python(key): value for key, value in (shared | own).items()}
        found[command] = {option: value for option, value in both.items() if option in options}
    return found


def _python(key: str) -> str:
    return key.replace("-", "_")
