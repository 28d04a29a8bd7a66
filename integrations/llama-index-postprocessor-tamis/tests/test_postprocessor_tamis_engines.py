"""End to end: every way in which LlamaIndex reaches a postprocessor, offline."""

import asyncio
import re
import time
from pathlib import Path

import pytest
from llama_index.core import VectorStoreIndex, get_response_synthesizer
from llama_index.core.async_utils import asyncio_run
from llama_index.core.base.base_selector import BaseSelector, MultiSelection, SingleSelection
from llama_index.core.callbacks import CallbackManager, CBEventType
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.indices.query.query_transform.base import IdentityQueryTransform
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import RetrieverQueryEngine, RouterQueryEngine, TransformQueryEngine
from llama_index.core.response_synthesizers import ResponseMode, TreeSummarize
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.tools import QueryEngineTool, RetrieverTool

from llama_index.postprocessor.tamis import TamisRerank
from standstill import watched


class Fixed(BaseRetriever):
    """Always retrieves the same nodes, as fresh objects, as stores do."""

    def __init__(self, nodes):
        super().__init__()
        self.nodes = nodes

    def _retrieve(self, query_bundle):
        return [node.model_copy() for node in self.nodes]


class Both(BaseSelector):
    """Routes every query to every engine."""

    def _select(self, choices, query):
        return MultiSelection(selections=[SingleSelection(index=i, reason="all") for i in range(len(choices))])

    async def _aselect(self, choices, query):
        return self._select(choices, query)

    def _get_prompts(self):
        return {}

    def _update_prompts(self, prompts):
        pass


@pytest.fixture
def retriever(nodes):
    return Fixed(nodes)


@pytest.fixture
def engine(retriever):
    def make(rerank, **kwargs):
        synthesizer = get_response_synthesizer(llm=MockLLM(), response_mode=ResponseMode.COMPACT)
        return RetrieverQueryEngine(retriever, response_synthesizer=synthesizer, node_postprocessors=[rerank], **kwargs)

    return make


def ids(response):
    return [node.node_id for node in response.source_nodes]


def ways(events):
    """The methods of TamisRerank that were reached, from the spans of its events."""
    return {re.search(r"\._(a?postprocess)_nodes", event.span_id)[1] for event in events.named("ReRankStartEvent")}


async def test_query_engine(engine, query, best_first, events):
    query_engine = engine(TamisRerank(mode="lexical", top_n=2))
    assert ids(query_engine.query(query)) == best_first[:2]
    assert ways(events) == {"postprocess"}
    events.events.clear()
    response = await query_engine.aquery(query)
    assert ids(response) == best_first[:2]
    assert ways(events) == {"apostprocess"}
    text = str(response)
    assert "page: 3" in text
    assert "retrieval_score" not in text


async def test_query_engine_over_a_vector_index(nodes, query, best_first):
    index = VectorStoreIndex(nodes=[node.node for node in nodes], embed_model=MockEmbedding(embed_dim=8))
    rerank = TamisRerank(mode="lexical", top_n=2, keep_retrieval_score=True)
    query_engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=4, node_postprocessors=[rerank])
    response = await query_engine.aquery(query)
    assert ids(response) == best_first[:2]
    assert "retrieval_score" not in str(response)
    assert all("retrieval_score" in node.metadata for node in response.source_nodes)
    stored = index.docstore.docs.values()
    assert not any("retrieval_score" in node.metadata for node in stored)


async def test_nothing_good_enough_is_an_empty_response(engine, query):
    query_engine = engine(TamisRerank(mode="lexical", min_score=1.0))
    assert str(query_engine.query(query)) == str(await query_engine.aquery(query)) == "Empty Response"


async def test_the_engines_trace_has_the_reranking(engine, query, events, spans, callbacks):
    query_engine = engine(TamisRerank(mode="lexical"), callback_manager=CallbackManager([callbacks]))
    await query_engine.aquery(query)
    (rerank,) = [span for span in spans.completed_spans if span.id_.startswith("TamisRerank.")]
    (parent,) = [span for span in spans.completed_spans if span.id_ == rerank.parent_id]
    assert parent.id_.startswith("RetrieverQueryEngine._aquery-")
    assert CBEventType.RERANKING in [what for _, what, _ in callbacks.seen]


@pytest.mark.parametrize("kind", [ContextChatEngine, CondensePlusContextChatEngine])
async def test_chat_engines(kind, retriever, query, best_first, events):
    chat = kind.from_defaults(
        retriever=retriever,
        llm=MockLLM(),
        memory=ChatMemoryBuffer.from_defaults(token_limit=4000),
        node_postprocessors=[TamisRerank(mode="lexical", top_n=2)],
    )
    assert ids(await chat.achat(query)) == best_first[:2]
    assert ways(events) == {"apostprocess"}
    assert ids(await asyncio.to_thread(chat.chat, query)) == best_first[:2]
    assert ways(events) == {"apostprocess", "postprocess"}


