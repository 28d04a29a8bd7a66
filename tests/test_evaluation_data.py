"""Collections, runs and first stages."""

import json
import math
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest

import tamis
from beir import PASSAGES, QUERIES, save_collection, shared_collection, write_jsonl
from fakes import FakeScorer
from tamis.evaluation import Query, bm25_run, dense_run, evaluate, read_collection, read_run, write_run


@pytest.fixture
def folder(tmp_path):
    return save_collection(tmp_path / "modules")


def test_a_folder_is_read(folder):
    collection = read_collection(folder)
    assert (collection.name, collection.split) == ("modules", "dev")
    assert list(collection.corpus) == list(PASSAGES)
    assert collection.corpus["zip"] == tamis.Passage(PASSAGES["zip"], "zip", {"title": ""})
    assert collection.qrels == {key: judged for key, (_, judged, _) in QUERIES.items()}
    assert collection.queries["q1"].answers == ("zipfile", "the module zipfile")
    assert collection.queries["q4"].answers == ()
    assert collection.answerable() == ["q1", "q2", "q3"]
    assert pickle.loads(pickle.dumps(collection)) == collection


def test_a_title_is_put_before_a_text_that_does_not_begin_with_it(folder):
    rows = [
        {"_id": "a", "title": "Zip", "text": "An archive."},
        {"_id": "b", "title": "Tar", "text": "Tar is older."},
        {"_id": "c", "text": "No title."},
    ]
    write_jsonl(folder / "corpus.jsonl", rows)
    write_jsonl(folder / "queries.jsonl", [{"_id": "q", "text": "what?"}])
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\n")
    collection = read_collection(folder)
    assert [passage.text for passage in collection.corpus.values()] == [
        "Zip\nAn archive.",
        "Tar is older.",
        "No title.",
    ]
    assert collection.corpus["a"].metadata == {"title": "Zip"}
    assert collection.queries["q"] == Query("q", "what?", None, (), {})


def test_only_the_split_is_asked(folder):
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq2\tcsv\t1\n")
    assert list(read_collection(folder, "test").queries) == ["q2"]
    with pytest.raises(tamis.InvalidInput, match=re.escape("There is no") + ".*The folder has the splits dev, test"):
        read_collection(folder, "train")
    with pytest.raises(tamis.InvalidInput, match="A collection is a folder with"):
        read_collection(folder / "nothing")


def test_every_bad_row_is_named_at_once(folder):
    (folder / "corpus.jsonl").write_bytes(
        b'{"_id": "a", "text": "one"}\n{"_id": "a", "text": "two"}\nnot json\n\n[1]\n{"_id": "b"}\n{"text": "x"}\n'
        b'{"_id": "c", "text": "\xff"}\n{"_id": "d", "text": "", "title": 3}\n'
    )
    write_jsonl(
        folder / "queries.jsonl",
        [
            {"_id": "q1", "text": ""},
            {"_id": "q2", "text": "fine", "metadata": {"answers": "one", "candidates": ["a", "z"]}},
            {"_id": "q2", "text": "again"},
            {"_id": 3, "text": "a number"},
            {"_id": "q4", "text": None, "metadata": []},
            {"_id": "q5", "text": "so what", "metadata": ["a"]},
        ],
    )
    (folder / "qrels" / "dev.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\ta\t1\nq9\ta\t1\nq1\tz\t1\nq1 a 1\nq1\tb\thigh\nq1\ta\t0\n"
    )
    with pytest.raises(tamis.InvalidData) as caught:
        read_collection(folder)
    found = [problem.removeprefix(f"{folder}/") for problem in caught.value.problems]
    assert [problem.split(": ")[0] for problem in found] == [
        *(f"corpus.jsonl:{n}" for n in (2, 3, 5, 6, 7, 8, 9)),
        *(f"queries.jsonl:{n}" for n in (1, 2, 2, 3, 4, 5, 6)),
        *(f"qrels/dev.tsv:{n}" for n in (3, 4, 5, 6, 7)),
    ]
    assert "the _id 'a' has been taken" in found[0]
    assert "is not JSON: Expecting value" in found[1]
    assert "is a JSON list" in found[2]
    assert "text is missing" in found[3]
    assert "_id is None" in found[4]
    assert "is not UTF-8" in found[5]
    assert "title is a int" in found[6]
    assert "text is empty" in found[7]
    assert "metadata.answers should be a list" in found[8]
    assert "the candidate 'z' is not in the corpus" in found[9]
    assert "there is no query 'q9'" in found[14]
    assert "there is no passage 'z'" in found[15]
    assert "has 1 cells" in found[16]
    assert "the score is 'high'" in found[17]
    assert "stand in a row above" in found[18]
    assert str(caught.value).startswith("19 bad rows:\n")


