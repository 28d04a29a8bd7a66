"""What needs no cluster: rows, parts, the job's file, draws."""

import json
import shutil
from pathlib import Path

import pytest

import tamis
import tiny
from tamis.errors import InvalidData, InvalidInput
from tamis.training.rows import read_jsonl

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from tamis_ray.bulk_columns import Columns  # noqa: E402
from tamis_ray.bulk_drawing import Mining  # noqa: E402
from tamis_ray.bulk_files import Folder  # noqa: E402
from tamis_ray.bulk_input import cut, read, sources  # noqa: E402
from tamis_ray.bulk_job import open_job, save_job  # noqa: E402
from tamis_ray.bulk_model import Model  # noqa: E402
from tamis_ray.bulk_pool import Pool  # noqa: E402
from tamis_ray.bulk_scoring import score_table  # noqa: E402

PAIRS = Columns("query", "text")


@pytest.fixture(scope="module")
def one_label(tmp_path_factory):
    return tiny.save_classifier(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def embedded():
    with tamis.load(mode="bi-encoder", dtype="float32") as reranker:
        yield reranker


@pytest.fixture
def lexical():
    with tamis.load(mode="lexical") as reranker:
        yield reranker


def written(path: Path, rows: list[dict], **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **more)
    return path


def pairs(count: int, start: int = 0) -> list[dict]:
    return [{"id": i, "query": f"question {i % 3}", "text": f"passage {i}"} for i in range(start, start + count)]


@pytest.mark.parametrize("rows", [1, 4, 7, 100])
def test_parts_hold_every_row_once_whatever_the_row_groups_are(tmp_path, rows):
    written(tmp_path / "b.parquet", pairs(23), row_group_size=5)
    written(tmp_path / "a" / "c.parquet", pairs(9, 23), row_group_size=4)
    written(tmp_path / "_old.parquet", pairs(3))
    found = sources([tmp_path], PAIRS.check)
    assert [(source.name, source.rows) for source in found] == [("a/c.parquet", 9), ("b.parquet", 23)]
    parts = cut(found, rows)
    assert all(part.stop - part.start <= rows for part in parts)
    tables = [read(part, None) for part in parts]
    assert [i for table in tables for i in table["id"].to_pylist()] == [*range(23, 32), *range(23)]
    assert read(parts[0], ["id"]).column_names == ["id"]
    assert len({part.file("parquet") for part in parts}) == len(parts)


def test_a_file_without_rows_is_one_empty_part(tmp_path, lexical):
    empty = pa.table({"query": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    pq.write_table(empty, tmp_path / "a.parquet")
    [part] = cut(sources([tmp_path], PAIRS.check), 10)
    made = score_table(lexical, read(part, None), PAIRS, skip=False, where="a")
    assert made.column_names == ["query", "text", "score", "logit", "truncated", "reason"]
    assert len(made) == 0


def test_a_file_that_was_changed_is_another_one(tmp_path):
    path = written(tmp_path / "a.parquet", pairs(5))
    [part] = cut(sources([path], PAIRS.check), 10)
    written(path, pairs(5, 1))
    with pytest.raises(InvalidInput, match=r"a\.parquet was changed"):
        read(part, None)


@pytest.mark.parametrize(
    ("rows", "columns", "why"),
    [
        ([{"question": "q", "text": "t"}], PAIRS, "no column 'query'; it has question, text"),
        ([{"query": "q", "text": 7}], PAIRS, "'text' of x.parquet is int64; it should be a text or a list"),
        ([{"query": ["q"], "text": "t"}], PAIRS, "'query' of x.parquet is list"),
        ([{"query": "q", "text": "t", "score": 1.0}], PAIRS, "a column 'score' already"),
        ([{"query": "q", "text": "t"}], Columns("query", "text", ("id",)), "no column 'id'"),
    ],
)
def test_columns_that_cannot_be_scored_are_named(tmp_path, rows, columns, why):
    path = written(tmp_path / "x.parquet", rows)
    with pytest.raises(InvalidInput, match=why):
        sources([path], columns.check)


def test_input_that_is_no_parquet_is_named(tmp_path):
    with pytest.raises(InvalidInput, match="There is no"):
        sources([tmp_path / "none"], PAIRS.check)
    with pytest.raises(InvalidInput, match=r"no \.parquet files"):
        sources([tmp_path], PAIRS.check)
    (tmp_path / "a.parquet").write_text("query,text")
    with pytest.raises(InvalidInput, match=r"a\.parquet cannot be read as Parquet"):
        sources([tmp_path], PAIRS.check)
    written(tmp_path / "h" / "day=1" / "a.parquet", pairs(1))
    with pytest.raises(InvalidInput, match=r"partitioned into folders \(day=1\)"):
        sources([tmp_path / "h"], PAIRS.check)


BAD = [
    {"id": "a", "query": "red planet", "text": "Mars is the red planet"},
    {"id": "b", "query": None, "text": "x"},
    {"id": "c", "query": " ", "text": "x"},
    {"id": "d", "query": "red planet", "text": None},
    {"id": "e", "query": "red planet", "text": ""},
    {"id": "f", "query": "red planet", "text": "Venus"},
]


def test_bad_rows_are_named_with_their_place(lexical):
    columns = Columns("query", "text", ("id",))
    with pytest.raises(InvalidData) as caught:
        score_table(lexical, pa.Table.from_pylist(BAD), columns, skip=False, where="x.parquet", first=100)
    assert caught.value.problems == (
        "x.parquet: row 101 (id='b'): query is null.",
        "x.parquet: row 102 (id='c'): query is empty.",
        "x.parquet: row 103 (id='d'): text is null.",
        "x.parquet: row 104 (id='e'): text is empty.",
    )


def test_skipped_rows_stay_with_a_reason(lexical):
    made = score_table(lexical, pa.Table.from_pylist(BAD), Columns("query", "text", ("id",)), skip=True, where="x")
    assert made.column_names == ["id", "score", "logit", "truncated", "reason"]
    assert made["id"].to_pylist() == list("abcdef")
    reasons = [None, "query is null", "query is empty", "text is null", "text is empty", None]
    assert made["reason"].to_pylist() == reasons
    assert [score is None for score in made["score"].to_pylist()] == [reason is not None for reason in reasons]
    assert made["score"][0].as_py() > made["score"][5].as_py() == 0.0


def test_lists_of_passages_are_ranked_together_and_stay_in_place(lexical):
    texts = [["a zip file", "a tar file", "zip zip"], [], ["nothing"], ["good", None]]
    table = pa.table({"query": ["zip", "zip", "zip", "zip"], "text": texts})
    made = score_table(lexical, table, PAIRS, skip=True, where="x")
    assert made["score"].to_pylist()[:3] == [lexical.score("zip", texts[0]), [], [0.0]]
    assert made["score"][3].as_py() is None
    assert made["reason"].to_pylist() == [None, None, None, "text[1] is null"]
    alone = pa.table({"query": ["zip", "zip"], "text": [["zip file"], ["zip"]]})  # BM25 of both together is another
    made = score_table(lexical, alone, PAIRS, skip=False, where="x")
    assert made["score"].to_pylist() == [lexical.score("zip", ["zip file"]), lexical.score("zip", ["zip"])]


def test_a_passage_that_the_model_refuses_costs_no_other_row_its_score(one_label):
    long = "word " * 600
    rows = [("q", "one"), ("q", long), ("p", "two"), ("p", long), ("q", "three"), ("r", "four")]
    table = pa.table({"query": [q for q, _ in rows], "text": [t for _, t in rows]})
    with tamis.load(one_label, dtype="float32", long_documents="error") as reranker:
        made = score_table(reranker, table, PAIRS, skip=True, where="x")
        for i, (query, text) in enumerate(rows):
            if text == long:
                assert "fit beside the query" in made["reason"][i].as_py()
                assert made["logit"][i].as_py() is None
            else:
                assert made["logit"][i].as_py() == pytest.approx(reranker.logits(query, [text])[0], abs=1e-5)
        with pytest.raises(InvalidData) as caught:
            score_table(reranker, table, PAIRS, skip=False, where="x")
    assert [line.split(":")[1] for line in caught.value.problems] == [" row 1", " row 3"]


def test_truncation_is_reported(one_label):
    table = pa.table({"query": ["q", "q"], "text": ["short", "word " * 600]})
    with tamis.load(one_label, dtype="float32") as reranker:
        made = score_table(reranker, table, PAIRS, skip=False, where="x")
    assert made["truncated"].to_pylist() == [False, True]


def identity(**changes) -> dict:
    return {"task": "score", **Model(None, {"mode": "lexical"}).identity(), "input": {"a": [1, "x"]}, **changes}


def test_another_job_is_refused_in_a_folder(tmp_path):
    folder = Folder.at(tmp_path / "out")
    assert open_job(folder, identity()) is None
    save_job(folder, identity(), "", done=False)
    assert open_job(folder, identity())["done"] is False
    with pytest.raises(InvalidInput, match=r"begun with mode='lexical', and this is mode=None"):
        open_job(folder, identity(**Model(None).identity()))
    with pytest.raises(InvalidInput, match="begun with task='score', and this is task='mine'"):
        open_job(folder, identity(task="mine"))
    with pytest.raises(InvalidInput, match=r"another input \(2 files differ, the first is a\)"):
        open_job(folder, identity(input={"b": [1, "x"]}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.parquet").touch()
    with pytest.raises(InvalidInput, match="something else"):
        open_job(Folder.at(tmp_path / "other"), identity())
    (tmp_path / "out" / "_job.json").write_text("{")
    with pytest.raises(InvalidInput, match="damaged"):
        open_job(folder, identity())


def test_a_checkpoint_that_was_trained_on_is_another_model(tmp_path, one_label):
    first = shutil.copytree(one_label, tmp_path / "a")
    second = tiny.save_classifier(tmp_path / "b", "bert", seed=1)
    one, other = Model(str(first)).identity(), Model(str(second)).identity()
    assert one["checkpoint"] != other["checkpoint"]
    assert one == Model(str(first)).identity() == json.loads(json.dumps(one))


def test_wrong_arguments_are_refused_before_anything_runs():
    with pytest.raises(InvalidInput, match="bananas= is neither"):
        Model(None, {"bananas": 1})
    with pytest.raises(InvalidInput, match="environment of the workers"):
        Model("https://host", {"mode": "remote", "api_key": "sk-1"})
    with pytest.raises(InvalidInput, match="dtype='int3'"):
        Model(None, {"dtype": "int3"})
    for actors in (0, -1, True, "2", (1,), (3, 2), (0, 2), (1, 2, 3)):
        with pytest.raises(InvalidInput, match="actors="):
            Pool(actors)
    with pytest.raises(InvalidInput, match="num_gpus=-1"):
        Pool(num_gpus=-1)
    assert Pool((1, 4)).actors == (1, 4)


def mining(**changes) -> Mining:
    fields = {"answers": None, "negatives": 2, "top": 10, "guard": 0.95, "form": "labels", "seed": 1, "skip": False}
    return Mining(columns=("query", "pos", "candidates"), **{**fields, **changes})


MINED = {
    "query": "What is the capital of France?",
    "pos": ["Paris is the capital of France."],
    "candidates": [
        "Paris is the capital of France.",
        "The capital of France is Paris.",
        "Berlin is a large city in Germany.",
        "France exports wine and cheese.",
        "The eagle nests on cliffs.",
    ],
    "answers": ["Paris"],
}


def test_negatives_are_neither_positives_nor_as_close_as_they(embedded, tmp_path):
    table = pa.Table.from_pylist([MINED])
    content, left_out = mining(negatives=4).part(embedded, table, "x", 0)
    (tmp_path / "mined.jsonl").write_bytes(content)
    [example] = read_jsonl(tmp_path / "mined.jsonl")
    assert left_out == 0
    assert example.query == MINED["query"]
    assert example.positives == tuple(MINED["pos"])
    assert sorted(example.negatives) == sorted(MINED["candidates"][2:])
    bare, _ = mining(negatives=5, guard=None).part(embedded, table, "x", 0)
    assert sorted(json.loads(bare)["neg"]) == sorted(MINED["candidates"][1:])
    guarded, _ = mining(negatives=5, guard=None, answers="answers").part(embedded, table, "x", 0)
    assert sorted(json.loads(guarded)["neg"]) == sorted(MINED["candidates"][2:])


def test_scores_are_the_teachers_logits(embedded, tmp_path):
    content, _ = mining(form="scores").part(embedded, pa.Table.from_pylist([MINED]), "x", 0)
    (tmp_path / "mined.jsonl").write_bytes(content)
    [example] = read_jsonl(tmp_path / "mined.jsonl")
    assert example.labels == ()
    assert len(example.passages) == 3
    assert list(example.scores) == pytest.approx(embedded.logits(example.query, example.passages), abs=1e-5)


def test_draws_do_not_depend_on_the_other_rows(lexical):
    rows = [{**MINED, "query": f"What is the capital of country {i}?"} for i in range(6)]
    draw = mining(guard=None)
    whole, _ = draw.part(lexical, pa.Table.from_pylist(rows), "x", 0)
    apart = b"".join(draw.part(lexical, pa.Table.from_pylist([row]), "x", 0)[0] for row in rows)
    assert whole == apart
    assert len({tuple(json.loads(line)["neg"]) for line in whole.splitlines()}) > 1


def test_rows_without_a_negative_or_a_positive(lexical):
    rows = [{**MINED, "candidates": MINED["pos"]}, {**MINED, "pos": []}]
    with pytest.raises(InvalidData, match="x: row 8: pos is empty"):
        mining().part(lexical, pa.Table.from_pylist(rows), "x", 7)
    assert mining(skip=True).part(lexical, pa.Table.from_pylist(rows), "x", 0) == (b"", 2)
