"""Loading on first use: once, whoever asks, on whichever loop or thread."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import tamis
from tamis.lazy import LazyReranker


class Slow:
    """Makes a value, slowly, and remembers on which threads."""

    def __init__(self, seconds=0.1, failures=0):
        self.seconds = seconds
        self.failures = failures
        self.threads = []

    def __call__(self, **options):
        self.threads.append(threading.current_thread())
        time.sleep(self.seconds)
        if len(self.threads) <= self.failures:
            raise tamis.LoadError("not this time")
        return object()


def test_threads_wait_for_one_load():
    make = Slow()
    lazy = LazyReranker(make, {})
    with ThreadPoolExecutor(16) as threads:
        values = list(threads.map(lambda _: lazy.get(), range(16)))
    assert len(make.threads) == len(set(values)) == 1


async def test_loads_off_the_loop_and_leaves_the_executor_free():
    make = Slow(0.3)
    lazy = LazyReranker(make, {})
    waiting = [asyncio.ensure_future(lazy.aget()) for _ in range(50)]
    await asyncio.sleep(0)
    start = time.perf_counter()
    await asyncio.to_thread(time.sleep, 0)  # the executor's few threads are not waiting for the load
    assert time.perf_counter() - start < 0.2
    assert not any(task.done() for task in waiting)
    assert len(set(await asyncio.gather(*waiting))) == len(make.threads) == 1
    assert make.threads[0] is not threading.current_thread()


async def test_one_cancelled_waiter_is_alone():
    make = Slow()
    lazy = LazyReranker(make, {})
    first, second = (asyncio.ensure_future(lazy.aget()) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    value = await second
    assert first.cancelled()
    assert await lazy.aget() is value
    assert len(make.threads) == 1


def test_threads_and_loops_wait_for_each_other():
    make = Slow()
    lazy = LazyReranker(make, {})
    with ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(asyncio.run, lazy.aget()) for _ in range(2)]
        jobs += [threads.submit(lazy.get) for _ in range(2)]
    assert len({job.result() for job in jobs}) == len(make.threads) == 1


async def test_failures_reach_all_who_wait_and_are_forgotten():
    make = Slow(failures=1)
    lazy = LazyReranker(make, {})
    results = await asyncio.gather(*(lazy.aget() for _ in range(5)), return_exceptions=True)
    assert [str(error) for error in results] == ["not this time"] * 5
    assert await lazy.aget() is lazy.get()
    assert len(make.threads) == 2


def test_other_options_are_another_load():
    lazy = LazyReranker(tamis.load, {"mode": "lexical"})
    assert lazy.over({"mode": "lexical"}) is lazy
    assert lazy.over({"family": "bm25"}).get() is not lazy.get()
    assert copy.deepcopy(lazy).get() is lazy.get()
    assert pickle.loads(pickle.dumps(lazy)).get().mode == "lexical"
