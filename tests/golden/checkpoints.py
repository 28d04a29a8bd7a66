"""Tiny checkpoints of published rerankers' architectures, in their file layout, the same in every environment.

Every parameter is drawn from NumPy's PCG64, seeded by the checkpoint's and the parameter's name, so that neither a
torch nor a transformers version has a say in it. `make.py` scores them with the reference packages; the test-suite
builds the same folders and compares.

    save("bge_gemma", folder)      # or save_bge_gemma(folder); NAMES lists them
    weights("bge_gemma")           # {parameter: float32 array}, as model.safetensors holds them
    config("bge_gemma")            # as config.json holds it
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).parent
Shapes = dict[str, tuple[int, ...]]

GEMMA_VOCABULARY = 480
LLAMA_VOCABULARY = 480
XLMR_VOCABULARY = 320

# Keys and layout as in BAAI/bge-reranker-v2-gemma: a plain GemmaForCausalLM whose head is tied to its embeddings,
# with one key-value head and heads that are wider than hidden_size / num_attention_heads.
BGE_GEMMA: dict[str, Any] = {
    "_name_or_path": "BAAI/bge-reranker-v2-gemma",
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 16,
    "hidden_act": "gelu",
    "hidden_activation": None,
    "hidden_size": 48,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
    "transformers_version": "4.38.1",
    "use_cache": True,
    "vocab_size": GEMMA_VOCABULARY,
}

# As BAAI/bge-reranker-v2-minicpm-layerwise, whose heads read layers start_layer .. num_hidden_layers (8 .. 40 there).
BGE_MINICPM: dict[str, Any] = {
    "_name_or_path": "BAAI/bge-reranker-v2-minicpm-layerwise",
    "architectures": ["LayerWiseMiniCPMForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_minicpm_reranker.LayerWiseMiniCPMConfig",
        "AutoModel": "modeling_minicpm_reranker.LayerWiseMiniCPMModel",
        "AutoModelForCausalLM": "modeling_minicpm_reranker.LayerWiseMiniCPMForCausalLM",
    },
    "bos_token_id": 1,
    "dim_model_base": 16,
    "eos_token_id": 2,
    "head_multi": True,
    "head_type": "simple",
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.1,
    "intermediate_size": 96,
    "max_position_embeddings": 2048,
    "model_type": "minicpm",
    "num_attention_heads": 4,
    "num_hidden_layers": 8,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "scale_depth": 1.4,
    "scale_emb": 12,
    "start_layer": 3,
    "torch_dtype": "float32",
    "transformers_version": "4.38.1",
    "use_cache": False,
    "vocab_size": LLAMA_VOCABULARY,
}

# As BAAI/bge-reranker-v2.5-gemma2-lightweight (42 layers, heads 8 .. 42, caps 50 and 30, window 4096). Caps and
# window are small here, so that leaving one out shows.
BGE_GEMMA2_LIGHTWEIGHT: dict[str, Any] = {
    "_name_or_path": "BAAI/bge-reranker-v2.5-gemma2-lightweight",
    "architectures": ["CostWiseGemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 2.0,
    "auto_map": {
        "AutoConfig": "BAAI/bge-reranker-v2.5-gemma2-lightweight--gemma_config.CostWiseGemmaConfig",
        "AutoModel": "BAAI/bge-reranker-v2.5-gemma2-lightweight--gemma_model.CostWiseGemmaModel",
        "AutoModelForCausalLM": "BAAI/bge-reranker-v2.5-gemma2-lightweight--gemma_model.CostWiseGemmaForCausalLM",
    },
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": 8.0,
    "head_dim": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 48,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "layer_sep": 1,
    "layer_wise": True,
    "max_position_embeddings": 8192,
    "model_type": "cost_wise_gemma",
    "num_attention_heads": 4,
    "num_hidden_layers": 8,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 20,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 32,
    "sliding_window_size": 32,
    "start_layer": 3,
    "torch_dtype": "float32",
    "transformers_version": "4.42.2",
    "use_cache": True,
    "vocab_size": GEMMA_VOCABULARY,
}

_XLMR: dict[str, Any] = {
    "architectures": ["XLMRobertaForSequenceClassification"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "classifier_dropout": None,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 32,
    "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "label2id": {"LABEL_0": 0},
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "xlm-roberta",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "output_past": True,
    "pad_token_id": 1,
    "position_embedding_type": "absolute",
    "torch_dtype": "float32",
    "type_vocab_size": 1,
    "use_cache": True,
    "vocab_size": XLMR_VOCABULARY,
}
BGE_BASE = {"_name_or_path": "BAAI/bge-reranker-base", **_XLMR, "transformers_version": "4.28.1"}
BCE = {"_name_or_path": "maidalun1020/bce-reranker-base_v1", **_XLMR, "transformers_version": "4.35.0"}

_GEMMA_TOKENIZER: dict[str, Any] = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<bos>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "<eos>",
    "legacy": None,
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": "<pad>",
    "sp_model_kwargs": {},
    "spaces_between_special_tokens": False,
    "tokenizer_class": "GemmaTokenizer",
    "unk_token": "<unk>",
    "use_default_system_prompt": False,
}
_LLAMA_TOKENIZER: dict[str, Any] = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "legacy": True,
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": "</s>",
    "sp_model_kwargs": {},
    "spaces_between_special_tokens": False,
    "tokenizer_class": "LlamaTokenizer",
    "unk_token": "<unk>",
    "use_default_system_prompt": False,
}
_XLMR_TOKENIZER: dict[str, Any] = {
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": True,
    "cls_token": "<s>",
    "eos_token": "</s>",
    "mask_token": "<mask>",
    "model_max_length": 512,
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "tokenizer_class": "XLMRobertaTokenizer",
    "unk_token": "<unk>",
}


def _decoder_shapes(c: dict[str, Any], norms: list[str]) -> Shapes:
    d, wide = c["hidden_size"], c["intermediate_size"]
    size = c.get("head_dim") or d // c["num_attention_heads"]
    queries, keys = c["num_attention_heads"] * size, c["num_key_value_heads"] * size
    shapes: Shapes = {"model.embed_tokens.weight": (c["vocab_size"], d)}
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "self_attn.q_proj.weight": (queries, d),
            layer + "self_attn.k_proj.weight": (keys, d),
            layer + "self_attn.v_proj.weight": (keys, d),
            layer + "self_attn.o_proj.weight": (d, queries),
            layer + "mlp.gate_proj.weight": (wide, d),
            layer + "mlp.up_proj.weight": (wide, d),
            layer + "mlp.down_proj.weight": (d, wide),
        }
        shapes |= {f"{layer}{norm}.weight": (d,) for norm in norms}
    return {**shapes, "model.norm.weight": (d,)}


def _gemma_shapes(c: dict[str, Any]) -> Shapes:
    return _decoder_shapes(c, ["input_layernorm", "post_attention_layernorm"])


def _layer_heads(c: dict[str, Any]) -> Shapes:
    heads = range(c["start_layer"], c["num_hidden_layers"] + 1, c.get("layer_sep", 1))
    return {f"lm_head.{i}.linear_head.weight": (1, c["hidden_size"]) for i in range(len(heads))}


def _minicpm_shapes(c: dict[str, Any]) -> Shapes:
    return {**_decoder_shapes(c, ["input_layernorm", "post_attention_layernorm"]), **_layer_heads(c)}


def _lightweight_shapes(c: dict[str, Any]) -> Shapes:
    norms = ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"]
    return {**_decoder_shapes(c, norms), **_layer_heads(c)}


def _xlmr_shapes(c: dict[str, Any]) -> Shapes:
    d, wide = c["hidden_size"], c["intermediate_size"]
    shapes: Shapes = {
        "roberta.embeddings.word_embeddings.weight": (c["vocab_size"], d),
        "roberta.embeddings.position_embeddings.weight": (c["max_position_embeddings"], d),
        "roberta.embeddings.token_type_embeddings.weight": (c["type_vocab_size"], d),
    }
    linear = {"classifier.dense": (d, d), "classifier.out_proj": (1, d)}
    norms = ["roberta.embeddings.LayerNorm"]
    for i in range(c["num_hidden_layers"]):
        layer = f"roberta.encoder.layer.{i}."
        linear |= {f"{layer}attention.self.{part}": (d, d) for part in ["query", "key", "value"]}
        linear |= {layer + "attention.output.dense": (d, d)}
        linear |= {layer + "intermediate.dense": (wide, d), layer + "output.dense": (d, wide)}
        norms += [layer + "attention.output.LayerNorm", layer + "output.LayerNorm"]
    for name, (rows, columns) in linear.items():
        shapes |= {name + ".weight": (rows, columns), name + ".bias": (rows,)}
    for name in norms:
        shapes |= {name + ".weight": (d,), name + ".bias": (d,)}
    return shapes


# name: (config, parameter shapes, tokenizer.json, tokenizer_config, norms are stored as their distance from 1)
_CHECKPOINTS: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], Shapes], str, dict[str, Any], bool]] = {
    "bge_gemma": (BGE_GEMMA, _gemma_shapes, "gemma_tokenizer.json", _GEMMA_TOKENIZER, True),
    "bge_minicpm": (BGE_MINICPM, _minicpm_shapes, "llama_tokenizer.json", _LLAMA_TOKENIZER, False),
    "bge_gemma2_lightweight": (
        BGE_GEMMA2_LIGHTWEIGHT, _lightweight_shapes, "gemma_tokenizer.json", _GEMMA_TOKENIZER, True,
    ),
    "bce": (BCE, _xlmr_shapes, "xlmr_tokenizer.json", _XLMR_TOKENIZER, False),
    "bge_base": (BGE_BASE, _xlmr_shapes, "xlmr_tokenizer.json", _XLMR_TOKENIZER, False),
}  # fmt: skip
NAMES = list(_CHECKPOINTS)


def config(name: str, **changes: Any) -> dict[str, Any]:
    """What the checkpoint's config.json holds."""
    return {**_CHECKPOINTS[name][0], **changes}


