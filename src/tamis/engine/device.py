"""One copy of the model on one device, and the thread that runs it.

It takes work where there is some, cuts it into batches that fit, and hands each row back. Nothing that goes wrong in
one batch touches another: out-of-memory halves the batch and lowers the budget, any other error is traced to the
sequences that cause it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from tamis.engine.counters import Counters
from tamis.engine.requests import Outputs, Row, Sent
from tamis.engine.scheduler import Work
from tamis.engine.sequences import Tokens, cut, in_order, saved
from tamis.engine.trimming import Trimmer
from tamis.errors import OutOfMemory

logger = logging.getLogger(__name__)

CALM = 50  # batches without an out-of-memory error, after which the budget grows again
PATIENCE = 8  # sequences of a batch that fail by themselves, and none that does not, before the rest is given up


class Runner(Protocol):
    """A model on a device. The engine calls it from its own thread, and from no other."""

    @property
    def padded(self) -> bool:
        """Whether a batch costs its longest length times its size, instead of the sum of its lengths."""

    @property
    def shares(self) -> bool:
        """Whether an equal beginning of several sequences (`Tokens.shared`) is run once a batch."""

    @property
    def survives_fork(self) -> bool:
        """Whether the model still works in a forked child: on a CPU it does, CUDA's contexts do not."""

    def run(self, batch: Sequence[Tokens]) -> Outputs:
        """One row of float32 for each sequence, (k,) or (tokens, k). Raises torch.OutOfMemoryError as torch does."""

    def free(self) -> None:
        """Lets go of the model."""

    # A runner that need not run all of a sequence also has `cost(tokens) -> int`: what it takes of a batch's budget.


class Exchange(Protocol):
    """Where a device gets work and brings rows: the queue."""

    counters: Counters

    def take(self, room: int) -> list[Work[Sent]]:
        """Waits for work; nothing when there will be no more."""

    def give(self, work: Work[Sent], row: Row) -> None:
        """A row is done."""

    def fail(self, works: Sequence[Work[Sent]], error: BaseException) -> None:
        """Nothing will come of these."""

    def wanted(self, work: Work[Sent]) -> bool:
        """Whether anybody waits for it still; if not, it is forgotten."""

    def died(self, device: Device, error: BaseException, works: Sequence[Work[Sent]]) -> None:
        """The device's thread ends with `error`, and with `works` undone."""


