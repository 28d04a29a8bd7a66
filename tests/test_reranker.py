"""The policy: input, order, cuts; and every way of waiting for it."""

from __future__ import annotations

import asyncio
import copy
import io
import sys
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tamis
from fakes import FakeScorer
from standstill import watched
from tamis import Passage, Reranker
from tamis.reranker import IN_FLIGHT
from tamis.steps import deadline


def test_best_first_with_indices_of_the_caller():
    ranking = Reranker(FakeScorer()).rank("q", ["a", Passage("ccc", id="x", metadata={"k": 1}), "bb"])
    assert [(hit.index, hit.logit) for hit in ranking] == [(1, 3.0), (2, 2.0), (0, 1.0)]
    assert ranking[0].passage.id == "x"
    assert ranking[0].passage.metadata == {"k": 1}
    assert ranking.texts() == ["ccc", "bb", "a"]
    assert [hit.index for hit in ranking[1:]] == [2, 0]
    assert ranking.model == "fake"


@given(st.lists(st.sampled_from([-50.0, -1.0, 0.0, 1.0, 50.0, 60.0]), max_size=30))
def test_order_is_stable_and_scores_are_monotone(logits):
    reranker = Reranker(FakeScorer(lambda query, passage: float(passage)))
    ranking = reranker.rank("q", [str(logit) for logit in logits])
    assert [hit.index for hit in ranking] == sorted(range(len(logits)), key=lambda i: -logits[i])
    scores = [hit.score for hit in ranking]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


def test_passages_that_saturate_are_still_ordered():
    reranker = Reranker(FakeScorer(lambda query, passage: float(passage)))
    assert [hit.index for hit in reranker.rank("q", ["40.0", "41.0", "40.5"])] == [1, 2, 0]


@given(st.lists(st.floats(-5, 5), max_size=20), st.floats(0, 1), st.integers(1, 25))
def test_cuts_keep_a_prefix(logits, least, top_n):
    reranker = Reranker(FakeScorer(lambda query, passage: float(passage)))
    passages = [str(logit) for logit in logits]
    every = reranker.rank("q", passages)
    kept = reranker.rank("q", passages, min_score=least, top_n=top_n)
    good = [hit for hit in every if hit.score >= least]
    assert list(kept) == good[:top_n]
    assert kept.usage.below_min_score == len(every) - len(good)


def test_token_budget_keeps_a_prefix_and_says_what_it_left():
    passages = ["one two three four", "one two three", "one"]
    reranker = Reranker(FakeScorer())
    ranking = reranker.rank("q", passages, max_tokens=7)
    assert ranking.texts() == passages[:2]
    assert ranking.usage.over_budget == 1
    assert len(reranker.rank("q", passages, max_tokens=3)) == 0
    assert reranker.rank("q", passages, max_tokens=30, tokenizer=len).texts() == passages[:1]


def test_permuting_passages_permutes_scores(embedded):
    passages = ["a zip file", "a tar file", "the rain", "a zip archive"]
    scores = embedded.score("how is a zip archive read?", passages)
    assert embedded.score("how is a zip archive read?", passages[::-1]) == pytest.approx(scores[::-1], abs=1e-6)


def test_empty_passages_make_an_empty_ranking():
    reranker = Reranker(FakeScorer())
    assert len(reranker.rank("q", [])) == 0
    assert reranker.score("q", ()) == []
    assert asyncio.run(reranker.arank("q", [])).texts() == []


