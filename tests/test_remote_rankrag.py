"""RankRAG whose model a server runs: the same numbers and texts as in this process, and every way to fail."""

from __future__ import annotations

import asyncio
import math
import pickle
import time

import numpy as np
import pytest

import tamis
import tiny_lm
from completions_stub import CompletionsStub
from rankrag_reference import PASSAGES, QUESTION, Plain, save_speaker
from remote_stubs import KEY, hang_up, raw, serving, status
from tamis.lazy import LazyRankRAG
from tamis.rankrag.prompts import Wording
from tamis.remote.answers import BadAnswer
from tamis.remote.completions import Events, Label, row_of, top_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_lm.save(tmp_path_factory.mktemp("served"), "llama", "ForCausalLM", bos=True)


@pytest.fixture(scope="module")
def plain(folder):
    return Plain(folder)


@pytest.fixture
def stub(plain):
    with serving(CompletionsStub(plain)) as stub:
        yield stub


@pytest.fixture(scope="module")
def local(folder):
    with tamis.load_rankrag(folder, dtype="float32", max_length=4096) as rag:
        yield rag


def load(folder, stub, **options):
    return tamis.load_rankrag(folder, **{"server": stub.base, **options})


@pytest.fixture
def rag(folder, stub):
    with load(folder, stub) as rag:
        stub.requests.clear()
        yield rag


def indices(hits):
    return [hit.index for hit in hits]


# -- the same as here --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["ids", "texts", "llama.cpp"])
@pytest.mark.parametrize("style", ["plain", "chat"])
def test_scores_equal_those_of_this_process(folder, plain, style, form):
    with (
        tamis.load_rankrag(folder, dtype="float32", style=style) as here,
        serving(CompletionsStub(plain, form=form)) as stub,
        load(folder, stub, style=style, request_passages=1 if form == "llama.cpp" else 4) as there,
    ):
        logits = here.reranker.logits(QUESTION, PASSAGES)
        assert there.reranker.logits(QUESTION, PASSAGES) == pytest.approx(logits, abs=1e-4)
        scores = here.reranker.score(QUESTION, PASSAGES)
        assert there.reranker.score(QUESTION, PASSAGES) == pytest.approx(scores, abs=1e-5)
        assert indices(there.rank(QUESTION, PASSAGES, top_n=4)) == indices(here.rank(QUESTION, PASSAGES, top_n=4))
        assert there.rank(QUESTION, PASSAGES).usage.tokens == here.rank(QUESTION, PASSAGES).usage.tokens
        sizes = [len(body["prompt"]) if isinstance(body["prompt"][0], list) else 1 for body in stub.posts]
        assert set(sizes) == ({1} if form == "llama.cpp" else {1, 3})  # nine passages, four at most


def test_the_margin_and_every_task(folder, stub, local):
    with load(folder, stub, relevance="margin", task="claim") as there:
        scorer = local._scorer
        with tamis.load_rankrag(folder, dtype="float32", relevance="margin", task="claim") as here:
            assert there.reranker.logits(QUESTION, PASSAGES) == pytest.approx(
                here.reranker.logits(QUESTION, PASSAGES), abs=1e-4
            )
        assert there._scorer.prompts.wording == scorer.prompts.wording


def test_answers_equal_those_of_this_process(rag, local, stub):
    here = local.answer(QUESTION, PASSAGES, top_k=3, max_new_tokens=12)
    there = rag.answer(QUESTION, PASSAGES, top_k=3, max_new_tokens=12)
    assert there.text == here.text != ""
    assert indices(there.contexts) == indices(here.contexts)
    assert there.found == here.found
    assert there.usage.prompt_tokens == here.usage.prompt_tokens
    assert 0 < there.timings.ranking < there.timings.first_token < there.timings.total
    assert asyncio.run(rag.aanswer(QUESTION, PASSAGES, top_k=3, max_new_tokens=12)).text == here.text
    asked = stub.posts[-1]
    assert (asked["stream"], asked["max_tokens"], asked["temperature"]) == (True, 12, 0)


async def test_streams_join_to_the_answer(rag, local):
    here = local.answer(QUESTION, PASSAGES, top_k=2, max_new_tokens=12)
    pieces = list(rag.stream(QUESTION, PASSAGES, top_k=2, max_new_tokens=12))
    assert indices(pieces[0].contexts) == indices(here.contexts)
    assert "".join(pieces) == pieces[-1].answer.text == here.text
    assert len(pieces) > 4
    assert "".join([piece async for piece in rag.astream(QUESTION, PASSAGES, top_k=2, max_new_tokens=12)]) == here.text


