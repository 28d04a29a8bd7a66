"""Compiled parts in whole models: what they compute, when they are used, and models without them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import transformers

import tamis
import tiny
import tiny_lm
from tamis.engine import decoder_parts, kernels

QUERY = "how is a zip archive read?"
PASSAGES = [tiny.text(1 + 37 * seed % 140, seed) for seed in range(100)]  # fewer say little about a mean error
LIKE_BERT = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
ROTARY = ("llama", "mistral", "qwen2", "qwen3")  # whose attention is compiled with its positions
OWN_ATTENTION = ("deberta-v2", "deberta-v2-conv", "mpnet")  # it has a term that is not compiled

installed = kernels.compiled()
needs_kernels = pytest.mark.skipif(installed is None, reason="tamis-kernels has nothing for this machine")


@pytest.fixture
def calls(monkeypatch):
    """How often each compiled part ran."""
    counts = dict.fromkeys(("attention", "add_norm", "layer", "rms_norm", "gate", "rotary"), 0)

    def watched(name, run):
        def counted(*arguments, **options):
            counts[name] += 1
            return run(*arguments, **options)

        return counted

    for name in counts:
        monkeypatch.setattr(installed, name, watched(name, getattr(installed, name)))
    return counts


def logits(folder, dtype="bfloat16", **options):
    with tamis.load(folder, dtype=dtype, device="cpu", **options) as reranker:
        given = np.array(reranker.logits(QUERY, PASSAGES))
        return given, reranker.stats()


def error(given, exact):
    """Root mean square, in units of what logits differ by."""
    return float(np.sqrt(np.mean((given - exact) ** 2)) / exact.std())


def without(monkeypatch):
    monkeypatch.setattr(kernels, "compiled", lambda: None)


@needs_kernels
@pytest.mark.parametrize("name", tiny.ENCODERS)
def test_encoders_are_as_near_to_float32_as_without(classifier, monkeypatch, calls, name):
    """ModernBERT's local layers included."""
    folder = classifier(name)
    exact, _ = logits(folder, "float32")
    assert not calls["layer"]  # in float32 that is torch's
    calls["attention"] = 0
    given, stats = logits(folder)
    assert stats["packed"]
    assert bool(calls["attention"]) is (name not in OWN_ATTENTION), calls
    without(monkeypatch)
    plain, _ = logits(folder)
    assert error(given, exact) <= 1.25 * error(plain, exact)


@needs_kernels
@pytest.mark.parametrize("name", tiny.ENCODERS)
def test_float32_is_the_same_with_and_without(classifier, monkeypatch, calls, name):
    folder = classifier(name)
    given, _ = logits(folder, "float32")
    assert bool(calls["attention"]) is (name not in OWN_ATTENTION), calls
    assert bool(calls["add_norm"]) is (name in LIKE_BERT), calls
    without(monkeypatch)
    plain, _ = logits(folder, "float32")
    np.testing.assert_allclose(given, plain, atol=2e-5 * max(1, np.abs(plain).max()))


@needs_kernels
@pytest.mark.parametrize("name", ["bert", "xlm-roberta"])
def test_layers_like_those_of_bert_are_compiled_further(classifier, monkeypatch, calls, name):
    """On tiles the MLP and the projection with all that follows; else the residual and the norm."""
    folder = classifier(name)
    exact, _ = logits(folder, "float32")
    in_tiles, _ = logits(folder)
    assert bool(calls["layer"]) is (installed.level() == "amx")
    monkeypatch.setattr(kernels, "tiles", lambda body: False)
    calls["add_norm"] = 0
    given, _ = logits(folder)
    assert calls["add_norm"] > 0
    without(monkeypatch)
    plain, _ = logits(folder)
    assert error(given, exact) <= 1.25 * error(plain, exact)
    assert error(in_tiles, exact) <= 1.25 * error(plain, exact)


