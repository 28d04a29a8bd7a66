"""The output of a run: nothing of the user's is overwritten or removed, and nothing of an earlier run is left."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import beir
import tamis
import tiny
import tiny_lm
import tiny_training as tt
from tamis.cli import main
from tamis.scorers.fusion import Blend
from tamis.training import EvaluationOptions, check, rankrag, run_folder, train
from tamis.training.fusion import write_fusion
from tamis.training.recipe import DataOptions

pytestmark = pytest.mark.peers

ROWS = [{"query": e.query, "pos": [*e.positives], "neg": [*e.negatives]} for e in tt.labelled()]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_classifier(tmp_path_factory.mktemp("model"), "bert")


@pytest.fixture
def rows(tmp_path):
    beir.write_jsonl(tmp_path / "rows.jsonl", ROWS)
    return tmp_path / "rows.jsonl"


def recipe(model, rows, output, **arguments):
    made = tt.recipe("cross-encoder", model, output, {"max_length": 64}, max_steps=1, **arguments)
    return replace(made, data=DataOptions((str(rows),)))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def project(tmp_path):
    """A user's own folder, whose files have the names of a run's."""
    folder = tmp_path / "project"
    (folder / "start").mkdir(parents=True)
    beir.write_jsonl(folder / "examples.jsonl", ROWS)
    (folder / "start" / "x").write_text("mine")
    (folder / "README.md").write_text("mine")
    return folder


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_that_is_no_run_s_is_refused_and_stays(project, model, rows, resume):
    before = contents(project)
    with pytest.raises(tamis.InvalidInput, match=r"start, examples\.jsonl, README\.md, and no run\.json of a run"):
        train(recipe(model, rows, project), resume=resume, progress=False)
    assert contents(project) == before


@pytest.mark.parametrize("name", ["examples.jsonl", "README.md", "config.json", "stage-one", "run.json"])
def test_any_file_that_a_run_would_write_is_somebody_s(tmp_path, model, rows, name):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text('{"mine": 1}')
    with pytest.raises(tamis.InvalidInput, match=f"mine has {name}, and no run.json of a run"):
        train(recipe(model, rows, folder), resume=False, progress=False)
    assert contents(folder) == {Path(name): b'{"mine": 1}'}


def test_an_output_that_holds_the_data_is_refused(tmp_path, capsys, project, model, rows):
    before = contents(project)
    file = tmp_path / "r.toml"
    file.write_text(f"recipe = 'cross-encoder'\nmodel = '{model}'\noutput = 'x'\n[data]\ntrain = ['{rows}']\n")
    assert main(["train", str(file), "--data", str(project / "examples.jsonl"), "--output", str(project)]) == 2
    assert f"The output {project} is or holds {project / 'examples.jsonl'}" in capsys.readouterr().err
    assert contents(project) == before


def test_an_output_that_is_something_that_the_run_reads(tmp_path, monkeypatch, model, rows):
    judged = beir.save_collection(tmp_path / "judged")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(model)
    made = recipe(model, rows, tmp_path / "out")
    monkeypatch.chdir(model.parent)
    weights = (model / "model.safetensors").read_bytes()
    for one in (
        replace(made, output=model),
        replace(made, output=elsewhere),
        replace(made, output=model.parent),
        replace(made, output=model.name),
        replace(made, data=replace(made.data, teacher=str(tmp_path / "out"))),
        replace(made, evaluation=EvaluationOptions((str(judged),)), output=judged),
        replace(made, data=DataOptions((str(judged), str(rows))), output=tmp_path),
        replace(made, model="tamis/none", output="tamis/none"),  # a hub id: the folder would be taken for it later
    ):
        for action in (train, check):
            with pytest.raises(tamis.InvalidInput, match=r"is or holds .*, which the run reads"):
                action(one)
    assert (model / "model.safetensors").read_bytes() == weights
    adapter = tmp_path / "adapter"
    adapted = tt.recipe("rankrag", model, adapter, {"adapter": str(adapter)})
    with pytest.raises(tamis.InvalidInput, match=r"is or holds .*adapter"):
        check(adapted)
    assert check(replace(made, output=model / "tuned")).startswith("7 rows")


def test_a_run_of_ours_goes_on_and_is_begun_anew(tmp_path, model, rows):
    made = recipe(model, rows, tmp_path / "out")
    train(made, progress=False)
    run = json.loads((made.output / "run.json").read_text())
    (made.output / "notes.txt").write_text("mine")
    (made.output / "2_mine").mkdir()
    write_fusion(made.output, "embedded", Blend(1.0))
    (made.output / "piece_counts.safetensors").write_bytes(b"old")
    assert train(made, progress=False).seconds == run["seconds"]  # told again
    (made.output / "run.json").write_text(json.dumps({key: run[key] for key in ("fingerprint", "recipe")}))
    train(made, progress=False)  # as if it had been interrupted before its end: the same rows
    assert (made.output / "fusion.json").exists()
    with pytest.raises(tamis.InvalidInput, match="another recipe"):
        train(replace(made, seed=8), progress=False)
    beir.write_jsonl(rows, [{"query": "bad"}])
    with pytest.raises(tamis.InvalidData):
        train(replace(made, seed=8), resume=False, progress=False)
    assert (made.output / "model.safetensors").exists()  # bad rows cost no earlier run
    beir.write_jsonl(rows, ROWS)
    train(replace(made, seed=8), resume=False, progress=False)
    left = {path.name for path in made.output.iterdir()}
    assert {"notes.txt", "2_mine", "model.safetensors", "README.md"} <= left
    assert not {"fusion.json", "piece_counts.safetensors"} & left
    with tamis.load(made.output) as reranker:
        assert reranker.mode == "cross-encoder"


def test_what_sentence_transformers_wrote_goes_too(tmp_path):
    beside = tmp_path / "2_mine"
    for folder in ("1_Pooling", "2_Dense", "adaptor", beside.name, "checkpoints/checkpoint-2"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]))
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "vocab.txt", "mine.safetensors"):
        (tmp_path / name).write_text("{}")
    run_folder.write_report(tmp_path / "run.json", {"fingerprint": "x"})
    run_folder.clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {beside.name, "mine.safetensors"}


def test_all_weights_after_an_adapter(tmp_path):
    """The adapter of the first run is not taken for the second one's."""
    start = tiny_lm.save(tmp_path / "start", "llama", "ForCausalLM", bos=True)
    data = DataOptions((str(beir.save_collection(tmp_path / "set", split="train")),), negatives_top=10)
    options = {"samples": 12, "contexts": 2, "max_length": 768, "style": "plain"}
    made = replace(tt.recipe("rankrag", start, tmp_path / "out", options, bf16=False, max_steps=1), data=data)
    train(made, progress=False)
    assert "adapter=" in rankrag.usage(made.output)
    train(replace(made, options={**options, "tune": "full"}), resume=False, progress=False)
    assert not list(made.output.glob("adapter_*"))
    assert rankrag.usage(made.output) == f'tamis.load_rankrag("{made.output}")'
    assert rankrag.usage(made.output) in (made.output / "README.md").read_text()


def test_an_output_that_cannot_be_written_to_is_named_before_anything_is_read(tmp_path, model):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(tamis.InvalidInput, match=f"The output {output} cannot be written to: .*name another"):
            train(recipe(model, tmp_path / "absent.jsonl", output), progress=False)
    with pytest.raises(tamis.InvalidInput, match="absent"):
        train(recipe(model, tmp_path / "absent.jsonl", tmp_path / "a" / "out"), progress=False)
    assert not (tmp_path / "a").exists()
