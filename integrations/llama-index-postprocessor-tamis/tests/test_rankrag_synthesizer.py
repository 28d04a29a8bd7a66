"""`RankRAGSynthesizer` alone: what a response says, whole and streamed."""

import asyncio
import gc
import subprocess
import sys

import pytest
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import CallbackManager, CBEventType
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

import tamis
from llama_index.postprocessor.tamis import RankRAGLLM, RankRAGSynthesizer
from tamis.rankrag.prompts import Wording

LONG = 1000  # tokens; the tiny model goes on that far


@pytest.fixture(params=["sync", "async"])
def synthesize(request):
    def run(synthesizer, *args, **kwargs):
        if request.param == "sync":
            return synthesizer.synthesize(*args, **kwargs)
        return asyncio.run(synthesizer.asynthesize(*args, **kwargs))

    return run


def texts(nodes, mode=MetadataMode.EMBED):
    return [node.node.get_content(metadata_mode=mode) for node in nodes]


def ids(nodes):
    return [node.node_id for node in nodes]


def test_sources_are_ranked_and_scored(synthesize, rag, nodes, query):
    given, dumped = list(nodes), [node.to_dict() for node in nodes]
    ranking = rag.rank(query, texts(nodes))
    answer = rag.answer(query, texts(nodes), top_k=2, max_new_tokens=8)
    response = synthesize(RankRAGSynthesizer(rag, top_k=2, max_new_tokens=8), query, nodes)
    assert type(response) is Response
    assert response.response == answer.text != ""
    assert ids(response.source_nodes) == [nodes[hit.index].node_id for hit in ranking[:2]]
    scores = [node.score for node in response.source_nodes]
    assert scores == pytest.approx([hit.score for hit in ranking[:2]], abs=1e-6)
    assert scores == sorted(scores, reverse=True)
    assert all(type(score) is float for score in scores)
    assert nodes == given
    assert [node.to_dict() for node in nodes] == dumped
    assert all(source.node in [node.node for node in nodes] for source in response.source_nodes)


def test_metadata(synthesize, rag, nodes, query):
    response = synthesize(RankRAGSynthesizer(rag, top_k=2, max_new_tokens=8), QueryBundle(query), nodes)
    ranking = rag.rank(query, texts(nodes))
    assert response.metadata["found"] is True
    assert list(response.metadata["scores"]) == [nodes[hit.index].node_id for hit in ranking]
    assert response.metadata["truncated"] == []
    usage = response.metadata["usage"]
    assert usage["completion_tokens"] == 8
    assert usage["ranking_tokens"] == ranking.usage.tokens
    assert 0 < usage["reused_tokens"] < usage["prompt_tokens"]
    for source in response.source_nodes:
        assert response.metadata[source.node_id] == source.metadata


@pytest.mark.parametrize("mode", [MetadataMode.EMBED, MetadataMode.NONE])
def test_metadata_mode(rag, nodes, query, mode):
    response = RankRAGSynthesizer(rag, metadata_mode=mode, max_new_tokens=2).synthesize(query, nodes)
    ranking = rag.rank(query, texts(nodes, mode))
    assert [n.score for n in response.source_nodes] == pytest.approx([hit.score for hit in ranking], abs=1e-6)


def test_retrieval_score(rag, nodes, query):
    synthesizer = RankRAGSynthesizer(rag, max_new_tokens=2, keep_retrieval_score=True)
    response = synthesizer.synthesize(query, nodes)
    before = {node.node_id: node.score for node in nodes}
    assert {n.node_id: n.metadata["retrieval_score"] for n in response.source_nodes} == before
    assert not any("retrieval_score" in node.metadata for node in nodes)


def test_additional_source_nodes(synthesize, rag, nodes, query):
    response = synthesize(RankRAGSynthesizer(rag, top_k=1, max_new_tokens=2), query, nodes[:2], nodes[2:])
    assert len(response.source_nodes) == 3
    assert response.source_nodes[1:] == nodes[2:]