@needs_kernels
@pytest.mark.parametrize("change", [{"hidden_act": "gelu_new"}, {"intermediate_size": 72}], ids=str)
def test_an_mlp_that_is_not_compiled_is_left_to_torch(classifier, calls, change):
    folder = classifier("bert", **change)
    exact, _ = logits(folder, "float32")
    given, _ = logits(folder)
    assert calls["layer"] == 0
    assert calls["add_norm"] > 0
    assert error(given, exact) < 0.15


@needs_kernels
def test_a_causal_model_whose_sequences_share_a_beginning(tmp_path, monkeypatch, calls):
    """Grouped queries, a beginning that stands once in the batch, and keys gathered for each sequence."""
    folder = tiny_lm.save(tmp_path, "qwen3", "ForCausalLM")
    exact, _ = logits(folder, "float32", family="qwen3-reranker")
    calls["attention"] = 0
    given, stats = logits(folder, family="qwen3-reranker")
    assert stats["prefix_tokens_reused"] > 0
    assert calls["attention"] > 0
    without(monkeypatch)
    plain, _ = logits(folder, family="qwen3-reranker")
    assert error(given, exact) <= 1.25 * error(plain, exact)


@needs_kernels
@pytest.mark.parametrize("name", tiny_lm.DECODERS)
def test_decoders_in_float32_are_the_same_with_and_without(tmp_path, monkeypatch, calls, name):
    """Windows, norms of heads, softcaps, grouped queries: whatever has no compiled form is left to torch."""
    folder = tiny_lm.save(tmp_path, name, "ForCausalLM", template=None)

    def some():
        with tamis.load(folder, family="qwen3-reranker", dtype="float32", device="cpu") as reranker:
            given = np.array(reranker.logits(QUERY, PASSAGES[:12]))
            assert reranker.stats()["padding"] == 0
            return given

    given = some()
    assert calls["rms_norm"] > 0
    assert bool(calls["gate"]) is (name != "phi3"), calls  # whose two are one product already
    assert bool(calls["rotary"]) is (name in ROTARY), calls
    without(monkeypatch)
    plain = some()
    np.testing.assert_allclose(given, plain, atol=3e-5 * max(1, np.abs(plain).max()))


@needs_kernels
@pytest.mark.parametrize("name", ["mistral", "qwen3", "gemma2"])
def test_decoders_in_bfloat16_are_as_near_to_float32_as_without(tmp_path, monkeypatch, name):
    folder = tiny_lm.save(tmp_path, name, "ForSequenceClassification", bos=True)
    exact, _ = logits(folder, "float32")
    given, _ = logits(folder)
    without(monkeypatch)
    plain, _ = logits(folder)
    assert error(given, exact) <= 1.25 * error(plain, exact)


@needs_kernels
def test_what_only_looks_like_a_norm_or_a_gate_is_left_alone(tmp_path):
    """A norm that takes a gate besides, one that centres, an MLP with a factor; weights that are 1 more (Gemma's)."""

    class OddRMSNorm(torch.nn.Module):
        def __init__(self, form):
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.rand(64)), 1e-6
            if form == "gated":
                self.forward = lambda x, gate=None: self.normed(x)
            elif form == "raises":
                self.forward = lambda x: x[:, :, 0]
            elif form == "centred":
                self.forward = lambda x: self.normed(x - x.mean(-1, keepdim=True))
            else:
                self.forward = lambda x: self.normed(x) + (x / x.norm() if form == "odd" else x.new_zeros(1))

        def normed(self, x):
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight)

    forms = ("gated", "centred", "odd", "raises", "gemma")
    found = {form: decoder_parts.Norm.of(OddRMSNorm(form)) for form in forms}
    assert [form for form, norm in found.items() if norm is not None] == ["gemma"]
    model = transformers.AutoModel.from_pretrained(tiny_lm.save(tmp_path, "llama", "Model"), dtype=torch.float32)
    mlps = [layer.mlp for layer in model.layers]
    mlps[0].forward = lambda x: 1.01 * type(mlps[0]).forward(mlps[0], x)
    mlps[1].act_fn = torch.nn.ReLU()
    parts = [part.module for part in decoder_parts.compiled_parts(model)]
    assert [mlp in parts for mlp in mlps] == [False, False, True]


