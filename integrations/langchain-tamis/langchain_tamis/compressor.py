"""`TamisRerank` and `RankRAGCompressor`: document compressors that put the best documents first."""

from __future__ import annotations

import logging
import pickle
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypedDict

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationInfo, field_serializer, field_validator

from langchain_tamis.documents import checked, scored
from langchain_tamis.model import TamisModel
from langchain_tamis.rankrag_model import RankRAGModel
from tamis.inputs import Cut, check_timeout
from tamis.types import Ranking

logger = logging.getLogger(__name__)

CUTS = tuple(field.name for field in fields(Cut))


class _Request(TypedDict):
    query: str
    documents: list[Document]


class Compressor(BaseDocumentCompressor):
    """A document compressor over whatever ranks texts.

    Attributes:
        top_n: Keep this many documents at most; all if None.
        min_score: Keep only documents with at least this score.
        max_tokens: Keep the longest run of best documents whose texts have at most this many tokens.
        tokenizer: What `max_tokens` counts with; see `tamis.budget.token_counter`. Only a name is kept in dumps, and
            pickles leave out what cannot be pickled, with a warning.
        timeout: Seconds after which `tamis.DeadlineExceeded` is raised.
    """

    top_n: int | None = None
    min_score: float | None = None
    max_tokens: int | None = None
    tokenizer: Any = None
    timeout: float | None = None

    @field_validator(*CUTS, mode="before")
    @classmethod
    def _check_cut(cls, value: Any, info: ValidationInfo) -> Any:
        Cut(**{str(info.field_name): value})
        return value

    @field_validator("timeout", mode="before")
    @classmethod
    def _check_timeout(cls, value: Any) -> Any:
        check_timeout(value)
        return value

    @field_serializer("tokenizer")
    def _name_only(self, value: Any) -> str | None:
        return value if isinstance(value, str) else None

    @abstractmethod
    def _ranking(self, query: str, texts: list[str], **cut: Any) -> Ranking: ...

    @abstractmethod
    async def _aranking(self, query: str, texts: list[str], **cut: Any) -> Ranking: ...

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Copies of the documents, best first.

        Args:
            documents: Any number of documents, which are left as they are.
            query: The question.
            callbacks: Whom to tell; the work is a run of its own under theirs.

        Raises:
            tamis.TamisError: Loading or scoring failed; the message says why.
        """
        request = _Request(query=query, documents=checked(documents))
        return self._traced().invoke(request, config={"callbacks": callbacks})

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """As `compress_documents`, from any event loop, without blocking it. Cancelling withdraws the request."""
        request = _Request(query=query, documents=checked(documents))
        return await self._traced().ainvoke(request, config={"callbacks": callbacks})

    def _traced(self) -> RunnableLambda[_Request, list[Document]]:
        return RunnableLambda(self._rank, afunc=self._arank, name=type(self).__name__)

    def _rank(self, request: _Request) -> list[Document]:
        if not request["documents"]:
            return []
        return scored(request["documents"], self._ranking(request["query"], _texts(request), **self._cut()))

    async def _arank(self, request: _Request) -> list[Document]:
        if not request["documents"]:
            return []
        return scored(request["documents"], await self._aranking(request["query"], _texts(request), **self._cut()))

    def _cut(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*CUTS, "timeout")}

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        if not _pickles(self.tokenizer):
            logger.warning(
                "%s: its tokenizer cannot be pickled and stays out, so that what is unpickled counts max_tokens with "
                "the reranker's own. Pass a tokenizer's name, or a function of a module, to keep it.",
                type(self).__name__,
            )
            state["__dict__"] = {**state["__dict__"], "tokenizer": None}
        return state


class TamisRerank(TamisModel, Compressor):
    """Reranks documents with Tamis; any number of threads and event loops may share an instance.

    The fields are the arguments of `tamis.load` and of `tamis.Reranker.rank`, or a loaded `reranker=` instead of the
    former. The model reads `page_content`. What comes back are copies, best first, with the score in
    `metadata["relevance_score"]`, a float in [0, 1].
    """

    def _ranking(self, query: str, texts: list[str], **cut: Any) -> Ranking:
        return self.load().rank(query, texts, **cut)

    async def _aranking(self, query: str, texts: list[str], **cut: Any) -> Ranking:
        reranker = await self.aload()
        return await reranker.arank(query, texts, **cut)


class RankRAGCompressor(RankRAGModel, Compressor):
    """The ranking half of a RankRAG model, where a document compressor is wanted.

    The fields are the arguments of `tamis.load_rankrag` and of `tamis.Reranker.rank`, or a loaded `rag=` instead of
    the former; `RankRAG.as_compressor` makes one that shares its model. Documents come back as `TamisRerank` returns
    them.
    """

    def _ranking(self, query: str, texts: list[str], **cut: Any) -> Ranking:
        return self.load().rank(query, texts, task=self.task, **cut)

    async def _aranking(self, query: str, texts: list[str], **cut: Any) -> Ranking:
        rag = await self.aload()
        return await rag.arank(query, texts, task=self.task, **cut)


def _pickles(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001 - whatever an object's own way to be pickled raises
        return False
    return True


def _texts(request: _Request) -> list[str]:
    return [document.page_content for document in request["documents"]]
