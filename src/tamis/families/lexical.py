"""BM25: the family without a checkpoint."""

from __future__ import annotations

from tamis.checkpoint import Checkpoint
from tamis.families import Family
from tamis.options import LoadOptions
from tamis.scorers.base import Scorer


def build(checkpoint: Checkpoint | None, options: LoadOptions) -> Scorer:
    """BM25 over the candidates of each call."""
    from tamis.scorers.lexical import LexicalScorer

    options.allow("lexical")
    return LexicalScorer()


FAMILIES = (
    Family(
        "bm25",
        "lexical",
        "words of the candidates; no checkpoint",
        "s / (1 + s) of the BM25 sum",
        build,
        window="all of it",
    ),
)
