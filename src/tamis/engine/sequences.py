"""Token sequences, and how a batch of them is cut from a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_SHARED = 8  # tokens; a shorter beginning is not worth running apart


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """One sequence as the model reads it, special tokens included.

    Attributes:
        ids: int32, shape (n,).
        type_ids: int32, shape (n,): 0 for the query's part and 1 for the passage's. None where the model has none.
        shared: How many tokens at the beginning other sequences may have too, less than n. A causal model whose last
            token is read runs an equal beginning once a batch.
        unseen: How many tokens at the end are read by no token: they see what is before them, and not each other.
        layer: Leave the model after this many layers; None is all of them.
        passage: Where the passage's own tokens lie, for models that compress them.
    """

    ids: NDArray[np.int32]
    type_ids: NDArray[np.int32] | None = None
    shared: int = 0
    unseen: int = 0
    layer: int | None = None
    passage: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def kind(self) -> bytes:
        """Tells apart what the same ids mean, where they are run to different ends."""
        return b"%d %d %s" % (self.unseen, self.layer or 0, repr(self.passage).encode())

    def after(self, row: NDArray[np.float32]) -> Tokens | None:
        """What is to run next, now that this one's row is there; None if that was all."""
        return None

    @property
    def beginning(self) -> bytes:
        """Tells beginnings apart; empty where there is none that is worth sharing."""
        return self.ids[: self.shared].tobytes() if self.shared >= LEAST_SHARED else b""


def in_order(batch: Sequence[Tokens], *, shares: bool = False) -> list[int]:
    """Indices in the order for the device: by layer, by beginning if the model `shares` them, the longest first.

    So equal lengths stand together, and without beginnings memory peaks in the first batch.
    """
    groups: dict[tuple[int | None, bytes], int] = {}
    kinds = [(tokens.layer, tokens.beginning if shares else b"") for tokens in batch]
    keys = [groups.setdefault(kind, len(groups)) for kind in kinds]
    return sorted(range(len(batch)), key=lambda i: (keys[i], -len(batch[i])))


def cut(
    batch: Sequence[Tokens],
    budget: int,
    *,
    padded: bool = False,
    shares: bool = False,
    cost: Callable[[Tokens], int] = len,
) -> list[slice]:
    """Consecutive batches that cost at most `budget` tokens each; a sequence above it is a batch of its own.

    A packed batch costs the sum of its sequences' costs (their lengths, if the model says nothing else), less what they
    share; a padded one its longest length times its size.

    >>> batch = [Tokens(np.zeros(n, np.int32)) for n in (5, 4, 3, 3)]
    >>> cut(batch, 8), cut(batch, 8, padded=True) == cut(batch, 8)
    ([slice(0, 1, None), slice(1, 3, None), slice(3, 4, None)], True)
    """
    batches = []
    start = total = longest = 0
    begun: set[bytes] = set()
    for i, tokens in enumerate(batch):
        longest = max(longest, len(tokens))
        alone = cost(tokens)
        more = alone - saved(tokens, begun, shares=shares)
        if i > start and (longest * (i - start + 1) if padded else total + more) > budget:
            batches.append(slice(start, i))
            start, total, longest = i, 0, len(tokens)
            begun.clear()
            more = alone
        begun.add(tokens.beginning)
        total += more
    if batch:
        batches.append(slice(start, len(batch)))
    return batches


def saved(tokens: Tokens, begun: set[bytes], *, shares: bool) -> int:
    """How many tokens of a sequence need not be run, where the beginnings `begun` are in the batch already."""
    beginning = tokens.beginning if shares else b""
    return tokens.shared if beginning and beginning in begun else 0
