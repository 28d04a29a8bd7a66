"""Similarities of truncated vectors (MRL), and the funnel: growing dimensions over shrinking lists.

Matryoshka representation learning (Kusupati et al. 2022, arXiv 2205.13147) trains vectors whose leading dimensions
are vectors too. For a cosine they are re-normalised after truncation,
`cos_m(q, p) = q[:m] . p[:m] / (|q[:m]| |p[:m]|)`; a dot product is that of the leading dimensions as they are. Products
and squared norms add up over columns, so that a stage of the funnel reads only the columns that the one before it did
not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Best(NamedTuple):
    """What n passages came to: values, float64, (n,), and of each the number of its best row, (n,)."""

    values: NDArray[np.float64]
    rows: NDArray[np.intp]


def similarities(
    query: NDArray[np.float32],
    rows: NDArray[np.floating],
    firsts: Sequence[int],
    dims: Sequence[int],
    *,
    unit_query: bool = True,
    unit_rows: bool = True,
) -> Best:
    """The similarity of each of n passages with the query: the cosine, or the dot product if neither side is `unit`.

    A passage may have several rows, its windows: the best counts. After every stage but the last the better half goes
    on; passages that tie at the border go on together. One that stays behind keeps its value of the last stage it was
    in, lowered just below whoever went further if it was above, so that the order of the values is the order of the
    ranking.

    Args:
        query: Shape (d,).
        rows: Shape (r, d), r >= n, float32 or float16; the rows of one passage stand together.
        firsts: n row numbers: where each passage begins.
        dims: Growing numbers of leading dimensions, none above d. One is plain truncation.
        unit_query: Divide by the length of the truncated query.
        unit_rows: Divide by the lengths of the truncated rows.

    >>> query = np.array([1, 0, 1, 0], np.float32)
    >>> rows = np.array([[1, 0, 1, 0], [3, 0, 0, 0], [0, 1, 1, 0]], np.float32)
    >>> similarities(query, rows, [0, 1, 2], [4]).values.round(3).tolist()
    [1.0, 0.707, 0.5]
    >>> similarities(query, rows, [0, 1, 2], [2, 4]).values.round(3).tolist()
    [1.0, 0.707, 0.0]
    >>> best = similarities(query, rows, [0, 2], [4], unit_query=False, unit_rows=False)
    >>> best.values.tolist(), best.rows.tolist()
    ([3.0, 1.0], [1, 2])
    """
    owner = np.repeat(np.arange(len(firsts)), np.diff([*firsts, len(rows)]))
    alive = np.ones(len(firsts), dtype=np.bool_)
    values, winners = np.zeros(len(firsts)), np.array(firsts, np.intp)
    dots, squares, own = np.zeros(len(rows)), np.zeros(len(rows)), 0.0
    left_behind: list[NDArray[np.bool_]] = []
    for start, end in zip([0, *dims[:-1]], dims, strict=True):
        on = np.flatnonzero(alive[owner])
        new = rows[on, start:end] if len(on) < len(rows) else rows[:, start:end]  # the only columns this stage reads
        new = new.astype(np.float64)
        asked = query[start:end].astype(np.float64)
        dots[on] += new @ asked
        squares[on] += np.einsum("ij,ij->i", new, new)
        own += float(asked @ asked)
        norms = np.sqrt((squares[on] if unit_rows else 1.0) * (own if unit_query else 1.0))
        value = dots[on] / np.maximum(norms, np.finfo(np.float64).tiny)
        ids = np.flatnonzero(alive)
        best = np.maximum.reduceat(value, np.flatnonzero(np.diff(owner[on], prepend=-1)))
        values[ids] = best
        winning = on[value == values[owner[on]]][::-1]
        winners[owner[winning]] = winning  # of equal rows the first, which is written last
        if end != dims[-1]:
            border = np.sort(best)[len(best) // 2]
            stays = np.zeros_like(alive)
            stays[ids[best < border]] = True
            left_behind.append(stays)
            alive &= ~stays
    floor = float(values[alive].min())
    for stays in reversed(left_behind):
        values[stays], floor = _below(values[stays], floor)
    return Best(values, winners)


def _below(values: NDArray[np.float64], floor: float) -> tuple[NDArray[np.float64], float]:
    """Values in the same order, equal ones equal still, all of them below the floor; and the lowest of them.

    >>> lowered, lowest = _below(np.array([0.7, 0.2, 0.9, 0.7]), 0.5)
    >>> lowered.round(9).tolist(), bool(0.5 > lowered[2] > lowered[0] == lowered[3]), lowest
    ([0.5, 0.2, 0.5, 0.5], True, 0.2)
    """
    unique, which = np.unique(-values, return_inverse=True)
    falling = -unique
    for i, value in enumerate(falling):
        floor = math.nextafter(floor, -math.inf)
        if value <= floor:  # and so are all that follow
            floor = float(falling[-1])
            break
        falling[i] = floor
    return falling[which], floor
