"""Fakes below the two seams: a scorer for the policy, a runner for the engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from itertools import count
from typing import Any

import numpy as np
import torch

from tamis.engine.sequences import Tokens
from tamis.scorers.base import Scores
from tamis.scores import sigmoid


def until(condition: Callable[[], bool]) -> None:
    """Waits for what other threads bring about."""
    for _ in range(4000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it does not come about")


class FakeScorer:
    """Gives the logits that a function of (query, passage) returns."""

    model = "fake"
    mode = "cross-encoder"
    count_tokens = staticmethod(lambda text: len(text.split()))

    def __init__(self, logit: Callable[[str, str], float] = lambda query, passage: float(len(passage))) -> None:
        self.logit = logit
        self.closed = 0
        self.gated = False
        self.gates: list[Future[None]] = []  # one for each request, as an engine's tickets are

    def steps(self, query: str, passages: Sequence[str]) -> Any:
        """Waits at a gate of its own if `gated`, as for an engine."""
        gate: Future[None] = Future()
        self.gates.append(gate)
        yield [gate] if self.gated else []
        logits = np.array([self.logit(query, passage) for passage in passages], dtype=np.float64)
        return Scores(logits, np.zeros(len(passages), dtype=np.bool_), tokens=len(passages))

    def to_score(self, logit: float) -> float:
        return sigmoid(logit)

    def stats(self) -> Mapping[str, Any]:
        return {}

    def close(self) -> None:
        self.closed += 1


class FakeRunner:
    """Returns each sequence's length. Raises what it is told to, and out-of-memory above a number of tokens."""

    padded = False
    shares = False
    survives_fork = True

    def __init__(self, fits: int = 10**9) -> None:
        self.fits = fits
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()
        self.go = threading.Event()
        self.go.set()
        self.started = threading.Event()
        self.freed = False

    def run(self, batch: Sequence[Tokens]) -> Any:
        self.started.set()
        assert self.go.wait(20)
        self.threads.add(threading.current_thread().name)
        if sum(map(len, batch)) > self.fits:
            raise torch.OutOfMemoryError("no room")
        self.batches.append([len(tokens) for tokens in batch])
        for tokens in batch:
            if tokens.ids[0] == -1:
                raise RuntimeError("poisoned")
        return np.array([[len(tokens)] for tokens in batch], dtype=np.float32)

    def free(self) -> None:
        self.freed = True


_numbers = count(1)


def sequence(length: int, first: int | None = None) -> Tokens:
    """A sequence of ones whose first id is `first`, or a new number: no two are the same then."""
    ids = np.ones(length, dtype=np.int32)
    ids[0] = next(_numbers) if first is None else first
    return Tokens(ids)