def shapes(name: str, **changes: Any) -> Shapes:
    """Parameter names and shapes, as model.safetensors holds them."""
    return _CHECKPOINTS[name][1](config(name, **changes))


def fill(name: str, shape: tuple[int, ...], seed: str = "", offset_norms: bool = False) -> np.ndarray:
    """One parameter's values, from its name alone."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(f"{seed}/{name}".encode())))
    noise = generator.standard_normal(shape)
    if name.endswith("norm.weight") or name.endswith("LayerNorm.weight"):
        values = 0.1 * noise + (0.0 if offset_norms else 1.0)
    elif len(shape) == 1:
        values = 0.1 * noise
    elif "embed" in name or shape[0] == 1:  # embeddings, and the heads that give the score
        values = 0.5 * noise
    else:
        values = 0.15 * noise
    return values.astype(np.float32)


def weights(name: str, **changes: Any) -> dict[str, np.ndarray]:
    """All parameters; the same for the same name (and sizes)."""
    offset = _CHECKPOINTS[name][4]
    return {key: fill(key, shape, name, offset) for key, shape in shapes(name, **changes).items()}


def save(name: str, folder: str | Path, **changes: Any) -> Path:
    """Writes config.json, model.safetensors and the tokenizer; `changes` go into the config."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _, _, tokenizer, settings, _ = _CHECKPOINTS[name]
    (folder / "config.json").write_text(json.dumps(config(name, **changes), indent=2) + "\n")
    save_file(weights(name, **changes), folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(HERE / tokenizer, folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    tokens = {key: value for key, value in settings.items() if key.endswith("_token") and isinstance(value, str)}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens, indent=2) + "\n")
    return folder


def save_bge_gemma(folder: str | Path) -> Path:
    return save("bge_gemma", folder)


def save_bge_minicpm(folder: str | Path) -> Path:
    return save("bge_minicpm", folder)


def save_bge_gemma2_lightweight(folder: str | Path) -> Path:
    return save("bge_gemma2_lightweight", folder)


def save_bce(folder: str | Path) -> Path:
    return save("bce", folder)


def save_bge_base(folder: str | Path) -> Path:
    return save("bge_base", folder)
