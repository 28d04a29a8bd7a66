"""The engine as a service: faults, fairness, pressure, deadlines, devices, forks. Nothing lost, nobody hangs."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress

import numpy as np
import pytest

import tamis
import tiny
from fakes import FakeRunner, sequence, until
from tamis.engine.engine import Engine
from tamis.engine.scheduler import Job
from tamis.engine.sequences import Tokens

QUERY = "how is a zip archive read?"


def gathered(engine, runner, *submissions):
    """Futures of what arrives while the device is busy with a first batch."""
    runner.go.clear()
    runner.started.clear()
    first = engine.submit([sequence(2)])
    assert runner.started.wait(5)
    futures = [submit() for submit in submissions]
    runner.go.set()
    first.result(5)
    return futures


# -- sharing -----------------------------------------------------------------------------------------------------------


def test_identical_sequences_in_flight_are_computed_once():
    runner = FakeRunner()
    engine = Engine([runner], batch_tokens=100)
    same = sequence(9)
    futures = gathered(engine, runner, *[lambda: engine.submit([same, sequence(5), same])] * 4)
    assert [np.ravel(future.result(5)).tolist() for future in futures] == [[9, 5, 9]] * 4
    assert sum(batch.count(9) for batch in runner.batches) == 1
    assert engine.stats()["shared"] == 7
    engine.close()


def test_types_tell_sequences_apart():
    runner = FakeRunner()
    engine = Engine([runner], batch_tokens=100)
    ids = np.arange(5, dtype=np.int32)
    kinds = [None, np.zeros(5, np.int32), np.ones(5, np.int32)]
    futures = gathered(engine, runner, *[lambda kind=kind: engine.submit([Tokens(ids, kind)]) for kind in kinds])
    wait(futures, 5)
    assert sum(map(len, runner.batches)) == 1 + 3
    engine.close()


def test_a_cancelled_request_leaves_what_others_want():
    runner = FakeRunner()
    engine = Engine([runner], batch_tokens=100)
    same, own = sequence(9), sequence(8)

    def cancelled():
        future = engine.submit([same, own])
        future.cancel()
        return engine.submit([same])  # asks for it again, after it had left the queue

    gone, stays, again = gathered(
        engine, runner, lambda: engine.submit([same, own]), lambda: engine.submit([same, sequence(7)]), cancelled
    )
    gone.cancel()
    assert np.ravel(stays.result(5)).tolist() == [9, 7]
    assert np.ravel(again.result(5)).tolist() == [9]
    engine.close()


def test_score_cache_is_off_unless_asked_for_and_bounded():
    same = sequence(9)
    for size, runs in ((0, 3), (10_000, 1)):
        runner = FakeRunner()
        engine = Engine([runner], batch_tokens=100, score_bytes=size)
        for _ in range(3):
            assert engine.submit([same]).result(5)[0][0] == 9
        assert len(runner.batches) == runs
        assert engine.stats()["score_cache_hits"] == 3 - runs
        engine.close()


def test_score_cache_end_to_end(classifier):
    with tamis.load(classifier("bert"), dtype="float32", score_cache_bytes=2**20) as reranker:
        first = reranker.logits(QUERY, ["a", "b"])
        batches = reranker.stats()["batches"]
        assert reranker.logits(QUERY, ["b", "a"]) == first[::-1]
        assert reranker.stats()["batches"] == batches


def test_nothing_is_kept_of_a_request_that_ended(classifier):
    import gc

    others = [thing for thing in gc.get_objects() if type(thing) is Tokens]  # of other tests' requests
    with tamis.load(classifier("bert"), dtype="float32", score_cache_bytes=2**20) as reranker:
        reranker.logits(QUERY, [tiny.text(5, seed) for seed in range(50)])
        gc.collect()
        known = set(map(id, others))
        assert not [thing for thing in gc.get_objects() if type(thing) is Tokens and id(thing) not in known]
        assert not reranker._scorer._lease.loaded.engine._queue._pending


# -- fairness ----------------------------------------------------------------------------------------------------------


def test_a_small_request_is_not_behind_a_huge_one():
    runner = FakeRunner()
    engine = Engine([runner], batch_tokens=100)
    order = []
    huge = Job()

    def big():
        future = engine.submit([sequence(10) for _ in range(500)], huge)
        future.add_done_callback(lambda _: order.append("huge"))
        return future

    def small():
        future = engine.submit([sequence(9) for _ in range(10)])
        future.add_done_callback(lambda _: order.append((len(runner.batches), "small")))
        return future

    wait(gathered(engine, runner, big, small), 20)
    assert order[0][1] == "small"
    assert order[0][0] <= 1 + 2 * 2 + 2  # what ran before it, its own fair share, and no more
    engine.close()


def test_tenants_share_a_reranker(classifier):
    """One tenant floods, the other asks for little: the little one is served between."""
    done = {}
    with tamis.load(classifier("bert"), dtype="float32", batch_tokens=512) as reranker:

        def ask(name, count):
            with tamis.tenant(name):
                reranker.rank(QUERY, [tiny.text(40, i) for i in range(count)])
            done[name] = time.perf_counter()

        flood = threading.Thread(target=ask, args=("flood", 1500))
        flood.start()
        while not reranker.stats()["batches"]:
            time.sleep(0.005)
        ask("modest", 10)
        flood.join(60)
    assert done["modest"] < done["flood"]


async def test_the_tenant_of_a_task_reaches_the_engine(classifier):
    seen = []
    with tamis.load(classifier("bert"), dtype="float32", weight=3.0) as reranker:
        engine = reranker._scorer._lease.loaded.engine
        submit = engine.submit

        def watch(sequences, job, *entry, **options):
            seen.append((job.tenant, job.weight))
            return submit(sequences, job, *entry, **options)

        engine.submit = watch

        async def ask(name):
            with tamis.tenant(name, 2.0):
                await reranker.arank(QUERY, ["a"])

        await asyncio.gather(ask("a"), ask("b"))
        await reranker.arank(QUERY, ["a"])
    assert sorted(seen[:2]) == [("a", 2.0), ("b", 2.0)]
    assert seen[2][1] == 3.0


@pytest.mark.parametrize("weight", [0, -1, 1e-9, 1e9, float("inf"), float("nan"), "2", True])
def test_bad_weights(classifier, weight):
    with pytest.raises(tamis.InvalidInput, match="weight"):
        tamis.load(classifier("bert"), weight=weight)
    with pytest.raises(tamis.InvalidInput, match="weight"), tamis.tenant("a", weight):
        pass


# -- pressure and deadlines --------------------------------------------------------------------------------------------


def slow(reranker, seconds=0.02):
    """Makes every batch take its time."""
    runner = reranker._scorer._lease.loaded.engine._devices[0].runner
    run = runner.run

    def slowly(batch):
        time.sleep(seconds)
        return run(batch)

    runner.run = slowly


def test_a_full_queue_refuses_or_waits(classifier):
    options = {"dtype": "float32", "batch_tokens": 100, "queue_tokens": 500}
    passages = [tiny.text(8, seed) for seed in range(100)]
    with (
        tamis.load(classifier("bert"), **options) as strict,
        tamis.load(classifier("bert"), overload="wait", **options) as patient,
    ):
        slow(strict)
        with ThreadPoolExecutor(8) as pool:
            first = pool.submit(strict.rank, QUERY, passages)
            while strict.stats()["queued_tokens"] < 500:
                time.sleep(0.002)
            with pytest.raises(tamis.Overloaded, match="queue_tokens"):
                strict.rank(QUERY, ["a"])
            with pytest.raises(tamis.Overloaded):
                asyncio.run(strict.arank(QUERY, ["a"]))
            waiting = [pool.submit(patient.rank, QUERY, ["a"]), pool.submit(asyncio.run, patient.arank(QUERY, ["b"]))]
            assert len(first.result(60)) == 100
            assert [len(future.result(60)) for future in waiting] == [1, 1]
        assert strict.stats()["refused"] == 2


def test_many_requests_wait_for_one_another_and_not_for_others(classifier):
    requests = [(QUERY, [f"archive {i} {part}" for part in range(10)]) for i in range(40)]
    with tamis.load(classifier("bert"), dtype="float32", batch_tokens=100, queue_tokens=500) as reranker:
        slow(reranker)
        expected = [reranker.rank(*request).texts() for request in requests]
        assert [ranking.texts() for ranking in reranker.rank_many(iter(requests))] == expected
        assert reranker.stats()["refused"] == 0
        busy = reranker.rank_many(requests)
        next(busy)
        with pytest.raises(tamis.Overloaded):  # no request of its own is under way
            list(reranker.rank_many(requests))
        assert [ranking.texts() for ranking in busy] == expected[1:]


def test_deadlines(classifier):
    passages = [tiny.text(60, seed) for seed in range(400)]
    with tamis.load(classifier("bert"), dtype="float32", batch_tokens=200) as reranker:
        slow(reranker)
        for call in (reranker.rank, reranker.score, reranker.logits):
            start = time.perf_counter()
            with pytest.raises(tamis.DeadlineExceeded, match=r"timeout=0\.2"):
                call(QUERY, passages, timeout=0.2)
            assert time.perf_counter() - start < 2
        for call in (reranker.arank, reranker.ascore):
            with pytest.raises(TimeoutError, match=r"timeout=0\.2"):
                asyncio.run(call(QUERY, passages, timeout=0.2))
        with pytest.raises(tamis.DeadlineExceeded):
            list(reranker.rank_many([(QUERY, ["a"]), (QUERY, passages)], timeout=0.3))
        assert len(reranker.rank(QUERY, ["a"], timeout=30)) == 1
        until(lambda: reranker.stats()["queued_tokens"] == 0)  # a pool's thread may just find out
        for bad in (0, -1, "soon", True):
            with pytest.raises(tamis.InvalidInput, match="timeout"):
                reranker.rank(QUERY, ["a"], timeout=bad)


async def test_asyncio_timeout_withdraws(classifier):
    with tamis.load(classifier("bert"), dtype="float32", batch_tokens=200) as reranker:
        slow(reranker)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reranker.arank(QUERY, [tiny.text(60, seed) for seed in range(400)])
        assert len(await reranker.arank(QUERY, ["a"])) == 1
        until(lambda: reranker.stats()["queued_tokens"] == 0)


# -- faults ------------------------------------------------------------------------------------------------------------


def test_a_dead_thread_fails_every_waiter_with_the_cause_and_is_replaced():
    class Dying(FakeRunner):
        def run(self, batch):
            rows = super().run(batch)
            if any(tokens.ids[0] == -9 for tokens in batch):
                raise SystemExit("killed")
            return rows

    runner = Dying()
    engine = Engine([runner], batch_tokens=20)
    futures = gathered(
        engine, runner, lambda: engine.submit([sequence(15, first=-9)]), *[lambda: engine.submit([sequence(15)])] * 5
    )
    for future in futures:
        with pytest.raises(tamis.DeviceLost, match="killed"):
            future.result(5)
    assert engine.submit([sequence(4)]).result(5)[0][0] == 4
    assert engine.stats()["deaths"] == 1
    engine.close()


def test_the_budget_recovers_slowly():
    runner = FakeRunner(fits=50)
    engine = Engine([runner], batch_tokens=100)
    engine.submit([sequence(10) for _ in range(20)]).result(5)
    low = engine.stats()["batch_tokens"]
    assert low <= 50
    runner.fits = 1000
    for _ in range(60):
        engine.submit([sequence(10)]).result(5)
    risen = engine.stats()["batch_tokens"]
    assert low < risen < 100
    for _ in range(1000):
        engine.submit([sequence(3)]).result(5)
    assert engine.stats()["batch_tokens"] == 100
    engine.close()


def test_nan_belongs_to_its_request(classifier):
    with tamis.load(classifier("bert"), dtype="float32") as reranker:
        runner = reranker._scorer._lease.loaded.engine._devices[0].runner
        run = runner.run

        def sometimes(batch):
            rows = list(run(batch))
            for i, tokens in enumerate(batch):
                if len(tokens) > 100:
                    rows[i] = np.full_like(rows[i], np.nan)
            return rows

        runner.run = sometimes

        async def both():
            calls = [reranker.arank(QUERY, ["a", "b"]), reranker.arank(QUERY, ["a", tiny.text(200)])]
            return await asyncio.gather(*calls, return_exceptions=True)

        good, bad = asyncio.run(both())
        assert len(good) == 2
        assert isinstance(bad, tamis.InvalidScore)
        assert "passage 1" in str(bad)


def test_loops_and_threads_at_once(classifier):
    passages = [tiny.text(n, n) for n in (3, 20, 60)]
    with tamis.load(classifier("bert"), dtype="float32") as reranker:
        expected = reranker.logits(QUERY, passages)

        def loop():
            async def many():
                rankings = await asyncio.gather(*(reranker.arank(QUERY, passages) for _ in range(20)))
                return [[hit.logit for hit in sorted(r, key=lambda hit: hit.index)] for r in rankings]

            return asyncio.run(many())

        with ThreadPoolExecutor(10) as pool:
            loops = [pool.submit(loop) for _ in range(5)]
            threads = [pool.submit(lambda: [reranker.logits(QUERY, passages) for _ in range(20)]) for _ in range(5)]
            results = [logits for future in loops + threads for logits in future.result(120)]
    assert len(results) == 200
    np.testing.assert_allclose(results, [expected] * 200, atol=1e-5)


def test_ten_thousand_requests_cancelled_at_random():
    """On a fake device, so that it is the engine that is tried: every future is resolved, one way or another."""
    runner = FakeRunner()
    engine = Engine([runner], batch_tokens=256)
    random.seed(0)
    futures, kept = [], []

    def client(number):
        mine = random.Random(number)
        for _ in range(2500):
            length = mine.randint(1, 40)
            future = engine.submit([sequence(length), sequence(length)])
            futures.append(future)
            if mine.random() < 0.3:
                if mine.random() < 0.5:
                    time.sleep(0)
                future.cancel()
            else:
                kept.append((future, length))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    end = time.monotonic() + 60
    while not all(future.done() for future in futures) and time.monotonic() < end:
        time.sleep(0.01)
    assert all(np.ravel(future.result(1)).tolist() == [length] * 2 for future, length in kept)
    assert len(futures) == 10_000
    engine.close()
    assert engine.stats()["queued_tokens"] == 0
    assert not engine._queue._pending


def test_close_under_load(classifier):
    reranker = tamis.load(classifier("bert"), dtype="float32", batch_tokens=200)
    slow(reranker, 0.005)
    with ThreadPoolExecutor(16) as pool:
        calls = [pool.submit(reranker.rank, QUERY, [tiny.text(30, i) for i in range(100)]) for _ in range(8)]
        calls += [pool.submit(asyncio.run, reranker.arank(QUERY, [tiny.text(31, i)] * 100)) for i in range(8)]
        time.sleep(0.2)
        reranker.close()
        outcomes = [future.exception(30) for future in calls]
    assert all(error is None or isinstance(error, tamis.Closed) for error in outcomes)
    assert any(isinstance(error, tamis.Closed) for error in outcomes)


# -- several devices ---------------------------------------------------------------------------------------------------


def test_two_copies_share_one_queue():
    runners = [FakeRunner(), FakeRunner()]
    for runner in runners:
        runner.go.clear()
    engine = Engine(runners, batch_tokens=20)
    future = engine.submit([sequence(10) for _ in range(40)])
    for runner in runners:  # of both before any goes on, or one could run them all before the other is awake
        assert runner.started.wait(5)
    for runner in runners:
        runner.go.set()
    assert np.ravel(future.result(5)).tolist() == [10] * 40
    assert all(runner.batches for runner in runners)
    assert sum(len(batch) for runner in runners for batch in runner.batches) == 40
    engine.close()
    assert all(runner.freed for runner in runners)


def test_two_copies_of_a_real_model(classifier):
    passages = [tiny.text(n % 60, n) for n in range(1, 200)]
    with tamis.load(classifier("bert"), dtype="float32", device="cpu") as one:
        expected = one.logits(QUERY, passages)
    with tamis.load(classifier("bert"), dtype="float32", device=["cpu", "cpu"], batch_tokens=256) as two:
        np.testing.assert_allclose(two.logits(QUERY, passages), expected, atol=1e-5)
        assert two.stats()["devices"] == 2
        assert two.stats()["device"] == "cpu, cpu"
    with pytest.raises(tamis.InvalidInput, match="device"):
        tamis.load(classifier("bert"), device=[])


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_an_engine_of_its_own(classifier):
    code = f"""
