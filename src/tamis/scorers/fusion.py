"""`fusion`: a cross-encoder's logit, a bi-encoder's similarity and, if wanted, words in common, as one number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tamis.budget import TokenCounter
from tamis.scorers.base import Scorer, Scores
from tamis.scores import sigmoid
from tamis.steps import Steps

if TYPE_CHECKING:
    from tamis.scorers.overlap import Overlap


_CHUNK = 32  # passages in which words are counted at a time


@dataclass(frozen=True, slots=True)
class Blend:
    """How they become one: `scale * (cross + weight * similarity + lexical * overlap) + offset`.

    Attributes:
        weight: Of the similarity; at least 0.
        scale: Above 0, so that a higher sum is a higher logit.
        offset: What makes the sigmoid of the whole a probability.
        lexical: Of the words in common, `tamis.scorers.overlap.Overlap`; at least 0.
    """

    weight: float
    scale: float = 1.0
    offset: float = 0.0
    lexical: float = 0.0


class FusionScorer:
    """Two scorers over the same passages, each on its own engine; every passage is read by both.

    Args:
        cross: The cross-encoder.
        similar: The bi-encoder; it keeps passage vectors between calls.
        model: What the checkpoint was called.
        blend: How their logits are added.
        overlap: Words in common, where `blend.lexical` is not 0.
    """

    mode = "fusion"

    def __init__(
        self, cross: Scorer, similar: Scorer, *, model: str, blend: Blend, overlap: Overlap | None = None
    ) -> None:
        self.model = model
        self._cross = cross
        self._similar = similar
        self._blend = blend
        self._overlap = overlap
        self.count_tokens: TokenCounter | None = cross.count_tokens

    def steps(self, query: str, passages: Sequence[str]) -> Steps[Scores]:
        """Vectors first, which are often known already; then the pairs.

        A passage counts as truncated where either model read less than all of it, and its window is the
        cross-encoder's. None counts as cached, since every pair is read anew.
        """
        similar = yield from self._similar.steps(query, passages)
        cross = yield from self._cross.steps(query, passages)
        blend = self._blend
        logits = cross.logits + blend.weight * similar.logits
        if self._overlap is not None:
            logits = logits + blend.lexical * (yield from self._shared(query, passages))
        return Scores(
            blend.scale * logits + blend.offset,
            cross.truncated | similar.truncated,
            cross.tokens + similar.tokens,
            windows=cross.windows,
        )

    def _shared(self, query: str, passages: Sequence[str]) -> Steps[NDArray[np.float64]]:
        """Words in common, (n,). After each part of the passages, whoever waits may give up."""
        assert self._overlap is not None  # noqa: S101 - asked above
        values = [np.zeros(0)]
        for start in range(0, len(passages), _CHUNK):
            values.append(self._overlap(query, passages[start : start + _CHUNK]))
            yield ()
        return np.concatenate(values)

    def to_score(self, logit: float) -> float:
        """See `tamis.scores.sigmoid`."""
        return sigmoid(logit)

    def stats(self) -> Mapping[str, Any]:
        """The cross-encoder's counters; the bi-encoder's as `bi_encoder_...`, or plain where it alone has them."""
        similar = self._similar.stats()
        apart = {f"bi_encoder_{name}": value for name, value in similar.items()}
        return {**similar, **self._cross.stats(), **apart}

    def close(self) -> None:
        """Gives both checkpoints back."""
        with ExitStack() as stack:
            stack.callback(self._similar.close)
            stack.callback(self._cross.close)
