"""Config and tokenizer of a BERT read without transformers: what transformers makes of the same files, or nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import tamis
import tiny
from tamis import bert_files, transformer
from tamis.checkpoint import Checkpoint
from tamis.options import LoadOptions
from tamis.tokenizing import TextTokenizer

TEXTS = [
    *tiny.TEXT,
    "", " \t\n", "a", "ZIP Zip zip", "Käse naïve Ångström e\u0301", "日本語 and 中文字", "한국어", "x" * 101,
    "[CLS] a [SEP] [MASK]", "tabs\tand\x00nulls\ufffd", "\u200bzero\u00a0width", "emoji \U0001f600 \ud83d",
    "don't, co-operate; 3.14", "##ing ing",
]  # fmt: skip


def stock(folder):
    """transformers' own config and tokenizer."""
    return (
        transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False),
        transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
    )


def same_config(ours, theirs):
    for field in fields(bert_files.BertConfig):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        assert (mine, type(mine)) == (other, type(other)), field.name
    for absent in ("layer_types", "pooling", "is_causal"):  # what is asked of any config
        assert getattr(ours, absent, None) is None
        assert getattr(theirs, absent, None) is None


def same_tokenizer(ours, theirs, texts=TEXTS):
    assert ours.model_max_length == theirs.model_max_length
    ours, theirs = TextTokenizer(ours), TextTokenizer(theirs)
    assert json.loads(ours._backend.to_str()) == json.loads(theirs._backend.to_str())
    for name in ("_typed", "pad_id", "bos_id", "eos_id", "unk_id", "mask_id", "nothing", "chat", "chat_template"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert set(ours._special.pattern.split("|")) == set(theirs._special.pattern.split("|"))
    same_encodings(ours, theirs, texts)


def same_encodings(ours, theirs, texts):
    for mine, other in zip(ours.encode(texts), theirs.encode(texts), strict=True):
        np.testing.assert_array_equal(mine, other)
    for count in (1, 2):
        mine, other = (tokenizer.template(count).fill(*ours.encode(texts[:count])) for tokenizer in (ours, theirs))
        np.testing.assert_array_equal(mine.ids, other.ids)
        np.testing.assert_array_equal(mine.type_ids, other.type_ids)
    for text in texts:
        np.testing.assert_array_equal(ours.offsets(text), theirs.offsets(text))
        assert ours.plain(text) == theirs.plain(text)
        assert ours.decode(ours.encode([text])[0].tolist()) == theirs.decode(theirs.encode([text])[0].tolist())


def change(file, **changes):
    """Keys of a JSON file set, or taken out where they are `...`."""
    found = {**json.loads(file.read_text()), **changes} if file.is_file() else changes
    file.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))


def changed_tokenizer(folder, **changes):
    change(folder / "tokenizer.json", **changes)


def changed_model(folder, **changes):
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    state["model"] |= changes
    file.write_text(json.dumps(state))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    return tiny.bert_tokenizer(tiny.save_classifier(tmp_path_factory.mktemp("bert"), "bert"))


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "bert")


def flags(token, **changes):
    plain = {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {**plain, **changes}


ADDED = {str(i): flags(token, special=True) for i, token in enumerate(bert_files.TOKENS.values())}
LABELS = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}


@pytest.mark.parametrize("checkpoint", [Checkpoint.shipped(), Checkpoint.embedded()], ids=lambda c: c.name)
def test_the_models_that_come_with_tamis(checkpoint):
    config, tokenizer = stock(checkpoint.body)
    same_config(bert_files.read_config(checkpoint), config)
    same_tokenizer(bert_files.read_tokenizer(checkpoint), tokenizer)


CONFIGS = {
    "as it is saved": {},
    "two labels": LABELS,
    "labels by their number": {"id2label": ..., "label2id": ..., "num_labels": 1},
    "labels by neither": {"id2label": ..., "label2id": ...},
    "labels by both": {**LABELS, "num_labels": 2},
    "defaults": {"layer_norm_eps": ..., "hidden_act": ..., "type_vocab_size": ..., "pad_token_id": ...},
    "another activation": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "max_position_embeddings": 77},
    "of other years": {
        "gradient_checkpointing": False, "torch_dtype": "float16", "dtype": ..., "directionality": "bidi",
        "pooler_type": "first_token_transform", "pooler_fc_size": 768, "position_embedding_type": "absolute",
        "transformers_version": "4.8.2", "_name_or_path": "somebody/bert", "language": "english", "name": "Bert",
    },
    "of sentence-transformers": {
        "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0.0"},
        "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_a_config_is_read_as_transformers_reads_it(folder, changes):
    change(folder / "config.json", **changes)
    ours = bert_files.read_config(Checkpoint.find(folder))
    same_config(ours, transformers.AutoConfig.from_pretrained(folder))
    assert bert_files.read_tokenizer(Checkpoint.find(folder)) is not None


