"""`RankRAGSynthesizer`: one model ranks the retrieved nodes and answers from the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from inspect import signature
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import RESPONSE_TYPE, AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices.prompt_helper import ChatPromptHelper, PromptHelper
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, QueryType, TextNode

import tamis
from llama_index.postprocessor.tamis.events import reported, synthesis_reported
from llama_index.postprocessor.tamis.llm import RankRAGLLM, turns_of
from llama_index.postprocessor.tamis.llm_arguments import checked_stop
from llama_index.postprocessor.tamis.nodes import checked, ranked_before, rescored, texts_of
from llama_index.postprocessor.tamis.streams import Finish, astreamed_text, streamed_text
from tamis.inputs import Cut, check_query, check_timeout
from tamis.rankrag.answers import AnswerUsage

if TYPE_CHECKING:
    from tamis.rankrag.rag import RankRAG

_ARGUMENTS = frozenset(signature(BaseSynthesizer.__init__).parameters)  # they grew during 0.14


class RankRAGSynthesizer(BaseSynthesizer):
    """Ranks the nodes it is given with a RankRAG model, and answers from the best of them with the same.

    The source nodes of a response are those that its text was written from, best first: copies with the model's
    p(True) as score, a float. The given nodes are never changed. The response's metadata has, beside what LlamaIndex
    puts there,

    - "found": whether there is an answer in the nodes: False where the model says that there is none, and where no
      node is good enough to be read, for which the text is LlamaIndex's empty response;
    - "scores": of all nodes that were ranked, by node id, best first;
    - "truncated": ids of the source nodes of which the model read a part;
    - "usage": tokens, as in `tamis.rankrag.answers.AnswerUsage`.

    "found" and "usage" of a streamed response are there when the stream has ended.

    Nothing is ranked twice. What `TamisRerank(mode="rankrag")` or a synthesizer returns carries the mark of its
    ranking: the model and its settings, the question, the text. Where every node has a mark that fits, the answer is
    written from that ranking; postprocessors in between may drop nodes, reorder them or score them anew. A node that
    was built anew or whose text has changed has none, and then all are ranked.

    The model is loaded by the first call, never before. Any number of threads and event loops may share one.

    Args:
        rag: What `tamis.load_rankrag` returned.
        llm: Instead, a `RankRAGLLM` whose model is shared.
        top_k: How many nodes are read for the answer, at most.
        min_score: Nodes below it are not read.
        answer_anyway: Where that leaves none, answer from the best all the same.
        task: "short", "full", "claim" or "conversation", as in `tamis.load_rankrag`.
        max_new_tokens: Of the answer; the paper's limit for the task if None.
        stop: Strings that end it.
        timeout: Seconds after which a call raises `tamis.DeadlineExceeded`; for the ranking, and for the answer.
        metadata_mode: Which metadata the model reads with a node's text.
        keep_retrieval_score: As in `TamisRerank`.
        streaming: Return streaming responses.
        empty_response: The text where there is nothing to answer from.
        callback_manager: LlamaIndex's.
        load: Instead of `rag` and `llm`, the arguments of `tamis.load_rankrag`.

    Raises:
        tamis.InvalidInput: An argument means nothing to the model; no query. It is a `ValueError`.
        tamis.TamisError: From the first call: the model cannot be loaded, as `tamis.load_rankrag` says.
    """

    def __init__(
        self,
        rag: RankRAG | None = None,
        *,
        llm: RankRAGLLM | None = None,
        top_k: int = 5,
        min_score: float | None = None,
        answer_anyway: bool = False,
        task: str | None = None,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
        timeout: float | None = None,
        metadata_mode: MetadataMode = MetadataMode.EMBED,
        keep_retrieval_score: bool = False,
        streaming: bool = False,
        empty_response: str | None = None,
        callback_manager: CallbackManager | None = None,
        **load: Any,
    ) -> None:
        Cut(top_n=top_k, min_score=min_score)
        check_timeout(timeout)
        self._model = _model(rag, llm, task, load)
        # Helpers of its own: the base class would make some from the model's length, which only a load can tell.
        helpers: dict[str, Any] = {"prompt_helper": PromptHelper()}
        if "chat_prompt_helper" in _ARGUMENTS:
            helpers["chat_prompt_helper"] = ChatPromptHelper()
        super().__init__(
            llm=self._model,
            callback_manager=callback_manager,
            streaming=streaming,
            empty_response=empty_response,
            **helpers,
        )
        self._task = task
        self._timeout = timeout
        self._options: dict[str, Any] = {
            "task": task, "timeout": timeout, "top_k": top_k, "min_score": min_score, "answer_anyway": answer_anyway,
            "max_new_tokens": max_new_tokens, "stop": checked_stop(stop),
        }  # fmt: skip
        self._metadata_mode = MetadataMode(metadata_mode)
        self._keep_retrieval_score = keep_retrieval_score

    @property
    def llm(self) -> RankRAGLLM:
        """A language model over the same RankRAG model; `llm.load()` and `await llm.aload()` load it."""
        return self._model

    def synthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """Ranks and answers.

        Args:
            query: The question.
            nodes: In any order; where there are none, no model is asked.
            additional_source_nodes: Put behind the source nodes, unread.
            response_kwargs: `chat_history`: messages before the question, of the user and the assistant in turn.
        """
        asked = self._asked(query, nodes, additional_source_nodes, **response_kwargs)
        if not nodes:
            return _of_nothing(super().synthesize(asked.query, nodes))
        with synthesis_reported(self._callback_manager, asked.query) as out:
            rag, ranking = self._ranked(asked)
            if self._streaming:
                pieces = rag.stream(asked.question, ranking, history=asked.history, **self._options)
                about = self._about(asked, rag, ranking, next(pieces).contexts or ())
                text = streamed_text(pieces, self._finish(about["metadata"], ranking))
                return out(StreamingResponse(text, **about))
            answer = rag.answer(asked.question, ranking, history=asked.history, **self._options)
            about = self._about(asked, rag, ranking, answer.contexts)
            about["metadata"].update(_outcome(answer, ranking))
            return out(Response(answer.text or self._empty_response, **about))

    async def asynthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """As `synthesize`, without blocking the event loop. Cancelling ends the text where it is."""
        asked = self._asked(query, nodes, additional_source_nodes, **response_kwargs)
        if not nodes:
            return _of_nothing(await super().asynthesize(asked.query, nodes))
        with synthesis_reported(self._callback_manager, asked.query) as out:
            rag, ranking = await self._aranked(asked)
            if self._streaming:
                pieces = rag.astream(asked.question, ranking, history=asked.history, **self._options)
                about = self._about(asked, rag, ranking, (await anext(pieces)).contexts or ())
                text = astreamed_text(pieces, self._finish(about["metadata"], ranking))
                return out(AsyncStreamingResponse(text, **about))
            answer = await rag.aanswer(asked.question, ranking, history=asked.history, **self._options)
            about = self._about(asked, rag, ranking, answer.contexts)
            about["metadata"].update(_outcome(answer, ranking))
            return out(Response(answer.text or self._empty_response, **about))

    def get_response(self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any) -> Any:
        """The answer's text alone, or its pieces."""
        response: Any = self.synthesize(query_str, _nodes(text_chunks), **response_kwargs)
        return response.response_gen if self._streaming else response.response

    async def aget_response(self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any) -> Any:
        """As `get_response`."""
        response: Any = await self.asynthesize(query_str, _nodes(text_chunks), **response_kwargs)
        return response.response_gen if self._streaming else response.response

    def _get_prompts(self) -> PromptDictType:
        return {}  # the model was tuned on its prompts: they are its wording's

    def _update_prompts(self, prompts: PromptDictType) -> None:
        pass

    # -- one call -----------------------------------------------------------------------------------------------------

    def _asked(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        more: Sequence[NodeWithScore] | None,
        chat_history: Sequence[ChatMessage] = (),
        **unknown: Any,
    ) -> _Asked:
        if unknown:
            raise tamis.InvalidInput(f"A call of RankRAGSynthesizer takes chat_history, not {', '.join(unknown)}.")
        bundle = checked(nodes, QueryBundle(query) if isinstance(query, str) else query)
        if nodes:
            check_query(bundle.query_str)
        texts = texts_of(nodes, self._metadata_mode)
        return _Asked(bundle, nodes, texts, list(more or ()), turns_of(chat_history))

    def _ranked(self, asked: _Asked) -> tuple[RankRAG, tamis.Ranking]:
        rag = self._model.load()
        signature = self._signature(asked, rag)
        ranking = ranked_before(asked.nodes, asked.texts, signature, rag.model)
        if ranking is None:
            with reported(self._callback_manager, rag.model, asked.nodes, asked.query, None) as ranked:
                ranking = rag.rank(
                    asked.question, asked.texts, task=self._task, history=asked.history, timeout=self._timeout
                )
                ranked += self._sources(asked, ranking, signature)
        return rag, ranking

    async def _aranked(self, asked: _Asked) -> tuple[RankRAG, tamis.Ranking]:
        rag = await self._model.aload()
        signature = self._signature(asked, rag)
        ranking = ranked_before(asked.nodes, asked.texts, signature, rag.model)
        if ranking is None:
            with reported(self._callback_manager, rag.model, asked.nodes, asked.query, None) as ranked:
                ranking = await rag.arank(
                    asked.question, asked.texts, task=self._task, history=asked.history, timeout=self._timeout
                )
                ranked += self._sources(asked, ranking, signature)
        return rag, ranking

    def _signature(self, asked: _Asked, rag: RankRAG) -> str:
        return rag.signature(asked.question, task=self._task, history=asked.history)

    def _sources(self, asked: _Asked, hits: Sequence[tamis.Hit], signature: str) -> list[NodeWithScore]:
        return rescored(asked.nodes, hits, signature, keep_retrieval_score=self._keep_retrieval_score)

    def _about(
        self, asked: _Asked, rag: RankRAG, ranking: tamis.Ranking, contexts: Sequence[tamis.Hit]
    ) -> dict[str, Any]:
        """What a response says besides its text."""
        ranked = {hit.index: hit for hit in ranking}  # as it was ranked: the answer may be written from less of a text
        read = [ranked[hit.index] for hit in contexts]
        sources = self._sources(asked, read, self._signature(asked, rag)) + asked.more
        metadata = {
            **(self._get_metadata_for_response([source.node for source in sources]) or {}),
            "scores": {asked.nodes[hit.index].node_id: float(hit.score) for hit in ranking},
            "truncated": [asked.nodes[hit.index].node_id for hit in contexts if hit.truncated],
        }
        return {"source_nodes": sources, "metadata": metadata}

    def _finish(self, metadata: dict[str, Any], ranking: tamis.Ranking) -> Finish:
        """What is done when a streamed text has ended."""

        def finish(answer: tamis.Answer) -> str:
            metadata.update(_outcome(answer, ranking))
            return "" if answer.text else self._empty_response

        return finish


