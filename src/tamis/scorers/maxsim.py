"""MaxSim, the score of late interaction.

`MaxSim(q, p) = sum_i max_j q_i . p_j` over the token vectors of a query and a passage (Khattab and Zaharia 2020,
ColBERT, arXiv 2004.12832). Vectors that do not count are left out beforehand, which is what masking with minus
infinity comes to; a masked product of zero would beat a negative similarity.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def maxsim(query: NDArray[np.float32], rows: NDArray[np.float32], firsts: NDArray[np.int32]) -> NDArray[np.float64]:
    """MaxSim of a query with each of w windows of a passage, or with w passages.

    Args:
        query: Shape (n, d), n > 0.
        rows: Shape (r, d); the rows of one window stand together, and each has at least one.
        firsts: Where each window begins, (w,), growing from 0.

    Returns:
        Shape (w,): products in float32, their sum in float64. Memory: r x n products.

    >>> query = np.array([[1, 0], [0, 1]], np.float32)
    >>> rows = np.array([[1, 0], [0.6, 0.8], [-1, 0], [0, -1]], np.float32)
    >>> maxsim(query, rows, np.array([0, 2, 3])).round(3).tolist()
    [1.8, -1.0, -1.0]
    """
    products = rows @ query.T  # (r, n)
    best: NDArray[np.float32] = np.maximum.reduceat(products, firsts, axis=0)  # (w, n)
    total: NDArray[np.float64] = best.sum(axis=1, dtype=np.float64)
    return total
