"""How commands import matplotlib and Keras. Programs that use lqconvert as a library are not affected.

- When matplotlib is imported, it reads the matplotlibrc of the working folder. A damaged one ends the import,
  a FIFO blocks it, and others may name modules to import or programs to run. So commands read none of them.
- When Keras is imported, as TensorFlow does, it imports scikit-learn and matplotlib if they are installed,
  only to offer wrappers of them. That takes two seconds, and no command needs the wrappers.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

#: What Keras does without if it cannot be imported.
WRAPPED = ("sklearn", "matplotlib")


def install() -> None:
    """Makes matplotlib and Keras be imported like this, if they are imported later."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@contextmanager
def _own_files(module: ModuleType) -> Iterator[None]:
    """Files outside of the module's package are empty for its ``open``."""
    own = Path(str(module.__file__)).parent

    def opened(file: Any, *others: Any, **settings: Any) -> Any:
        inside = own in Path(file).absolute().parents
        return open(file, *others, **settings) if inside else io.StringIO()

    module.__dict__["open"] = opened  # only in this module
    try:
        yield
    finally:
        del module.__dict__["open"]


@contextmanager
def _without_wrapped(_: ModuleType) -> Iterator[None]:
    """Modules that are not imported yet and that Keras would wrap cannot be imported."""
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    hidden = [name for name in WRAPPED if name not in modules]
    modules.update(dict.fromkeys(hidden))  # None: Python's mark of a module that cannot be imported
    try:
        yield
    finally:
        for name in hidden:
            modules.pop(name, None)


AROUND: dict[str, Callable[[ModuleType], AbstractContextManager[None]]] = {
    "matplotlib": _own_files,
    "keras": _without_wrapped,
}


class _Finder(importlib.abc.MetaPathFinder):
    """Finds both as usual, and executes them within their context manager."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in AROUND:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with AROUND[name](module):
                    execute(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
