"""`RankRAG` where LangChain and LangGraph call it: chains, retrievers, histories, graphs, threads and event loops."""

import asyncio
import operator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnablePassthrough
from typing_extensions import TypedDict

import tamis
from langchain_tamis import RankRAG, RankRAGCompressor, TamisRerank
from standstill import watched


@pytest.fixture
def runnable(rag):
    return RankRAG(rag=rag, top_k=2, max_new_tokens=8)


@pytest.fixture
def retriever(fixed_retriever, asked):
    fixed_retriever.documents = asked["context"]
    return fixed_retriever


async def test_the_chain(retriever, runnable, asked, alike):
    chain = RunnablePassthrough.assign(context=(lambda x: x["input"]) | retriever) | runnable
    expected = runnable.invoke(asked)
    question = {"input": asked["input"]}
    chunks = [chunk async for chunk in chain.astream(question)]
    for output in (
        chain.invoke(question),
        await chain.ainvoke(question),
        *chain.batch([question] * 3),
        *await chain.abatch([question] * 3),
        sum(chain.stream(question), {}),
        sum(chunks, {}),
    ):
        assert alike(output, expected)
    assert set(chunks[0]) == {"context"}
    ends = [event async for event in chain.astream_events(question, version="v2") if event["event"] == "on_chain_end"]
    assert alike(ends[-1]["data"]["output"], expected)
    assert "from elsewhere" in str(retriever.documents)  # which are as they were


async def test_as_a_compressor(rag, retriever, runnable, asked, texts, recorder):
    compressor = runnable.as_compressor(top_n=2)
    assert isinstance(compressor, RankRAGCompressor)
    assert isinstance(compressor, BaseDocumentCompressor)
    assert compressor.load() is rag
    expected = [(str(hit.index), hit.score) for hit in rag.rank(asked["input"], texts, top_n=2)]
    found = ContextualCompressionRetriever(base_compressor=compressor, base_retriever=retriever)
    for documents in (
        found.invoke(asked["input"], {"callbacks": [recorder]}),
        await found.ainvoke(asked["input"], {"callbacks": [recorder]}),
    ):
        assert [document.id for document in documents] == [index for index, _ in expected]
        scores = [document.metadata["relevance_score"] for document in documents]
        assert scores == pytest.approx([score for _, score in expected], rel=1e-4)
        assert {type(score) for score in scores} == {float}
    assert len(recorder.named("RankRAGCompressor")) == 2
    assert asked["context"][0].metadata["relevance_score"] == "from elsewhere"


async def test_a_compressor_of_its_own(tiny_llama, rag, asked, texts):
    compressor = RankRAGCompressor(model=tiny_llama, dtype="float32", task="claim", max_tokens=6)
    best = rag.rank(asked["input"], texts, task="claim", max_tokens=6)
    assert 1 <= len(best) < 3
    for documents in (
        compressor.compress_documents(asked["context"], asked["input"]),
        await compressor.acompress_documents(asked["context"], asked["input"]),
    ):
        assert [document.page_content for document in documents] == best.texts()
    with pytest.raises(ValueError):
        RankRAGCompressor(top_k=5)


async def test_tamis_rerank_in_rankrag_mode(tiny_llama, rag, retriever, asked, texts):
    rerank = TamisRerank(model=tiny_llama, mode="rankrag", dtype="float32", top_n=2)
    found = ContextualCompressionRetriever(base_compressor=rerank, base_retriever=retriever)
    expected = rag.rank(asked["input"], texts, top_n=2).texts()
    assert [document.page_content for document in found.invoke(asked["input"])] == expected
    assert [document.page_content for document in await found.ainvoke(asked["input"])] == expected


async def test_what_was_compressed_is_answered_from(retriever, runnable, asked, alike):
    found = ContextualCompressionRetriever(base_compressor=runnable.as_compressor(), base_retriever=retriever)
    chain = RunnablePassthrough.assign(context=(lambda x: x["input"]) | found) | runnable
    best_first = {**asked, "context": [asked["context"][int(d.id)] for d in found.invoke(asked["input"])]}
    assert alike(await chain.ainvoke({"input": asked["input"]}), runnable.invoke(best_first))


class State(TypedDict, total=False):
    input: str
    context: list[Document]
    answer: str
    chat_history: Annotated[list[AnyMessage], operator.add]