@needs_kernels
def test_a_release_that_calls_its_modules_otherwise_runs_without(tmp_path, monkeypatch, caplog):
    folder = tiny_lm.save(tmp_path, "llama", "ForSequenceClassification", bos=True)

    def strange(self, hidden_states):
        raise AssertionError("who calls gives more")

    monkeypatch.setattr(decoder_parts.RotaryAttention, "__call__", strange)
    with caplog.at_level("INFO", logger="tamis.engine.backbone"):
        given, stats = logits(folder, "float32")
    assert "is not tuned for the CPU: " in caplog.text
    assert "unexpected keyword argument" in caplog.text
    assert stats["packed"]
    without(monkeypatch)
    plain, _ = logits(folder, "float32")
    np.testing.assert_allclose(given, plain, atol=3e-5 * max(1, np.abs(plain).max()))


@needs_kernels
def test_a_rankrag_model_reads_new_passages_and_stored_ones_with_it(tmp_path, monkeypatch, calls):
    folder = tiny_lm.save(tmp_path, "llama", "ForCausalLM")
    exact, _ = logits(folder, "float32", mode="rankrag")
    scores = {}
    for package in ("with", "without"):
        if package == "without":
            without(monkeypatch)
        calls["attention"] = 0
        with tamis.load(folder, mode="rankrag", dtype="bfloat16", device="cpu") as reranker:
            cold = np.array(reranker.logits(QUERY, PASSAGES))
            once = calls["attention"]
            warm = np.array(reranker.logits(QUERY, PASSAGES))
        scores[package] = cold, warm
        assert bool(once) is (package == "with")
        assert bool(calls["attention"] - once) is (package == "with")  # stored keys are gathered for it
    for given, plain in zip(*scores.values(), strict=True):
        assert error(given, exact) <= 1.25 * error(plain, exact)


@needs_kernels
def test_the_steps_of_an_answer_are_left_to_torch(tmp_path, calls):
    """One query of long keys: to gather them would take longer than to read them. Norms and gates are compiled."""
    folder = tiny_lm.save(tmp_path, "llama", "ForCausalLM")
    with tamis.load_rankrag(folder, dtype="bfloat16", device="cpu") as rag:
        rag.answer(QUERY, PASSAGES[:4], top_k=2, max_new_tokens=1)
        counts = dict(calls)
        rag.answer(QUERY, PASSAGES[:4], top_k=2, max_new_tokens=6)
    first = {name: calls[name] - counts[name] for name in calls}
    assert first["rotary"] > first["attention"]


@needs_kernels
def test_tensors_that_gradients_are_wanted_of_are_left_to_torch():
    query = torch.zeros(1, 2, 4, 8, dtype=torch.bfloat16)
    assert kernels.reads(query, query)
    assert not kernels.reads(query.clone().requires_grad_(), query)
    assert kernels.reads(query.float(), query.float())
    assert not kernels.reads(query.half(), query.half())
    assert not kernels.reads(query, query[..., :4])


def test_without_the_package_torch_does_it(monkeypatch, classifier):
    monkeypatch.setitem(sys.modules, "tamis_kernels", None)  # importing it fails
    kernels.compiled.cache_clear()
    try:
        assert kernels.compiled() is None
        given, stats = logits(classifier("bert"))
        assert stats["packed"]
        assert np.isfinite(given).all()
    finally:
        kernels.compiled.cache_clear()


def test_a_package_that_has_nothing_for_the_machine_is_not_used(monkeypatch, caplog):
    module = pytest.importorskip("tamis_kernels")
    monkeypatch.setattr(module, "why_not", lambda: "This processor is none that it knows.")
    kernels.compiled.cache_clear()
    try:
        with caplog.at_level("INFO", logger="tamis.engine.kernels"):
            assert kernels.compiled() is None
        assert "This processor is none" in caplog.text
    finally:
        kernels.compiled.cache_clear()
