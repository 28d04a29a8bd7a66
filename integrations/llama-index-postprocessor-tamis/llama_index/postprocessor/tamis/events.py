"""What LlamaIndex's two tracing systems, callbacks and dispatcher, are told of a ranking and of a synthesis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.instrumentation.events.synthesis import SynthesizeEndEvent, SynthesizeStartEvent
from llama_index.core.schema import NodeWithScore, QueryBundle

dispatcher = get_dispatcher(__name__)


@contextmanager
def reported(
    callbacks: CallbackManager, model: str, nodes: list[NodeWithScore], query: QueryBundle, top_n: int | None
) -> Iterator[list[NodeWithScore]]:
    """Sends both kinds of events around a ranking; what is put into the list that it yields is the outcome.

    They are sent from the caller's thread: a worker of the engine knows nothing of the caller's span.
    """
    ranked: list[NodeWithScore] = []
    limit = len(nodes) if top_n is None else top_n  # the event takes an int only
    payload: dict[str, Any] = {
        EventPayload.NODES: nodes,
        EventPayload.MODEL_NAME: model,
        EventPayload.QUERY_STR: query.query_str,
        EventPayload.TOP_K: limit,
    }
    with callbacks.event(CBEventType.RERANKING, payload=payload) as event:
        dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=limit, model_name=model))
        try:
            yield ranked
        finally:
            dispatcher.event(ReRankEndEvent(nodes=ranked))
        event.on_end(payload={EventPayload.NODES: ranked})


@contextmanager
def synthesis_reported(
    callbacks: CallbackManager, query: QueryBundle
) -> Iterator[Callable[[RESPONSE_TYPE], RESPONSE_TYPE]]:
    """Sends both kinds of events around a synthesis; what it yields takes the response, and gives it back."""
    dispatcher.event(SynthesizeStartEvent(query=query))
    responses: list[RESPONSE_TYPE] = []

    def out(response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        responses.append(response)
        return response

    payload: dict[str, Any] = {EventPayload.QUERY_STR: query.query_str}
    with callbacks.event(CBEventType.SYNTHESIZE, payload=payload) as event:
        yield out
        event.on_end(payload={EventPayload.RESPONSE: responses[0]})
    dispatcher.event(SynthesizeEndEvent(query=query, response=responses[0]))
