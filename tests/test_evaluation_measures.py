"""Measures, intervals, calibration and answers: against hand arithmetic and other implementations."""

import math
import sys

import ir_measures
import numpy as np
import pytest

import tamis
from tamis.evaluation.answers import exact, f1, holds, normalised
from tamis.evaluation.bootstrap import of_collections, resampled
from tamis.evaluation.calibration import calibrate
from tamis.evaluation.measures import MEASURES, measured


def test_measures_by_hand():
    qrels = {"graded": {"a": 1, "b": 2, "y": 0}, "late": {"c": 1}, "missing": {"d": 1, "e": 1}}
    ranked = {"graded": ["x", "b", "a"], "late": [*"0123456789", "c"], "missing": ["e"]}
    found = measured(qrels, ranked)
    dcg = 2 / math.log2(3) + 1 / math.log2(4)
    best = 2 / math.log2(2) + 1 / math.log2(3)
    missing = 1 / (1 + 1 / math.log2(3))
    assert found["nDCG@10"] == pytest.approx([dcg / best, 0.0, missing])
    assert found["MRR@10"] == pytest.approx([1 / 2, 0.0, 1.0])
    assert found["MAP"] == pytest.approx([(1 / 2 + 2 / 3) / 2, 1 / 11, 1 / 2])
    assert found["Recall@5"] == pytest.approx([1.0, 0.0, 0.5])
    assert found["Recall@10"] == pytest.approx([1.0, 0.0, 0.5])
    assert found["Recall@20"] == pytest.approx([1.0, 1.0, 0.5])


def test_measures_are_those_of_ir_measures():
    rng = np.random.default_rng(0)
    passages = [f"p{i}" for i in range(60)]
    qrels = {f"q{i}": {p: int(rng.integers(0, 3)) for p in rng.choice(passages, 8, replace=False)} for i in range(30)}
    qrels = {query: {**judged, "p0": 1} for query, judged in qrels.items()}
    ranked = {query: list(rng.permutation(passages)[:40]) for query in qrels}
    run = {query: {p: 1.0 / (i + 1) for i, p in enumerate(found)} for query, found in ranked.items()}
    names = {name: ir_measures.parse_measure(text) for name, text in MEASURES.items()}
    theirs = ir_measures.calc_aggregate(list(names.values()), qrels, run)
    for name, values in measured(qrels, ranked).items():
        assert values.mean() == pytest.approx(theirs[names[name]], abs=1e-9)


def test_no_ranking_at_all_counts_as_nothing_found():
    for ranked in ({}, {"q": []}):
        assert {float(values[0]) for values in measured({"q": {"a": 1}}, ranked).values()} == {0.0}


