"""Keys and values that the segments of a run read: stored ones, those of rows before it, its own."""

from __future__ import annotations

import torch
from torch import Tensor

from tamis.engine.keyvalues import Pair
from tamis.engine.packing import Layout, Run


def read_by(run: Run, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, layer: int) -> Pair:
    """What a run reads: stored tokens, rows before it, its own; (n, G, all, D) each."""
    if run.home is not None:
        k, v = run.home.put(layer, key[0], value[0])
        return k[None], v[None]
    if run.each:
        return tuple(_filled(run, own, layer, which) for which, own in enumerate((key, value)))  # type: ignore[return-value]
    row, length = run.before
    if not length and not run.stored:
        return key, value

    def whole(own: Tensor, rows: Tensor, which: int) -> Tensor:
        parts = [one.layers[layer][which][None] for one in run.stored]
        parts += [rows[:, :, row : row + length]] if length else []
        parts = [part.expand(run.n, -1, -1, -1) for part in parts]
        return torch.cat([*parts, own], dim=2) if run.itself else torch.cat(parts, dim=2)

    return whole(key, keys, 0), whole(value, values, 1)


def read_by_segments(layout: Layout, key: Tensor, value: Tensor, layer: int) -> tuple[list[Pair], list[int]]:
    """What the segments of a layout read, part by part and segment by segment, (G, n, D) each; and how many each reads.

    Args:
        layout: The pass.
        key: Keys of its rows, (1, G, T, D).
        value: As `key`.
        layer: Which of the layers of stored tokens.
    """
    parts: list[Pair] = []
    counts = []
    for number, segment in enumerate(layout.segments):
        places = [segment.before] * (segment.before >= 0) + [number] * (segment.itself or segment.home is not None)
        rows = [slice(layout.edges[place], layout.edges[place + 1]) for place in places]
        mine = [(key[0, :, own], value[0, :, own]) for own in rows]
        if segment.home is not None:
            mine = [segment.home.put(layer, *mine[-1])]
        mine = [*(one.layers[layer] for one in segment.stored), *mine]
        parts += mine
        counts.append(sum(k.shape[1] for k, _ in mine))
    return parts, counts


def _filled(run: Run, own: Tensor, layer: int, which: int) -> Tensor:
    """What all read, what each reads, filled up with zeros to the longest, and their own: (n, G, all, D)."""
    longest, start = max(map(len, run.each)), sum(map(len, run.stored))
    out = own.new_zeros(run.n, own.shape[1], start + longest + run.length, own.shape[3])
    out[:, :, start + longest :] = own
    if run.stored:
        out[:, :, :start] = torch.cat([one.layers[layer][which] for one in run.stored], dim=1)
    for place, one in enumerate(run.each):
        out[place, :, start : start + len(one)] = one.layers[layer][which]
    return out
