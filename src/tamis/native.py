"""Architectures for which checkpoints bring code of their own, and which transformers computes under another name.

Each entry turns a checkpoint's `config.json` into a transformers config of the architecture that does the same
arithmetic; the weights have the same names, or are renamed as they are read. No code of a checkpoint is run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tamis.errors import UnknownFamily

Config = Mapping[str, Any]

_OWN_KEYS = ("model_type", "architectures", "auto_map", "transformers_version", "_name_or_path")


@dataclass(frozen=True, slots=True)
class Native:
    """How transformers reads one `model_type` that it does not know.

    Attributes:
        config: From the checkpoint's config to transformers' own.
        renamed: Regular expressions of weight names, and what replaces them.
    """

    config: Callable[[Config], Any]
    renamed: Mapping[str, str] = field(default_factory=dict)


def llama_bidirectional(config: Config) -> Any:
    """NVIDIA's bidirectional Llama: every token sees every other one, and the mean is pooled."""
    from transformers import LlamaConfig

    own = {"is_causal": False, "pooling": "avg", "num_labels": 1}
    return LlamaConfig(**{**own, **_without(config, *_OWN_KEYS, "temperature")})


def minicpm(config: Config) -> Any:
    """MiniCPM is a Llama with factors on embeddings and residuals, which is what transformers calls Granite.

    Raises:
        UnknownFamily: It is not the layerwise reranker: a language model of the series also scales its head.
    """
    from transformers import GraniteConfig

    if list(config.get("architectures") or []) != ["LayerWiseMiniCPMForCausalLM"]:
        raise UnknownFamily(
            f"It is a MiniCPM ({', '.join(config.get('architectures') or ['no architecture'])}), of which Tamis "
            "computes the layerwise reranker only."
        )
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    return GraniteConfig(
        **_without(config, *_OWN_KEYS, "tie_word_embeddings"),
        tie_word_embeddings=True,
        embedding_multiplier=config.get("scale_emb", 1),
        residual_multiplier=config.get("scale_depth", 1) / layers**0.5,
        attention_multiplier=(config["hidden_size"] // heads) ** -0.5,
        logits_scaling=1.0,
    )


def cost_wise_gemma(config: Config) -> Any:
    """A Gemma 2. Its published code runs without the bound on attention's products, and so do we."""
    from transformers import Gemma2Config

    return Gemma2Config(**{**_without(config, *_OWN_KEYS, "tie_word_embeddings"), "attn_logit_softcapping": None})


def _without(config: Config, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


NATIVE: dict[str, Native] = {
    "llama_bidirec": Native(llama_bidirectional),
    "minicpm": Native(minicpm),
    "cost_wise_gemma": Native(cost_wise_gemma),
}
