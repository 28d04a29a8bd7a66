"""An extension of griffe: the examples in docstrings become code blocks on the pages of the API.

Tamis's docstrings have examples without a section of their own, which Markdown would take for quotations.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n.*\S.*)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """See the module."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called with each object, before its docstring is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(docstring: str) -> str:
    r"""The docstring with its examples in fences.

    >>> fenced("Adds.\n\n>" + ">> add(1, 1)\n2\n\nMore.")
    'Adds.\n\n```pycon\n>>> add(1, 1)\n2\n```\n\nMore.'
    """
    return EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", docstring)