@dataclass(frozen=True, slots=True)
class _Asked:
    """One call, checked."""

    query: QueryBundle
    nodes: list[NodeWithScore]
    texts: list[str]
    more: list[NodeWithScore]
    history: list[tuple[str, str]]

    @property
    def question(self) -> str:
        return self.query.query_str


def _model(rag: RankRAG | None, llm: RankRAGLLM | None, task: str | None, load: Mapping[str, Any]) -> RankRAGLLM:
    if llm is None:
        own = task is None or rag is not None  # a wording may have tasks of its own, which rag knows
        chosen: dict[str, Any] = {} if own else {"task": task}
        return RankRAGLLM(rag=rag, **chosen, **load)
    if not isinstance(llm, RankRAGLLM):
        raise tamis.InvalidInput(f"llm= is a {type(llm).__name__}; a RankRAG model ranks too: pass a RankRAGLLM.")
    if rag is not None or load:
        raise tamis.InvalidInput("llm= brings its model; leave rag= and what would load another out.")
    return llm.model_copy()  # LlamaIndex assigns callback managers


def _nodes(chunks: Sequence[str]) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=chunk)) for chunk in chunks]


def _of_nothing(response: RESPONSE_TYPE) -> RESPONSE_TYPE:
    """LlamaIndex's response where there are no nodes, with the keys that any other has."""
    response.metadata = {"scores": {}, "truncated": [], "found": False, "usage": asdict(AnswerUsage())}
    return response


def _outcome(answer: tamis.Answer, ranking: tamis.Ranking) -> dict[str, Any]:
    """What is known when the text is."""
    usage = replace(answer.usage, ranking_tokens=ranking.usage.tokens)
    return {"found": answer.found, "usage": asdict(usage)}
