"""What a packed row is made of: sequences, their common beginnings, and tokens that nobody reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tamis.engine.keyvalues import Home, KeyValues
from tamis.engine.sequences import Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Tokens that lie together.

    Attributes:
        tokens: The sequence that they are of; of several that share a beginning, any.
        start: The place of its first token in the sequence.
        stop: The place after its last token.
        sequence: Number of the sequence; -1 for a beginning that several share.
        before: Number of the segment whose tokens it reads besides; -1 for none.
        itself: Whether its tokens read each other.
        stored: What they read first of all: keys and values of tokens that were run in another pass.
        home: Where its own keys and values go, and where it reads what stands before it; instead of `stored`.
        keep: Whether its keys and values are wanted afterwards, in `Layout.kept`.
        offset: The place of the tokens' first id in the sequence.
    """

    tokens: Tokens
    start: int
    stop: int
    sequence: int
    before: int = -1
    itself: bool = True
    stored: tuple[KeyValues, ...] = ()
    home: Home | None = None
    keep: bool = False
    offset: int = 0

    @property
    def ids(self) -> NDArray[np.int32]:
        """Its token ids."""
        return self.tokens.ids[self.start - self.offset : self.stop - self.offset]

    @property
    def type_ids(self) -> NDArray[np.int32]:
        """Its tokens' types; zeros where the sequence has none."""
        types = self.tokens.type_ids
        return np.zeros(len(self), np.int32) if types is None else types[self.start : self.stop]

    @property
    def read(self) -> int:
        """How many stored tokens it reads."""
        return len(self.home) if self.home is not None else sum(map(len, self.stored))

    def __len__(self) -> int:
        return self.stop - self.start


def segments_of(batch: Sequence[Tokens], *, share: bool = False) -> list[Segment]:
    """The batch in segments. Sequences keep their order, but for equal beginnings, which stand together if `share`."""
    counts = Counter(tokens.beginning for tokens in batch) if share else Counter[bytes]()
    groups: dict[bytes, list[int]] = {}  # an empty beginning, or one of its own, makes no group: its key is unique
    for i, tokens in enumerate(batch):
        beginning = tokens.beginning if share else b""
        alone = not beginning or counts[beginning] < 2
        groups.setdefault(b"%d" % i if alone else beginning, []).append(i)
    segments: list[Segment] = []
    for members in groups.values():
        before = start = -1
        if len(members) > 1:
            before, start = len(segments), batch[members[0]].shared
            segments.append(Segment(batch[members[0]], 0, start, -1))
        for i in members:
            tokens = batch[i]
            end = len(tokens) - tokens.unseen
            segments.append(Segment(tokens, max(0, start), end, i, before))
            if tokens.unseen:
                segments.append(Segment(tokens, end, len(tokens), i, len(segments) - 1, itself=False))
    return segments
