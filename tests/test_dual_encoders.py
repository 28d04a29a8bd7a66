"""Two towers: Dragon, DPR and generic pairs; dot products and cosines; the cache between them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModel, AutoTokenizer

import tamis
import tiny
from tamis.scores import from_dot

QUERY = "how is a zip archive read?"
PASSAGES = [tiny.text(words, seed) for seed, words in enumerate([1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 110, 21, 21])] + [
    ""
]


def cls_states(folder, texts):
    """First tokens of a plain encoder, one text at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        rows = [model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0, 0] for text in texts]
    return torch.stack(rows).double().numpy()


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Two plain BERTs of one width, as Dragon's are."""
    folder = tmp_path_factory.mktemp("towers")
    return tiny.save_encoder(folder / "query", "bert", 1), tiny.save_encoder(folder / "context", "bert", 2)


def test_dragon_is_two_first_tokens_and_their_product(towers):
    query, context = towers
    expected = cls_states(context, PASSAGES) @ cls_states(query, [QUERY])[0]
    assert expected.std() > 1
    with tamis.load(query, passage_model=context, family="dragon", dtype="float32") as reranker:
        ranking = reranker.rank(QUERY, PASSAGES)
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), expected, rtol=1e-4, atol=1e-4)
        assert reranker.stats()["packed"]
        assert reranker.stats()["similarity"] == "dot"
        assert reranker.stats()["query_sequences"] >= 2
    assert [hit.index for hit in ranking] == np.argsort(-expected, kind="stable").tolist()
    assert [hit.score for hit in ranking] == [from_dot(hit.logit) for hit in ranking]
    assert all(0 < hit.score < 1 for hit in ranking)
    with tamis.load(query, passage_model=context, family="dragon", dtype="float32", similarity="cosine") as reranker:
        unit = torch.nn.functional.cosine_similarity(
            torch.from_numpy(cls_states(query, [QUERY])), torch.from_numpy(cls_states(context, PASSAGES))
        )
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), unit.numpy(), atol=1e-5)


def test_the_encoders_may_have_tokenizers_of_their_own(tmp_path):
    query, context = tiny.save_encoder(tmp_path / "q", "roberta"), tiny.save_encoder(tmp_path / "c", "bert")
    expected = cls_states(context, PASSAGES) @ cls_states(query, [QUERY])[0]
    with tamis.load(query, passage_model=context, family="dragon", dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), expected, rtol=1e-4, atol=1e-4)


def test_dragon_by_its_hub_ids(towers, tmp_path):
    """The hub's cache as it lies on disk: loading the query encoder finds its context encoder."""
    import subprocess
    import sys

    for name, folder in zip(["query", "context"], towers, strict=True):
        repository = tmp_path / f"models--facebook--dragon-plus-{name}-encoder"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("c0ffee")
        shutil.copytree(folder, repository / "snapshots" / "c0ffee")
    code = """
import tamis
with tamis.load("facebook/dragon-plus-query-encoder", dtype="float32") as reranker:
    print(reranker.mode, reranker.logits("zip", ["a zip archive"])[0])
for options in ({}, {"passage_model": "facebook/dragon-plus-query-encoder"}):
    try: tamis.load("facebook/dragon-plus-context-encoder", **options)
    except tamis.InvalidInput as error: print("InvalidInput", error)
"""
    environment = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    first, *errors = done.stdout.splitlines()
    expected = cls_states(towers[1], ["a zip archive"])[0] @ cls_states(towers[0], ["zip"])[0]
    assert first.split()[0] == "bi-encoder", done.stderr
    assert float(first.split()[1]) == pytest.approx(expected, rel=1e-4)
    assert [line.split()[0] for line in errors] == ["InvalidInput"] * 2
    assert all("query encoder is model" in line for line in errors)


def test_dragon_in_a_folder_needs_both(towers):
    with pytest.raises(tamis.InvalidInput, match="context encoder as passage_model"):
        tamis.load(towers[0], family="dragon")


# -- DPR ----------------------------------------------------------------------------------------------------------


def save_dpr(folder, kind, seed, projection=0):
    tokenizer = tiny.wordpiece()
    config = transformers.DPRConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        projection_dim=projection,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = getattr(transformers, kind)(config)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, 0.5 if "embedding" in name else 0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def dpr_vectors(folder, kind, texts):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), getattr(transformers, kind).from_pretrained(folder).eval()
    with torch.inference_mode():
        rows = [model(**tokenizer([text], return_tensors="pt")).pooler_output[0] for text in texts]
    return torch.stack(rows).double().numpy()


