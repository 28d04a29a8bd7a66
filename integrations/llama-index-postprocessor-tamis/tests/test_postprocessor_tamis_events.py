"""What tracing sees of a call: both kinds of events, and the span, whatever becomes of it."""

import asyncio
import json

import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload

import tamis
from llama_index.postprocessor.tamis import TamisRerank

SPANS = {"sync": "TamisRerank._postprocess_nodes-", "async": "TamisRerank._apostprocess_nodes-"}


@pytest.fixture(params=["sync", "async"])
def kind(request):
    return request.param


@pytest.fixture
def call(kind):
    def run(rerank, nodes, query):
        if kind == "sync":
            return rerank.postprocess_nodes(nodes, query_str=query)
        return asyncio.run(rerank.apostprocess_nodes(nodes, query_str=query))

    return run


def only(items):
    (item,) = items
    return item


@pytest.mark.parametrize("top_n", [None, 2])
def test_events(call, kind, nodes, query, events, spans, callbacks, top_n):
    before = [node.model_copy() for node in nodes]
    rerank = TamisRerank(mode="lexical", top_n=top_n, callback_manager=CallbackManager([callbacks]))
    ranked = call(rerank, nodes, query)

    start, end = events.named("ReRankStartEvent", "ReRankEndEvent")
    assert (start.class_name(), end.class_name()) == ("ReRankStartEvent", "ReRankEndEvent")
    assert start.query.query_str == query
    assert (start.top_n, start.model_name) == (top_n or 4, "bm25")
    assert start.nodes == before, "a late exporter sees the retriever's scores"
    assert end.nodes == ranked

    span = only(s for s in spans.completed_spans if s.id_.startswith(SPANS[kind]))
    assert start.span_id == end.span_id == span.id_
    assert not spans.open_spans

    (_, _, asked), (_, _, answered) = callbacks.seen
    assert [(when, what) for when, what, _ in callbacks.seen] == [
        ("start", CBEventType.RERANKING),
        ("end", CBEventType.RERANKING),
    ]
    assert asked == {
        EventPayload.NODES: nodes,
        EventPayload.MODEL_NAME: "bm25",
        EventPayload.QUERY_STR: query,
        EventPayload.TOP_K: top_n or 4,
    }
    assert answered == {EventPayload.NODES: ranked}


def test_a_failing_reranker_ends_its_events(call, kind, nodes, query, fake, events, spans, callbacks):
    def fail():
        raise RuntimeError("out of order")

    rerank = TamisRerank(reranker=fake(before=fail)[1], callback_manager=CallbackManager([callbacks]))
    with pytest.raises(RuntimeError, match="out of order") as caught:
        call(rerank, nodes, query)
    start, end = events.named("ReRankStartEvent", "ReRankEndEvent")
    assert (len(start.nodes), end.nodes) == (4, [])
    span = only(s for s in spans.dropped_spans if s.id_.startswith(SPANS[kind]))
    assert span.metadata == {"error": "out of order"}
    assert only(events.named("SpanDropEvent")).err_str == "out of order"
    assert [when for when, _, _ in callbacks.seen] == ["start", "end"]
    assert callbacks.seen[1][2] == {EventPayload.EXCEPTION: caught.value}


def test_nan_ends_its_events(call, nodes, query, fake, events):
    with pytest.raises(tamis.InvalidScore, match="fake returned nan"):
        call(TamisRerank(reranker=fake(logit=lambda _: float("nan"))[1]), nodes, query)
    assert [event.class_name() for event in events.named("ReRankStartEvent", "ReRankEndEvent")] == [
        "ReRankStartEvent",
        "ReRankEndEvent",
    ]


async def test_a_cancelled_call_ends_its_events(nodes, query, fake, gate, events, callbacks):
    rerank = TamisRerank(reranker=fake(before=gate(2))[1], callback_manager=CallbackManager([callbacks]))
    task = asyncio.create_task(rerank.apostprocess_nodes(nodes, query_str=query))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(events.named("ReRankStartEvent")) == 1
    assert only(events.named("ReRankEndEvent")).nodes == []
    assert [when for when, _, _ in callbacks.seen] == ["start", "end"]


@pytest.mark.parametrize("what", ["no query", "empty query", "blank query", "bare node", "no nodes", "no model"])
def test_a_refused_call_sends_no_events(call, nodes, query, events, callbacks, what):
    rerank = TamisRerank(mode="lexical", callback_manager=CallbackManager([callbacks]))
    if what == "no nodes":
        assert call(rerank, [], query) == []
    else:
        if what == "no model":
            rerank.model, rerank.mode = "/no/such/folder", None
        asked = {"no query": None, "empty query": "", "blank query": " \n"}.get(what, query)
        with pytest.raises(tamis.TamisError):
            call(rerank, [nodes[0].node] if what == "bare node" else nodes, asked)
    assert not events.named("ReRankStartEvent", "ReRankEndEvent")
    assert not callbacks.seen


async def test_events_belong_to_their_callers_spans(nodes, query, fake, gate, events, spans):
    """A worker thread has no span, and concurrent calls must not get one another's."""
    rerank = TamisRerank(reranker=fake(before=gate(8))[1])
    await asyncio.gather(*(rerank.apostprocess_nodes(nodes, query_str=f"{query} {i}") for i in range(8)))
    starts = {event.span_id: event.query.query_str for event in events.named("ReRankStartEvent")}
    assert len(starts) == 8
    assert starts.keys() == {event.span_id for event in events.named("ReRankEndEvent")}
    assert starts.keys() == {span.id_ for span in spans.completed_spans}


def test_events_can_be_exported_as_json(call, nodes, query, fake, events):
    ranked = call(TamisRerank(reranker=fake()[1]), nodes, query)
    start, end = [json.loads(event.model_dump_json()) for event in events.named("ReRankStartEvent", "ReRankEndEvent")]
    assert [node["score"] for node in start["nodes"]] == [node.score for node in nodes]
    assert [node["score"] for node in end["nodes"]] == [node.score for node in ranked]
