"""Tiny checkpoints of real architectures, seeded and saved in the real file layout."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "A zip archive is read with the zipfile module; a tar archive with tarfile, and neither needs extracting first.",
    "Regular expressions match patterns: groups, look-ahead, alternation, repetition are written in a small language.",
    "The event loop runs coroutines; a coroutine awaits futures, and a future is done once, with a result or an error.",
    "Ein Käse reift im Keller, während der Bäcker über die Brücke läuft und äußerst vergnügt ein Lied pfeift.",
    "Sorting is stable: records that compare equal keep their order, so that several keys can be sorted one by one.",
    "How do I parse a date such as 2024-02-29T23:59:60Z without losing its time zone, daylight saving or leap second?",
    "Numbers: 0 1 2 3 4 5 6 7 8 9, 3.14159, 6.02e23, 1,000,000 and -42; symbols: @ # $ % ^ & * ( ) [ ] { } < > / |",
]
WORDS = " ".join(TEXT).split()


def text(words: int, seed: int = 0) -> str:
    """Some words of `TEXT`, the same for the same seed."""
    generator = torch.Generator().manual_seed(1000 * seed + words)
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (words,), generator=generator).tolist())


@lru_cache
def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT's: `[CLS] q [SEP] p [SEP]`, token types 0 and 1."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core.train_from_iterator(
        TEXT, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], special, strict=True))
    return _wrapped(core, ["input_ids", "token_type_ids", "attention_mask"], names)


@lru_cache
def byte_level() -> PreTrainedTokenizerFast:
    """As RoBERTa's: `<s> q </s></s> p </s>`, no token types."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return _wrapped(core, ["input_ids", "attention_mask"], _roberta_names())