def test_nothing_good_enough(synthesize, rag, nodes, query):
    response = synthesize(RankRAGSynthesizer(rag, min_score=1.0), query, nodes)
    assert (str(response), response.source_nodes, response.metadata["found"]) == ("Empty Response", [], False)
    assert len(response.metadata["scores"]) == 4
    anyway = RankRAGSynthesizer(rag, min_score=1.0, answer_anyway=True, top_k=2, max_new_tokens=4)
    response = synthesize(anyway, query, nodes)
    assert len(response.source_nodes) == 2
    assert response.metadata["found"] is True


def test_the_model_says_that_there_is_no_answer(synthesize, tiny_llama, nodes, query):
    wording = Wording(not_found=r".")  # whatever it says
    synthesizer = RankRAGSynthesizer(model=tiny_llama, dtype="float32", wording=wording, max_new_tokens=4)
    response = synthesize(synthesizer, query, nodes)
    assert response.metadata["found"] is False
    assert str(response) not in ("", "None", "Empty Response")
    assert len(response.source_nodes) == 4


@pytest.mark.parametrize("streaming", [False, True])
def test_no_nodes_ask_no_model(synthesize, query, streaming):
    synthesizer = RankRAGSynthesizer(model="/no/such/folder", streaming=streaming)
    response = synthesize(synthesizer, query, [])
    unused = dict.fromkeys(("prompt_tokens", "reused_tokens", "completion_tokens", "ranking_tokens"), 0)
    assert response.metadata == {"found": False, "scores": {}, "truncated": [], "usage": unused}
    assert str(response) == "Empty Response"
    assert response.source_nodes == []
    if not streaming:
        assert str(synthesize(RankRAGSynthesizer(empty_response="Nothing."), query, [])) == "Nothing."


def test_bad_input(synthesize, rag, nodes, query):
    synthesizer = RankRAGSynthesizer(rag)
    for none in (nodes, []):
        with pytest.raises(tamis.InvalidInput, match="needs the query"):
            synthesize(synthesizer, None, none)
    with pytest.raises(tamis.InvalidInput, match="query is empty"):
        synthesize(synthesizer, "  ", nodes)
    with pytest.raises(tamis.InvalidInput, match=r"Node 0 is a TextNode; wrap it"):
        synthesize(synthesizer, query, [nodes[0].node])
    with pytest.raises(tamis.InvalidInput, match="takes chat_history, not hist"):
        synthesize(synthesizer, query, nodes, hist=[])
    with pytest.raises(tamis.InvalidInput, match="history ends with the user's turn"):
        synthesize(synthesizer, query, nodes, chat_history=[ChatMessage("Hello")])
    with pytest.raises(tamis.ModelNotFound):
        synthesize(RankRAGSynthesizer(model="/no/such/folder"), query, nodes)


def test_an_empty_query_loads_nothing_and_sends_no_events(synthesize, nodes, events, callbacks):
    synthesizer = RankRAGSynthesizer(model="/no/such/folder", callback_manager=CallbackManager([callbacks]))
    with pytest.raises(tamis.InvalidInput, match="query is empty"):
        synthesize(synthesizer, " ", nodes)
    assert not events.named("SynthesizeStartEvent", "SynthesizeEndEvent", "ReRankStartEvent", "ReRankEndEvent")
    assert not callbacks.seen


@pytest.mark.parametrize("stop", ["Passage", "", None, 5, [""], ["x", None], b"x", {"x": 1}], ids=repr)
def test_what_ends_no_text(stop):
    for kind in (RankRAGSynthesizer, RankRAGLLM):
        with pytest.raises(ValueError, match=r"stop=.*; pass a list of strings that are not empty"):
            kind(stop=stop)
    with pytest.raises(tamis.InvalidInput):
        RankRAGSynthesizer(stop=stop)


def test_strings_that_end_a_text(rag, nodes, query):
    whole = RankRAGSynthesizer(rag, max_new_tokens=30).synthesize(query, nodes).response
    for stop in ([whole[3:6]], iter([whole[3:6]])):
        short = RankRAGSynthesizer(rag, max_new_tokens=30, stop=stop).synthesize(query, nodes).response
        assert short == whole.partition(whole[3:6])[0].strip()


