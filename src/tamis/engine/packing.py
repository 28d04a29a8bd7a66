"""Sequences laid end to end: where each one lies, and the arrays that a model takes.

A batch is one row of T tokens. A sequence is a segment of it, or two: where several begin with the same tokens, that
beginning is a segment of its own, laid down once, and their rests are segments that read it; a sequence whose last
tokens nobody reads has those in a second segment that reads the first alone. Position ids are those of the sequences,
so that only attention needs to know the borders; it reads them from `current()`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tamis.engine.keyvalues import Home, KeyValues, Pair
from tamis.engine.segments import Segment


class Run(NamedTuple):
    """Neighbours that attention can take as one small batch: `n` segments of `length` rows, from `row` on.

    All of them also read what is `stored`, or at `home`, then the rows `before` (first row, number of rows), and each
    its own unless `itself` is False. Where each has stored tokens of its own besides, those are in `each`.
    """

    row: int
    n: int
    length: int
    before: tuple[int, int] = (0, 0)
    itself: bool = True
    stored: tuple[KeyValues, ...] = ()
    home: Home | None = None
    each: tuple[KeyValues, ...] = ()

    @property
    def known(self) -> int:
        """Tokens that are read besides the own ones."""
        stored = len(self.home) if self.home is not None else sum(map(len, self.stored))
        return stored + self.before[1] + max(map(len, self.each), default=0)


class Layout:
    """Where each of B sequences lies in T packed rows.

    Attributes:
        edges: Offsets of the segments, from 0 to T.
        lengths: Rows of each sequence, without a beginning that it shares.
        tail: Rows after T that belong to no sequence; attention leaves them at zero, and nobody reads them.
        layer: After which layer the batch leaves the model; None is the last.
        kept: By segment number, keys (G, n, D) and values of each layer, of the segments that `keep` them.
    """

    def __init__(
        self, segments: Sequence[Segment], device: torch.device, *, rounded: bool = False, layer: int | None = None
    ) -> None:
        self.segments = list(segments)
        self.device = device
        self.layer = layer
        self.edges = [0, *accumulate(map(len, self.segments))]
        self.tail = -self.rows % step_of(self.rows) if rounded else 0
        spans: dict[int, tuple[int, int]] = {}
        for number, segment in enumerate(self.segments):
            if segment.sequence >= 0:
                first = spans.get(segment.sequence, (self.edges[number], 0))[0]
                spans[segment.sequence] = (first, self.edges[number + 1])
        self.spans = [slice(*spans[i]) for i in sorted(spans)]
        self.lengths = [span.stop - span.start for span in self.spans]
        self.kept: dict[int, list[Pair]] = {n: [] for n, segment in enumerate(self.segments) if segment.keep}
        self._masks: dict[tuple[Any, ...], Tensor | None] = {}

    @property
    def rows(self) -> int:
        """T."""
        return self.edges[-1]

    @cached_property
    def plain(self) -> bool:
        """Whether every sequence is one segment that reads itself alone, in the batch's order."""
        return not self.reads_stored and all(s.before < 0 and s.sequence == i for i, s in enumerate(self.segments))

    @cached_property
    def reads_stored(self) -> bool:
        """Whether a segment reads what another pass has left, or is to be read by one."""
        return not self.fresh or any(segment.keep for segment in self.segments)

    @cached_property
    def fresh(self) -> bool:
        """Whether no segment reads what another pass has left."""
        return not any(segment.stored or segment.home is not None for segment in self.segments)

    @cached_property
    def at_home(self) -> bool:
        """Whether a segment goes on where another pass has stopped, as the steps of an answer do."""
        return any(segment.home is not None for segment in self.segments)

    @cached_property
    def whole(self) -> bool:
        """Whether the tokens of every segment read each other."""
        return all(segment.itself for segment in self.segments)

    @cached_property
    def apart(self) -> bool:
        """Whether every segment of a fresh pass reads itself alone."""
        return self.whole and all(segment.before < 0 for segment in self.segments)

    @cached_property
    def runs(self) -> list[Run]:
        """Neighbours of equal length that read the same rows besides their own, or about as many stored ones."""
        runs: list[Run] = []

        def kind(number: int) -> tuple[int, int, bool, tuple[int, ...], int, int]:
            segment = self.segments[number]
            home = 0 if segment.home is None else id(segment.home)
            several = len(segment.stored) > 1 and segment.before < 0 and segment.itself
            stored = segment.stored[:-1] if several else segment.stored
            size = len(segment.stored[-1]).bit_length() if several else 0  # what is filled up at most doubles it
            return len(segment), segment.before, segment.itself, tuple(map(id, stored)), home, size

        for (length, before, itself, *_, several), group in groupby(range(len(self.segments)), kind):
            numbers = list(group)
            rows = (self.edges[before], len(self.segments[before])) if before >= 0 else (0, 0)
            first = self.segments[numbers[0]]
            stored, each = first.stored, tuple[KeyValues, ...]()
            if several and len(numbers) > 1:
                stored, each = stored[:-1], tuple(self.segments[n].stored[-1] for n in numbers)
            run = Run(self.edges[numbers[0]], len(numbers), length, rows, itself, stored, first.home, each)
            runs.append(run)
        return runs

    @cached_property
    def offsets(self) -> Tensor:
        """`edges` as int32 on the device, as variable-length attention takes it."""
        return torch.tensor(self.edges, dtype=torch.int32, device=self.device)

    @cached_property
    def keys(self) -> tuple[Tensor, Tensor, int]:
        """For each segment the rows that it reads, end to end; their offsets, int32; the largest number of them."""
        rows, counts = [], []
        for number, segment in enumerate(self.segments):
            parts = [segment.before] if segment.before >= 0 else []
            parts += [number] if segment.itself else []
            mine = [np.arange(self.edges[part], self.edges[part + 1]) for part in parts]
            rows += mine
            counts.append(sum(map(len, mine)))
        offsets = torch.tensor([0, *accumulate(counts)], dtype=torch.int32, device=self.device)
        return torch.from_numpy(np.concatenate(rows)).to(self.device), offsets, max(counts)

    @cached_property
    def first(self) -> Tensor:
        """Row of each sequence's first token, shape (B,); of its first own token if it shares a beginning."""
        return torch.tensor([span.start for span in self.spans], device=self.device)

    @cached_property
    def last(self) -> Tensor:
        """Row of each sequence's last token, shape (B,)."""
        return torch.tensor([span.stop - 1 for span in self.spans], device=self.device)

    @cached_property
    def owner(self) -> Tensor:
        """Which sequence each row belongs to, shape (T,); -1 where several share it."""
        return self._by_segment([segment.sequence for segment in self.segments])

    @cached_property
    def place(self) -> Tensor:
        """Each row's place in its own sequence, from 0, shape (T,)."""
        starts = self._by_segment(
            [segment.start - edge for segment, edge in zip(self.segments, self.edges, strict=False)]
        )
        return torch.arange(self.rows, device=self.device) + starts

    def mask(self, run: Run, width: int | None, *, causal: bool) -> Tensor | None:
        """Which keys each query of a segment sees: bool, (length, keys), its own keys last; None if all.

        Where each segment of the run has stored tokens of its own, (n, 1, length, keys), in the middle those, filled up
        to the longest. `width` is exclusive, as transformers hands it over: `|query - key| < width`, and the past only
        if causal.
        """
        length, before = run.length, run.known
        near = width if width and before + length > width else None
        if near is None and not (causal and run.itself and length > 1) and not run.each:
            return None
        each = tuple(map(len, run.each))
        key = (length, before, near, causal, run.itself, each)
        if key not in self._masks:
            asked = torch.arange(before, before + length, device=self.device)
            keys = torch.arange(before + length if run.itself else before, device=self.device)
            distance = asked[:, None] - keys
            seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
            if each:
                longest = max(each)
                short = longest - torch.tensor(each, device=self.device)[:, None, None, None]  # (n, 1, 1, 1)
                middle = (keys >= before - longest) & (keys < before)
                seen = seen & ~(middle & (keys >= before - short))
                distance = distance - torch.where(keys < before, short, 0)
            if near is not None:
                seen = seen & (distance < near) & (distance > -near)
            self._masks[key] = seen
        return self._masks[key]

    def _by_segment(self, values: list[int]) -> Tensor:
        counts = torch.tensor([len(segment) for segment in self.segments], device=self.device)
        return torch.repeat_interleave(torch.tensor(values, device=self.device), counts)


