"""What makes a model faster on a CPU. Each change is exact up to rounding; `Backbone.tune` checks it at every load.

Measured with MiniLM-L6 (see benchmarks/RESULTS.md): on one core the last layer for the rows that are read saves 1/7 of
the time, oneDNN's own weight layout 1/12, and GELU inside the product before it another few hundredths; on two, one
product for layers of one input another few.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tamis.engine import decoder_parts, kernels
from tamis.engine.packing import Layout, current
from tamis.engine.prepacked import Joined, PrepackedLinear, can_join, can_prepack

_TOGETHER = (  # linear layers that read the same input, as encoders and decoders call them
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
)


class Tuned:
    """The changes made to one body, which can be taken back.

    Args:
        body: A transformers encoder or decoder on a CPU.
        bert_layers: Whether its layers have the shape of BERT's.
        first_only: Whether only the first token of each sequence is read.
    """

    def __init__(self, body: Any, *, bert_layers: bool, first_only: bool) -> None:
        self._replaced: list[tuple[nn.Module, str, Any]] = []
        tiles = bert_layers and kernels.tiles(body)
        if tiles:
            for layer in body.encoder.layer:
                self._replace(layer, "feed_forward_chunk", kernels.FeedForward(layer))
                self._replace(layer.attention.output, "forward", kernels.Projection(layer.attention.output))
                for part in (layer.intermediate, layer.attention.output, layer.output):
                    self._replace(part, "dense", nn.Identity())  # its weight is held in tiles
        elif bert_layers and kernels.norms(body):
            for layer in body.encoder.layer:
                for part in (layer.attention.output, layer.output):
                    self._replace(part, "forward", partial(_added_and_normed, part))
        last = body.encoder.layer[-1] if bert_layers and first_only else None
        if last is not None:
            self._replace(last, "forward", partial(_first_rows, last, last.forward))
        if can_prepack(next(body.parameters()).dtype):
            for part in [] if bert_layers else list(decoder_parts.compiled_parts(body)):
                self._replace(part.module, "forward", part.forward)
                for name in part.children:
                    self._replace(part.module, name, nn.Identity())  # its weight is held otherwise
            if bert_layers and not tiles and body.config.hidden_act == "gelu":
                for layer in body.encoder.layer:
                    inner = layer.intermediate
                    self._replace(inner, "dense", PrepackedLinear(inner.dense, gelu=True))
                    self._replace(inner, "intermediate_act_fn", nn.Identity())
            for parent in list(body.modules()):
                for names in _TOGETHER:
                    apart = last is not None and parent is last.attention.self  # its query reads other rows
                    self._join(parent, names[1:] if apart else names)
                for name, child in list(parent.named_children()):
                    if type(child) is nn.Linear:
                        self._replace(parent, name, PrepackedLinear(child))

    def _join(self, parent: nn.Module, names: Sequence[str]) -> None:
        linears: list[Any] = [getattr(parent, name, None) for name in names]
        if can_join(linears):
            for name, part in zip(names, Joined(linears).parts, strict=True):
                self._replace(parent, name, part)

    def take_back(self) -> None:
        """Makes the body what it was."""
        for parent, name, before in reversed(self._replaced):
            setattr(parent, name, before)

    def _replace(self, parent: nn.Module, name: str, after: Any) -> None:
        self._replaced.append((parent, name, getattr(parent, name)))
        setattr(parent, name, after)


def _added_and_normed(part: Any, x: Tensor, residual: Tensor) -> Tensor:
    """The end of a half of a BERT layer: a projection, the residual, and the norm of their sum."""
    norm = part.LayerNorm
    return kernels.add_norm(part.dense(x), residual, norm.weight, norm.bias, norm.eps)


def _first_rows(layer: Any, original: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A BERT layer whose output is right for the first token of each sequence, and zero elsewhere.

    Keys and values are needed of all T tokens; the query, the output projection and the MLP of B.
    """
    layout = current()
    if layout is None:
        return original(hidden, *args, **kwargs)
    attention = layer.attention.self
    shape = (-1, attention.num_attention_heads, attention.attention_head_size)
    rows = hidden[0]  # (T, d)
    first = rows[layout.first]  # (B, d)
    query = attention.query(first).view(shape)  # (B, H, D)
    key, value = (project(rows).view(shape) for project in (attention.key, attention.value))  # (T, H, D)
    out = _first_attended(layout, query, key, value, attention.scaling)
    attended = layer.attention.output(out.flatten(1), first)  # (B, d)
    out = torch.zeros_like(rows)
    out[layout.first] = layer.feed_forward_chunk(attended)
    return out.unsqueeze(0)


def _first_attended(layout: Layout, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """One query of each sequence, (B, H, D), over its own keys, (T, H, D): (B, H, D)."""
    if kernels.reads(query, value):
        each = torch.arange(len(query) + 1, dtype=torch.int32)
        return kernels.attend(query, key[: layout.rows], value[: layout.rows], each, layout.offsets, scaling)
    outs, done = [], 0
    for row, count, length, *_ in layout.runs:

        def stacked(x: Tensor, rows: slice = slice(row, row + count * length), count: int = count) -> Tensor:
            return x[rows].unflatten(0, (count, -1)).transpose(1, 2)  # (count, H, length, D)

        asked = query[done : done + count].unsqueeze(2)  # (count, H, 1, D)
        outs.append(scaled_dot_product_attention(asked, stacked(key), stacked(value), scale=scaling))
        done += count
    return torch.cat(outs).squeeze(2)
