"""Cross-encoders: `AutoModelForSequenceClassification` checkpoints with one label, or two (not relevant, relevant)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tamis.checkpoint import Checkpoint
from tamis.errors import UnknownFamily
from tamis.families import Family
from tamis.options import LoadOptions
from tamis.scorers.base import Scorer

logger = logging.getLogger(__name__)

CLASS = "AutoModelForSequenceClassification"
_PLAIN_ACTIVATIONS = ("Identity", "Sigmoid")


def build(checkpoint: Checkpoint, options: LoadOptions, *, full_windows: bool = True) -> Scorer:
    """A cross-encoder over the shared engine of the checkpoint; for `full_windows` see `long_documents.windows`."""
    from tamis import transformer
    from tamis.scorers.cross_encoder import CrossEncoderScorer

    options.allow("cross-encoder", "instruction")

    def scorer(lease: Any) -> Scorer:
        if options.family is None and not len(lease.loaded.tokenizer.template(2).parts[1]):
            raise UnknownFamily(
                f"{checkpoint.name} is a classifier whose tokenizer puts nothing between query and passage, and its "
                "files do not say with which prompt it was trained; the wrong one ranks at random. Pass family=, or "
                'family="sequence-classification" if it was trained on the two texts glued together.'
            )
        return CrossEncoderScorer(
            lease,
            model=checkpoint.name,
            max_length=transformer.chosen_length(options, lease.loaded.longest, checkpoint.name),
            prompt=_prompt(checkpoint.sentence_config) if options.instruction is None else options.instruction,
            long_documents=options.long_documents,
            full_windows=full_windows,
        )

    return transformer.lease("cross-encoder", checkpoint, options, load_classifier).hold(scorer)


def load_classifier(
    checkpoint: Checkpoint,
    options: LoadOptions,
    devices: Sequence[Any],
    dtype: Any,
    adjust: Callable[[Any], None] = lambda _: None,
) -> Any:
    """A classification model in memory; `adjust` sees, and may change, its config before it is made."""
    from tamis import transformer
    from tamis.cache import ByteLRU
    from tamis.engine.architectures import ARCHITECTURES
    from tamis.engine.classifier import classifier_runner
    from tamis.engine.loaded import Loaded

    config = transformer.read_config(checkpoint, options, own=True)
    adjust(config)
    if config.num_labels not in (1, 2):
        raise UnknownFamily(
            f"{checkpoint.name} classifies into {config.num_labels} labels; a reranker has one, or two "
            "(not relevant, relevant)."
        )
    tokenizer, tokenizer_length = transformer.load_tokenizer(checkpoint, options)
    look_at_activation(checkpoint)
    longest = transformer.longest_of(checkpoint, config, tokenizer_length)
    architecture, pack = ARCHITECTURES.get(config.model_type), options.attention == "auto"

    def runner(device: Any) -> Any:
        model, missing = transformer.load_model(CLASS, checkpoint, config, options, dtype)
        transformer.check_missing(model, missing, checkpoint, options)
        return classifier_runner(model.to(device), architecture, tokenizer.pad_id, longest, pack=pack)

    engine = transformer.engine([runner(device) for device in devices], devices[0], checkpoint, options)
    facts = transformer.facts(checkpoint, devices, dtype)
    return Loaded(engine, tokenizer, longest, config.num_labels, ByteLRU(0), facts)


def _prompt(config: Mapping[str, Any]) -> str:
    """sentence-transformers puts a cross-encoder's default prompt before the query."""
    return str((config.get("prompts") or {}).get(config.get("default_prompt_name"), ""))


def look_at_activation(checkpoint: Checkpoint, advice: str = "") -> None:
    """Warns if a checkpoint was saved with another activation than the sigmoid, which is what scores are made with.

    Args:
        checkpoint: Its files are read.
        advice: What can be done about it, a sentence.
    """
    saved = (
        checkpoint.sentence_config.get("activation_fn")
        or (checkpoint.config.get("sentence_transformers") or {}).get("activation_fn")
        or checkpoint.config.get("sbert_ce_default_activation_function")
        or "Identity"
    )
    if saved.rsplit(".", 1)[-1] not in _PLAIN_ACTIVATIONS:
        logger.warning(
            "%s was saved with the activation %s; Tamis gives the raw logit, and its sigmoid as the score.%s",
            checkpoint.name, saved, advice and f" {advice}",
        )  # fmt: skip


FAMILIES = (
    Family(
        "sequence-classification",
        "cross-encoder",
        "any classification checkpoint with 1 or 2 labels: ms-marco-MiniLM, bge-, gte- and mxbai-rerankers, ...",
        "sigmoid of the logit, or of the difference of two",
        build,
        template="query and passage as the tokenizer pairs them",
        matches=lambda checkpoint: checkpoint.architecture.endswith("ForSequenceClassification"),
    ),
)
