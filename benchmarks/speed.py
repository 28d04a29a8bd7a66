"""How fast Tamis ranks on this CPU, beside the ways in which one would do it without Tamis.

    python benchmarks/speed.py [--shape minilm-l6 ...] [--workload lognormal256 ...] [--passages N] [--all]
        [--rounds 5] [--threads N] [--only tamis] [--json FILE] [--plot FOLDER] [--profile] [--quick]

Each contender has a process of its own and the same weights; they run in rounds, each round in another order, so that
whatever else the machine does meets all of them. Times go from texts to logits, tokenisation included. Compare the
ratios, which are taken within rounds; the seconds belong to one machine on one day.

Without --shape and --workload it runs a part of the matrix: MiniLM-L6 on 20 short, 100 mixed and 256 passages of
lognormal length, and 24 and 12 mixed ones through the shapes of bge-reranker-base and Qwen3-Reranker-0.6B. `--all` runs
every shape on every load that it can read, with as many passages as a CPU gets through (see `fewer`).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import bounds
import contest
import machine
import models
import workload as loads
from contender import Contender
from models import SHAPES
from peers import contenders, tamis_auto_dtype, tamis_run
from report import console, lines, table, write

from tamis.evaluation.prose import MEDIAN_WORDS, prose

Case: TypeAlias = tuple[str, str, int | None]  # a shape, a load, and how many of its passages

DEFAULT: tuple[Case, ...] = (
    ("minilm-l6", "short20", None),
    ("minilm-l6", "mixed100", None),
    ("minilm-l6", "lognormal256", None),
    ("bge-reranker-base", "mixed100", 24),
    ("qwen3-0.6b", "mixed100", 12),
)
QUICK = ["--workload", "short20", "--passages", "4", "--rounds", "1"]
BUDGET = 1.2e13  # floating-point operations of a run in --all: about 30 s at 400 GFLOP/s
COLUMNS: dict[str, tuple[str, str, float]] = {  # heading: figure, form, scale
    "median s": ("median", ".3f", 1.0),
    "best s": ("best", ".3f", 1.0),
    "speed-up": ("ratio", ".2f", 1.0),
    "tokens/s": ("tokens_per_second", ",.0f", 1.0),
    "padding": ("padding", ".0%", 1.0),
    "batch": ("batch", "d", 1),
    "of matrix rate": ("share_of_rate", ".0%", 1.0),
    "peak MB": ("peak_mb", ",.0f", 1.0),
    "|logit diff|": ("largest_difference", ".1e", 1.0),
}


def main() -> None:
    """Parses the command line, runs, prints."""
    arguments = parse()
    machine.quiet(arguments.threads)
    report: dict[str, Any] = {"machine": machine.describe(), "tamis_auto": tamis_auto_dtype(), "runs": []}
    cases = list(chosen(arguments))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        checkpoint = Path(folder) / "cross-encoder"
        saved = ""
        for name, load, count in cases:
            if name != saved:
                shutil.rmtree(checkpoint, ignore_errors=True)
                with console.status(f"making {name}"):
                    models.save(SHAPES[name], checkpoint, prose()[:40_000])
                saved = name
            workload = loads.make(load, checkpoint, SHAPES[name], count)
            if arguments.profile:
                profile(workload)
                continue
            report["runs"].append(run(workload, load, arguments))
            show(report["runs"][-1], load, report)
            write(arguments.json, report)
    lines([machine.sentence(report["machine"])])
    if arguments.plot and report["runs"]:
        import drawing

        drawing.contests(report["runs"], arguments.plot)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare Tamis with its peers on this CPU.")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, help="default with --workload: minilm-l6")
    parser.add_argument("--workload", nargs="+", choices=loads.LOADS, help="default with --shape: lognormal256")
    parser.add_argument("--all", action="store_true", help="every shape on every load that it can read")
    parser.add_argument("--passages", type=int, help="only so many of a load's passages")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=machine.cores(), help="default: the cores of this machine")
    parser.add_argument("--only", nargs="+", help="names, or parts of them; the baseline always runs")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--plot", type=Path, help="draw ratios and shares into this folder; needs matplotlib")
    parser.add_argument("--profile", action="store_true", help="print Tamis's most expensive operators instead")
    parser.add_argument("--quick", action="store_true", help=f"as {' '.join(QUICK)}, to see that it works")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments = parser.parse_args(QUICK, arguments)
    if arguments.rounds < 1 or arguments.threads < 1 or (arguments.passages or 1) < 1:
        parser.error("--rounds, --threads and --passages are at least 1")
    if arguments.all and (arguments.shape or arguments.workload):
        parser.error("--all is every shape and every load; leave out --shape and --workload")
    for name in arguments.shape or ["minilm-l6"]:
        for load in arguments.workload or ["lognormal256"]:
            if unfit := loads.misfit(load, SHAPES[name]):
                parser.error(unfit)
    return arguments


def chosen(arguments: argparse.Namespace) -> Iterator[Case]:
    """What is run, shape by shape."""
    if arguments.all:
        for shape in SHAPES.values():
            for load in loads.LOADS:
                if not loads.misfit(load, shape):
                    yield shape.name, load, arguments.passages or fewer(shape, load)
    elif arguments.shape or arguments.workload:
        for name in arguments.shape or ["minilm-l6"]:
            for load in arguments.workload or ["lognormal256"]:
                yield name, load, arguments.passages
    else:
        for name, load, count in DEFAULT:
            yield name, load, arguments.passages or count


def fewer(shape: models.Shape, load: str) -> int:
    """How many passages of a load a CPU gets through in one run of `BUDGET` operations; at least one."""
    whole = loads.LOADS[load]
    length = whole.tokens or (sum(whole.words) // 2 if whole.words else MEDIAN_WORDS)
    return max(1, min(whole.count, int(BUDGET / shape.flops([length * 5 // 4]))))


def run(workload: loads.Workload, load: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One contest, as figures."""
    whole = loads.LOADS[load]
    title = f"{workload.shape.name}, {whole.title}"
    if len(workload.passages) != whole.count:
        title += f", only {len(workload.passages)} of them"
    with console.status(title) as status:
        outcome = contest.hold(
            workload,
            wanted(workload, arguments.only),
            arguments.rounds,
            arguments.threads,
            lambda what: status.update(f"{title}: {what}"),
        )
    return contest.summary(title, workload, outcome)