TOKENIZERS = {
    "cased": {"do_lower_case": False},
    "accents kept": {"strip_accents": False},
    "accents stripped, cased": {"do_lower_case": False, "strip_accents": True},
    "characters of Chinese": {"tokenize_chinese_chars": False},
    "another length": {"model_max_length": 77},
    "no length": {"model_max_length": None},
}


@pytest.mark.parametrize("settings", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_tokenizer_is_read_as_transformers_reads_it(folder, settings):
    tiny.bert_tokenizer(folder, **settings)
    same_tokenizer(bert_files.read_tokenizer(Checkpoint.find(folder)), stock(folder)[1])


SAID = {
    "the other class": {"tokenizer_class": "BertTokenizerFast"},
    "no class": {"tokenizer_class": ...},
    "no names of tokens": dict.fromkeys(bert_files.TOKENS, ...),
    "added tokens": {"added_tokens_decoder": ADDED, "clean_up_tokenization_spaces": True, "extra_special_tokens": {}},
    "of other years": {
        "do_basic_tokenize": True, "never_split": None, "name_or_path": "somebody/bert", "stride": 0,
        "additional_special_tokens": [], "special_tokens_map_file": "/there/special_tokens_map.json",
        "truncation_strategy": "longest_first", "max_length": 128, "pad_token_type_id": 0, "pad_to_multiple_of": None,
        "padding_side": "left",
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", SAID.values(), ids=SAID)
def test_settings_in_the_words_of_other_years(folder, changes):
    change(folder / "tokenizer_config.json", **changes)
    same_tokenizer(bert_files.read_tokenizer(Checkpoint.find(folder)), stock(folder)[1])


@pytest.mark.parametrize("spelled", [str, flags], ids=["names", "flags"])
def test_a_map_of_special_tokens(folder, spelled):
    change(folder / "special_tokens_map.json", **{k: spelled(v) for k, v in bert_files.TOKENS.items()})
    same_tokenizer(bert_files.read_tokenizer(Checkpoint.find(folder)), stock(folder)[1])


def test_truncation_and_padding_in_the_file_are_not_ours(folder):
    truncation = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[PAD]",
    }  # fmt: skip
    changed_tokenizer(folder, truncation=truncation, padding=padding)
    same_tokenizer(bert_files.read_tokenizer(Checkpoint.find(folder)), stock(folder)[1])


DECLINED_CONFIGS = {
    "another architecture": {"model_type": "electra"},
    "code of its own": {"auto_map": {"AutoModel": "modeling.Bert"}},
    "an activation that is not computed": {"hidden_act": "silu"},
    "a decoder": {"is_decoder": True},
    "ALiBi": {"position_embedding_type": "alibi"},
    "a key that nobody knows": {"layer_types": ["full_attention"]},
    "another tokenizer": {"tokenizer_class": "XLMRobertaTokenizer"},
    "a number as text": {"hidden_size": "64"},
    "no padding": {"pad_token_id": None},
    "no labels": {"id2label": {}, "label2id": {}},
    "labels that are not as many": {**LABELS, "num_labels": 5},
    "labels without numbers": {"id2label": {"a": "no"}, "label2id": {"no": 0}},
    "the number of labels left open": {"id2label": ..., "label2id": ..., "num_labels": None},
    "a type that torch has not": {"dtype": "float7"},
    "architectures that are none": {"architectures": [3]},
}


@pytest.mark.parametrize("changes", DECLINED_CONFIGS.values(), ids=DECLINED_CONFIGS)
def test_what_is_unusual_in_a_config_is_left_to_transformers(folder, changes):
    change(folder / "config.json", **changes)
    checkpoint = Checkpoint.find(folder)
    assert bert_files.read_config(checkpoint) is None
    assert bert_files.read_tokenizer(checkpoint) is None


def test_weights_in_several_files_are_left_to_transformers(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert bert_files.read_config(Checkpoint.find(folder)) is None


ODD_NORMALIZER = {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}
NEW_TOKEN = {"id": 9, "special": False, **flags("zip")}
DECLINED = {
    "no settings": lambda f: (f / "tokenizer_config.json").unlink(),
    "case left open": lambda f: change(f / "tokenizer_config.json", do_lower_case=...),
    "another case than the pipeline's": lambda f: change(f / "tokenizer_config.json", do_lower_case=False),
    "other accents": lambda f: change(f / "tokenizer_config.json", strip_accents=True),
    "another class": lambda f: change(f / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast"),
    "another name": lambda f: change(f / "tokenizer_config.json", cls_token="[SEP]"),
    "a name more": lambda f: change(f / "tokenizer_config.json", bos_token="[CLS]"),
    "a token more": lambda f: change(f / "tokenizer_config.json", extra_special_tokens=["zip"]),
    "a template": lambda f: change(f / "tokenizer_config.json", chat_template="{{ messages }}"),
    "its template in a file": lambda f: (f / "chat_template.jinja").write_text("{{ messages }}"),
    "a key that nobody knows": lambda f: change(f / "tokenizer_config.json", split_special_tokens=True),
    "other inputs": lambda f: change(f / "tokenizer_config.json", model_input_names=["input_ids"]),
    "a length that is no number": lambda f: change(f / "tokenizer_config.json", model_max_length=77.5),
    "added tokens that differ": lambda f: change(
        f / "tokenizer_config.json", added_tokens_decoder={**ADDED, "0": flags("[PAD]", special=True, lstrip=True)}
    ),
    "a map that differs": lambda f: change(f / "special_tokens_map.json", mask_token="[UNK]"),
    "a map with more": lambda f: change(f / "special_tokens_map.json", eos_token="[SEP]"),
    "tokens added later": lambda f: change(f / "added_tokens.json", other=400),
    "a pipeline with an added token": lambda f: changed_tokenizer(
        f, added_tokens=[*({"id": int(i), **token} for i, token in ADDED.items()), NEW_TOKEN]
    ),
    "a pipeline without a special token": lambda f: changed_tokenizer(
        f, added_tokens=[{"id": int(i), **token} for i, token in list(ADDED.items())[:4]]
    ),
    "another normalizer": lambda f: changed_tokenizer(f, normalizer=ODD_NORMALIZER),
    "no normalizer": lambda f: changed_tokenizer(f, normalizer=None),
    "another pre-tokenizer": lambda f: changed_tokenizer(f, pre_tokenizer={"type": "Whitespace"}),
    "another post-processor": lambda f: changed_tokenizer(
        f, post_processor={"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    ),
    "no decoder": lambda f: changed_tokenizer(f, decoder=None),
    "shorter words": lambda f: changed_model(f, max_input_chars_per_word=50),
    "another prefix": lambda f: changed_model(f, continuing_subword_prefix="@@"),
    "no pipeline": lambda f: (f / "tokenizer.json").unlink(),
    "half a pipeline": lambda f: (f / "tokenizer.json").write_text((f / "tokenizer.json").read_text()[:500]),
    "half of the settings": lambda f: (f / "tokenizer_config.json").write_text('{"do_lower_case": '),
    "settings that are none": lambda f: (f / "tokenizer_config.json").write_text("[]"),
    "a map that is none": lambda f: (f / "special_tokens_map.json").write_text("[]"),
}


@pytest.mark.parametrize("spoil", DECLINED.values(), ids=DECLINED)
def test_what_is_unusual_in_a_tokenizer_is_left_to_transformers(folder, spoil):
    spoil(folder)
    checkpoint = Checkpoint.find(folder)
    assert bert_files.read_tokenizer(checkpoint) is None
    try:
        theirs = stock(folder)[1]
    except Exception:  # noqa: BLE001 - of any kind
        with pytest.raises(tamis.CorruptCheckpoint, match="tokenizer files of"):
            transformer.load_tokenizer(checkpoint, LoadOptions())
        return
    ours, length = transformer.load_tokenizer(checkpoint, LoadOptions())
    assert length == int(theirs.model_max_length)
    assert ours._backend.to_str() == TextTokenizer(theirs)._backend.to_str()


def test_who_needs_a_config_of_transformers_gets_one(folder):
    """Training saves it, and transformers' classes take no other."""
    checkpoint = Checkpoint.find(folder)
    assert type(transformer.read_config(checkpoint, LoadOptions())) is transformers.BertConfig
    assert type(transformer.read_config(checkpoint, LoadOptions(), own=True)) is bert_files.BertConfig


def test_fewer_layers(folder):
    checkpoint, options = Checkpoint.find(folder), LoadOptions(num_layers=2)
    same_config(transformer.read_config(checkpoint, options, own=True), transformer.read_config(checkpoint, options))
    with pytest.raises(tamis.InvalidInput, match="has 3 layers"):
        transformer.read_config(checkpoint, LoadOptions(num_layers=4), own=True)


def test_scores_are_those_of_a_load_by_transformers(folder):
    with tamis.load(folder, dtype="float32") as reranker:
        light = reranker.logits("zip archive", tiny.TEXT)
    change(folder / "config.json", a_key_that_nobody_knows=1)
    change(folder / "tokenizer_config.json", a_key_that_nobody_knows=1)
    with tamis.load(folder, dtype="float32") as reranker:
        assert reranker.logits("zip archive", tiny.TEXT) == light


VALUES = st.sampled_from([None, True, False, 0, 1, 2, 64, -1, 0.5, "gelu", "float32", "x", [], ["x"], {}, {"0": "a"}])
KEYS = st.sampled_from(
    [
        *(field.name for field in fields(bert_files.BertConfig) if field.name != "model_type"),
        "architectures", "attention_probs_dropout_prob", "bos_token_id", "classifier_dropout", "dtype", "eos_token_id",
        "gradient_checkpointing", "hidden_dropout_prob", "id2label", "is_encoder_decoder", "label2id", "language",
        "name", "name_or_path", "output_attentions", "output_past", "pooler_fc_size", "position_embedding_type",
        "problem_type", "return_dict", "rope_scaling", "sentence_transformers", "tie_word_embeddings", "torch_dtype",
        "transformers_version", "use_cache",
    ]
)  # fmt: skip


@settings(max_examples=150)
@given(st.dictionaries(KEYS, VALUES, max_size=3))
def test_any_config_is_read_alike_or_not_at_all(made, tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("any")
    shutil.copyfile(made / "config.json", folder / "config.json")
    (folder / "model.safetensors").touch()
    change(folder / "config.json", **changes)
    ours = bert_files.read_config(Checkpoint.find(folder))
    if ours is not None:
        same_config(ours, transformers.AutoConfig.from_pretrained(folder))


SETTINGS = st.sampled_from(
    [
        "do_lower_case", "strip_accents", "tokenize_chinese_chars", "model_max_length", "max_len", "tokenizer_class",
        "backend", "never_split", "do_basic_tokenize", "clean_up_tokenization_spaces", "padding_side", "stride",
        "extra_special_tokens", "additional_special_tokens", "added_tokens_decoder", "pad_token", "max_length",
        "pad_to_multiple_of", "pad_token_type_id", "truncation_strategy", "name_or_path", "is_local",
    ]
)  # fmt: skip
TOKEN_VALUES = VALUES | st.sampled_from(["BertTokenizer", "[PAD]", "[MASK]", "left", ADDED])


@settings(max_examples=150)
@given(st.dictionaries(SETTINGS, TOKEN_VALUES, max_size=3))
def test_any_settings_are_read_alike_or_not_at_all(made, tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("any")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(made / name, folder / name)
    (folder / "model.safetensors").touch()
    change(folder / "tokenizer_config.json", **changes)
    ours = bert_files.read_tokenizer(Checkpoint.find(folder))
    if ours is not None:
        same_tokenizer(ours, stock(folder)[1], TEXTS[:4])


@pytest.fixture(scope="session")
def pairs(made):
    """Both readings of one tokenizer, with and without case."""
    cased = tiny.bert_tokenizer(shutil.copytree(made, made.with_name("cased")), do_lower_case=False)
    return [
        tuple(map(TextTokenizer, (bert_files.read_tokenizer(Checkpoint.find(folder)), stock(folder)[1])))
        for folder in (made, cased)
    ]


@given(st.lists(st.text(), min_size=2, max_size=4))
def test_any_texts_become_the_same_tokens(pairs, texts):
    for ours, theirs in pairs:
        same_encodings(ours, theirs, texts)
