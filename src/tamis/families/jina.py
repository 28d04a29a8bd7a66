"""Jina's first rerankers, whose files name an encoder and hold a classifier."""

from __future__ import annotations

from tamis.checkpoint import Checkpoint
from tamis.families import Family
from tamis.families.sequence_classification import build
from tamis.native_encoders import is_jina_bert, weight_shapes


def _holds_a_classifier(checkpoint: Checkpoint) -> bool:
    return is_jina_bert(checkpoint) and "classifier.weight" in weight_shapes(checkpoint)


FAMILIES = (
    Family(
        "jina-reranker-v1",
        "cross-encoder",
        "jina-reranker-v1-tiny-en and -turbo-en: JinaBERT with a classifier, computed by Tamis itself",
        "sigmoid of the logit",
        build,
        matches=_holds_a_classifier,
        hub_ids=frozenset(f"jinaai/jina-reranker-v1-{size}-en" for size in ("tiny", "turbo")),
        template="[CLS] query [SEP] passage [SEP]",
        window="8192",
    ),
)
