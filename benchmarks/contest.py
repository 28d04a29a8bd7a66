"""Contenders against each other: each in a process of its own, in rounds, each round in another order.

Whatever else the machine does meets all of them, ratios are taken within rounds, and the memory of one is not
another's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import machine
import numpy as np
import peers
import workload as loads
from contender import Contender, Logits
from processes import Ended, Process, call
from workload import Workload

PAUSE = 0.2  # seconds between two contenders: thread pools spin a little after their work is done
ROOM = 1.3  # times a checkpoint's size that must be free before it is loaded once more
WARM_WORDS = 8


class Contestant:
    """A contender, in its process."""

    def __init__(self, name: str, workload: Workload, threads: int) -> None:
        machine.quiet(threads)
        self._passages = workload.passages
        self._ready = _named(name, workload).load(workload, threads)
        self._ready.run([" ".join(workload.passages[0].split()[:WARM_WORDS])])  # weights that are mapped are read now
        machine.forget_peak()
        self._before = machine.status("VmRSS")

    def answer(self) -> Logits:
        """The logits; warms up."""
        return self._ready.run(self._passages)

    def seconds(self) -> float:
        """Of one more run."""
        start = time.perf_counter()
        self._ready.run(self._passages)
        return time.perf_counter() - start

    def facts(self) -> dict[str, Any]:
        """MB of the process before its runs, how far its peak was above that, and what it knows itself."""
        peak = machine.status("VmHWM")
        grown = None if peak is None or self._before is None else max(0.0, peak - self._before)
        return {"loaded_mb": self._before, "peak_mb": grown, **self._ready.facts()}


def prepare(name: str, workload: Workload) -> None:
    """Makes what a contender needs besides the checkpoint; called in a process of its own."""
    machine.quiet()
    needed = _named(name, workload).prepare
    if needed is not None:
        needed(workload)


def _named(name: str, workload: Workload) -> Contender:
    return next(one for one in peers.contenders(workload.shape) if one.name == name)


@dataclass
class Result:
    """What was measured of one contender."""

    name: str
    rate: str | None
    logits: Logits
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)  # baseline's seconds over its own, of each round


@dataclass
class Outcome:
    """A contest: the baseline's result comes first."""

    results: list[Result]
    rates: dict[str, list[float]]
    left_out: list[str]


def hold(
    workload: Workload, rivals: list[Contender], rounds: int, threads: int, tell: Callable[[str], None]
) -> Outcome:
    """Loads and warms up every contender, then times them in rotated order; `tell` hears what is going on."""
    left_out = peers.absent(workload.shape)
    ready: list[tuple[Process, Result]] = []
    try:
        for rival in rivals:
            tell(f"loading {rival.name}")
            try:
                process = _load(rival, workload, threads)
                ready.append((process, Result(rival.name, rival.rate, process.ask("answer"))))
            except Ended as error:
                left_out.append(f"{rival.name} ({error})")
        if not ready or ready[0][1].name != rivals[0].name:
            raise SystemExit(f"The baseline, {rivals[0].name}, cannot be run: {'; '.join(left_out)}")
        rates: dict[str, list[float]] = {name: [] for name in machine.DTYPES}
        for turn in range(rounds):
            tell(f"round {turn + 1} of {rounds}")
            for name, rate in machine.matrix_rates(workload.shape.products).items():
                rates[name].append(rate)
            first = turn * max(1, len(ready) // rounds) % len(ready)
            for process, result in ready[first:] + ready[:first]:
                time.sleep(PAUSE)
                result.seconds.append(process.ask("seconds"))
            for _, result in ready:
                result.ratios.append(ready[0][1].seconds[-1] / result.seconds[-1])
        for process, result in ready:
            result.facts = process.ask("facts")
    finally:
        for process, _ in ready:
            process.close()
    return Outcome([result for _, result in ready], rates, left_out)


def _load(rival: Contender, workload: Workload, threads: int) -> Process:
    size = (workload.checkpoint / "model.safetensors").stat().st_size / machine.MB
    if machine.available() < ROOM * size:
        raise Ended(f"{machine.available():,.0f} MB of memory are free, and its weights take {size:,.0f}")
    if rival.prepare is not None:
        call(prepare, rival.name, workload)
    return Process(Contestant, rival.name, workload, threads)


def summary(title: str, workload: Workload, outcome: Outcome) -> dict[str, Any]:
    """The numbers of the report, ready for JSON."""
    about = loads.describe(workload)
    expected = outcome.results[0].logits
    rows = []
    for result in outcome.results:
        best = min(result.seconds)
        rate = max(outcome.rates[result.rate]) if result.rate else None
        rows.append(
            {
                "name": result.name,
                "median": median(result.seconds),
                "best": best,
                "ratio": median(result.ratios),
                "tokens_per_second": about["tokens"] / median(result.seconds),
                "share_of_rate": workload.flops / best / rate if rate else None,
                "largest_difference": float(np.abs(result.logits - expected).max()),
                **result.facts,
                "seconds": result.seconds,
                "ratios": result.ratios,
            }
        )
    return {
        "shape": workload.shape.name,
        "workload": {**about, "title": title, "logit_spread": float(expected.std())},
        "gflops": {name: {"median": median(v) / 1e9, "best": max(v) / 1e9} for name, v in outcome.rates.items()},
        "results": rows,
        "left_out": outcome.left_out,
    }
