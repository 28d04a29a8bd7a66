"""Tiny checkpoints of real architectures, seeded and saved in the real file layout."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
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
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core = _word_pieces({})
    words = core.pre_tokenizer.pre_tokenize_str(core.normalizer.normalize_str(" ".join(TEXT)))
    inner = sorted({f"##{letter}" for word, _ in words for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special + inner, show_progress=False)
    core.train_from_iterator(TEXT, trainer)  # by itself it numbers `inner` another way in each process
    core = _word_pieces(core.get_vocab())
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], special, strict=True))
    return _wrapped(core, ["input_ids", "token_type_ids", "attention_mask"], names)


def _word_pieces(vocabulary: dict[str, int]) -> Tokenizer:
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return core


def bert_tokenizer(folder: Path, **settings: Any) -> Path:
    """Gives a folder the vocabulary of `wordpiece` as a `BertTokenizer`, which is what most BERTs have."""
    usual = {"do_lower_case": True, "model_max_length": 512}
    transformers.BertTokenizer(wordpiece().get_vocab(), **{**usual, **settings}).save_pretrained(folder)
    return folder


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
    core = trained_unigram(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    pair = "<s> $A </s> </s> $B </s>"
    core.post_processor = processors.TemplateProcessing("<s> $A </s>", pair, [("<s>", 0), ("</s>", 2)])
    return _wrapped(core, ["input_ids", "attention_mask"], _roberta_names())


def trained_unigram(special: Sequence[str], words: Iterable[str] = ()) -> Tokenizer:
    """A unigram model of `TEXT`, each of `words` a piece of its own.

    Which pieces there are is learnt; what they are worth is how often each occurs, since what a trainer sums up differs
    by process, and so does the order of equal ones.
    """
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.train_from_iterator(
        TEXT,
        trainers.UnigramTrainer(vocab_size=300, special_tokens=[*special], unk_token="<unk>", show_progress=False),
    )
    state = json.loads(core.to_str())
    whole = "".join(f"▁{word}" for word in WORDS)
    worth = {piece: math.log(whole.count(piece) / len(whole)) for piece, _ in state["model"]["vocab"][len(special) :]}
    learnt = sorted(worth.items(), key=lambda one: (-one[1], one[0]))
    more = [[f"▁{word}", -4.0] for word in words if f"▁{word}" not in worth]
    state["model"]["vocab"] = [[mark, 0.0] for mark in special] + learnt + more
    return Tokenizer.from_str(json.dumps(state))


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


PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
WIDTH = 16  # of the token vectors


def marked_tokenizer(name: str, *added: str) -> PreTrainedTokenizerFast:
    """An encoder's tokenizer with `[unused0]` and `[unused1]` in its vocabulary, as BERT's has, and added tokens."""
    tokenizer = ENCODERS[name][0]()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if isinstance(state["model"]["vocab"], dict):
        for token in ("[unused0]", "[unused1]"):
            state["model"]["vocab"][token] = len(state["model"]["vocab"])
    names = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    made = _wrapped(Tokenizer.from_str(json.dumps(state)), tokenizer.model_input_names, names)
    made.add_tokens(list(added))
    return made


def _save_marked(folder: Path, name: str, added: tuple[str, ...], changes: dict[str, Any]) -> tuple[Path, int]:
    """An encoder with such a tokenizer, and its hidden size."""
    tokenizer = marked_tokenizer(name, *added)
    save_encoder(folder, name, **{"vocab_size": len(tokenizer), **changes})
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    return folder, config.get("hidden_size") or config["dim"]


def _projection(rows: int, columns: int, seed: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) / columns**0.5


def save_pylate(
    folder: Path,
    name: str = "bert",
    *dense: dict[str, Any],
    type_: str = "pylate.models.Dense.Dense",
    prefixes: tuple[str, str] = ("[Q] ", "[D] "),
    changes: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A checkpoint as PyLate saves it; each of `dense` is the config of a layer, one without a bias by default."""
    from safetensors.torch import save_file

    folder, size = _save_marked(folder, name, tuple(p for p in prefixes if p.endswith(" ")), changes or {})
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    identity = {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"}
    for i, config in enumerate(dense or ({"out_features": WIDTH},), 1):
        config = {**identity, "in_features": size, **config}
        size = config["out_features"]
        weights = {"linear.weight": _projection(size, config["in_features"], i)}
        if config["bias"]:
            weights["linear.bias"] = _projection(1, size, 20 + i)[0]
        if config.get("use_residual") and size != config["in_features"]:
            weights["residual.weight"] = _projection(size, config["in_features"], 10 + i)
        (folder / f"{i}_Dense").mkdir()
        (folder / f"{i}_Dense" / "config.json").write_text(json.dumps(config))
        save_file(weights, folder / f"{i}_Dense" / "model.safetensors")
        modules.append({"idx": i, "name": str(i), "path": f"{i}_Dense", "type": type_})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 23, "do_lower_case": false}')
    config = {
        "model_type": "ColBERT", "prompts": {}, "default_prompt_name": None, "similarity_fn_name": "MaxSim",
        "query_prefix": prefixes[0], "document_prefix": prefixes[1], "query_length": 32, "document_length": 48,
        "attend_to_expansion_tokens": False, "skiplist_words": PUNCTUATION, "do_query_expansion": True, **settings,
    }  # fmt: skip
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    return folder


