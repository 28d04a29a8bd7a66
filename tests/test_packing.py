"""Packed logits against a plain padded forward pass of the same checkpoint, for every architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import tamis
import tiny

QUERY = "how is a zip archive read?"
PASSAGES = [
    tiny.text(words, seed) for seed, words in enumerate([1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 110, 150, 21, 21, 1])
]
PASSAGES += ["", "   ", "a" * 300]


def padded_logits(folder, query, passages):
    """Transformers as it is, in one padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer(
        [query] * len(passages),
        list(passages),
        padding=True,
        truncation="only_second",
        max_length=512,
        return_tensors="pt",
    )
    with torch.inference_mode():
        logits = model(**inputs).logits.double().numpy()
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("name", tiny.ENCODERS)
def test_packed_equals_padded(classifier, name, labels):
    folder = classifier(name, labels)
    expected = padded_logits(folder, QUERY, PASSAGES)
    with tamis.load(folder, dtype="float32") as reranker:
        given = np.array(reranker.logits(QUERY, PASSAGES))
        assert reranker.stats()["packed"]
        assert reranker.stats()["padding"] == 0
    assert expected.std() > 0.05  # otherwise agreeing says nothing
    np.testing.assert_allclose(given, expected, atol=1e-4)


@pytest.mark.parametrize("name", tiny.ENCODERS)
def test_alone_or_in_any_batch(classifier, name):
    with tamis.load(classifier(name), dtype="float32", batch_tokens=700) as reranker:
        together = reranker.logits(QUERY, PASSAGES)
        backwards = reranker.logits(QUERY, PASSAGES[::-1])[::-1]
        alone = [reranker.logits(QUERY, [passage])[0] for passage in PASSAGES]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, backwards, atol=1e-5)


@pytest.mark.peers
@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("name", tiny.ENCODERS)
def test_equals_sentence_transformers(classifier, name, labels):
    from sentence_transformers import CrossEncoder

    folder = classifier(name, labels)
    peer = CrossEncoder(str(folder), activation_fn=torch.nn.Identity(), max_length=512, device="cpu")
    rows = peer.predict([(QUERY, passage) for passage in PASSAGES])
    expected = rows if labels == 1 else rows[:, 1] - rows[:, 0]
    with tamis.load(folder, dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", tiny.ENCODERS)
def test_low_precision_keeps_the_order(classifier, name, dtype):
    folder = classifier(name)
    with tamis.load(folder, dtype="float32") as exact, tamis.load(folder, dtype=dtype) as low:
        expected = np.array(exact.logits(QUERY, PASSAGES))
        given = np.array(low.logits(QUERY, PASSAGES))
        assert low.stats()["dtype"] == dtype
        assert low.stats()["packed"]
    assert np.corrcoef(expected, given)[0, 1] > 0.99
    np.testing.assert_allclose(given, expected, atol=0.15 * np.ptp(expected))


def test_padded_on_request(classifier):
    folder = classifier("bert")
    with tamis.load(folder, dtype="float32", attention="padded") as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), padded_logits(folder, QUERY, PASSAGES), atol=1e-4)
        assert not reranker.stats()["packed"]
        assert reranker.stats()["padding"] > 0


@pytest.mark.parametrize("kind", ["GPTNeoX", "RemBert"])
def test_what_cannot_be_packed_runs_padded(tmp_path, kind):
    tokenizer = tiny.wordpiece()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = getattr(transformers, f"{kind}Config")(**sizes, vocab_size=len(tokenizer), pad_token_id=0, num_labels=1)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    for weight in model.parameters():
        weight.data.normal_(0, 0.2)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = padded_logits(tmp_path, QUERY, PASSAGES)
    with tamis.load(tmp_path, dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), expected, atol=1e-4)
        assert not reranker.stats()["packed"]


def test_a_leak_is_found_and_the_model_runs_padded(tmp_path):
    """An encoder whose neighbours leak into each other outside attention: MobileBERT's trigram embeddings."""
    from tamis.engine.architectures import Architecture
    from tamis.engine.attention import registered
    from tamis.engine.backbone import Backbone

    config = transformers.MobileBertConfig(
        hidden_size=64, embedding_size=32, intra_bottleneck_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, vocab_size=400, true_hidden_size=32,
    )  # fmt: skip
    torch.manual_seed(0)
    body = AutoModel.from_config(config, attn_implementation=registered()).eval()
    encoder = Backbone(body, Architecture(head=lambda model: model))
    with torch.inference_mode(), pytest.warns(UserWarning, match="runs padded"):
        encoder.check(vocabulary=400, longest=512)
    assert not encoder.packed
