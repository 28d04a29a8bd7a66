"""Bulk jobs on a local Ray cluster, started and stopped here."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tamis
from tamis.errors import InvalidData, InvalidInput, ModelNotFound
from tamis.training.rows import read_jsonl

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from tamis_ray import mine_negatives, score_dataset  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves sockets and processes to the end
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def pairs(count: int) -> list[dict]:
    return [{"id": i, "query": f"question {i % 3} of zip", "text": f"passage {i} zip " * (i % 5)} for i in range(count)]


def good(count: int) -> list[dict]:
    return [{**row, "text": row["text"] or "short"} for row in pairs(count)]


def stored(path: Path, rows: list[dict], **more) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **more)
    return str(path.parent)


def made(folder: Path) -> list[dict]:
    """The rows of an output, by id; read here, since Ray starts processes for it."""
    files = sorted(folder.glob("part-*.parquet"))
    return sorted((row for file in files for row in pq.read_table(file).to_pylist()), key=lambda row: row["id"])


def test_scores_equal_those_of_this_process(tmp_path):
    rows = good(24)
    source = stored(tmp_path / "in" / "a.parquet", rows[:10], row_group_size=4)
    stored(tmp_path / "in" / "b.parquet", rows[10:])
    arguments = {"output": tmp_path / "out", "id_columns": ["id"], "batch_size": 8, "dtype": "float32", "actors": 1}
    score_dataset(source, mode="bi-encoder", **arguments)
    found = made(tmp_path / "out")
    assert [row["id"] for row in found] == list(range(24))
    assert found[0].keys() == {"id", "score", "logit", "truncated", "reason"}
    with tamis.load(mode="bi-encoder", dtype="float32") as reranker:
        for row, was in zip(found, rows, strict=True):
            assert row["logit"] == pytest.approx(reranker.logits(was["query"], [was["text"]])[0], abs=1e-5)
            assert row["score"] == pytest.approx(reranker.score(was["query"], [was["text"]])[0], abs=1e-5)
            assert row["truncated"] is False

    with pytest.raises(InvalidInput, match=r"begun with dtype='float32', and this is dtype='bfloat16'"):
        score_dataset(source, mode="bi-encoder", **{**arguments, "dtype": "bfloat16"})
    with pytest.raises(InvalidInput, match="begun with model=None, and this is model='bm25'"):
        score_dataset(source, "bm25", mode="bi-encoder", **arguments)
    with pytest.raises(InvalidInput, match="begun with batch_size=8, and this is batch_size=9"):
        score_dataset(source, mode="bi-encoder", **{**arguments, "batch_size": 9})
    stored(tmp_path / "in" / "b.parquet", rows[11:])
    with pytest.raises(InvalidInput, match=r"over another input \(1 files differ, the first is b.parquet\)"):
        score_dataset(source, mode="bi-encoder", **arguments)


DRIVER = """
import logging, sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
logging.getLogger("ray.data").setLevel(logging.CRITICAL)
from tamis_ray import score_dataset
score_dataset(sys.argv[2], output=sys.argv[3], mode="lexical", batch_size=10, actors=1)
"""


def test_a_job_whose_driver_was_killed_goes_on_without_loss_or_duplicates(tmp_path, cluster):
    rows = good(3000)
    source, output = stored(tmp_path / "in" / "a.parquet", rows), tmp_path / "out"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, cluster, source, str(output)])
    try:
        end = time.monotonic() + 120
        while len(parts := list(output.glob("part-*"))) < 5 and driver.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert 5 <= len(parts) < 300, "the driver was to be killed midway"
    assert json.loads((output / "_job.json").read_text())["done"] is False
    before = {part: (part.stat().st_mtime_ns, part.stat().st_ino) for part in parts}
    (output / ".part-000299-0000.parquet-1234").write_bytes(b"PAR1 half")  # what a killed worker leaves

    with pytest.raises(InvalidInput, match="begun with mode='lexical', and this is mode='bi-encoder'"):
        score_dataset(source, output=output, mode="bi-encoder", batch_size=10, actors=1)
    score_dataset(source, output=output, mode="lexical", batch_size=10, actors=1)
    assert [row["id"] for row in made(output)] == list(range(3000))
    assert {part: (part.stat().st_mtime_ns, part.stat().st_ino) for part in parts} == before
    assert len(list(output.glob("part-*"))) == 300
    assert list(output.glob(".part-*")) == []

    removed = sorted(output.glob("part-*"))[150]
    removed.unlink()
    score_dataset(source, output=output, mode="lexical", batch_size=10, actors=1)
    assert removed.exists()
    assert len(made(output)) == 3000


def test_a_dataset_is_kept_while_the_job_runs(tmp_path):
    rows = good(40)
    rows[17]["text"] = " "
    ds = ray.data.from_items(rows, override_num_blocks=4)
    arguments = {"output": tmp_path / "out", "mode": "lexical", "batch_size": 8, "actors": 1, "id_columns": ["id"]}
    with pytest.raises(InvalidData, match=r"_input/.*parquet: row \d+ \(id=17\): text is empty\."):
        score_dataset(ds, **arguments)
    assert (tmp_path / "out" / "_input").exists()
    found = score_dataset(ds, on_error="skip", **arguments).take_all()
    assert sorted(row["id"] for row in found) == list(range(40))
    assert [(row["id"], row["score"], row["reason"]) for row in found if row["reason"]] == [(17, None, "text is empty")]
    assert not (tmp_path / "out" / "_input").exists()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    score_dataset(ds, **arguments)
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_without_an_output_the_dataset_is_lazy():
    lists = [{"id": i, "query": "zip", "text": ["a zip", "tar", f"zip zip {i}"]} for i in range(6)]
    ds = score_dataset(ray.data.from_items(lists), mode="lexical", actors=1, batch_size=4)
    with tamis.load(mode="lexical") as reranker:
        for row in ds.take_all():
            assert list(row["score"]) == pytest.approx(reranker.score("zip", lists[row["id"]]["text"]))
    bad = score_dataset(ray.data.from_items([{"query": "q", "text": 7}]), mode="lexical", actors=1)
    with pytest.raises(ray.exceptions.RayTaskError, match="'text' of a batch is int64"):
        bad.take_all()


def test_the_models_errors_keep_their_type(tmp_path):
    source = stored(tmp_path / "in" / "a.parquet", good(3))
    with pytest.raises(ModelNotFound, match="no/such"):
        score_dataset(source, str(tmp_path / "no" / "such"), output=tmp_path / "out", actors=1)
    with pytest.raises(InvalidInput, match="no column 'content'; it has id, query, text"):
        score_dataset(source, text_column="content", mode="lexical")
    with pytest.raises(InvalidInput, match="is a int"):
        score_dataset(7, mode="lexical")


def test_negatives_of_a_collection_can_be_trained_on(tmp_path):
    folder = tmp_path / "zips"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{i}", "title": "", "text": f"archive number {i} holds zip files"} for i in range(12)]
    queries = [{"_id": f"q{i}", "text": f"which archive is number {i}?"} for i in range(5)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    qrels = "".join(f"q{i}\td{i}\t1\n" for i in range(5))
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    arguments = {"output": tmp_path / "out", "mode": "lexical", "negatives": 3, "guard": None, "batch_size": 2}
    path = mine_negatives(folder, actors=1, **arguments)
    assert sorted(os.listdir(tmp_path / "out")) == ["_job.json", "negatives.jsonl"]
    examples = {example.query: example for example in read_jsonl(Path(path))}
    assert len(examples) == 5
    for i in range(5):
        example = examples[f"which archive is number {i}?"]
        assert example.positives == (corpus[i]["text"],)
        assert len(set(example.negatives)) == 3
        assert set(example.negatives) <= {row["text"] for row in corpus} - {corpus[i]["text"]}
    stamp = Path(path).stat().st_mtime_ns
    assert mine_negatives(folder, actors=1, **arguments) == path
    assert Path(path).stat().st_mtime_ns == stamp
    with pytest.raises(InvalidInput, match="begun with negatives=3, and this is negatives=4"):
        mine_negatives(folder, actors=1, **{**arguments, "negatives": 4})