def save_stanford(folder: Path, name: str = "bert", **metadata: Any) -> Path:
    """A checkpoint as Stanford's code saves it."""
    from safetensors.torch import load_file, save_file

    folder, size = _save_marked(folder, name, (), {})
    weights = {f"{name}.{key}": value for key, value in load_file(folder / "model.safetensors").items()}
    weights["linear.weight"] = _projection(WIDTH, size)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["HF_ColBERT"]}))
    settings = {
        "query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_maxlen": 32, "doc_maxlen": 48,
        "mask_punctuation": True, "attend_to_mask_tokens": False, "similarity": "cosine", "dim": WIDTH, **metadata,
    }  # fmt: skip
    (folder / "artifact.metadata").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    return folder


def save_multi_vector(folder: Path, name: str = "bert", **settings: Any) -> Path:
    """A checkpoint as sentence-transformers saves a MultiVectorEncoder, by itself; `settings` are the Transformer's."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    prompts = settings.pop("prompts", {"query": "[Q] ", "document": "[D] "})
    similarity = settings.pop("similarity_fn_name", None)
    mask = settings.pop("mask", {"skiplist_words": PUNCTUATION})
    base, size = _save_marked(folder / "base", name, (), {"vocab_size": len(marked_tokenizer(name)) + 2})
    tokenizer = marked_tokenizer(name)
    tokenizer.add_tokens(["[Q] ", "[D] "], special_tokens=True)
    tokenizer.save_pretrained(base)
    kind = {"module_input_name": "token_embeddings"}
    model = MultiVectorEncoder(
        modules=[
            Transformer(str(base), **settings),
            Dense(size, WIDTH, bias=False, activation_function=None, init_weight=_projection(WIDTH, size), **kind),
            MultiVectorMask(**mask),
            Normalize(**kind),
        ],
        prompts=prompts,
        similarity_fn_name=similarity,
        device="cpu",
    )
    model.save_pretrained(str(folder / "made"))
    return folder / "made"


def save_bge_m3(folder: Path, *, pickled: bool = False) -> Path:
    """A bi-encoder like BAAI/bge-m3, with its `colbert_linear`."""
    from safetensors.torch import load_file, save_file

    sentence_layout(save_encoder(folder, "xlm-roberta"), "cls", ("Normalize", None))
    head = {"weight": _projection(64, 64), "bias": _projection(1, 64)[0]}
    if pickled:
        torch.save(head, folder / "colbert_linear.pt")
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    else:
        save_file(head, folder / "colbert_linear.safetensors")
    return folder