import os, sys, tamis
reranker = tamis.load({str(classifier("bert"))!r}, dtype="float32", device="cpu")
expected = reranker.logits("zip", ["a zip archive", "rain"])
child = os.fork()
if child == 0:
    import asyncio
    given = reranker.logits("zip", ["a zip archive", "rain"])
    again = asyncio.run(reranker.ascore("zip", ["a"]))
    os._exit(0 if max(abs(a - b) for a, b in zip(given, expected)) < 1e-5 and len(again) == 1 else 1)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), len(reranker.logits("zip", ["b"])))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["0", "1"], done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_was_forked_while_another_thread_loaded_loads_by_itself():
    code = """
import os, signal, threading
from tamis.engine.shared import Shared
shared = Shared(lambda value: None)
begun, go_on = threading.Event(), threading.Event()

def slowly():
    begun.set()
    go_on.wait()
    return "parent's"

loading = threading.Thread(target=shared.take, args=("model", slowly))
loading.start()
begun.wait()
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(0 if shared.take("model", lambda: "child's") == "child's" else 1)
_, status = os.waitpid(child, 0)
go_on.set()
loading.join()
print(os.waitstatus_to_exitcode(status), shared.take("model", lambda: "another"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split(maxsplit=1) == ["0", "parent's\n"], done.stderr


def test_a_child_of_a_gpu_process_is_told():
    class OnCuda(FakeRunner):
        survives_fork = False

    engine = Engine([OnCuda()], batch_tokens=100)
    assert engine.submit([sequence(3)]).result(5)[0][0] == 3
    engine._after_fork()
    with pytest.raises(tamis.DeviceLost, match="spawn"):
        engine.submit([sequence(3)])


@pytest.mark.parametrize("ending", ["pass", "sys.exit(3)", "raise ValueError"])
def test_exit_never_hangs(classifier, ending):
    code = f"""
