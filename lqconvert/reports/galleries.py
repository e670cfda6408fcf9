"""Galleries of test examples: largest differences between file and float model, masks, reconstructions."""

from __future__ import annotations

import numpy as np

from lqconvert.metrics import guesses, reconstruction_errors
from lqconvert.reports import answer_charts
from lqconvert.reports.evidence import Seen
from lqconvert.reports.page_parts import Drawing, Example, Figures, Gallery, Picture
from lqconvert.reports.pictures import class_colours, data_uri, stretched

#: The largest number of examples, so that a report can be read and sent by mail.
MOST_EXAMPLES, MOST_WIDE, MOST_VALUES, MOST_COLOURS = 12, 6, 4, 20


def most_different(seen: Seen) -> Gallery | None:
    """The examples whose outputs differ most, in descending order; None if none differ."""
    distances = seen.distances
    places = np.argsort(-distances, kind="stable")[:MOST_EXAMPLES]
    places = places[distances[places] > 0]
    if not len(places):
        return None
    pictures = _inputs(seen, places)
    examples = [
        Example(
            pictures[at],
            _label(seen, place) or "no label",
            [
                f"float: {_answer(seen, seen.float_outputs[place])}",
                f"file: {_answer(seen, seen.outputs[place])}{_changed_sides(seen, place)}",
                f"distance {distances[place]:.3g}, no. {seen.numbers[place]}",
            ],
        )
        for at, place in enumerate(places)
    ]
    note = "Test examples by the distance of the outputs (root mean square over the units)."
    return Gallery("Where file and float model differ most", examples, note)


def masks(seen: Seen, before: np.ndarray, after: np.ndarray) -> Gallery | None:
    """Images of inputs, labels and predicted classes [n, positions]; None if the inputs are no images."""
    shape = seen.head.output.shape[:-1]
    if len(shape) != 2:
        return None
    differ = np.mean(before != after, axis=1)
    places = np.argsort(-differ, kind="stable")[:MOST_WIDE]
    colours, inputs = class_colours(seen.head.classes), _inputs(seen, places)
    examples, there = [], set()
    for at, place in enumerate(places):
        maps = {"label": seen.truth[place], "float": before[place], "file": after[place]}
        number, alike = seen.numbers[place], (np.mean(m[place] == seen.truth[place]) for m in (before, after))
        drawn = [
            Picture(data_uri(colours[classes].reshape(*shape, 3)), f"{name} of test example {number}", name)
            for name, classes in maps.items()
        ]
        there |= set(np.unique(list(maps.values())).tolist())
        was, is_ = alike
        lines = [f"{was:.2%} of it right by float, {is_:.2%} by the file; {differ[place]:.2%} differ"]
        given = [Picture(each.uri, each.says, "input") for each in inputs[at]]
        examples.append(Example([*given, *drawn], f"no. {number}", lines))
    key = [("#" + bytes(colours[k]).hex(), seen.class_name(k)) for k in sorted(there)[:MOST_COLOURS]]
    note = "Test examples by the share of positions on which file and float model differ."
    return Gallery("Masks, where file and float model differ most", examples, note, key, pictured=True)


def worst_reconstructions(seen: Seen) -> Gallery | Figures:
    """The normal examples with the largest reconstruction errors, as images or as lines."""
    before, after = seen.both
    targets, known = seen.truth[:, : after.shape[1]], seen.truth[:, after.shape[1] :]
    errors, float_errors = (np.sqrt(reconstruction_errors(each, seen.truth)) for each in (after, before))
    usual = np.flatnonzero(known[:, 0] != 1) if known.size else np.arange(len(seen))
    places = usual[np.argsort(-errors[usual], kind="stable")][:MOST_WIDE]
    title = "Worst reconstructions"
    note = "Test examples by the file's error (root mean square over the values)."
    if known.size and np.any(known == 1):
        note += " Anomalies are left out."
    raw = seen.pictures(places)
    shape = seen.head.output.shape
    if raw is None or raw[0].size != after.shape[1]:
        drawings = [
            Drawing.of(
                f"no. {seen.numbers[place]}",
                answer_charts.profile(targets[place], before[place], after[place]),
                f"error {errors[place]:.3g}, {float_errors[place]:.3g} by float",
            )
            for place in places
        ]
        return Figures(drawings, title, note)
    shape = raw.shape[1:]
    examples = []
    for place in places:
        images = {"input": targets[place], "float": before[place], "file": after[place]}
        low, high = float(targets[place].min()), float(targets[place].max())
        drawn = [
            Picture(
                data_uri(stretched(np.clip(values, low, high).reshape(shape))),
                f"{name} of test example {seen.numbers[place]}",
                name,
            )
            for name, values in images.items()
        ]
        lines = [f"error {errors[place]:.3g}, {float_errors[place]:.3g} by float"]
        examples.append(Example(drawn, f"no. {seen.numbers[place]}", lines))
    return Gallery(title, examples, note, pictured=True)


def _inputs(seen: Seen, places: np.ndarray) -> list[list[Picture]]:
    """For each example an image of its input, if the input is an image."""
    images = seen.pictures(places)
    if images is None:
        return [[] for _ in places]
    return [
        [Picture(data_uri(image), f"test example {seen.numbers[place]}")]
        for image, place in zip(stretched(images), places, strict=True)
    ]


def _label(seen: Seen, place: int) -> str:
    if seen.head.classifies:
        return seen.class_name(seen.truth[place])
    if seen.head.task == "multi-label":
        return ", ".join(seen.class_name(label) for label in np.flatnonzero(seen.truth[place])) or "none"
    return _listed(seen.labels[place]) if seen.labels.size else ""


def _answer(seen: Seen, output: np.ndarray) -> str:
    """The output of a model for an example: the class and its value, or the values."""
    output = output.ravel()
    if not seen.head.answers_classes:
        return _listed(output)
    (guess,) = guesses(output[np.newaxis], seen.head.threshold)
    value = output[guess] if len(output) > 1 else output[0]
    return f"{seen.class_name(guess)} ({value:.2f})"


def _changed_sides(seen: Seen, place: int) -> str:
    if not seen.head.classifies:
        return ""
    was, is_ = (guesses(each[[place]], seen.head.threshold)[0] == seen.truth[place] for each in seen.both)
    return "" if was == is_ else ", now right" if is_ else ", now wrong"


def _listed(values: np.ndarray) -> str:
    values = values.ravel()
    more = ", …" if len(values) > MOST_VALUES else ""
    return ", ".join(f"{value:.{3 + (abs(value) >= 1000)}g}" for value in values[:MOST_VALUES]) + more
