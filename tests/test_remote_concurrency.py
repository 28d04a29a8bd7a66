"""Who waits for a server, from where, and what is left of it when he does not wait any longer."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import tamis
from remote_stubs import QUERY, Tei, drip, passages, serving
from tamis.remote import loop
from tamis.steps import deadline

LOGITS = (0.5, 2.0, -1.0)
BEST = [1, 0, 2]


@pytest.fixture
def stub():
    with serving(Tei()) as stub:
        yield stub


@pytest.fixture
def reranker(stub):
    with tamis.load(stub.url, mode="remote", api="tei") as reranker:
        yield reranker


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def indices(ranking):
    return [hit.index for hit in ranking]


def test_one_reranker_for_many_loops_and_threads(stub, reranker):
    async def several():
        rankings = await asyncio.gather(*(reranker.arank(QUERY, passages(*LOGITS)) for _ in range(5)))
        return [indices(ranking) for ranking in rankings]

    def use(number):
        if number % 2:
            return asyncio.run(several())
        return [indices(reranker.rank(QUERY, passages(*LOGITS))) for _ in range(5)]

    assert [asyncio.run(several()) for _ in range(3)] == [[BEST] * 5] * 3
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(use, range(16))) == [[BEST] * 5] * 16
    assert stub.peak <= 8
    assert len(stub.connections) <= 8, "connections outlive the loops that asked"


def test_many_requests_of_a_generator(reranker):
    requests = ((QUERY, passages(0.0, float(number))) for number in range(1, 70))
    assert [indices(ranking) for ranking in reranker.rank_many(requests)] == [[1, 0]] * 69


async def test_a_synchronous_call_inside_a_running_loop(reranker):
    """LlamaIndex's RetrieverEvaluator does that."""
    assert indices(reranker.rank(QUERY, passages(*LOGITS))) == BEST


async def test_no_event_loop_is_blocked(stub, reranker):
    stub.gate.clear()
    task = asyncio.ensure_future(reranker.arank(QUERY, passages(*LOGITS)))
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert not task.done()
    stub.gate.set()
    assert indices(await task) == BEST


async def test_requests_are_under_way_together(stub, reranker):
    stub.gate.clear()
    tasks = [asyncio.ensure_future(reranker.arank(QUERY, passages(*LOGITS))) for _ in range(8)]
    while stub.open < 8:
        await asyncio.sleep(0.01)
    stub.gate.set()
    assert [indices(ranking) for ranking in await asyncio.gather(*tasks)] == [BEST] * 8


async def test_cancelling_ends_the_requests_and_no_others(stub):
    with tamis.load(stub.url, mode="remote", api="tei", request_passages=1, connections=4) as reranker:
        stub.faults = [drip(0.01)] * 3
        task = asyncio.ensure_future(reranker.arank(QUERY, passages(*range(50))))
        while stub.open < 3:
            await asyncio.sleep(0.01)
        other = asyncio.ensure_future(reranker.arank(QUERY, passages(*LOGITS)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert indices(await other) == BEST
        while stub.dropped < 3:  # the server notices
            await asyncio.sleep(0.01)
        sent = len(stub.posts)
        await asyncio.sleep(0.1)
        assert len(stub.posts) == sent
        assert reranker.stats()["http_open"] == 0


def test_a_timeout_ends_the_requests(stub, reranker):
    stub.faults = [drip(0.01)]
    with pytest.raises(tamis.DeadlineExceeded):
        reranker.rank(QUERY, passages(*LOGITS), timeout=0.3)
    until(lambda: stub.dropped == 1)
    until(lambda: reranker.stats()["http_open"] == 0)


def test_closing_ends_the_requests_and_the_connections(stub, reranker):
    reranker.rank(QUERY, passages(*LOGITS))
    stub.gate.clear()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(reranker.rank, QUERY, passages(*LOGITS))
        until(lambda: stub.open == 1)
        reranker.close()
        with pytest.raises(tamis.Closed):
            waiting.result(20)
    stub.gate.set()
    until(lambda: not stub.connections)
    with pytest.raises(tamis.Closed):
        reranker.rank(QUERY, passages(*LOGITS))
    assert not loop._living


def test_a_reranker_that_is_dropped_closes_its_connections(stub):
    reranker = tamis.load(stub.url, mode="remote", api="tei")
    reranker.rank(QUERY, passages(*LOGITS))
    assert stub.connections
    del reranker
    gc.collect()
    until(lambda: not stub.connections)
    until(lambda: not loop._living)


def test_closing_one_leaves_the_other(stub, reranker):
    with tamis.load(stub.url, mode="remote", api="tei") as other:
        other.rank(QUERY, passages(*LOGITS))
    assert indices(reranker.rank(QUERY, passages(*LOGITS))) == BEST


def test_one_thread_does_all_of_it(reranker):
    before = {thread.name for thread in threading.enumerate()}
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: reranker.rank(QUERY, passages(*LOGITS)), range(20)))
    assert sum(thread.name == "tamis-remote" for thread in threading.enumerate()) == 1
    assert {name for name in before if name.startswith("tamis")} <= {thread.name for thread in threading.enumerate()}


def test_steps_know_when_the_caller_gives_up(reranker, monkeypatch):
    seen = []
    scorer = reranker._scorer
    usual = scorer.steps
    monkeypatch.setattr(scorer, "steps", lambda *given: (seen.append(deadline()), usual(*given))[1])
    now = time.monotonic()
    reranker.rank(QUERY, ["x 1"])
    reranker.rank(QUERY, ["x 1"], timeout=50)
    asyncio.run(reranker.arank(QUERY, ["x 1"], timeout=70))
    list(reranker.rank_many([(QUERY, ["x 1"])], timeout=90))
    assert seen[0] is None
    assert seen[1:] == [pytest.approx(now + seconds, abs=20) for seconds in (50, 70, 90)]
    assert deadline() is None


# -- processes ---------------------------------------------------------------------------------------------------------

FORK = """
import os, sys, warnings
import tamis
from remote_stubs import passages
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which is what is tested
reranker = tamis.load(sys.argv[1], mode="remote", api="tei")
best = lambda: [hit.index for hit in reranker.rank("q", passages(0.5, 2.0, -1.0))]
assert best() == [1, 0, 2]
child = os.fork()
if not child:
    os._exit(0 if [best(), best()] == [[1, 0, 2]] * 2 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert best() == [1, 0, 2]
child = os.fork()
if not child:
    reranker.close()
    sys.exit(0)  # through atexit
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert best() == [1, 0, 2]
print("good")
"""

LEAVING = """
import sys, threading, time
import tamis
reranker = tamis.load(sys.argv[1], mode="remote", api="tei")
reranker.rank("q", ["a 1"])
threading.Thread(target=reranker.rank, args=("q", ["b 1"] * 500), daemon=True).start()
time.sleep(float(sys.argv[2]))
print("good")
"""


def run(program, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    given = [sys.executable, "-X", "dev", "-W", "error", "-c", program, *arguments]
    return subprocess.run(given, capture_output=True, text=True, check=False, timeout=120, env=environment)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forking(stub):
    done = run(FORK, stub.url)
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr
    assert "Error" not in done.stderr
    assert len(stub.posts) == 5


@pytest.mark.parametrize("seconds", ["0", "0.2"])
def test_leaving_in_the_middle(stub, seconds):
    stub.faults = [None, *[drip(0.1)] * 8]
    done = run(LEAVING, stub.url, seconds)
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr
    assert "Warning" not in done.stderr, done.stderr
