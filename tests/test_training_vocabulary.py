"""A smaller vocabulary: what stays reads as before, and the rest falls apart into pieces that are known."""

import json
import shutil
import string
from collections import Counter

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tiny
from tamis.errors import InvalidInput
from tamis.training.vocabulary import kept_pieces, trim

SERVED = tiny.TEXT[0]
SIZE = 260


@pytest.fixture(scope="module")
def trimmed(tmp_path_factory):
    """Folder, model and tokenizer after the cut, and model and tokenizer from before."""
    folder = tiny.save_classifier(tmp_path_factory.mktemp("bert"), "bert")
    made = tmp_path_factory.mktemp("trimmed")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, made / name)
    before = AutoModelForSequenceClassification.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    trim(model, made / "tokenizer.json", [SERVED] * 3, SIZE)
    model.save_pretrained(made)
    return (
        made,
        AutoModelForSequenceClassification.from_pretrained(made),
        AutoTokenizer.from_pretrained(made),
        before,
        AutoTokenizer.from_pretrained(folder),
    )


def pieces(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_what_stays_is_read_as_before(trimmed):
    _, model, tokenizer, _, old = trimmed
    assert len(tokenizer) == model.config.vocab_size == SIZE
    assert pieces(tokenizer, SERVED) == pieces(old, SERVED)
    kept = set(tokenizer.get_vocab())
    for word in " ".join(tiny.TEXT).lower().split():
        was = pieces(old, word)
        if kept.issuperset(was):
            assert pieces(tokenizer, word) == was


def test_logits_of_a_text_that_stays_do_not_change(trimmed):
    _, model, tokenizer, before, old = trimmed
    with torch.no_grad():
        now = model(**tokenizer(SERVED, SERVED, return_tensors="pt")).logits
        was = before(**old(SERVED, SERVED, return_tensors="pt")).logits
    torch.testing.assert_close(now, was, rtol=1e-6, atol=1e-6)


def test_what_is_cut_falls_apart_into_known_pieces(trimmed):
    _, _, tokenizer, _, old = trimmed
    cut = [p for p in old.get_vocab() if p not in tokenizer.get_vocab() and p.isascii() and not p.startswith("##")]
    assert cut
    for word in cut:
        found = pieces(tokenizer, word)
        assert "[UNK]" not in found
        assert "".join(piece.removeprefix("##") for piece in found) == word


def test_ascii_text_has_no_more_unknown_pieces_than_before(trimmed):
    _, _, tokenizer, _, old = trimmed
    generator = np.random.default_rng(0)
    letters = np.array([*string.ascii_letters, *string.digits, *string.punctuation, " ", " "])
    for _ in range(200):
        text = "".join(generator.choice(letters, 40))
        assert pieces(tokenizer, text).count("[UNK]") <= pieces(old, text).count("[UNK]")


def test_special_tokens_and_ids_are_renumbered_together(trimmed):
    folder, model, tokenizer, _, old = trimmed
    for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"):
        assert tokenizer.convert_ids_to_tokens(tokenizer.convert_tokens_to_ids(name)) == name
    pair = tokenizer(SERVED, "a zip")
    named = tokenizer.convert_ids_to_tokens(pair["input_ids"])
    assert named == old.convert_ids_to_tokens(old(SERVED, "a zip")["input_ids"])
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode(SERVED, "a zip").ids == pair["input_ids"]
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_which_pieces_are_kept():
    """Special ones and ASCII characters first, then what is seen three times or more, then the beginning."""
    vocabulary = {p: i for i, p in enumerate(["[PAD]", "[unused0]", "the", "a", "##a", "of", "rare", "é", "often"])}
    counts = Counter({vocabulary["often"]: 3, vocabulary["rare"]: 2})
    assert kept_pieces(vocabulary, counts, ["[PAD]"], 4) == ["[PAD]", "a", "##a", "often"]
    assert kept_pieces(vocabulary, counts, ["[PAD]"], 5) == ["[PAD]", "the", "a", "##a", "often"]
    assert kept_pieces(vocabulary, counts, ["[PAD]"], 99) == ["[PAD]", "the", "a", "##a", "of", "rare", "often"]


@pytest.mark.parametrize("processor", ["BertProcessing", "Sequence"])
def test_other_forms_of_the_template(tmp_path, classifier, processor):
    """Ids stand in the file in several places; special tokens that come late get other ones."""
    content = json.loads((classifier("bert") / "tokenizer.json").read_text())
    words = [*content["model"]["vocab"]]
    words = [*words[5:100], *words[:5], *words[100:]]
    ids = content["model"]["vocab"] = {word: i for i, word in enumerate(words)}
    for token in content["added_tokens"]:
        token["id"] = ids[token["content"]]
    bert = {"type": "BertProcessing", "sep": ["[SEP]", ids["[SEP]"]], "cls": ["[CLS]", ids["[CLS]"]]}
    content["post_processor"] = bert if processor == "BertProcessing" else {"type": "Sequence", "processors": [bert]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    added = {str(token["id"]): {"content": token["content"], "special": True} for token in content["added_tokens"]}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": added, "pad_token": "[PAD]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    model = AutoModelForSequenceClassification.from_pretrained(classifier("bert"))
    model.config.pad_token_id = ids["[PAD]"]
    trim(model, tmp_path / "tokenizer.json", [SERVED] * 3, SIZE)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a zip")["input_ids"])[0] == "[CLS]"
    assert len(tokenizer) == SIZE
    assert model.config.pad_token_id == tokenizer.pad_token_id != ids["[PAD]"]


def test_what_cannot_be_cut(tmp_path, classifier):
    model = AutoModelForSequenceClassification.from_pretrained(classifier("bert"))
    with pytest.raises(InvalidInput, match=r"no tokenizer\.json"):
        trim(model, tmp_path / "tokenizer.json", [], SIZE)
    shutil.copyfile(classifier("roberta") / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(InvalidInput, match="is a BPE"):
        trim(model, tmp_path / "tokenizer.json", [], SIZE)
    shutil.copyfile(classifier("bert") / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(InvalidInput, match="pass a number from 205 to 392"):
        trim(model, tmp_path / "tokenizer.json", [], 100)