def test_prompts_and_conversations(rag, local):
    for prompt in ("how is a zip", [("user", "how is a zip archive read?")]):
        assert rag.complete(prompt, max_new_tokens=9).text == local.complete(prompt, max_new_tokens=9).text
    assert "".join(rag.stream_complete("a zip", max_new_tokens=9)) == local.complete("a zip", max_new_tokens=9).text


@pytest.mark.parametrize("policy", ["truncate", "max_window"])
def test_long_passages_are_cut_or_windowed_here(folder, stub, policy):
    given = [PASSAGES[6] * 12, PASSAGES[2]]
    options = {"max_length": 400, "long_documents": policy}
    with tamis.load_rankrag(folder, dtype="float32", **options) as here, load(folder, stub, **options) as there:
        expected, ranking = here.rank(QUESTION, given), there.rank(QUESTION, given)
        assert indices(ranking) == indices(expected)
        assert [hit.logit for hit in ranking] == pytest.approx([hit.logit for hit in expected], abs=1e-4)
        assert [(hit.truncated, hit.window) for hit in ranking] == [(hit.truncated, hit.window) for hit in expected]


def test_stops_end_the_text_and_the_request(tmp_path):
    folder = save_speaker(tmp_path, ["One", " two", " three", " four", " five", " six"], forever=True)
    wording = Wording(true="One", false=" two")
    with serving(CompletionsStub(Plain(folder))) as stub, load(folder, stub, wording=wording) as rag:
        stub.pause = 0.02
        answer = rag.answer("what?", ["a passage"], stop=[" three fo"], max_new_tokens=500)
        assert answer.text == "One two"
        assert answer.usage.completion_tokens < 10
        end = time.monotonic() + 20
        while not stub.dropped:  # the server notices, and writes no more
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_warm_server(rag, stub):
    assert rag.warm(PASSAGES) == len(PASSAGES)
    prompts = stub.posts[0]["prompt"]
    assert len(prompts) == len(PASSAGES)
    system = rag._scorer.prompts.system.tolist()
    assert all(prompt[: len(system)] == system for prompt in prompts)
    stub.requests.clear()
    rag.rank(QUESTION, PASSAGES)
    ranked = stub.posts[0]["prompt"]
    assert all(whole[: len(start)] == start for whole, start in zip(ranked, prompts, strict=True)), "passage first"


def test_the_mark_of_a_ranking_is_this_servers(folder, plain, rag, local):
    with serving(CompletionsStub(plain)) as other, load(folder, other) as elsewhere:
        marks = {one.signature(QUESTION) for one in (rag, local, elsewhere)}
    assert len(marks) == 3
    assert rag.signature(QUESTION) == rag.signature(QUESTION) != rag.signature("another?")
    stats = rag.stats()
    assert stats["model"] == rag.model == "acme/reranker-1"
    assert stats["server"].endswith("/v1/completions")


# -- finding out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/completions"])
def test_the_url_is_an_openai_clients(folder, stub, path):
    with tamis.load_rankrag(folder, server=stub.base + path) as rag:
        assert rag.max_length == 4096  # the server's
        assert len(rag.rank(QUESTION, PASSAGES[:2])) == 2


def test_servers_that_give_fewer(folder, plain):
    with serving(CompletionsStub(plain, limit=5)) as stub, load(folder, stub) as rag:
        rag.rank(QUESTION, PASSAGES)
        assert {body["logprobs"] for body in stub.posts} == {20, 5}


def test_several_models(folder, plain):
    with serving(CompletionsStub(plain, models=2)) as stub:
        with pytest.raises(tamis.InvalidInput, match="server_model="):
            load(folder, stub)
        with load(folder, stub, server_model="acme/reranker-2") as rag:
            assert rag.model == "acme/reranker-2"
            assert len(rag.rank(QUESTION, PASSAGES[:2])) == 2


def test_a_model_that_says_something_else(folder, plain):
    message = r"neither 'True' nor 'False' among its 20 .* wording="
    with serving(CompletionsStub(plain, top=1)) as stub, pytest.raises(tamis.RemoteError, match=message):
        load(folder, stub)


