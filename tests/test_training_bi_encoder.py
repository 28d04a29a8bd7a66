"""Bi-encoders: what is trained scores alike in Tamis and in sentence-transformers, at every dimension."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import beir
import tamis
import tiny
import tiny_training as tt
from tamis.errors import InvalidInput
from tamis.training import bi_encoder, train
from tamis.training.bi_encoder import Options
from tamis.training.losses import PreferenceLoss, flat_kl, replug_kl
from tamis.training.recipe import DataOptions
from tamis.training.rows import Example
from tamis.training.sentence_transformer import halves

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny.save_encoder(tmp_path_factory.mktemp("bert"), "bert", **tt.STILL)


def reference(folder, query, passages, dim=None):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", truncate_dim=dim)
    asked, read = model.encode_query([query]), model.encode_document(passages)
    return torch.nn.functional.cosine_similarity(torch.from_numpy(asked), torch.from_numpy(read)).numpy()


def trained(tmp_path, encoder, options, examples=None, **arguments):
    options = Options(**options)
    recipe = tt.recipe("bi-encoder", encoder, tmp_path / "out", **arguments)
    trainer = bi_encoder.prepare(recipe, options, examples or tt.labelled(), recipe.output / "checkpoints")
    trainer.train()
    bi_encoder.save(trainer, recipe.output, options)
    return trainer, recipe.output


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mini_batch": 2},
        {"loss": "triplet"},
        {"mrl": False},
        {"dims": [16, 48]},
        {"query_prompt": "ask: ", "passage_prompt": "read: "},
        {"lora": {"rank": 4}},
    ],
    ids=str,
)
def test_it_learns_and_scores_as_in_sentence_transformers(tmp_path, encoder, options):
    trainer, folder = trained(tmp_path, encoder, options, learning_rate=2e-3 if "lora" in options else 2e-4)
    assert tt.falls(trainer)
    for dim in (None, 16):
        with tamis.load(folder, dtype="float32", dim=dim) as reranker:
            assert reranker.mode == "bi-encoder"
            given = reranker.logits(tt.QUERIES[0], tiny.TEXT)
        np.testing.assert_allclose(given, reference(folder, tt.QUERIES[0], tiny.TEXT, dim), atol=1e-4)
    with bi_encoder.load(encoder, Options()) as before:
        assert abs(np.array(before.logits(tt.QUERIES[0], tiny.TEXT)) - given).max() > 1e-3


def test_a_run_says_nothing_on_its_way(tmp_path, capsys, encoder):
    """A checkpoint is saved too, for which the library would have scored examples for a card, under a bar."""
    rows = [{"query": e.query, "pos": [*e.positives], "neg": [*e.negatives]} for e in tt.labelled()]
    beir.write_jsonl(tmp_path / "rows.jsonl", rows)
    made = tt.recipe("bi-encoder", encoder, tmp_path / "out", max_steps=1, save_strategy="steps", save_steps=1)
    capsys.readouterr()
    train(replace(made, data=DataOptions((str(tmp_path / "rows.jsonl"),))), progress=False)
    assert capsys.readouterr() == ("", "")


def test_more_dimensions_than_the_model_has(tmp_path, encoder):
    trainer, folder = trained(tmp_path, encoder, {"expand": 160})
    assert tt.falls(trainer)
    with tamis.load(folder, dtype="float32", dim=128) as reranker:
        expected = reference(folder, tt.QUERIES[0], tiny.TEXT, 128)
        np.testing.assert_allclose(reranker.logits(tt.QUERIES[0], tiny.TEXT), expected, atol=1e-4)


@pytest.mark.parametrize("loss", ["preference", "preference-flat"])
def test_a_teacher_s_scores(tmp_path, encoder, loss):
    trainer, folder = trained(tmp_path, encoder, {"loss": loss}, tt.scored())
    assert tt.falls(trainer)
    with tamis.load(folder, dtype="float32") as reranker:
        logits = reranker.logits(tt.QUERIES[1], tt.scored()[1].passages)
    if loss == "preference":
        assert np.argmax(logits) == 0


def test_matryoshka_dimensions_are_on_by_default(tmp_path, encoder):
    recipe = tt.recipe("bi-encoder", encoder, tmp_path)
    loss = bi_encoder.prepare(recipe, Options(), tt.labelled(), tmp_path).loss
    assert loss.matryoshka_dims == halves(64) == (64, 32)
    chosen = bi_encoder.prepare(recipe, Options(dims=(8,)), tt.labelled(), tmp_path).loss
    assert chosen.matryoshka_dims == (64, 8)
    with pytest.raises(InvalidInput, match="64 dimensions"):
        bi_encoder.prepare(recipe, Options(dims=(128,)), tt.labelled(), tmp_path)


def test_resuming_gives_the_same_model(tmp_path, encoder):
    whole, folder = trained(tmp_path / "whole", encoder, {}, save_strategy="steps", save_steps=5)
    recipe = tt.recipe("bi-encoder", encoder, tmp_path / "half", save_strategy="steps", save_steps=5)
    again = bi_encoder.prepare(recipe, Options(), tt.labelled(), tmp_path / "half")
    again.train(resume_from_checkpoint=str(folder / "checkpoints" / "checkpoint-5"))
    for key, weight in whole.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[key].cpu(), weight.cpu(), rtol=1e-4, atol=1e-5)


def test_columns():
    rows = [
        Example("q", ("a", "b", "c"), (1.0, 1.0, 0.0), prompt="p: "),
        Example("r", ("d",), (1.0,)),
        Example("s", ("e", "f"), scores=(0.5, 0.25)),
        Example("t", ("g", "h", "i"), scores=(0.5, 0.25, 0.125)),
    ]
    assert bi_encoder.columns(rows, Options()) == {
        "query": ["p: q", "p: q", "r"], "positive": ["a", "b", "d"], "negative_0": ["c", "c", "c"],
    }  # fmt: skip
    assert bi_encoder.columns(rows, Options(loss="triplet"))["negative"] == ["c", "c"]
    lists = bi_encoder.columns(rows, Options(loss="preference"))
    assert lists["passage_2"] == ["e", "i"]
    assert lists["label"] == [[0.5, 0.25, -math.inf], [0.5, 0.25, 0.125]]
    assert bi_encoder.columns(rows, Options(loss="preference-flat"))["label"] == [0.5, 0.25, 0.5, 0.25, 0.125]
    assert bi_encoder.columns(rows, Options(), "p: ")["query"] == ["q", "q", "r"]
    with pytest.raises(InvalidInput, match="positive"):
        bi_encoder.columns(rows[2:], Options())


def test_a_prompt_that_all_rows_have_is_saved(tmp_path, encoder):
    rows = [Example(e.query, e.passages, e.labels, prompt="query: ") for e in tt.labelled()]
    _, folder = trained(tmp_path, encoder, {}, rows, max_steps=1)
    with tamis.load(folder, dtype="float32") as reranker, tamis.load(folder, dtype="float32", instruction="") as bare:
        assert reranker.logits("a", ["b"]) == bare.logits("query: a", ["b"])


@pytest.mark.parametrize(
    "name", ["bi-encoder", "llm-preference", "embedding-distillation", "late-interaction", "mrl-adaptor"]
)
def test_the_recipe_files(tmp_path, name):
    from tamis.training import sentence_transformer as st
    from tamis.training.recipe import from_table, read_recipe
    from tamis.training.run import recipe_module

    recipe = read_recipe(Path(__file__).parent.parent / "cookbook" / "recipes" / f"{name}.toml")
    assert recipe.recipe == name
    module = recipe_module(recipe)
    assert name == module.NAME
    module.described(from_table(module.Options, recipe.options, "[options]"))
    st.arguments(replace(recipe, arguments={**recipe.arguments, "bf16": False}), tmp_path)


# -- losses against hand arithmetic ------------------------------------------------------------------------------------


def test_replug_is_a_mean_over_queries():
    """P = (1/2, 1/2) and Q = (3/4, 1/4): 1/2 ln(2/3) + 1/2 ln 2. P = (e, 1)/(e + 1) and Q = P: 0."""
    similarities = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    values = torch.tensor([[math.log(3), 0.0], [1.0, 0.0]])
    by_hand = (math.log(2 / 3) + math.log(2)) / 2 / 2
    assert replug_kl(similarities, values, 1.0, 1.0).item() == pytest.approx(by_hand, abs=1e-6)
    assert replug_kl(similarities / 20, values / 10, 1 / 20, 1 / 10).item() == pytest.approx(by_hand, abs=1e-6)


def test_replug_leaves_missing_passages_out():
    similarities = torch.tensor([[0.3, 0.1, 5.0]], requires_grad=True)
    values = torch.tensor([[0.2, 0.4, -math.inf]])
    loss = replug_kl(similarities, values, 0.5, 0.25)
    assert loss.item() == pytest.approx(replug_kl(similarities[:, :2], values[:, :2], 0.5, 0.25).item(), abs=1e-7)
    loss.backward()
    assert torch.isfinite(similarities.grad).all()
    assert similarities.grad[0, 2] == 0


def test_the_flat_loss_mixes_queries():
    """Four pairs of two queries under one softmax: P uniform, Q = (4, 2, 1, 1) / 8, over n = 4 pairs."""
    values = torch.tensor([4.0, 2.0, 1.0, 1.0]).log()
    q = [0.5, 0.25, 0.125, 0.125]
    by_hand = sum(x * math.log(x / 0.25) for x in q) / 4
    assert flat_kl(torch.zeros(4), values, 1.0).item() == pytest.approx(by_hand, abs=1e-6)


def test_the_loss_module_reads_columns_apart():
    """One text is one vector here: the module's value is that of the function on its cosines."""
    vectors = {"q": [1.0, 0.0], "a": [1.0, 0.0], "b": [0.6, 0.8]}

    def model(column):
        return {"sentence_embedding": torch.tensor([vectors[text] for text in column["texts"]])}

    loss = PreferenceLoss.__new__(PreferenceLoss)
    torch.nn.Module.__init__(loss)
    loss.model, loss.gamma, loss.beta = model, 0.5, 0.5
    labels = torch.tensor([[0.9, 0.1]])
    given = loss([{"texts": ["q"]}, {"texts": ["a"]}, {"texts": ["b"]}], labels)
    p, q = F.softmax(torch.tensor([2.0, 1.2]), 0), F.softmax(torch.tensor([1.8, 0.2]), 0)
    assert given.item() == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-6)


# -- a run from its recipe to its card ---------------------------------------------------------------------------------


def test_a_run_ends_with_an_evaluation_and_a_card(tmp_path, encoder):
    from tamis.training.recipe import DataOptions, EvaluationOptions
    from tamis.training.run import train

    folder = str(beir.save_collection(tmp_path / "tiny", split="train"))
    beir.save_collection(tmp_path / "tiny")
    recipe = replace(
        tt.recipe("bi-encoder", encoder, tmp_path / "out", {"dims": [16]}, max_steps=3),
        data=DataOptions((folder,), negatives=1),
        evaluation=EvaluationOptions((folder,), top=5),
    )
    trained = train(recipe, progress=False)
    assert {"nDCG@10"} <= set(trained.before) & set(trained.after)
    assert "nDCG@10" in (trained.folder / "README.md").read_text()
    with tamis.load(trained.folder, dim=16) as reranker:
        assert len(reranker.rank("zip", list(beir.PASSAGES.values()))) == 6