@pytest.mark.parametrize(
    ("query", "passages", "said"),
    [
        ("", ["a"], "query is empty"),
        (" \n", ["a"], "query is empty"),
        (None, ["a"], "NoneType"),
        (b"q", ["a"], "bytes"),
        (3, ["a"], "int"),
        ("q", "text", "passages is a str"),
        ("q", b"text", "passages is a bytes"),
        ("q", None, "passages is a NoneType"),
        ("q", Passage("a"), "passages is a Passage"),
        ("q", {"a": 1}, "passages is a dict"),
        ("q", ["a", None], "Passage 1 is a NoneType"),
        ("q", ["a", "b", b"c"], "Passage 2 is a bytes"),
        ("q", [Passage(None)], "Passage 0 is a Passage whose text is a NoneType"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_named(query, passages, said):
    reranker = Reranker(FakeScorer())
    for call in (reranker.rank, reranker.score, reranker.logits):
        with pytest.raises(tamis.InvalidInput, match=said):
            call(query, passages)
    with pytest.raises(tamis.InvalidInput, match=said):
        asyncio.run(reranker.arank(query, passages))
    with pytest.raises(ValueError, match=f"Request 1: .*{said}"):
        list(reranker.rank_many([("q", ["fine"]), (query, passages)]))


def test_what_cannot_count_is_refused_before_anything_is_scored():
    scorer = FakeScorer()
    reranker, unread = Reranker(scorer), iter([("q", ["a"])])
    for passages in ([], ["a"]):
        with pytest.raises(tamis.InvalidInput, match=r"^tokenizer= is a int"):
            reranker.rank("q", passages, max_tokens=3, tokenizer=7)
        with pytest.raises(tamis.InvalidInput, match=r"^tokenizer= is a int"):
            asyncio.run(reranker.arank("q", passages, max_tokens=3, tokenizer=7))
    with pytest.raises(tamis.InvalidInput, match=r"^tokenizer= is a int"):
        list(reranker.rank_many(unread, max_tokens=3, tokenizer=7))
    assert scorer.gates == []
    assert next(unread) == ("q", ["a"])


def test_steps_are_told_when_their_caller_gives_up():
    reranker = Reranker(FakeScorer())

    def steps():
        yield ()
        return deadline()

    assert reranker.start("x", 0, steps()).result() is None
    end = time.monotonic() + 100
    assert end <= reranker.start("x", 0, steps(), 100.0).result() <= end + 10


@pytest.mark.parametrize("timeout", [0, -1, 0.0, True, "soon", float("nan"), float("inf"), 1e10])
def test_bad_timeouts_are_refused(timeout):
    reranker = Reranker(FakeScorer())
    for call in (reranker.rank, reranker.score, lambda *given, **options: list(reranker.rank_many([given], **options))):
        with pytest.raises(tamis.InvalidInput, match=f"timeout is {timeout!r}"):
            call("q", ["a"], timeout=timeout)
        call("q", ["a"], timeout=1e9)  # what a clock can wait


@pytest.mark.parametrize(
    "cut",
    [
        {"top_n": 0}, {"top_n": -1}, {"top_n": 2.0}, {"top_n": True}, {"top_n": "3"},
        {"min_score": -0.1}, {"min_score": 1.1}, {"min_score": float("nan")}, {"min_score": "high"},
        {"max_tokens": 0}, {"max_tokens": 1.5},
    ],
)  # fmt: skip
def test_bad_cuts_are_refused(cut):
    with pytest.raises(tamis.InvalidInput, match=next(iter(cut))):
        Reranker(FakeScorer()).rank("q", ["a"], **cut)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_names_its_passage(value):
    reranker = Reranker(FakeScorer(lambda query, passage: value if passage == "bad" else 1.0))
    for call in (reranker.rank, reranker.score, reranker.logits):
        with pytest.raises(tamis.InvalidScore, match="passage 2"):
            call("q", ["a", "b", "bad"])


def test_nothing_passed_in_is_changed():
    metadata = {"k": [1]}
    passages = [Passage("a", metadata=metadata), "b"]
    before = copy.deepcopy(passages)
    Reranker(FakeScorer()).rank("q", passages, top_n=1)
    assert passages == before
    assert passages[0].metadata is metadata


def test_odd_text_is_scored(embedded):
    passages = ["\ud800 lone", "nul \0 byte", "", "   ", "\n", "😀 emoji", "a zip archive", "\udce4"]
    ranking = embedded.rank("how is a zip archive \udc80 read?", passages)
    assert sorted(hit.index for hit in ranking) == list(range(8))
    assert ranking[0].index == 6


def test_rank_many_keeps_the_order_and_reads_ahead_lazily():
    reranker = Reranker(FakeScorer())
    taken = []

    def requests():
        for i in range(200):
            taken.append(i)
            yield f"query {i}", ["a" * (i + 1), "b"]

    rankings = reranker.rank_many(requests(), top_n=1)
    assert next(rankings)[0].logit == 1.0
    assert len(taken) == IN_FLIGHT
    assert [ranking[0].logit for ranking in rankings] == [float(i + 1) for i in range(1, 200)]


def test_progress_is_silent_where_there_is_no_terminal(capsys):
    list(Reranker(FakeScorer()).rank_many([("q", ["a"])] * 3, progress=True))
    assert capsys.readouterr() == ("", "")


def test_progress_is_drawn_on_a_terminal_for_whoever_asks(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    drawn = []
    for options in ({"progress": True}, {}):
        monkeypatch.setattr(sys, "stderr", Terminal())
        list(Reranker(FakeScorer()).rank_many([("q", ["a"])] * 3, **options))
        drawn.append(sys.stderr.getvalue())
    assert "ranking" in drawn[0]
    assert "3/3" in drawn[0]
    assert drawn[1] == ""


@pytest.mark.parametrize("request_", ["ab", ("q",), ("q", ["a"], 1), ["q"], {"q": 1, "a": 2}])
def test_a_request_that_is_no_pair_is_named_by_its_place(request_):
    ranked = Reranker(FakeScorer()).rank_many([("q", ["a"]), request_])
    with pytest.raises(tamis.InvalidInput, match=r"Request 1: .*pass \(query, passages\)"):
        list(ranked)


def test_those_under_way_are_withdrawn_when_a_later_one_is_wrong():
    scorer = FakeScorer()
    scorer.gated = True

    def requests():
        yield "q", ["a"]
        while not scorer.gates:
            time.sleep(0.001)
        yield "q", None

    with pytest.raises(tamis.InvalidInput, match="Request 1"):
        list(Reranker(scorer).rank_many(requests()))
    assert scorer.gates[0].done()


def test_one_of_many_that_is_late_is_withdrawn():
    scorer = FakeScorer()
    scorer.gated = True
    with pytest.raises(tamis.DeadlineExceeded):
        list(Reranker(scorer).rank_many([("q", ["a"])], timeout=0.2))
    assert scorer.gates[0].done()


def test_several_loops_and_threads_at_once(embedded):
    passages = ["a zip archive", "the rain", "a tar archive"]
    expected = embedded.score("zip", passages)

    def loop():
        async def many():
            return await asyncio.gather(*(embedded.ascore("zip", passages) for _ in range(20)))

        return asyncio.run(many())

    with ThreadPoolExecutor(8) as pool:
        loops = [pool.submit(loop) for _ in range(4)]
        threads = [pool.submit(embedded.score, "zip", passages) for _ in range(20)]
        results = [scores for future in loops for scores in future.result(60)] + [t.result(60) for t in threads]
    assert len(results) == 100
    assert all(scores == pytest.approx(expected, abs=1e-5) for scores in results)


def test_a_sync_call_inside_a_running_loop(embedded):
    async def inside():
        return embedded.score("zip", ["a zip archive"])

    assert len(asyncio.run(inside())) == 1


async def test_waiting_never_holds_the_loop():
    scorer = FakeScorer()
    scorer.gated = True
    reranker = Reranker(scorer)
    async with watched() as seen:
        ranked = asyncio.gather(*(reranker.arank("q", ["a", "bb"]) for _ in range(50)))
        while len(scorer.gates) < 50:  # opened earlier, those that come late would wait for ever
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.5)
        assert not ranked.done()
        for gate in scorer.gates:
            gate.set_result(None)
        assert all(ranking[0].index == 1 for ranking in await ranked)
    assert seen.held() < 0.2


async def test_cancelling_withdraws(classifier):
    with tamis.load(classifier("bert"), dtype="float32") as reranker:
        task = asyncio.create_task(reranker.arank("zip", ["word " * 400] * 5000))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        start = time.perf_counter()
        assert len(await reranker.arank("zip", ["a"])) == 1
        assert time.perf_counter() - start < 5  # the 5,000 are not in the way
        assert reranker.stats()["queued_sequences"] == 0


def test_close_wakes_whoever_waits():
    scorer = FakeScorer()
    scorer.gated = True
    reranker = Reranker(scorer)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(reranker.rank, "q", ["a"]) for _ in range(2)]
        waiting += [pool.submit(asyncio.run, reranker.arank("q", ["a"])) for _ in range(2)]
        time.sleep(0.2)
        reranker.close()
        for future in waiting:
            with pytest.raises(tamis.Closed, match="load"):
                future.result(5)
    for call in (reranker.rank, reranker.score):
        with pytest.raises(tamis.Closed):
            call("q", ["a"])
    reranker.close()
    assert scorer.closed == 1


def test_close_of_one_leaves_the_other(classifier):
    folder = classifier("bert")
    first, second = tamis.load(folder, dtype="float32"), tamis.load(folder, dtype="float32")
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(first.rank, "zip", ["word " * 400] * 3000)
        time.sleep(0.1)
        other = pool.submit(second.rank, "zip", ["a zip archive"])
        first.close()
        with pytest.raises(tamis.Closed):
            slow.result(30)
        assert len(other.result(30)) == 1
    second.close()


def test_an_error_belongs_to_its_own_request():
    def logit(query, passage):
        if query == "bad":
            raise RuntimeError("broken model")
        return 1.0

    async def both():
        reranker = Reranker(FakeScorer(logit))
        return await asyncio.gather(
            *(reranker.arank(q, ["a"]) for q in ("good", "bad", "good")), return_exceptions=True
        )

    first, second, third = asyncio.run(both())
    assert isinstance(second, RuntimeError)
    assert len(first) == len(third) == 1


def test_stats_and_copies():
    reranker = Reranker(FakeScorer())
    for _ in range(3):
        reranker.rank("q", ["a"])
    stats = reranker.stats()
    assert stats["requests"] == 3
    assert 0 <= stats["latency_p50"] <= stats["latency_p95"] <= stats["latency_p99"]
    assert copy.deepcopy(reranker) is reranker
    assert "fake" in repr(reranker)


def test_context_manager_closes():
    scorer = FakeScorer()
    with Reranker(scorer) as reranker:
        assert reranker.score("q", ["a"])
    assert scorer.closed == 1


async def test_a_future_that_a_scorer_cancelled_ends_the_request():
    scorer = FakeScorer()
    scorer.gated = True
    asked = asyncio.create_task(Reranker(scorer).arank("q", ["a"], timeout=5))
    while not scorer.gates:
        await asyncio.sleep(0.005)
    scorer.gates[0].cancel()
    with pytest.raises((asyncio.CancelledError, CancelledError)):
        await asked
