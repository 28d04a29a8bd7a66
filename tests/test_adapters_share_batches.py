"""Fifty requests of either framework at once fill the batches of one engine."""

from __future__ import annotations

import asyncio

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever as LangChainRetriever
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode

import tamis
import tiny
from langchain_tamis import TamisRerank as TamisCompressor
from llama_index.postprocessor.tamis import TamisRerank

QUERIES = [f"how is zip archive {number} read?" for number in range(50)]
BUDGET = 1024


def texts(query):
    """Five passages of its own for each query."""
    number = int(query.split()[4])
    return [tiny.text(12, 5 * number + i) for i in range(5)]


class NodeRetriever(BaseRetriever):
    def _retrieve(self, query_bundle):
        return [NodeWithScore(node=TextNode(text=text), score=0.5) for text in texts(query_bundle.query_str)]

    async def _aretrieve(self, query_bundle):
        return self._retrieve(query_bundle)


class DocumentRetriever(LangChainRetriever):
    def _get_relevant_documents(self, query, *, run_manager):
        return [Document(text) for text in texts(query)]

    async def _aget_relevant_documents(self, query, *, run_manager):
        return [Document(text) for text in texts(query)]


@pytest.fixture
def reranker(classifier):
    with tamis.load(classifier("bert"), dtype="float32", batch_tokens=BUDGET) as reranker:
        reranker.rank("warm", ["up"])
        runner = reranker._scorer._lease.loaded.engine._devices[0].runner
        run = runner.run

        def slowly(batch):  # as a real model is, next to which the frameworks' own work is small
            import time

            time.sleep(0.05)
            return run(batch)

        runner.run = slowly
        yield reranker


def full(reranker, before):
    """Tokens of a batch since `before`, as a share of the budget."""
    stats = reranker.stats()
    return (stats["tokens"] - before["tokens"]) / (stats["batches"] - before["batches"]) / BUDGET


def test_llama_index_aquery(reranker):
    synthesizer = get_response_synthesizer(llm=MockLLM(max_tokens=1))
    engine = RetrieverQueryEngine(NodeRetriever(), synthesizer, [TamisRerank(reranker=reranker, top_n=2)])
    before = reranker.stats()

    async def all_at_once():
        return await asyncio.gather(*(engine.aquery(query) for query in QUERIES))

    responses = asyncio.run(all_at_once())
    assert all(len(response.source_nodes) == 2 for response in responses)
    assert full(reranker, before) > 0.5


@pytest.mark.parametrize("way", ["abatch", "batch"])
def test_langchain(reranker, way):
    retriever = ContextualCompressionRetriever(
        base_compressor=TamisCompressor(reranker=reranker, top_n=2), base_retriever=DocumentRetriever()
    )
    before = reranker.stats()
    if way == "abatch":
        found = asyncio.run(retriever.abatch(QUERIES))
    else:
        found = retriever.batch(QUERIES, config={"max_concurrency": 50})
    assert all(len(documents) == 2 for documents in found)
    assert full(reranker, before) > 0.5


def test_both_frameworks_share_one_engine(reranker):
    nodes = TamisRerank(reranker=reranker)
    documents = TamisCompressor(reranker=reranker)
    before = reranker.stats()

    async def all_at_once():
        asked = [
            nodes.apostprocess_nodes(NodeRetriever().retrieve(query), query_str=query) for query in QUERIES[:25]
        ] + [documents.acompress_documents([Document(text) for text in texts(query)], query) for query in QUERIES[25:]]
        return await asyncio.gather(*asked)

    assert [len(found) for found in asyncio.run(all_at_once())] == [5] * 50
    assert full(reranker, before) > 0.5
