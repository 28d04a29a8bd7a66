"""Layerwise rerankers: the loss by hand, and what is trained scores at every layer as transformers computes it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

import tamis
import tiny
import tiny_lm
import tiny_training as tt
from tamis.errors import InvalidInput
from tamis.families.wordings import BGE
from tamis.prompts import BoundPrompt
from tamis.training import language_model, layerwise
from tamis.training.layerwise import Options, groups
from tamis.training.layerwise_trainer import LayerwiseModel, layerwise_loss
from tamis.training.recipe import from_table, read_recipe
from tamis.training.rows import Example
from tamis.training.run import recipe_module

pytestmark = pytest.mark.peers

RECIPES = Path(__file__).parents[1] / "cookbook" / "recipes"
DEPTH = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return tiny_lm.save(folder, "llama", "ForCausalLM", bos=True, num_hidden_layers=DEPTH)


def prepared(model, output, options, **arguments):
    made = tt.recipe("layerwise", model, output, options, **{"per_device_train_batch_size": 4, **arguments})
    return layerwise.prepare(made, Options(**options), tt.labelled(), output / "checkpoints")


def test_the_loss_by_hand():
    """Two layers, two groups of three: cross-entropies of the first passage, and KL(deep || shallow)."""
    shallow = [[1.0, 0.0, -1.0], [0.5, 0.5, 0.0]]
    deep = [[2.0, 1.0, 0.0], [-1.0, 0.0, 3.0]]

    def softmax(row):
        total = sum(math.exp(x) for x in row)
        return [math.exp(x) / total for x in row]

    p, q = [softmax(row) for row in shallow], [softmax(row) for row in deep]
    entropy = sum(-math.log(row[0]) for row in [*p, *q]) / 4
    divergence = sum(d * math.log(d / s) for a, b in zip(p, q, strict=True) for s, d in zip(a, b, strict=True)) / 2
    scores = torch.tensor([shallow, deep])
    assert layerwise_loss(scores, 0.0).item() == pytest.approx(entropy, rel=1e-6)
    assert layerwise_loss(scores, 0.5).item() == pytest.approx(entropy + 0.5 * divergence, rel=1e-6)
    assert layerwise_loss(scores[1:], 0.5).item() == pytest.approx(sum(-math.log(row[0]) for row in q) / 2, rel=1e-6)


def test_the_deepest_layer_teaches_and_is_not_taught():
    scores = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (plain,) = torch.autograd.grad(layerwise_loss(scores, 0.0), scores)
    (taught,) = torch.autograd.grad(layerwise_loss(scores, 1.0), scores)
    torch.testing.assert_close(plain[-1], taught[-1])
    assert (plain[:-1] - taught[:-1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [{"first_layer": 2}, {"first_layer": 2, "every": 2, "distil": 0.0}, {"tune": "full", "first_layer": 1}],
    ids=str,
)
def test_it_learns_and_every_layer_scores_as_in_transformers(tmp_path, model, options):
    full = options.get("tune") == "full"
    trainer = prepared(model, tmp_path / "out", options, learning_rate=1e-3 if full else 1e-2, max_steps=12)
    trainer.train()
    assert tt.falls(trainer)
    trained = trainer.model
    layers = list(trained.layers)
    expected = by_hand(trained, model, tt.QUERIES[0], tiny.TEXT)
    layerwise.save(trainer, tmp_path / "out", Options(**options))
    for layer, scores in zip(layers, expected, strict=True):
        with tamis.load(tmp_path / "out", layer=layer, dtype="float32") as reranker:
            assert reranker.mode == "layerwise"
            np.testing.assert_allclose(reranker.logits(tt.QUERIES[0], tiny.TEXT), scores, atol=1e-3)
    with tamis.load(tmp_path / "out", layer=layers, dtype="float32") as cascade:
        assert len(cascade.rank(tt.QUERIES[0], tiny.TEXT)) == len(tiny.TEXT)
    with layerwise.load(tmp_path / "out", Options()) as reranker:
        np.testing.assert_allclose(reranker.logits(tt.QUERIES[0], tiny.TEXT), expected[-1], atol=0.2)
    assert layerwise.load(model, Options()) is None


def by_hand(trained, model, query, passages):
    """Every head's scores, one sequence at a time, without padding, as training has it."""
    start = language_model.begin(str(model))
    prompt = BoundPrompt(BGE, start.text, max_length=512)
    found = []
    trained.eval()
    for tokens in prompt.ask(query).sequences(passages).tokens:
        ids = torch.from_numpy(tokens.ids).long()[None]
        with torch.no_grad():
            found.append(trained(ids, torch.ones_like(ids))[:, 0])
    return torch.stack(found, 1).tolist()


def test_a_head_reads_the_normalised_state_after_its_layer(model):
    body = AutoModel.from_pretrained(model)
    heads = LayerwiseModel(body, range(2, DEPTH + 1))
    ids = torch.tensor([[5, 6, 7, 8, 0, 0], [9, 10, 11, 12, 13, 14]])
    mask = (ids > 0).long()
    with torch.no_grad():
        given = heads(ids, mask)
        for i, layer in enumerate(range(2, DEPTH + 1)):
            cut = AutoModel.from_pretrained(model, num_hidden_layers=layer)
            for row, size in enumerate((4, 6)):
                state = cut(ids[row : row + 1, :size]).last_hidden_state[0, -1]  # normalised, as every last layer's is
                assert given[i, row].item() == pytest.approx(float(state @ heads.heads.weight[i]), abs=1e-4)


def test_resuming_gives_the_same_model(tmp_path, model):
    saves = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    whole = prepared(model, tmp_path / "whole", {"first_layer": 2}, **saves)
    whole.train()
    half = prepared(model, tmp_path / "half", {"first_layer": 2}, **saves)
    half.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoints" / "checkpoint-3"))
    for (name, one), (_, other) in zip(whole.model.named_parameters(), half.model.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


def test_groups_have_one_relevant_passage_and_others_as_often_as_it_takes():
    rows = [
        Example("q", ("a", "b", "c"), (1.0, 0.0, 0.0)),
        Example("r", ("d", "e", "f"), (0.0, 1.0, 1.0), prompt="ask: "),
        Example("s", ("g",), (1.0,)),
        Example("t", ("h", "i"), scores=(0.5, 0.1)),
    ]
    assert groups(rows, 4) == [("q", ["a", "b", "c", "b"]), ("ask: r", ["e", "d", "d", "d"])]
    with pytest.raises(InvalidInput, match="relevant passage"):
        groups(rows[2:], 4)


def test_what_cannot_be(tmp_path, model):
    for options, said in [
        ({"first_layer": 9}, "leave the deepest layer"),
        ({"first_layer": 1, "every": 2}, "leave the deepest layer"),
    ]:
        with pytest.raises(InvalidInput, match=said):
            prepared(model, tmp_path, options)
    for options in ({"every": 0}, {"passages": 1}, {"max_length": 8}, {"adapter": "x"}):
        with pytest.raises(InvalidInput):
            Options(**options)
    other = tiny_lm.save(tmp_path / "qwen2", "qwen2", "ForCausalLM")
    with pytest.raises(InvalidInput, match="Llama's arithmetic"):
        prepared(other, tmp_path, {})


def test_the_cookbook_s_recipe():
    made = read_recipe(RECIPES / "layerwise.toml")
    assert from_table(recipe_module(made).Options, made.options, "x").distil == 1.0
