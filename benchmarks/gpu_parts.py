"""What gpu.py measures: steps that each make a table with its notes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import libraries
import machine
import models
import numpy as np
import peers
import torch
import workload as loads
from contender import Ready
from models import SHAPES, Shape
from report import lines, verdict
from workload import Workload

from tamis.evaluation.prose import prose, sample_passages, stretches

_BERT = replace(SHAPES["minilm-l6"], real=False)
_LLAMA = replace(SHAPES["llama-1b-bidirectional"], more={})
ENCODERS = (  # with what share of the matrix rate each must reach
    (_BERT, None),
    (SHAPES["bge-reranker-base"], 0.35),
    (replace(_BERT, name="encoder-0.3b", layers=24, width=1024, inner=4096, heads=16, kv_heads=16, head_width=64), 0.5),
    (SHAPES["bge-reranker-v2-m3"], 0.5),
)
SMOLLM2 = replace(
    _LLAMA, name="smollm2-135m", kind="yes-no", layers=30, width=576, inner=1536, heads=9, kv_heads=3,
    vocabulary=49_152, more={"tie_word_embeddings": True},
)  # fmt: skip
LLAMA_8B = replace(
    _LLAMA, name="llama-8b", kind="yes-no", layers=32, width=4096, inner=14_336, heads=32, head_width=128
)
RANKRAG = ((SMOLLM2, 30), (LLAMA_8B, 110))  # with the seconds that each takes
SMALL = {
    "layers": 2,
    "width": 64,
    "inner": 128,
    "heads": 4,
    "kv_heads": 2,
    "head_width": 16,
    "vocabulary": models.LEARNT,
}
HUNDRED, TOKENS, BOUND_MS = 100, 256, 40.0
PASSAGE_WORDS = 137  # of RankRAG's passages: about 163 tokens
PASSAGE_BYTES = 8 << 30
SLACK = {"float32": 2e-3, "bfloat16": 0.2}  # of the logits' own spread, against float32 on the CPU


@dataclass
class Job:
    """What is run, where, and until when."""

    device: str
    folder: Path
    rounds: int
    passages: int
    quick: bool
    until: float
    report: dict[str, Any] = field(default_factory=dict)

    def left(self, needed: float, what: str) -> bool:
        """Whether there is time for something that takes about so many seconds; says so if not."""
        rest = self.until - time.monotonic()
        if rest < needed:
            lines([f"left out: {what} (needs about {needed:.0f} s, {max(rest, 0):.0f} s are left)"], "yellow")
            self.report["left_out"].append(what)
        return rest >= needed

    def saved(self, shape: Shape, dtype: str = "bfloat16") -> Path:
        """The checkpoint; the one before is deleted."""
        shutil.rmtree(self.folder / "model", ignore_errors=True)
        return models.save(shape, self.folder / "model", prose()[:40_000], dtype, self.device)

    def small(self, shape: Shape) -> Shape:
        """The shape, or with --quick one that a CPU runs in no time."""
        heads = {"kv_heads": 4} if shape.kind == "pair" else {}
        return replace(shape, **{**SMALL, **heads}) if self.quick else shape


def check(job: Job) -> dict[str, Any]:
    """Small models: the device's logits against those of float32 on the CPU."""
    import tamis

    rows = []
    passages = stretches(list(range(2, 8 if job.quick else 34)), np.random.default_rng(loads.SEED))
    for shape in (_BERT, *(SHAPES[name] for name in ("bge-reranker-base", "modernbert-base", "qwen3-0.6b"))):
        tiny = replace(shape, **{**SMALL, "kv_heads": 2 if shape.kind == "yes-no" else 4})
        folder = job.saved(tiny, "float32")
        options = {"family": "qwen3-reranker"} if tiny.kind == "yes-no" else {}
        with tamis.load(folder, device="cpu", dtype="float32", **options) as exact:
            expected = np.array(exact.logits(loads.QUERY, passages))
        for dtype, slack in SLACK.items():
            with tamis.load(folder, device=job.device, dtype=dtype, **options) as reranker:
                off = float(np.abs(np.array(reranker.logits(loads.QUERY, passages)) - expected).max())
            allowed = slack * float(np.ptp(expected))
            rows.append({"name": f"{shape.name}, {dtype}", "largest_difference": off, "allowed": allowed})
    wrong = [row["name"] for row in rows if not row["largest_difference"] <= row["allowed"]]
    notes = [f"Correct: {'met' if not wrong else 'MISSED: ' + '; '.join(wrong)}."]
    return {
        "title": f"Logits of {len(passages)} passages on {job.device} against float32 on the CPU, 2 layers",
        "columns": {"allowed": ("allowed", ".1e", 1.0)},
        "rows": rows,
        "notes": notes,
    }


def hundred(job: Job) -> dict[str, Any]:
    """100 passages of 256 tokens through the 0.3B shape, which is latency."""
    shape = job.small(ENCODERS[2][0])
    folder = job.saved(shape)
    count, tokens = (4, 64) if job.quick else (HUNDRED, TOKENS)
    texts = loads.exact(count, tokens, folder, shape)
    made = contest(job, Workload(loads.QUERY, texts, folder, shape), f"{count} passages of {tokens} tokens", 4)
    ms = made["rows"][-1]["ms"]
    made["notes"].append(verdict(f"Tamis, at most {BOUND_MS:g} ms", ms, ms <= BOUND_MS, ".1f", " ms"))
    return made


def encoder(whole: Shape, bound: float | None, job: Job) -> dict[str, Any]:
    """Mixed lengths, with the share of the matrix rate that is asked for."""
    shape = job.small(whole)
    folder = job.saved(shape)
    workload = Workload(loads.QUERY, sample_passages(job.passages), folder, shape)
    made = contest(job, workload, f"{job.passages} passages of lognormal length")
    ours = made["rows"][-1]
    made["notes"].append(verdict(f"Over {made['rows'][0]['name']}, at least 3x", ours["ratio"], ours["ratio"] >= 3))
    if bound:
        share = ours["share"]
        made["notes"].append(verdict(f"Share, at least {bound:.0%}", share, share >= bound, ".0%", ""))
    return made


def contest(job: Job, workload: Workload, title: str, repeats: int = 1) -> dict[str, Any]:
    """sentence-transformers, a padded loop and Tamis, all bfloat16, in rotated order."""
    seconds = 0.01 if job.quick else 0.1
    rate = machine.matrix_rates(workload.shape.products, job.device, ["bfloat16"], seconds)["bfloat16"]
    makers: dict[str, Callable[[], Ready]] = {
        "sentence-transformers bfloat16": lambda: libraries.sentence_transformers(workload, "bfloat16", job.device),
        "transformers bfloat16, sorted": lambda: peers.padded_loop(workload, "bfloat16", job.device),
        "Tamis bfloat16": lambda: peers.tamis_run(workload, "bfloat16", job.device),
    }
    ready, answers, peaks = {}, {}, {}
    for name, make in makers.items():
        try:
            ready[name] = make()
        except ImportError as error:
            lines([f"left out: {name} ({error})"], "yellow")
            continue
        peaks[name], answers[name] = peak(job.device, lambda name=name: ready[name].run(workload.passages))
    taken: dict[str, list[float]] = {name: [] for name in ready}
    before = ready["Tamis bfloat16"].facts()["device_seconds"]
    for turn in range(job.rounds * repeats):
        names = list(ready)[turn % len(ready) :] + list(ready)[: turn % len(ready)]
        for name in names:
            taken[name].append(timed(job.device, lambda name=name: ready[name].run(workload.passages)))
    runs = len(taken["Tamis bfloat16"])
    on_device = (ready["Tamis bfloat16"].facts()["device_seconds"] - before) / runs
    first = next(iter(ready))
    rows = [
        {
            "name": name,
            "ms": 1e3 * median(seconds),
            "best_ms": 1e3 * min(seconds),
            "ratio": median(base / mine for base, mine in zip(taken[first], seconds, strict=True)),
            "tokens_per_second": sum(workload.lengths) / median(seconds),
            "share": workload.flops / median(seconds) / rate,
            "device_share": workload.flops / on_device / rate if name.startswith("Tamis") else None,
            "padding": ready[name].facts()["padding"],
            "peak_mb": peaks[name],
            "largest_difference": float(np.abs(answers[name] - answers[first]).max()),
            "seconds": seconds,
        }
        for name, seconds in taken.items()
    ]
    for one in ready.values():
        one.close()
    return {
        "title": f"{workload.shape.name}, {title}, {job.device}",
        "rows": rows,
        "notes": [
            f"{sum(workload.lengths):,} tokens, {workload.flops / 1e12:.2f} TFLOP without padding; {runs} rounds; "
            f"matrix rate {rate / 1e12:,.1f} TFLOP/s. Share: from texts to logits; on the device: while it computes. "
            f"Difference to the first row, both bfloat16; logits' standard deviation {answers[first].std():.2f}.",
        ],
    }


