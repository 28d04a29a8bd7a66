"""From packed hidden states (T, d) to one vector for each of B sequences, in float32.

The names and definitions are those of sentence-transformers' Pooling module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from tamis.engine.packing import Layout

Pool: TypeAlias = Callable[[Tensor, Layout], Tensor]


def cls(hidden: Tensor, layout: Layout) -> Tensor:
    """The first token's state, (B, d)."""
    return hidden[layout.first].float()


def last(hidden: Tensor, layout: Layout) -> Tensor:
    """The last token's state, (B, d)."""
    return hidden[layout.last].float()


def mean(hidden: Tensor, layout: Layout) -> Tensor:
    """The mean over each sequence's tokens, (B, d)."""
    return _sums(hidden.float(), layout) / _lengths(layout)


def mean_sqrt_len(hidden: Tensor, layout: Layout) -> Tensor:
    """The sum over each sequence's tokens by the root of their number, (B, d)."""
    return _sums(hidden.float(), layout) / _lengths(layout).sqrt()


def weighted_mean(hidden: Tensor, layout: Layout) -> Tensor:
    """The mean with weights 1, 2, 3, ... from the first token on (Muennighoff 2022, SGPT), (B, d)."""
    weight = (layout.place + 1).float()[:, None]  # (T, 1)
    return _sums(hidden.float() * weight, layout) / _sums(weight, layout)


def maximum(hidden: Tensor, layout: Layout) -> Tensor:
    """The maximum of each component over each sequence's tokens, (B, d)."""
    start = torch.full((len(layout.lengths), hidden.shape[1]), -torch.inf, device=hidden.device)
    index = layout.owner[:, None].expand(-1, hidden.shape[1])
    return start.scatter_reduce(0, index, hidden.float(), "amax")


POOLS: dict[str, Pool] = {
    "cls": cls,
    "lasttoken": last,
    "mean": mean,
    "mean_sqrt_len_tokens": mean_sqrt_len,
    "weightedmean": weighted_mean,
    "max": maximum,
}


def _sums(rows: Tensor, layout: Layout) -> Tensor:
    zeros = torch.zeros(len(layout.lengths), rows.shape[1], device=rows.device)
    return zeros.index_add_(0, layout.owner, rows)


def _lengths(layout: Layout) -> Tensor:
    return torch.tensor(layout.lengths, dtype=torch.float32, device=layout.device)[:, None]
