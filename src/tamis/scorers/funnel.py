"""Cosines of truncated vectors (MRL), and the funnel: growing dimensions over shrinking lists.

Matryoshka representation learning (Kusupati et al. 2022, arXiv 2205.13147) trains vectors whose leading dimensions
are vectors too. They are re-normalised after truncation, which a cosine does by itself:
`cos_m(q, p) = q[:m] . p[:m] / (|q[:m]| |p[:m]|)`. Products and squared norms add up over columns, so that a stage of
the funnel reads only the columns that the one before it did not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def cosines(
    query: NDArray[np.float32], rows: NDArray[np.float32], firsts: Sequence[int], dims: Sequence[int]
) -> NDArray[np.float64]:
    """The cosine of each of n passages with the query.

    A passage may have several rows, its windows: the best counts. After every stage but the last the better half goes
    on; passages that tie at the border go on together. One that stays behind keeps its cosine of the last stage it
    was in, lowered just below whoever went further if it was above, so that the order of the values is the order of
    the ranking.

    Args:
        query: Shape (d,).
        rows: Shape (r, d), r >= n; the rows of one passage stand together.
        firsts: n row numbers: where each passage begins.
        dims: Growing numbers of leading dimensions, none above d. One is plain truncation.

    Returns:
        Shape (n,), float64.

    >>> query = np.array([1, 0, 1, 0], np.float32)
    >>> rows = np.array([[1, 0, 1, 0], [1, 0, 0, 0], [0, 1, 1, 0]], np.float32)
    >>> cosines(query, rows, [0, 1, 2], [4]).round(3).tolist()
    [1.0, 0.707, 0.5]
    >>> cosines(query, rows, [0, 1, 2], [2, 4]).round(3).tolist()
    [1.0, 0.707, 0.0]
    """
    owner = np.repeat(np.arange(len(firsts)), np.diff([*firsts, len(rows)]))
    alive = np.ones(len(firsts), dtype=np.bool_)
    values = np.zeros(len(firsts))
    dots, squares, own = np.zeros(len(rows)), np.zeros(len(rows)), 0.0
    left_behind: list[NDArray[np.bool_]] = []
    for start, end in zip([0, *dims[:-1]], dims, strict=True):
        on = alive[owner]
        new = rows[on, start:end].astype(np.float64)  # the only columns this stage reads
        asked = query[start:end].astype(np.float64)
        dots[on] += new @ asked
        squares[on] += np.einsum("ij,ij->i", new, new)
        own += float(asked @ asked)
        value = dots[on] / np.maximum(np.sqrt(squares[on] * own), np.finfo(np.float64).tiny)
        ids = np.flatnonzero(alive)
        best = np.maximum.reduceat(value, np.flatnonzero(np.diff(owner[on], prepend=-1)))
        values[ids] = best
        if end != dims[-1]:
            border = np.sort(best)[len(best) // 2]
            stays = np.zeros_like(alive)
            stays[ids[best < border]] = True
            left_behind.append(stays)
            alive &= ~stays
    floor = values[alive].min()
    for stays in reversed(left_behind):
        for value in -np.unique(-values[stays]):  # falling; equal ones stay equal
            floor = min(value, np.nextafter(floor, -np.inf))
            values[stays & (values == value)] = floor
    return values
