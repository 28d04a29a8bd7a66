"""Attention over sequences laid end to end."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from tamis_kernels.compiled import LEVELS, needed

if TYPE_CHECKING:
    from torch import Tensor

_NO_MEMORY, _NO_FIT = 1, 2  # what the library returns


class _Rows(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("row", ctypes.c_int64), ("head", ctypes.c_int64)]


class _Job(ctypes.Structure):
    _fields_ = [
        *((name, _Rows) for name in ("query", "key", "value", "out")),
        ("asked", ctypes.c_void_p),
        ("known", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("queries", "keys", "segments", "heads", "groups", "dim")),
        *((name, ctypes.c_int32) for name in ("causal", "window", "level", "full")),
        ("scale", ctypes.c_float),
    ]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    asked: Tensor,
    known: Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    out: Tensor | None = None,
    level: str | None = None,
) -> Tensor:
    """Softmax attention over sequences laid end to end, in the calling thread's number of torch threads.

    Args:
        query: (T, H, D), bfloat16 or float32 on a CPU, the last dimension contiguous; the others of the same dtype.
        key: (K, G, D), where G divides H (grouped queries).
        value: (K, G, D).
        asked: int32, (B + 1,): where each sequence's queries begin, from 0; the last is T.
        known: int32, (B + 1,): where each one's keys begin; the last is K. A sequence's last query is at the place of
            its last key.
        scale: Factor on the products, not negative.
        causal: Whether a query sees no key behind its place.
        window: A query sees keys at a distance less than this, 1 or more; None for all.
        out: Where the result goes, (T, H, D) as `query`; a new tensor if None.
        level: One of `LEVELS` below the best, to compare them; in float32 they are one.

    Returns:
        `out`. Sums are float32; of bfloat16 keys, weights are rounded to bfloat16 before the second product.

    Raises:
        MemoryError: For the 6 D bytes that a key needs for each head at work.
        RuntimeError: There is no library for this machine; `why_not` says so.
        ValueError: A shape or type is another, or the level is none that is here.
    """
    import torch

    code = needed()
    chosen = code.level if level is None else LEVELS.index(level)
    if not 0 < chosen <= code.level:
        raise ValueError(f"level is {level!r}; this machine has {LEVELS[1 : code.level + 1]}.")
    if not 0 <= scale < float("inf"):
        raise ValueError(f"scale is {scale}; it has to be a number from 0 on.")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; it has to be 1 or more, or None.")
    out = torch.empty_like(query, memory_format=torch.contiguous_format) if out is None else out
    _check(query, key, value, out, asked, known)
    job = _Job(
        *(_Rows(x.data_ptr(), x.stride(0), x.stride(1)) for x in (query, key, value, out)),
        asked.data_ptr(),
        known.data_ptr(),
        len(query),
        len(key),
        len(asked) - 1,
        query.shape[1],
        key.shape[1],
        query.shape[2],
        int(causal),
        0 if window is None or window >= len(key) else window,  # 0 is none; no two keys are further apart than that
        chosen,
        query.dtype == torch.float32,
        scale,
    )
    outcome = code.functions.tamis_attention(ctypes.byref(job), code.parallel, torch.get_num_threads())
    if outcome == _NO_MEMORY:
        raise MemoryError("There is no memory to lay out the keys and values of a sequence.")
    if outcome == _NO_FIT:
        raise ValueError(
            f"asked and known have to rise from 0 to {len(query)} and {len(key)}; where attention is causal or has a "
            "window, no sequence may have fewer keys than queries."
        )
    return out


def _check(query: Tensor, key: Tensor, value: Tensor, out: Tensor, asked: Tensor, known: Tensor) -> None:
    import torch

    if query.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"query is {query.dtype}; attention is compiled for bfloat16 and float32.")
    for name, x in (("query", query), ("key", key), ("value", value), ("out", out)):
        if x.dtype != query.dtype or not x.is_cpu or x.ndim != 3 or x.stride(2) != 1:
            shape = tuple(x.shape)
            raise ValueError(f"{name} is {x.dtype}, {shape} on {x.device}; it has to be {query.dtype}, (T, H, D).")
    if (
        out.shape != query.shape
        or key.shape != value.shape
        or key.shape[2] != query.shape[2]
        or not all(query.shape)
        or not key.shape[1]
        or query.shape[1] % key.shape[1]
    ):
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value, out))
        raise ValueError(f"The shapes of query, key, value and out do not fit: {shapes}.")
    for name, edges in (("asked", asked), ("known", known)):
        if edges.dtype != torch.int32 or edges.ndim != 1 or not edges.is_contiguous() or not edges.is_cpu:
            raise ValueError(f"{name} has to be a vector of int32 on the CPU.")
    if len(asked) != len(known) or len(asked) < 2:
        raise ValueError(f"asked has {len(asked)} offsets and known {len(known)}; both have one more than sequences.")
