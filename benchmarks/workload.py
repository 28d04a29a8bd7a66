"""What is ranked, and with which model: built anew at every run, from what any machine with Python has.

The passages are cut from the docstrings of Python's standard library, so that a tokenizer meets real words; they differ
a little between Python versions. The checkpoint is saved once, so that every contender loads the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import models
import numpy as np
from models import SEED, SHAPES, Shape

from tamis.evaluation.prose import sample_passages, stretches

QUERY = "how are the items of a list sorted without changing their order"

MAX_LENGTH = 512  # tokens that MiniLM reads of a pair


@dataclass(frozen=True)
class Load:
    """How many passages, and how long: `words` from and to, `tokens` of each sequence, or lognormal where neither."""

    count: int
    title: str
    words: tuple[int, int] | None = None
    tokens: int | None = None


LOADS = {
    "short20": Load(20, "20 short passages", words=(10, 25)),
    "mixed100": Load(100, "100 of mixed length", words=(10, 300)),
    "lognormal256": Load(256, "256 of lognormal length"),
    "long1000": Load(1000, "1,000 of 512 tokens", tokens=512),
    "huge20": Load(20, "20 of 8,192 tokens", tokens=8192),
}


@dataclass(frozen=True)
class Workload:
    """One query and its passages, and the folder of the checkpoint that every contender loads."""

    query: str
    passages: list[str]
    checkpoint: Path
    shape: Shape

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each sequence as the model reads it, special tokens and prompt included, without padding."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.checkpoint)
        return [len(ids) for ids in models.encode(self.shape, tokenizer, self.query, self.passages)["input_ids"]]

    @cached_property
    def flops(self) -> float:
        """What it needs at least when every token is computed once and nothing is padded."""
        return self.shape.flops(self.lengths)


def make(name: str, checkpoint: Path, shape: Shape, count: int | None = None) -> Workload:
    """The passages of a load, or the first `count` of them, for a saved model.

    Raises:
        ValueError: The model does not read passages as long as these.
    """
    load = LOADS[name]
    if unfit := misfit(name, shape):
        raise ValueError(unfit)
    n = count or load.count
    if load.words:
        rng = np.random.default_rng(SEED)
        texts = stretches(rng.integers(load.words[0], load.words[1] + 1, n).tolist(), rng)
    elif load.tokens:
        texts = exact(n, load.tokens, checkpoint, shape)
    else:
        texts = sample_passages(n)
    return Workload(QUERY, texts, checkpoint, shape)


def misfit(name: str, shape: Shape) -> str | None:
    """Why a model cannot read a load, if it cannot."""
    tokens = LOADS[name].tokens or MAX_LENGTH
    if tokens <= shape.longest:
        return None
    fit = ", ".join(one.name for one in SHAPES.values() if one.longest >= tokens)
    return f"{name} has sequences of {tokens:,} tokens, and {shape.name} reads {shape.longest:,}; it fits {fit}."


def exact(count: int, tokens: int, checkpoint: Path, shape: Shape, *, alone: bool = False) -> list[str]:
    """Passages with which sequences have `tokens` tokens, query, prompt and special tokens included, or one less.

    With `alone` it is the passages that have so many.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    around = 0 if alone else len(models.encode(shape, tokenizer, QUERY, [""])["input_ids"][0])
    room, found = max(1, tokens - around), []
    for text in stretches([tokens] * count, np.random.default_rng(SEED), distinct=True):
        places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        found.append(text[: places[min(room, len(places)) - 1][1]])
    return found


def save_checkpoint(folder: Path, seed: int = SEED) -> None:
    """The default model of the benchmarks."""
    models.save_minilm(folder, seed)


def describe(workload: Workload) -> dict[str, Any]:
    """Its size, for the report."""
    lengths = workload.lengths
    return {
        "passages": len(lengths),
        "tokens": sum(lengths),
        "shortest": min(lengths),
        "median": float(np.median(lengths)),
        "longest": max(lengths),
        "gflop": workload.flops / 1e9,
    }
