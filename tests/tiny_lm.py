"""Tiny decoders of real architectures, seeded and saved in the real file layout, with a chat tokenizer."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import tiny

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    '{% if add_generation_prompt %}<|im_start|>assistant\n{{ "" }}{% endif %}'
)
ANSWERS = ["yes", "no", "Yes", "No", "0", "1", "true", "false"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]


@lru_cache
def chat(bos: bool = False, template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """As Qwen's: byte-level, nothing around a text; `bos` puts `<s>` before it, as Llama's and Mistral's do."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([*tiny.TEXT, *ANSWERS * 40, ".\n?\n" * 40], trainer)
    core.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in ("<think>", "</think>")])
    ids = core.get_vocab()
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", ids["<s>"])]
        )
    names = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", **({"bos_token": "<s>"} if bos else {})}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=8192,
        padding_side="left",
        chat_template=template,
        **names,
    )


SIZES = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 128, "max_position_embeddings": 8192,
}  # fmt: skip
WINDOW = {"sliding_window": 24}

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {  # model type: (transformers' prefix, what differs)
    "llama": ("Llama", {}),
    "mistral": ("Mistral", WINDOW),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "gemma": ("Gemma", {"num_key_value_heads": 1}),
    "gemma2": ("Gemma2", {**WINDOW, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0}),
    "gemma3_text": ("Gemma3", {**WINDOW, "query_pre_attn_scalar": 16}),
    "phi3": ("Phi3", {**WINDOW, "pad_token_id": 0}),
    "granite": ("Granite", {"embedding_multiplier": 3.0, "residual_multiplier": 0.7, "logits_scaling": 2.0}),
    "smollm3": ("SmolLM3", {"pad_token_id": 0}),
    "olmo2": ("Olmo2", {}),
}


def save(
    folder: Path,
    name: str,
    kind: str,
    *,
    bos: bool = False,
    template: str | None = CHATML,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """A `...ForCausalLM`, `...ForSequenceClassification` or `...Model` whose outputs spread, with its tokenizer."""
    prefix, own = DECODERS[name]
    tokenizer = chat(bos, template)
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": 2}
    config_class = "Gemma3TextConfig" if prefix == "Gemma3" else f"{prefix}Config"
    model_class = {"Gemma3ForSequenceClassification": "Gemma3TextForSequenceClassification"}.get(
        prefix + kind, {"Gemma3Model": "Gemma3TextModel"}.get(prefix + kind, prefix + kind)
    )
    labels = {"num_labels": 1} if kind == "ForSequenceClassification" else {}
    config = getattr(transformers, config_class)(
        **{**SIZES, "vocab_size": len(tokenizer), **ids, **labels, **own, **changes}
    )
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(config)
    fill(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fill(model: torch.nn.Module) -> None:
    """Weights with which two texts get two outputs; the usual 0.02 gives every text about the same."""
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.4 if "embed" in key or "score" in key or "lm_head" in key else 0.12)
            elif "bias" in key:
                weight.normal_(0, 0.1)


def edit(path: Path, *without: str, **changes: Any) -> None:
    """Changes a JSON file."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content = {**{key: value for key, value in content.items() if key not in without}, **changes}
    path.write_text(json.dumps(content))
