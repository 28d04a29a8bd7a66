"""What callers send, and who waits for what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tamis.engine.scheduler import Job, Work
from tamis.engine.sequences import Tokens

Row: TypeAlias = NDArray[np.float32]
"""What comes of a sequence: (k,), or (its tokens, k)."""
Outputs: TypeAlias = Sequence[Row]
"""One row for each sequence."""


@dataclass(slots=True, eq=False)
class Ticket:
    """Sequences that arrived together, and what has come back of them.

    Attributes:
        rows: One for each sequence, None until it is there.
        left: How many are not.
        arrived: When, by `time.perf_counter`.
        future: Brings the rows.
        works: What it waits for.
    """

    rows: list[Row | None]
    left: int
    arrived: float
    future: Future[Outputs] = field(default_factory=Future)
    works: list[Work[Sent]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Sent:
    """A sequence to run, who takes its row: (ticket, place), and whose work it is."""

    tokens: Tokens
    key: bytes
    takers: list[tuple[Ticket, int]]
    job: Job[Any]

    def wanted(self) -> bool:
        """Whether anybody waits for it still."""
        return any(not ticket.future.done() for ticket, _ in self.takers)

    def arrived(self) -> float:
        """When it was first asked for."""
        return min(ticket.arrived for ticket, _ in self.takers)


def digest(tokens: Tokens) -> bytes:
    """Tells sequences apart by whatever changes their rows, without keeping them."""
    made = blake2b(tokens.ids.tobytes(), digest_size=16)
    made.update(tokens.kind())
    if tokens.type_ids is not None:
        made.update(b"/")
        made.update(tokens.type_ids.tobytes())
    return made.digest()
