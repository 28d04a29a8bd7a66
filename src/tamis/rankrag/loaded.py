"""A RankRAG model in memory."""

from __future__ import annotations

from dataclasses import dataclass

from tamis.engine.loaded import Loaded
from tamis.rankrag.prompts import Tokenised


@dataclass(frozen=True, eq=False, kw_only=True)
class LoadedRankRAG(Loaded):
    """What every `RankRAG` over one model shares.

    Attributes:
        prompts: Its wording.
        ends: Tokens that end a text.
    """

    prompts: Tokenised
    ends: tuple[int, ...]
