"""What counts as input, checked once and early, each error naming the place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from threading import TIMEOUT_MAX

from tamis import advice
from tamis.budget import Tokenizer
from tamis.errors import InvalidInput
from tamis.types import Passage


@dataclass(frozen=True, slots=True)
class Cut:
    """How much of a ranking is kept. The fields are those of `Reranker.rank`."""

    top_n: int | None = None
    min_score: float | None = None
    max_tokens: int | None = None
    tokenizer: Tokenizer = None

    def __post_init__(self) -> None:
        for name, value in (("top_n", self.top_n), ("max_tokens", self.max_tokens)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
                raise InvalidInput(f"{name} is {value!r}; pass an int of at least 1, or None for no limit.")
        least = self.min_score
        if least is not None and (isinstance(least, bool) or not isinstance(least, Real) or not 0 <= least <= 1):
            raise InvalidInput(
                f"min_score is {least!r}; pass a number in [0, 1], where scores lie (raw logits, as in hit.logit, are "
                "unbounded)."
            )


def check_timeout(timeout: float | None) -> None:
    """Raises InvalidInput for anything but a number of seconds above 0 that a clock can wait, or None."""
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, Real) or not 0 < timeout <= TIMEOUT_MAX
    ):
        raise InvalidInput(f"timeout is {timeout!r}; pass seconds above 0, or None to wait as long as it takes.")


def check_query(query: str) -> None:
    """Raises InvalidInput for what is no question: another type, or nothing but white space."""
    if not isinstance(query, str):
        raise InvalidInput(f"The query is a {type(query).__name__}; {advice.for_query(query)}.")
    if not query.strip():
        raise InvalidInput("The query is empty; pass the question that the passages should answer.")


def checked(query: str, passages: Sequence[str | Passage]) -> list[Passage]:
    """The passages as values, in their order; a copy, so that the caller may change his list meanwhile.

    Raises:
        InvalidInput: The query or a passage is not text.
    """
    if isinstance(passages, str) and not isinstance(query, str):
        raise InvalidInput(f"The query is a {type(query).__name__} and passages is a str; the query comes first.")
    check_query(query)
    unfit = isinstance(passages, bytes | Passage) or not isinstance(passages, Iterable)
    instead = "pass a list of str or tamis.Passage" if unfit else advice.for_passages(passages)
    if instead is not None:
        raise InvalidInput(f"passages is a {type(passages).__name__}; {instead}.")
    given = []
    for index, passage in enumerate(passages):
        if isinstance(passage, str):
            given.append(Passage(passage))
        elif isinstance(passage, Passage) and isinstance(passage.text, str):
            given.append(passage)
        else:
            what = type(passage).__name__
            if isinstance(passage, Passage):
                what = f"Passage whose text is a {type(passage.text).__name__}"
            raise InvalidInput(f"Passage {index} is a {what}; {advice.for_passage(passage)}.")
    return given
