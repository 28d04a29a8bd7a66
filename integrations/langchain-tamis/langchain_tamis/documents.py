"""Documents with scores: always copies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from langchain_core.documents import Document

from tamis.errors import InvalidInput
from tamis.types import Hit

SCORE = "relevance_score"  # the key that LangChain's other rerankers use, and that tracers look for


def checked(documents: Sequence[Document]) -> list[Document]:
    """The documents, in a list of its own.

    Raises:
        tamis.InvalidInput: Something among them is none.

    >>> checked(["a"])
    Traceback (most recent call last):
    ...
    tamis.errors.InvalidInput: Document 0 is a str; pass langchain_core.documents.Document(text).
    """
    if isinstance(documents, str | Document):
        what = type(documents).__name__
        raise InvalidInput(f"documents is a {what}; pass a list of documents first, and the query after it.")
    given = list(documents)
    for index, document in enumerate(given):
        if not isinstance(document, Document):
            instead = "langchain_core.documents.Document(text)"
            if hasattr(document, "get_content"):
                instead += ", or give LlamaIndex's nodes to llama_index.postprocessor.tamis.TamisRerank"
            raise InvalidInput(f"Document {index} is a {type(document).__name__}; pass {instead}.")
    return given


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
