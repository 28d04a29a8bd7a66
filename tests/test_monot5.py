"""monoT5 over tiny T5s and mT5s, against transformers' own model and the published formula."""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast

import tamis
import tiny
from tamis.families import families
from tamis.families.seq2seq import YES_NO

QUERY = "how is a zip archive read?"
PASSAGES = [tiny.text(words, seed) for seed, words in enumerate([1, 3, 8, 21, 55, 110, 21, 21])] + ["", "   "]
WORDS = ("true", "false", "yes", "no", "não", "sim")


@lru_cache
def tokenizer(words=WORDS):
    """As T5's: pieces with a word mark, `</s>` at the end, and each of `words` a piece."""
    core = tiny.trained_unigram(["<pad>", "</s>", "<unk>", "<extra_id_0>"], words)
    core.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=512,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<extra_id_0>"],
    )


SIZES = {
    "d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 128, "num_layers": 3, "num_decoder_layers": 2,
    "relative_attention_max_distance": 40, "decoder_start_token_id": 0,
}  # fmt: skip


def save(folder, kind="T5", words=WORDS, untied=False, **config):
    made = tokenizer(words)
    torch.manual_seed(0)
    settings = getattr(transformers, f"{kind}Config")(**{**SIZES, "vocab_size": len(made) + 3, **config})
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(settings)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 2.0 if "shared" in key else 0.5 if "relative" in key else 0.12)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    if untied:  # as v1.1 and mT5 were published: a head of its own, which transformers does not tie then
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = 0.3 * torch.randn(weights["shared.weight"].shape)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        settings = json.loads((folder / "config.json").read_text())
        settings.pop("scale_decoder_outputs", None)
        (folder / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": False}))
    return folder


def published(folder, query, passages, pieces=("▁false", "▁true"), dtype=torch.float32):
    """pygaggle's loop: one string, the tokenizer's `</s>`, one step, log-softmax of two entries of the vocabulary.

    Its truncation, which no prompt here reaches, is left out.
    """
    tokens = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    false, true = tokens.convert_tokens_to_ids(list(pieces))
    out = []
    for passage in passages:
        ids = tokens(f"Query: {query} Document: {passage} Relevant:", return_tensors="pt").input_ids
        start = torch.tensor([[model.config.decoder_start_token_id]])
        with torch.inference_mode():
            logits = model(input_ids=ids, decoder_input_ids=start).logits[:, 0, [false, true]].float()
        log = torch.log_softmax(logits, dim=-1)[0]
        out.append(float(log[1] - log[0]))
    return np.array(out)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def make(kind="T5", **config):
        key = (kind, *sorted(config.items()))
        if key not in made:
            made[key] = save(tmp_path_factory.mktemp(kind), kind, **config)
        return made[key]

    return make


@pytest.mark.parametrize(
    "kind, config, pieces",
    [
        ("T5", {}, ("▁false", "▁true")),
        ("T5", {"feed_forward_proj": "gated-gelu", "untied": True}, ("▁false", "▁true")),
        ("MT5", {"untied": True}, ("▁no", "▁yes")),
        ("MT5", {}, ("▁no", "▁yes")),
    ],
)
def test_the_published_formula(folders, kind, config, pieces):
    folder = folders(kind, **config)
    expected = published(folder, QUERY, PASSAGES, pieces)
    with tamis.load(folder, family="monot5", dtype="float32") as reranker:
        logits = reranker.logits(QUERY, PASSAGES)
        scores = reranker.score(QUERY, PASSAGES)
        stats = reranker.stats()
    assert reranker.mode == "causal-lm"
    assert stats["packed"]
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-expected)), atol=1e-5)


