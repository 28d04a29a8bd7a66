"""Attention over sequences laid end to end, which transformers knows by the name that `registered` gives.

One function serves every architecture that calls transformers' attention interface. Inside `packing.packed(layout)`
it keeps the sequences apart; outside it is transformers' own SDPA, so that the same model also takes ordinary padded
batches, with no switch to flip on a shared config.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tamis.engine import kernels
from tamis.engine.packing import Layout, Run, current
from tamis.engine.reads import read_by, read_by_segments

BLOCK = 512  # queries whose products stand in memory at once, where SDPA does not compute them


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
    softcap: float | None = None,
    s_aux: Tensor | None = None,
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
        softcap: Bound c of the scaled products, `c tanh(s / c)` (Gemma 2).
        s_aux: (H,), a logit for each head that takes part in the softmax and has no value (gpt-oss).
        kwargs: Handed to SDPA outside a packed pass.

    Returns:
        (1, T, H, Dv), and None for the weights, which are never made.
    """
    layout = current()
    causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal
    if layout is None:
        if softcap is None and s_aux is None:
            from transformers.integrations.sdpa_attention import sdpa_attention_forward

            return sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **kwargs
            )
        mask = attention_mask
        if mask is None and causal and query.shape[2] > 1:
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        return by_hand(query, key, value, mask, scaling, softcap, s_aux).transpose(1, 2), None
    if kwargs.get("position_bias") is not None:
        raise Unpackable(type(module).__name__)
    special = softcap is not None or s_aux is not None
    layer = getattr(module, "layer_idx", 0)
    _keep(layout, key, value)
    kernel = query.is_cuda and query.dtype != torch.float32 and not special and _varlen_reaches(sliding_window)
    if kernel and (not sliding_window or layout.whole):
        return _varlen(layout, query, key, value, scaling, causal, sliding_window, layer), None
    if not special and kernels.reads(query, value):
        out = kernels.by_segments(layout, query, key, value, scaling, causal, sliding_window, layer)
        if out is not None:
            return out, None
    attend = partial(by_hand, softcap=softcap, sinks=s_aux) if special else None
    return _by_runs(layout, query, key, value, scaling, causal, sliding_window, layer, attend), None


def _keep(layout: Layout, key: Tensor, value: Tensor) -> None:
    """Puts this layer's keys and values away where a segment asks for it."""
    for number, layers in layout.kept.items():
        rows = slice(layout.edges[number], layout.edges[number + 1])
        layers.append((key[0, :, rows].clone(), value[0, :, rows].clone()))


def _by_runs(
    layout: Layout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    causal: bool,
    window: int | None,
    layer: int,
    attend: Callable[..., Tensor] | None = None,
) -> Tensor:
    """One SDPA call for each run of neighbours of equal length; views in, one copy out."""
    grouped = query.shape[1] != key.shape[1]
    outs = []
    for run in layout.runs:

        def own(x: Tensor, run: Run = run) -> Tensor:
            rows = x[0, :, run.row : run.row + run.n * run.length]
            return rows.unflatten(1, (run.n, run.length)).transpose(0, 1)  # (n, heads, length, D)

        keys, values = read_by(run, own(key), own(value), key, value, layer)
        mask = layout.mask(run, window, causal=causal)
        if attend is not None:
            out = attend(own(query), keys, values, mask, scaling)
        elif run.each or (grouped and run.length == 1):  # of one query SDPA would read the keys once a head
            out = _folded(own(query), keys, values, mask, scaling)
        else:
            flag = causal and not run.known and not (window and run.length > window)  # the kernel's own mask
            out = sdpa(
                own(query),
                keys,
                values,
                attn_mask=None if flag else mask,
                is_causal=flag,
                scale=scaling,
                enable_gqa=grouped,
            )
        outs.append(out.transpose(1, 2).flatten(0, 1))  # (n * length, H, Dv)
    if layout.tail:
        outs.append(outs[-1].new_zeros(layout.tail, *outs[-1].shape[1:]))
    return torch.cat(outs).unsqueeze(0)


def _folded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """SDPA; query heads that share keys count as more queries, which reads keys once.

    Args:
        query: (n, H, m, D).
        key: (n, G, keys, D).
        value: (n, G, keys, Dv).
        mask: (n, 1, m, keys), or (m, keys) for all.
        scaling: Factor on the products.

    Returns:
        (n, H, m, Dv).
    """
    n, heads, m, _ = query.shape
    groups = key.shape[1]
    if mask is not None:
        mask = mask.repeat(*(1,) * (mask.ndim - 2), heads // groups, 1)
    query = query.reshape(n, groups, heads // groups * m, -1)
    return sdpa(query, key, value, attn_mask=mask, scale=scaling).reshape(n, heads, m, -1)


def by_hand(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention with a bound on its products, or with sinks, which SDPA does not have; softmax in float32.

    Args:
        query: (B, H, n, D).
        key: (B, G, m, D).
        value: (B, G, m, Dv).
        mask: Bool, True where a query sees a key, or additive; broadcast to (B, H, n, m). None sees all.
        scaling: Factor on the products; 1/sqrt(D) if None.
        softcap: See `attention`.
        sinks: See `attention`.

    Returns:
        (B, H, n, Dv). Memory: a block of `BLOCK` queries at a time.
    """
    copies = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(copies, dim=1) if copies > 1 else x for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    outs = []
    for start in range(0, query.shape[2], BLOCK):
        rows = slice(start, start + BLOCK)
        products = (query[:, :, rows] @ key.transpose(-1, -2)) * scale  # (B, H, BLOCK, m)
        if softcap is not None:
            products = torch.tanh(products / softcap) * softcap
        if mask is not None:
            part = mask[..., rows, :]
            products = products.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else products + part
        if sinks is not None:
            sink = sinks.to(products.dtype)[None, :, None, None].expand(*products.shape[:-1], 1)
            products = torch.cat([products, sink], dim=-1)
        weights = torch.softmax(products, dim=-1, dtype=torch.float32).to(value.dtype)
        outs.append(weights[..., : key.shape[2]] @ value)
    return torch.cat(outs, dim=2)


def _varlen(
    layout: Layout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    causal: bool,
    window: int | None,
    layer: int,
) -> Tensor:
    """Torch's variable-length attention: one kernel for the whole batch (CUDA, bfloat16 or float16).

    Where segments read others, keys and values are gathered; the kernel's causal mask is aligned at the last key.
    """
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))  # (T, heads, D)
    key_offsets, longest_key = layout.offsets, max(map(len, layout.segments))
    if not layout.fresh:
        parts, counts = read_by_segments(layout, key, value, layer)
        k, v = (torch.cat([pair[which].transpose(0, 1) for pair in parts]) for which in (0, 1))
        key_offsets = torch.tensor([0, *accumulate(counts)], dtype=torch.int32, device=k.device)
        longest_key = max(counts)
    elif not layout.plain:
        rows, key_offsets, longest_key = layout.keys
        k, v = k[rows], v[rows]
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
    longest = max(map(len, layout.segments))
    out = varlen_attn(q, k, v, layout.offsets, key_offsets, longest, longest_key, **options)
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


@lru_cache(maxsize=1)
def registered() -> str:
    """The name to load a transformers model with, as its `attn_implementation`.

    Importing transformers' modelling code takes seconds, and models that do not need it are spared them.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def mask(*args: Any, **kwargs: Any) -> Tensor | None:
        """No mask inside a packed pass; SDPA's outside, without which a padded batch would ignore its padding."""
        return sdpa_mask(*args, **kwargs) if current() is None else None

    name = "tamis_packed"
    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask)
    return name
