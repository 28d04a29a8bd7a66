"""Token sequences, and how a batch of them is cut from a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """One sequence as the model reads it, special tokens included.

    Attributes:
        ids: int32, shape (n,).
        type_ids: int32, shape (n,): 0 for the query's part and 1 for the passage's. None where the model has none.
    """

    ids: NDArray[np.int32]
    type_ids: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.ids)


def by_length(lengths: Sequence[int]) -> list[int]:
    """Indices from the longest to the shortest: equal lengths stand together, and memory peaks in the first batch."""
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


def cut(lengths: Sequence[int], budget: int, *, padded: bool) -> list[slice]:
    """Consecutive batches that cost at most `budget` tokens each; a sequence above it is a batch of its own.

    A packed batch costs the sum of its lengths, a padded one its longest length times its size.

    >>> cut([5, 4, 3, 3], 8, padded=False)
    [slice(0, 1, None), slice(1, 3, None), slice(3, 4, None)]
    >>> cut([5, 4, 3, 3], 8, padded=True)
    [slice(0, 1, None), slice(1, 3, None), slice(3, 4, None)]
    """
    batches = []
    start = total = longest = 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        cost = longest * (i - start + 1) if padded else total + length
        if i > start and cost > budget:
            batches.append(slice(start, i))
            start, total, longest = i, 0, length
        total += length
    if lengths:
        batches.append(slice(start, len(lengths)))
    return batches
