"""Parts of encoders, compiled for CPUs with bfloat16 instructions. Tamis uses them by itself if they are installed."""

from __future__ import annotations

import ctypes
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LEVELS", "Packed", "add_norm", "attention", "layer", "level", "why_not"]
__version__ = "0.1.0"

LEVELS = ("none", "avx512_bf16", "amx")
_LIBRARY = Path(__file__).parent / "_kernels.so"
_NO_MEMORY, _NO_FIT = 1, 2  # what the library returns


class _Rows(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("row", ctypes.c_int64), ("head", ctypes.c_int64)]


class _Job(ctypes.Structure):
    _fields_ = [
        *((name, _Rows) for name in ("query", "key", "value", "out")),
        ("asked", ctypes.c_void_p),
        ("known", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("queries", "keys", "segments", "heads", "groups", "dim")),
        *((name, ctypes.c_int32) for name in ("causal", "window", "level")),
        ("scale", ctypes.c_float),
    ]


class _Packed(ctypes.Structure):
    _fields_ = [
        ("tiles", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
    ]


class _LayerJob(ctypes.Structure):
    _fields_ = [
        ("x", ctypes.c_void_p),
        ("first", _Packed),
        ("second", _Packed),
        *((name, ctypes.c_void_p) for name in ("residual", "weight", "bias", "out")),
        ("rows", ctypes.c_int64),
        ("epsilon", ctypes.c_float),
    ]


class _NormJob(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "residual", "weight", "bias", "out")),
        ("rows", ctypes.c_int64),
        ("dim", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
    ]


class _Code(NamedTuple):
    """What was compiled: the library, OpenMP's way to run a function on a team, the best of `LEVELS`; or why not."""

    library: Any
    parallel: Any
    level: int
    problem: str | None = None


def level() -> str:
    """The best of `LEVELS` that was compiled, that this processor has, and that the operating system allows."""
    return LEVELS[_code().level]