@pytest.mark.parametrize("attention", ["auto", "padded"])
def test_alone_or_in_any_batch(folders, attention):
    folder = folders()
    with tamis.load(folder, family="monot5", dtype="float32", attention=attention) as reranker:
        together = reranker.logits(QUERY, PASSAGES)
        alone = [reranker.logits(QUERY, [passage])[0] for passage in PASSAGES]
        turned = reranker.logits(QUERY, PASSAGES[::-1])
        assert reranker.stats()["packed"] == (attention == "auto")
    np.testing.assert_allclose(together, alone, atol=2e-5)
    np.testing.assert_allclose(together, turned[::-1], atol=2e-5)
    np.testing.assert_allclose(together, published(folder, QUERY, PASSAGES), atol=1e-4)
    with tamis.load(folder, family="monot5", dtype="float32", attention=attention, batch_tokens=64) as reranker:
        np.testing.assert_allclose(together, reranker.logits(QUERY, PASSAGES), atol=2e-5)


def test_a_passage_gives_way_and_the_question_does_not(folders):
    """The published code would cut ` Relevant:` off; here what is left of a long passage is its beginning."""
    folder = folders()
    long = tiny.text(400, 3)
    with tamis.load(folder, family="monot5", dtype="float32", max_length=96) as reranker:
        ranking = reranker.rank(QUERY, [long, PASSAGES[1]])
    by_index = {hit.index: hit for hit in ranking}
    assert by_index[0].truncated
    assert not by_index[1].truncated
    assert ranking.usage.tokens <= 96 * 2
    tokens = AutoTokenizer.from_pretrained(folder)
    counts = {n: len(tokens(f"Query: {QUERY} Document: {long[:n]} Relevant:").input_ids) for n in range(400)}
    beginnings = [long[:n] for n, count in counts.items() if 90 < count <= 96]
    assert np.abs(published(folder, QUERY, beginnings) - by_index[0].logit).min() < 1e-4


def test_default_length_is_the_published_one(folders):
    with tamis.load(folders(), family="monot5", dtype="float32") as reranker:
        ranking = reranker.rank(QUERY, [tiny.text(2000, 5)])
    assert ranking[0].truncated
    assert 500 < ranking.usage.tokens <= 512


def test_windows_and_error(folders):
    folder = folders()
    long = tiny.text(150, 4)
    with tamis.load(folder, family="monot5", dtype="float32", max_length=96, long_documents="max_window") as reranker:
        ranking = reranker.rank(QUERY, [PASSAGES[3], long])
        hit = next(hit for hit in ranking if hit.index == 1)
        start, end = hit.window
        np.testing.assert_allclose(hit.logit, published(folder, QUERY, [long[start:end]])[0], atol=1e-4)
    assert not hit.truncated
    with (
        tamis.load(folder, family="monot5", max_length=96, long_documents="error") as reranker,
        pytest.raises(tamis.InputTooLong, match="Passage 1"),
    ):
        reranker.rank(QUERY, ["short", long])


