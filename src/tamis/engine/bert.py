"""BERT (Devlin et al. 2019, arXiv 1810.04805) in plain torch: packed, and in padded rows.

What most small rerankers and sentence encoders are. transformers has it too, but its modelling code takes longer to
import than such a model takes to load. Names of modules and weights are those of transformers, so that its checkpoints
load and heads and CPU tuning find the parts that they look for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tamis.engine.attention import attention
from tamis.engine.packing import current

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_new": partial(gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(gelu, approximate="tanh"),
    "relu": relu,
}
WEIGHTS = "model.safetensors"
META = "meta"  # nothing is made that the file will replace


class Hidden(NamedTuple):
    """What the encoder gives: hidden states (B, n, d); in a packed pass (1, T, d)."""

    last_hidden_state: Tensor


class Logits(NamedTuple):
    """What the classifier gives: (B, labels)."""

    logits: Tensor


def computes(config: Any, folder: Path) -> bool:
    """Whether this is all that a config asks for, and its weights lie in one file of safetensors."""
    return (
        config.model_type == "bert"
        and type(config).__module__.startswith(("transformers.", "tamis."))
        and config.hidden_act in ACTIVATIONS
        and not getattr(config, "is_decoder", False)
        and not getattr(config, "add_cross_attention", False)
        and not getattr(config, "chunk_size_feed_forward", 0)
        and (folder / WEIGHTS).is_file()
    )


class BertSelfAttention(nn.Module):
    """Softmax attention of every token to every token of its sequence."""

    is_causal = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = size // config.num_attention_heads
        self.scaling = self.attention_head_size**-0.5
        self.query, self.key, self.value = (nn.Linear(size, size, device=META) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, n, d) to the same; `mask` (B, 1, 1, n) is True where a key is seen."""
        shape = (*x.shape[:2], self.num_attention_heads, self.attention_head_size)
        query, key, value = (part(x).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value))
        if current() is None:
            out = sdpa(query, key, value, attn_mask=mask, scale=self.scaling).transpose(1, 2)
        else:
            out, _ = attention(self, query, key, value, None, scaling=self.scaling)
        return out.reshape(x.shape)


class BertOutput(nn.Module):
    """A projection, the residual and a norm."""

    def __init__(self, config: Any, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, config.hidden_size, device=META)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, device=META)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """(..., inner) and (..., d) to (..., d)."""
        return self.LayerNorm(self.dense(x) + residual)


class BertIntermediate(nn.Module):
    """The MLP's first half."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size, device=META)
        self.intermediate_act_fn: Callable[[Tensor], Tensor] = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) to (..., inner)."""
        return self.intermediate_act_fn(self.dense(x))


class BertLayer(nn.Module):
    """Attention and MLP, each with residual and norm behind it."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.attention: Any = nn.Module()
        self.attention.self = BertSelfAttention(config)
        self.attention.output = BertOutput(config, config.hidden_size)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config, config.intermediate_size)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, n, d) to the same."""
        return self.feed_forward_chunk(self.attention.output(self.attention.self(x, mask), x))

    def feed_forward_chunk(self, x: Tensor) -> Tensor:
        """The MLP, (..., d) to the same."""
        out: Tensor = self.output(self.intermediate(x), x)
        return out


class BertPooler(nn.Module):
    """The first token through a layer and tanh."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, device=META)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, n, d) to (B, d)."""
        return torch.tanh(self.dense(hidden[:, 0]))


class BertModel(nn.Module):
    """The encoder."""

    base_model_prefix = "bert"

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.embeddings: Any = nn.Module()
        self.embeddings.word_embeddings = _embedding(config.vocab_size, size)
        self.embeddings.position_embeddings = _embedding(config.max_position_embeddings, size)
        self.embeddings.token_type_embeddings = _embedding(config.type_vocab_size, size)
        self.embeddings.LayerNorm = nn.LayerNorm(size, config.layer_norm_eps, device=META)
        self.encoder: Any = nn.Module()
        self.encoder.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))
        self.pooler: BertPooler | None = BertPooler(config)

    @property
    def base_model(self) -> BertModel:
        """Itself."""
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return next(self.parameters()).dtype

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Hidden:
        """Hidden states of (B, n) ids; in a packed pass the mask is the layout's, and position ids are needed."""
        places = (
            torch.arange(input_ids.shape[1], device=input_ids.device)[None] if position_ids is None else position_ids
        )
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        parts = self.embeddings
        x = parts.word_embeddings(input_ids) + parts.token_type_embeddings(types) + parts.position_embeddings(places)
        x = parts.LayerNorm(x)
        mask = None if attention_mask is None or current() is not None else attention_mask[:, None, None].bool()
        for layer in self.encoder.layer:
            x = layer(x, mask)
        return Hidden(x)

    @classmethod
    def from_pretrained(cls, folder: Path, *, config: Any, dtype: torch.dtype, **_: Any) -> tuple[Any, dict[str, Any]]:
        """The model, and under `missing_keys` the names of weights that the folder does not have.

        Raises:
            OSError: The file is damaged.
            RuntimeError: A weight has another shape than the config says.
        """
        model = cls(config)
        wanted = model.state_dict()
        found = _named(_read(Path(folder) / WEIGHTS), wanted)
        for name, weight in found.items():
            if weight.shape != wanted[name].shape:
                raise RuntimeError(f"{name} has the shape {tuple(weight.shape)}, not {tuple(wanted[name].shape)}.")
        missing = set(wanted) - set(found)
        new = {name: _new(name, wanted[name].shape, config) for name in missing}
        model.load_state_dict({name: x.to(dtype) for name, x in {**found, **new}.items()}, assign=True)
        return model, {"missing_keys": missing}


class BertForSequenceClassification(BertModel):
    """The encoder, its pooler and one linear layer."""

    def __init__(self, config: Any) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.bert = BertModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels, device=META)

    @property
    def base_model(self) -> BertModel:
        """The encoder."""
        return self.bert

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Logits:
        """Logits; arguments as the encoder's."""
        assert self.bert.pooler is not None  # noqa: S101 - taken off only where this is called no more
        hidden = self.bert(input_ids, attention_mask, token_type_ids, position_ids).last_hidden_state
        return Logits(self.classifier(self.bert.pooler(hidden)))


def _embedding(rows: int, size: int) -> nn.Embedding:
    """Made this way, its weight is not drawn at random, for which torch would import its compiler."""
    return nn.Embedding.from_pretrained(torch.empty(rows, size, device=META))


def _read(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise OSError(f"{file.name} is damaged: {error}") from error


def _named(weights: dict[str, Tensor], wanted: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that are wanted: with or without the prefix that a whole model has, old names of norms included."""
    prefix = f"{BertModel.base_model_prefix}."
    found = {}
    for name, weight in weights.items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        for own in (name, name.removeprefix(prefix), prefix + name):
            if own in wanted:
                found[own] = weight
                break
    return found


def _new(name: str, shape: Any, config: Any) -> Tensor:
    """A weight to be trained."""
    if name.endswith("LayerNorm.weight"):
        return torch.ones(shape)
    return torch.zeros(shape) if len(shape) < 2 else torch.randn(shape) * getattr(config, "initializer_range", 0.02)
