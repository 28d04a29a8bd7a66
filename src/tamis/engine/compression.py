"""Passages that lose tokens on their way through the model: before some layers, neighbours become their mean.

The published model (CostWiseGemma in FlagEmbedding) keeps the query's tokens and those of the prompt behind the
passage, counts positions anew, and lets every token see what is before it in the shorter sequence. What is before the
passage stays as it was, so that sequences share it as in any causal model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tamis.engine.architectures import Architecture
from tamis.engine.backbone import TOLERANCE, Backbone, relative_difference
from tamis.engine.packing import Layout, packed, positions_of
from tamis.engine.segments import Segment
from tamis.engine.sequences import Tokens
from tamis.errors import LoadError

_PROMPT = 3  # tokens behind a probe's passage


@dataclass(frozen=True, slots=True)
class Compression:
    """How many of a passage's tokens become one, each time again, and before which layers (from 0)."""

    ratio: int
    layers: tuple[int, ...]


def group_sizes(length: int, passage: tuple[int, int], ratio: int) -> NDArray[np.int64]:
    """How many neighbours make one row: 1 outside the passage, `ratio` inside it, and what is left at its end.

    >>> group_sizes(9, (2, 7), 2).tolist()
    [1, 1, 2, 2, 1, 1, 1]
    """
    start, stop = (min(place, length) for place in passage)
    full, rest = divmod(stop - start, ratio)
    inside = [ratio] * full + [rest] * (rest > 0)
    return np.array([*[1] * start, *inside, *[1] * (length - stop)], np.int64)


def compressed(layout: Layout, ratio: int) -> tuple[Layout, Tensor]:
    """Where the sequences lie after their passages are pooled, and how many rows each new row is made of, (T',)."""
    segments: list[Segment] = []
    sizes: list[NDArray[np.int64]] = []
    for segment in layout.segments:
        start, stop = segment.tokens.passage or (segment.stop, segment.stop)
        if segment.start > start:
            raise ValueError("Sequences share a part of a passage, which cannot be compressed then.")
        groups = group_sizes(len(segment), (start - segment.start, stop - segment.start), ratio)
        tokens = replace(segment.tokens, passage=(start, start - (start - stop) // ratio))  # rounded up
        segments.append(replace(segment, tokens=tokens, stop=segment.start + len(groups)))
        sizes.append(groups)
    after = Layout(segments, layout.device, rounded=layout.device.type == "cpu", layer=layout.layer)
    return after, torch.from_numpy(np.concatenate(sizes)).to(layout.device)


def pooled(hidden: Tensor, sizes: Tensor) -> Tensor:
    """Means of consecutive rows, summed in float32.

    Args:
        hidden: (T, d).
        sizes: How many rows each group has, (T',), together T.

    Returns:
        (T', d), in the type of `hidden`.
    """
    return torch.segment_reduce(hidden.float(), "mean", lengths=sizes, axis=0).to(hidden.dtype)


class Compressing(Backbone):
    """A backbone of a decoder that compresses passages; the layouts it returns are those after the last compression.

    Sequences that do not say where their passage is go through as they are.

    Args:
        body: A transformers decoder of the Llama shape: `layers`, `norm`, `rotary_emb`.
        architecture: How to run it packed.
        pad_id: As in `Backbone`.
        compression: What is compressed where.
    """

    def __init__(self, body: Any, architecture: Architecture, pad_id: int, compression: Compression) -> None:
        super().__init__(body, architecture, pad_id, shares=True)
        self._compression = compression

    def __call__(self, batch: Sequence[Tokens]) -> tuple[Tensor, Layout]:
        """As `Backbone`; where it may not pack, it runs one sequence at a time."""
        if self.packed:
            return self._in_stages(self._layout(batch))
        passes = [self._in_stages(self._layout([tokens])) for tokens in batch]
        segments = [replace(layout.segments[0], sequence=i) for i, (_, layout) in enumerate(passes)]
        return torch.cat([hidden for hidden, _ in passes]), Layout(segments, self.device, layer=batch[0].layer)

    def _in_stages(self, layout: Layout) -> tuple[Tensor, Layout]:
        depth = layout.layer or len(self._layers)
        stops = [stop for stop in self._compression.layers if stop < depth]
        if not stops:
            with self._cut(layout.layer):
                return self.through(layout), layout
        with self._cut(stops[0]), self._unnormed():
            hidden = self.through(layout)
        for start, stop in pairwise([*stops, depth]):
            layout, sizes = compressed(layout, self._compression.ratio)
            hidden = self._through(start, stop, pooled(hidden, sizes), layout)
        return self.body.norm(hidden), layout

    def _through(self, start: int, stop: int, hidden: Tensor, layout: Layout) -> Tensor:
        """Hidden states (T, d) from one layer to another."""
        hidden = torch.nn.functional.pad(hidden, (0, 0, 0, layout.tail))[None]
        rotary = self.body.rotary_emb(hidden, positions_of(layout, self._first)[None])
        with packed(layout):
            for layer in self._layers[start:stop]:
                hidden = layer(hidden, position_embeddings=rotary, attention_mask=None)
        return hidden[0, : layout.rows]

    @contextmanager
    def _unnormed(self) -> Iterator[None]:
        """Within it, the body leaves out its last norm."""
        norm, self.body.norm = self.body.norm, torch.nn.Identity()
        try:
            yield
        finally:
            self.body.norm = norm

    def check(self, vocabulary: int, longest: int) -> None:
        """As `Backbone`, and that compressed sequences come out alike together and alone.

        Raises:
            LoadError: Run in stages, the body computes something else than by itself.
        """
        batch = self._probes(vocabulary, longest)
        one = [max(batch, key=len)]
        if not relative_difference(self(one)[0], self.one_by_row(one)) <= TOLERANCE[self.dtype]:
            raise LoadError(
                f"This release of transformers runs {type(self.body).__name__} in a way that Tamis cannot "
                "interrupt to compress passages. Load it without compress_ratio=, and please report it."
            )
        super().check(vocabulary, longest)
        marked = [replace(t, passage=(t.shared, len(t) - _PROMPT)) for t in batch if len(t) > t.shared + _PROMPT]
        if not self.packed or not marked:
            return
        together, layout = self(marked)
        difference = max(
            relative_difference(together[span], self([tokens])[0][span.start - span.stop :])
            for tokens, span in zip(marked, layout.spans, strict=True)
        )
        if not difference <= TOLERANCE[self.dtype]:  # NaN included
            self.packed = False
            warnings.warn(
                f"{type(self.body).__name__} compresses passages otherwise when sequences are packed (relative "
                f"difference {difference:.1e}); it runs one at a time, which is slower. Please report it.",
                stacklevel=2,
            )
