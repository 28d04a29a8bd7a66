"""Decoders with a classification head: NVIDIA's rerankers, and what else reads a prompt instead of a pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tamis.checkpoint import Checkpoint
from tamis.errors import CorruptCheckpoint, UnknownFamily
from tamis.families import Family
from tamis.families.causal_lm import Wording
from tamis.families.chat import logit_score_prompt
from tamis.families.wordings import MXBAI, NVIDIA, QWEN3
from tamis.options import LoadOptions
from tamis.prompts import Prompt
from tamis.scorers.base import Scorer

POOLINGS = ("avg", "cls", "last")


def prompted_head(
    prompt: Wording, *, pooling: str | None = None, length: int | None = None, relevant: str = ""
) -> Callable[[Checkpoint, LoadOptions], Scorer]:
    """Builds scorers for a family of decoders with one linear head.

    Args:
        prompt: What it reads; or what makes it from the tokenizer, the checkpoint and the options.
        pooling: "avg", "cls" or "last"; the config's own if None, or the last token.
        length: Tokens that it was trained for, where that is less than its config says.
        relevant: What the config calls the relevant one of two labels, where that may be the first; else the second is.
    """
    return partial(_build, prompt, pooling, length, relevant)


def _build(
    wording: Wording,
    pooling: str | None,
    length: int | None,
    relevant: str,
    checkpoint: Checkpoint,
    options: LoadOptions,
) -> Scorer:
    from tamis import transformer
    from tamis.prompts import BoundPrompt
    from tamis.scorers.prompted import PromptedScorer

    options.allow("cross-encoder", "instruction")
    yes = 0 if relevant and (checkpoint.config.get("id2label") or {}).get("0") == relevant else 1

    def scorer(lease: Any) -> Scorer:
        loaded = lease.loaded
        made = wording if isinstance(wording, Prompt) else wording(loaded.tokenizer, checkpoint, options)
        return PromptedScorer(
            lease,
            model=checkpoint.name,
            mode="cross-encoder",
            prompt=BoundPrompt(
                made,
                loaded.tokenizer,
                max_length=transformer.chosen_length(options, loaded.longest, checkpoint.name, length),
                policy=options.long_documents,
                instruction=options.instruction if made is wording else None,
            ),
            read=lambda rows: rows[:, 0] if rows.shape[1] == 1 else rows[:, yes] - rows[:, 1 - yes],
        )

    lease = transformer.lease("prompted head", checkpoint, options, partial(_load, pooling), pooling)
    return lease.hold(scorer)


def _load(pooling: str | None, checkpoint: Checkpoint, options: LoadOptions, devices: Sequence[Any], dtype: Any) -> Any:
    from tamis.families.sequence_classification import load_classifier

    def adjust(config: Any) -> None:
        if config.model_type not in _decoders():
            raise UnknownFamily(f"{checkpoint.name} is a {config.model_type}; this family's models are decoders.")
        if pooling is not None:
            config.pooling = pooling
        check_pooling(config, checkpoint)
        config.head_temperature = temperature_of(checkpoint)  # its own name is one of generation to transformers

    return load_classifier(checkpoint, options, devices, dtype, adjust)


def check_pooling(config: Any, checkpoint: Checkpoint) -> None:
    """Raises UnknownFamily for a `pooling` that Tamis does not compute."""
    if getattr(config, "pooling", None) not in (None, *POOLINGS):
        raise UnknownFamily(f"{checkpoint.name} pools by {config.pooling!r}; Tamis knows {', '.join(POOLINGS)}.")


def temperature_of(checkpoint: Checkpoint) -> float:
    """What a head's logits are divided by; 1 where the config does not say.

    Raises:
        CorruptCheckpoint: It is not above 0.
    """
    temperature = checkpoint.config.get("temperature", 1.0)
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not temperature > 0:
        raise CorruptCheckpoint(f"{checkpoint.name} has a temperature of {temperature!r}; it must be above 0.")
    return float(temperature)


def _decoders() -> tuple[str, ...]:
    from tamis.engine.architectures import DECODERS

    return DECODERS


FAMILIES = (
    Family(
        "nemotron-rerank",
        "cross-encoder",
        "llama-3.2-nv-rerankqa-1b-v2, llama-nemotron-rerank-1b-v2 and -500m-v2: bidirectional Llama, mean pooling",
        "sigmoid of the logit",
        prompted_head(NVIDIA, length=8192),
        matches=lambda checkpoint: (  # NVIDIA's embedders have the same type
            checkpoint.model_type == "llama_bidirec" and checkpoint.architecture.endswith("ForSequenceClassification")
        ),
        template=r"question:{query} \n \n passage:{passage}",
        window="8192",
    ),
    Family(
        "chat-classifier",
        "cross-encoder",
        "decoders with a head that sentence-transformers saved with a chat template for query and document",
        "sigmoid of the logit, or of the difference of two",
        prompted_head(logit_score_prompt),
        matches=lambda checkpoint: (
            checkpoint.architecture.endswith("ForSequenceClassification")
            and "message" in (checkpoint.transformer_config.get("modality_config") or {})
        ),
        template="the checkpoint's chat template, roles query and document",
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
    Family(
        "mxbai-rerank-v2-seq-cls",
        "cross-encoder",
        "mxbai-rerank-base-v2 and -large-v2 turned into classifiers with the labels 0 and 1; instruction= optional",
        "sigmoid of 1 - 0",
        prompted_head(MXBAI, length=8192, relevant="1"),
        hub_ids=frozenset(f"michaelfeil/mxbai-rerank-{size}-v2-seq" for size in ("base", "large")),
        template="as mxbai-rerank-v2",
        window="8192",
    ),
)