@pytest.mark.parametrize("projection", [0, 32])
def test_dpr_equals_transformers(tmp_path, projection):
    question = save_dpr(tmp_path / "question", "DPRQuestionEncoder", 1, projection)
    context = save_dpr(tmp_path / "context", "DPRContextEncoder", 2, projection)
    expected = (
        dpr_vectors(context, "DPRContextEncoder", PASSAGES) @ dpr_vectors(question, "DPRQuestionEncoder", [QUERY])[0]
    )
    assert expected.std() > 0.5
    with tamis.load(question, passage_model=context, dtype="float32") as reranker:
        assert reranker.mode == "bi-encoder"
        assert reranker.stats()["packed"]
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), expected, rtol=1e-4, atol=1e-4)
        alone = [reranker.logits(QUERY, [passage])[0] for passage in PASSAGES]
        np.testing.assert_allclose(alone, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(tamis.InvalidInput, match="pass its context encoder as passage_model"):
        tamis.load(question)
    for model, passage_model in ((context, question), (context, context), (question, question), (context, None)):
        with pytest.raises(tamis.InvalidInput, match="Load the question encoder, with the context encoder as"):
            tamis.load(model, passage_model=passage_model)
    plain = tiny.sentence_layout(tiny.save_encoder(tmp_path / "plain", "bert"), "mean")
    with pytest.raises(tamis.InvalidInput, match="DPRQuestionEncoder; what reads passages is a DPRContextEncoder"):
        tamis.load(plain, passage_model=question)
    with pytest.raises(tamis.InvalidInput, match="DPR has"):
        tamis.load(plain, family="dpr")


# -- any two encoders ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two sentence-transformers layouts with their own poolings and prompts, made for dot products."""
    root = tmp_path_factory.mktemp("pair")
    query = tiny.sentence_layout(
        tiny.save_encoder(root / "query", "bert", 1), "cls",
        similarity_fn_name="dot", prompts={"query": "ask: ", "document": "never: "},
    )  # fmt: skip
    passage = tiny.sentence_layout(
        tiny.save_encoder(root / "passage", "roberta", 2), "mean",
        similarity_fn_name="dot_product", prompts={"passage": "text: "},
    )  # fmt: skip
    return query, passage


def peers(pair, passages=PASSAGES, **options):
    """(query's vector, passages' vectors) by sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    query, passage = (SentenceTransformer(str(folder), device="cpu", **options) for folder in pair)
    return query.encode([QUERY], prompt="ask: ")[0], passage.encode(list(passages), prompt="text: ")


@pytest.mark.peers
@pytest.mark.parametrize("dim", [None, 16])
@pytest.mark.parametrize("similarity", [None, "dot", "cosine"])
def test_a_pair_of_layouts_equals_sentence_transformers(pair, similarity, dim):
    from sentence_transformers.util import cos_sim, dot_score

    asked, rows = peers(pair, truncate_dim=dim)
    expected = (cos_sim if similarity == "cosine" else dot_score)(asked, rows)[0].numpy()
    with tamis.load(pair[0], passage_model=pair[1], similarity=similarity, dim=dim, dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), expected, rtol=1e-4, atol=1e-4)


def test_each_tower_has_its_own_length_and_prompt(pair):
    with tamis.load(pair[0], passage_model=pair[1], dtype="float32", instruction="other: ") as reranker:
        other = reranker.logits(QUERY, PASSAGES)
    with tamis.load(pair[0], passage_model=pair[1], dtype="float32") as reranker:
        assert np.abs(np.array(reranker.logits(QUERY, PASSAGES)) - other).max() > 1e-2
    with pytest.raises(tamis.InvalidInput, match="512 tokens at most"):
        tamis.load(pair[0], passage_model=pair[1], max_length=600)


def test_passages_are_kept_by_the_tower_that_read_them(pair, tmp_path):
    other = tiny.sentence_layout(tiny.save_encoder(tmp_path / "q", "bert", 9), "mean", similarity_fn_name="dot")
    with tamis.load(pair[0], passage_model=pair[1], dtype="float32") as reranker:
        first = reranker.rank(QUERY, PASSAGES)
        again = reranker.rank(QUERY, PASSAGES)
        assert (first.usage.cached, again.usage.cached) == (0, len(PASSAGES))
        assert [hit.logit for hit in first] == [hit.logit for hit in again]
        with tamis.load(other, passage_model=pair[1], dtype="float32") as another:
            assert another.rank(QUERY, PASSAGES).usage.cached == len(PASSAGES)


def test_vectors_in_half_precision(pair):
    with tamis.load(pair[0], passage_model=pair[1], dtype="float32") as exact:
        expected = np.array(exact.logits(QUERY, PASSAGES))
        whole = exact.stats()["cache_bytes"]
    with tamis.load(pair[0], passage_model=pair[1], dtype="float32", cache_dtype="float16") as reranker:
        first, again = reranker.logits(QUERY, PASSAGES), reranker.logits(QUERY, PASSAGES)
        small = reranker.stats()["cache_bytes"]
    assert first == again  # rounded before the first use too
    assert whole - small == 64 * 2 * len(PASSAGES)
    np.testing.assert_allclose(first, expected, rtol=2e-3, atol=2e-2)
    assert np.abs(first - expected).max() > 0


def test_widths_that_differ(tmp_path, pair):
    small = tiny.sentence_layout(
        tiny.save_encoder(tmp_path / "m", "bert", hidden_size=32), "mean", similarity_fn_name="dot"
    )
    with pytest.raises(tamis.InvalidInput, match=r"64 dimensions and those of .* 32"):
        tamis.load(pair[0], passage_model=small)
    with pytest.raises(tamis.InvalidInput, match="64 dimensions"):
        tamis.load(pair[0], passage_model=pair[1], dim=65)


def test_a_missing_passage_model(pair, tmp_path):
    with pytest.raises(tamis.ModelNotFound):
        tamis.load(pair[0], passage_model=tmp_path / "nothing")


def test_options_that_mean_nothing_elsewhere(classifier, pair):
    for option in ({"passage_model": pair[1]}, {"similarity": "dot"}, {"cache_dtype": "float16"}):
        with pytest.raises(tamis.InvalidInput, match=f"{next(iter(option))}= means nothing in cross-encoder mode"):
            tamis.load(classifier("bert"), **option)


# -- similarities -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["euclidean", "manhattan"])
def test_distances_are_refused_unless_the_caller_says_otherwise(tmp_path, name):
    folder = tiny.sentence_layout(tiny.save_encoder(tmp_path, "bert"), "mean", similarity_fn_name=name)
    with pytest.raises(tamis.UnknownFamily, match=name):
        tamis.load(folder)
    with tamis.load(folder, similarity="dot") as reranker:
        assert reranker.stats()["similarity"] == "dot"


def test_a_pair_that_contradicts_itself(pair, tmp_path):
    folder = shutil.copytree(pair[1], tmp_path / "m")
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    (folder / "config_sentence_transformers.json").write_text(json.dumps({**settings, "similarity_fn_name": "cosine"}))
    with pytest.raises(tamis.InvalidInput, match="cosine and dot"):
        tamis.load(pair[0], passage_model=folder)
    with tamis.load(pair[0], passage_model=folder, similarity="cosine") as reranker:
        assert reranker.stats()["similarity"] == "cosine"


@pytest.mark.peers
def test_one_tower_with_a_dot_product_equals_sentence_transformers(tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = tiny.sentence_layout(tiny.save_encoder(tmp_path, "bert"), "mean", similarity_fn_name="dot")
    peer = SentenceTransformer(str(folder), device="cpu")
    expected = peer.similarity(peer.encode_query([QUERY]), peer.encode_document(PASSAGES))[0].numpy()
    with tamis.load(folder, dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.peers
def test_a_normalisation_comes_before_the_product(tmp_path):
    from sentence_transformers import SentenceTransformer

    unit = tiny.sentence_layout(
        tiny.save_encoder(tmp_path / "unit", "bert", 1), "mean", ("Normalize", None), similarity_fn_name="dot"
    )
    long = tiny.sentence_layout(tiny.save_encoder(tmp_path / "long", "bert", 2), "mean", similarity_fn_name="dot")
    vectors = {f: SentenceTransformer(str(f), device="cpu").encode([QUERY, *PASSAGES]) for f in (unit, long)}
    assert np.linalg.norm(vectors[unit], axis=1) == pytest.approx(1, abs=1e-5)
    for query, passage in ((unit, unit), (unit, long), (long, unit)):
        expected = vectors[passage][1:] @ vectors[query][0]
        with tamis.load(query, passage_model=passage, dtype="float32") as reranker:
            np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), expected, rtol=1e-4, atol=1e-4)
    with (  # truncated first: then it is the cosine
        tamis.load(unit, dtype="float32", dim=16) as dot,
        tamis.load(unit, dtype="float32", dim=16, similarity="cosine") as cosine,
    ):
        assert dot.logits(QUERY, PASSAGES) == pytest.approx(cosine.logits(QUERY, PASSAGES), abs=1e-6)


@pytest.mark.peers
def test_a_normalisation_between_layers_is_computed(tmp_path):
    from sentence_transformers import SentenceTransformer

    dense = {
        "in_features": 64, "out_features": 32, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh",
    }  # fmt: skip
    folder = tiny.sentence_layout(
        tiny.save_encoder(tmp_path, "bert"), "mean", ("Normalize", None), ("Dense", dense), similarity_fn_name="dot"
    )
    peer = SentenceTransformer(str(folder), device="cpu")
    expected = peer.similarity(peer.encode_query([QUERY]), peer.encode_document(PASSAGES))[0].numpy()
    with tamis.load(folder, dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), expected, rtol=1e-4, atol=1e-4)


def test_a_funnel_of_dot_products(pair):
    asked, rows = peers(pair)
    with tamis.load(pair[0], passage_model=pair[1], dim=[8, 64], dtype="float32") as reranker:
        ranking = reranker.rank(QUERY, PASSAGES)
    early, late = rows[:, :8] @ asked[:8], rows @ asked
    ahead = set(np.argsort(-early)[: (len(PASSAGES) + 1) // 2].tolist())
    half = [hit.index for hit in ranking][: len(ahead)]
    assert set(half) == ahead
    assert half == sorted(ahead, key=lambda i: -late[i])
    for hit in ranking[: len(ahead)]:
        assert hit.logit == pytest.approx(late[hit.index], rel=1e-4)
