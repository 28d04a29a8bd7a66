"""Compiled parts in whole models: what they compute, when they are used, and models without them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import tamis
import tiny
import tiny_lm
from tamis.engine import kernels

QUERY = "how is a zip archive read?"
PASSAGES = [tiny.text(1 + 37 * seed % 140, seed) for seed in range(100)]  # fewer say little about a mean error
LIKE_BERT = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
OWN_ATTENTION = ("deberta-v2", "deberta-v2-conv", "mpnet")  # it has a term that is not compiled

installed = kernels.compiled()
needs_kernels = pytest.mark.skipif(installed is None, reason="tamis-kernels has nothing for this machine")


@pytest.fixture
def calls(monkeypatch):
    """How often each compiled part ran."""
    counts = {"attention": 0, "add_norm": 0, "layer": 0}

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
def test_a_rankrag_model_reads_new_passages_with_it_and_stored_ones_without(tmp_path, calls):
    folder = tiny_lm.save(tmp_path, "llama", "ForCausalLM")
    exact, _ = logits(folder, "float32", mode="rankrag")
    calls["attention"] = 0
    with tamis.load(folder, mode="rankrag", dtype="bfloat16", device="cpu") as reranker:
        given = np.array(reranker.logits(QUERY, PASSAGES))
        cold = calls["attention"]
        again = np.array(reranker.logits(QUERY, PASSAGES))
    assert cold > 0
    assert calls["attention"] == cold
    assert error(given, exact) < 0.15
    assert error(again, exact) < 0.15


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
