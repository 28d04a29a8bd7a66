"""Keys and values that the segments of a run read: stored ones, those of rows before it, its own."""

from __future__ import annotations

import torch
from torch import Tensor

from tamis.engine.keyvalues import Pair
from tamis.engine.packing import Run


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


def each_read(run: Run, keys: Tensor, values: Tensor, layer: int) -> list[Pair]:
    """What each segment of a run reads, (G, all, D)."""
    if run.each:
        parts = [
            run._replace(row=run.row + i * run.length, n=1, stored=(*run.stored, one), each=())
            for i, one in enumerate(run.each)
        ]
        return [pair for part in parts for pair in each_read(part, keys, values, layer)]
    rows = slice(run.row, run.row + run.n * run.length)
    own = [x[0, :, rows].unflatten(1, (run.n, run.length)).transpose(0, 1) for x in (keys, values)]
    k, v = read_by(run, own[0], own[1], keys, values, layer)
    return list(zip(k, v, strict=True))


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