def rankrag(whole: Shape, job: Job) -> dict[str, Any]:
    """Ranking of passages never seen, then of the same with another question."""
    import tamis

    shape = job.small(whole)
    folder = job.saved(shape)
    n, rounds = (4, 1) if job.quick else (HUNDRED, min(3, job.rounds))
    words = [20 if job.quick else PASSAGE_WORDS] * n * (rounds + 1)
    texts = stretches(words, np.random.default_rng(loads.SEED), distinct=True)
    taken: dict[str, list[float]] = {"Tamis, cold": [], "Tamis, warm": []}
    peaks: dict[str, float | None] = {}
    options: dict[str, Any] = {"style": "plain", "dtype": "bfloat16", "passage_bytes": PASSAGE_BYTES}
    with tamis.load_rankrag(folder, device=job.device, **options) as rag:
        loaded = torch.cuda.memory_allocated(job.device) / machine.MB if job.device != "cpu" else None
        for turn in range(rounds + 1):  # the first warms up
            passages = texts[turn * n : (turn + 1) * n]
            for state, name in enumerate(taken):
                question = f"{loads.QUERY} ({2 * turn + state})"
                before = rag.stats()["tokens_asked"]
                run = partial(timed, job.device, partial(rag.rank, question, passages))
                peaks[name], seconds = peak(job.device, run)
                tokens = rag.stats()["tokens_asked"] - before
                if turn:
                    taken[name].append(seconds)
    rows = [
        {
            "name": name,
            "ms": 1e3 * median(seconds),
            "best_ms": 1e3 * min(seconds),
            "ratio": median(cold / mine for cold, mine in zip(taken["Tamis, cold"], seconds, strict=True)),
            "tokens_per_second": tokens / median(seconds),
            "peak_mb": peaks[name],
            "seconds": seconds,
        }
        for name, seconds in taken.items()
    ]
    notes = [f"{tokens:,} tokens in the prompts; {rounds} rounds, each with passages of its own."]
    notes += [f"The model takes {loaded:,.0f} MB."] if loaded else []
    return {"title": f"RankRAG, {shape.name}, {n} passages, {job.device}", "rows": rows, "notes": notes}


def timed(device: str, run: Callable[[], Any]) -> float:
    """Seconds, until the device has done all of it."""
    machine.synchronise(device)
    start = time.perf_counter()
    run()
    machine.synchronise(device)
    return time.perf_counter() - start


def peak(device: str, run: Callable[[], Any]) -> tuple[float | None, Any]:
    """MB that were allocated on the GPU at most, less what was before; and what came of it."""
    if device == "cpu":
        return None, run()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    found = run()
    return (torch.cuda.max_memory_allocated(device) - before) / machine.MB, found


@dataclass(frozen=True)
class Step:
    """One table.

    Attributes:
        part: For `--only`.
        name: In the report.
        seconds: That it takes, about.
        make: Measures it.
        quick: Whether it is worth a try with small models too.
    """

    part: str
    name: str
    seconds: float
    make: Callable[[Job], dict[str, Any]]
    quick: bool = True


STEPS = (
    Step("check", "correctness", 30, check),
    Step("hundred", f"{HUNDRED} passages of {TOKENS} tokens", 40, hundred),
    *(Step("encoders", s.name, 45, partial(encoder, s, bound), s is _BERT) for s, bound in ENCODERS),
    *(Step("rankrag", f"RankRAG, {s.name}", seconds, partial(rankrag, s), s is SMOLLM2) for s, seconds in RANKRAG),
)
PARTS = tuple(dict.fromkeys(step.part for step in STEPS))
