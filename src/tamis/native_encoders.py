"""Encoders whose checkpoints bring code of their own, or spell their config as that code does.

What transformers computes under another name is given a config of that name; its weights are renamed by transformers.
JinaBERT is Tamis's own. A config that asks for anything else is refused: transformers ignores keys that it does not
know, and would load another model than the one that was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from tamis.checkpoint import Checkpoint
from tamis.errors import UnknownFamily
from tamis.native import NATIVE, Config, Native

_ABSOLUTE = ("albert", "bert", "camembert", "dpr", "electra", "roberta", "xlm-roberta")  # by learned positions only

_NEW = {  # what transformers' Gte computes; the rest of NewConfig is about speed
    "position_embedding_type": ("rope",),
    "layer_norm_type": ("layer_norm",),
    "logn_attention_scale": (False,),
    "pack_qkv": (True,),
    "rope_parameters": (),  # the published code knows rope_theta and rope_scaling
}
_NOMIC = {
    "activation_function": ("swiglu",),
    "causal": (False,),
    "mlp_fc1_bias": (False,),
    "mlp_fc2_bias": (False,),
    "moe_every_n_layers": (0,),
    "num_experts": (0,),
    "parallel_block": (False,),
    "prenorm": (False,),
    "qkv_proj_bias": (False,),
    "rotary_emb_fraction": (1, 1.0),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (),
    "use_rms_norm": (False,),
}
_NOMIC_NAMES = {  # GPT-2's names, which the published code kept
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
}
_NOMIC_DEFAULTS = {  # of the published code, where a config leaves them out
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
    "qkv_proj_bias": True,
    "rotary_emb_fraction": 0.0,
}
_OWN = ("model_type", "architectures", "auto_map", "transformers_version", "_name_or_path")


def native_of(checkpoint: Checkpoint) -> Native | None:
    """How to read a checkpoint that transformers would not read, or not as it was trained; None where it does.

    Raises:
        UnknownFamily: Its config or its weights are of a variant that neither transformers nor Tamis computes.
    """
    config, kind = checkpoint.config, checkpoint.model_type
    if kind == "new":
        return Native(partial(_gte, checkpoint.name))
    if kind == "nomic_bert":
        published = "n_embd" in config and "hidden_size" not in config
        _check({**_NOMIC_DEFAULTS, **config} if published else config, _NOMIC, checkpoint.name)
        return Native(_nomic_bert) if published else None
    if is_jina_bert(checkpoint):
        return Native(partial(_jina_bert, checkpoint))
    if kind in _ABSOLUTE:
        _check(config, {"position_embedding_type": ("absolute",)}, checkpoint.name)
    if kind == "xlm-roberta" and "auto_map" in config and any(".mixer." in name for name in weight_shapes(checkpoint)):
        raise UnknownFamily(
            f"{checkpoint.name} is Jina's XLM-RoBERTa with flash attention (jina-reranker-v2, ...), which is code of "
            "its own: transformers' XLM-RoBERTa has other weights, and Tamis does not have it."
        )
    return NATIVE.get(kind)


def is_jina_bert(checkpoint: Checkpoint) -> bool:
    """Whether it calls itself a BERT and has ALiBi."""
    return checkpoint.model_type == "bert" and checkpoint.config.get("position_embedding_type") == "alibi"


def weight_shapes(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """Names and shapes of its weights, from the headers of its files."""
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    for path in sorted(checkpoint.body.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            shapes |= {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def _gte(name: str, config: Config) -> Any:
    """Alibaba's "new" encoder (gte-multilingual, gte-en-v1.5) as transformers' Gte, which has the same arithmetic.

    Its RoPE with NTK scaling f (https://kexue.fm/archives/9706) has `(f theta)^(-2i/d) / f^(2/d)` for frequencies at
    every length: a base of `f theta` and a linear factor of `f^(2/d)`.
    """
    from transformers import CONFIG_MAPPING

    if "gte" not in CONFIG_MAPPING:
        raise UnknownFamily(f"{name} needs a newer transformers, which has the Gte model: pip install -U transformers.")
    _check(config, _NEW, name)
    theta = float(config.get("rope_theta", 10_000.0))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if scaling := config.get("rope_scaling"):
        kind = scaling.get("type", scaling.get("rope_type", "unnamed"))
        _check({**scaling, "rope_scaling": kind}, {"rope_scaling": ("ntk",), "mixed_b": ()}, name)
        factor, size = float(scaling["factor"]), config["hidden_size"] // config["num_attention_heads"]
        rope = {"rope_type": "linear", "factor": factor ** (2 / size), "rope_theta": theta * factor}
    defaults = {"vocab_size": 30528, "max_position_embeddings": 2048, "pad_token_id": 0}  # NewConfig's, not Gte's
    values = _without(config, *_OWN, *_NEW, "rope_scaling", "rope_theta")
    return CONFIG_MAPPING["gte"](**{**defaults, **values, "rope_parameters": rope})


def _nomic_bert(config: Config) -> Any:
    """Nomic BERT by the names that its published code has for sizes.

    With a `rotary_scaling_factor` that code stretches positions by the length of the batch beyond
    `max_trained_positions`; up to there it does not, and we read no more than that.
    """
    from transformers import CONFIG_MAPPING

    whole = _without({**_NOMIC_DEFAULTS, **config}, *_OWN, *_NOMIC)
    values = {_NOMIC_NAMES.get(key, key): value for key, value in whole.items()}
    if values.get("intermediate_size") is None:
        values["intermediate_size"] = 4 * values["hidden_size"]
    multiple = values.get("pad_vocab_size_multiple") or 1
    values["vocab_size"] = -(-values["vocab_size"] // multiple) * multiple
    if values.get("rotary_scaling_factor"):
        values["max_position_embeddings"] = values.get("max_trained_positions", 2048)
    rope = {"rope_type": "default", "rope_theta": float(values.get("rotary_emb_base", 1000))}
    return CONFIG_MAPPING["nomic_bert"](**values, rope_parameters=rope)


def _jina_bert(checkpoint: Checkpoint, config: Config) -> Any:
    """JinaBERT. Its rerankers' configs do not say how many labels they have; their weights do."""
    from tamis.engine.jina_bert import GATES, JinaBertConfig

    shapes = weight_shapes(checkpoint)
    if any(".layer_norm_q." in name for name in shapes):
        raise UnknownFamily(
            f"{checkpoint.name} is a JinaBERT that normalises queries and keys (jina-bert-v2-qk-post-norm), which "
            "Tamis does not compute."
        )
    _check(config, {"feed_forward_type": tuple(GATES)}, checkpoint.name)
    labels = {"num_labels": shapes["classifier.weight"][0]} if "classifier.weight" in shapes else {}
    return JinaBertConfig(**{**_without(config, *_OWN, "attn_implementation", "id2label", "label2id"), **labels})


def _check(config: Config, computed: Mapping[str, tuple[Any, ...]], name: str) -> None:
    """Raises UnknownFamily for a key whose value is set, and none of those that are computed."""
    for key, values in computed.items():
        value = config.get(key)
        if value is not None and value not in values:
            raise UnknownFamily(
                f"{name} has {key}={value!r} in its config.json, which neither transformers nor Tamis computes: it "
                "would score as another model than the one that was trained."
            )


def _without(config: Config, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}
