"""How time and memory grow with passages, with their length, and with requests at once.

    python benchmarks/growth.py [--only passages length requests] [--max-passages 100000] [--quick] [--json FILE]
        [--plot FOLDER]

Passages: one request of 10 to 100,000 short passages. Length: passages of 16 to 8,192 tokens, 32,768 tokens of them at
each step, through a random model of MiniLM's shape with so many positions. Requests: 1 to 512 `arank` of 10 passages at
once. Each of the three has a process of its own, and the steps go up, so that a peak is not an earlier one's; a peak is
that of the whole process, forgotten before each step. The exponent is the slope of a line through the larger half of
the steps, both axes logarithmic: 1 is linear. Attention is quadratic in the length, and what the arithmetic alone
would give stands beside. On two cores all of it takes about ten minutes, and with --max-passages 10000 four.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import machine
import models
import numpy as np
import workload as loads
from models import SHAPES
from processes import Process
from report import console, lines, table, write

from tamis.evaluation.prose import prose, sample_passages, stretches

NEAR = 0.1  # by which an exponent may be above that of the work
FLAT = 1.25  # times the smallest step's peak
EACH = 10  # passages of a request
QUERY_WORDS = 8
WORDS = (10, 25)  # of a short passage
TOKENS = 32_768  # of each step in length
ENOUGH = 0.5  # seconds; a step that takes less is repeated
REPEATS = 5
LONG = replace(SHAPES["minilm-l6"], name="long MiniLM", longest=8448, real=False)

PASSAGES = (10, 100, 1000, 10_000, 100_000)
LENGTHS = tuple(2**n for n in range(4, 14))
REQUESTS = tuple(2**n for n in range(10))
UNITS = {"passages": "passage", "length": "1,000 tokens", "requests": "request"}


class Series:
    """A loaded model, and the texts of the largest step; made in a process of its own.

    Args:
        kind: One of `UNITS`.
        checkpoint: The model.
        largest: Of the steps.
        tokens: Of each step in length.
        repeats: Of a short step, at most.
    """

    def __init__(self, kind: str, checkpoint: Path, largest: int, tokens: int, repeats: int) -> None:
        import tamis

        machine.quiet()
        self._kind, self._checkpoint, self._tokens, self._repeats = kind, checkpoint, tokens, repeats
        self._reranker = tamis.load(checkpoint, device="cpu")
        rng = np.random.default_rng(loads.SEED)
        count = {"passages": largest, "length": 0, "requests": largest * (EACH + 1)}[kind]
        texts = stretches(rng.integers(WORDS[0], WORDS[1] + 1, count).tolist(), rng) if count else []
        self._texts = [f"{text} {i}" for i, text in enumerate(texts)]  # all different: equal ones are computed once
        self._reranker.logits(loads.QUERY, self._texts[:EACH] or sample_passages(EACH))

    def measure(self, size: int) -> dict[str, float | None]:
        """Seconds and MB of a step, and what one unit of it took."""
        run, units, tokens = self._step(size)
        machine.forget_peak()
        before = machine.status("VmRSS")
        seconds: list[float] = []
        while not seconds or (sum(seconds) < ENOUGH and len(seconds) < self._repeats):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        taken = median(seconds)
        found = {"seconds": taken, "per_unit": taken / units, "before_mb": before, "peak_mb": machine.status("VmHWM")}
        return {"size": size, **found, "repeats": len(seconds), "tokens": tokens}

    def _step(self, size: int) -> tuple[Callable[[], Any], float, int | None]:
        """What is run, how many units that is, and how many tokens a passage has."""
        if self._kind == "passages":
            return lambda: self._reranker.rank(loads.QUERY, self._texts[:size], top_n=10), size, None
        if self._kind == "length":
            count = max(1, self._tokens // size)
            texts = loads.exact(count, size, self._checkpoint, LONG, alone=True)
            return lambda: self._reranker.logits(loads.QUERY, texts), count * size / 1000, size
        parts = [self._texts[i * (EACH + 1) : (i + 1) * (EACH + 1)] for i in range(size)]

        async def together() -> None:
            calls = (self._reranker.arank(" ".join(query.split()[-QUERY_WORDS:]), rest) for query, *rest in parts)
            await asyncio.gather(*calls)

        return lambda: asyncio.run(together()), size, None


def main() -> None:
    """Parses the command line, runs, prints."""
    parser = argparse.ArgumentParser(description="Measure how time and memory grow.")
    parser.add_argument("--only", nargs="+", choices=UNITS, default=list(UNITS))
    parser.add_argument("--max-passages", type=int, default=PASSAGES[-1])
    parser.add_argument("--quick", action="store_true", help="two small steps of each, to see that it works")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--plot", type=Path, help="draw time and memory into this folder; needs matplotlib")
    arguments = parser.parse_args()
    if arguments.max_passages < PASSAGES[1]:
        parser.error(f"--max-passages is at least {PASSAGES[1]}")
    sizes: dict[str, Sequence[int]] = {
        "passages": [n for n in PASSAGES if n <= arguments.max_passages],
        "length": LENGTHS,
        "requests": REQUESTS,
    }
    if arguments.quick:
        sizes = {"passages": (4, 8), "length": (16, 64), "requests": (1, 2)}
    machine.quiet()
    report: dict[str, Any] = {"machine": machine.describe(), "series": []}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for kind in arguments.only:
            checkpoint = Path(folder) / ("long" if kind == "length" else "short")
            if not checkpoint.exists():
                models.save(LONG if kind == "length" else SHAPES["minilm-l6"], checkpoint, prose()[:40_000])
            fixed = (256, 1) if arguments.quick else (TOKENS, REPEATS)
            report["series"].append(measured(kind, checkpoint, sizes[kind], *fixed))
            write(arguments.json, report)
    lines([machine.sentence(report["machine"])])
    if arguments.plot:
        import drawing

        drawing.growth(report["series"], arguments.plot)


def measured(kind: str, checkpoint: Path, sizes: Sequence[int], tokens: int, repeats: int) -> dict[str, Any]:
    """All steps of one kind, printed."""
    rows = []
    with Process(Series, kind, checkpoint, max(sizes), tokens, repeats) as process:
        for size in sizes:
            with console.status(f"{kind}: {size:,}"):
                row = process.ask("measure", size)
            rows.append({"name": f"{size:,}", "ms_per_unit": 1e3 * row["per_unit"], **row})
    unit = UNITS[kind]
    columns = {
        "seconds": ("seconds", ".3f", 1.0),
        f"ms a {unit}": ("ms_per_unit", ".2f", 1.0),
        "peak MB": ("peak_mb", ",.0f", 1.0),
        "MB before": ("before_mb", ",.0f", 1.0),
        "runs": ("repeats", "d", 1),
    }
    table(f"{'tokens a passage' if kind == 'length' else kind}, MiniLM-L6-H384", columns, rows)
    half = rows[len(rows) // 2 - 1 :] if len(rows) > 2 else rows
    work = exponent([LONG.flops([row["size"]]) for row in half], half) if kind == "length" else 1.0
    times = [row["per_unit"] * row["size"] if kind == "length" else row["seconds"] for row in half]
    reached = exponent(times, half)
    grown = rows[-1]["peak_mb"] / rows[0]["peak_mb"] if rows[0]["peak_mb"] else None
    verdicts = [
        f"Time grows with the {unit_of(kind)} to the power of {reached:.2f}, where the arithmetic grows with "
        f"{work:.2f}: {'near-linear' if work == 1 else 'as the arithmetic'}, "
        f"{'met' if reached <= work + NEAR else 'MISSED'} (at most {work + NEAR:.2f}), from {half[0]['size']:,} on.",
    ]
    if grown is not None:
        verdicts.append(
            f"The process's peak at the largest step is {grown:.2f} times that at the smallest: flat (at most {FLAT}), "
            f"{'met' if grown <= FLAT else 'MISSED'}."
        )
    lines(verdicts)
    return {"kind": kind, "unit": unit, "exponent": reached, "work": work, "memory": grown, "rows": rows}


def unit_of(kind: str) -> str:
    """What a step is a number of."""
    return {"passages": "passages", "length": "tokens of a passage", "requests": "requests at once"}[kind]


def exponent(values: Sequence[float], rows: Sequence[dict[str, Any]]) -> float:
    """Slope of log(value) against log(size)."""
    return float(np.polyfit(np.log([row["size"] for row in rows]), np.log(values), 1)[0])


if __name__ == "__main__":
    main()
