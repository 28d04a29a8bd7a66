"""The config and the tokenizer of a BERT, read without transformers: its import takes as long as loading such a model.

They are read only where all that the files say is known, and transformers makes the same of it: it ignores the pipeline
in `tokenizer.json` and builds one from the vocabulary and `tokenizer_config.json`, so both have to agree. Whatever else
there is, damaged files included, is left to transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any

from tamis.checkpoint import Checkpoint, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass
class BertConfig:
    """What Tamis reads of transformers' config of that name; the defaults are transformers' too."""

    model_type: str = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    is_decoder: bool = False
    add_cross_attention: bool = False
    chunk_size_feed_forward: int = 0
    num_labels: int = 2


@dataclass(frozen=True)
class BertTokenizer:
    """What `TextTokenizer` reads of transformers' tokenizer of that name."""

    backend_tokenizer: Tokenizer
    model_max_length: int
    pad_token_id: int | None
    unk_token_id: int | None
    mask_token_id: int | None
    bos_token_id: None = None
    eos_token_id: None = None
    model_input_names: tuple[str, ...] = ("input_ids", "token_type_ids", "attention_mask")


NO_LENGTH = int(1e30)  # of a tokenizer that does not say
TOKENS = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
}  # fmt: skip
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
_WORDY = 100_000  # tokens, above which transformers looks for a fault of Mistral's

_OTHER_KEYS: dict[str, tuple[type, ...]] = {  # of config.json: what changes nothing here, by the types that it may have
    **dict.fromkeys(("gradient_checkpointing", "output_past", "tie_word_embeddings", "use_cache"), (bool,)),
    **dict.fromkeys(("attention_probs_dropout_prob", "hidden_dropout_prob"), (float, int)),
    **dict.fromkeys(("bos_token_id", "eos_token_id"), (int, NoneType)),
    **dict.fromkeys(("_name_or_path", "directionality", "language", "name", "pooler_type"), (str,)),
    **dict.fromkeys(("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"), (int,)),
    "classifier_dropout": (float, int, NoneType),
    "pooler_size_per_head": (int,),
    "sbert_ce_default_activation_function": (str,),
    "sentence_transformers": (dict,),
    "transformers_version": (str,),
}
_OTHER_VALUES: dict[str, tuple[Any, ...]] = {  # or the values
    **dict.fromkeys(("dtype", "torch_dtype"), ("float32", "float16", "bfloat16", None)),
    "position_embedding_type": ("absolute",),
    "problem_type": (None,),
}

_SETTINGS: dict[str, tuple[Any, ...]] = {  # of tokenizer_config.json: the values that are known
    **{name: (token,) for name, token in TOKENS.items()},
    **dict.fromkeys(("clean_up_tokenization_spaces", "do_lower_case", "tokenize_chinese_chars"), (True, False)),
    **dict.fromkeys(("padding_side", "truncation_side"), ("right", "left")),
    "additional_special_tokens": ([],),
    "backend": ("tokenizers",),
    "do_basic_tokenize": (True,),
    "extra_special_tokens": ([], {}),
    "never_split": (None,),
    "strip_accents": (None, True, False),
    "tokenizer_class": (None, "BertTokenizer", "BertTokenizerFast"),
}
_OTHER_SETTINGS = frozenset(
    (
        "added_tokens_decoder", "is_local", "local_files_only", "max_length", "model_max_length", "name_or_path",
        "pad_to_multiple_of", "pad_token_type_id", "special_tokens_map_file", "stride", "truncation_strategy",
    )
)  # fmt: skip
_OTHER_FILES = ("added_tokens.json", "additional_chat_templates", "chat_template.jinja")


def read_config(checkpoint: Checkpoint) -> BertConfig | None:
    """The config of a BERT that Tamis computes itself; None where transformers has to read it."""
    from tamis.engine.bert import computes

    said, usual = checkpoint.config, asdict(BertConfig())
    if said.get("model_type") != "bert" or not all(_is_known(key, value, usual) for key, value in said.items()):
        return None
    config = BertConfig(**{key: value for key, value in said.items() if key in usual})
    labels = config.num_labels if said.get("id2label") is None else len(said["id2label"])
    if labels < 1 or said.get("num_labels", labels) != labels:
        return None
    config.num_labels = labels
    return config if computes(config, checkpoint.body) else None


def _is_known(key: str, value: Any, usual: Mapping[str, Any]) -> bool:
    if key in usual:
        return type(value) is type(usual[key])
    if key in _OTHER_VALUES:
        return value in _OTHER_VALUES[key]
    if key == "id2label":
        return value is None or (_is_mapping(value, str) and set(value) == set(map(str, range(len(value)))))
    if key == "label2id":
        return value is None or _is_mapping(value, int)
    if key == "architectures":
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    return type(value) in _OTHER_KEYS.get(key, ())


def _is_mapping(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(type(one) is kind for one in value.values())


def read_tokenizer(checkpoint: Checkpoint) -> BertTokenizer | None:
    """The tokenizer of a BERT whose config `read_config` reads; None where transformers has to read it."""
    try:
        return _standard(checkpoint) if read_config(checkpoint) is not None else None
    except Exception:  # noqa: BLE001 - whatever is wrong with its files, transformers says
        return None


def _standard(checkpoint: Checkpoint) -> BertTokenizer | None:
    from tokenizers import Tokenizer

    folder = checkpoint.body
    said = read_json(folder / "tokenizer_config.json")
    names = read_json(folder / "special_tokens_map.json")
    length = NO_LENGTH if said.get("model_max_length") is None else said["model_max_length"]
    known = (
        all(value in _SETTINGS[key] if key in _SETTINGS else key in _OTHER_SETTINGS for key, value in said.items())
        and "do_lower_case" in said  # transformers' default has changed
        and (names is None or all(value in _spellings(TOKENS[key]) for key, value in names.items()))
        and type(length) is int
        and not any((folder / name).exists() for name in _OTHER_FILES)
    )
    core = Tokenizer.from_file(str(folder / "tokenizer.json")) if known else None
    if core is None or not _is_standard(core, said):
        return None
    pad, unk, mask = (core.token_to_id(TOKENS[name]) for name in ("pad_token", "unk_token", "mask_token"))
    return BertTokenizer(core, length, pad, unk, mask)


def _spellings(token: str) -> tuple[Any, ...]:
    return token, {"content": token, **_PLAIN}


def _is_standard(core: Tokenizer, said: Mapping[str, Any]) -> bool:
    """Whether it is what transformers builds from its vocabulary and the settings in `tokenizer_config.json`."""
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    model = core.model
    if not isinstance(model, models.WordPiece) or core.get_vocab_size() > _WORDY:
        return False
    added = {str(i): token.__getstate__() for i, token in core.get_added_tokens_decoder().items()}
    flags = {**_PLAIN, "special": True}
    special = {str(model.token_to_id(token)): {"content": token, **flags} for token in TOKENS.values()}
    pipeline = {
        "normalizer": normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=said.get("tokenize_chinese_chars", True),
            strip_accents=said.get("strip_accents"),
            lowercase=said["do_lower_case"],
        ),
        "pre_tokenizer": pre_tokenizers.BertPreTokenizer(),
        "post_processor": processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[(token, model.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
        ),
        "decoder": decoders.WordPiece(prefix="##"),
    }
    return (
        added == special == said.get("added_tokens_decoder", added)
        and (model.unk_token, model.continuing_subword_prefix, model.max_input_chars_per_word) == ("[UNK]", "##", 100)
        and all(getattr(core, name).__getstate__() == part.__getstate__() for name, part in pipeline.items())
    )
