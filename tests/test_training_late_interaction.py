"""Late interaction: what is trained has the same MaxSim in Tamis and in sentence-transformers."""

from __future__ import annotations

import numpy as np
import pytest

import tamis
import tiny
import tiny_training as tt
from tamis.errors import InvalidInput
from tamis.training import late_interaction
from tamis.training.late_interaction import Options

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny.save_encoder(tmp_path_factory.mktemp("bert"), "bert", **tt.STILL)


def reference(folder, query, passages):
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(folder), device="cpu")
    return model.similarity(model.encode_query([query]), model.encode_document(passages))[0].numpy()


def trained(tmp_path, encoder, options, examples, **arguments):
    recipe = tt.recipe("late-interaction", encoder, tmp_path / "out", **arguments)
    trainer = late_interaction.prepare(recipe, options, examples, recipe.output / "checkpoints")
    trainer.train()
    late_interaction.save(trainer, recipe.output, options)
    return trainer, recipe.output


@pytest.mark.parametrize(
    "options",
    [
        {"query_length": 16, "dim": 32},
        {"expand": False, "skip_punctuation": False, "dim": 32, "mini_batch": 4},
        {"query_prompt": "ask: ", "passage_prompt": "read: ", "query_length": 24, "passage_length": 40},
    ],
    ids=str,
)
def test_it_learns_and_scores_as_in_sentence_transformers(tmp_path, encoder, options):
    options = Options(**options)
    trainer, folder = trained(tmp_path, encoder, options, tt.labelled())
    assert tt.falls(trainer)
    with late_interaction.load(folder, options) as reranker:
        assert reranker.mode == "late-interaction"
    with tamis.load(folder, dtype="float32") as reranker:
        for query in tt.QUERIES[:2]:
            np.testing.assert_allclose(
                reranker.logits(query, tiny.TEXT), reference(folder, query, tiny.TEXT), rtol=1e-4, atol=1e-3
            )


def test_a_teacher_s_scores_and_training_on(tmp_path, encoder):
    first, folder = trained(tmp_path / "first", encoder, Options(dim=16), tt.labelled(), max_steps=2)
    options = Options(loss="distillation", temperature=2.0, teacher_temperature=0.2)
    trainer, folder = trained(tmp_path, folder, options, tt.scored(), learning_rate=1e-3)
    assert tt.falls(trainer)
    assert trainer.model[1].out_features == first.model[1].out_features == 16
    with tamis.load(folder, dtype="float32") as reranker:
        given = reranker.logits(tt.QUERIES[1], tiny.TEXT)
    np.testing.assert_allclose(given, reference(folder, tt.QUERIES[1], tiny.TEXT), rtol=1e-4, atol=1e-3)


def test_a_plain_encoder_cannot_rank_before(encoder):
    assert late_interaction.load(encoder, Options()) is None


def test_wrong_options(tmp_path, encoder):
    with pytest.raises(InvalidInput, match="contrastive"):
        Options(loss="triplet")
    with pytest.raises(InvalidInput, match="at least 1"):
        Options(dim=0)
    with pytest.raises(InvalidInput, match="teacher"):
        trained(tmp_path, encoder, Options(loss="distillation"), tt.labelled())
