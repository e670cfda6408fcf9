"""The warning for a file that is far worse than the float model: where most is lost, and what to try."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lqconvert.runtime.layer_snr import LayerNoise
from lqconvert.tasks import Score, metric_named

#: A metric that is lower by this many points always causes a warning.
FAR = 10.0


def shortfall(
    scores: Sequence[Score],
    float_scores: Sequence[Score],
    criteria: Sequence[str],
    noise: Callable[[], Sequence[LayerNoise]],
) -> str | None:
    """A warning if a judged metric is FAR below the float model's; otherwise None.

    Args:
        scores, float_scores: of the file and of the float model, on the same examples.
        criteria: the labels of the judged scores.
        noise: returns the layers' signal-to-noise ratios, in the order of the graph.
    """
    drops = {
        score.label: 100 * (before.value - score.value)
        for score, before in zip(scores, float_scores, strict=True)
        if score.label in criteria and not metric_named(score.metric).error
    }
    label = max(drops, key=lambda name: drops[name], default=None)
    if label is None or drops[label] < FAR:
        return None
    where = _where(noise())
    return (
        f"warning: {label} of the file is {drops[label]:.1f} points below the float model's{where}; try "
        "more epochs, granularity output-channel-wise, or more data like the training data"
    )


def _where(layers: Sequence[LayerNoise]) -> str:
    """The layer at which the ratio falls most, compared with the layer in front, or with exact inputs."""
    known = [(layer.name, min(layer.snr_db, 60.0)) for layer in layers if layer.snr_db is not None]
    if not known:
        return ""
    before = [60.0, *(ratio for _, ratio in known[:-1])]
    falls = [(earlier - ratio, name, ratio) for earlier, (name, ratio) in zip(before, known, strict=True)]
    _, name, ratio = max(falls)
    place = "its input or its weights" if name == known[0][0] else "its weights"
    return f"; most is lost at layer '{name}' (signal-to-noise ratio {ratio:.0f} dB): {place}"
