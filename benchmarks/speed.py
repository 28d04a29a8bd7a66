"""How fast Tamis ranks on this CPU, beside the ways in which one would do it without Tamis.

    python benchmarks/speed.py [--rounds 5] [--passages 256] [--only tamis] [--json FILE] [--profile]

One process loads all contenders with identical weights and runs them in rounds, each round in another order, so that
whatever else the machine does meets all of them. Times go from texts to logits, tokenisation included. Compare the
ratios, which are taken within rounds; the seconds belong to one machine on one day.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import machine
import numpy as np
import torch
import workload as loads
from peers import BASELINE, Contender, Logits, Run, contenders, tamis_auto_dtype, tamis_run
from rich.console import Console
from rich.table import Table

PAUSE = 0.2  # seconds between two contenders: thread pools spin a little after their work is done

console = Console(width=None if Console().is_terminal else 120)


@dataclass
class Result:
    """What was measured of one contender."""

    name: str
    rate: str | None
    logits: Logits
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)  # baseline's seconds over its own, of each round


def main() -> None:
    """Parses the command line, runs, prints."""
    arguments = parse()
    warnings.filterwarnings("ignore")  # exporters and loaders; none of it concerns the numbers
    logging.disable(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        workload = loads.make(arguments.passages, Path(folder) / "cross-encoder")
        if arguments.profile:
            profile(workload)
            return
        results, rates = measure(workload, chosen(arguments.only), arguments.rounds, arguments.threads)
        report = summary(workload, results, rates)
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare Tamis with its peers on this CPU.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passages", type=int, default=256)
    parser.add_argument("--threads", type=int, default=machine.cores(), help="default: the cores of this machine")
    parser.add_argument("--only", nargs="+", help="names, or parts of them; the baseline always runs")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--profile", action="store_true", help="print Tamis's most expensive operators instead")
    return parser.parse_args()


def chosen(only: list[str] | None) -> list[Contender]:
    """The contenders to run, the baseline first."""
    wanted = [part.lower() for part in only or [""]]
    return [c for c in contenders() if c.name == BASELINE or any(part in c.name.lower() for part in wanted)]


def measure(
    workload: loads.Workload, rivals: list[Contender], rounds: int, threads: int
) -> tuple[list[Result], dict[str, list[float]]]:
    """Loads and warms up every contender, then times them in rotated order."""
    ready: list[tuple[Run, Result]] = []
    for rival in rivals:
        with console.status(f"loading {rival.name}"):
            try:
                run = rival.load(workload, threads)
            except ImportError as error:
                console.print(f"left out: {rival.name} ({error})", style="yellow")
                continue
            ready.append((run, Result(rival.name, rival.rate, run())))
    if not ready or ready[0][1].name != BASELINE:
        raise SystemExit("The baseline is missing: pip install sentence-transformers")
    rates: dict[str, list[float]] = {name: [] for name in machine.DTYPES}
    for turn in range(rounds):
        with console.status(f"round {turn + 1} of {rounds}"):
            for name, rate in machine.matrix_rates(workload.shape).items():
                rates[name].append(rate)
            first = turn * max(1, len(ready) // rounds) % len(ready)
            for run, result in ready[first:] + ready[:first]:
                time.sleep(PAUSE)
                start = time.perf_counter()
                run()
                result.seconds.append(time.perf_counter() - start)
            for _, result in ready:
                result.ratios.append(ready[0][1].seconds[-1] / result.seconds[-1])
    return [result for _, result in ready], rates


def summary(workload: loads.Workload, results: list[Result], rates: dict[str, list[float]]) -> dict[str, Any]:
    """The numbers of the report, ready for JSON."""
    about = loads.describe(workload)
    expected = results[0].logits
    rows = []
    for result in results:
        best = min(result.seconds)
        rate = max(rates[result.rate]) if result.rate else None
        rows.append(
            {
                "name": result.name,
                "median": median(result.seconds),
                "best": best,
                "ratio": median(result.ratios),
                "tokens_per_second": about["tokens"] / median(result.seconds),
                "share_of_rate": about["gflop"] * 1e9 / best / rate if rate else None,
                "largest_difference": float(np.abs(result.logits - expected).max()),
                "seconds": result.seconds,
            }
        )
    return {
        "machine": machine.describe(),
        "workload": {**about, "logit_spread": float(expected.std())},
        "tamis_auto": tamis_auto_dtype(),
        "gflops": {name: {"median": median(v) / 1e9, "best": max(v) / 1e9} for name, v in rates.items()},
        "results": rows,
    }


def show(report: dict[str, Any]) -> None:
    """The report as a table."""
    table = Table(title="Cross-encoder MiniLM-L6-H384, from texts to logits")
    table.add_column("", no_wrap=True)
    for heading in ("median s", "best s", "speed-up", "tokens/s", "of matrix rate", "|logit diff|"):
        table.add_column(heading, justify="right")
    for row in report["results"]:
        name = row["name"].replace("auto", f"auto ({report['tamis_auto']})")
        share = f"{row['share_of_rate']:.0%}" if row["share_of_rate"] else "-"
        table.add_row(
            name,
            f"{row['median']:.3f}",
            f"{row['best']:.3f}",
            f"{row['ratio']:.2f}x",
            f"{row['tokens_per_second']:,.0f}",
            share,
            f"{row['largest_difference']:.1e}",
            style="bold" if name.startswith("Tamis") else None,
        )
    console.print(table)
    about, rates, spread = report["workload"], report["gflops"], report["workload"]["logit_spread"]
    hardware = report["machine"]
    console.print(
        f"{about['passages']} passages, {about['tokens']:,} tokens ({about['shortest']} to {about['longest']} a pair), "
        f"{about['gflop']:.0f} GFLOP without padding.\nSpeed-up: median over rounds against {BASELINE}, batch 32.\n"
        f"Matrix rate (best): float32 {rates['float32']['best']:.0f}, bfloat16 {rates['bfloat16']['best']:.0f} GFLOP/s "
        "by torch.nn.functional.linear at the model's shapes; another library may have a faster product.\n"
        f"Largest logit difference to the baseline; the logits' standard deviation is {spread:.2f}.\n"
        f"{hardware['cpu']}, {hardware['threads']} threads on {hardware['cores']} cores, {hardware['instructions']}, "
        f"{' '.join(hardware['bfloat16']) or 'no bfloat16'}; Python {hardware['python']}, "
        + ", ".join(f"{name} {version}" for name, version in hardware["versions"].items())
        + f"; {hardware['date']}.",
        highlight=False,
        soft_wrap=True,
    )


def profile(workload: loads.Workload, rows: int = 25) -> None:
    """torch.profiler's table of Tamis with dtype="auto"; its engine runs in a thread of its own."""
    from torch._C._profiler import _ExperimentalConfig
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    run = tamis_run(workload, "auto")
    run()
    config = _ExperimentalConfig(profile_all_threads=True)
    with profiler(activities=[ProfilerActivity.CPU], experimental_config=config) as profiled:
        run()
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=50))


if __name__ == "__main__":
    main()