def test_special_tokens_in_texts_are_words(folders):
    folder = folders()
    with tamis.load(folder, family="monot5", dtype="float32") as reranker:
        odd = reranker.logits("a </s> b", ["c <extra_id_0> d</s>"])
        np.testing.assert_allclose(odd, published(folder, f"a {' ' * 4} b", [f"c {' ' * 12} d{' ' * 4}"]), atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits(folders, dtype):
    folder = folders()
    expected = published(folder, QUERY, PASSAGES)
    with tamis.load(folder, family="monot5", dtype=dtype) as reranker:
        given = np.array(reranker.logits(QUERY, PASSAGES))
        assert reranker.stats()["packed"]
    tolerance = 2e-2 * np.abs(expected).max()  # these logits lie close together, far from zero: 0.5 of their spread
    assert np.abs(given - expected).max() < tolerance
    padded = published(folder, QUERY, PASSAGES, dtype=getattr(torch, dtype))
    assert np.abs(given - expected).max() < 3 * np.abs(padded - expected).max() + 1e-3
    clear = np.abs(np.subtract.outer(expected, expected)) > tolerance
    np.testing.assert_array_equal(
        np.sign(np.subtract.outer(given, given))[clear], np.sign(np.subtract.outer(expected, expected))[clear]
    )


def test_only_two_rows_are_computed(folders):
    from tamis.engine.backbone import Readable
    from tamis.engine.seq2seq import seq2seq_runner

    for kind, config in [("T5", {}), ("MT5", {"untied": True})]:
        model = AutoModelForSeq2SeqLM.from_pretrained(folders(kind, **config), dtype=torch.float32).eval()
        runner = seq2seq_runner(model, 0, 512, [5, 9])
        assert isinstance(runner, Readable)
        assert model.lm_head is None


def test_a_head_that_does_more_runs_whole(folders):
    from tamis.engine.seq2seq import WholeSeq2Seq, seq2seq_runner
    from tamis.engine.sequences import Tokens

    model = AutoModelForSeq2SeqLM.from_pretrained(folders(), dtype=torch.float32).eval()
    bias = torch.linspace(-3, 3, model.config.vocab_size)
    model.lm_head.register_forward_hook(lambda module, args, out: out + bias)
    runner = seq2seq_runner(model, 0, 512, [5, 9])
    assert isinstance(runner, WholeSeq2Seq)
    batch = [Tokens(np.arange(4, 4 + n, dtype=np.int32)) for n in (5, 20, 11)]
    for tokens, row in zip(batch, runner.run(batch), strict=True):
        np.testing.assert_allclose(row, runner.run([tokens])[0], atol=1e-5)


def test_nothing_is_guessed(folders, tmp_path):
    folder = folders()
    with pytest.raises(tamis.UnknownFamily, match="family="):
        tamis.load(folder)
    with pytest.raises(tamis.UnknownFamily):
        tamis.load(folder, mode="causal-lm")
    with pytest.raises(tamis.InvalidInput, match="instruction="):
        tamis.load(folder, family="monot5", instruction="rank")
    with pytest.raises(tamis.InvalidInput, match="num_layers="):
        tamis.load(folder, family="monot5", num_layers=2)
    with pytest.raises(tamis.UnknownFamily, match="BertModel"):
        tamis.load(tiny.save_encoder(tmp_path / "bert", "bert"), family="monot5")
    silent = save(tmp_path / "silent", words=("yes", "no"))
    with pytest.raises(tamis.UnknownFamily, match="▁true"):
        tamis.load(silent, family="monot5")


def test_missing_weights(tmp_path):
    folder = save(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights.pop("decoder.block.0.layer.1.EncDecAttention.k.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(tamis.CorruptCheckpoint, match="EncDecAttention"):
        tamis.load(folder, family="monot5")


def test_answers_of_published_models(folders):
    """By exact id: a Portuguese T5 says sim, and one model on which the sources disagree is refused."""
    from tamis.checkpoint import Checkpoint
    from tamis.families.seq2seq import answers
    from tamis.tokenizing import TextTokenizer

    made = TextTokenizer(tokenizer())
    by_name = {
        "castorini/monot5-base-msmarco": ("true", "false"),
        "castorini/monot5-3b-msmarco-10k": ("true", "false"),
        "unicamp-dl/InRanker-3B": ("true", "false"),
        "unicamp-dl/mt5-base-mmarco-v2": ("yes", "no"),
        "unicamp-dl/ptt5-base-en-pt-msmarco-100k-v2": ("sim", "não"),
    }
    for name, words in by_name.items():
        ids = answers(made, Checkpoint(name, folders()), 1000)
        assert ids == [tokenizer().convert_tokens_to_ids(f"▁{word}") for word in words]
    family = next(family for family in families() if family.name == "monot5")
    assert set(by_name) < family.hub_ids
    disputed = "unicamp-dl/mt5-13b-mmarco-100k"
    assert disputed not in family.hub_ids
    with pytest.raises(tamis.UnknownFamily, match="disagree"):
        answers(made, Checkpoint(disputed, folders("MT5")), 1000)
    assert YES_NO == ("▁yes", "▁no")