@pytest.mark.parametrize("logprobs", [None, {}, {"top_logprobs": None}, {"top_logprobs": [None]}, {"content": []}, "x"])
def test_a_server_without_log_probabilities(folder, stub, logprobs):
    stub.logprobs = lambda prompt: logprobs
    with pytest.raises(tamis.RemoteError, match=r"has no log-probabilities, .* must allow logprobs="):
        load(folder, stub)


@pytest.mark.parametrize(("options", "message"), [
    ({"device": "cpu"}, "device= means nothing in remote mode"),
    ({"weight": 1.0}, "weight= means nothing"),
    ({"adapter": "x"}, "adapter= means nothing where a server"),
    ({"passage_bytes": 0}, "passage_bytes= means nothing"),
    ({"server": 5}, "server is a int"),
    ({"server": "gpu:8000"}, "URL"),
    ({"max_length": 10_000}, "reads 4096 tokens at most"),
])  # fmt: skip
def test_arguments_that_are_wrong(folder, stub, options, message):
    with pytest.raises(tamis.InvalidInput, match=message):
        load(folder, stub, **options)


def test_a_model_is_named(stub):
    with pytest.raises(tamis.InvalidInput, match="its tokenizer is needed"):
        tamis.load_rankrag(server=stub.base)
    with pytest.raises(tamis.InvalidInput, match="server_model= means nothing"):
        tamis.load_rankrag(server_model="x")


# -- when it fails -----------------------------------------------------------------------------------------------------


def test_the_key(folder, plain):
    with serving(CompletionsStub(plain, key=KEY)) as stub:
        with load(folder, stub, api_key=KEY) as rag:
            assert rag.answer(QUESTION, PASSAGES[:2], max_new_tokens=3).contexts
            assert KEY not in repr(rag) + str(rag.stats())
        with pytest.raises(tamis.RemoteError, match="401") as caught:
            load(folder, stub, api_key="wrong-5c1d", retries=0)
        assert "wrong-5c1d" not in str(caught.value)
    lazy = LazyRankRAG(tamis.load_rankrag, {"model": "x", "api_key": KEY})
    assert KEY.encode() not in pickle.dumps(lazy)


def test_what_passes_is_tried_again(rag, stub):
    stub.faults = [hang_up, status(503)]
    assert len(rag.rank(QUESTION, PASSAGES[:2])) == 2
    stub.faults = [None, status(429, retry_after="0"), hang_up]
    assert rag.answer(QUESTION, PASSAGES[:2], max_new_tokens=3).contexts
    assert rag.stats()["http_retries"] == 4


def test_a_text_that_breaks_off_is_not_begun_anew(rag, stub):
    def tear(handler):
        return False

    stub.tear = tear
    pieces = rag.stream(QUESTION, PASSAGES[:2], max_new_tokens=20)
    with pytest.raises(tamis.RemoteError, match="broke off in the middle of a text"):
        list(pieces)
    stub.tear = lambda handler: stub.event(handler, {"error": {"message": "out of memory"}, "choices": None})
    with pytest.raises(tamis.RemoteError, match="broke off: out of memory"):
        rag.complete("x", max_new_tokens=20)
    assert rag.stats()["http_retries"] == 0
    stub.tear = lambda handler: True
    assert rag.complete("x", max_new_tokens=4)


@pytest.mark.parametrize("data", [
    b"data: {\n\n", b"data: []\n\n", b'data: {"choices": [{"text": 5}]}\n\n', b"data: \xff\n\n", b"", b"data: {}\n\n",
    b"data: " + b"x" * 2_000_000,
])  # fmt: skip
def test_streams_that_are_none(rag, stub, data):
    stub.faults = [raw(data)]
    with pytest.raises(tamis.RemoteError):
        rag.complete("x", max_new_tokens=4)
    assert len(stub.posts) == 1


@pytest.mark.parametrize("answer", [
    {"choices": []}, {"choices": None}, [], {"choices": [{"index": 0}, {"index": 0}]},
    {"choices": [{"index": 0}, {"index": 2}]}, {"choices": [{"index": 0}, {"index": True}]}, {"choices": [None, None]},
])  # fmt: skip
def test_answers_that_are_none(rag, stub, answer):
    import json

    stub.faults = [raw(json.dumps(answer).encode())]
    with pytest.raises(tamis.RemoteError, match=r"choice|log-probabilities"):
        rag.rank(QUESTION, PASSAGES[:2])