@pytest.fixture
def builder(retriever, runnable):
    """A graph that retrieves, and then answers."""
    graph = pytest.importorskip("langgraph.graph")
    builder = graph.StateGraph(State)
    builder.add_node("retrieve", lambda state: {"context": retriever.invoke(state["input"])})
    builder.add_node("answer", runnable)
    builder.add_edge(graph.START, "retrieve")
    builder.add_edge("retrieve", "answer")
    return builder


async def test_a_node_of_a_graph(builder, runnable, asked, alike):
    compiled = builder.compile()
    expected = {**runnable.invoke(asked), "input": asked["input"], "chat_history": []}
    question = {"input": asked["input"]}
    for state in (
        compiled.invoke(question),
        await compiled.ainvoke(question),
        *await compiled.abatch([question] * 3),
    ):
        assert alike(state, expected)
    updates = [update async for update in compiled.astream(question, stream_mode="updates")]
    assert alike(updates[-1]["answer"], runnable.invoke(asked))


async def test_a_graph_that_remembers(builder, rag, asked, texts):
    from langgraph.checkpoint.memory import InMemorySaver

    def remember(state):
        return {"chat_history": [HumanMessage(state["input"]), AIMessage(state["answer"])]}

    builder.add_node("remember", remember)
    builder.add_edge("answer", "remember")
    compiled = builder.compile(checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    first = compiled.invoke({"input": "what is a zip?"}, config)["answer"]
    second = (await compiled.ainvoke({"input": asked["input"]}, config))["answer"]
    history = [("user", "what is a zip?"), ("assistant", first)]
    assert second == rag.answer(asked["input"], texts, top_k=2, max_new_tokens=8, history=history).text


async def test_a_function_that_is_a_node(runnable, asked, alike):
    """What any graph calls: state in, update out."""

    async def node(state):
        return await runnable.ainvoke(state)

    state = {**asked, "steps": 3}
    assert alike(state | await node(state), {**state, **runnable.invoke(asked)})


# -- many at once ----------------------------------------------------------------------------------------------------


async def test_fifty_at_once_none_lost(runnable, rag, texts):
    inputs = [{"input": f"archive {n}?", "context": [*texts, f"archive {n}"]} for n in range(50)]
    runnable = runnable.model_copy(update={"top_k": 4})
    outputs = await asyncio.gather(*(runnable.ainvoke(one) for one in inputs))
    for n, output in enumerate(outputs):
        assert {document.page_content for document in output["context"]} == set(inputs[n]["context"])
    for n in (0, 17, 49):
        alone = rag.answer(inputs[n]["input"], inputs[n]["context"], top_k=4, max_new_tokens=8)
        assert outputs[n]["answer"] == alone.text
    assert rag.stats()["queued_sequences"] == 0


async def test_the_event_loop_is_never_blocked(runnable, asked):
    gaps = []
    for _ in range(3):  # the machine may be busy too: the loop is blocked only if it is every time
        async with watched() as seen:
            outputs = await asyncio.gather(*(runnable.ainvoke(asked, max_new_tokens=100) for _ in range(4)))
        gaps.append(seen.held())
        assert len({output["answer"] for output in outputs}) == 1
    assert min(gaps) < 0.1


async def test_sync_inside_a_running_loop(runnable, asked, alike):
    assert alike(runnable.invoke(asked), await runnable.ainvoke(asked))
    assert alike(sum(runnable.stream(asked), {}), runnable.invoke(asked))


def test_one_instance_on_many_loops(runnable, asked):
    async def two():
        streamed = [chunk async for chunk in runnable.astream(asked)]
        return [sum(streamed, {}), *await asyncio.gather(*(runnable.ainvoke(asked) for _ in range(2)))]

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: asyncio.run(two()), range(3)))
    assert [output["answer"] for outputs in found for output in outputs] == [runnable.invoke(asked)["answer"]] * 9


async def test_a_closed_model_says_so(tiny_llama, asked):
    closed = tamis.load_rankrag(tiny_llama, dtype="float32")
    runnable = RankRAG(rag=closed)
    closed.close()
    with pytest.raises(tamis.Closed):
        runnable.invoke(asked)
    with pytest.raises(tamis.Closed):
        [chunk async for chunk in runnable.astream(asked)]
