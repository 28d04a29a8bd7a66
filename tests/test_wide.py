"""What runs whole has its head in float32, whatever its own code rounds to."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import tamis
import tiny
import tiny_lm
from tamis.engine import causal, seq2seq
from tamis.engine.architectures import ARCHITECTURES
from tamis.engine.attention import registered
from tamis.engine.backbone import probe
from tamis.engine.classifier import classifier_runner

MANY = [tiny.text(n) for n in range(1, 40)]
ROWS = [7, 30]


def runner_of(reranker):
    return reranker._scorer._lease.loaded.engine._devices[0].runner


def rounded(logits, dtype=torch.bfloat16):
    """How many of them are numbers of a narrower dtype."""
    values = torch.tensor(np.array(logits), dtype=torch.float32).flatten()
    return float(np.mean(np.isclose(values, values.to(dtype).float(), rtol=1e-6, atol=0)))


def save_unknown(folder, kind, **config):
    """A tiny classifier of an architecture that Tamis does not know, whose logits spread."""
    tokenizer = tiny.wordpiece()
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    made = getattr(transformers, f"{kind}Config")(
        **{**sizes, "vocab_size": len(tokenizer), "pad_token_id": 0, "num_labels": 1, **config}
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(made)
    for weight in model.parameters():
        weight.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "head", "config"),
    [
        ("ConvBert", lambda model: model.classifier, {"embedding_size": 64}),
        ("RemBert", lambda model: model.rembert.pooler, {}),  # the pooler is the body's
        ("GPTNeoX", lambda model: model.score, {}),
        (
            "Bart",  # which raises for what does not end as its sequences do
            lambda model: model.classification_head,
            {
                "encoder_ffn_dim": 64,
                "decoder_ffn_dim": 64,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "eos_token_id": 3,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "decoder_start_token_id": 3,
                "bos_token_id": 2,
                "forced_eos_token_id": 3,
            },
        ),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_heads_of_unknown_architectures_are_float32(tmp_path, kind, head, config, dtype):
    folder = save_unknown(tmp_path, kind, **config)
    with tamis.load(folder, dtype="float32") as reranker:
        exact = reranker.logits("zip", MANY)
        assert not runner_of(reranker)._model.base_model._forward_hooks  # nothing is changed
    with tamis.load(folder, dtype=dtype) as reranker:
        model = runner_of(reranker)._model
        logits = reranker.logits("zip", MANY)
        assert {weight.dtype for weight in head(model).parameters()} == {torch.float32}
        assert model.dtype == getattr(torch, dtype)
    assert rounded(logits, getattr(torch, dtype)) < 0.2
    np.testing.assert_allclose(logits, exact, atol=0.15 * np.ptp(exact))


class Own(torch.nn.Module):
    """A head whose code takes `dtype` only, or says something else in float32."""

    def __init__(self, classifier, dtype, raises):
        super().__init__()
        self.classifier = classifier
        self.dtype, self.raises = dtype, raises

    def forward(self, hidden):
        if hidden.dtype != self.dtype and self.raises:
            raise RuntimeError("expected BFloat16")
        return self.classifier(hidden) + (5.0 if hidden.dtype != self.dtype else 0.0)


def test_a_model_that_takes_no_probes_loads_as_it_is(tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(
        save_unknown(tmp_path, "ConvBert", embedding_size=64), dtype=torch.bfloat16
    ).eval()
    model.config.vocab_size = 10**6
    runner = classifier_runner(model, None, 0, 512)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert np.isfinite(runner.run([probe(20, 300, model.config)])).all()


@pytest.mark.parametrize("raises", [True, False])
def test_a_head_that_is_no_good_in_float32_stays_as_it_was(tmp_path, raises):

    folder = save_unknown(tmp_path, "ConvBert", embedding_size=64)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16).eval()
    model.classifier = Own(model.classifier, torch.bfloat16, raises)
    ids = torch.from_numpy(probe(20, 300, model.config).ids)[None].long()
    with torch.inference_mode():
        expected = model(ids).logits.float().numpy()
    runner = classifier_runner(model, None, 0, 512)
    np.testing.assert_array_equal(runner.run([probe(20, 300, model.config)]), expected)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert not model.base_model._forward_hooks
    assert not model.classifier._forward_pre_hooks


@pytest.mark.parametrize("pack", [True, False])
def test_a_head_that_tamis_takes_wrongly_runs_whole_and_in_float32(classifier, pack):

    known = ARCHITECTURES["roberta"]

    def doubled(model):
        head = known.head(model)
        return lambda hidden, layout: 2 * head(hidden, layout)

    wrong = dataclasses.replace(known, head=doubled)
    model = AutoModelForSequenceClassification.from_pretrained(
        classifier("roberta"), dtype=torch.bfloat16, attn_implementation=registered()
    ).eval()
    with pytest.warns(UserWarning, match="runs whole and padded, which is slower" if pack else r"runs whole\."):
        runner = classifier_runner(model, wrong, 1, 512, pack=pack)
    assert {weight.dtype for weight in model.base_model.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in model.classifier.parameters()} == {torch.float32}
    assert runner.padded


@pytest.mark.parametrize(
    ("name", "config"),
    [("llama", {}), ("gemma2", {"final_logit_softcapping": 9.0}), ("granite", {})],  # a plain head, a bound, a scale
)
def test_rows_of_a_whole_decoder_are_float32(tmp_path, monkeypatch, name, config):
    rows = causal.vocabulary_rows
    monkeypatch.setattr(causal, "vocabulary_rows", lambda model, ids: lambda h, layout: 2 * rows(model, ids)(h, layout))
    folder = tiny_lm.save(tmp_path, name, "ForCausalLM", tie_word_embeddings=True, **config)
    batch = [probe(n, 300, transformers.PretrainedConfig()) for n in range(8, 40)]

    def run(dtype):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        runner = causal.causal_runner(model, None, 0, 512, ROWS)
        assert isinstance(runner, causal.WholeCausal)
        assert {weight.dtype for weight in model.parameters()} == {dtype}  # the head is the embeddings, too
        assert len(model.lm_head._forward_hooks) == (dtype != torch.float32)
        return np.stack(runner.run(batch))

    narrow, exact = run(torch.bfloat16), run(torch.float32)
    assert rounded(narrow) < 0.2
    np.testing.assert_allclose(narrow, exact, atol=0.15 * np.ptp(exact))


@pytest.mark.parametrize("scaled", [True, False])  # T5 v1.0 scales what goes into its tied head
def test_rows_of_a_whole_t5_are_float32(monkeypatch, scaled):
    step = seq2seq.first_step
    monkeypatch.setattr(seq2seq, "first_step", lambda *args: lambda h, layout: 50 + step(*args)(h, layout))
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=300, d_model=64, d_kv=16, num_heads=4, d_ff=128, num_layers=2, num_decoder_layers=2,
        scale_decoder_outputs=scaled, tie_word_embeddings=scaled, decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    for weight in model.parameters():
        weight.data.normal_(0, 0.3)
    batch = [probe(n, 300, config) for n in range(8, 40)]

    def run(dtype):
        runner = seq2seq.seq2seq_runner(model.to(dtype), 0, 512, ROWS)
        assert isinstance(runner, seq2seq.WholeSeq2Seq)
        assert model.lm_head.weight.dtype == dtype
        return np.stack(runner.run(batch))

    exact, narrow = run(torch.float32), run(torch.bfloat16)
    assert rounded(exact) < 0.2
    assert rounded(narrow) < 0.2
    np.testing.assert_allclose(narrow, exact, atol=0.15 * np.ptp(exact))


def test_a_head_that_does_more_than_multiply_stays_as_it_was(tmp_path):
    folder = tiny_lm.save(tmp_path, "llama", "ForCausalLM")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    model.lm_head.register_forward_hook(lambda module, args, output: output + 20)
    tokens = probe(20, 300, model.config)
    with torch.inference_mode():
        expected = model(torch.from_numpy(tokens.ids)[None].long()).logits[0, -1, ROWS].float().numpy()
    runner = causal.causal_runner(model, None, 0, 512, ROWS)
    np.testing.assert_array_equal(runner.run([tokens])[0], expected)
    assert len(model.lm_head._forward_hooks) == 1
