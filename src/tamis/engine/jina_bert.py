"""JinaBERT (Günther et al. 2023, arXiv 2310.19923), which transformers does not have: packed, and in padded rows.

A BERT without position embeddings. Attention has a symmetric ALiBi bias instead, the same in every layer: head h adds
`-s_h |i - j|` to the scaled product of query i and key j. The MLP is gated, `W_o (act(x A) * x B)`, and has its own
residual and norm. jina-reranker-v1 and jina-embeddings-v2 in English are of this kind.

The bias of a block of queries is a view of one table of `BLOCK` rows, made once a pass: (H, BLOCK, 2 n) floats for a
longest sequence of n tokens, 100 MB at n = 8192 and 12 heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import BertConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from tamis.engine.packing import current

BLOCK = 128  # queries
GATES: dict[str, Callable[[Tensor], Tensor]] = {"geglu": gelu, "reglu": relu}  # by `feed_forward_type`


class JinaBertConfig(BertConfig):  # type: ignore[misc]  # transformers is untyped here
    """BERT's, with a `feed_forward_type`."""

    model_type = "jina_bert"
    feed_forward_type: str = "geglu"


def slopes(heads: int) -> list[float]:
    """ALiBi's slopes (Press et al. 2021, arXiv 2108.12409): powers of `2 ** (-8 / n)`.

    Where the number of heads is no power of two, every other slope of the next power's follows.

    >>> slopes(4)
    [0.25, 0.0625, 0.015625, 0.00390625]
    >>> [round(slope, 3) for slope in slopes(6)]
    [0.25, 0.062, 0.016, 0.004, 0.5, 0.125]
    """
    whole = 1 << (heads.bit_length() - 1)
    first = [2.0 ** (-8 * (i + 1) / whole) for i in range(whole)]
    return first if whole == heads else first + slopes(2 * whole)[0::2][: heads - whole]


class Bias:
    """The ALiBi bias for sequences of up to `longest` tokens."""

    def __init__(self, heads: int, longest: int, like: Tensor) -> None:
        self._longest = longest
        places = torch.arange(2 * longest, device=like.device) - longest
        rows = torch.arange(min(BLOCK, longest), device=like.device)
        distance = (rows[:, None] - places).abs().float()  # (BLOCK, 2 longest)
        slope = torch.tensor(slopes(heads), device=like.device)
        self._table = (-slope[:, None, None] * distance).to(like.dtype)

    def block(self, start: int, stop: int, length: int) -> Tensor:
        """For queries `start` to `stop` of a sequence and all its keys: (H, stop - start, length)."""
        left = self._longest - start
        view = self._table[:, : stop - start, left : left + length]
        return view.contiguous() if view.is_cuda else view  # CUDA's kernels want rows that are aligned


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Bias, mask: Tensor | None = None) -> Tensor:
    """(B, H, n, D) each; `mask` (B, 1, 1, n) is added to the products."""
    length = query.shape[2]
    outs = []
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        added = bias.block(start, stop, length)[None]
        outs.append(sdpa(query[:, :, start:stop], key, value, added if mask is None else added + mask))
    return torch.cat(outs, dim=2)


class JinaBertLayer(nn.Module):
    """Attention and gated MLP, each with residual and norm behind it."""

    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__()
        size, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        projections = nn.ModuleDict({name: nn.Linear(size, size) for name in ("query", "key", "value")})
        output = nn.ModuleDict({"dense": nn.Linear(size, size), "LayerNorm": nn.LayerNorm(size, eps)})
        self.attention: Any = nn.ModuleDict({"self": projections, "output": output})
        self.mlp: Any = nn.ModuleDict(
            {
                "gated_layers": nn.Linear(size, 2 * inner, bias=False),
                "wo": nn.Linear(inner, size),
                "layernorm": nn.LayerNorm(size, eps),
            }
        )
        self._heads = config.num_attention_heads
        self._gate = GATES[config.feed_forward_type]

    def forward(self, x: Tensor, bias: Bias, mask: Tensor | None) -> Tensor:
        """(B, n, d) to the same; in a packed pass (1, T, d)."""
        output = self.attention["output"]
        x = output["LayerNorm"](x + output["dense"](self._attended(x, bias, mask)))
        gated, plain = self.mlp["gated_layers"](x).chunk(2, dim=-1)
        return self.mlp["layernorm"](x + self.mlp["wo"](self._gate(gated) * plain))

    def _attended(self, x: Tensor, bias: Bias, mask: Tensor | None) -> Tensor:
        projections = self.attention["self"]
        parts = [projections[name](x).unflatten(-1, (self._heads, -1)) for name in ("query", "key", "value")]
        layout = current()
        if layout is None:
            query, key, value = (part.transpose(1, 2) for part in parts)
            return attend(query, key, value, bias, mask).transpose(1, 2).flatten(2)
        outs = []
        for row, count, length, *_ in layout.runs:
            rows = slice(row, row + count * length)
            query, key, value = (part[0, rows].unflatten(0, (count, length)).transpose(1, 2) for part in parts)
            outs.append(attend(query, key, value, bias).transpose(1, 2).flatten(0, 1).flatten(1))
        return torch.cat([*outs, x.new_zeros(layout.tail, x.shape[2])])[None]


class JinaBertPooler(nn.Module):
    """The first token through a layer and tanh."""

    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, n, d) to (B, d)."""
        return torch.tanh(self.dense(hidden[:, 0]))


class JinaBertModel(PreTrainedModel):  # type: ignore[misc]
    """The encoder, its weights named as in the checkpoints."""

    config_class = JinaBertConfig
    base_model_prefix = "bert"

    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.embeddings: Any = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocab_size, size, config.pad_token_id),
                "token_type_embeddings": nn.Embedding(config.type_vocab_size, size),
                "LayerNorm": nn.LayerNorm(size, config.layer_norm_eps),
            }
        )
        layers = nn.ModuleList(JinaBertLayer(config) for _ in range(config.num_hidden_layers))
        self.encoder: Any = nn.ModuleDict({"layer": layers})
        self.pooler = JinaBertPooler(config)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Any:
        """Hidden states (B, n, d); in a packed pass (1, T, d), and the mask is the layout's."""
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        words, kinds = self.embeddings["word_embeddings"], self.embeddings["token_type_embeddings"]
        x = self.embeddings["LayerNorm"](words(input_ids) + kinds(types))
        layout, mask = current(), None
        if layout is None and attention_mask is not None:
            mask = x.new_zeros(attention_mask.shape).masked_fill(attention_mask == 0, -torch.inf)[:, None, None]
        longest = input_ids.shape[1] if layout is None else max(run.length for run in layout.runs)
        bias = Bias(self.config.num_attention_heads, longest, x)
        for layer in self.encoder["layer"]:
            x = layer(x, bias, mask)
        return BaseModelOutput(last_hidden_state=x)


class JinaBertForSequenceClassification(PreTrainedModel):  # type: ignore[misc]
    """The encoder, its pooler and one linear layer."""

    config_class = JinaBertConfig
    base_model_prefix = "bert"

    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__(config)
        self.bert = JinaBertModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Any:
        """Logits, (B, labels)."""
        hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        return SequenceClassifierOutput(logits=self.classifier(self.bert.pooler(hidden)))
