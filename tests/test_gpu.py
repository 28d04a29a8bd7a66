"""The CUDA path, against float32 on the CPU. Skipped where there is no CUDA device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tamis
import tiny
import tiny_lm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

QUERY = "how is a zip archive read?"
PASSAGES = [
    tiny.text(words, seed) for seed, words in enumerate([1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 110, 150, 21, 21, 1])
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", tiny.ENCODERS)
def test_packed_on_cuda_equals_the_cpu(classifier, name, dtype):
    folder = classifier(name)
    with tamis.load(folder, device="cpu", dtype="float32") as exact, tamis.load(folder, dtype=dtype) as reranker:
        expected = np.array(exact.logits(QUERY, PASSAGES))
        given = np.array(reranker.logits(QUERY, PASSAGES))
        alone = np.array([reranker.logits(QUERY, [passage])[0] for passage in PASSAGES])
        stats = reranker.stats()
    assert stats["device"].startswith("cuda")
    assert stats["packed"]
    tolerance = 1e-3 if dtype == "float32" else 0.15 * np.ptp(expected)  # TF32 may be on
    np.testing.assert_allclose(given, expected, atol=tolerance)
    np.testing.assert_allclose(alone, given, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", tiny_lm.DECODERS)
def test_shared_beginnings_on_cuda(tmp_path, name, dtype):
    """Variable-length attention with more keys than queries, windows and softcaps among them."""
    folder = tiny_lm.save(tmp_path, name, "ForCausalLM")
    options = {"family": "qwen3-reranker"}
    with (
        tamis.load(folder, **options, device="cpu", dtype="float32") as exact,
        tamis.load(folder, **options, dtype=dtype) as reranker,
    ):
        expected = np.array(exact.logits(QUERY, PASSAGES))
        given = np.array(reranker.logits(QUERY, PASSAGES))
        stats = reranker.stats()
    assert stats["packed"]
    assert stats["prefix_tokens_reused"] > 0
    tolerance = 1e-3 if dtype == "float32" else 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(given, expected, atol=tolerance)


def test_auto_is_bfloat16_on_cuda(classifier):
    with tamis.load(classifier("bert")) as reranker:
        assert reranker.stats()["dtype"] == "bfloat16"


def test_running_out_of_memory_splits(classifier):
    """A batch budget far above what the device holds: the engine finds one that fits, with the same logits."""
    free, _ = torch.cuda.mem_get_info()
    hold = torch.empty(int(free - 2**30), dtype=torch.uint8, device="cuda")  # leave one GiB
    try:
        with tamis.load(classifier("bert"), dtype="float32", batch_tokens=10**8) as reranker:
            passages = [tiny.text(150, seed % 7) for seed in range(20_000)]
            logits = reranker.logits(QUERY, passages)
            assert reranker.stats()["out_of_memory"] > 0
        assert logits[:7] == pytest.approx(logits[7:14], abs=1e-3)
    finally:
        del hold
        torch.cuda.empty_cache()
