"""The values that go in and come out. All are frozen: what was returned never changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload


@dataclass(frozen=True, slots=True)
class Passage:
    """A text to be ranked, with what the caller wants to find again beside it.

    Attributes:
        text: What the model reads. May be empty; it is then scored like any other.
        id: The caller's own key, handed through untouched.
        metadata: The caller's own data, handed through untouched and never read.
    """

    text: str
    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage with its scores.

    Attributes:
        index: Where the passage stood in the caller's list, from 0.
        score: In [0, 1], monotone in the logit; what thresholds are for.
        logit: The model's own raw value; what the order is made from.
        passage: The passage as it was passed in.
        truncated: Whether the model read less than the whole query and passage.
        window: Where the passage was read in windows: the one that won, as characters (start, stop) of its text.
    """

    index: int
    score: float
    logit: float
    passage: Passage
    truncated: bool = False
    window: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request cost.

    Attributes:
        tokens: Tokens that went through the model, special tokens and windows included.
        cached: Passages whose vectors were still there from an earlier request.
        below_min_score: Passages left out because their score was under `min_score`.
        over_budget: Passages left out because `max_tokens` was full.
    """

    tokens: int = 0
    cached: int = 0
    below_min_score: int = 0
    over_budget: int = 0


@dataclass(frozen=True, slots=True)
class Ranking(Sequence[Hit]):
    """The hits of one request, best first. Equal logits keep the caller's order.

    >>> hits = [Hit(1, 0.9, 2.2, Passage("b")), Hit(0, 0.1, -2.2, Passage("a"))]
    >>> ranking = Ranking(hits, model="demo")
    >>> ranking[0].index, len(ranking), ranking.texts()
    (1, 2, ['b', 'a'])
    """

    hits: Sequence[Hit]
    model: str
    usage: Usage = Usage()

    def __post_init__(self) -> None:
        object.__setattr__(self, "hits", tuple(self.hits))

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Hit]: ...
    def __getitem__(self, index: int | slice) -> Hit | Sequence[Hit]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def texts(self) -> list[str]:
        """The passages' texts, best first."""
        return [hit.passage.text for hit in self.hits]
