"""Documents with scores: always copies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from langchain_core.documents import Document

from tamis.types import Hit

SCORE = "relevance_score"  # the key that LangChain's other rerankers use, and that tracers look for


def scored(documents: Sequence[Document], hits: Iterable[Hit]) -> list[Document]:
    """A copy of each hit's document, in the order of the hits, with its score in the metadata.

    >>> from tamis import Passage
    >>> [copy] = scored([Document("a"), Document("b")], [Hit(1, 0.9, 2.2, Passage("b"))])
    >>> copy.page_content, copy.metadata
    ('b', {'relevance_score': 0.9})
    """
    return [_with_score(documents[hit.index], float(hit.score)) for hit in hits]


def _with_score(document: Document, score: float) -> Document:
    return document.model_copy(update={"metadata": {**document.metadata, SCORE: score}})
