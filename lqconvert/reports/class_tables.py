"""Results for each class, label or column: float model against file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lqconvert.metrics import METRICS, are_logits, guesses, sigmoid
from lqconvert.reports.evidence import LEAST_POINTS, Seen, tone, tone_of_counts, tone_of_metric
from lqconvert.reports.page_parts import Cell, Count, Matrix, Table

#: With more classes, the pairs are listed instead of a matrix.
MOST_IN_MATRIX = 12
#: The largest number of rows in a table, of examples for a class, and of predicted classes for a class.
MOST_ROWS, MOST_TOLD, MOST_TAKEN_FOR = 40, 20, 4


def confusion(seen: Seen) -> Matrix | Table:
    """Which classes are predicted for which: a matrix, or for many classes the most frequent pairs."""
    before, after = seen.guesses
    count = seen.head.classes
    was, is_ = (np.bincount(seen.truth * count + each, minlength=count**2) for each in (before, after))
    if count > MOST_IN_MATRIX:
        return _pairs(seen, was.reshape(count, count), is_.reshape(count, count))
    totals = np.maximum(np.bincount(seen.truth, minlength=count), 1)
    rows = [
        [
            Count(int(now), int(now - then), float(now / total))
            for now, then in zip(now_row, then_row, strict=True)
        ]
        for now_row, then_row, total in zip(
            is_.reshape(count, count), was.reshape(count, count), totals, strict=True
        )
    ]
    note = "Rows: labels. Columns: predictions of the file. Small numbers: difference from the float model."
    return Matrix("Confusion", [seen.class_name(k) for k in range(count)], rows, note)


def _pairs(seen: Seen, was: np.ndarray, is_: np.ndarray) -> Table:
    """The pairs [class, prediction] that are confused most often."""
    wrong = np.where(np.eye(len(is_), dtype=bool), 0, is_)
    often = np.argsort(-wrong, axis=None, kind="stable")[: MOST_ROWS // 2]
    before, after = seen.guesses
    rows = []
    for label, answer in zip(*np.unravel_index(often, wrong.shape), strict=True):
        if not wrong[label, answer]:
            break
        of = seen.truth == label
        came = int(np.sum(of & (after == answer) & (before != answer)))
        went = int(np.sum(of & (after != answer) & (before == answer)))
        cells = seen.class_name(label), seen.class_name(answer), f"{int(of.sum()):,}"
        counts = Cell(f"{was[label, answer]:,}"), Cell(f"{is_[label, answer]:,}", tone_of_counts(came, went))
        rows.append([*map(Cell, cells), *counts])
    columns = ["class", "taken for", "examples", "by float", "by file"]
    note = f"The pairs that the file confuses most, of {len(is_):,} classes."
    return Table("Most confused", columns, rows, note, words=frozenset({"taken for"}))


def classes(seen: Seen) -> Table:
    """The share of correct predictions for each class. The classes that lost most come first."""
    before, after = seen.guesses
    rows: list[tuple[int, list[Cell]]] = []
    details = []
    all_lost = all_gained = 0
    for label in np.unique(seen.truth):
        of = seen.truth == label
        lost, gained = of & (before == label) & (after != label), of & (before != label) & (after == label)
        all_lost, all_gained = all_lost + int(lost.sum()), all_gained + int(gained.sum())
        name, taken = seen.class_name(label), Counter(after[lost].tolist()).most_common(MOST_TAKEN_FOR)
        shares = float(np.mean(before[of] == label)), float(np.mean(after[of] == label))
        cells = [
            Cell(name),
            Cell(f"{int(of.sum()):,}"),
            Cell(f"{shares[0]:.2%}"),
            Cell(f"{shares[1]:.2%}", tone_of_counts(int(lost.sum()), int(gained.sum()))),
            *(Cell(str(int(each.sum()) or "")) for each in (lost, gained)),
        ]
        if seen.head.classes > 2:
            cells.append(Cell(", ".join(f"{seen.class_name(guess)} ({count})" for guess, count in taken)))
        rows.append((int(gained.sum()) - int(lost.sum()), cells))
        if lost.any() or gained.any():
            sides = (
                (word, seen.numbers[each]) for word, each in (("now wrong", lost), ("now right", gained))
            )
            told = "; ".join(f"{word} {_listed(numbers)}" for word, numbers in sides if len(numbers))
            details.append(f"{name}: {told}")
    rows.sort(key=lambda row: row[0])
    note = (
        f"Of {len(seen):,} test examples {all_lost:,} went from right to wrong and {all_gained:,} from wrong "
        f"to right, float model against file.{_cut(len(rows), 'classes')}"
    )
    columns = ["class", "examples", "float", "file", "now wrong", "now right"]
    if seen.head.classes > 2:
        columns.append("now taken for")
    summary = "Which examples changed sides (their places in the test split, from 0)" if details else ""
    shown = [cells for _, cells in rows[:MOST_ROWS]]
    words = frozenset({"now taken for"})
    return Table("Classes", columns, shown, note, words, summary, details[:MOST_ROWS])


def labels(seen: Seen) -> Table:
    """Metrics of each label. The labels whose AUC fell most come first."""
    head, (before, after) = seen.head, seen.both
    auc, f1 = METRICS["AUC"], METRICS["F1"]
    probabilities = [sigmoid(each) if are_logits(each) else each for each in (before, after)]
    rows = []
    for place in range(head.output.size):
        truth = seen.truth[:, place].astype(np.int64)
        was, is_ = (each[:, [place]] for each in probabilities)
        areas, f1s = ([m.measure(each, truth, head.threshold) for each in (was, is_)] for m in (auc, f1))
        colour = tone_of_metric(auc, was, is_, truth, head.threshold)
        cells = [
            Cell(seen.class_name(place)),
            Cell(f"{int(truth.sum()):,}"),
            *(Cell(auc.text(value)) for value in areas),
            Cell("" if np.isnan(areas).any() else f"{100 * (areas[1] - areas[0]):+.2f} points", colour),
            *(Cell(f1.text(value)) for value in f1s),
        ]
        rows.append((np.nan_to_num(areas[1] - areas[0]), cells))
    rows.sort(key=lambda row: row[0])
    columns = ["label", "examples", "AUC, float", "AUC, file", "change", "F1, float", "F1, file"]
    note = f"Those whose AUC fell most come first; F1 at the threshold of {head.threshold:g}."
    note += _cut(len(rows), "labels")
    return Table("Labels", columns, [cells for _, cells in rows[:MOST_ROWS]], note)


def maps_of(seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    """The classes [n, positions] that the float model and the file predict."""
    n, positions = seen.truth.shape
    before, after = (each.reshape(n, positions, -1) for each in (seen.float_outputs, seen.outputs))
    return guesses(before, seen.head.threshold), guesses(after, seen.head.threshold)


def overlaps(seen: Seen, before: np.ndarray, after: np.ndarray) -> Table:
    """The intersection over union of each class. The classes that lost most come first."""
    rows = []
    for label in np.unique(seen.truth):
        truth = seen.truth == label
        (was, was_each), (is_, is_each) = (_overlap(truth, each == label) for each in (before, after))
        change = is_each - was_each
        colour = tone(float(change.mean()), float(change.std() / np.sqrt(len(change))), LEAST_POINTS / 100)
        name, share = seen.class_name(label), float(truth.mean())
        points = f"{100 * (is_ - was):+.2f}"
        texts = name, f"{share:.2%}", f"{was:.2%}", f"{is_:.2%}"
        rows.append((is_ - was, [*map(Cell, texts), Cell(points, colour)]))
    rows.sort(key=lambda row: row[0])
    columns = ["class", "of all positions", "IoU, float", "IoU, file", "points"]
    note = f"Those that lost most come first.{_cut(len(rows), 'classes')}"
    return Table("Classes", columns, [cells for _, cells in rows[:MOST_ROWS]], note)


def _overlap(truth: np.ndarray, guessed: np.ndarray) -> tuple[float, np.ndarray]:
    """IoU over all positions of masks [n, positions], and values [n] with its mean and its standard error.

    The values linearize the ratio: a ratio of two sums is no mean over examples.
    """
    both = np.sum(truth & guessed, axis=1, dtype=np.float64)
    either = np.sum(truth | guessed, axis=1, dtype=np.float64)
    ratio = float(both.sum() / either.sum())
    return ratio, ratio + (both - ratio * either) / either.mean()


def columns(seen: Seen) -> Table:
    """Metrics of each column. The columns whose R² fell most come first."""
    (before, after), r2, mae = seen.both, METRICS["R²"], METRICS["MAE"]
    rows = []
    for place in range(seen.truth.shape[1]):
        was, is_, truth = (each[:, [place]] for each in (before, after, seen.truth))
        explained, errors = ([m.measure(each, truth, 0.5) for each in (was, is_)] for m in (r2, mae))
        colour = tone_of_metric(r2, was, is_, truth, 0.5)
        texts = seen.class_name(place), r2.text(explained[0]), r2.text(explained[1])
        texts_of_errors = (Cell(mae.text(value)) for value in errors)
        cells = [Cell(texts[0]), Cell(texts[1]), Cell(texts[2], colour), *texts_of_errors]
        rows.append((np.nan_to_num(explained[1] - explained[0]), cells))
    rows.sort(key=lambda row: row[0])
    names = ["column", "R², float", "R², file", "MAE, float", "MAE, file"]
    note = f"Those whose R² fell most come first.{_cut(len(rows), 'columns')}"
    return Table("Columns", names, [cells for _, cells in rows[:MOST_ROWS]], note)


def _cut(count: int, what: str) -> str:
    return f" {MOST_ROWS} of {count:,} {what}." if count > MOST_ROWS else ""


def _listed(numbers: Sequence[int]) -> str:
    more = ", …" if len(numbers) > MOST_TOLD else ""
    return ", ".join(str(number) for number in sorted(numbers)[:MOST_TOLD]) + more
