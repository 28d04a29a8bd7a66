"""A checkpoint in memory: its engine, its tokenizer, and the vectors of passages it has seen."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

from tamis.cache import ByteLRU
from tamis.engine.admission import Entry
from tamis.engine.engine import Engine
from tamis.engine.requests import Outputs
from tamis.engine.scheduler import Job
from tamis.engine.sequences import Tokens
from tamis.engine.shared import Shared
from tamis.steps import party, patient, reject
from tamis.tenants import Tenant, current
from tamis.tokenizing import TextTokenizer

T = TypeVar("T")

UNDER_WAY = 16  # chunks of one request


@dataclass(frozen=True, eq=False, slots=True)
class Vectors:
    """What one passage left behind: raw vectors (windows, d), float32 or float16, and whether it was cut.

    `spans` are the characters of its windows, (windows, 2), where it has several.
    """

    rows: Any
    truncated: bool
    spans: Any = None


@dataclass(frozen=True, eq=False)
class Loaded:
    """What every reranker over one checkpoint shares.

    Attributes:
        engine: Runs sequences; one row of `width` float32 values comes back for each.
        tokenizer: Safe to use from any thread.
        longest: Tokens that the checkpoint reads at most, special tokens included.
        width: Values in a row: labels of a head, or dimensions of a vector.
        vectors: Passage vectors by digest.
        facts: Device, dtype and so on, for `stats()`.
        extra: More counters for `stats()`.
    """

    engine: Engine
    tokenizer: TextTokenizer
    longest: int
    width: int
    vectors: ByteLRU[Any]
    facts: Mapping[str, Any]
    extra: Callable[[], Mapping[str, Any]] = dict


_CHECKPOINTS: Shared[Loaded] = Shared(lambda loaded: loaded.engine.close())


class Lease:
    """One reranker's share of a loaded checkpoint, and its door to the engine.

    `close` gives it back; garbage collection only drops it, so that an object which is rebuilt between calls, as
    frameworks do, finds the model still loaded.

    Args:
        key: What the checkpoint and its settings are told apart by.
        make: Loads it, if nobody has.
        weight: This reranker's own share of the device, for requests of no tenant; None if it wants none of its own.
        wait: Whether requests wait where too much waits already, instead of being refused.
    """

    def __init__(
        self, key: Hashable, make: Callable[[], Loaded], *, weight: float | None = None, wait: bool = False
    ) -> None:
        self.loaded = _CHECKPOINTS.take(key, partial(_apart, make))
        self._key = key
        self._own = None if weight is None else Tenant(f"reranker {id(self)}", weight)
        self._wait = wait
        self._dropped = weakref.finalize(self, _CHECKPOINTS.drop, key)
        self._dropped.atexit = False

    def open(self) -> Session:
        """A session for one request.

        Raises:
            Overloaded: The queue is full already.
        """
        tenant = current() or self._own or Tenant("")
        entry = self.loaded.engine.admit(wait=self._wait or patient(), party=party())
        return Session(self.loaded.engine, Job(tenant.name, tenant.weight), entry)

    def hold(self, make: Callable[[Self], T]) -> T:
        """What `make` builds over it; it is given back if that fails."""
        try:
            return make(self)
        except BaseException:
            self.close()
            raise

    @property
    def key(self) -> Hashable:
        """What the checkpoint and its settings are told apart by."""
        return self._key

    def close(self) -> None:
        """Gives the share back; the last one frees the model."""
        if self._dropped.detach():
            _CHECKPOINTS.give_back(self._key)


def _apart(make: Callable[[], Loaded]) -> Loaded:
    """What `make` gives, called on a thread that ends with it.

    OpenMP gives each thread that computes a team of its own, and once all teams together are larger than the machine,
    no worker waits awake any more: every step of the engine's passes then costs a wake-up, which is a sixth of the time
    of twenty short passages. A thread that has ended has no team; loading would leave one in the caller's.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="tamis-load")
    try:
        return thread.submit(copy_context().run, make).result()
    finally:
        thread.shutdown(wait=False)


class Session:
    """What one request has in an engine. Leaving it withdraws whatever is not done."""

    def __init__(self, engine: Engine, job: Job[Any], entry: Entry) -> None:
        self._engine = engine
        self._job = job
        self._entry = entry
        self._futures: list[Future[Any]] = []

    def submit(self, sequences: Sequence[Tokens], *, more: bool = False) -> Future[Outputs]:
        """See `Engine.submit`."""
        future = self._engine.submit(sequences, self._job, self._entry, more=more)
        self._futures.append(future)
        return future

    @property
    def pending(self) -> list[Future[Any]]:
        """Everything, to wait for."""
        return self._futures

    @property
    def backlog(self) -> list[Future[Any]]:
        """What to wait for before more is submitted: room in the queue, or the oldest of what is under way."""
        if not self._entry.room.done():
            return [self._entry.room]
        return [future for future in self._futures[:-UNDER_WAY] if not future.done()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for future in (*self._futures, self._entry.room):
            reject(future, CancelledError())
