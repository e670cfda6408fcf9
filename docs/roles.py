"""Griffe extension: docstrings name code as Sphinx does (:func:`rewrite`), Markdown as `rewrite`."""

import re

import griffe


class Roles(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r":(?:func|class|meth|attr|mod):`", "`", obj.docstring.value)
