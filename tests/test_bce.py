"""bce-reranker: BCEmbedding's scores and windows, recorded in golden/bce.json, and written out."""

from __future__ import annotations

import json
from itertools import compress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import tamis
from golden.checkpoints import save_bce
from tamis.long_documents import windows

GOLDEN = json.loads((Path(__file__).parent / "golden" / "bce.json").read_text(encoding="utf-8"))
RERANKS = [entry for entry in GOLDEN["rerank"] if entry["overlap_tokens"] == 80]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_bce(tmp_path_factory.mktemp("bce"))


@given(length=st.integers(0, 4000), query=st.integers(0, 400))
def test_windows_are_the_references(length, query):
    room = 512 - query - 4
    overlap = min(80, room // 4)
    expected, start = [], 0
    while start + room < length:
        expected.append(slice(start, start + room))
        start += room - overlap
    assert windows(length, room, full=False) == [*expected, slice(start, length)]


@pytest.mark.parametrize("entry", RERANKS, ids=lambda entry: f"{entry['max_length']}-{len(entry['query_ids'])}")
def test_long_passages_score_as_the_reference(folder, entry):
    passages = GOLDEN["passages"]
    with tamis.load(
        folder,
        family="bce-reranker",
        dtype="float32",
        long_documents="max_window",
        max_length=entry["max_length"],
    ) as reranker:
        ranking = reranker.rank(entry["query"], passages)
        scores = reranker.score(entry["query"], passages)
    expected = dict(zip(entry["ranked"], entry["rerank_scores"], strict=True))
    assert sorted(expected) == [i for i, text in enumerate(passages) if text]  # the reference drops empty ones
    for i, score in expected.items():
        assert scores[i] == pytest.approx(score, abs=1e-5)
    ranked = [round(scores[hit.index], 5) for hit in ranking if hit.passage.text]
    assert ranked == pytest.approx(sorted(entry["rerank_scores"], reverse=True), abs=2e-5)
    counts = np.bincount([i for i, _, _ in entry["windows"]], minlength=len(passages))
    overhead = len(entry["query_ids"]) + 2
    empty = overhead * sum(not text for text in passages)
    assert ranking.usage.tokens == empty + sum(overhead + stop - start for _, start, stop in entry["windows"])
    assert {hit.index for hit in ranking if hit.window} == set(np.flatnonzero(counts > 1).tolist())


def test_pairs_score_as_the_reference(folder):
    pairs, scores = GOLDEN["sets"][0]["pairs"], GOLDEN["sets"][0]["runs"][0]["scores"]
    # an empty query is refused, and a pair that is too long is cut as everywhere in Tamis, not longest first
    asked = [pair["query"].strip() != "" and len(pair["input_ids"]) < 512 for pair in pairs]
    pairs, expected = [list(compress(values, asked)) for values in (pairs, scores)]
    assert len(pairs) >= 8
    with tamis.load(folder, family="bce-reranker", dtype="float32") as reranker:
        given = [reranker.score(pair["query"], [pair["passage"]])[0] for pair in pairs]
    np.testing.assert_allclose(given, expected, atol=1e-4)


def test_the_window_that_won_is_one_of_the_references(folder):
    entry, passages = RERANKS[0], GOLDEN["passages"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    places = tokenizer(passages, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    with tamis.load(folder, family="bce-reranker", dtype="float32", long_documents="max_window") as reranker:
        ranking = reranker.rank(entry["query"], passages)
    for hit in ranking:
        spans = [
            (places[i][start][0], places[i][stop - 1][1])
            for i, start, stop in entry["windows"]
            if i == hit.index and stop - start < len(places[i])
        ]
        assert (hit.window in spans) if spans else hit.window is None


def test_the_published_id_is_known():
    from tamis.families import families

    family = next(family for family in families() if family.name == "bce-reranker")
    assert "maidalun1020/bce-reranker-base_v1" in family.hub_ids
