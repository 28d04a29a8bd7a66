"""`TamisRerank` where LangChain calls it: retrievers, pipelines, chains, tracers, threads and event loops."""

import asyncio
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.documents import BaseDocumentTransformer, Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.runnables import ConfigurableField, RunnablePassthrough, RunnableSerializable
from langchain_core.vectorstores import InMemoryVectorStore

import tamis
from langchain_tamis import TamisRerank
from standstill import watched

BEST = ["weighs 2 grams", "weighs 1 gram"]


def texts(documents):
    return [document.page_content for document in documents]


@pytest.fixture
def retriever(reranker, fixed_retriever):
    return ContextualCompressionRetriever(
        base_compressor=TamisRerank(reranker=reranker, top_n=2), base_retriever=fixed_retriever
    )


async def test_invoke_ainvoke_batch_abatch(retriever):
    assert texts(retriever.invoke("q")) == BEST
    assert texts(await retriever.ainvoke("q")) == BEST
    queries = [f"q{i}" for i in range(8)]
    assert [texts(found) for found in await asyncio.to_thread(retriever.batch, queries)] == [BEST] * 8
    assert [texts(found) for found in await retriever.abatch(queries)] == [BEST] * 8


def test_over_a_vector_store():
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents([Document("a tar file", id="1"), Document("read a zip archive", id="2"), Document("", id="3")])
    retriever = ContextualCompressionRetriever(
        base_compressor=TamisRerank(mode="lexical", top_n=1), base_retriever=store.as_retriever(search_kwargs={"k": 3})
    )
    [best] = retriever.invoke("zip archive")
    assert best.id == "2"
    assert "relevance_score" not in store.get_by_ids(["2"])[0].metadata


async def test_nothing_found(reranker, fixed_retriever, retriever):
    fixed_retriever.documents = []
    assert retriever.invoke("q") == []
    assert await retriever.ainvoke("q") == []


async def test_pipeline_hands_its_callbacks_on(reranker, documents, recorder):
    class Shout(BaseDocumentTransformer):
        def transform_documents(self, documents, **kwargs):
            return [
                document.model_copy(update={"page_content": document.page_content.upper()}) for document in documents
            ]

    pipeline = DocumentCompressorPipeline(
        transformers=[TamisRerank(reranker=reranker), Shout(), TamisRerank(reranker=reranker, top_n=1)]
    )
    assert texts(pipeline.compress_documents(documents, "q", callbacks=[recorder])) == ["WEIGHS 2 GRAMS"]
    assert texts(await pipeline.acompress_documents(documents, "q", callbacks=[recorder])) == ["WEIGHS 2 GRAMS"]
    assert len(recorder.named("TamisRerank")) == 4


@pytest.mark.parametrize("native", [False, True])
async def test_a_child_run_in_traces(retriever, recorder, native):
    config = {"callbacks": [recorder]}
    found = await retriever.ainvoke("q", config) if native else retriever.invoke("q", config)
    [parent] = recorder.named("ContextualCompressionRetriever")
    [run] = recorder.named("TamisRerank").values()
    assert run["parent"] == parent
    assert run["inputs"]["query"] == "q"
    assert texts(run["inputs"]["documents"])[0] == "weighs 1 gram"
    assert "relevance_score" not in run["inputs"]["documents"][0].metadata  # nothing was changed after the fact
    assert run["outputs"] == found


@pytest.mark.parametrize("native", [False, True])
async def test_an_error_is_traced_and_raised_as_it_is(reranker, recorder, native):
    rerank = TamisRerank(reranker=reranker)
    arguments = {"documents": [Document("nan")], "query": "q", "callbacks": [recorder]}
    if native:
        with pytest.raises(tamis.InvalidScore) as raised:
            await rerank.acompress_documents(**arguments)
    else:
        with pytest.raises(tamis.InvalidScore) as raised:
            rerank.compress_documents(**arguments)
    [run] = recorder.named("TamisRerank").values()
    assert run["error"] is raised.value


async def test_in_a_chain(retriever):
    chain = RunnablePassthrough.assign(context=(lambda x: x["input"]) | retriever) | (lambda x: texts(x["context"]))
    assert chain.invoke({"input": "q"}) == BEST
    assert await chain.ainvoke({"input": "q"}) == BEST


