"""BERT in plain torch beside transformers' own, over the same files."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

import tamis
import tiny
from tamis.engine import bert

IDS = torch.tensor([[2, 17, 301, 44, 9, 3], [2, 250, 31, 3, 0, 0]])
TYPES = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0]])
SEEN = (IDS != 0).long()


def ours(kind, folder, dtype=torch.float32):
    return kind.from_pretrained(folder, config=AutoConfig.from_pretrained(folder), dtype=dtype)


@pytest.mark.parametrize("activation", sorted(bert.ACTIVATIONS))
def test_every_activation_is_computed_as_transformers_does(tmp_path, activation):
    folder = tiny.save_encoder(tmp_path, "bert", hidden_act=activation)
    model, info = ours(bert.BertModel, folder)
    stock = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        given = model(IDS, SEEN, TYPES).last_hidden_state
        expected = stock(IDS, SEEN, TYPES).last_hidden_state
    torch.testing.assert_close(given[SEEN.bool()], expected[SEEN.bool()], atol=1e-5, rtol=0)
    assert all(name.startswith("pooler.") for name in info["missing_keys"])


def test_the_classifier_and_what_a_body_of_its_own_lacks(tmp_path):
    folder = tiny.save_classifier(tmp_path / "whole", "bert", labels=2)
    model, info = ours(bert.BertForSequenceClassification, folder)
    stock = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(IDS, SEEN, TYPES).logits, stock(IDS, SEEN, TYPES).logits, atol=1e-5, rtol=0)
    assert not info["missing_keys"]
    body, _ = ours(bert.BertModel, folder)  # its names lose the prefix
    torch.testing.assert_close(
        body.encoder.layer[0].output.dense.weight, stock.bert.encoder.layer[0].output.dense.weight
    )
    _, lacking = ours(bert.BertForSequenceClassification, tiny.save_encoder(tmp_path / "body", "bert"))
    assert {"classifier.weight", "classifier.bias"} <= lacking["missing_keys"]


def test_old_names_of_norms(tmp_path):
    folder = tiny.save_encoder(tmp_path, "bert")
    expected, _ = ours(bert.BertModel, folder)
    file = folder / bert.WEIGHTS
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    weights = load_file(file)
    for new, before in old.items():
        weights = {name.replace(new, before): weight.clone() for name, weight in weights.items()}
    save_file(weights, file, {"format": "pt"})
    model, _ = ours(bert.BertModel, folder)
    with torch.inference_mode():
        torch.testing.assert_close(model(IDS)[0], expected(IDS)[0], atol=0, rtol=0)


def test_what_it_does_not_compute_is_left_to_transformers(tmp_path):
    folder = tiny.save_encoder(tmp_path, "bert")
    config = AutoConfig.from_pretrained(folder)
    assert bert.computes(config, folder)
    for name, value in (("hidden_act", "silu"), ("is_decoder", True), ("chunk_size_feed_forward", 8)):
        other = AutoConfig.from_pretrained(folder)
        setattr(other, name, value)
        assert not bert.computes(other, folder)
    assert not bert.computes(config, tmp_path / "no weights")
    other = tiny.save_classifier(tmp_path / "silu", "bert", hidden_act="silu")
    with tamis.load(other, dtype="float32") as reranker:
        assert len(reranker.logits("red planet", ["Mars is red.", "Venus is white."])) == 2


def test_another_shape_and_a_damaged_file(tmp_path):
    folder = tiny.save_classifier(tmp_path, "bert")
    file = folder / bert.WEIGHTS
    weights = load_file(file)
    name = "bert.encoder.layer.0.output.dense.weight"
    save_file({**weights, name: torch.zeros(3, 3)}, file, {"format": "pt"})
    with pytest.raises(tamis.CorruptCheckpoint, match=r"output\.dense\.weight has the shape"):
        tamis.load(folder)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(tamis.CorruptCheckpoint):
        tamis.load(folder)


def test_the_default_does_not_wait_for_transformers():
    """What takes seconds to import stays out of a first ranking."""
    code = """
import sys, tamis
print(tamis.load().rank("red planet", ["Venus is white.", "Mars is red."])[0].index)
print(sorted({"torch._dynamo", "torch.distributed.fsdp", "scipy"} & set(sys.modules)))
print([name for name in sys.modules if name.partition(".")[0] == "transformers"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["1", "[]", "[]"]
