"""`RankRAG` streamed: what comes when, what tracers are told, and that who goes away leaves nothing running."""

import asyncio
import time

import pytest
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

import tamis
from langchain_tamis import RankRAG

LONG = 1000  # tokens; the tiny model goes on that far


@pytest.fixture
def runnable(rag):
    return RankRAG(rag=rag, top_k=2, max_new_tokens=20)


@pytest.fixture
def endless(rag):
    return RankRAG(rag=rag, top_k=3, max_new_tokens=LONG)


async def test_the_context_first_then_the_answer_in_pieces(runnable, asked, alike):
    found = runnable.invoke(asked)
    for chunks in (list(runnable.stream(asked)), [chunk async for chunk in runnable.astream(asked)]):
        assert alike(chunks[0], {"context": found["context"]})
        assert [set(chunk) for chunk in chunks[1:]] == [{"answer"}] * (len(chunks) - 1)
        assert len(chunks) > 5
        assert all(type(chunk["answer"]) is str and chunk["answer"] for chunk in chunks[1:])
        assert "".join(chunk["answer"] for chunk in chunks[1:]) == found["answer"]


async def test_pieces_come_while_the_text_is_written(rag, asked):
    endless = RankRAG(rag=rag, max_new_tokens=200)
    start = time.perf_counter()
    at = [time.perf_counter() - start async for _ in endless.astream(asked)]
    assert at[1] < at[-1] / 2  # the first piece of text
    start = time.perf_counter()
    at = [time.perf_counter() - start for _ in endless.stream(asked)]
    assert at[1] < at[-1] / 2


async def test_a_chain_streams_through(runnable, asked):
    chain = RunnablePassthrough.assign(context=lambda x: x["context"][::-1]) | runnable
    assert [set(chunk) for chunk in chain.stream(asked)][:2] == [{"context"}, {"answer"}]
    answer = runnable.invoke({**asked, "context": asked["context"][::-1]})["answer"]
    text = chain.pick("answer")
    assert "".join(text.stream(asked)) == answer
    assert "".join([piece async for piece in text.astream(asked)]) == answer
    assert text.invoke(asked) == answer


async def test_astream_events(runnable, asked, alike):
    chain = RunnableLambda(lambda x: x) | runnable
    events = [event async for event in chain.astream_events(asked, version="v2") if event["name"] == "RankRAG"]
    assert [event["event"] for event in events[:2]] == ["on_chain_start", "on_chain_stream"]
    assert events[-1]["event"] == "on_chain_end"
    chunks = [event["data"]["chunk"] for event in events[1:-1]]
    assert set(chunks[0]) == {"context"}
    assert sum(chunks, {}) == events[-1]["data"]["output"]
    assert alike(sum(chunks, {}), runnable.invoke(asked))
    assert events[-1]["data"]["input"] == asked


async def test_events_of_an_invoked_one(runnable, asked, alike):
    async def call(given):
        return await runnable.ainvoke(given)

    events = [event async for event in RunnableLambda(call).astream_events(asked, version="v2")]
    [end] = [event for event in events if event["name"] == "RankRAG" and event["event"] == "on_chain_end"]
    assert alike(end["data"]["output"], runnable.invoke(asked))


async def call(runnable, how, given, config):
    if how == "astream":
        return [chunk async for chunk in runnable.astream(given, config)]
    if how.endswith("batch"):
        given = [given]
    done = getattr(runnable, how)(given, config)
    return await done if how.startswith("a") else list(done)


CALLS = ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"]


@pytest.mark.parametrize("how", CALLS)
async def test_runs_are_traced(runnable, asked, recorder, alike, how):
    config = {"callbacks": [recorder], "run_name": "answer", "tags": ["t"]}
    await call(runnable, how, asked, config)
    [run] = recorder.named("answer").values()
    assert alike(run["outputs"], runnable.invoke(asked))


@pytest.mark.parametrize("how", CALLS)
async def test_an_error_is_traced_and_raised_as_it_is(runnable, asked, recorder, how):
    config, given = {"callbacks": [recorder]}, {**asked, "input": ""}
    with pytest.raises(tamis.InvalidInput, match="query is empty") as raised:
        await call(runnable, how, given, config)
    [run] = recorder.named("RankRAG").values()
    assert run["error"] is raised.value


# -- who goes away -----------------------------------------------------------------------------------------------------


async def left(chunks):
    """Takes three chunks and goes away."""
    taken = []
    async for chunk in chunks:
        taken.append(chunk)
        if len(taken) == 3:
            break
    return taken


async def test_closing_a_stream_frees_its_slot(endless, asked, rag, idle):
    before = await idle()
    chunks = endless.astream(asked)
    assert len(await left(chunks)) == 3
    await chunks.aclose()
    assert await idle() - before < LONG / 4
    assert rag.stats()["queued_sequences"] == 0


async def test_leaving_a_chains_stream_frees_its_slot(endless, asked, idle):
    before = await idle()
    chain = RunnableLambda(lambda x: x) | endless
    assert len(await left(chain.astream(asked))) == 3
    assert len(await left(endless.astream_events(asked, version="v2"))) == 3
    assert await idle() - before < LONG / 4


async def test_closing_a_synchronous_stream_frees_its_slot(endless, asked, idle):
    before = await idle()
    chunks = endless.stream(asked)
    for _ in range(3):
        next(chunks)
    chunks.close()
    assert await idle() - before < LONG / 4


@pytest.mark.parametrize("streamed", [True, False])
async def test_cancelling_frees_its_slot(endless, asked, rag, idle, recorder, streamed):
    before = await idle()
    config = {"callbacks": [recorder]}

    async def consume():
        async for _ in endless.astream(asked, config):
            pass

    task = asyncio.ensure_future(consume() if streamed else endless.ainvoke(asked, config))
    while rag.stats()["batches"] < before + 3:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await idle() - before < LONG / 4
    [run] = recorder.named("RankRAG").values()
    assert isinstance(run["error"], asyncio.CancelledError)


async def test_others_go_on_when_one_goes_away(endless, runnable, asked, idle):
    expected = runnable.invoke(asked)
    chunks = endless.astream(asked)
    await anext(chunks)
    others = asyncio.gather(*(runnable.ainvoke(asked) for _ in range(5)))
    await anext(chunks)
    await chunks.aclose()
    assert [output["answer"] for output in await others] == [expected["answer"]] * 5
    await idle()
