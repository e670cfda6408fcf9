"""Ignores matplotlibrc files: none of them decides whether a command runs, or what code it runs.

When matplotlib is imported (TensorFlow's Keras imports it), it reads the matplotlibrc of the working folder.
A damaged one ends the import, a FIFO blocks it, and others may name modules to import or programs to run.
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
    """Makes matplotlib, if it is imported later, read no settings except those of its package.

    Only for commands: programs that use lqconvert as a library keep their own settings.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds matplotlib as usual, with a loader of our own."""

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
    """Runs matplotlib's module with an ``open`` that reads files of all other folders as empty."""

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

        module.__dict__["open"] = opened  # only in this module
        try:
            self.loader.exec_module(module)
        finally:
            del module.__dict__["open"]
