"""The limit on what waits for a device holds for requests that come at one instant, and nothing of it is lost."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import pytest

import tamis
import tiny
from fakes import FakeRunner, sequence, until
from tamis.cache import ByteLRU
from tamis.engine.engine import Engine
from tamis.engine.loaded import Lease, Loaded
from tamis.steps import Party, Request

LIMIT = 1000
QUERY = "how is a zip archive read?"


class Watched(FakeRunner):
    """Notes how much waits whenever a batch runs: nothing comes in after that until the next is taken."""

    engine: Engine
    most = 0

    def run(self, batch):
        self.most = max(self.most, self.engine.stats()["queued_tokens"])
        return super().run(batch)


@pytest.fixture
def runner():
    return Watched()


@pytest.fixture
def engine(runner):
    made = runner.engine = Engine([runner], batch_tokens=50, queue_tokens=LIMIT)
    yield made
    runner.go.set()
    made.close()


@pytest.fixture
def lease(engine, request):
    """A door to it; with `wait` as its parameter one that waits."""
    loaded = Loaded(engine, None, longest=LIMIT, width=1, vectors=ByteLRU(0), facts={})
    made = Lease(engine, lambda: loaded, wait=getattr(request, "param", None) == "wait")
    yield made
    made.close()


waiting = pytest.mark.parametrize("lease", ["wait"], indirect=True)


@pytest.fixture
def busy(engine, runner):
    """The device has a batch, and takes no other before `runner.go`."""
    runner.go.clear()
    engine.submit([sequence(2)])
    assert runner.started.wait(5)
    yield
    runner.go.set()


def steps(lease, *sizes, gate=None, begun=None):
    """A request of several submissions, each of one sequence; it waits at `gate` once it has begun."""
    with lease.open() as session:
        if room := session.backlog:
            yield room
        if gate is not None:
            begun.append(sizes)
            yield [gate]
        for size in sizes:
            session.submit([sequence(size)])
            if late := session.backlog:
                yield late
        yield session.pending
        return [int(future.result()[0][0]) for future in session.pending]


def idle(engine):
    """Whether nothing waits, in the queue or before it."""
    return engine.stats()["queued_tokens"] == 0 and not engine._queue._admission._line and not engine._queue._pending


def test_of_many_at_one_instant_as_many_come_in_as_there_is_room_for(engine, runner, lease, busy):
    begun, gate = [], Future()
    requests = [Request(steps(lease, 90, gate=gate, begun=begun)) for _ in range(64)]
    with ThreadPoolExecutor(32) as pool:
        asked = [pool.submit(request.run, 30) for request in requests[:32]]  # in a thread of its own
        asked += [request.start() for request in requests[32:]]  # as event loops have it
        until(lambda: len(begun) == 64)
        assert engine.stats()["queued_tokens"] == 0, "all have begun, and none has brought its tokens"
        gate.set_result(None)
        until(lambda: engine.stats()["refused"] == 64 - LIMIT // 90)
        assert engine.stats()["queued_tokens"] == LIMIT // 90 * 90
        runner.go.set()
        errors = [future.exception(20) for future in asked]
    assert sum(isinstance(error, tamis.Overloaded) for error in errors) == 64 - LIMIT // 90
    assert [future.result() for future, error in zip(asked, errors, strict=True) if error is None] == [[90]] * 11
    assert idle(engine)
    assert Request(steps(lease, 90)).run(20) == [90]


@waiting
def test_those_who_wait_are_all_answered_and_the_limit_holds(engine, runner, lease, busy):
    sizes = [[30 + number % 60] * (1 + number % 4) for number in range(100)]
    begun = threading.Barrier(50)

    def ask(number):
        if number < 50:
            begun.wait(20)
            return Request(steps(lease, *sizes[number])).run(60)
        return Request(steps(lease, *sizes[number])).start().result(60)

    with ThreadPoolExecutor(100) as pool:
        answers = [pool.submit(ask, number) for number in range(100)]
        until(lambda: engine.stats()["queued_tokens"] > LIMIT - 90)
        runner.go.set()
        assert [answer.result(60) for answer in answers] == sizes
    assert LIMIT - 90 < runner.most <= LIMIT
    assert engine.stats()["refused"] == 0
    assert idle(engine)


def test_what_is_larger_comes_in_alone(engine, runner, lease, busy):
    large = Request(steps(lease, 5 * LIMIT)).start()
    until(lambda: engine.stats()["queued_tokens"] > 0)
    with pytest.raises(tamis.Overloaded, match=r"5000 tokens wait .* and 1000 may"):
        Request(steps(lease, 1)).run(5)
    runner.go.set()
    assert large.result(20) == [5 * LIMIT]
    runner.go.clear()
    runner.started.clear()
    first = Request(steps(lease, 10, 10)).start()
    assert runner.started.wait(5)
    second = Request(steps(lease, 10)).start()
    until(lambda: engine.stats()["queued_tokens"] > 0)
    with pytest.raises(tamis.Overloaded):
        Request(steps(lease, 5 * LIMIT)).run(5)
    runner.go.set()
    assert [first.result(20), second.result(20)] == [[10, 10], [10]]
    assert idle(engine)


def test_a_request_that_has_begun_to_come_in_is_not_refused(engine, runner, lease, busy):
    long = Request(steps(lease, *[90] * 40)).start()
    until(lambda: engine.stats()["queued_tokens"] == 990)
    with pytest.raises(tamis.Overloaded):
        Request(steps(lease, 1)).run(5)
    runner.go.set()
    assert long.result(20) == [90] * 40
    assert runner.most <= LIMIT
    assert idle(engine)


@waiting
def test_nobody_overtakes_the_line(engine, runner, lease, busy):
    order = []

    def ask(size):
        future = Request(steps(lease, size)).start()
        future.add_done_callback(lambda _: order.append(size))
        until(lambda: engine.stats()["queued_tokens"] == 900 and len(engine._queue._admission._line) == len(futures))
        futures.append(future)

    futures = []
    for size in (900, 600, 90, 80):  # the last two would fit, and stand behind one that does not
        ask(size)
    runner.go.set()
    assert [future.result(20) for future in futures] == [[900], [600], [90], [80]]
    assert order[:2] == [900, 600]
    assert idle(engine)


@waiting
@pytest.mark.parametrize("ending", ["cancelled", "late", "failed"])
def test_whoever_goes_away_leaves_his_place(engine, runner, lease, busy, ending):
    def failing():
        with lease.open() as session:
            session.submit([sequence(500)])
            raise KeyError("the caller's own")
        yield []

    stays = Request(steps(lease, 600)).start()
    until(lambda: engine.stats()["queued_tokens"] == 600)
    if ending == "failed":
        with pytest.raises(KeyError):
            Request(failing()).run(5)
    else:
        goes = Request(steps(lease, 500))
        future = goes.start()
        until(lambda: len(engine._queue._admission._line) == 1)
        next_one = Request(steps(lease, 300)).start()
        until(lambda: len(engine._queue._admission._line) == 2)
        if ending == "cancelled":
            assert future.cancel()
        else:
            goes.fail(tamis.DeadlineExceeded("too late"))
        until(lambda: engine.stats()["queued_tokens"] == 900)
        assert not engine._queue._admission._line
    runner.go.set()
    assert stays.result(20) == [600]
    if ending != "failed":
        assert next_one.result(20) == [300]
    until(lambda: idle(engine))


@pytest.mark.parametrize("begun", [True, False], ids=["begun before", "begun after"])
def test_the_first_of_a_call_is_not_refused_because_of_those_behind_it(engine, runner, busy, begun):
    """Whose texts take long to become tokens finds the queue full of the call's own requests."""
    together, apart = Party(), Party()
    first = engine.admit(party=together) if begun else None
    alone = engine.admit(party=apart)
    others = engine.submit([sequence(LIMIT - 10)], entry=engine.admit(wait=True, party=together))
    with pytest.raises(tamis.Overloaded):  # its call has nothing in the queue
        engine.submit([sequence(100)], entry=alone)
    assert not apart.let_in
    first = first or engine.admit(party=together)
    future = engine.submit([sequence(100)], entry=first)
    assert not future.done()
    runner.go.set()
    assert len(others.result(20)) == len(future.result(20)) == 1
    assert engine.stats()["refused"] == 1


