"""The contenders of llm_rerank.py: Tamis, and the padded loops of the model cards; and what they are asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

import machine
import numpy as np
import torch
import workload as loads
from numpy.typing import NDArray
from report import console

import tamis
from tamis.evaluation.prose import sample_passages
from tamis.families.wordings import BGE, QWEN3, ZERO_SHOT_TASK, ZERO_SHOT_TURN

Logits: TypeAlias = NDArray[np.float64]
Ask: TypeAlias = Callable[[str, Sequence[str]], Logits]  # a query and its passages
Render: TypeAlias = Callable[[str, str], str]  # a query and a passage, to all that the model reads

FULL, ONE = "transformers, whole vocabulary", "transformers, logits_to_keep=1"
KINDS: dict[str, dict[str, Any]] = {FULL: {}, ONE: {"logits_to_keep": 1, "use_cache": False}}
MEMORY_BATCH = 4  # passages at once in the loops whose memory is measured: 16 of 1,024 tokens would take 17 GB
BATCHES = (8, 16, 32)  # of which a loop gets its fastest on as many passages as the largest
FLAG_TOKENS = 1024  # that FlagLLMReranker reads of a passage: its card's, and more than any has here
MEDIAN_WORDS, SPREAD, SHORTEST, LONGEST = 90, 0.5, 20, 300  # of the passages' lognormal lengths
QUERY_WORDS = 12


class Texts:
    """Passages, and a query for each round and one to warm up with, from the standard library's prose."""

    def __init__(self, passages: int, rounds: int) -> None:
        self.prose = " ".join(sample_passages(512)).split()
        rng = np.random.default_rng(loads.SEED)
        lengths = rng.lognormal(np.log(MEDIAN_WORDS), SPREAD, passages).astype(int).clip(SHORTEST, LONGEST)
        self.passages = [self._cut(rng, length) for length in lengths]
        self.queries = [self._cut(rng, QUERY_WORDS) for _ in range(rounds + 1)]

    def _cut(self, rng: np.random.Generator, words: int) -> str:
        start = int(rng.integers(len(self.prose) - words))
        return " ".join(self.prose[start : start + words])


def tamis_ask(folder: Path, dtype: str, **options: Any) -> tuple[tamis.Reranker, Ask]:
    """Tamis with its defaults; says so if it runs padded, which is another thing to measure."""
    reranker = tamis.load(folder, device="cpu", dtype=dtype, **options)
    if not reranker.stats()["packed"]:
        console.print(f"Tamis runs {folder.name} padded in {dtype}: its self-check failed", style="red")
    return reranker, lambda query, passages: np.asarray(reranker.logits(query, passages))


class Loop:
    """The loop of a model card: prompts sorted by length, padded on the left, the last position's logits.

    Args:
        folder: The checkpoint.
        dtype: Of its weights.
        render: The prompt.
        answers: Tokens whose logits count: the first less the second, or the only one.
    """

    def __init__(self, folder: Path, dtype: str, render: Render, answers: Sequence[str]) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self._render = render
        self._answers = [self.tokenizer.convert_tokens_to_ids(answer) for answer in answers]

    def with_batches_of(self, size: int, **options: Any) -> Ask:
        """`options` go to the model's forward pass."""

        @torch.inference_mode()
        def ask(query: str, passages: Sequence[str]) -> Logits:
            prompts = [self._render(query, passage) for passage in passages]
            encoded = self.tokenizer(prompts, add_special_tokens=False)["input_ids"]
            ranked = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
            logits = np.zeros(len(encoded))
            for start in range(0, len(ranked), size):
                rows = ranked[start : start + size]
                inputs = self.tokenizer.pad({"input_ids": [encoded[i] for i in rows]}, return_tensors="pt")
                found = self.model(**inputs, **options).logits[:, -1, self._answers].double().numpy()  # (B, k)
                logits[rows] = found[:, 0] - found[:, 1] if found.shape[1] == 2 else found[:, 0]
            return logits

        return ask

    def longest(self, query: str, passages: Sequence[str]) -> int:
        """Tokens of the longest prompt."""
        prompts = [self._render(query, passage) for passage in passages]
        return max(map(len, self.tokenizer(prompts, add_special_tokens=False)["input_ids"]))

    def fastest(self, texts: Texts, sizes: Sequence[int], **options: Any) -> tuple[int, Ask]:
        """With the batch size that is fastest on the first query and a part of the passages, the best of two tries."""
        words, width = self.model.config.vocab_size, self.model.dtype.itemsize
        longest, free = self.longest(texts.queries[0], texts.passages), 0.6 * machine.available() * machine.MB
        fit = [size for size in sizes if "logits_to_keep" in options or size * longest * words * width <= free]
        for size in set(sizes) - set(fit):
            console.print(f"left out: batches of {size}, whose logits do not fit into memory", style="yellow")
        return fastest(partial(self.with_batches_of, **options), texts, fit)


