"""How each scheme is trained by default, known without TensorFlow: help texts read it."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """What suits a scheme where nothing else is asked for.

    Attributes:
        epochs: of fine-tuning.
        learning_rate: Adam's for the scales.
        granularity: which weights share a scale.
        penalty: the scheme's field that weighs its penalty; None where it has no penalty.
    """

    epochs: int = 3
    learning_rate: float = 2e-4
    granularity: str = "output-channel-wise"
    penalty: str | None = None


#: Of the thesis's schemes, whose scales grow a step of the optimizer at a time.
PUBLISHED = Recipe(epochs=10, learning_rate=1e-3, penalty="gamma")
#: By the schemes' names.
RECIPES = {
    "rate": Recipe(epochs=20, learning_rate=3e-3, granularity="mixed", penalty="gamma"),
    "lsq": Recipe(),
    "gradient-threshold": replace(PUBLISHED, penalty="threshold"),
    "maxbin": PUBLISHED,
    "inverse": PUBLISHED,
    "difference": PUBLISHED,
}
DEFAULT_SCHEME = "rate"
#: How a weight divided by its scale becomes a code; "floor" is the thesis's.
ROUNDINGS = ("nearest", "floor")
