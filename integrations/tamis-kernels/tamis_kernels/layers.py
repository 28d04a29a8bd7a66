"""Linear layers with what follows them in a layer: GELU, the residual, the norm."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from tamis_kernels.compiled import LEVELS, needed

if TYPE_CHECKING:
    from torch import Tensor


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
        ("full", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
    ]


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

    code = needed()
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
    if code.functions.tamis_layer(ctypes.byref(job), code.parallel, torch.get_num_threads()):
        raise MemoryError("There is no memory for the rows of a layer.")
    return out


def add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """`layer_norm(x + residual)`, the sum in float32.

    Args:
        x: (..., d), bfloat16 or float32 on a CPU, contiguous; the others of the same dtype.
        residual: (..., d).
        weight: (d,).
        bias: (d,).
        epsilon: Added to the variance.

    Returns:
        (..., d).

    Raises:
        RuntimeError: There is no library for this machine; `why_not` says so.
        ValueError: A shape or type is another, or d is above 8,192.
    """
    import torch

    code = needed()
    if x.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"x is {x.dtype}; the norm is compiled for bfloat16 and float32.")
    for name, one in (("x", x), ("residual", residual), ("weight", weight), ("bias", bias)):
        if one.dtype != x.dtype or not one.is_cpu or not one.is_contiguous():
            raise ValueError(f"{name} is {one.dtype} on {one.device}; it has to be {x.dtype} on the CPU, contiguous.")
    dim = x.shape[-1]
    if x.shape != residual.shape or weight.shape != (dim,) or bias.shape != (dim,):
        raise ValueError(f"x {tuple(x.shape)}, residual {tuple(residual.shape)}, weight {tuple(weight.shape)}, bias.")
    out = torch.empty_like(x)
    pointers = (one.data_ptr() for one in (x, residual, weight, bias, out))
    job = _NormJob(*pointers, x.numel() // dim, dim, x.dtype == torch.float32, epsilon)
    if code.functions.tamis_add_norm(ctypes.byref(job), code.parallel, torch.get_num_threads()):
        raise ValueError(f"x has {dim} numbers in a row, which is more than 8,192.")
    return out