def why_not() -> str | None:
    """Why nothing here can be used, in a sentence; None where it can."""
    return _code().problem


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
        query: (T, H, D), bfloat16 on a CPU, the last dimension contiguous; likewise the others.
        key: (K, G, D), where G divides H (grouped queries).
        value: (K, G, D).
        asked: int32, (B + 1,): where each sequence's queries begin, from 0; the last is T.
        known: int32, (B + 1,): where each one's keys begin; the last is K. A sequence's last query is at the place of
            its last key.
        scale: Factor on the products, not negative.
        causal: Whether a query sees no key behind its place.
        window: A query sees keys at a distance less than this; None for all.
        out: Where the result goes, (T, H, D) as `query`; a new tensor if None.
        level: One of `LEVELS` below the best, to compare them.

    Returns:
        `out`, bfloat16. Sums are float32; weights are rounded to bfloat16 before the second product.

    Raises:
        MemoryError: For the 6 D bytes that a key needs for each head at work.
        RuntimeError: There is no library for this machine; `why_not` says so.
        ValueError: A shape or type is another, or the level is none that is here.
    """
    import torch

    code = _needed()
    chosen = code.level if level is None else LEVELS.index(level)
    if not 0 < chosen <= code.level:
        raise ValueError(f"level is {level!r}; this machine has {LEVELS[1 : code.level + 1]}.")
    if not 0 <= scale < float("inf"):
        raise ValueError(f"scale is {scale}; it has to be a number from 0 on.")
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
        window or 0,
        chosen,
        scale,
    )
    outcome = code.library.tamis_attention(ctypes.byref(job), code.parallel, torch.get_num_threads())
    if outcome == _NO_MEMORY:
        raise MemoryError("There is no memory to lay out the keys and values of a sequence.")
    if outcome == _NO_FIT:
        raise ValueError(
            f"asked and known have to rise from 0 to {len(query)} and {len(key)}; where attention is causal or has a "
            "window, no sequence may have fewer keys than queries."
        )
    return out


class Packed:
    """A linear layer's weight as tile products take it, and its bias.

    Args:
        weight: (outputs, inputs), bfloat16 on a CPU; both multiples of 32.
        bias: (outputs,), bfloat16.

    Raises:
        ValueError: A shape or type is another.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        import torch

        shape = tuple(weight.shape)
        if weight.ndim != 2 or shape[0] % 32 or shape[1] % 32 or not all(shape) or bias.shape != shape[:1]:
            raise ValueError(f"weight is {shape} and bias {tuple(bias.shape)}; multiples of 32 are needed.")
        if not all(x.dtype == torch.bfloat16 and x.is_cpu for x in (weight, bias)):
            raise ValueError("weight and bias have to be bfloat16 on the CPU.")
        self.outputs, self.inputs = shape
        blocks = weight.detach().reshape(self.outputs // 16, 16, self.inputs // 32, 16, 2)
        self._tiles = blocks.permute(0, 2, 3, 1, 4).contiguous()
        self._bias = bias.detach().contiguous()

    def _as_c(self) -> _Packed:
        return _Packed(self._tiles.data_ptr(), self._bias.data_ptr(), self.inputs, self.outputs)


def layer(
    x: Tensor,
    first: Packed,
    second: Packed | None = None,
    *,
    residual: Tensor | None = None,
    norm: tuple[Tensor, Tensor, float] | None = None,
) -> Tensor:
    """`first(x)`, or `second(gelu(first(x)))`, and if asked for the layer norm of that and a residual; needs AMX.

    GELU is that of the error function, to within 3e-4; nothing is rounded to bfloat16 between a product and its norm.

    Args:
        x: (..., first.inputs), bfloat16 on a CPU, contiguous.
        first: The first linear layer.
        second: The second one of an MLP.
        residual: As the result; goes with `norm`.
        norm: Weight and bias of the layer norm, as long as the result is wide, bfloat16; and its epsilon.

    Returns:
        (..., outputs of the last layer), bfloat16.

    Raises:
        MemoryError: For what 128 rows need.
        RuntimeError: This machine has no AMX, or there is no library for it.
        ValueError: A shape or type is another.
    """
    import torch

    code = _needed()
    if LEVELS[code.level] != "amx":
        raise RuntimeError("This machine has no AMX.")
    width = (first if second is None else second).outputs
    whole = {"x": (x, (*x.shape[:-1], first.inputs))}
    if (residual is None) is not (norm is None):
        raise ValueError("residual and norm go together.")
    if residual is not None and norm is not None:
        whole["residual"] = (residual, (*x.shape[:-1], width))
        whole |= {"weight": (norm[0], (width,)), "bias": (norm[1], (width,))}
    for name, (one, shape) in whole.items():
        if one.dtype != torch.bfloat16 or not one.is_cpu or not one.is_contiguous() or one.shape != shape:
            raise ValueError(f"{name} is {one.dtype}, {tuple(one.shape)}; it has to be bfloat16, {shape}, contiguous.")
    if second is not None and second.inputs != first.outputs:
        raise ValueError(f"The first layer has {first.outputs} outputs, and the second {second.inputs} inputs.")
    out = torch.empty(*x.shape[:-1], width, dtype=torch.bfloat16)
    pointers = (None, None, None) if residual is None else tuple(whole[n][0].data_ptr() for n in list(whole)[1:])
    job = _LayerJob(
        x.data_ptr(),
        first._as_c(),
        _Packed() if second is None else second._as_c(),
        *pointers,
        out.data_ptr(),
        x.numel() // first.inputs,
        0.0 if norm is None else norm[2],
    )
    if code.library.tamis_layer(ctypes.byref(job), code.parallel, torch.get_num_threads()):
        raise MemoryError("There is no memory for the rows of a layer.")
    return out


def add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """`layer_norm(x + residual)`, the sum in float32.

    Args:
        x: (..., d), bfloat16 on a CPU, contiguous; likewise the others.
        residual: (..., d).
        weight: (d,).
        bias: (d,).
        epsilon: Added to the variance.

    Returns:
        (..., d), bfloat16.

    Raises:
        RuntimeError: There is no library for this machine; `why_not` says so.
        ValueError: A shape or type is another, or d is above 8,192.
    """
    import torch

    code = _needed()
    for name, one in (("x", x), ("residual", residual), ("weight", weight), ("bias", bias)):
        if one.dtype != torch.bfloat16 or not one.is_cpu or not one.is_contiguous():
            raise ValueError(f"{name} is {one.dtype} on {one.device}; it has to be bfloat16 on the CPU, contiguous.")
    dim = x.shape[-1]
    if x.shape != residual.shape or weight.shape != (dim,) or bias.shape != (dim,):
        raise ValueError(f"x {tuple(x.shape)}, residual {tuple(residual.shape)}, weight {tuple(weight.shape)}, bias.")
    out = torch.empty_like(x)
    pointers = (one.data_ptr() for one in (x, residual, weight, bias, out))
    job = _NormJob(*pointers, x.numel() // dim, dim, epsilon)
    if code.library.tamis_add_norm(ctypes.byref(job), code.parallel, torch.get_num_threads()):
        raise ValueError(f"x has {dim} numbers in a row, which is more than 8,192.")
    return out


def _check(query: Tensor, key: Tensor, value: Tensor, out: Tensor, asked: Tensor, known: Tensor) -> None:
    import torch

    for name, x in (("query", query), ("key", key), ("value", value), ("out", out)):
        if x.dtype != torch.bfloat16 or not x.is_cpu or x.ndim != 3 or x.stride(2) != 1:
            raise ValueError(f"{name} is {x.dtype}, {tuple(x.shape)} on {x.device}; it has to be bfloat16, (T, H, D).")
    if (
        out.shape != query.shape
        or key.shape != value.shape
        or key.shape[2] != query.shape[2]
        or query.shape[1] % key.shape[1]
    ):
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value, out))
        raise ValueError(f"The shapes of query, key, value and out do not fit: {shapes}.")
    for name, edges in (("asked", asked), ("known", known)):
        if edges.dtype != torch.int32 or edges.ndim != 1 or not edges.is_contiguous() or not edges.is_cpu:
            raise ValueError(f"{name} has to be a vector of int32 on the CPU.")
    if len(asked) != len(known) or len(asked) < 2:
        raise ValueError(f"asked has {len(asked)} offsets and known {len(known)}; both have one more than sequences.")


def _needed() -> _Code:
    code = _code()
    if code.problem is not None:
        raise RuntimeError(code.problem)
    return code


@lru_cache(maxsize=1)
def _code() -> _Code:
    nothing = partial(_Code, None, None, 0)
    if not _LIBRARY.is_file():
        return nothing("tamis-kernels was installed without its library: no C compiler was there, or it failed.")
    library = ctypes.CDLL(str(_LIBRARY))
    best = library.tamis_kernels_level()
    if not best:
        return nothing("tamis-kernels has no code for this machine: it has to be Linux on x86-64 with AVX-512 BF16.")
    parallel = _parallel()
    if parallel is None:
        return nothing("This torch does not run on OpenMP, whose threads tamis-kernels would share.")
    return _Code(library, parallel, best)


def _parallel() -> Any:
    """OpenMP's way to run a function on a team, from the library that torch runs on."""
    import torch

    for folder in (Path(torch.__file__).parent / "lib", Path(torch.__file__).parent):
        for file in sorted(folder.glob("libtorch_cpu.so*")):
            try:
                return ctypes.cast(ctypes.CDLL(str(file)).GOMP_parallel, ctypes.c_void_p)
            except (OSError, AttributeError):
                continue
    return None
