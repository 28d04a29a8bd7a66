"""How Tamis serves many at once on this CPU, beside what the frameworks do without it.

    python benchmarks/async_load.py [--rounds 3] [--requests 64] [--passages 20] [--quick] [--json FILE] [--plot FILE]

One process loads all contenders with identical weights. Three loads: all requests at once (in rounds, each in another
order), a small request under a huge one, and Poisson arrivals at shares of the measured offline capacity. Compare the
ratios, which are taken within rounds; the seconds belong to one machine on one day. It takes less than six minutes on
two cores, and with --quick less than one: rounds that do not fit are left out, and the report says how many ran.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import load_shapes as shapes
import machine
import numpy as np
import workload as loads
from contender import Logits
from contest import PAUSE
from load_shapes import Contender, Direct, Outcome, Request, quantiles
from peers import tamis_auto_dtype
from report import console, lines, table, write

import tamis

Run: TypeAlias = Callable[[], Awaitable[Outcome]]

STUCK = 60.0  # seconds after which a peer that does not answer is left out


@dataclass(frozen=True)
class Size:
    """How much is run; times in seconds."""

    rounds: int = 3
    requests: int = 64
    passages: int = 20
    time: float = 190.0  # for all rounds
    huge: int = 5000  # passages
    huge_time: float = 45.0  # after which it is withdrawn
    small: int = 10  # passages
    repeats: int = 40  # of a small request on an idle engine
    loads: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    open_time: float = 4.0  # of arrivals, for each load
    arrivals: int = 12  # at least, for each load


QUICK = Size(1, 8, 20, 30.0, 400, 8.0, 10, 6, (0.3, 0.9), 1.0, 4)


def main() -> None:
    """Parses the command line, runs, prints."""
    arguments, size = parse()
    machine.quiet()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        checkpoint = Path(folder) / "cross-encoder"
        loads.save_checkpoint(checkpoint, loads.SEED)
        report = asyncio.run(measure(checkpoint, size))
    show(report)
    write(arguments.json, report)
    if arguments.plot:
        plot(report, arguments.plot)


def parse() -> tuple[argparse.Namespace, Size]:
    """The command line, and how much it asks for."""
    parser = argparse.ArgumentParser(description="Compare Tamis with its peers when many ask at once.")
    for name in ("rounds", "requests", "passages"):
        parser.add_argument(f"--{name}", type=int, help=f"default: {getattr(Size, name)}")
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--plot", type=Path, help="draw latency against load into this PNG; needs matplotlib")
    arguments = parser.parse_args()
    given = {name: getattr(arguments, name) for name in ("rounds", "requests", "passages")}
    size = replace(QUICK if arguments.quick else Size(), **{name: n for name, n in given.items() if n is not None})
    if min(size.rounds, size.requests, size.passages) < 1:
        parser.error("--rounds, --requests and --passages are at least 1")
    if arguments.plot and find_spec("matplotlib") is None:
        console.print("no plot will be drawn: pip install matplotlib", style="yellow")
        arguments.plot = None
    return arguments, size


async def measure(checkpoint: Path, size: Size) -> dict[str, Any]:
    """Everything, ready for JSON."""
    hardware = machine.describe()
    needed = size.requests * (size.passages + 1) + size.repeats * (size.small + 1) + size.huge + 1
    source = shapes.texts(needed, loads.SEED)
    requests = shapes.requests(source, size.requests, size.passages)
    dtypes = {"float32": "float32", "auto": f"auto ({tamis_auto_dtype()})"}
    rerankers = {dtype: tamis.load(checkpoint, device="cpu", dtype=dtype) for dtype in dtypes}
    batch_tokens = int(rerankers["auto"].stats()["batch_tokens"])
    directs = {dtype: Direct(checkpoint, dtype, batch_tokens) for dtype in dtypes}
    aranks = {dtype: shapes.tamis_arank(rerankers[dtype], name) for dtype, name in dtypes.items()}
    served = [baseline := shapes.executor(checkpoint), *aranks.values()]
    answers = {one.name: await shapes.warmed(one, requests) for one in served}
    try:
        peer = shapes.infinity(checkpoint)
        async with asyncio.timeout(STUCK):
            answers[peer.name] = await shapes.warmed(peer, requests)
        served.insert(1, peer)
    except Exception as error:  # noqa: BLE001 - whatever it finds amiss in the libraries beside it
        console.print(f"left out: infinity ({type(error).__name__}: {error})", style="yellow")
    runs: dict[str, Run] = {one.name: partial(shapes.serve, one, requests, [0.0] * size.requests) for one in served}
    for dtype, direct in directs.items():
        name = f"Tamis offline {dtypes[dtype]}"
        runs[name] = partial(shapes.offline, direct, requests)
        answers[name] = direct.logits(direct.sequences(requests[0]))
    closed = await rounds(runs, size, answers)
    lengths = [len(tokens) for request in requests for tokens in directs["auto"].sequences(request)]
    return {
        "machine": hardware,
        "workload": {
            "rounds": size.rounds,
            "requests": size.requests,
            "passages": size.passages,
            "tokens": sum(lengths),
            "shortest": min(lengths),
            "median": float(np.median(lengths)),
            "longest": max(lengths),
            "batch_tokens": batch_tokens,
        },
        "closed": closed,
        "small": await small(aranks["auto"], rerankers["auto"], directs["auto"], size, source),
        "open": await arrivals([aranks["auto"], baseline], requests, closed[-1]["rate"] / size.passages, size),
    }


async def rounds(runs: dict[str, Run], size: Size, answers: dict[str, Logits]) -> list[dict[str, Any]]:
    """Runs all in rotated order, as often as there is time for; the baseline is the first."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in runs}
    names, start, turn = list(runs), time.perf_counter(), 0
    while turn < size.rounds and (time.perf_counter() - start) * (turn + 1) <= size.time * max(turn, 1):
        with console.status(f"round {turn + 1} of {size.rounds}"):
            first = turn * max(1, len(names) // size.rounds) % len(names)
            for name in names[first:] + names[:first]:
                await asyncio.sleep(PAUSE)
                outcomes[name].append(await runs[name]())
        turn += 1
    base = outcomes[names[0]]
    rows = []
    for name, mine in outcomes.items():
        limit = outcomes[name.replace("arank", "offline")]
        row: dict[str, Any] = {
            "name": name,
            "rate": median(size.requests * size.passages / one.seconds for one in mine),  # passages a second
            **quantiles([latency for one in mine for latency in one.latencies]),
            "speed_up": median(theirs.seconds / ours.seconds for theirs, ours in zip(base, mine, strict=True)),
            "of_offline": None,
            "largest_difference": float(np.abs(answers[name] - answers[names[0]]).max()),
            "seconds": [one.seconds for one in mine],
        }
        if limit is not mine:
            row["of_offline"] = median(best.seconds / ours.seconds for best, ours in zip(limit, mine, strict=True))
        rows.append(row)
    return rows


async def small(
    contender: Contender, reranker: tamis.Reranker, direct: Direct, size: Size, source: Iterator[str]
) -> dict[str, Any]:
    """Small requests on an idle engine, and under a huge one."""
    (huge,) = shapes.requests(source, 1, size.huge)
    requests = shapes.requests(source, size.repeats, size.small)
    with console.status("small requests alone"):
        idle = await shapes.alone(reranker, direct, requests, PAUSE / 4)
    with console.status(f"small requests under one of {size.huge} passages"):
        crowded = await shapes.under(contender, huge, requests, PAUSE, size.huge_time, loads.SEED)
    two = 2 * median(idle.pop("full batch"))
    rows: list[dict[str, Any]] = []
    for name, mine in idle.items():
        over = median(ours - alone for ours, alone in zip(mine, idle["runner"], strict=True))
        rows.append({"name": f"{name}, idle", **quantiles(mine), "samples": len(mine), "over_runner": over})
    latencies = crowded.latencies
    rows.append({"name": "arank under a huge one", **quantiles(latencies), "samples": len(latencies)})
    about = {"passages": size.small, "huge": size.huge, "huge_seconds": crowded.seconds, "two_batches": two}
    return {**about, "rows": rows}


async def arrivals(
    contenders: Sequence[Contender], requests: Sequence[Request], capacity: float, size: Size
) -> list[dict[str, Any]]:
    """Latency at shares of `capacity`, in requests a second; all get the same arrivals."""
    rows = []
    for load in size.loads:
        rate = load * capacity
        due = shapes.poisson(rate, max(size.arrivals, round(rate * size.open_time)), loads.SEED)
        for contender in contenders:
            with console.status(f"{contender.name} at {load:.0%}"):
                await asyncio.sleep(PAUSE)
                outcome = await shapes.serve(contender, requests, due)
            about = {"name": contender.name, "load": load, "rate": rate, "arrivals": len(due)}
            rows.append({**about, **quantiles(outcome.latencies)})
    return rows


def show(report: dict[str, Any]) -> None:
    """The report as three tables."""
    about, tiny = report["workload"], report["small"]
    two = tiny["two_batches"]
    columns: dict[str, tuple[str, str, float]] = {  # heading: figure, form, scale
        "passages/s": ("rate", ",.0f", 1.0),
        "p50 s": ("p50", ".2f", 1.0),
        "p99 s": ("p99", ".2f", 1.0),
        "speed-up": ("speed_up", ".2f", 1.0),
        "of offline": ("of_offline", ".0%", 1.0),
        "|logit diff|": ("largest_difference", ".1e", 1.0),
    }
    table(f"{about['requests']} requests of {about['passages']} passages at once", columns, report["closed"])
    columns = {
        "p50 ms": ("p50", ".1f", 1e3),
        "p99 ms": ("p99", ".1f", 1e3),
        "over the runner, ms": ("over_runner", "+.2f", 1e3),
        "p50 / two batches": ("p50", ".2f", 1 / two),
        "p99 / two batches": ("p99", ".2f", 1 / two),
        "samples": ("samples", "d", 1),
    }
    table(f"A request of {tiny['passages']} passages, Tamis auto", columns, tiny["rows"])
    columns = {
        "load": ("load", ".0%", 1.0),
        "requests/s": ("rate", ".1f", 1.0),
        "p50 s": ("p50", ".3f", 1.0),
        "p99 s": ("p99", ".3f", 1.0),
        "arrivals": ("arrivals", "d", 1),
    }
    table(f"Poisson arrivals of {about['passages']} passages, at shares of Tamis offline", columns, report["open"])
    lines(
        [
            f"At once: {about['tokens']:,} tokens ({about['shortest']} to {about['longest']} a pair), "
            f"{len(report['closed'][0]['seconds'])} of {about['rounds']} rounds; ratios within rounds, medians; "
            "speed-up against the first row.",
            "Offline: the same pairs tokenised, sorted and run together by hand, without queue, threads or futures.",
            f"Two batches of {about['batch_tokens']:,} tokens: {two * 1e3:.0f} ms. Huge: {tiny['huge']:,} passages, "
            f"{tiny['huge_seconds']:.1f} s with small ones beside it.",
            machine.sentence(report["machine"]),
        ]
    )


def plot(report: dict[str, Any], file: Path) -> None:
    """Latency against load, p50 and p99 of each contender."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for color, name in enumerate(dict.fromkeys(row["name"] for row in report["open"])):
        rows = [row for row in report["open"] if row["name"] == name]
        shares = [100 * row["load"] for row in rows]
        for quantile, style in (("p50", "o-"), ("p99", "o--")):
            latencies = [row[quantile] for row in rows]
            axes.plot(shares, latencies, style, color=f"C{color}", label=f"{name}, {quantile}")
    axes.set(yscale="log", xlabel="load, % of Tamis's offline capacity", ylabel="latency, s")
    axes.set_title(f"Poisson arrivals of {report['workload']['passages']} passages")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
