"""Decoders with a head: bidirectional or causal, three poolings, temperature, first layers only, NVIDIA's template."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tamis
import tiny
import tiny_lm

QUERY = "how is a zip archive read?"
PASSAGES = [tiny.text(words, seed) for seed, words in enumerate([1, 3, 8, 21, 55, 110, 21, 21, 200])] + ["", "   "]


def stock_logits(folder, texts, pairs=None):
    """Transformers' own class, one text at a time: no padding to get wrong."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    out = []
    for i, text in enumerate(texts):
        inputs = tokenizer(text, None if pairs is None else pairs[i], return_tensors="pt")
        with torch.inference_mode():
            out.append(float(model(**inputs).logits[0, 0]))
    return np.array(out)


@pytest.mark.parametrize("name", [name for name in tiny_lm.DECODERS if name not in ("granite", "olmo2")])
def test_pairs_through_every_decoder(tmp_path, name):
    folder = tiny_lm.save(tmp_path, name, "ForSequenceClassification", bos=True)
    passages = [p for p in PASSAGES if p.strip()]
    expected = stock_logits(folder, [QUERY] * len(passages), passages)
    with tamis.load(folder, dtype="float32") as reranker:
        given = reranker.logits(QUERY, passages)
        alone = [reranker.logits(QUERY, [passage])[0] for passage in passages]
        assert reranker.mode == "cross-encoder"
        assert reranker.stats()["packed"]
    assert expected.std() > 0.1
    np.testing.assert_allclose(given, expected, atol=1e-4)
    np.testing.assert_allclose(given, alone, atol=1e-5)


# -- NVIDIA's bidirectional Llama -------------------------------------------------------------------------------------


def nemotron(folder, **config):
    """A folder as the published ones are: model type llama_bidirec, code of its own, weights named as Llama's."""
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 72}  # pruned
    tiny_lm.save(folder, "llama", "ForSequenceClassification", bos=True, template=None, **sizes)
    name = "LlamaBidirectionalForSequenceClassification"
    tiny_lm.edit(
        folder / "config.json",
        model_type="llama_bidirec",
        architectures=[name],
        auto_map={"AutoModelForSequenceClassification": f"llama_bidirectional_model.{name}"},
        **config,
    )
    return folder


def by_formula(folder, texts, *, pooling="avg", temperature=1.0, causal=False, layers=None):
    """Written from the published description: no mask at all (or a causal one), pool, one linear layer, divide."""
    config = json.loads((folder / "config.json").read_text())
    kept = {k: v for k, v in config.items() if k not in ("model_type", "architectures", "auto_map", "pooling")}
    config = transformers.LlamaConfig(**{**kept, "num_hidden_layers": layers or kept["num_hidden_layers"]})
    model = transformers.LlamaForSequenceClassification.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    out = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert ids[0, 0] == tokenizer.bos_token_id
        n = ids.shape[1]
        mask = torch.zeros(1, 1, n, n)
        if causal:
            mask = mask.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
        with torch.inference_mode():
            hidden = model.model(ids, attention_mask=mask, use_cache=False)[0][0]
            pooled = {"avg": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling]
            out.append(float(model.score(pooled)[0] / temperature))
    return np.array(out)


def test_nvidias_template_to_the_character():
    from tamis.families.wordings import NVIDIA

    assert NVIDIA.render("Q", "P") == "question:Q \n \n passage:P"


@pytest.mark.parametrize("pooling", ["avg", "cls", "last"])
@pytest.mark.parametrize("attention", ["auto", "padded"])
def test_bidirectional_llama(tmp_path, pooling, attention):
    folder = nemotron(tmp_path, pooling=pooling, temperature=2.5)
    texts = [f"question:{QUERY} \n \n passage:{passage}" for passage in PASSAGES]
    expected = by_formula(folder, texts, pooling=pooling, temperature=2.5)
    with tamis.load(folder, dtype="float32", attention=attention) as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), expected, atol=1e-4)
        assert reranker.stats()["packed"] == (attention == "auto")
        assert reranker.stats()["prefix_tokens_reused"] == 0  # each token sees the passage
        np.testing.assert_allclose(reranker.score(QUERY, PASSAGES), 1 / (1 + np.exp(-expected)), atol=1e-4)
    assert expected.std() > 0.05
    if pooling == "avg":
        assert np.abs(expected - by_formula(folder, texts, causal=True, temperature=2.5)).max() > 0.01


def test_defaults_and_a_causal_config(tmp_path):
    texts = [f"question:{QUERY} \n \n passage:{passage}" for passage in PASSAGES]
    with tamis.load(nemotron(tmp_path / "plain"), dtype="float32") as reranker:  # mean pooling, temperature 1
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), by_formula(tmp_path / "plain", texts), atol=1e-4)
    folder = nemotron(tmp_path / "causal", is_causal=True, pooling="last")
    with tamis.load(folder, dtype="float32") as reranker:
        expected = by_formula(folder, texts, causal=True, pooling="last")
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), expected, atol=1e-4)
        assert reranker.stats()["prefix_tokens_reused"] > 0


