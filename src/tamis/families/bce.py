"""BCEmbedding's reranker: an XLM-R classifier with its own rule for windows."""

from __future__ import annotations

from functools import partial

from tamis.families import Family
from tamis.families.sequence_classification import build

FAMILIES = (
    Family(
        "bce-reranker",
        "cross-encoder",
        'maidalun1020/bce-reranker-base_v1; with long_documents="max_window" its windows are BCEmbedding\'s own',
        "sigmoid of the logit",
        partial(build, full_windows=False),
        hub_ids=frozenset({"maidalun1020/bce-reranker-base_v1"}),
        template="<s> query </s></s> passage </s>",
        window="512",
    ),
)
