"""matplotlib with its own settings: the user's settings and the names of layers have no effect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib


@contextmanager
def defaults(style: dict[Any, Any] | None = None) -> Iterator[None]:
    """A context with matplotlib's own settings and a style. Layers' names are not read as formulas."""
    own = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with matplotlib.rc_context(own | {"text.parse_math": False} | (style or {})):
        yield
