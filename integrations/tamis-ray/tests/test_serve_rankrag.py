"""RankRAG over HTTP: whole answers, and events."""

import asyncio
import json

import pytest

import tamis
from tamis_ray.web.app import create_app
from tamis_ray.web.limits import Limits

ASKED = {
    "question": "read a zip?", "max_new_tokens": 12,
    "passages": ["a tar file", {"text": "how to read a zip archive"}, "bees make honey"],
}  # fmt: skip
TEXTS = ["a tar file", "how to read a zip archive", "bees make honey"]
PATH = "/v1/rankrag/answer"


@pytest.fixture
async def client(rag_service, calling):
    async with calling(create_app(rag_service, limits=Limits(new_tokens=2000))) as made:
        yield made


def events(text):
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


async def test_an_answer_is_the_librarys(client, rag_service):
    expected = rag_service.rag.answer(ASKED["question"], TEXTS, top_k=2, max_new_tokens=12)
    answer = (await client.post(PATH, json={**ASKED, "top_k": 2})).json()
    assert answer["answer"] == expected.text != ""
    assert answer["found"] is expected.found
    assert answer["model"] == "tiny"
    for name in ("contexts", "ranking"):
        hits = getattr(expected, name)
        assert [row["index"] for row in answer[name]] == [hit.index for hit in hits]
        assert [row["score"] for row in answer[name]] == pytest.approx([hit.score for hit in hits], rel=1e-3)
    assert len(answer["contexts"]) == 2
    assert answer["usage"]["completion_tokens"] == expected.usage.completion_tokens


async def test_a_stream_has_the_ranking_then_pieces_then_the_whole(client):
    whole = (await client.post(PATH, json=ASKED)).json()
    answer = await client.post(PATH, json={**ASKED, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    first, *pieces, last = events(answer.text)
    assert first[0] == "ranking"
    assert [row["index"] for row in first[1]["contexts"]] == [row["index"] for row in whole["contexts"]]
    assert {name for name, _ in pieces} == {"piece"}
    assert "".join(data["text"] for _, data in pieces) == whole["answer"]
    assert last[0] == "answer"
    assert last[1]["answer"] == whole["answer"]
    assert last[1]["id"] == first[1]["id"]
    assert len(last[1]["ranking"]) == 3


async def test_options_are_the_librarys(client, rag_service):
    nothing = (await client.post(PATH, json={**ASKED, "min_score": 1.0})).json()
    assert (nothing["answer"], nothing["found"], nothing["contexts"], nothing["ranking"]) == ("", False, [], [])
    stream = await client.post(PATH, json={**ASKED, "min_score": 1.0, "stream": True})
    assert [name for name, _ in events(stream.text)] == ["ranking", "answer"]
    anyway = (await client.post(PATH, json={**ASKED, "min_score": 1.0, "answer_anyway": True})).json()
    assert len(anyway["contexts"]) == 3
    history = [{"user": "what is zip?", "assistant": "an archive"}]
    expected = rag_service.rag.answer(
        ASKED["question"], TEXTS, max_new_tokens=12, history=[("user", "what is zip?"), ("assistant", "an archive")]
    )
    assert (await client.post(PATH, json={**ASKED, "history": history})).json()["answer"] == expected.text
    assert (await client.post(PATH, json={**ASKED, "passages": []})).json()["found"] is False


@pytest.mark.parametrize(
    "wrong, status, place",
    [
        ({"question": " "}, 422, "question"),
        ({"task": "sing"}, 422, "task"),
        ({"top_k": 0}, 422, "top_k"),
        ({"min_score": 1.5}, 422, "min_score"),
        ({"history": [{"user": "hello"}]}, 422, "history.0"),
        ({"max_new_tokens": 2001}, 422, "max_new_tokens"),
        ({"max_new_tokens": 2000}, 400, "shorter answer"),  # more than the model reads and writes
        ({"temperature": 1}, 422, "is not a field"),
        ({"model": "another"}, 404, "tiny"),
    ],
)
async def test_wrong_options_are_named(client, wrong, status, place):
    for stream in (False, True):
        answer = await client.post(PATH, json={**ASKED, **wrong, "stream": stream})
        assert answer.status_code == status
        assert place in answer.json()["error"]


async def test_a_stream_that_takes_too_long_ends_with_an_error(rag_service, calling):
    limits = Limits(new_tokens=400, timeout=0.4)
    async with calling(create_app(rag_service, limits=limits)) as client:
        await client.post("/v1/rerank", json={"query": "zip", "documents": TEXTS})
        asked = {**ASKED, "max_new_tokens": 400, "stream": True, "task": "full"}
        answer = await client.post(PATH, json=asked)
    if answer.status_code == 504:  # a machine so slow that it has not even ranked
        return
    assert events(answer.text)[-1][0] == "error"
    assert events(answer.text)[-1][1]["error_type"] == "timeout"


async def test_a_reader_who_leaves_ends_the_text(rag_service, on_loopback):
    import httpx

    batches = lambda: rag_service.rag.stats()["batches"]  # noqa: E731
    with on_loopback(create_app(rag_service, limits=Limits(new_tokens=2000))) as url:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            asked = {**ASKED, "max_new_tokens": 500, "stream": True}
            async with client.stream("POST", url + PATH, json=asked) as answer:
                async for line in answer.aiter_lines():
                    if line == "event: piece":
                        break
            before = -1
            for _ in range(100):  # until nothing more is written
                if (now := batches()) == before:
                    break
                before = now
                await asyncio.sleep(0.15)
            ended = batches()
            whole = (await client.post(url + PATH, json={**asked, "stream": False})).json()
    assert whole["usage"]["completion_tokens"] > 100
    assert batches() - ended > 100, "the whole text takes a batch a token; the one that was left did not get there"


async def test_its_ranking_half_has_every_shape(client, rag_service):
    expected = rag_service.reranker.rank("read a zip?", TEXTS)
    answer = (await client.post("/rerank", json={"query": "read a zip?", "texts": TEXTS})).json()
    assert [row["score"] for row in answer] == pytest.approx([hit.score for hit in expected], rel=1e-3)
    long = {"query": {"text": "read a zip?"}, "passages": [{"text": "archive " * 3000}]}
    assert (await client.post("/v1/ranking", json=long)).status_code == 400


async def test_a_reranker_does_not_answer(service, calling):
    async with calling(create_app(service)) as client:
        assert (await client.post(PATH, json=ASKED)).status_code == 404


def test_options_of_the_route_are_those_of_the_call(rag_service):
    import inspect

    from tamis_ray.web.answering import CALL

    assert {*CALL, "history"} == set(inspect.signature(tamis.rankrag.rag.RankRAG._check).parameters) - {
        "self", "question", "passages"
    }  # fmt: skip
