"""The page's section for an output, by its task: scores, charts and examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from lqconvert.metrics import METRICS, are_logits, positive, reconstruction_errors, sigmoid
from lqconvert.reports import answer_charts, class_tables, galleries
from lqconvert.reports.answer_charts import Ranked
from lqconvert.reports.evidence import Evidence, Seen, tone_of_metric
from lqconvert.reports.page_parts import Cell, Drawing, Figures, Gallery, Matrix, Section, Table
from lqconvert.reports.report import TargetFile
from lqconvert.tasks import Score, metric_named

Part = Figures | Gallery | Matrix | Table
#: The largest number of columns whose residuals are drawn.
MOST_RESIDUALS = 4


def sections(file: TargetFile, evidence: Evidence, colours: dict[str, str]) -> list[Section]:
    """A section for each output of the first target's file. The colours are from :func:`tones`."""
    several = len(evidence.heads) > 1
    made = []
    for seen in evidence.by_head():
        name = seen.head.output.name if several else ""
        title = f"Answers of {name}" if several else "Answers"
        parts = [_scores(seen, name, file, colours), *TASK_PARTS[seen.head.task](seen)]
        made.append(Section(title, seen.head.describe(), parts))
    return made


def tones(evidence: Evidence) -> dict[str, str]:
    """ "good" or "bad" for each score that changed by more than chance explains, by the score's label."""
    several = len(evidence.heads) > 1
    found = {}
    for seen in evidence.by_head():
        before, after = seen.both
        for metric in seen.head.metrics:
            label = Score(seen.head.output.name if several else "", metric.name, 0.0).label
            found[label] = tone_of_metric(metric, before, after, seen.truth, seen.head.threshold)
    return found


def _scores(seen: Seen, name: str, file: TargetFile, colours: dict[str, str]) -> Table:
    """All metrics of an output. Those that the budget limits come first."""
    before = {score.label: score for score in file.float_scores}
    rows = []
    for score in file.scores:
        if score.output != name or score.label not in before:
            continue
        metric, was = metric_named(score.metric), before[score.label]
        change = score.value - was.value
        points = f"{change:+.4g}" if metric.error else f"{100 * change:+.2f} points"
        texts = score.metric, "" if metric.against_float else was.text, score.text
        rows.append([*map(Cell, texts), Cell(points, colours[score.label])])
    note = f"On {len(seen):,} test examples."
    return Table("Scores", ["score", "float", "file", "change"], rows, note)


def _differences(seen: Seen) -> Iterator[Part]:
    gallery = galleries.most_different(seen)
    if gallery is not None:
        yield gallery


def _classification(seen: Seen) -> Iterator[Part]:
    yield class_tables.confusion(seen)
    yield class_tables.classes(seen)
    yield from _differences(seen)


def _binary(seen: Seen) -> Iterator[Part]:
    scores = [positive(each) for each in seen.both]
    yield Figures([_ranking(seen, "Precision and recall", scores, seen.truth)])
    yield from _classification(seen)


def _multi_label(seen: Seen) -> Iterator[Part]:
    probabilities = [sigmoid(each) if are_logits(each) else each for each in seen.both]
    flat = [each.ravel() for each in probabilities]
    yield Figures([_ranking(seen, "Precision and recall, all labels together", flat, seen.truth.ravel())])
    yield class_tables.labels(seen)
    yield from _differences(seen)


def _ranking(seen: Seen, title: str, scores: list[np.ndarray], labels: np.ndarray) -> Drawing:
    """Precision and recall for scores [n] of float and file, and in words at the threshold."""
    ranked, threshold = [], seen.head.threshold
    for name, each in zip(("float", "file"), scores, strict=True):
        column, truth = each[:, np.newaxis], labels.astype(np.int64)
        at = (METRICS[metric].measure(column, truth, threshold) for metric in ("precision", "recall"))
        ranked.append(Ranked(name, each, labels, *at))
    words = (
        f"{each.name} {METRICS['precision'].text(each.precision)} and {METRICS['recall'].text(each.recall)}"
        for each in ranked
    )
    note = f"Precision and recall at the threshold of {threshold:g}: {', '.join(words)}."
    return Drawing.of(title, answer_charts.precision_recall_curve(*ranked), note)


def _segmentation(seen: Seen) -> Iterator[Part]:
    maps = class_tables.maps_of(seen)
    yield class_tables.overlaps(seen, *maps)
    gallery = galleries.masks(seen, *maps)
    if gallery is not None:
        yield gallery


def _regression(seen: Seen) -> Iterator[Part]:
    before, after = seen.both
    count = seen.truth.shape[1]
    drawings = []
    for place in range(min(count, MOST_RESIDUALS)):
        target, was, is_ = (each[:, place] for each in (seen.truth, before, after))
        panels = [("float", target, was - target), ("file", target, is_ - target)]
        errors = [METRICS["MAE"].text(float(np.mean(np.abs(each)))) for *_, each in panels]
        note = f"Mean absolute error: float {errors[0]}, file {errors[1]}."
        title = f"Residuals of {seen.class_name(place)}" if count > 1 else "Residuals"
        drawings.append(Drawing.of(title, answer_charts.residuals(panels, "target"), note))
    if count > 1:
        yield class_tables.columns(seen)
    left = f"The first {MOST_RESIDUALS} of {count:,} columns." if count > MOST_RESIDUALS else ""
    yield Figures(drawings, note=left)
    yield from _differences(seen)


def _reconstruction(seen: Seen) -> Iterator[Part]:
    before, after = (np.sqrt(reconstruction_errors(each, seen.truth)) for each in seen.both)
    known = seen.truth[:, seen.head.output.size :]
    odd = known[:, 0] == 1 if known.size else np.zeros(len(seen), bool)
    groups = [("usual", ~odd), ("anomalies", odd)] if odd.any() else [("", ~odd)]
    filled = [(f"file, {name}".rstrip(", "), after[of]) for name, of in groups]
    outlined = [(f"float, {name}".rstrip(", "), before[of]) for name, of in groups]
    medians = (f"{name} {np.median(errors):.3g}" for name, errors in (*outlined, *filled) if len(errors))
    drawn = answer_charts.histogram(filled, outlined, "error (rms)")
    yield Figures([Drawing.of("Errors of reconstruction", drawn, f"Medians: {'; '.join(medians)}.")])
    yield galleries.worst_reconstructions(seen)


def _embedding(seen: Seen) -> Iterator[Part]:
    before, after = seen.both
    metric = METRICS["cosine similarity"]
    assert metric.each is not None
    cosines = metric.each(after, before, 0.5)
    drawn = answer_charts.histogram([("file", cosines)], [], "cosine similarity to float")
    low, middle = np.min(cosines), np.median(cosines)
    drawing = Drawing.of("Cosine similarity", drawn, f"Median {middle:.4f}, the lowest {low:.4f}.")
    yield Figures([drawing])
    yield from _differences(seen)


def _raw(seen: Seen) -> Iterator[Part]:
    before, after = (each.ravel() for each in seen.both)
    drawn = answer_charts.residuals([("all values", before, after - before)], "float")
    note = f"Root mean square {np.sqrt(np.mean((after - before) ** 2)):.3g}."
    yield Figures([Drawing.of("File against float", drawn, note)])
    yield from _differences(seen)


#: The parts of a section for each task.
TASK_PARTS: dict[str, Callable[[Seen], Iterator[Part]]] = {
    "classification": _classification,
    "binary": _binary,
    "multi-label": _multi_label,
    "segmentation": _segmentation,
    "regression": _regression,
    "reconstruction": _reconstruction,
    "embedding": _embedding,
    "raw": _raw,
}
