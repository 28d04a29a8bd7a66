"""Two towers: queries and passages have an encoder each, trained together. Dragon, and DPR.

Both take the first token's state as it is and compare by the dot product. Dragon (Lin et al. 2023, arXiv 2302.07452) is
two plain encoders whose files do not say so: its hub ids do, or the caller. DPR (Karpukhin et al. 2020, arXiv
2004.04906) says it in its config.
"""

from __future__ import annotations

from typing import Any

from tamis.checkpoint import Checkpoint
from tamis.errors import InvalidInput
from tamis.families import Family
from tamis.families.sentence_encoders import SCORE, build
from tamis.options import LoadOptions
from tamis.scorers.base import Scorer

_DRAGON = {  # what encodes queries: what encodes its passages
    f"facebook/{name}-query-encoder": f"facebook/{name}-context-encoder" for name in ("dragon-plus", "dragon-roberta")
}
_DPR = ("DPRQuestionEncoder", "DPRContextEncoder")


def build_dragon(checkpoint: Checkpoint, options: LoadOptions) -> Scorer:
    """Dragon; the context encoder is found by the query encoder's hub id."""
    passage_model = options.passage_model or _DRAGON.get(checkpoint.name)
    if checkpoint.name in _DRAGON.values() or passage_model in _DRAGON:
        raise InvalidInput(
            f"{checkpoint.name} was asked to read queries and {passage_model} passages. Dragon's query encoder is "
            "model, its context encoder is passage_model=."
        )
    if passage_model is None:
        raise InvalidInput(f"{checkpoint.name} reads queries only; pass its context encoder as passage_model=.")
    return build(checkpoint, options, passage=Checkpoint.find(passage_model), pooling="cls", similarity="dot")


def build_dpr(checkpoint: Checkpoint, options: LoadOptions) -> Scorer:
    """DPR."""
    if checkpoint.architecture not in _DPR:
        raise InvalidInput(f"{checkpoint.name} holds {checkpoint.architecture}, and DPR has {' and '.join(_DPR)}.")
    if checkpoint.architecture == "DPRQuestionEncoder" and options.passage_model is None:
        raise InvalidInput(f"{checkpoint.name} reads queries only; pass its context encoder as passage_model=.")
    return build(checkpoint, options, pooling="cls", similarity="dot")


def dpr_parts(model: Any) -> tuple[Any, Any]:
    """The BERT in it, and the projection behind it, in float32, or None."""
    encoder = getattr(model, model.base_model_prefix)
    return encoder.bert_model, encoder.encode_proj.float() if encoder.projection_dim > 0 else None


FAMILIES = (
    Family(
        "dragon",
        "bi-encoder",
        "facebook/dragon-plus and dragon-roberta: query and context encoder, first token, dot product",
        SCORE,
        build_dragon,
        hub_ids=frozenset({*_DRAGON, *_DRAGON.values()}),
        template="[CLS] query [SEP]; [CLS] passage [SEP]",
        window="512",
    ),
    Family(
        "dpr",
        "bi-encoder",
        "DPRQuestionEncoder, with the DPRContextEncoder as passage_model=: first token, dot product",
        SCORE,
        build_dpr,
        matches=lambda checkpoint: checkpoint.architecture in _DPR,
        template="[CLS] query [SEP]; [CLS] passage [SEP]",
        window="512",
    ),
)
