"""Whose work it is: tenants share a device in proportion to their weights, whatever each of them sends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from tamis.errors import InvalidInput

LEAST, MOST = 0.001, 1000.0  # weights: the rotation takes a visit for each part of a sequence that a share pays for


@dataclass(frozen=True, slots=True)
class Tenant:
    """A name and a share.

    Attributes:
        name: Requests with one name share one place in the rotation.
        weight: Tokens of the device for each token of a tenant with weight 1, while both have work.
    """

    name: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_weight(self.weight)


_current: ContextVar[Tenant | None] = ContextVar("tamis_tenant", default=None)


@contextmanager
def tenant(name: str, weight: float = 1.0) -> Iterator[Tenant]:
    """All requests made within it, in this thread or task and the asyncio tasks it starts, are this tenant's.

    A thread of your own does not inherit it; `asyncio.to_thread` and `contextvars.copy_context().run` hand it on.

    Args:
        name: Any name.
        weight: Its share of the device, from 0.001 to 1000.

    >>> with tenant("batch jobs", weight=0.5) as mine:
    ...     current() == mine
    True
    >>> current() is None
    True
    """
    chosen = Tenant(name, weight)
    token = _current.set(chosen)
    try:
        yield chosen
    finally:
        _current.reset(token)


def current() -> Tenant | None:
    """The tenant of the calling thread or task; None outside of any."""
    return _current.get()


def check_weight(weight: float) -> None:
    """Raises InvalidInput for anything but a number from `LEAST` to `MOST`."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not LEAST <= weight <= MOST:
        raise InvalidInput(f"weight={weight!r}; pass a number from {LEAST} to {MOST:.0f}: 2 has twice the share of 1.")
