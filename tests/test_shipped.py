"""The models that come with Tamis: their size, their cards, and that they rank as their cards say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import tamis
from tamis.checkpoint import ADAPTOR, MINI, SHIPPED

DATA = Path(os.environ.get("TAMIS_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
QUERY = "Which planet is known as the Red Planet?"
PASSAGES = [
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
]


def test_all_of_them_together_are_small():
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md"}  # and no pickle among them


@pytest.mark.parametrize("folder", [p for p in sorted(SHIPPED.iterdir()) if p.is_dir()], ids=lambda p: p.name)
def test_every_card_tells_data_licences_command_seed_and_figures(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    for word in ("license:", "base_model:", "tamis train", "seed", "CC BY", "nDCG@10"):
        assert word in card, word
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            assert list(file.keys())


def test_tamis_mini_needs_nothing_but_tamis():
    with tamis.load(mode="cross-encoder") as reranker:
        assert (reranker.model, reranker.mode) == (MINI, "cross-encoder")
        ranking = reranker.rank(QUERY, PASSAGES)
        assert ranking[0].index == 1
        assert ranking[0].score > 0.5 > reranker.score(QUERY, ["Cows eat grass."])[0]


@pytest.mark.peers
def test_tamis_mini_is_an_ordinary_cross_encoder():
    from sentence_transformers import CrossEncoder
    from torch.nn import Identity

    peer = CrossEncoder(str(SHIPPED / MINI), activation_fn=Identity(), device="cpu", model_kwargs={"dtype": "float32"})
    expected = peer.predict([(QUERY, passage) for passage in PASSAGES])
    with tamis.load(mode="cross-encoder", dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), expected, atol=1e-4)


def test_the_bi_encoder_alone_is_a_mode_away():
    with tamis.load(mode="bi-encoder", dim=64) as short, tamis.load(mode="bi-encoder") as whole:
        assert short.model == whole.model == "all-MiniLM-L6-v2"
        assert short.mode == whole.mode == "bi-encoder"


@pytest.mark.peers
def test_the_rotation_leaves_whole_vectors_as_they_were(embedded):
    from sentence_transformers import SentenceTransformer

    from tamis.checkpoint import Checkpoint

    peer = SentenceTransformer(str(Checkpoint.embedded().root), device="cpu")
    q, *p = peer.encode([QUERY, *PASSAGES])
    np.testing.assert_allclose(embedded.logits(QUERY, PASSAGES), np.array(p) @ q, atol=1e-5)


def test_the_head_is_a_rotation():
    with safe_open(ADAPTOR / "model.safetensors", framework="np") as file:
        weight = file.get_tensor("linear.weight").astype(np.float64)
    np.testing.assert_allclose(weight @ weight.T, np.eye(384), atol=1e-5)
    assert json.loads((ADAPTOR / "config.json").read_text())["bias"] is False


@pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not here")
def test_it_ranks_better_than_bm25_where_it_was_not_trained():
    """HotpotQA's candidates, which no training run has seen: thirty questions, ten passages each."""
    from tamis.evaluation import evaluate, read_collection

    with tamis.load(mode="cross-encoder") as reranker:
        report = evaluate({"mini": reranker}, [read_collection(DATA / "hotpotqa", "dev")], limit=30, resamples=100)
    assert report.means("mini")["nDCG@10"] > report.means()["nDCG@10"]


def test_the_rankrag_adapter_ranks_better_than_the_model_without_it(embedded_rag):
    """Eight questions, each over the same eight passages of one subject."""
    passages = [
        "The Nile flows northwards through eleven countries of Africa and ends in the Mediterranean.",
        "The Amazon carries more water than any other river, a fifth of all that reaches the sea from rivers.",
        "The Danube rises in the Black Forest and passes through four capitals, Vienna among them.",
        "The Rhine was regulated by Tulla in the nineteenth century, who made it 81 kilometres shorter.",
        "The Yangtze is the longest river of Asia; the Three Gorges Dam was finished across it in 2006.",
        "The Volga, the longest river of Europe, ends in the Caspian Sea, which has no outlet.",
        "The Ganges is sacred to Hindus, who bathe in it at Varanasi.",
        "The Colorado carved the Grand Canyon, and seldom reaches the sea since its water is used up before.",
    ]
    questions = [
        "Which sea does the Nile end in?",
        "Which river carries the most water?",
        "Where does the Danube rise?",
        "Who regulated the Rhine?",
        "When was the Three Gorges Dam finished?",
        "What is the longest river in Europe?",
        "Where do Hindus bathe in the Ganges?",
        "Which river carved the Grand Canyon?",
    ]

    def first(rag):
        return sum(rag.rank(question, passages).hits[0].index == i for i, question in enumerate(questions))

    with tamis.load_rankrag(adapter="none") as untuned:
        assert first(embedded_rag) > first(untuned)
    assert first(embedded_rag) >= 6
