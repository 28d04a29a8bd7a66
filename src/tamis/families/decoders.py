"""Decoders with a classification head: NVIDIA's rerankers, and what else reads a prompt instead of a pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tamis.checkpoint import Checkpoint
from tamis.errors import CorruptCheckpoint, UnknownFamily
from tamis.families import Family
from tamis.families.wordings import NVIDIA, QWEN3
from tamis.options import LoadOptions
from tamis.prompts import Prompt
from tamis.scorers.base import Scorer

POOLINGS = ("avg", "cls", "last")


def prompted_head(
    prompt: Prompt, *, pooling: str | None = None, length: int | None = None
) -> Callable[[Checkpoint, LoadOptions], Scorer]:
    """Builds scorers for a family of decoders with one linear head.

    Args:
        prompt: What it reads.
        pooling: "avg", "cls" or "last"; the config's own if None, or the last token.
        length: Tokens that it was trained for, where that is less than its config says.
    """
    return partial(_build, prompt, pooling, length)


def _build(
    prompt: Prompt, pooling: str | None, length: int | None, checkpoint: Checkpoint, options: LoadOptions
) -> Scorer:
    from tamis import transformer
    from tamis.prompts import BoundPrompt
    from tamis.scorers.prompted import PromptedScorer

    options.allow("cross-encoder", "instruction")
    return transformer.held(
        transformer.lease("prompted head", checkpoint, options, partial(_load, pooling), pooling),
        lambda lease: PromptedScorer(
            lease,
            model=checkpoint.name,
            mode="cross-encoder",
            prompt=BoundPrompt(
                prompt,
                lease.loaded.tokenizer,
                max_length=transformer.chosen_length(options, lease.loaded.longest, checkpoint.name, length),
                policy=options.long_documents,
                instruction=options.instruction,
            ),
            read=lambda rows: rows[:, 0] if rows.shape[1] == 1 else rows[:, 1] - rows[:, 0],
        ),
    )


def _load(pooling: str | None, checkpoint: Checkpoint, options: LoadOptions, devices: Sequence[Any], dtype: Any) -> Any:
    from tamis.families.sequence_classification import load_classifier

    def adjust(config: Any) -> None:
        if config.model_type not in _decoders():
            raise UnknownFamily(f"{checkpoint.name} is a {config.model_type}; this family's models are decoders.")
        if pooling is not None:
            config.pooling = pooling
        if getattr(config, "pooling", None) not in (None, *POOLINGS):
            raise UnknownFamily(f"{checkpoint.name} pools by {config.pooling!r}; Tamis knows {', '.join(POOLINGS)}.")
        temperature = checkpoint.config.get("temperature", 1.0)
        if not temperature > 0:
            raise CorruptCheckpoint(f"{checkpoint.name} has a temperature of {temperature}; it must be above 0.")
        config.head_temperature = temperature  # under its own name transformers takes it for one of generation

    return load_classifier(checkpoint, options, devices, dtype, adjust)


def _decoders() -> tuple[str, ...]:
    from tamis.engine.architectures import DECODERS

    return DECODERS


FAMILIES = (
    Family(
        "nemotron-rerank",
        "cross-encoder",
        "llama-3.2-nv-rerankqa-1b-v2, llama-nemotron-rerank-1b-v2 and -500m-v2: bidirectional Llama, mean pooling",
        "sigmoid of the logit",
        prompted_head(NVIDIA),
        matches=lambda checkpoint: checkpoint.model_type == "llama_bidirec",
        template=r"question:{query} \n \n passage:{passage}",
        window="8192",
    ),
    Family(
        "rerank-qa-mistral",
        "cross-encoder",
        "decoders with a head in the shape of Rerank QA Mistral-4B: num_layers=16 of a Mistral, last token",
        "sigmoid of the logit",
        prompted_head(NVIDIA),
        template=r"question:{query} \n \n passage:{passage}",
    ),
    Family(
        "qwen3-reranker-seq-cls",
        "cross-encoder",
        "Qwen3-Reranker turned into a classifier with one label",
        "sigmoid of the logit",
        prompted_head(QWEN3, length=8192),
        hub_ids=frozenset(f"tomaarsen/Qwen3-Reranker-{size}-seq-cls" for size in ("0.6B", "4B", "8B")),
        template="as qwen3-reranker",
        window="8192",
    ),
)
