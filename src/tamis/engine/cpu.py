"""What makes an encoder faster on a CPU. Each change is exact up to rounding; `Backbone.tune` checks it at every load.

Measured with MiniLM-L6 on one core (see benchmarks/RESULTS.md): the last layer for the rows that are read saves
1/7 of the time, oneDNN's own weight layout 1/12, and GELU inside the product before it another few hundredths.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tamis.engine import kernels
from tamis.engine.packing import Layout, current

_ROWS = 2048  # the number of rows that the weight layout is chosen for; it was faster than the plain one at 32 too


class PrepackedLinear(nn.Module):
    """A linear layer whose weight lies as oneDNN wants it, with GELU (by erf) computed in the same pass if asked for.

    Args:
        linear: The layer, float32 or bfloat16, on a CPU.
        gelu: Whether its output goes through GELU.
    """

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self._bias = linear.bias
        self._after = ("gelu", "none") if gelu else ("none", "")

    def forward(self, x: Tensor) -> Tensor:
        """`x @ weight.T + bias`, (..., out)."""
        after, algorithm = self._after
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, after, [], algorithm)
        return out


def can_prepack(dtype: torch.dtype) -> bool:
    """Whether this torch has the operators, which are not part of its public interface, and oneDNN the dtype."""
    operators = ("_reorder_linear_weight", "_linear_pointwise")
    return (
        dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in operators)
    )


class Tuned:
    """The changes made to one body, which can be taken back.

    Args:
        body: A transformers encoder on a CPU.
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
        if bert_layers and first_only:
            last = body.encoder.layer[-1]
            self._replace(last, "forward", partial(_first_rows, last, last.forward))
        if can_prepack(next(body.parameters()).dtype):
            if bert_layers and not tiles and body.config.hidden_act == "gelu":
                for layer in body.encoder.layer:
                    inner = layer.intermediate
                    self._replace(inner, "dense", PrepackedLinear(inner.dense, gelu=True))
                    self._replace(inner, "intermediate_act_fn", nn.Identity())
            for parent in list(body.modules()):
                for name, child in list(parent.named_children()):
                    if type(child) is nn.Linear:
                        self._replace(parent, name, PrepackedLinear(child))

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