def test_a_request_without_sequences_takes_no_place(engine, lease, busy):
    full = Request(steps(lease, LIMIT)).start()
    until(lambda: engine.stats()["queued_tokens"] > 0)
    entry = engine.admit(wait=True)
    assert engine.submit([], entry=entry).result(1) == []
    assert not entry.room.done()
    entry.room.cancel()
    full.cancel()
    until(lambda: engine.stats()["queued_tokens"] == 0)
    with lease.open() as session:
        assert session.submit([]).result(1) == []
        assert not session.backlog
    assert engine.admit().room.done(), "who had gone from the line stands in nobody's way"


@waiting
@pytest.mark.parametrize("ending", ["close", "death"])
def test_the_end_of_an_engine_reaches_the_line(engine, runner, lease, busy, ending):
    asked = [Request(steps(lease, 700)).start() for _ in range(5)]
    until(lambda: len(engine._queue._admission._line) == 4)
    if ending == "close":
        threading.Timer(0.05, runner.go.set).start()  # close waits for the batch that runs
        engine.close()
    else:
        device = engine._devices[0]
        engine._queue.died(device, SystemExit("the thread"), [])
        runner.go.set()
    error = {"close": tamis.Closed, "death": tamis.DeviceLost}[ending]
    assert [type(future.exception(20)) for future in asked] == [error] * 5
    assert not engine._queue._admission._line


