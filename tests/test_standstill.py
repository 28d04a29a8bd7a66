"""The watch over event loops that other tests rely on: it sees what holds one."""

import asyncio
import time

import pytest

from standstill import Watched, watched


async def test_a_call_that_blocks_is_seen():
    async with watched() as seen:
        await asyncio.sleep(0.05)
        time.sleep(0.4)
        await asyncio.sleep(0.05)
    assert seen.held() > 0.25


async def test_work_elsewhere_is_not():
    async with watched() as seen:
        await asyncio.to_thread(time.sleep, 0.4)
    assert seen.held() < 0.25


def test_what_stood_still_with_the_whole_process_is_taken_off():
    even = [i / 100 for i in range(100)]
    seen = Watched([*even, 2.0, 2.01], [*even, 1.9, 1.91, 2.0, 2.01])
    assert seen.held() == pytest.approx(2.0 - 0.99 - (1.9 - 0.99) - (2.0 - 1.91))
    assert seen.held(end=0.9) == pytest.approx(0.01)


def test_too_short_a_watch_says_nothing():
    with pytest.raises(AssertionError, match="long enough"):
        Watched([0.0, 1.0], [0.0, 1.0]).held()
