"""`tamis eval`, end to end."""

import json
import os
import struct
import subprocess
import sys

import pytest

import tamis
from beir import save_collection
from tamis.cli import main
from tamis.evaluation import bm25_run, evaluate, read_collection, write_run


@pytest.fixture
def folder(tmp_path):
    return save_collection(tmp_path / "modules")


def evaluated(capsys, *arguments):
    assert main(["eval", *map(str, arguments), "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    assert main(["eval", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def picture_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_bm25_from_the_command_line_is_bm25_from_python(folder, capsys):
    content = evaluated(capsys, "bm25", "--data", folder)
    with tamis.load(mode="lexical") as reranker:
        report = evaluate({"bm25": reranker}, [read_collection(folder)])
    assert content["mean"]["models"]["bm25"]["measures"] == report.means("bm25")
    assert content["mean"]["models"]["bm25"]["differences"] == {
        name: interval._asdict() for name, interval in report.differences["bm25"].items()
    }


def test_tables_files_and_plots(folder, tmp_path, capsys):
    """The embedded bi-encoder and BM25 side by side, everything written."""
    other = save_collection(tmp_path / "other")
    files = ["--json", tmp_path / "all.json", "--per-query", tmp_path / "lines.jsonl", "--plots", tmp_path / "plots"]
    models = ["small=embedded::mode=bi-encoder,dim=64", "bm25", "embedded::mode=bi-encoder"]
    command = ["eval", *models, "--data", str(folder), str(other), "--top", "3", "--against", "bm25", *map(str, files)]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert max(map(len, captured.out.splitlines())) <= 80
    assert "modules: 3 queries, 6 passages; bm25's Recall@3" in captured.out
    content = json.loads((tmp_path / "all.json").read_text())
    assert list(content["mean"]["models"]) == ["small", "bm25", "embedded mode=bi-encoder"]
    assert [part["name"] for part in content["collections"]] == ["modules", "other"]
    assert list(content["against"]["mean"]) == ["small", "embedded mode=bi-encoder"]
    assert captured.out.count("nDCG@10 against bm25") == 2  # the first stage, and the model of that name
    assert len((tmp_path / "lines.jsonl").read_text().splitlines()) == 2 * 3 * 4
    pictures = sorted((tmp_path / "plots").iterdir())
    assert [path.name for path in pictures] == [
        "calibration-bm25.png", "calibration-embedded-mode-bi-encoder.png", "calibration-small.png", "quality-time.png",
    ]  # fmt: skip
    assert {picture_size(path) for path in pictures} == {(980, 630)}


def test_dimensions(folder, tmp_path, capsys):
    content = evaluated(capsys, "--dims", "64,16", "--data", folder, "--plots", tmp_path / "plots")
    assert [row["dim"] for row in content["dimensions"]][:2] == [16, 64]
    assert content["dimensions"][-1]["kept"] == 1.0
    assert (tmp_path / "plots" / "dimensions.png").exists()
    assert main(["eval", "--dims", "64", "--data", str(folder)]) == 0
    assert "quality against dimensions" in capsys.readouterr().out


def test_runs_in_trec_format(folder, tmp_path, capsys):
    collection = read_collection(folder)
    run = {query: dict(reversed(found.items())) for query, found in bm25_run(collection).items()}
    upside_down = {query: {passage: -i for i, passage in enumerate(found)} for query, found in run.items()}
    write_run(tmp_path / "run.trec", upside_down)
    content = evaluated(capsys, "bm25", "--data", folder, "--run", tmp_path / "run.trec")
    assert content["first_stage"] == "run"
    whole = evaluated(capsys, "bm25", "--data", folder)
    first = content["mean"]["first_stage"]["measures"]["MRR@10"]
    assert first < whole["mean"]["first_stage"]["measures"]["MRR@10"]
    assert "There are 1 files for --run and 2 folders" in refused(
        capsys, "bm25", "--data", folder, save_collection(tmp_path / "b"), "--run", tmp_path / "run.trec"
    )


def test_a_bi_encoder_as_first_stage(folder, capsys):
    content = evaluated(capsys, "bm25", "--data", folder, "--first-stage", "embedded", "--top", 2)
    assert content["first_stage"] not in ("bm25", "embedded")
    assert content["collections"][0]["models"]["bm25"]["scored"] == 2 * 4


def test_every_bad_row_has_a_line(folder, capsys):
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tnowhere\t1\nq9\tzip\t1\n")
    lines = refused(capsys, "bm25", "--data", folder).splitlines()
    assert lines == [
        "tamis: error: 2 bad rows:",
        f"tamis: error: {folder}/qrels/dev.tsv:2: there is no passage 'nowhere'.",
        f"tamis: error: {folder}/qrels/dev.tsv:3: there is no query 'q9'.",
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--split", "test"], "The folder has the split dev."),
        (["--top", "0"], "--top is 0"),
        (["--limit", "-1"], "--limit is -1"),
        (["--precision", "2"], "precision is 2.0"),
        (["bm25"], "Two models are called 'bm25'"),
        (["embedded::colour=red"], "'colour=red' in 'embedded::colour=red' is no option"),
        (["x="], "names no model"),
        (["--dims", "8"], "--dims is for bi-encoders"),
        (["--rankrag", "bm25"], "Two models are called 'bm25'"),
        (["--json", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
        (["--first-stage", "embedded", "--run", "x"], "say twice"),
        (["--against", "nobody"], "--against is 'nobody'; there are bm25"),
        (["--dims", "8", "--against", "x"], "--against means nothing with --dims"),
        (["--rankrag", "x", "--against", "x"], "--against means nothing with --rankrag"),
    ],
)
def test_wrong_arguments(folder, capsys, arguments, message):
    models = [one for one in arguments if not one.startswith("-")][:1] if not arguments[0].startswith("-") else []
    rest = arguments[len(models) :]
    assert message in refused(capsys, "bm25", *models, "--data", folder, *rest)


def test_rankrag_takes_its_own_options_alone(folder, capsys):
    assert "--mode means nothing with --rankrag" in refused(
        capsys, "--rankrag", "--mode", "causal-lm", "--data", folder
    )
    assert "--dims means nothing with --rankrag" in refused(capsys, "--rankrag", "--dims", "8", "--data", folder)
    assert "bm25 is no RankRAG model" in refused(capsys, "--rankrag", "bm25", "--data", folder)


@pytest.mark.parametrize(
    "option", [["--adapter", "my/lora"], ["--style", "plain"], ["--top-k", "1"], ["--min-score", "0.5"],
               ["--max-new-tokens", "4"]], ids=lambda option: option[0],
)  # fmt: skip
def test_what_is_for_rankrag_means_nothing_without_it(folder, capsys, option):
    assert f"{option[0]} is for RankRAG models" in refused(capsys, "bm25", "--data", folder, *option)


def test_what_cannot_be_written_or_drawn_is_told_before_the_work(folder, tmp_path, capsys):
    for option in ("--json", "--per-query"):
        assert "it is a folder" in refused(capsys, "bm25", "--data", folder, option, tmp_path)
    assert "name a file" in refused(capsys, "bm25", "--data", folder, "--per-query", "-")
    assert "The seed is -1" in refused(capsys, "bm25", "--data", folder, "--seed", "-1")
    with pytest.raises(tamis.InvalidInput, match="The seed is -1"):
        evaluate({}, [read_collection(folder)], seed=-1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_one_line(folder):
    command = [sys.executable, "-m", "tamis", "eval", "bm25", "--data", str(folder)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["tamis: error: standard output cannot be written: No space left on device."]


@pytest.mark.usefixtures("embedded_rag")
def test_rankrag(folder, tmp_path, capsys):
    lines = tmp_path / "lines.jsonl"
    limits = ["--limit", 2, "--top", 2, "--top-k", 1, "--max-new-tokens", 4]
    content = evaluated(capsys, "--rankrag", "--data", folder, *limits, "--per-query", lines)
    (answers,) = content["answers"]
    assert (answers["model"], answers["answered"], content["top_k"]) == ("embedded", 2, 1)
    assert len(lines.read_text().splitlines()) == 2


def test_nothing_but_results_goes_through_pipes(folder):
    """No progress bars, and no colours."""
    command = [sys.executable, "-m", "tamis", "eval", "bm25", "--data", str(folder)]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "PYTHONWARNINGS": "error"})
    assert done.stderr == b""
    assert b"\x1b" not in done.stdout
    assert b"nDCG@10 against bm25" in done.stdout