async def test_fifty_at_once_wait_together_and_never_block_the_loop(number_scorer, fixed_retriever):
    gaps = []
    for _ in range(3):  # the machine may be busy too: the loop is blocked only if it is every time
        scorer = number_scorer(together=50, hold=0.2)
        retriever = ContextualCompressionRetriever(
            base_compressor=TamisRerank(reranker=tamis.Reranker(scorer), top_n=2), base_retriever=fixed_retriever
        )
        async with watched() as seen:
            batch = asyncio.ensure_future(retriever.abatch([f"q{i}" for i in range(50)]))
            await asyncio.wait_for(asyncio.to_thread(scorer.released.wait), 30)
            start = time.perf_counter()
            await asyncio.wait([asyncio.wrap_future(scorer.waiting[0])])
            end = time.perf_counter()
        gaps.append(seen.held(start, end))
        assert [texts(found) for found in await batch] == [BEST] * 50
        assert len(scorer.requests) == 50
    assert min(gaps) < 0.05


async def test_cancelling_withdraws_the_request(number_scorer, fixed_retriever):
    scorer = number_scorer(together=2)
    retriever = ContextualCompressionRetriever(
        base_compressor=TamisRerank(reranker=tamis.Reranker(scorer)), base_retriever=fixed_retriever
    )
    task = asyncio.ensure_future(retriever.ainvoke("q"))
    while not scorer.waiting:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance(scorer.waiting[0].exception(timeout=10), CancelledError)


async def test_sync_inside_a_running_loop(number_scorer, fixed_retriever):
    scorer = number_scorer(together=1, hold=0.01)
    retriever = ContextualCompressionRetriever(
        base_compressor=TamisRerank(reranker=tamis.Reranker(scorer), top_n=2), base_retriever=fixed_retriever
    )
    assert texts(retriever.invoke("q")) == BEST


def test_one_instance_on_many_loops(number_scorer, documents):
    rerank = TamisRerank(reranker=tamis.Reranker(number_scorer(together=6, hold=0.01)), top_n=2)

    async def two():
        return await asyncio.gather(*(rerank.acompress_documents(documents, "q") for _ in range(2)))

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: asyncio.run(two()), range(3)))
    assert [texts(ranked) for pair in found for ranked in pair] == [BEST] * 6


async def test_instances_share_a_reranker(number_scorer, documents):
    shared = tamis.Reranker(number_scorer(together=2))  # neither is answered before both have asked
    one, two = TamisRerank(reranker=shared, top_n=1), TamisRerank(reranker=shared, top_n=2)
    found = await asyncio.gather(one.acompress_documents(documents, "q"), two.acompress_documents(documents, "q"))
    assert [len(ranked) for ranked in found] == [1, 2]
    assert one.load() is two.load() is shared


class Rerank(RunnableSerializable[dict, list[Document]]):
    """What a user writes to set `top_n` per call: `configurable_fields` makes a new one for each."""

    compressor: TamisRerank
    top_n: int = 1

    def invoke(self, input, config=None, **kwargs):  # noqa: A002 - LangChain's name
        rerank = self.compressor.model_copy(update={"top_n": self.top_n})
        return rerank.compress_documents(input["documents"], input["query"], (config or {}).get("callbacks"))


def test_configurable_fields_of_a_holder(documents):
    rerank = TamisRerank(mode="lexical")
    loaded = rerank.load()
    runnable = Rerank(compressor=rerank).configurable_fields(top_n=ConfigurableField(id="top_n"))
    for top_n in (1, 2, 3):
        ranked = runnable.invoke({"documents": documents, "query": "gram"}, {"configurable": {"top_n": top_n}})
        assert len(ranked) == top_n
    assert rerank.load() is loaded
    assert loaded.stats()["requests"] == 3


def test_configurable_compressor_of_a_retriever(fixed_retriever):
    usual, short = TamisRerank(mode="lexical"), TamisRerank(mode="lexical", top_n=1)
    retriever = ContextualCompressionRetriever(
        base_compressor=usual, base_retriever=fixed_retriever
    ).configurable_fields(base_compressor=ConfigurableField(id="compressor"))
    for _ in range(3):
        assert len(retriever.invoke("gram")) == 4
        assert len(retriever.invoke("gram", {"configurable": {"compressor": short}})) == 1
    assert usual.load().stats()["requests"] == short.load().stats()["requests"] == 3
