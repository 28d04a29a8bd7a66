"""The seam between policy (above: `Reranker`) and models (below)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tamis.budget import TokenCounter
from tamis.steps import Steps


@dataclass(frozen=True, slots=True)
class Scores:
    """What a scorer says of n passages, in the order in which they were given.

    Attributes:
        logits: The model's raw values, float64, shape (n,).
        truncated: Whether the model read less than the whole pair, bool, shape (n,).
        tokens: How many tokens went through the model.
        cached: How many passages needed no model pass.
        unit: What a logit is divided by before it becomes a score: for a sum over query tokens, their number.
        windows: Of each passage that was read in windows, the characters of the one that won; None for the others,
            and altogether where there are none.
    """

    logits: NDArray[np.float64]
    truncated: NDArray[np.bool_]
    tokens: int = 0
    cached: int = 0
    unit: float = 1.0
    windows: Sequence[tuple[int, int] | None] | None = None


class Scorer(Protocol):
    """One loaded model in one mode. A test's fake implements this and nothing else."""

    @property
    def model(self) -> str:
        """The hub id, folder or name that was loaded."""

    @property
    def mode(self) -> str:
        """One of the modes that `tamis.load` names."""

    def steps(self, query: str, passages: Sequence[str]) -> Steps[Scores]:
        """Scores `passages` for `query`; see `tamis.steps`. Never called with an empty list."""

    def to_score(self, logit: float) -> float:
        """Maps a logit into [0, 1], monotonically."""

    @property
    def count_tokens(self) -> TokenCounter | None:
        """Counts a text's tokens with the model's own tokenizer; None where the mode has none."""

    def stats(self) -> Mapping[str, Any]:
        """Counters of the engine underneath, by name."""

    def close(self) -> None:
        """Gives the engine back; the last one to do so frees the model."""
