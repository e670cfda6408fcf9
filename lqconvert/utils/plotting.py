"""matplotlib with its own settings: what others set, and how layers are called, decides nothing here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib


@contextmanager
def defaults(style: dict[Any, Any] | None = None) -> Iterator[None]:
    """matplotlib's own settings with a style's; names of layers are no formulas."""
    own = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with matplotlib.rc_context(own | {"text.parse_math": False} | (style or {})):
        yield
