"""Attention over sequences laid end to end, registered with transformers under `PACKED`.

One function serves every architecture that calls transformers' attention interface. Inside `packing.packed(layout)`
it keeps the sequences apart; outside it is transformers' own SDPA, so that the same model also takes ordinary padded
batches, with no switch to flip on a shared config.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tamis.engine.packing import Layout, current

PACKED = "tamis_packed"


class Unpackable(Exception):
    """This attention has a term that the packed form does not compute."""


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it.

    Args:
        module: The attention layer; says whether it is causal.
        query: (1, H, T, D).
        key: (1, G, T, D), where G divides H (grouped queries).
        value: (1, G, T, Dv).
        attention_mask: Only read outside a packed pass.
        scaling: Factor on the products; 1/sqrt(D) if None.
        is_causal: Overrides the module's own.
        sliding_window: Width of a local layer, exclusive; None for a global one.
        kwargs: Handed to SDPA outside a packed pass.

    Returns:
        (1, T, H, Dv), and None for the weights, which are never made.
    """
    layout = current()
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **kwargs
        )
    if any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise Unpackable(type(module).__name__)
    causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal
    if query.is_cuda and query.dtype != torch.float32 and _varlen_reaches(sliding_window):
        out = _varlen(layout, query, key, value, scaling, causal, sliding_window)
    else:
        out = _by_runs(layout, query, key, value, scaling, causal, sliding_window)
    return out, None


def _by_runs(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, causal: bool, window: int | None
) -> Tensor:
    """One SDPA call for each run of neighbours of equal length; views in, one copy out."""
    grouped = query.shape[1] != key.shape[1]
    outs = []
    for row, count, length in layout.runs:
        rows = slice(row, row + count * length)

        def stacked(x: Tensor, rows: slice = rows, count: int = count, length: int = length) -> Tensor:
            return x[0, :, rows].unflatten(1, (count, length)).transpose(0, 1)  # (count, heads, length, D)

        mask = layout.window(length, window, causal=causal) if window and length > window else None
        out = sdpa(
            stacked(query),
            stacked(key),
            stacked(value),
            attn_mask=mask,
            is_causal=causal and mask is None,
            scale=scaling,
            enable_gqa=grouped,
        )
        outs.append(out.transpose(1, 2).flatten(0, 1))  # (count * length, H, Dv)
    if layout.tail:
        outs.append(outs[-1].new_zeros(layout.tail, *outs[-1].shape[1:]))
    return torch.cat(outs).unsqueeze(0)


def _varlen(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, causal: bool, window: int | None
) -> Tensor:
    """Torch's variable-length attention: one kernel for the whole batch (CUDA, bfloat16 or float16)."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))  # (T, heads, D)
    options: dict[str, Any] = {}
    known = _varlen_options()
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in known:
            options["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    if "scale" in known:
        options["scale"] = scaling
    elif scaling is not None:
        q = q * (scaling * q.shape[-1] ** 0.5)  # the kernel divides by sqrt(D)
    if "window_size" in known:
        reach = window - 1 if window else -1  # the kernel's widths are inclusive, transformers' are not
        options["window_size"] = (reach, 0 if causal else reach)
    else:
        options["is_causal"] = causal
    longest = max(layout.lengths)
    out = varlen_attn(q, k, v, layout.offsets, layout.offsets, longest, longest, **options)
    assert isinstance(out, Tensor)  # noqa: S101 - a pair only with return_aux
    return out.unsqueeze(0)


@lru_cache(maxsize=1)
def _varlen_options() -> frozenset[str]:
    """The keyword arguments of this torch's `varlen_attn`, which grew from 2.10 to 2.13; none if it is missing."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def _varlen_reaches(window: int | None) -> bool:
    known = _varlen_options()
    return "window_size" in known or ("is_causal" in known and not window)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """No mask inside a packed pass; SDPA's outside, without which a padded batch would ignore its padding."""
    return sdpa_mask(*args, **kwargs) if current() is None else None


ALL_ATTENTION_FUNCTIONS.register(PACKED, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED, _mask)
