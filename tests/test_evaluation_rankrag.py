"""`evaluate_rankrag` on the embedded model."""

import io
import json

import pytest
from rich.console import Console

import tamis
from beir import QUERIES, save_collection
from tamis.evaluation import bm25_run, evaluate_rankrag, read_collection
from tamis.evaluation.answers import exact, f1
from tamis.evaluation.rankrag_report import Answered, AnswerResult


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    queries = {key: QUERIES[key] for key in ("q1", "q2", "q4")}
    return read_collection(save_collection(tmp_path_factory.mktemp("data") / "modules", queries=queries))


@pytest.fixture(scope="module")
def report(collection, embedded_rag):
    return evaluate_rankrag({"smollm2": embedded_rag}, [collection], top=3, top_k=2, max_new_tokens=6)


def test_it_reads_the_first_stage_without_and_its_own_order_with_reranking(report, collection, embedded_rag):
    (result,) = report.answers
    run = bm25_run(collection, 3)
    for key, query in collection.queries.items():
        first = list(run[key])
        assert result.without[key].contexts == tuple(first[:2])
        ranking = embedded_rag.rank(query.text, [collection.corpus[passage] for passage in first])
        assert result.reranked[key].contexts == tuple(hit.passage.id for hit in ranking[:2])
        assert [hit.passage.id for hit in report.ranking.collections[0].models["smollm2"].rankings[key]] == [
            hit.passage.id for hit in ranking
        ]
        answer = embedded_rag.answer(query.text, ranking, top_k=2, max_new_tokens=6)
        assert result.reranked[key].text == answer.text
        said = answer.text if answer.found else ""
        assert result.reranked[key].exact == exact(said, query.answers)
        assert result.reranked[key].f1 == f1(said, query.answers)


def test_the_report_comes_out_everywhere(report, tmp_path):
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    (answers,) = content["answers"]
    assert (answers["answered"], answers["unanswerable"], content["top_k"]) == (3, 1, 2)
    assert set(answers["differences"]) == {"EM", "F1", "accuracy"}
    assert content["collections"][0]["measured"] == 2
    console = Console(file=io.StringIO(), width=80)
    console.print(report.table())
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "3 answers from 2 passages" in text
    assert "answers.png" in [path.name for path in report.save_plots(tmp_path)]
    report.write_per_query(tmp_path / "lines.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert [line["query_id"] for line in lines] == ["q1", "q2", "q4"]
    assert lines[0]["answers"] == ["zipfile", "the module zipfile"]
    assert set(lines[0]["with_reranking"]) == {"text", "found", "contexts", "EM", "F1", "accuracy"}


def test_nothing_above_min_score_is_an_empty_answer(collection, embedded_rag):
    report = evaluate_rankrag({"smollm2": embedded_rag}, [collection], top=3, min_score=1.0, max_new_tokens=4)
    (result,) = report.answers
    assert {(one.text, one.found) for one in result.reranked.values()} == {("", False)}
    means = result.means(reranked=True)
    assert means["unanswerable_EM"] == 1.0
    assert means["answerable_EM"] == 0.0
    assert means["found_precision"] is None
    assert means["found_recall"] == 0.0


def test_questions_without_known_answers_are_ranked_alone(tmp_path, embedded_rag):
    unknown = {"q1": (QUERIES["q1"][0], {"zip": 1}, None)}
    collection = read_collection(save_collection(tmp_path / "unknown", queries=unknown))
    report = evaluate_rankrag({"smollm2": embedded_rag}, [collection], top=2)
    assert report.answers[0].reranked == {}
    assert report.to_json()["answers"] == []
    assert report.ranking.means("smollm2")
    console = Console(file=io.StringIO(), width=80)
    console.print(report.table())
    assert "not answered, since no right answers are known: unknown" in console.file.getvalue()


def test_means_by_hand(collection):
    """Two questions with an answer, of which one is answered rightly; two without, of which one is left alone."""

    def said(text, found, right):
        given = text if found else ""
        return Answered(text, found, (), exact(given, right), f1(given, right), 0.0, right)

    answers = {
        "a": said("zipfile", True, ("zipfile",)),
        "b": said("It is not in the context.", False, ("csv",)),
        "c": said("Guido", True, ()),
        "d": said("It is not in the context.", False, ()),
    }
    means = AnswerResult(collection, "model", {}, 0.0, answers, 0.0, {}).means(reranked=True)
    assert means["EM"] == 0.5
    assert (means["answerable_EM"], means["unanswerable_EM"]) == (0.5, 0.5)
    assert (means["found_precision"], means["found_recall"]) == (0.5, 0.5)


def test_wrong_arguments(collection, embedded_rag):
    with pytest.raises(tamis.InvalidInput, match="There is no model"):
        evaluate_rankrag({}, [collection])
    for wrong in ({"top_k": 0}, {"min_score": 2.0}, {"concurrency": 0}):
        with pytest.raises(tamis.InvalidInput):
            evaluate_rankrag({"smollm2": embedded_rag}, [collection], **wrong)
