"""The default settings of each scheme. Help texts read them, so this module does not import TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """The default settings of a scheme.

    Attributes:
        epochs: of fine-tuning.
        learning_rate: Adam's, for the scales.
        granularity: which weights share a scale.
        penalty: the scheme's field with the penalty's weight; None if it has no penalty.
    """

    epochs: int = 3
    learning_rate: float = 2e-4
    granularity: str = "output-channel-wise"
    penalty: str | None = None


#: For the thesis's schemes, whose scales change by one optimizer step at a time.
PUBLISHED = Recipe(epochs=10, learning_rate=1e-3, penalty="gamma")
#: By scheme name.
RECIPES = {
    "rate": Recipe(epochs=20, learning_rate=3e-3, granularity="mixed", penalty="gamma"),
    "lsq": Recipe(),
    "gradient-threshold": replace(PUBLISHED, penalty="threshold"),
    "maxbin": PUBLISHED,
    "inverse": PUBLISHED,
    "difference": PUBLISHED,
}
DEFAULT_SCHEME = "rate"
#: By name: the factor on the steps of fine-tuning. With 0, nothing is trained.
EFFORTS = {"fast": 0, "normal": 1, "high": 4}
#: How a weight, divided by its scale, becomes a code. "floor" is the thesis's way.
ROUNDINGS = ("nearest", "floor")