import sys, threading, asyncio, tamis
reranker = tamis.load({str(classifier("bert"))!r}, dtype="float32")
threading.Thread(target=lambda: reranker.rank("zip", ["word " * 300] * 3000), daemon=True).start()
reranker._start(reranker._scores("zip", ["word " * 300] * 3000))
{ending}
"""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert time.perf_counter() - start < 60


def test_stats_are_numbers_to_graph(classifier):
    with tamis.load(classifier("bert"), dtype="float32") as reranker:
        reranker.rank(QUERY, ["a", "b"])
        stats = reranker.stats()
    for name in ("queued_tokens", "tokens_per_batch", "sequences_per_batch", "padding", "splits", "shared", "refused"):
        assert isinstance(stats[name], int | float)
    for name in ("latency", "queue_wait", "engine_latency"):
        assert 0 <= stats[f"{name}_p50"] <= stats[f"{name}_p95"] <= stats[f"{name}_p99"]


@pytest.mark.slow
def test_ten_minutes_of_mixed_load_leave_memory_flat(classifier):
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096 / 2**20

    mine = random.Random(0)
    with tamis.load(classifier("bert"), dtype="float32", batch_tokens=512) as reranker:

        async def request():
            passages = [
                tiny.text(mine.randint(1, 80), mine.randint(0, 10**6)) for _ in range(mine.choice([1, 10, 200]))
            ]
            with suppress(tamis.DeadlineExceeded):
                await reranker.arank(QUERY, passages, timeout=mine.choice([None, 0.05, 5]))

        async def load(seconds):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                await asyncio.gather(*(request() for _ in range(8)))

        asyncio.run(load(60))
        before = resident()
        asyncio.run(load(540))
        grown = resident() - before
        assert reranker.stats()["queued_tokens"] == 0
    assert grown < 50


def test_torch_is_not_imported_by_the_scheduler():
    code = "import sys, tamis.engine.scheduler, tamis.engine.counters; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_deadline_that_is_met_or_missed_by_a_hair(classifier):
    """Either the ranking or `DeadlineExceeded`, never a bare error from between the two."""
    with tamis.load(classifier("bert"), dtype="float32") as reranker:
        typical = []
        for _ in range(5):
            start = time.perf_counter()
            asyncio.run(reranker.arank(QUERY, ["a"]))
            typical.append(time.perf_counter() - start)

        async def many():
            calls = [
                reranker.arank(QUERY, [f"a {i}"], timeout=sorted(typical)[2] * (i % 20 + 1) / 8) for i in range(400)
            ]
            return await asyncio.gather(*calls, return_exceptions=True)

        outcomes = asyncio.run(many())
    assert {type(outcome) for outcome in outcomes} <= {tamis.Ranking, tamis.DeadlineExceeded}
