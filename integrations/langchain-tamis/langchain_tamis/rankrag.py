"""`RankRAG`: a runnable that ranks documents and answers from the best."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any, Literal, NotRequired

from langchain_core.documents import Document
from langchain_core.messages import MessageLikeRepresentation
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import get_config_list, patch_config
from langchain_core.runnables.utils import AddableDict
from pydantic import Field, field_validator
from typing_extensions import TypedDict  # typing's has no schema in pydantic before Python 3.12

import tamis
from langchain_tamis.chat_history import turns_of
from langchain_tamis.compressor import RankRAGCompressor
from langchain_tamis.documents import scored
from langchain_tamis.model import CONFIG
from langchain_tamis.rankrag_model import RankRAGModel
from tamis.inputs import Cut, check_timeout
from tamis.rankrag.answers import Piece

THREADS = 64  # at most, that `batch` waits on: a thread costs little, and what waits together shares batches
CALL = ("top_k", "min_score", "answer_anyway", "task", "max_new_tokens", "stop", "timeout")


class RankRAGInput(TypedDict):
    """What `RankRAG` reads; other keys are left alone.

    Attributes:
        input: The question.
        context: Documents or texts, in any order.
        chat_history: What was said before the question.
    """

    input: str
    context: Sequence[Document | str]
    chat_history: NotRequired[Sequence[MessageLikeRepresentation] | None]


class RankRAGOutput(TypedDict):
    """What `RankRAG` returns.

    Attributes:
        answer: The answer; empty where nothing relevant was found.
        context: Copies of the documents that it was written from, best first, with `metadata["relevance_score"]`.
        found: Whether there is an answer in the context; only if `extras` asks for it.
        ranking: Copies of all documents that were ranked and kept; only if `extras` asks for it.
    """

    answer: str
    context: list[Document]
    found: NotRequired[bool]
    ranking: NotRequired[list[Document]]


class RankRAG(RankRAGModel, RunnableSerializable[RankRAGInput, RankRAGOutput]):
    """Ranks the documents of a retriever and answers from the best, with one model.

    The fields are the arguments of `tamis.load_rankrag`, or a loaded `rag=` instead of them, and those of its
    `answer`, which `.bind(...)` sets for a call too. Any number of threads and event loops may share an instance.

    >>> from langchain_core.runnables import RunnableLambda, RunnablePassthrough
    >>> retriever = RunnableLambda(lambda question: [Document("a tar file"), Document("how to read a zip archive")])
    >>> chain = RunnablePassthrough.assign(context=(lambda x: x["input"]) | retriever) | RankRAG(top_k=1)

    Attributes:
        top_k: How many documents the answer is written from, at most.
        min_score: Documents below it are not read. Where none is left, no answer is made up: "answer" is empty.
        answer_anyway: Then answer from the best all the same.
        max_new_tokens: Of the answer; the paper's limit for the task if None.
        stop: Strings that end it, besides the wording's own.
        timeout: Seconds after which `tamis.DeadlineExceeded` is raised.
        extras: Keys of `RankRAGOutput` that are wanted besides "answer" and "context".
    """

    model_config = CONFIG

    top_k: int = Field(default=5, strict=True, ge=1)
    min_score: float | None = None
    answer_anyway: bool = False
    max_new_tokens: int | None = Field(default=None, strict=True, ge=1)
    stop: tuple[str, ...] = ()
    timeout: float | None = None
    extras: tuple[Literal["found", "ranking"], ...] = ()

    @field_validator("min_score", mode="before")
    @classmethod
    def _check_min_score(cls, value: Any) -> Any:
        Cut(min_score=value)
        return value

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(value):
            raise tamis.InvalidInput("stop holds an empty string, which would end every answer at once; leave it out.")
        return value

    @field_validator("timeout", mode="before")
    @classmethod
    def _check_timeout(cls, value: Any) -> Any:
        check_timeout(value)
        return value

    def as_compressor(self, **cut: Any) -> RankRAGCompressor:
        """The ranking half as a document compressor, over the same model.

        Args:
            cut: `top_n`, `min_score`, `max_tokens`, `tokenizer` and `timeout` of `RankRAGCompressor`.
        """
        return RankRAGCompressor(**{name: getattr(self, name) for name in RankRAGModel.model_fields}, **cut)

    def invoke(
        self,
        input: RankRAGInput,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> RankRAGOutput:
        """Ranks and answers; the keyword arguments go before the fields of the same names.

        Raises:
            tamis.TamisError: Loading, ranking or answering failed; the message says why.
        """
        return self._call_with_config(self._answer, input, config, **kwargs)

    async def ainvoke(
        self,
        input: RankRAGInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> RankRAGOutput:
        """As `invoke`, from any event loop, without blocking it. Cancelling ends the text where it is."""
        return await self._acall_with_config(self._aanswer, input, config, **kwargs)

    def batch(
        self,
        inputs: list[RankRAGInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[RankRAGOutput]:
        """As `invoke` for each, all under way together unless `max_concurrency` says otherwise."""
        configs = [
            patch_config(one, max_concurrency=one.get("max_concurrency") or min(len(inputs), THREADS))
            for one in get_config_list(config, len(inputs))
        ]
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def stream(
        self,
        input: RankRAGInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """{"context": documents} as soon as they are ranked, then {"answer": piece} for each piece; they add up.

        Closing the iterator ends the text, and frees its place in the batch.
        """
        return self._transform_stream_with_config(iter([input]), self._stream, config, **kwargs)

    async def astream(
        self,
        input: RankRAGInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """As `stream`, from any event loop, without blocking it."""

        async def once() -> AsyncIterator[RankRAGInput]:
            yield input

        transformed: Any = self._atransform_stream_with_config(once(), self._astream, config, **kwargs)  # a generator
        async with aclosing(transformed) as chunks:
            async for chunk in chunks:
                yield chunk

    # -- one call -----------------------------------------------------------------------------------------------------

    def _answer(self, given: Any, **options: Any) -> RankRAGOutput:
        asked = _Asked.of(given)
        return self._output(asked, self.load().answer(asked.question, asked.texts(), **self._call(asked, options)))

    async def _aanswer(self, given: Any, **options: Any) -> RankRAGOutput:
        asked = _Asked.of(given)
        rag = await self.aload()
        return self._output(asked, await rag.aanswer(asked.question, asked.texts(), **self._call(asked, options)))

    def _stream(self, given: Iterator[Any], **options: Any) -> Iterator[Any]:
        asked = _Asked.of(next(given))
        with closing(self.load().stream(asked.question, asked.texts(), **self._call(asked, options))) as pieces:
            for piece in pieces:
                if chunk := self._chunk(asked, piece):
                    yield chunk

    async def _astream(self, given: AsyncIterator[Any], **options: Any) -> AsyncIterator[Any]:
        asked = _Asked.of(await anext(given))
        rag = await self.aload()
        async with aclosing(rag.astream(asked.question, asked.texts(), **self._call(asked, options))) as pieces:
            async for piece in pieces:
                if chunk := self._chunk(asked, piece):
                    yield chunk

    def _call(self, asked: _Asked, options: Mapping[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(options) - set(CALL)):
            raise tamis.InvalidInput(f"A call of RankRAG takes {', '.join(CALL)}, not {', '.join(unknown)}.")
        return {**{name: getattr(self, name) for name in CALL}, **options, "history": asked.history}

    def _output(self, asked: _Asked, answer: tamis.Answer) -> RankRAGOutput:
        output = RankRAGOutput(answer=answer.text, context=scored(asked.documents, answer.contexts))
        return {**output, **self._extras(asked, answer)}  # type: ignore[typeddict-item]

    def _chunk(self, asked: _Asked, piece: Piece) -> AddableDict:
        if piece.contexts is not None:
            return AddableDict(context=scored(asked.documents, piece.contexts))
        if piece.answer is None:
            return AddableDict(answer=str(piece))
        empty = {} if piece.answer.text else {"answer": ""}  # the sum has both keys, whatever was found
        return AddableDict({**empty, **self._extras(asked, piece.answer)})

    def _extras(self, asked: _Asked, answer: tamis.Answer) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        if "found" in self.extras:
            extras["found"] = answer.found
        if "ranking" in self.extras:
            extras["ranking"] = scored(asked.documents, answer.ranking)
        return extras


@dataclass(frozen=True, slots=True)
class _Asked:
    """One input, checked."""

    question: str
    documents: list[Document]
    history: list[tuple[str, str]]

    @classmethod
    def of(cls, given: Any) -> _Asked:
        """See `RankRAGInput`.

        Raises:
            tamis.InvalidInput: It is something else.
        """
        if not isinstance(given, Mapping):
            raise tamis.InvalidInput(
                f'RankRAG was given a {type(given).__name__}; pass a dict with "input", the question, and "context", '
                'the documents: RunnablePassthrough.assign(context=(lambda x: x["input"]) | retriever) makes one.'
            )
        for key, what in (("input", "the question"), ("context", "a list of documents")):
            if key not in given:
                raise tamis.InvalidInput(f"RankRAG was given {sorted(map(str, given))}; it needs {key!r}, {what}.")
        question, context = given["input"], given["context"]
        if not isinstance(question, str):
            raise tamis.InvalidInput(f'"input" is a {type(question).__name__}; pass the question as a str.')
        if isinstance(context, str | bytes | Mapping | Document) or not isinstance(context, Iterable):
            raise tamis.InvalidInput(f'"context" is a {type(context).__name__}; pass a list of Document or str.')
        documents = [_document(number, one) for number, one in enumerate(context)]
        return cls(question, documents, turns_of(given.get("chat_history")))

    def texts(self) -> list[str]:
        """What the model reads."""
        return [document.page_content for document in self.documents]


def _document(number: int, given: Any) -> Document:
    if isinstance(given, Document):
        return given
    if isinstance(given, str):
        return Document(given)
    raise tamis.InvalidInput(f"context[{number}] is a {type(given).__name__}; pass a Document or a str.")
