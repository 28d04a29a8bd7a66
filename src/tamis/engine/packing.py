"""Sequences laid end to end: where each one lies, and the arrays that a model takes.

A batch is one row of T tokens, T the sum of the lengths. Position ids start again for each sequence, so that only
attention needs to know the borders; it reads them from `current()`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate, groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tamis.engine.sequences import Tokens


class Layout:
    """Where each of B sequences lies in T packed rows.

    Attributes:
        lengths: B lengths, all above 0.
        starts: B + 1 offsets, from 0 to T.
        tail: Rows after T that belong to no sequence; attention leaves them at zero, and nobody reads them.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device, *, rounded: bool = False) -> None:
        self.lengths = list(lengths)
        self.tail = -sum(lengths) % step_of(sum(lengths)) if rounded else 0
        self.starts = [0, *accumulate(self.lengths)]
        self.device = device
        self._windows: dict[tuple[int, int, bool], Tensor] = {}

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """Neighbours of equal length as (first row, how many sequences, their length)."""
        runs, row = [], 0
        for length, group in groupby(self.lengths):
            count = sum(1 for _ in group)
            runs.append((row, count, length))
            row += count * length
        return runs

    @cached_property
    def offsets(self) -> Tensor:
        """`starts` as int32 on the device, shape (B + 1,), as variable-length attention takes it."""
        return torch.tensor(self.starts, dtype=torch.int32, device=self.device)

    @cached_property
    def first(self) -> Tensor:
        """Row of each sequence's first token, shape (B,)."""
        return torch.tensor(self.starts[:-1], device=self.device)

    @cached_property
    def last(self) -> Tensor:
        """Row of each sequence's last token, shape (B,)."""
        return torch.tensor(self.starts[1:], device=self.device) - 1

    @cached_property
    def owner(self) -> Tensor:
        """Which sequence each row belongs to, shape (T,)."""
        counts = torch.tensor(self.lengths, device=self.device)
        return torch.repeat_interleave(torch.arange(len(self.lengths), device=self.device), counts)

    @cached_property
    def place(self) -> Tensor:
        """Each row's place in its own sequence, from 0, shape (T,)."""
        return torch.arange(self.starts[-1], device=self.device) - self.first[self.owner]

    def window(self, length: int, width: int, *, causal: bool) -> Tensor:
        """Which keys each query of a local layer sees: bool, shape (length, length).

        `width` is exclusive, as transformers hands it over: `|query - key| < width`, and the past only if causal.
        """
        key = (length, width, causal)
        if key not in self._windows:
            step = torch.arange(length, device=self.device)
            distance = step[:, None] - step  # query - key
            near = distance < width
            self._windows[key] = near & (distance >= 0) if causal else near & (distance > -width)
        return self._windows[key]


def step_of(rows: int) -> int:
    """What a number of rows is rounded up to, where every new number costs.

    On a CPU, oneDNN compiles and keeps a kernel for each shape of a 16-bit product it meets, about 0.7 ms and 0.7 MB
    each, and blocks of ever new sizes leave the heap full of holes. Rounded, a process meets some two dozen sizes.

    >>> [step_of(rows) for rows in (20, 300, 2000)]
    [32, 64, 128]
    """
    return 32 if rows <= 256 else 64 if rows <= 512 else 128


_here = threading.local()


def current() -> Layout | None:
    """The layout of the packed pass that this thread is in; None outside of one."""
    return getattr(_here, "layout", None)


@contextmanager
def packed(layout: Layout) -> Iterator[None]:
    """Within it, attention in this thread keeps the sequences of `layout` apart."""
    _here.layout = layout
    try:
        yield
    finally:
        _here.layout = None


def ids_of(batch: Sequence[Tokens], layout: Layout) -> Tensor:
    """Token ids end to end, shape (T + tail,)."""
    return _end_to_end([tokens.ids for tokens in batch], layout)


def type_ids_of(batch: Sequence[Tokens], layout: Layout) -> Tensor:
    """Token types end to end, zeros where a sequence has none, shape (T + tail,)."""
    return _end_to_end([_zeros(len(t)) if t.type_ids is None else t.type_ids for t in batch], layout)


def positions_of(layout: Layout, first: int) -> Tensor:
    """Position ids, from `first` on in each sequence, shape (T + tail,)."""
    return torch.nn.functional.pad(layout.place + first, (0, layout.tail), value=first)


def _end_to_end(parts: list[NDArray[np.int32]], layout: Layout) -> Tensor:
    whole = np.concatenate([*parts, _zeros(layout.tail)])
    return torch.from_numpy(whole.astype(np.int64)).to(layout.device)


def _zeros(length: int) -> NDArray[np.int32]:
    return np.zeros(length, np.int32)
