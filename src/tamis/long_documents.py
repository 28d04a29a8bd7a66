"""What happens to a passage that is longer than the model reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from tamis.errors import InputTooLong, InvalidInput

LongDocuments: TypeAlias = Literal["truncate", "max_window", "error"]
POLICIES: tuple[str, ...] = get_args(LongDocuments)

CHARACTERS_PER_TOKEN = 24  # more text than this for each token that fits is not even tokenised, at first
OVERLAP = 80  # tokens, at most; BCEmbedding's rule
QUERY_SHARE = 0.75  # of the model's length, at most; FlagEmbedding's rule


def windows(length: int, room: int, *, full: bool = True) -> list[slice]:
    """Overlapping windows of at most `room` tokens over a text of `length` tokens.

    Neighbours share a quarter of a window, and no more than `OVERLAP` tokens, so that a sentence at a border is
    whole in one of them. The last window ends with the text. It is as wide as the others if `full`; else it begins
    where its turn is and is shorter, as BCEmbedding has it.

    >>> windows(10, 4)
    [slice(0, 4, None), slice(3, 7, None), slice(6, 10, None)]
    >>> windows(9, 4, full=False)
    [slice(0, 4, None), slice(3, 7, None), slice(6, 9, None)]
    >>> windows(3, 4), windows(0, 4)
    ([slice(0, 3, None)], [slice(0, 0, None)])
    """
    if length <= room:
        return [slice(0, length)]
    step = max(1, room - min(OVERLAP, room // 4))
    starts = [*range(0, length - room, step)]
    last = length - room if full else starts[-1] + step
    return [*(slice(start, start + room) for start in starts), slice(last, length)]


def pieces(
    lengths: Sequence[int], room: int, policy: LongDocuments, first: int = 0, *, full: bool = True
) -> tuple[list[tuple[int, slice]], NDArray[np.bool_]]:
    """Which part of which passage the model reads.

    Args:
        lengths: Tokens of each passage.
        room: Tokens that fit beside the query and the special tokens.
        policy: "truncate" keeps the beginning, "max_window" covers all of it, "error" refuses.
        first: Index of the first passage, for messages.
        full: See `windows`.

    Returns:
        (passage, slice) in order of the passages, at least one for each; and which passages lose text, (n,).

    Raises:
        InputTooLong: The policy is "error" and a passage does not fit.
    """
    parts: list[tuple[int, slice]] = []
    for i, length in enumerate(lengths):
        if policy == "max_window":
            parts += [(i, window) for window in windows(length, room, full=full)]
        else:
            if policy == "error" and length > room:
                raise InputTooLong(
                    f"Passage {first + i} has {length} tokens or more, and {room} fit beside the query. Split it, or "
                    'load with long_documents="max_window" (all of it, in windows) or "truncate" (its beginning).'
                )
            parts.append((i, slice(0, min(length, room))))
    cut = np.array([policy == "truncate" and length > room for length in lengths], dtype=np.bool_)
    return parts, cut


def spans_of(
    parts: Sequence[tuple[int, slice]], offsets: Callable[[int], NDArray[np.int64]]
) -> list[tuple[int, int] | None]:
    """The characters of each part of a passage that has several; None for a passage's only part.

    Args:
        parts: As `pieces` gives them.
        offsets: From a passage to its tokens' characters (start, stop), shape (n, 2). Asked where it is needed only.
    """
    spans: list[tuple[int, int] | None] = []
    for owner, group in groupby(parts, itemgetter(0)):
        slices = [part for _, part in group]
        where = offsets(owner) if len(slices) > 1 else None
        spans += [None if where is None else (int(where[part, 0].min()), int(where[part, 1].max())) for part in slices]
    return spans


def check_policy(policy: str) -> None:
    """Raises InvalidInput for anything but the three policies."""
    if policy not in POLICIES:
        raise InvalidInput(f"long_documents={policy!r}; pass one of {', '.join(map(repr, POLICIES))}.")
