"""The table of docs/models.md, made of the rows of layer kinds: ``python tests/layers_page.py`` writes it."""

import inspect
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import tf_keras

from lqconvert.keras_loader.layer_kinds import KINDS, SAVED_AS, LayerKind, Loading

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- begin: tests/layers_page.py writes this table -->\n", "<!-- end -->\n"


#: Classes among Keras's layers that no model has as a layer, and programs of other frameworks.
OTHERS = {
    *("Layer", "Wrapper", "AbstractRNNCell", "LSTMCell", "GRUCell", "SimpleRNNCell", "StackedRNNCells"),
    *("Pipeline", "TFSMLayer", "JaxLayer", "FlaxLayer", "TorchModuleWrapper"),
}


def refused() -> list[str]:
    """The layer classes of both Kerases that lqconvert does not know."""
    names = {
        SAVED_AS.get(value.__name__, value.__name__)
        for api in (tf_keras, keras)
        for value in vars(api.layers).values()
        if inspect.isclass(value) and issubclass(value, api.layers.Layer)
    }
    return sorted(names - OTHERS - {kind.name for kinds in KINDS.values() for kind in kinds})


def outcome(kind: LayerKind) -> str:
    if kind.loading is Loading.DROPPED:
        return "nothing"
    return "float" if kind.stays_float else "integers"


def table() -> str:
    """The layers that a file may contain, group by group, and how they are converted."""
    lines = ["| group | in the model | becomes |", "| --- | --- | --- |"]
    for group, kinds in KINDS.items():
        for what in ("integers", "float", "nothing"):
            names = [k.name for k in kinds if k.loading is not Loading.NONE and outcome(k) == what]
            lines += [f"| {group} | {', '.join(names)} | {what} |"] if names else []
    lines.append(f"| Not known | {', '.join(refused())} | refused |")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """A page with the table between its two marks."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
