"""No matplotlibrc decides whether a command runs, or what it runs.

matplotlib reads the one of the working folder where it is imported, and TensorFlow's Keras imports it. A
damaged one ends the import, a FIFO never does, and others may name modules to import and programs to run.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


def ignore() -> None:
    """Has matplotlib read no settings but those of its package, should anything import it.

    For commands alone: whoever uses lqconvert as a library has settings of their own.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds matplotlib where it is, with a loader of our own."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "matplotlib":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Runs the package's module with an ``open`` that finds all other folders' files empty."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        own = Path(str(module.__file__)).parent

        def opened(file: Any, *others: Any, **settings: Any) -> Any:
            inside = own in Path(file).absolute().parents
            return open(file, *others, **settings) if inside else io.StringIO()

        module.__dict__["open"] = opened  # in its module alone, and only now
        try:
            self.loader.exec_module(module)
        finally:
            del module.__dict__["open"]