def test_a_long_list_of_problems_is_cut_in_the_message_alone():
    error = tamis.InvalidData([f"file:{n}: bad." for n in range(30)])
    assert len(error.problems) == 30
    assert str(error).splitlines()[-2:] == ["file:19: bad.", "... and 10 more."]
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_empty_split_is_refused(folder):
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(tamis.InvalidInput, match="has no rows"):
        read_collection(folder)


def test_a_limit_draws_with_the_seed_and_keeps_the_order(folder):
    collection = read_collection(folder)
    drawn = [tuple(collection.limited(2, seed).queries) for seed in range(20)]
    assert drawn == [tuple(collection.limited(2, seed).queries) for seed in range(20)]
    assert len(set(drawn)) > 2
    assert all(list(two) == sorted(two) for two in drawn)
    assert collection.limited(9) is collection
    assert collection.limited(2).corpus is collection.corpus
    with pytest.raises(tamis.InvalidInput, match="at least 1"):
        collection.limited(0)


# -- runs --------------------------------------------------------------------------------------------------------------


def test_runs_come_back_as_they_were_written(tmp_path):
    run = {"q1": {"zip": 0.1 + 0.2, "tar": 0.3}, "q2": {"csv": -2.0}}
    write_run(tmp_path / "run.trec", run, "mine")
    assert (tmp_path / "run.trec").read_text().splitlines()[1] == "q1 Q0 tar 2 0.3 mine"
    back = read_run(tmp_path / "run.trec")
    assert back == run
    assert list(back["q1"]) == ["zip", "tar"]
    with pytest.raises(tamis.InvalidInput, match="white space"):
        write_run(tmp_path / "other.trec", {"a query": {"zip": 1.0}})


def test_a_run_is_ordered_by_score_then_rank(tmp_path):
    (tmp_path / "run").write_text("q Q0 b 2 1.0 x\nq Q0 c 3 5.0 x\nq Q0 a 1 1.0 x\n")
    assert list(read_run(tmp_path / "run")["q"]) == ["c", "a", "b"]


def test_bad_rows_of_a_run_are_named_at_once(tmp_path, folder):
    collection = read_collection(folder)
    (tmp_path / "run").write_text(
        "q1 Q0 zip 1 1.0 x\nq1 Q0 zip 2 0.5 x\nq1 Q0 nowhere 3 0.1 x\nq1 Q0 tar 1 nan x\nq1 Q0 tar one 1 x\nshort\n"
        "other Q0 elsewhere 1 1.0 x\n"
    )
    with pytest.raises(tamis.InvalidData) as caught:
        read_run(tmp_path / "run", collection)
    lines = [int(re.search(r"run:(\d+): ", problem)[1]) for problem in caught.value.problems]
    assert lines == [2, 3, 4, 5, 6]
    (tmp_path / "run").write_text("other Q0 elsewhere 1 1.0 x\n")
    with pytest.raises(tamis.InvalidInput, match="has nothing for the 4 queries of modules"):
        read_run(tmp_path / "run", collection)


# -- first stages ------------------------------------------------------------------------------------------------------


def test_bm25_is_the_published_formula(folder):
    """`idf tf / (tf + k1 (1 - b + b dl / avgdl))`, idf of Lucene, written out over words without stop words."""
    from bm25s.stopwords import STOPWORDS_EN

    collection = read_collection(folder)
    texts = {
        key: [word for word in re.findall(r"\w\w+", passage.text.lower()) if word not in STOPWORDS_EN]
        for key, passage in collection.corpus.items()
    }
    mean = sum(map(len, texts.values())) / len(texts)

    def score(query, words):
        total = 0.0
        for term in re.findall(r"\w\w+", query.lower()):
            if term in STOPWORDS_EN or term not in words:
                continue
            df = sum(term in others for others in texts.values())
            idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
            tf = words.count(term)
            total += idf * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * len(words) / mean))
        return total

    run = bm25_run(collection)
    for key, query in collection.queries.items():
        expected = {passage: score(query.text, words) for passage, words in texts.items()}
        found = {passage: value for passage, value in expected.items() if value > 0}
        assert run[key] == pytest.approx(found, rel=1e-5)
        assert list(run[key]) == sorted(found, key=lambda passage: -run[key][passage])