def flag_ask(folder: Path, dtype: str) -> Callable[[int], Ask]:
    """FlagEmbedding's `FlagLLMReranker` with its own prompt and batches of a size; it sorts by length.

    Raises:
        ImportError: It is not installed.
    """
    from FlagEmbedding import FlagLLMReranker

    model = FlagLLMReranker(str(folder), use_bf16=dtype == "bfloat16", devices=["cpu"], max_length=FLAG_TOKENS)

    def with_batches_of(size: int) -> Ask:
        def ask(query: str, passages: Sequence[str]) -> Logits:
            pairs = [(f"A: {query}", f"B: {passage}") for passage in passages]
            with redirect_stderr(StringIO()):  # bars that no setting hides
                return np.asarray(model.compute_score_single_gpu(pairs, batch_size=size, device="cpu"), np.float64)

        return ask

    return with_batches_of


def fastest(with_batches_of: Callable[[int], Ask], texts: Texts, sizes: Sequence[int]) -> tuple[int, Ask]:
    """The batch size that is fastest on the first query and a part of the passages, the best of two tries."""
    passages = texts.passages[: max(sizes)]
    taken: dict[int, list[float]] = {}
    for size in 2 * tuple(sizes):
        taken.setdefault(size, []).append(seconds(with_batches_of(size), texts.queries[0], passages)[0])
    best = min(taken, key=lambda size: min(taken[size]))
    return best, with_batches_of(best)


def chat_render(folder: Path) -> Render:
    """Tamis's zero-shot question in the checkpoint's chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def render(query: str, passage: str) -> str:
        turn = ZERO_SHOT_TURN.replace("{query}", query).replace("{passage}", passage)
        messages = [{"role": "system", "content": ZERO_SHOT_TASK}, {"role": "user", "content": turn}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    return render


def qwen_render(query: str, passage: str) -> str:
    """Qwen3-Reranker's prompt; marks stand at its pieces' borders, so that one text has the same tokens."""
    return QWEN3.render(query, passage)


def bge_render(query: str, passage: str) -> str:
    """bge-reranker-v2-gemma's prompt."""
    return "<s>" + BGE.render(query, passage)


def seconds(ask: Ask, query: str, passages: Sequence[str]) -> tuple[float, Logits]:
    """How long it takes, and what it says."""
    start = time.perf_counter()
    logits = ask(query, passages)
    return time.perf_counter() - start, logits


def pieces(ids: Sequence[int], length: int, tokenizer: Any) -> Iterator[str]:
    """Stretches of text of `length` tokens, or a few less, without end."""
    start = 0
    while True:
        yield tokenizer.decode(ids[start : start + length])
        start = (start + length) % (len(ids) - length)


def growth(folder: str, kind: str, dtype: str, passages: Sequence[str]) -> tuple[float, float]:
    """MB resident before scoring, and how far its peak is above that; to be called in a process of its own."""
    machine.quiet()
    if kind == "Tamis":
        _, ask = tamis_ask(Path(folder), dtype, family="bge-reranker-v2-gemma")
    else:
        ask = Loop(Path(folder), dtype, bge_render, ["Yes"]).with_batches_of(MEMORY_BATCH, **KINDS[kind])
    ask("warm", ["up"])
    machine.forget_peak()  # which loading left behind
    before = machine.status("VmRSS") or 0.0
    ask(loads.QUERY, passages)
    return before, (machine.status("VmHWM") or 0.0) - before