async def test_leaving_a_stream_ends_it_on_the_server(rag, stub):
    stub.pause = 0.02
    stream = rag.astream(QUESTION, PASSAGES[:2], max_new_tokens=400)
    async for piece in stream:
        if piece:
            break
    await stream.aclose()
    while not stub.dropped:
        await asyncio.sleep(0.01)
    task = asyncio.ensure_future(rag.aanswer(QUESTION, PASSAGES[:2], max_new_tokens=400))
    while stub.open < 1:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stub.pause = 0
    assert (await rag.aanswer(QUESTION, PASSAGES[:2], max_new_tokens=3)).contexts


def test_deadlines(rag, stub, folder):
    stub.pause = 0.3
    with pytest.raises(tamis.DeadlineExceeded):
        rag.answer(QUESTION, PASSAGES[:2], max_new_tokens=400, timeout=1.5)
    late = r"did not answer in time.*deadline="
    with load(folder, stub, deadline=3) as hasty, pytest.raises(tamis.DeadlineExceeded, match=late):
        hasty.answer(QUESTION, PASSAGES[:2], max_new_tokens=400)


def test_a_stream_may_take_as_long_as_its_timeout_says(rag, stub):
    rag._scorer.lease._patience = 0.4  # what a call without timeout= has
    stub.pause = 0.03
    options = {"max_new_tokens": 24, "timeout": 60}  # 0.7 seconds
    [*_, last] = rag.stream(QUESTION, PASSAGES[:1], **options)
    [*_, completed] = rag.stream_complete("zip", **options)

    async def both():
        [*_, last] = [piece async for piece in rag.astream(QUESTION, PASSAGES[:1], **options)]
        [*_, completed] = [piece async for piece in rag.astream_complete("zip", **options)]
        return last, completed

    assert all(piece.answer.text for piece in (last, completed, *asyncio.run(both())))
    with pytest.raises(tamis.DeadlineExceeded, match=r"did not answer in time.*deadline="):
        list(rag.stream_complete("zip", max_new_tokens=24))


def test_a_call_without_a_timeout_has_one_allowance(rag):
    lease = rag._scorer.lease

    def steps():
        ends = []
        for _ in range(2):
            with lease.open() as session:
                ends.append(session._end)
            time.sleep(0.01)
            yield ()
        return ends

    first, second = (rag.reranker.run("ends", 0, steps()) for _ in range(2))
    assert first[0] == first[1] < second[0] == second[1]
    given = rag.reranker.run("ends", 0, steps(), 5)
    assert given[0] == given[1] < second[0]
    assert rag.reranker.start("ends", 0, steps()).result()[0] > second[0]


# -- rows --------------------------------------------------------------------------------------------------------------


def test_rows_of_a_few_are_near_those_of_all():
    """Twenty of a vocabulary of a thousand, from unsure to sure beyond float32."""
    rng = np.random.default_rng(7)
    for sharpness in (1.0, 3.0, 10.0, 40.0):
        logits = rng.normal(size=1000) * sharpness
        log_p = logits - np.logaddexp.reduce(logits)
        for true in np.argsort(-log_p)[:3]:
            false = int(np.argsort(-log_p)[4])
            rest = np.logaddexp.reduce(np.delete(logits, true)) - np.logaddexp.reduce(logits)
            top = {int(token): float(np.float32(log_p[token])) for token in np.argsort(-log_p)[:20]}
            row = row_of(top, Label(int(true), ()), Label(false, ()))
            assert row == pytest.approx((log_p[true], log_p[false], rest), rel=1e-3, abs=1e-3)


def test_labels_that_are_not_among_the_likeliest():
    top = {1: math.log(0.9), 2: math.log(0.1)}
    assert row_of(top, Label(7, ()), Label(1, ()))[:2] == pytest.approx((math.log(0.1), math.log(0.9)))
    assert row_of({3: 0.0}, Label(3, ()), Label(4, ()))[2] < -20
    assert row_of({" Yes": -0.1}, Label(3, ("Yes", " Yes")), Label(4, ()))[0] == -0.1


@pytest.mark.parametrize("value", [None, "x", True, float("nan"), 3.0])
def test_log_probabilities_that_are_none(value):
    with pytest.raises(BadAnswer):
        top_of({"logprobs": {"top_logprobs": [{"a": value}]}})


def test_events_in_pieces():
    stream = 'data: {"é": 1}\r\n\r\nevent: x\nid: 3\ndata:[DONE]\n\n'.encode()
    for size in (1, 2, 3, 50):
        events = Events()
        fed = [data for at in range(0, len(stream), size) for data in events.feed(stream[at : at + size])]
        assert fed == ['{"é": 1}', "[DONE]"]