def let_in(engine):
    """How many requests of ten passages wait in the queue."""
    with engine._queue._wake:
        jobs = Counter(id(work.payload.job) for work in engine._queue._pending.values())
    return sum(count >= 10 for count in jobs.values())


@pytest.mark.parametrize("mode", ["cross-encoder", "bi-encoder"])
def test_threads_and_tasks_at_one_instant(classifier, tmp_path, mode):
    """A whole reranker, which submits a query before its passages where it is a bi-encoder."""
    folder = classifier("bert") if mode == "cross-encoder" else tiny.save_encoder(tmp_path / "encoder", "bert")
    options = {"mode": mode, "dtype": "float32", "queue_tokens": LIMIT, "cache_bytes": 0}
    passages = [[f"archive {number} {part} " + tiny.text(20, number) for part in range(10)] for number in range(24)]
    with tamis.load(folder, **options) as reranker:
        expected = [reranker.logits(QUERY, some) for some in passages]
        engine = (reranker._scorer._lease if mode == "cross-encoder" else reranker._scorer.passage.lease).loaded.engine
        runner = engine._devices[0].runner
        run, gate, started = runner.run, threading.Event(), threading.Event()

        def held(batch):
            started.set()
            gate.wait(60)
            return run(batch)

        runner.run = held
        first = reranker.rank_many([(QUERY, ["another"])])
        begun = threading.Barrier(13)

        def ask(number):
            begun.wait(20)
            try:
                return reranker.logits(QUERY, passages[number])
            except tamis.Overloaded:
                return None

        async def tasks():
            begun.wait(20)
            some = [reranker.ascore(QUERY, passages[number]) for number in range(12, 24)]
            return await asyncio.gather(*some, return_exceptions=True)

        with ThreadPoolExecutor(14) as pool, ExitStack() as last:
            last.callback(gate.set)
            busy = pool.submit(list, first)
            assert started.wait(20)
            answers = [pool.submit(ask, number) for number in range(12)]
            scores = pool.submit(asyncio.run, tasks())
            until(lambda: engine.stats()["refused"] + let_in(engine) == 24)
            assert LIMIT / 2 < engine.stats()["queued_tokens"] <= LIMIT
            gate.set()
            logits = [answer.result(60) for answer in answers]
            scored = scores.result(60)
            assert len(busy.result(60)) == 1
        refused = logits.count(None) + sum(isinstance(one, tamis.Overloaded) for one in scored)
        assert 0 < refused < 24
        assert engine.stats()["refused"] == refused
        for number, values in enumerate(logits):
            assert values is None or values == pytest.approx(expected[number], abs=1e-4)
        assert all(isinstance(one, list | tamis.Overloaded) for one in scored)
        assert reranker.logits(QUERY, passages[0]) == pytest.approx(expected[0], abs=1e-4)
        assert idle(engine)
