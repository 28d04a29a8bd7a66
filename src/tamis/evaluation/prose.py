"""English to measure speed with: stretches of the docstrings of Python's standard library.

They differ a little between Python versions.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from tamis.errors import InvalidInput

SEED = 20260
MEDIAN_WORDS, SPREAD = 66, 0.7  # of the lognormal lengths
SHORTEST, LONGEST = 10, 400  # words
FEWEST = 10_000  # words to draw from

_WORD = re.compile(r"[A-Za-z][a-z]*(?:['-][a-z]+)*[.,;:?!]?")


def sample_passages(count: int, seed: int | tuple[int, ...] = SEED) -> list[str]:
    """Stretches of lognormal length."""
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(np.log(MEDIAN_WORDS), SPREAD, count).astype(int).clip(SHORTEST, LONGEST)
    return stretches(lengths.tolist(), rng, LONGEST)


def stretches(
    lengths: list[int], rng: np.random.Generator, longest: int | None = None, *, distinct: bool = False
) -> list[str]:
    """Stretches of so many words each; `distinct` ones begin at different words, as long as there are enough."""
    words, n = prose(), len(lengths)
    room = len(words) - (longest or max(lengths))
    starts = rng.permutation(room)[:n] if distinct and n <= room else rng.integers(0, room, n)
    return [" ".join(words[start : start + n]) for start, n in zip(starts, lengths, strict=True)]


@lru_cache
def prose() -> tuple[str, ...]:
    """The words of all docstrings in the standard library's top folder; code and names are left out.

    Raises:
        InvalidInput: This Python has no sources.
    """
    words = tuple(_words())
    if len(words) < FEWEST:
        raise InvalidInput("This Python comes without its library's sources, where text is taken from; pass your own.")
    return words


def _words() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                yield from (word for word in text.split() if _WORD.fullmatch(word))
