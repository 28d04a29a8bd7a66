"""MPNet and DeBERTa-v2 do not call transformers' attention interface; these patches let them run packed.

Outside a packed pass every patched method does what it did before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tamis.engine.packing import Layout, current


def patch_mpnet(body: Any) -> None:
    """Attention by runs of equal length, with one relative position bias of the longest sequence's size."""
    encoder = body.encoder
    encoder.compute_position_bias = partial(_mpnet_bias, encoder.compute_position_bias)
    for layer in encoder.layer:
        attention = layer.attention.attn
        attention.forward = partial(_mpnet_attention, attention, attention.forward)


def _mpnet_bias(original: Callable[..., Tensor], hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout = current()
    if layout is None:
        return original(hidden, *args, **kwargs)
    return original(hidden[:, : max(layout.lengths)], *args, **kwargs)  # (1, H, longest, longest), not (1, H, T, T)


def _mpnet_attention(
    module: Any, original: Callable[..., Any], hidden: Tensor, mask: Any = None, bias: Any = None, **kwargs: Any
) -> Any:
    layout = current()
    if layout is None:
        return original(hidden, mask, bias, **kwargs)
    query, key, value = (
        project(hidden).unflatten(-1, (module.num_attention_heads, -1)) for project in (module.q, module.k, module.v)
    )

    def attend(rows: slice, count: int, length: int) -> Tensor:
        q, k, v = (x[0, rows].unflatten(0, (count, length)).transpose(1, 2) for x in (query, key, value))
        out = scaled_dot_product_attention(q, k, v, attn_mask=bias[:, :, :length, :length])
        return out.transpose(1, 2).flatten(0, 1).flatten(1)  # (count * length, d)

    return (module.o(by_runs(layout, attend)),)


def patch_deberta_v2(body: Any) -> None:
    """Each run of equal length goes through the original attention as a small batch with no padding in it."""
    encoder = body.encoder
    encoder.get_attention_mask = partial(_unless_packed, encoder.get_attention_mask, lambda mask: mask)
    encoder.get_rel_pos = partial(_unless_packed, encoder.get_rel_pos, lambda *_: None)  # T x T otherwise
    for layer in encoder.layer:
        attention = layer.attention.self
        attention.forward = partial(_deberta_attention, attention.forward)
    if encoder.conv is not None:
        encoder.conv.forward = partial(_deberta_convolution, encoder.conv.forward)


def _unless_packed(original: Callable[..., Any], instead: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return original(*args, **kwargs) if current() is None else instead(*args)


def _deberta_attention(
    original: Callable[..., Any],
    hidden: Tensor,
    mask: Tensor,
    output_attentions: bool = False,
    query_states: Any = None,
    relative_pos: Any = None,
    rel_embeddings: Any = None,
) -> Any:
    layout = current()
    if layout is None:
        return original(hidden, mask, output_attentions, query_states, relative_pos, rel_embeddings)

    def attend(rows: slice, count: int, length: int) -> Tensor:
        batch = hidden[0, rows].unflatten(0, (count, length))
        ones = torch.ones(1, 1, 1, length, dtype=torch.bool, device=hidden.device)
        out: Tensor = original(batch, ones, rel_embeddings=rel_embeddings)[0]
        return out.flatten(0, 1)

    return by_runs(layout, attend), None


def _deberta_convolution(original: Callable[..., Tensor], hidden: Tensor, residual: Tensor, mask: Tensor) -> Tensor:
    layout = current()
    if layout is None:
        return original(hidden, residual, mask)

    def convolve(rows: slice, count: int, length: int) -> Tensor:
        batches = (x[0, rows].unflatten(0, (count, length)) for x in (hidden, residual))
        return original(*batches, torch.ones(count, length, dtype=mask.dtype, device=mask.device)).flatten(0, 1)

    return by_runs(layout, convolve)


def by_runs(layout: Layout, compute: Callable[[slice, int, int], Tensor]) -> Tensor:
    """(1, T, d) from the rows of each run of neighbours of equal length."""
    outs = [compute(slice(row, row + n * size), n, size) for row, n, size, *_ in layout.runs]
    if layout.tail:
        outs.append(outs[-1].new_zeros(layout.tail, *outs[-1].shape[1:]))
    return torch.cat(outs).unsqueeze(0)