@pytest.mark.parametrize(
    "wrong",
    [
        {"top_k": 0},
        {"min_score": 1.5},
        {"timeout": 0},
        {"task": "songs"},
        {"modle": "x"},
        {"dtype": "float31"},
        {"metadata_mode": "loud"},
        {"llm": MockLLM()},
        {"llm": RankRAGLLM(), "model": "x"},
    ],
    ids=" ".join,
)
def test_bad_arguments(wrong):
    with pytest.raises(ValueError):
        RankRAGSynthesizer(**wrong)


def test_constructing_loads_nothing():
    code = (
        "import sys, llama_index.postprocessor.tamis as t; e = t.rankrag_query_engine(None); t.RankRAGLLM();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_model_for_all_that_name_it(tiny_llama, rag, nodes, query):
    llm = RankRAGLLM(model=tiny_llama, dtype="float32")
    synthesizer = RankRAGSynthesizer(llm=llm, max_new_tokens=2)
    synthesizer.synthesize(query, nodes)
    assert synthesizer.llm.load() is llm.load()
    before = rag.stats()["sequences"]
    llm.complete("Hello", max_new_tokens=1)
    assert rag.stats()["sequences"] == before + 1


def test_chat_history(synthesize, rag, nodes, query):
    said = [("user", "What is a tar file?"), ("assistant", "An archive.")]
    messages = [ChatMessage(role=role, content=text) for role, text in said]
    answer = rag.answer(query, texts(nodes), history=said, max_new_tokens=8)
    response = synthesize(RankRAGSynthesizer(rag, max_new_tokens=8), query, nodes, chat_history=messages)
    assert response.response == answer.text
    scores = [hit.score for hit in answer.contexts]
    assert [node.score for node in response.source_nodes] == pytest.approx(scores, abs=1e-6)


def test_chat_history_after_a_task_of_the_models_own(synthesize, tiny_llama, nodes, query):
    said = [("user", "What is a tar file?"), ("assistant", "An archive.")]
    messages = [ChatMessage(role=role, content=text) for role, text in said]
    with tamis.load_rankrag(tiny_llama, dtype="float32", task="claim") as rag:
        answer = rag.answer(query, texts(nodes), history=said, max_new_tokens=2)
        claimed = rag.answer(query, texts(nodes), history=said, max_new_tokens=2, task="claim")
        response = synthesize(RankRAGSynthesizer(rag, max_new_tokens=2), query, nodes, chat_history=messages)
    scores = [node.score for node in response.source_nodes]
    assert scores == pytest.approx([hit.score for hit in answer.contexts], abs=1e-6)
    assert scores != pytest.approx([hit.score for hit in claimed.contexts], abs=1e-6)


def test_tasks(rag, nodes, query):
    for task in ("full", "claim"):
        answer = rag.answer(query, texts(nodes), task=task, max_new_tokens=6)
        response = RankRAGSynthesizer(rag, task=task, max_new_tokens=6).synthesize(query, nodes)
        assert response.response == answer.text
        assert response.source_nodes[0].score == pytest.approx(answer.ranking[0].score, abs=1e-6)


def test_a_long_node_is_read_in_part(rag, query):
    nodes = [NodeWithScore(node=TextNode(text="zip archives " * 4000, id_="long"))]
    response = RankRAGSynthesizer(rag, max_new_tokens=2).synthesize(query, nodes)
    assert response.metadata["truncated"] == ["long"]
    assert response.source_nodes[0].node is nodes[0].node


def test_get_response(rag, nodes, query):
    chunks = texts(nodes, MetadataMode.NONE)
    whole = rag.answer(query, chunks, max_new_tokens=8).text
    synthesizer = RankRAGSynthesizer(rag, max_new_tokens=8)
    assert synthesizer.get_response(query, chunks) == asyncio.run(synthesizer.aget_response(query, chunks)) == whole
    assert synthesizer.get_response(query, []) == "Empty Response"
    assert "".join(RankRAGSynthesizer(rag, max_new_tokens=8, streaming=True).get_response(query, chunks)) == whole


# -- streamed ------------------------------------------------------------------------------------------------------


async def test_stream(rag, nodes, query):
    whole = RankRAGSynthesizer(rag, top_k=2, max_new_tokens=20).synthesize(query, nodes)
    synthesizer = RankRAGSynthesizer(rag, top_k=2, max_new_tokens=20, streaming=True)
    response = synthesizer.synthesize(query, nodes)
    later = await synthesizer.asynthesize(query, nodes)
    assert isinstance(response, StreamingResponse)
    assert isinstance(later, AsyncStreamingResponse)
    for one in (response, later):  # the sources are there before the text
        assert [node.node_id for node in one.source_nodes] == [node.node_id for node in whole.source_nodes]
        assert [node.score for node in one.source_nodes] == pytest.approx(
            [n.score for n in whole.source_nodes], abs=1e-6
        )
        assert "found" not in one.metadata
    pieces = list(response.response_gen)
    assert [piece async for piece in later.async_response_gen()] == pieces
    assert len(pieces) > 5
    assert all(type(piece) is str and piece for piece in pieces)
    assert "".join(pieces) == whole.response
    assert later.response_txt == whole.response
    for one in (response, later):
        assert one.metadata["found"] is True
        assert one.metadata["usage"]["completion_tokens"] == 20


async def test_stream_of_nothing(rag, nodes, query):
    synthesizer = RankRAGSynthesizer(rag, min_score=1.0, streaming=True)
    response, later = synthesizer.synthesize(query, nodes), await synthesizer.asynthesize(query, nodes)
    assert list(response.response_gen) == ["Empty Response"]
    assert [piece async for piece in later.async_response_gen()] == ["Empty Response"]
    assert response.source_nodes == later.source_nodes == []
    assert response.metadata["found"] is later.metadata["found"] is False


@pytest.mark.parametrize("end", ["close", "drop", "cancel", "unread"])
async def test_a_stream_that_is_left_ends(rag, nodes, query, idle, end):
    synthesizer = RankRAGSynthesizer(rag, max_new_tokens=LONG, streaming=True)
    before = await idle()

    async def read(response, pieces):
        async for _ in response.async_response_gen():
            pieces.append(1)

    response, pieces = await synthesizer.asynthesize(query, nodes), []
    reading = asyncio.create_task(read(response, pieces))
    if end != "unread":
        while len(pieces) < 3:
            await asyncio.sleep(0.005)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    if end == "close":
        await response.response_gen.aclose()
    del response, reading, read
    gc.collect()
    assert await idle() - before < LONG / 2
    assert (await RankRAGSynthesizer(rag, max_new_tokens=4).asynthesize(query, nodes)).response


@pytest.mark.parametrize("end", ["close", "drop", "unread"])
async def test_a_stream_that_a_thread_leaves_ends(rag, nodes, query, idle, end):
    before = await idle()
    response = RankRAGSynthesizer(rag, max_new_tokens=LONG, streaming=True).synthesize(query, nodes)
    if end != "unread":
        assert next(response.response_gen)
    if end == "close":
        response.response_gen.close()
    del response
    gc.collect()
    assert await idle() - before < LONG / 2


# -- what tracing sees -------------------------------------------------------------------------------------------------


def test_events(synthesize, rag, nodes, query, events, spans, callbacks):
    synthesizer = RankRAGSynthesizer(rag, max_new_tokens=2, callback_manager=CallbackManager([callbacks]))
    response = synthesize(synthesizer, query, nodes)
    names = ["SynthesizeStartEvent", "ReRankStartEvent", "ReRankEndEvent", "SynthesizeEndEvent"]
    seen = events.named(*names)
    assert [event.class_name() for event in seen] == names
    assert seen[-1].response is response
    assert [node.node_id for node in seen[2].nodes] == list(response.metadata["scores"])
    assert seen[1].model_name == rag.model
    assert len({event.span_id for event in seen}) == 1
    assert not spans.open_spans
    kinds = [(when, what) for when, what, _ in callbacks.seen]
    assert kinds == [
        ("start", CBEventType.SYNTHESIZE),
        ("start", CBEventType.RERANKING),
        ("end", CBEventType.RERANKING),
        ("end", CBEventType.SYNTHESIZE),
    ]
    assert [event.model_dump_json() for event in seen]
