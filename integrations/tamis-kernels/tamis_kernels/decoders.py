"""What decoders do between their products: RMS norms, the gates of MLPs, rotary positions."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from tamis_kernels.compiled import needed

if TYPE_CHECKING:
    from torch import Tensor


class _NormJob(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "weight", "out")),
        ("rows", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("dim", "full")),
        ("epsilon", ctypes.c_float),
    ]


class _GateJob(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "out")),
        ("rows", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("dim", "full", "gelu")),
    ]


class _RotaryJob(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "cosine", "sine", "query", "key")),
        *((name, ctypes.c_int64) for name in ("rows", "row")),
        *((name, ctypes.c_int32) for name in ("queries", "keys", "dim", "full")),
        ("epsilon", ctypes.c_float),
    ]


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`weight * x / sqrt(mean(x^2) + epsilon)`, rounded once (arXiv 1910.07467).

    Args:
        x: (..., d), bfloat16 or float32 on a CPU, contiguous.
        weight: (d,), float32.
        epsilon: Added to the mean.

    Returns:
        (..., d), as `x`.

    Raises:
        RuntimeError: There is no library for this machine; `why_not` says so.
        ValueError: A shape or type is another.
    """
    import torch

    code = needed()
    _check("x", x, x.dtype)
    dim = x.shape[-1]
    _check("weight", weight, torch.float32, (dim,))
    out = torch.empty_like(x)
    pointers = (one.data_ptr() for one in (x, weight, out))
    job = _NormJob(*pointers, x.numel() // dim, dim, x.dtype == torch.float32, epsilon)
    code.functions.tamis_rms_norm(ctypes.byref(job), code.parallel, torch.get_num_threads())
    return out


def gate(x: Tensor, *, gelu: bool = False) -> Tensor:
    """`f(a) * b` of rows (a, b), where f is SiLU, or GELU by tanh; rounded once (arXiv 2002.05202).

    Args:
        x: (..., 2 d), bfloat16 or float32 on a CPU, contiguous.
        gelu: Whether f is GELU.

    Returns:
        (..., d), as `x`.

    Raises:
        RuntimeError: There is no library for this machine; `why_not` says so.
        ValueError: A shape or type is another.
    """
    import torch

    code = needed()
    _check("x", x, x.dtype)
    dim, odd = divmod(x.shape[-1], 2)
    if odd:
        raise ValueError(f"x is {tuple(x.shape)}; a row has as many numbers of either kind.")
    out = x.new_empty(*x.shape[:-1], dim)
    job = _GateJob(x.data_ptr(), out.data_ptr(), x.numel() // (2 * dim), dim, x.dtype == torch.float32, gelu)
    code.functions.tamis_gate(ctypes.byref(job), code.parallel, torch.get_num_threads())
    return out


def rotary(
    x: Tensor,
    cosine: Tensor,
    sine: Tensor,
    queries: int,
    keys: int,
    norms: tuple[Tensor, Tensor, float] | None = None,
) -> None:
    """Turns the queries and keys of each row to its place, where they lie (arXiv 2104.09864).

    Of a head's numbers the first half a and the second half b become `a cos - b sin` and `b cos + a sin`.

    Args:
        x: (T, n), bfloat16 or float32 on a CPU, contiguous: the heads of queries, then those of keys, side by side, and
            whatever else, which stays.
        cosine: (T, D), as `x`, contiguous; D is even.
        sine: (T, D).
        queries: Heads of queries.
        keys: Heads of keys.
        norms: Weights of an RMS norm of each query and of each key before that, (D,) float32 each, and its epsilon.

    Raises:
        RuntimeError: There is no library for this machine; `why_not` says so.
        ValueError: A shape or type is another.
    """
    import torch

    code = needed()
    _check("x", x, x.dtype)
    rows, dim = len(x), cosine.shape[-1]
    if x.ndim != 2 or queries < 0 or keys < 0 or dim % 2 or (queries + keys) * dim > x.shape[1]:
        raise ValueError(f"x is {tuple(x.shape)}, with no room for {queries} and {keys} heads of {dim} numbers.")
    for name, one in (("cosine", cosine), ("sine", sine)):
        _check(name, one, x.dtype, (rows, dim))
    for one in () if norms is None else norms[:2]:
        _check("a norm", one, torch.float32, (dim,))
    weights = (None, None, 0.0) if norms is None else (norms[0].data_ptr(), norms[1].data_ptr(), norms[2])
    job = _RotaryJob(
        *(one.data_ptr() for one in (x, cosine, sine)),
        *weights[:2],
        rows,
        x.shape[1],
        queries,
        keys,
        dim,
        x.dtype == torch.float32,
        weights[2],
    )
    code.functions.tamis_rotary(ctypes.byref(job), code.parallel, torch.get_num_threads())


def _check(name: str, x: Tensor, dtype: object, shape: tuple[int, ...] | None = None) -> None:
    import torch

    if x.dtype not in (torch.bfloat16, torch.float32) or x.dtype != dtype:
        raise ValueError(f"{name} is {x.dtype}; it is {dtype} that is wanted, of bfloat16 and float32.")
    if not x.is_cpu or not x.is_contiguous() or not x.shape[-1] or (shape is not None and tuple(x.shape) != shape):
        wanted = "" if shape is None else f", {shape}"
        raise ValueError(f"{name} is {tuple(x.shape)} on {x.device}; it has to be on the CPU, contiguous{wanted}.")
