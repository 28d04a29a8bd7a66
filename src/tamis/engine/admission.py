"""Who comes into the queue: a limit on the tokens that wait there, and the line before it.

Tokens are counted where sequences come in, and under the lock under which they do: what a request costs is known once
its texts are tokens, not when it begins. So of any number that arrive at one instant exactly those come in for whom
there is room. Nothing is reserved in advance, so that whoever fails or goes away has nothing to give back. A text that
is being written is in: its next token does not wait here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from tamis.errors import Overloaded
from tamis.steps import Party


@dataclass(slots=True, eq=False)
class Entry:
    """Where one request stands.

    Attributes:
        waits: Whether it waits where there is no room for it, instead of being refused.
        let_in: Whether a part of it has come in. The rest is not refused then; it waits.
        room: Done where it may bring more.
        party: The requests that it belongs to. Once a part of one of them has come in, it waits too.
    """

    waits: bool = False
    let_in: bool = False
    room: Future[None] = field(default_factory=Future)
    party: Party | None = None

    @property
    def stays(self) -> bool:
        """Whether it waits now where there is no room."""
        return self.waits or self.let_in or (self.party is not None and self.party.let_in)


def _nothing() -> None:
    """What comes in of a request that has only asked."""


def _least() -> int:
    return 1


@dataclass(slots=True, eq=False)
class Standing:
    """One in the line.

    Attributes:
        asks: Done where it has gone away.
        room: Done when it has come in.
        cost: The tokens that it would add to the queue now.
        enter: Puts them there.
    """

    asks: Future[Any]
    room: Future[None]
    cost: Callable[[], int] = _least
    enter: Callable[[], None] = _nothing


class Admission:
    """Lets in up to a number of tokens, first come first served. Pure bookkeeping: the engine holds its lock around it.

    What is larger than the limit by itself comes in where nothing else waits.

    Args:
        limit: Tokens that may wait.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._line: deque[Standing] = deque()

    def fits(self, waiting: int, cost: int = 1) -> bool:
        """Whether a newcomer may add `cost` tokens to those that wait; nobody overtakes the line.

        >>> door = Admission(100)
        >>> door.fits(60, 40), door.fits(60, 41), door.fits(0, 1000), door.fits(1000, 0)
        (True, False, True, True)
        """
        return not cost or (self._first() is None and self._room(waiting, cost))

    def stand(self, one: Standing) -> None:
        """Puts one at the end of the line."""
        self._line.append(one)

    def following(self, waiting: int) -> Standing | None:
        """The first of the line, who leaves it, if there is room for it."""
        first = self._first()
        if first is None or not self._room(waiting, first.cost()):
            return None
        return self._line.popleft()

    def refusal(self, waiting: int) -> Overloaded:
        """The error of somebody for whom there is no room."""
        return Overloaded(
            f"{waiting} tokens wait for this model already, and {self.limit} may. Try again later, wait with "
            'load(..., overload="wait"), or allow more with queue_tokens=.'
        )

    def empty(self) -> list[Standing]:
        """Everybody, who leaves the line."""
        line, self._line = list(self._line), deque()
        return line

    def _first(self) -> Standing | None:
        while self._line and self._line[0].asks.done():
            self._line.popleft()
        return self._line[0] if self._line else None

    def _room(self, waiting: int, cost: int) -> bool:
        return not waiting or waiting + cost <= self.limit
