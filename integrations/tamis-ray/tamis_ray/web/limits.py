"""What a request may cost, before anything of it reaches the model."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tamis.errors import InvalidInput

SECONDS = ("timeout", "read_timeout")


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one server process, a replica.

    Attributes:
        passages: Passages of a request.
        characters: Characters of a text: of a query, of a passage.
        body_bytes: Bytes of a request's body.
        header_bytes: Bytes of a request's headers, names and values.
        requests: Requests under way at once; one more is refused with 429.
        new_tokens: RankRAG: tokens of an answer.
        timeout: Seconds until a request is answered with 504.
        read_timeout: Seconds in which a request's body must have come.

    >>> Limits(passages=0)
    Traceback (most recent call last):
    tamis.errors.InvalidInput: The limit passages=0; pass an int of at least 1.
    """

    passages: int = 1000
    characters: int = 100_000
    body_bytes: int = 16 * 2**20
    header_bytes: int = 16 * 2**10
    requests: int = 128
    new_tokens: int = 512
    timeout: float = 60.0
    read_timeout: float = 15.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            seconds = field.name in SECONDS
            good = isinstance(value, int | float if seconds else int) and not isinstance(value, bool)
            if not good or not (value > 0 if seconds else value >= 1):
                wanted = "seconds above 0" if seconds else "an int of at least 1"
                raise InvalidInput(f"The limit {field.name}={value!r}; pass {wanted}.")


NAMES = tuple(field.name for field in fields(Limits))