@lru_cache
def unigram() -> PreTrainedTokenizerFast:
    """As XLM-RoBERTa's: pieces with a word mark, `<s> q </s></s> p </s>`."""
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    core.train_from_iterator(
        TEXT, trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    pair = "<s> $A </s> </s> $B </s>"
    core.post_processor = processors.TemplateProcessing("<s> $A </s>", pair, [("<s>", 0), ("</s>", 2)])
    return _wrapped(core, ["input_ids", "attention_mask"], _roberta_names())


def _roberta_names() -> dict[str, str]:
    return {
        "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>",
        "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>",
    }  # fmt: skip


def _wrapped(core: Tokenizer, inputs: list[str], names: dict[str, str]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=core, model_input_names=inputs, model_max_length=512, padding_side="right", **names
    )


_SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
_BERT = {**_SMALL, "max_position_embeddings": 512, "pad_token_id": 0}
_ROBERTA = {**_SMALL, "max_position_embeddings": 514, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_MODERN = {**_BERT, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}

# name: (tokenizer, transformers class prefix, config)
ENCODERS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "bert": (wordpiece, "Bert", _BERT),
    "roberta": (byte_level, "Roberta", {**_ROBERTA, "type_vocab_size": 1}),
    "xlm-roberta": (unigram, "XLMRoberta", {**_ROBERTA, "type_vocab_size": 1}),
    "camembert": (unigram, "Camembert", {**_ROBERTA, "type_vocab_size": 1}),
    "distilbert": (
        wordpiece, "DistilBert",
        {"dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 128, "max_position_embeddings": 512, "pad_token_id": 0},
    ),
    "electra": (wordpiece, "Electra", {**_BERT, "embedding_size": 32}),
    "albert": (wordpiece, "Albert", {**_BERT, "embedding_size": 32}),
    "modernbert": (wordpiece, "ModernBert", {**_MODERN, "local_attention": 32, "global_attn_every_n_layers": 3}),
    "modernbert-mean": (
        wordpiece, "ModernBert",
        {**_MODERN, "local_attention": 32, "global_attn_every_n_layers": 3, "classifier_pooling": "mean"},
    ),
    "gte": (wordpiece, "Gte", {**_BERT, "type_vocab_size": 2}),
    "nomic_bert": (wordpiece, "NomicBert", {**_BERT, "type_vocab_size": 2}),
    "jina_embeddings_v3": (unigram, "JinaEmbeddingsV3", {**_ROBERTA, "type_vocab_size": 1}),
    "eurobert": (wordpiece, "EuroBert", {**_MODERN, "classifier_pooling": "bos"}),
    "eurobert-mean": (wordpiece, "EuroBert", {**_MODERN, "classifier_pooling": "mean"}),
    "eurobert-late": (wordpiece, "EuroBert", {**_MODERN, "classifier_pooling": "late"}),
    "mpnet": (byte_level, "MPNet", {**_ROBERTA, "relative_attention_num_buckets": 32}),
    "deberta-v2": (
        wordpiece, "DebertaV2",
        {
            **_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 32,
            "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False, "type_vocab_size": 0,
            "pooler_hidden_size": 64,
        },
    ),
    "deberta-v2-conv": (
        wordpiece, "DebertaV2",
        {
            **_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 32,
            "conv_kernel_size": 3, "position_biased_input": False, "type_vocab_size": 0, "pooler_hidden_size": 64,
        },
    ),
}  # fmt: skip


def save_classifier(folder: Path, name: str, labels: int = 1, seed: int = 0, **changes: Any) -> Path:
    """A `...ForSequenceClassification` checkpoint whose logits spread, with its tokenizer."""
    return _save(folder, name, "ForSequenceClassification", seed, {"num_labels": labels, **changes})


def save_encoder(folder: Path, name: str, seed: int = 0, **changes: Any) -> Path:
    """The encoder alone."""
    return _save(folder, name, "Model", seed, changes)


def _save(folder: Path, name: str, suffix: str, seed: int, changes: dict[str, Any]) -> Path:
    make_tokenizer, prefix, config = ENCODERS[name]
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    made = getattr(transformers, f"{prefix}Config")(**{**config, "vocab_size": len(tokenizer), **changes})
    model = getattr(transformers, prefix + suffix)(made)
    with torch.no_grad():
        for key, weight in model.named_parameters():  # the usual 0.02 gives every text about the same logit
            if weight.dim() > 1:
                weight.normal_(0, 0.5 if "embedding" in key else 0.15)
            elif "bias" in key:
                weight.normal_(0, 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentence_layout(
    folder: Path, pooling: str | list[str], *modules: tuple[str, dict[str, Any]], **config: Any
) -> Path:
    """Turns an encoder's folder into a sentence-transformers one: pooling, then further modules."""
    from safetensors.torch import save_file

    width = json.loads((folder / "config.json").read_text())
    hidden = width.get("hidden_size") or width["dim"]
    size = hidden * (1 if isinstance(pooling, str) else len(pooling))
    entries = [
        ("", "Transformer", None),
        ("1_Pooling", "Pooling", {"embedding_dimension": hidden, "pooling_mode": pooling}),
    ]
    entries += [(f"{i}_{kind}", kind, settings) for i, (kind, settings) in enumerate(modules, 2)]
    kinds = {
        "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
        "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        "Dense": "sentence_transformers.base.modules.dense.Dense",
        "LayerNorm": "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
        "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    }
    torch.manual_seed(1)
    for path, kind, settings in entries[1:]:
        (folder / path).mkdir()
        if settings is not None:
            (folder / path / "config.json").write_text(json.dumps(settings))
        if kind == "Dense":
            assert settings is not None
            weights = {"linear.weight": torch.randn(settings["out_features"], size) / size**0.5}
            if settings.get("bias", True):
                weights["linear.bias"] = torch.randn(settings["out_features"])
            save_file(weights, folder / path / "model.safetensors")
            size = settings["out_features"]
        if kind == "LayerNorm":
            save_file(
                {"norm.weight": torch.rand(size), "norm.bias": torch.randn(size)}, folder / path / "model.safetensors"
            )
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": kinds[kind]} for i, (path, kind, _) in enumerate(entries)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    settings = {"model_type": "SentenceTransformer", "prompts": {}, "similarity_fn_name": "cosine", **config}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder
