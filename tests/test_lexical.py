"""BM25 against its formula written out."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tamis
from tamis.scorers.lexical import K1, B, bm25, words

TERMS = st.lists(st.sampled_from(["zip", "tar", "read", "file", "the"]), max_size=12)


def formula(query, passages):
    """Lucene's form: idf = ln(1 + (N - n + 0.5) / (n + 0.5)); tf / (tf + k1 (1 - b + b |d| / avg))."""
    average = sum(map(len, passages)) / len(passages)
    total = []
    for passage in passages:
        value = 0.0
        for term in query:
            n = sum(term in other for other in passages)
            tf = passage.count(term)
            if tf:
                idf = math.log(1 + (len(passages) - n + 0.5) / (n + 0.5))
                value += idf * tf / (tf + K1 * (1 - B + B * len(passage) / average))
        total.append(value)
    return total


@given(TERMS, st.lists(TERMS, min_size=1, max_size=8))
def test_bm25_is_its_formula(query, passages):
    assert bm25(query, passages).tolist() == pytest.approx(formula(query, passages), abs=1e-5)


def test_ranks_and_scores():
    reranker = tamis.load(mode="lexical")
    ranking = reranker.rank("Read ZIP", ["nothing", "read a zip file", "", "read"])
    assert [hit.index for hit in ranking] == [1, 3, 0, 2]
    assert ranking[-1].score == 0.0
    assert 0 < ranking[1].score < ranking[0].score < 1


def test_many_passages_are_split_in_parts_and_scored_as_one():
    passages = [f"read zip file {number % 7} " * (number % 5) for number in range(600)]
    expected = bm25(words("zip 3"), [words(passage) for passage in passages])
    assert tamis.load(mode="lexical").logits("zip 3", passages) == expected.tolist()


def test_a_timeout_holds():
    passages = ["read a zip archive with the module zipfile"] * 5000
    reranker = tamis.load(mode="lexical")
    with pytest.raises(tamis.DeadlineExceeded):
        reranker.rank("zip", passages, timeout=1e-3)
    with pytest.raises(tamis.DeadlineExceeded):
        asyncio.run(reranker.arank("zip", passages, timeout=1e-3))
    with pytest.raises(tamis.DeadlineExceeded):
        reranker.rank("zip", ["zip " * 100_000], timeout=1e-3)  # in one part: the clock is looked at after it
    assert len(reranker.rank("zip", passages[:9], timeout=60)) == 9


def test_words_of_any_script():
    assert words("Straße, naïve 東京 don't") == ["strasse", "naïve", "東京", "don", "t"]


def test_no_word_in_common_keeps_the_order():
    ranking = tamis.load(mode="lexical").rank("?!", ["b", "", "a"])
    assert [hit.index for hit in ranking] == [0, 1, 2]