class Device:
    """One copy of the model, its thread, and what fits it.

    Args:
        runner: The model.
        batch_tokens: What a batch may cost; lowered when the device runs out of memory, and raised again slowly.
    """

    def __init__(self, runner: Runner, batch_tokens: int) -> None:
        self.runner = runner
        self.cost: Callable[[Tokens], int] = getattr(runner, "cost", len)
        self.budget = batch_tokens
        self.thread: threading.Thread | None = None
        self._full = batch_tokens
        self._calm = 0
        self._trimmer = Trimmer()

    def alive(self) -> bool:
        """Whether its thread runs."""
        return self.thread is not None and self.thread.is_alive()

    def start(self, exchange: Exchange, name: str) -> None:
        """Starts its thread."""
        self.thread = threading.Thread(target=self._loop, args=(exchange,), name=name, daemon=True)
        self.thread.start()

    def _loop(self, exchange: Exchange) -> None:
        works: list[Work[Sent]] = []
        try:
            while works := exchange.take(self.budget):
                self._run(exchange, works)
                works = []  # nothing of a request is kept while the thread waits for the next
        except BaseException as error:
            logger.exception("A thread of the engine died.")
            exchange.died(self, error, works)

    def _run(self, exchange: Exchange, works: list[Work[Sent]]) -> None:
        sequences = [work.payload.tokens for work in works]
        todo = [works[i] for i in in_order(sequences, shares=self.runner.shares)]
        while todo:
            todo = [work for work in todo if exchange.wanted(work)]
            sequences = [work.payload.tokens for work in todo]
            batches = cut(sequences, self.budget, padded=self.runner.padded, shares=self.runner.shares, cost=self.cost)
            if not batches:
                return
            # Only the first is run: a batch that does not fit changes the budget, and with it all later cuts.
            batch, todo = todo[batches[0]], todo[batches[0].stop :]
            todo = self._one(exchange, batch) + todo

    def _one(self, exchange: Exchange, batch: list[Work[Sent]]) -> list[Work[Sent]]:
        """Runs a batch and delivers it; returns what must run again in smaller batches."""
        from torch import OutOfMemoryError

        start = time.perf_counter()
        try:
            rows = self.runner.run([work.payload.tokens for work in batch])
        except OutOfMemoryError as error:
            return self._smaller(exchange, batch, error)
        except Exception as error:  # noqa: BLE001 - it belongs to those who sent it, and the engine lives on
            return self._isolate(exchange, batch, error)
        exchange.counters.ran(
            [len(work.payload.tokens) for work in batch],
            time.perf_counter() - start,
            padded=self.runner.padded,
            spared=self._spared(batch),
        )
        self._grow()
        for work, row in zip(batch, rows, strict=True):
            exchange.give(work, row)
        self._trimmer.ran()
        return []

    def _spared(self, batch: list[Work[Sent]]) -> int:
        """Tokens of shared beginnings that were not run again."""
        begun: set[bytes] = set()
        total = 0
        for tokens in (work.payload.tokens for work in batch):
            total += saved(tokens, begun, shares=self.runner.shares)
            begun.add(tokens.beginning)
        return total

    def _isolate(self, exchange: Exchange, batch: list[Work[Sent]], error: Exception) -> list[Work[Sent]]:
        """Finds the sequences that make the model raise by halving; the others of the batch are answered.

        Where not one half goes through and `PATIENCE` single sequences have failed, the model itself is broken. A half
        that does not fit says nothing of either: it is returned, to run again in smaller batches.
        """
        from torch import OutOfMemoryError

        parts, failed, answered = [(batch, error)], 0, False
        again: set[int] = set()
        while parts:
            ran, error = parts.pop()
            part = [work for work in ran if exchange.wanted(work)]
            if not part:
                continue
            if len(ran) == 1 or (failed >= PATIENCE and not answered):
                failed += 1
                exchange.fail(part, error)
                continue
            exchange.counters.splits += 1
            middle = len(part) // 2  # 0 where the others are wanted no more: one that never ran alone is not to blame
            for half in filter(None, (part[middle:], part[:middle])):
                try:
                    rows = self.runner.run([work.payload.tokens for work in half])
                except OutOfMemoryError as short:
                    again.update(map(id, self._smaller(exchange, half, short)))
                    continue
                except Exception as another:  # noqa: BLE001
                    parts.append((half, another))
                    continue
                answered = True
                for work, row in zip(half, rows, strict=True):
                    exchange.give(work, row)
        return [work for work in batch if id(work) in again]  # in their order, by which they are cut

    def _smaller(self, exchange: Exchange, batch: list[Work[Sent]], error: BaseException) -> list[Work[Sent]]:
        exchange.counters.out_of_memory += 1
        self._calm = 0
        cost = sum(work.cost for work in batch)
        if len(batch) == 1:
            failure = OutOfMemory(
                f"A sequence of {cost} tokens alone does not fit the device's memory; load the model with a smaller "
                "max_length, or on another device."
            )
            failure.__cause__ = error.with_traceback(None)  # whose frames would keep the tensors alive
            exchange.fail(batch, failure)
            return []
        self.budget = max(1, min(self.budget, cost) // 2)
        logger.warning("Out of memory at %d tokens a batch; going on with %d.", cost, self.budget)
        return batch

    def _grow(self) -> None:
        """Slowly back to the full budget: what took the memory may have gone."""
        if self.budget < self._full:
            self._calm += 1
            if self._calm >= CALM:
                self._calm = 0
                self.budget = min(self._full, self.budget + max(1, self.budget // 8))
