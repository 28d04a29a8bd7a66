"""Free memory goes back to the system: how often, and that it does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tamis.engine.trimming import BATCHES, SECONDS, SHARE, Trimmer, malloc_trim

HOLES = """
import ctypes
from pathlib import Path
from tamis.engine.trimming import malloc_trim

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
blocks = []
for i in range(4000):
    for size in (16_000, 64):
        blocks.append(libc.malloc(size))
        ctypes.memset(blocks[-1], 1, size)
for block in blocks[::2]:  # the small ones stay between
    libc.free(block)
before = resident()
malloc_trim()(0)
print(before - resident())
"""


class Clock:
    """Seconds that a test sets."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def trimmer(clock, takes=0.0):
    calls = []

    def trim(_):
        calls.append(clock.now)
        clock.now += takes

    return Trimmer(trim, clock), calls


def run(made, count=BATCHES):
    for _ in range(count):
        made.ran()


def test_after_many_batches_and_some_seconds(clock):
    made, calls = trimmer(clock)
    run(made, 10 * BATCHES)
    assert not calls
    clock.now += SECONDS
    run(made, 1)
    assert len(calls) == 1
    clock.now += SECONDS
    run(made, BATCHES - 1)
    assert len(calls) == 1
    run(made, 1)
    assert len(calls) == 2


def test_what_takes_long_is_done_seldom(clock):
    made, calls = trimmer(clock, takes=0.1)
    clock.now += SECONDS
    run(made)
    clock.now += 0.1 / SHARE - 0.5
    run(made)
    assert len(calls) == 1
    clock.now += 0.6
    run(made, 1)
    assert len(calls) == 2


def test_holes_between_what_is_kept_go_back():
    if malloc_trim() is None:
        pytest.skip("needs glibc")
    ended = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert float(ended.stdout) > 20  # of 64 MB, whole pages alone