def test_the_first_layers_of_a_mistral(tmp_path):
    """Rerank QA Mistral-4B's shape: a few layers of a deeper Mistral, causal, last token, one logit."""
    folder = tiny_lm.save(tmp_path, "mistral", "ForSequenceClassification", bos=True, num_hidden_layers=6)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = 2
    model = AutoModelForSequenceClassification.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    expected = []
    for passage in PASSAGES:
        ids = tokenizer(f"question:{QUERY} \n \n passage:{passage}", return_tensors="pt").input_ids
        with torch.inference_mode():
            expected.append(float(model.score(model.model(ids)[0][0, -1])))
    with tamis.load(folder, family="rerank-qa-mistral", num_layers=2, dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), expected, atol=1e-4)
        assert reranker.stats()["prefix_tokens_reused"] > 0
    with tamis.load(folder, family="rerank-qa-mistral", num_layers=2, dtype="bfloat16") as low:
        given = low.logits(QUERY, PASSAGES)
    np.testing.assert_allclose(given, expected, atol=0.02 * np.ptp(expected) + 0.02 * np.abs(expected).max())


def test_eight_thousand_tokens(tmp_path):
    folder = nemotron(tmp_path)
    long = tiny.text(2400, 3)
    with tamis.load(folder, dtype="float32") as reranker:
        hit = reranker.rank(QUERY, [long])[0]
        tokens = reranker.rank(QUERY, [long]).usage.tokens
    assert not hit.truncated
    assert 5000 < tokens <= 8192
    assert hit.logit == pytest.approx(by_formula(folder, [f"question:{QUERY} \n \n passage:{long}"])[0], abs=1e-4)


def test_what_is_too_long_is_cut_at_the_passages_end(tmp_path):
    folder = nemotron(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    long = tiny.text(400, 5)
    cut = tokenizer.decode(tokenizer(f"question:{QUERY} \n \n passage:{long}").input_ids[1:128])
    with tamis.load(folder, dtype="float32", max_length=128) as reranker:
        hit = reranker.rank(QUERY, [long])[0]
    assert hit.truncated
    assert hit.logit == pytest.approx(by_formula(folder, [cut])[0], abs=1e-4)


def test_windows_of_a_long_passage(tmp_path):
    folder = nemotron(tmp_path)
    long = tiny.text(400, 6)
    with (
        tamis.load(folder, dtype="float32", max_length=96) as plain,
        tamis.load(folder, dtype="float32", max_length=96, long_documents="max_window") as reranker,
        tamis.load(folder, dtype="float32", max_length=96, long_documents="error") as strict,
    ):
        ranking = reranker.rank(QUERY, ["short", long])
        hit = next(hit for hit in ranking if hit.index == 1)
        start, stop = hit.window
        assert not hit.truncated
        assert 0 <= start < stop <= len(long)
        assert plain.logits(QUERY, [long[start:stop]])[0] == pytest.approx(hit.logit, abs=1e-4)
        assert hit.logit > plain.logits(QUERY, [long])[0] - 1e-4
        assert next(hit for hit in ranking if hit.index == 0).window is None
        with pytest.raises(tamis.InputTooLong, match="Passage 1 "):
            strict.rank(QUERY, ["short", long])


@pytest.mark.parametrize("labels", [None, {0: "0", 1: "1"}, {0: "1", 1: "0"}], ids=str)
def test_mxbai_turned_into_a_classifier(tmp_path, labels):
    """Its head is the vocabulary's rows of 0 and 1, its prompt mxbai-rerank-v2's."""
    labels_of = {} if labels is None else {"id2label": labels}
    folder = tiny_lm.save(tmp_path, "qwen2", "ForSequenceClassification", template=None, num_labels=2, **labels_of)
    prompt = {instruction: mxbai(instruction) for instruction in (None, "be strict")}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    passages = [p for p in PASSAGES if p.strip()]
    for instruction, pieces in prompt.items():
        expected = []
        for passage in passages:
            texts = [piece.replace("{q}", QUERY).replace("{d}", passage) for piece in pieces]
            ids = [i for text in texts for i in tokenizer(text, add_special_tokens=False).input_ids]
            with torch.inference_mode():
                zero, one = model(torch.tensor([ids])).logits[0].tolist()
            expected.append(zero - one if labels == {0: "1", 1: "0"} else one - zero)
        with tamis.load(folder, family="mxbai-rerank-v2-seq-cls", dtype="float32", instruction=instruction) as reranker:
            np.testing.assert_allclose(reranker.logits(QUERY, passages), expected, atol=1e-4)
        assert np.std(expected) > 0.05


def mxbai(instruction):
    """Of models.md, cut where the published package does."""
    asked = f"instruction: {instruction}\n" if instruction else ""
    return (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n",
        asked + "query: {q}",
        "\n",
        "document: {d}",
        "\n",
        "You are a search relevance expert who evaluates how well documents match search queries. For each "
        "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
        "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
        "<|im_end|>\n<|im_start|>assistant\n",
    )


def test_clear_errors(tmp_path, classifier):
    with pytest.raises(tamis.UnknownFamily, match="pools by 'weighted'"):
        tamis.load(nemotron(tmp_path / "a", pooling="weighted"))
    with pytest.raises(tamis.CorruptCheckpoint, match="temperature"):
        tamis.load(nemotron(tmp_path / "b", temperature=0.0))
    with pytest.raises(tamis.UnknownFamily, match="decoders"):
        tamis.load(classifier("bert"), family="rerank-qa-mistral")
    with pytest.raises(tamis.InvalidInput, match="no place for an instruction"):
        tamis.load(nemotron(tmp_path / "c"), instruction="find it")
    with pytest.raises(tamis.UntrainedHead):
        tamis.load(tiny_lm.save(tmp_path / "d", "mistral", "ForCausalLM"), family="rerank-qa-mistral")