async def test_tools(engine, retriever, query, best_first, events):
    tool = QueryEngineTool.from_defaults(engine(TamisRerank(mode="lexical", top_n=2)))
    assert ids((await tool.acall(query)).raw_output) == best_first[:2]
    retrieving = RetrieverTool.from_defaults(retriever, node_postprocessors=[TamisRerank(mode="lexical", top_n=2)])
    assert [node.node_id for node in (await retrieving.acall(query)).raw_output] == best_first[:2]
    assert ways(events) == {"apostprocess"}
    assert ids(tool.call(query).raw_output) == best_first[:2]


async def test_router_and_transform(engine, query, best_first, events):
    rerank = TamisRerank(mode="lexical", top_n=1)
    tools = [
        QueryEngineTool.from_defaults(engine(rerank), description="one"),
        QueryEngineTool.from_defaults(
            TransformQueryEngine(engine(rerank), IdentityQueryTransform()), description="other"
        ),
    ]
    router = RouterQueryEngine(Both(), tools, llm=MockLLM(), summarizer=TreeSummarize(llm=MockLLM()))
    assert ids(await router.aquery(query)) == best_first[:1] * 2
    assert ways(events) == {"apostprocess"}


async def test_evaluator_calls_sync_inside_the_running_loop(retriever, query, best_first, fake, gate, events):
    """The loop's own thread waits: what it waits for must not need that loop."""
    evaluator = RetrieverEvaluator.from_metric_names(
        ["mrr"], retriever=retriever, node_postprocessors=[TamisRerank(mode="lexical", top_n=2)]
    )
    result = await evaluator.aevaluate(query, expected_ids=best_first[:1])
    assert result.retrieved_ids == best_first[:2]
    assert result.metric_vals_dict == {"mrr": 1.0}
    waiting = TamisRerank(reranker=fake(before=gate(1))[1])
    assert len(waiting.postprocess_nodes(retriever.nodes, query_str=query)) == 4
    assert ways(events) == {"postprocess"}


async def test_a_second_loop_while_the_first_is_blocked(retriever, query, fake, gate):
    """LlamaIndex's asyncio_run blocks the running loop and goes on in a new one."""
    rerank = TamisRerank(reranker=fake(before=gate(1))[1])
    await rerank.apostprocess_nodes(retriever.nodes, query_str=query)
    rerank = TamisRerank(reranker=fake(before=gate(1))[1])
    assert len(asyncio_run(rerank.apostprocess_nodes(retriever.nodes, query_str=query))) == 4


def test_an_instance_shared_by_two_engines_has_the_last_ones_callbacks(engine, query, callbacks):
    rerank = TamisRerank(mode="lexical")
    first = engine(rerank, callback_manager=CallbackManager([callbacks]))
    own = engine(rerank.model_copy(), callback_manager=CallbackManager())
    assert own is not first
    first.query(query)
    assert CBEventType.RERANKING in [what for _, what, _ in callbacks.seen]
    engine(rerank, callback_manager=CallbackManager())
    callbacks.seen.clear()
    first.query(query)
    assert CBEventType.RERANKING not in [what for _, what, _ in callbacks.seen]


async def test_fifty_queries_wait_together_and_block_no_loop(engine, query, fake, gate):
    """All fifty reach the scorer before the first is answered, which a pool of threads would not let them."""
    together = gate(50, hold=0.4)
    scorer, reranker = fake(before=together)
    query_engine = engine(TamisRerank(reranker=reranker, top_n=2))
    async with watched() as seen:
        responses = await asyncio.gather(*(query_engine.aquery(f"{query} {i}") for i in range(50)))
    assert {len(response.source_nodes) for response in responses} == {2}
    assert len(together.waiting) == 50
    assert {seen for seen, _ in scorer.seen} == {f"{query} {i}" for i in range(50)}
    # Answering takes the loop's own time; what counts is the time in which only the scorer was at work.
    start, end = together.closed_at + 0.05, together.opened_at
    assert sum(start <= tick <= end for tick in seen.loop) > 10
    assert seen.held(start, end) < 0.05


async def test_a_scorer_that_computes_blocks_no_loop(retriever, query, fake):
    rerank = TamisRerank(reranker=fake(before=lambda: time.sleep(0.3))[1])
    async with watched() as seen:
        assert len(await rerank.apostprocess_nodes(retriever.nodes, query_str=query)) == 4
    assert seen.held() < 0.05


def test_readme_runs(capsys):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL):
        exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.endswith(" How to read a zip archive in Python.\n")
