"""A checkpoint in memory: its engine, its tokenizer, and the vectors of passages it has seen."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from tamis.cache import ByteLRU
from tamis.engine.engine import Engine
from tamis.engine.shared import Shared
from tamis.tokenizing import TextTokenizer


@dataclass(frozen=True, eq=False, slots=True)
class Vectors:
    """What one passage left behind: raw vectors (windows, d) float32, and whether it was cut."""

    rows: Any
    truncated: bool


@dataclass(frozen=True, eq=False)
class Loaded:
    """What every reranker over one checkpoint shares.

    Attributes:
        engine: Runs sequences; one row of `width` float32 values comes back for each.
        tokenizer: Safe to use from any thread.
        longest: Tokens that the checkpoint reads at most, special tokens included.
        width: Values in a row: labels of a head, or dimensions of a vector.
        vectors: Passage vectors by digest.
        facts: Device, dtype and so on, for `stats()`.
    """

    engine: Engine
    tokenizer: TextTokenizer
    longest: int
    width: int
    vectors: ByteLRU[Vectors]
    facts: Mapping[str, Any]


_CHECKPOINTS: Shared[Loaded] = Shared(lambda loaded: loaded.engine.close())


class Lease:
    """One reranker's share of a loaded checkpoint.

    `close` gives it back; garbage collection only drops it, so that an object which is rebuilt between calls, as
    frameworks do, finds the model still loaded.
    """

    def __init__(self, key: Hashable, make: Callable[[], Loaded]) -> None:
        self.loaded = _CHECKPOINTS.take(key, make)
        self._key = key
        self._dropped = weakref.finalize(self, _CHECKPOINTS.drop, key)
        self._dropped.atexit = False

    def close(self) -> None:
        """Gives the share back; the last one frees the model."""
        if self._dropped.detach():
            _CHECKPOINTS.give_back(self._key)
