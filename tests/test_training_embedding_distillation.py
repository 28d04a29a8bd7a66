"""Embedding distillation: the student's vectors go to the teacher's; the loss's terms against hand arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import tamis
import tiny
import tiny_training as tt
from tamis.errors import InvalidInput
from tamis.training import embedding_distillation
from tamis.training.embedding_distillation import Options
from tamis.training.losses import cosine_loss, relative_loss, similarity_loss
from tamis.training.vectors import encode

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return tiny.save_encoder(tmp_path_factory.mktemp("student"), "bert", **tt.STILL)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tiny.save_encoder(tmp_path_factory.mktemp("teacher"), "bert", 3, hidden_size=96, **tt.STILL)
    return tiny.sentence_layout(folder, "mean", ("Normalize", None))


def trained(tmp_path, student, options, **arguments):
    recipe = tt.recipe(
        "embedding-distillation", student, tmp_path / "out", **{"max_steps": 20, "learning_rate": 5e-5, **arguments}
    )
    trainer = embedding_distillation.prepare(recipe, options, tt.labelled(), recipe.output / "checkpoints")
    trainer.train()
    embedding_distillation.save(trainer, recipe.output, options)
    return trainer, recipe.output


def test_a_narrower_student_gets_the_teacher_s_width(tmp_path, student, teacher):
    trainer, folder = trained(tmp_path, student, Options(str(teacher)), learning_rate=1e-3)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert tt.falls(trainer)
    assert {"cosine", "similarity", "relative"} <= set(logged[0])
    with tamis.load(teacher, dtype="float32") as old, tamis.load(folder, dtype="float32") as new:
        goal, made = encode(old, tiny.TEXT), encode(new, tiny.TEXT)
    assert made.shape == goal.shape
    assert (made * goal).sum(1).mean() > 0.3  # it was about 0 under a new layer


def test_scores_are_those_of_sentence_transformers(tmp_path, student, teacher):
    from sentence_transformers import SentenceTransformer

    options = Options(str(teacher), cosine=0.0, dims=(16,), query_prompt="query: ")
    trainer, folder = trained(tmp_path, student, options)
    assert tt.falls(trainer)
    model = SentenceTransformer(str(folder), device="cpu", truncate_dim=16)
    asked = torch.from_numpy(model.encode_query([tt.QUERIES[0]]))
    expected = torch.nn.functional.cosine_similarity(asked, torch.from_numpy(model.encode_document(tiny.TEXT)))
    with tamis.load(folder, dtype="float32", dim=16) as reranker:
        np.testing.assert_allclose(reranker.logits(tt.QUERIES[0], tiny.TEXT), expected.numpy(), atol=1e-4)


def test_wrong_options():
    with pytest.raises(InvalidInput, match="weights"):
        Options("teacher", cosine=0, similarity=0, relative=0)


UNIT = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])  # cosines 0.6, 0, 0.8
OTHER = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.6, 0.8]])  # cosines 0, 0.6, 0.8


def test_cosine_by_hand():
    assert cosine_loss(UNIT, OTHER).item() == pytest.approx((0.0 + 0.2 + 0.2) / 3, abs=1e-6)


def test_similarity_by_hand():
    """Of nine entries the three on the diagonal agree, and each pair stands twice."""
    assert similarity_loss(UNIT, OTHER).item() == pytest.approx(2 * (0.36 + 0.36 + 0.0) / 9, abs=1e-6)


def test_relative_by_hand():
    """Teacher 0 < 0.6 < 0.8 for the pairs (0,1), (0,2), (1,2), where the student has 0.6, 0, 0.8."""
    margin = 0.015
    terms = [0.6 - 0.0 + margin, max(0, 0.6 - 0.8 + margin), max(0, 0.0 - 0.8 + margin)]
    assert relative_loss(UNIT, OTHER, margin).item() == pytest.approx(sum(terms) / 3, abs=1e-6)
    assert relative_loss(OTHER, OTHER, margin).item() == 0
    assert not math.isnan(relative_loss(UNIT[:1], OTHER[:1], margin).item())
