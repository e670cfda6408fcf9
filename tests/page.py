"""Parses an HTML file for tests: elements, headings, text."""

import re
from html.parser import HTMLParser
from pathlib import Path

#: Elements that have no end.
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Parses a page; raises an AssertionError where its elements are not nested, or something is loaded."""

    def __init__(self, source: str | Path) -> None:
        super().__init__()
        self.source = source.read_text() if isinstance(source, Path) else source
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # the element, and text in it
        self.open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self.open
        self._loads_nothing()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", " ".join(data.split())))

    def _loads_nothing(self):
        for tag, attributes in self.elements:
            assert tag not in ("script", "link", "iframe", "object", "embed", "image", "base", "form")
            for name, value in attributes.items():
                assert not name.startswith("on")
                if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                    assert value.startswith(("#", "data:image/png;base64,"))
                assert not re.search(r"url\((?!#)|@import", value or "")
        assert "url(" not in self.text_of("style")
        assert "@import" not in self.text_of("style")

    def text_of(self, *tags: str) -> str:
        return "\n".join(text for tag, text in self.texts if tag in tags)

    @property
    def text(self) -> str:
        return "\n".join(text for tag, text in self.texts if tag != "style")

    @property
    def headings(self) -> list[str]:
        return [text for tag, text in self.texts if tag == "h2"]

    def count(self, tag: str) -> int:
        return sum(tag == each for each, _ in self.elements)
