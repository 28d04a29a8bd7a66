"""How Tamis serves many at once on this CPU, beside what the frameworks do without it.

    python benchmarks/async_load.py [--rounds 3] [--requests 64] [--passages 20] [--quick] [--json FILE] [--plot FILE.png]

One process loads all contenders with identical weights. Three loads: all requests at once (in rounds, each in another
order), a small request under a huge one, and Poisson arrivals at shares of the measured offline capacity. Compare the
ratios, which are taken within rounds; the seconds belong to one machine on one day. It takes less than six minutes on
two cores, and with --quick less than one: rounds that do not fit are left out, and the report says how many ran.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import load_shapes as shapes
import machine
import numpy as np
import torch
import workload as loads
from load_shapes import Contender, Direct, Outcome, Request
from peers import tamis_auto_dtype
from rich.console import Console
from rich.table import Table

import tamis
from tamis import Reranker

DTYPES = ("float32", "auto")
PAUSE = 0.2  # seconds between two contenders: thread pools spin a little after their work is done
WARM = 8  # requests
STUCK = 60.0  # seconds after which a contender that does not answer is left out

console = Console(width=None if Console().is_terminal else 120)


@dataclass(frozen=True)
class Size:
    """How much is run; times in seconds."""

    rounds: int = 3
    requests: int = 64
    passages: int = 20
    time: float = 170.0  # for all rounds
    huge: int = 5000  # passages
    huge_time: float = 45.0
    small: int = 10  # passages
    repeats: int = 60
    loads: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    open_time: float = 4.0  # of arrivals, for each load
    arrivals: int = 12  # at least


QUICK = Size(1, 16, 20, 30.0, 500, 8.0, 10, 16, (0.3, 0.9), 1.5, 6)


def main() -> None:
    """Parses the command line, runs, prints."""
    arguments, size = parse()
    warnings.filterwarnings("ignore")  # loaders; none of it concerns the numbers
    logging.disable(logging.WARNING)
    torch.set_num_threads(machine.cores())
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        checkpoint = Path(folder) / "cross-encoder"
        loads.save_checkpoint(checkpoint, loads.SEED)
        report = asyncio.run(measure(checkpoint, size))
    show_closed(report)
    show_small(report)
    show_open(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if arguments.plot:
        plot(report, arguments.plot)


def parse() -> tuple[argparse.Namespace, Size]:
    parser = argparse.ArgumentParser(description="Compare Tamis with its peers when many ask at once.")
    for name in ("rounds", "requests", "passages"):
        parser.add_argument(f"--{name}", type=int, help=f"default: {getattr(Size, name)}")
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--plot", type=Path, help="draw latency against load here; needs matplotlib")
    arguments = parser.parse_args()
    given = {name: getattr(arguments, name) for name in ("rounds", "requests", "passages")}
    size = replace(QUICK if arguments.quick else Size(), **{name: n for name, n in given.items() if n is not None})
    if min(size.rounds, size.requests, size.passages) < 1:
        parser.error("--rounds, --requests and --passages are at least 1")
    if arguments.plot and find_spec("matplotlib") is None:
        console.print("No plot will be drawn: pip install matplotlib", style="yellow")
        arguments.plot = None
    return arguments, size


async def measure(checkpoint: Path, size: Size) -> dict[str, Any]:
    """Everything, ready for JSON."""
    requests = shapes.requests(size.requests, size.passages, loads.SEED)
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    rerankers = {dtype: tamis.load(checkpoint, device="cpu", dtype=dtype) for dtype in DTYPES}
    batch_tokens = int(rerankers["auto"].stats()["batch_tokens"])
    directs = {dtype: Direct(checkpoint, dtype, batch_tokens) for dtype in DTYPES}
    makers: list[Callable[[], Contender]] = [
        lambda: shapes.executor(checkpoint),
        lambda: shapes.infinity(checkpoint),
        *(lambda d=dtype: shapes.tamis_arank(rerankers[d], d) for dtype in DTYPES),
    ]
    contenders = {}
    for make in makers:
        try:
            contender = make()
            async with asyncio.timeout(STUCK):
                await shapes.closed_loop(contender, requests[:WARM])
        except (ImportError, TimeoutError) as error:
            console.print(f"left out: {error or 'it did not answer'}", style="yellow")
        else:
            contenders[contender.name] = contender
    runs = {**contenders, **{f"Tamis offline {dtype}": direct for dtype, direct in directs.items()}}
    lengths = [len(tokens) for request in requests for tokens in directs["auto"].sequences(request)]
    closed = await rounds(runs, requests, size)
    capacity = next(row["passages_per_second"] for row in closed if row["name"] == "Tamis offline auto")
    both = [next(iter(contenders.values())), contenders["Tamis arank auto"]]
    return {
        "machine": {**machine.describe(), "load_before": busy, "infinity-emb": version("infinity-emb")},
        "tamis_auto": tamis_auto_dtype(),
        "workload": {
            "requests": size.requests,
            "passages": size.passages,
            "tokens": sum(lengths),
            "shortest": min(lengths),
            "median": float(np.median(lengths)),
            "longest": max(lengths),
            "batch_tokens": batch_tokens,
        },
        "closed": closed,
        "small": await small(rerankers["auto"], directs["auto"], size),
        "open": await arrivals(both, requests, capacity / size.passages, size),
    }