def wanted(workload: loads.Workload, only: list[str] | None) -> list[Contender]:
    """The contenders to run, the baseline first."""
    rivals = contenders(workload.shape)
    parts = [part.lower() for part in only or [""]]
    return [one for i, one in enumerate(rivals) if i == 0 or any(part in one.name.lower() for part in parts)]


def show(run: dict[str, Any], load: str, report: dict[str, Any]) -> None:
    """One contest as a table, and what to know of it."""
    about, rates, baseline = run["workload"], run["gflops"], run["results"][0]["name"]
    rows = [{**row, "name": row["name"].replace("auto", f"auto ({report['tamis_auto']})")} for row in run["results"]]
    table(f"{about['title']}, from texts to logits", COLUMNS, rows)
    lines((f"left out: {one}" for one in run["left_out"]), "yellow")
    lines(f"{row['name']} ran padded: its self-check failed" for row in rows if not row.get("packed", True))
    lines(
        [
            f"{about['passages']} passages, {about['tokens']:,} tokens ({about['shortest']} to {about['longest']} a "
            f"sequence), {about['gflop']:,.0f} GFLOP without padding, attention counted. Speed-up: median over rounds "
            f"against {baseline}.",
            f"Matrix rate (best): float32 {rates['float32']['best']:.0f}, bfloat16 {rates['bfloat16']['best']:.0f} "
            "GFLOP/s by torch or oneDNN at the model's shapes. What a contender need not compute counts as computed.",
            "Peak: MB above the loaded model. Largest logit difference to the first row; the logits' standard "
            f"deviation is {about['logit_spread']:.2f}.",
            *bounds.verdicts(run, load),
        ]
    )


def profile(workload: loads.Workload, rows: int = 25) -> None:
    """torch.profiler's table of Tamis with dtype="auto"; its engine runs in a thread of its own."""
    from torch._C._profiler import _ExperimentalConfig
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    ready = tamis_run(workload, "auto")
    ready.run(workload.passages)
    config = _ExperimentalConfig(profile_all_threads=True)
    with profiler(activities=[ProfilerActivity.CPU], experimental_config=config) as profiled:
        ready.run(workload.passages)
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=50))


if __name__ == "__main__":
    main()