def test_without_ir_measures_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(tamis.MissingExtra, match=r'pip install "tamis\[eval\]"'):
        measured({"q": {"a": 1}}, {"q": ["a"]})


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_intervals():
    rng = np.random.default_rng(1)
    parts = [rng.normal(0.1, 1, (40, 3)), rng.normal(0.1, 1, (25, 3))]
    first, again, other = (of_collections(parts, seed, 400) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_one_query_or_equal_differences_have_no_width():
    for values in (np.array([[0.25, -1.0]]), np.full((9, 2), [0.25, -1.0])):
        (single,), mean = of_collections([values], 0, 200)
        assert single == mean
        for interval, value in zip(single, (0.25, -1.0), strict=True):
            assert interval == pytest.approx((value, value, value))
    assert [interval.sign for interval in single] == ["+", "-"]


def test_two_queries_by_hand():
    """Of two queries a draw has (0, 0), (0, 1), (1, 0) or (1, 1), each alike: 0, 1/2, 1/2, 1."""
    draws = resampled(np.array([[0.0], [1.0]]), np.random.default_rng(0), 20_000)
    values, counts = np.unique(draws, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    assert counts / 20_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.015)
    (single,), _ = of_collections([np.array([[0.0], [1.0]])], 0)
    assert tuple(single[0]) == (0.5, 0.0, 1.0)
    assert single[0].sign == ""


def test_many_queries_come_near_the_normal_interval():
    values = np.random.default_rng(3).normal(0.05, 0.3, (600, 1))
    (single,), _ = of_collections([values], 0)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert single[0].low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert single[0].high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_pairs_stay_together():
    """A difference that is the same for every query is sure, however much the queries differ."""
    hard = np.random.default_rng(0).random((50, 1))
    columns = np.hstack([hard, hard + 0.1])
    draws = resampled(columns, np.random.default_rng(1), 100)
    assert draws[:, 1] - draws[:, 0] == pytest.approx(np.full(100, 0.1))


def test_every_collection_counts_alike():
    parts = [np.full((100, 1), 0.1), np.full((2, 1), 0.3)]
    single, mean = of_collections(parts, 0, 50)
    assert [one[0].mean for one in single] == pytest.approx([0.1, 0.3])
    assert mean[0] == pytest.approx((0.2, 0.2, 0.2))
    assert of_collections([], 0) == ([], [])


# -- calibration -------------------------------------------------------------------------------------------------------


def test_calibration_by_hand():
    scores = np.array([0.95, 0.85, 0.85, 0.35, 0.32, 0.05])
    relevant = np.array([True, True, False, True, False, False])
    found = calibrate(scores, relevant, precision=1.0)
    assert [one.count for one in found.bins] == [1, 0, 0, 2, 0, 0, 0, 0, 2, 1]
    assert [one.relevant for one in found.bins if one.count] == [0.0, 0.5, 0.5, 1.0]
    expected = (1 * 0.05 + 2 * abs(0.335 - 0.5) + 2 * 0.35 + 1 * 0.05) / 6
    assert found.error == pytest.approx(expected)
    # pairs of a relevant and another one: 0.95 wins 3, 0.85 wins 2 and ties 1, 0.35 wins 2
    assert found.auc == pytest.approx((3 + 2.5 + 2) / 9)
    # from 0.35 on: 3 of 4 right and all 3 found
    assert (found.best.precision, found.best.recall) == (0.75, 1.0)
    assert found.best.min_score == pytest.approx((0.35 + 0.32) / 2)
    assert found.best.f1 == pytest.approx(6 / 7)
    # precision 1 is reached by the first alone, and the two of 0.85 cannot be told apart
    assert (found.precise.precision, found.precise.recall) == (1.0, pytest.approx(1 / 3))
    assert found.precise.min_score == pytest.approx(0.9)


def test_calibration_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(5)
    scores = rng.integers(0, 40, 500) / 40  # with ties
    relevant = rng.random(500) < scores
    found = calibrate(scores, relevant, precision=0.8)
    assert found.auc == pytest.approx(metrics.roc_auc_score(relevant, scores))
    levels = np.unique(scores)
    f1_scores = [metrics.f1_score(relevant, scores >= level) for level in levels]
    assert found.best.f1 == pytest.approx(max(f1_scores))
    for threshold in (found.best, found.precise):
        kept = scores >= threshold.min_score
        assert threshold.precision == pytest.approx(metrics.precision_score(relevant, kept))
        assert threshold.recall == pytest.approx(metrics.recall_score(relevant, kept))
    enough = [level for level in levels if metrics.precision_score(relevant, scores >= level) >= 0.8]
    assert found.precise.recall == pytest.approx(max(metrics.recall_score(relevant, scores >= x) for x in enough))


@pytest.mark.parametrize("relevant", [[True, True], [False, False], []])
def test_what_cannot_be_told_is_none(relevant):
    found = calibrate(np.linspace(0.2, 0.8, len(relevant)), np.array(relevant, bool))
    assert found.auc is None
    assert (found.best is None) == (not any(relevant))
    assert found.pairs == len(relevant)


def test_neighbouring_scores_can_still_be_told_apart():
    above = np.nextafter(0.5, 1)
    found = calibrate(np.array([above, 0.5]), np.array([True, False]))
    assert found.best.min_score == above


# -- answers: SQuAD's published rules, worked out by hand --------------------------------------------------------------


@pytest.mark.parametrize(
    "text, answers, em, overlap",
    [
        ("Denver Broncos", ["Denver Broncos"], 1, 1),
        ("the  denver BRONCOS.", ["Denver Broncos"], 1, 1),  # case, article, punctuation, white space
        ("Denver Broncos won", ["The Denver Broncos"], 0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("new new york", ["new york"], 0, 0.8),  # a word counts as often as it stands in both
        ("York New", ["New York"], 0, 1),  # the order does not count for F1
        ("Eiffel-Tower", ["Eiffel Tower"], 0, 0),  # punctuation goes without a trace
        ("U.S.A", ["USA"], 1, 1),
        ("theatre", ["atre"], 0, 0),  # articles are whole words
        ("an Aardvark", ["a aardvark"], 1, 1),
        ("one", ["two", "three", "ONE!"], 1, 1),  # the best of several
        ("four score", ["score", "four score and seven"], 0, 2 / 3),
        ("", ["something"], 0, 0),
        ("something", [], 0, 0),  # nothing was to be said
        ("", [], 1, 1),
        ("The", [], 1, 1),  # nothing is left of it
        ("", ["a"], 1, 1),  # an answer of which nothing is left is none
        ("café", ["Café"], 1, 1),
        ("5,500,000", ["5500000"], 1, 1),
    ],
)
def test_exact_match_and_f1(text, answers, em, overlap):
    assert exact(text, answers) == em
    assert f1(text, answers) == pytest.approx(overlap)


def test_an_answer_that_stands_in_the_text_is_accurate():
    assert holds("It was the Denver Broncos who won", ["Broncos", "x"]) == 1
    assert holds("It was Denver Broncoss", ["Broncos"]) == 0
    assert holds("", ["Broncos"]) == 0
    assert holds("", []) == 1
    assert holds("Broncos", []) == 0
    assert normalised("A man, a plan: THE canal!") == "man plan canal"