def step_of(rows: int) -> int:
    """What a number of rows is rounded up to, where every new number costs.

    On a CPU, oneDNN compiles and keeps a kernel for each shape of a 16-bit product it meets, about 0.7 ms and 0.7 MB
    each, and blocks of ever new sizes leave the heap full of holes. Rounded, a process meets some three dozen sizes.
    Few rows, the steps of answers, are rounded to a power of two: 32 rows cost twice what one row does.

    >>> [step_of(rows) for rows in (1, 3, 20, 300, 2000)]
    [1, 4, 32, 64, 64]
    """
    if rows <= 32:
        return 1 << max(0, rows - 1).bit_length()
    return 32 if rows <= 256 else 64


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


def ids_of(layout: Layout) -> Tensor:
    """Token ids end to end, shape (T + tail,)."""
    return _end_to_end([segment.ids for segment in layout.segments], layout)


def type_ids_of(layout: Layout) -> Tensor:
    """Token types end to end, zeros where a sequence has none, shape (T + tail,)."""
    return _end_to_end([segment.type_ids for segment in layout.segments], layout)


def positions_of(layout: Layout, first: int) -> Tensor:
    """Position ids, from `first` on in each sequence, shape (T + tail,)."""
    return torch.nn.functional.pad(layout.place + first, (0, layout.tail), value=first)


def _end_to_end(parts: list[NDArray[np.int32]], layout: Layout) -> Tensor:
    whole = np.concatenate([*parts, np.zeros(layout.tail, np.int32)])
    return torch.from_numpy(whole.astype(np.int64)).to(layout.device)
