"""Compiled parts of encoders for CPUs, by the package tamis-kernels where it is installed; torch's own elsewhere."""

from __future__ import annotations

import logging
from functools import lru_cache
from itertools import accumulate
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tamis.engine.packing import Layout
from tamis.engine.reads import read_by_segments

logger = logging.getLogger(__name__)

_DTYPES = (torch.bfloat16, torch.float32)


@lru_cache(maxsize=1)
def compiled() -> ModuleType | None:
    """tamis-kernels, if it is installed and has code for this processor."""
    try:
        import tamis_kernels
    except ImportError:
        return None
    problem = tamis_kernels.why_not()
    if problem is not None:
        logger.info("tamis-kernels is not used: %s", problem)
        return None
    return tamis_kernels


def needed() -> ModuleType:
    """tamis-kernels; who calls has asked whether it is there."""
    kernels = compiled()
    assert kernels is not None  # noqa: S101 - see above
    return kernels


def reads(query: Tensor, value: Tensor) -> bool:
    """Whether the compiled form takes these; (..., D) each."""
    fit = query.is_cpu and query.dtype in _DTYPES and query.shape[-1] == value.shape[-1]
    return fit and not query.requires_grad and compiled() is not None


def by_segments(
    layout: Layout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    causal: bool,
    window: int | None,
    layer: int,
) -> Tensor | None:
    """Attention of a whole packed pass at once: (1, H, T, D) to (1, T, H, D).

    Keys that segments read besides their own are gathered. None for the steps of an answer, where that would take
    longer than the attention itself, and where places cannot be told from the order of the keys.
    """
    if layout.at_home or ((causal or window) and not layout.whole):
        return None
    q, k, v = (_rows(x, layout.rows) for x in (query, key, value))
    known = layout.offsets
    if not layout.fresh:
        parts, counts = read_by_segments(layout, key, value, layer)
        k, v = (torch.cat([pair[which] for pair in parts], dim=1).transpose(0, 1) for which in (0, 1))
        known = torch.tensor([0, *accumulate(counts)], dtype=torch.int32)
    elif not layout.apart:
        rows, known, _ = layout.keys
        k, v = k[rows], v[rows]
    out = query.new_empty(1, query.shape[2], *q.shape[1:])
    out[0, layout.rows :] = 0
    attend(q, k, v, layout.offsets, known, scaling, causal=causal, window=window or None, out=out[0, : layout.rows])
    return out


def _rows(x: Tensor, count: int) -> Tensor:
    """(1, heads, T, D) to the first rows, (count, heads, D), numbers of a head side by side."""
    rows = x[0, :, :count].transpose(0, 1)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def attend(query: Tensor, key: Tensor, value: Tensor, asked: Tensor, known: Tensor, scaling: Any, **how: Any) -> Tensor:
    """`tamis_kernels.attention`: (T, H, D) and (K, G, D), with the sequences' offsets in each, to (T, H, D)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out: Tensor = needed().attention(query, key, value, asked, known, scale=scale, **how)
    return out


def norms(body: Any) -> bool:
    """Whether the compiled residual and norm take the place of a BERT body's own."""
    weights = next(body.parameters())
    if not weights.is_cpu or weights.dtype not in _DTYPES or compiled() is None:
        return False
    norms = [part.LayerNorm for layer in body.encoder.layer for part in (layer.attention.output, layer.output)]
    return all(type(norm) is nn.LayerNorm and norm.weight is not None and norm.bias is not None for norm in norms)


def add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """`tamis_kernels.add_norm`: the layer norm of a sum, (..., d)."""
    out: Tensor = needed().add_norm(x.contiguous(), residual.contiguous(), weight, bias, epsilon)
    return out


def tiles(body: Any) -> bool:
    """Whether the compiled MLP and projection, on tile registers, take the place of a BERT body's own."""
    kernels, half = compiled(), next(body.parameters()).dtype == torch.bfloat16
    if kernels is None or not half or kernels.level() != "amx" or not norms(body) or body.config.hidden_act != "gelu":
        return False
    parts = (
        part for layer in body.encoder.layer for part in (layer.intermediate, layer.attention.output, layer.output)
    )
    return all(_fits_tiles(part.dense) for part in parts)


def _fits_tiles(linear: Any) -> bool:
    return type(linear) is nn.Linear and linear.bias is not None and not any(n % 32 for n in linear.weight.shape)


def _packed(linear: nn.Linear) -> Any:
    return needed().Packed(linear.weight, linear.bias)


class FeedForward:
    """The MLP of a BERT layer with its residual and norm; what lies between its products never leaves the cache."""

    def __init__(self, layer: Any) -> None:
        norm = layer.output.LayerNorm
        self._parts = _packed(layer.intermediate.dense), _packed(layer.output.dense)
        self._norm = norm.weight, norm.bias, norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        """(..., d) to the same."""
        return _layer(x, *self._parts, residual=x, norm=self._norm)


class Projection:
    """What follows a BERT layer's attention: a linear layer, the residual, and the norm of their sum."""

    def __init__(self, part: Any) -> None:
        self._part = _packed(part.dense)
        self._norm = part.LayerNorm.weight, part.LayerNorm.bias, part.LayerNorm.eps

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """(..., d) twice to the same."""
        return _layer(x, self._part, residual=residual, norm=self._norm)


def _layer(x: Tensor, *parts: Any, residual: Tensor, norm: tuple[Any, ...]) -> Tensor:
    out: Tensor = needed().layer(x.contiguous(), *parts, residual=residual.contiguous(), norm=norm)
    return out
