"""The table of docs/models.md, made of the rows of layer kinds: ``python tests/layers_page.py`` writes it."""

from pathlib import Path

from lqconvert.keras_loader.layer_kinds import KINDS, LayerKind, Loading

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- begin: tests/layers_page.py writes this table -->\n", "<!-- end -->\n"


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
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """A page with the table between its two marks."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
