"""The settings of a run, as its report, page, plan and checkpoint show them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lqconvert.data.preprocessing import Preprocessing
from lqconvert.quantization.schemes import Scheme
from lqconvert.runtime.verify import Limits
from lqconvert.training.augmentation import Augmentation
from lqconvert.training.budget import Budget


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run. What the user left open has its detected or default value."""

    scheme: Scheme
    budget: Budget
    io: str
    granularity: str
    rounding: str
    start: float | None  # None if scales were calibrated
    activations: int  # their bits
    preprocess: Preprocessing
    tasks: dict[str, str]  # by output, like the next two
    judged: dict[str, Sequence[str]]
    weights: dict[str, float]
    threshold: float
    steer_on: str
    limits: Limits
    augmentation: Augmentation
    epochs: int
    max_minutes: float | None
    batch_size: int
    learning_rate: float
    seed: int

    @property
    def plain(self) -> str:
        """What the file is called before it is packed: int8, or TensorFlow's 16x8 (activations, weights)."""
        return "int8" if self.activations == 8 else "16x8"

    def to_dict(self) -> dict[str, Any]:
        """As in the report's JSON."""
        texts = {"preprocess": str(self.preprocess), "augmentation": str(self.augmentation)}
        return dataclasses.asdict(self) | texts | {"scheme": self.scheme.get_config()}

    def lines(self) -> dict[str, str]:
        """Each setting as text, by its full name (``budget.max_drop``)."""
        return dict(_lines(self.to_dict()))


def _lines(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{name}", "none" if value is None else str(value)