def test_bm25_top_and_queries(folder):
    collection = read_collection(folder)
    whole = bm25_run(collection)
    assert list(bm25_run(collection, queries=["q2"])) == ["q2"]
    assert list(bm25_run(collection, 1)["q1"]) == list(whole["q1"])[:1]
    with pytest.raises(tamis.InvalidInput, match="no query 'q9'"):
        bm25_run(collection, queries=["q9"])


def test_bm25_ranks_candidates_alone(tmp_path):
    pool = ["json", "zip", "heap"]
    collection = read_collection(save_collection(tmp_path / "pools", candidates={"q1": pool}))
    plain = read_collection(save_collection(tmp_path / "plain"))
    run = bm25_run(collection)
    assert set(run["q1"]) == set(pool)
    assert run["q1"]["zip"] == bm25_run(plain)["q1"]["zip"]
    assert list(run["q1"].items())[1:] == [("json", 0.0), ("heap", 0.0)]
    assert run["q2"] == bm25_run(plain)["q2"]


def test_bm25_of_a_corpus_without_words(folder):
    collection = read_collection(folder)
    blank = replace(collection, corpus={key: tamis.Passage("", key) for key in collection.corpus})
    assert bm25_run(blank) == {query: {} for query in collection.queries}


@pytest.fixture(scope="module")
def minilm():
    with tamis.load(mode="bi-encoder", dtype="float32") as reranker:
        yield reranker


def test_a_bi_encoder_finds_what_it_would_rank_first(folder, minilm):
    collection = read_collection(folder)
    run = dense_run(collection, minilm, 4)
    for key, query in collection.queries.items():
        ranking = minilm.rank(query.text, list(collection.corpus.values()), top_n=4)
        assert list(run[key]) == [hit.passage.id for hit in ranking]
        assert list(run[key].values()) == pytest.approx([hit.logit for hit in ranking], abs=1e-5)


def test_a_bi_encoder_reads_the_corpus_once(folder):
    collection = read_collection(folder)
    with tamis.load(mode="bi-encoder", dtype="float32", cache_bytes=0) as reranker:
        before = reranker.stats()["sequences"]
        dense_run(collection, reranker)
        assert reranker.stats()["sequences"] - before == len(collection.queries) + len(collection.corpus)


@pytest.mark.parametrize(
    "options", [{"dim": 64}, {"dim": [32, 128]}, {"long_documents": "max_window", "max_length": 32}]
)
def test_a_search_goes_by_the_rerankers_own_settings(folder, options):
    collection = read_collection(folder)
    long = {**collection.corpus, "long": tamis.Passage("Of many things. " * 40 + PASSAGES["zip"], "long")}
    collection = replace(collection, corpus=long)
    with tamis.load(mode="bi-encoder", dtype="float32", **options) as reranker:
        run = dense_run(collection, reranker, 3)
        for key, query in collection.queries.items():
            ranking = reranker.rank(query.text, list(long.values()), top_n=3)
            assert list(run[key]) == [hit.passage.id for hit in ranking]


def test_what_reads_pairs_cannot_search_but_can_rank_candidates(tmp_path):
    reranker = tamis.Reranker(FakeScorer())
    with pytest.raises(tamis.InvalidInput, match="search with a bi-encoder"):
        dense_run(read_collection(save_collection(tmp_path / "a")), reranker)
    pools = {query: ["zip", "sqlite", "json"] for query in QUERIES}
    run = dense_run(read_collection(save_collection(tmp_path / "b", candidates=pools)), reranker, 2)
    assert run["q1"] == {"sqlite": 48.0, "zip": 46.0}


@pytest.mark.parametrize("name, least, most", [("scifact", 0.64, 0.70), ("squad", 0.83, 0.91)])
def test_bm25_on_published_collections(name, least, most):
    report = evaluate({}, [read_collection(shared_collection(name))], resamples=1)
    assert least < report.means()["nDCG@10"] < most


def test_published_collections_are_well_formed():
    collection = read_collection(shared_collection("squad2-unanswerable"))
    assert len(collection.queries) == 871
    assert len(collection.answerable()) == 493
    assert sum(query.answers == () for query in collection.queries.values()) == 378
    pools = read_collection(shared_collection("hotpotqa"))
    assert {len(query.candidates) for query in pools.queries.values()} <= set(range(4, 11))
    run = bm25_run(pools)
    assert all(set(run[key]) == set(query.candidates) for key, query in pools.queries.items())
    assert json.dumps(run)
    assert np.isfinite([score for found in run.values() for score in found.values()]).all()
