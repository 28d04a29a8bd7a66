"""The language models of llm_rerank.py: between the published ones and toys, with seeded random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import workload as loads

sys.path.append(str(Path(__file__).parents[1] / "tests" / "golden"))
import checkpoints

QWEN = {  # between Qwen3-Reranker-0.6B and a toy; its vocabulary is the real one
    "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
    "intermediate_size": 1536, "vocab_size": 151_936, "tie_word_embeddings": True, "max_position_embeddings": 8192,
}  # fmt: skip
MINICPM = {  # a ninth as wide as bge-reranker-v2-minicpm-layerwise, as deep, and with its heads
    "hidden_size": 256, "num_hidden_layers": 40, "start_layer": 8, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 640,
}  # fmt: skip
GEMMA = {
    "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64,
    "intermediate_size": 1024, "vocab_size": 256_000, "max_position_embeddings": 8192,
}  # fmt: skip


def save_causal(folder: Path, prefix: str, shape: dict[str, Any], tokenizer: Any) -> Path:
    """A seeded `...ForCausalLM` whose logits spread by about one."""
    import transformers

    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    model = getattr(transformers, f"{prefix}ForCausalLM")(getattr(transformers, f"{prefix}Config")(**shape, **ids))
    generator = torch.Generator().manual_seed(loads.SEED)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_layerwise(folder: Path, shape: dict[str, Any], tokenizer: Any) -> Path:
    """A bge-reranker-v2-minicpm-layerwise under its published names, seeded, with another tokenizer.

    Its embeddings are as small as its factor on them is large: what the layers add would drown in bfloat16 otherwise.
    """
    from safetensors.torch import save_file

    changes = {**shape, "vocab_size": len(tokenizer)}
    config = checkpoints.config("bge_minicpm", **changes)
    generator = torch.Generator().manual_seed(loads.SEED)
    weights = {}
    for name, size in checkpoints.shapes("bge_minicpm", **changes).items():
        std = 1 / config["scale_emb"] if "embed" in name else size[-1] ** -0.5
        weights[name] = torch.randn(size, generator=generator) * std if len(size) > 1 else torch.ones(size)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
