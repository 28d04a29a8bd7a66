"""A run as a whole: interrupted in every way, it goes on; and what is wrong is said before anything is trained."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

import beir
import interrupting
import tamis
import tiny
import tiny_training as tt
from tamis.training import RECIPES, EvaluationOptions, check, train
from tamis.training.recipe import DataOptions
from tamis.training.registry import recipe_module
from tamis.training.run_folder import fingerprint, last_checkpoint

pytestmark = pytest.mark.peers

STEPS = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A jsonl file that is trained on."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    beir.write_jsonl(path, [{"query": e.query, "pos": [*e.positives], "neg": [*e.negatives]} for e in tt.labelled()])
    return path


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return beir.save_collection(tmp_path_factory.mktemp("set") / "set")


def recipe(model, rows, output, options=None, **arguments):
    options = {"max_length": 64, "held_out": 0.0, **(options or {})}
    made = tt.recipe("cross-encoder", model, output, options, **{**STEPS, **arguments})
    return replace(made, data=DataOptions((str(rows),)))


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(((one[k] - other[k]).abs() < 1e-6).all() for k in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, rows):
    """The start, and the weights of a run that nothing interrupted."""
    model = tiny.save_classifier(tmp_path_factory.mktemp("model"), "bert")
    output = tmp_path_factory.mktemp("whole") / "out"
    train(recipe(model, rows, output), progress=False)
    return model, weights(output)


def interrupted(monkeypatch, made):
    with monkeypatch.context() as patch:
        patch.setitem(RECIPES, "cross-encoder", "interrupting")
        with pytest.raises(KeyboardInterrupt):
            train(made, progress=False)
    assert last_checkpoint(made.output / "checkpoints").endswith("checkpoint-4")


def test_a_run_from_recipe_to_card(tmp_path, capfd, whole, rows, collection):
    made = recipe(whole[0], rows, tmp_path / "mine")
    made = replace(made, evaluation=EvaluationOptions((str(collection),), top=5))
    done = train(made, progress=False)
    assert done.folder == tmp_path / "mine"
    assert [entry["step"] for entry in done.history if "loss" in entry] == [*range(1, 9)]
    assert set(done.before) == set(done.after) == set(done.gain) >= {"nDCG@10", "MRR@10"}
    for name, gain in done.gain.items():
        assert gain.mean == pytest.approx(done.after[name] - done.before[name])
        assert gain.low <= gain.mean <= gain.high
    assert set(done.report.models) == {"before", "after"}
    with tamis.load(done.folder) as reranker:
        assert len(reranker.rank("zip", ["a", "b"])) == 2
    card = (done.folder / "README.md").read_text()
    for part in (
        "library_name: tamis", "# mine", "recipe `cross-encoder`", "seed 7", "7 examples of rows.jsonl",
        f'tamis.load("{done.folder}")', "## Reranking the 5 best of BM25, dev split", "nDCG@10 BM25 | nDCG@10 before",
        f"| set | {done.report.means()['nDCG@10']:.4f} | {done.before['nDCG@10']:.4f} | {done.after['nDCG@10']:.4f}",
        "95% interval", "less what it was before ", '"max_steps": 8', f"tamis {tamis.__version__}",
    ):  # fmt: skip
        assert part in card, part
    assert not (done.folder / "start").exists()
    assert "base_model" not in card  # a folder of this machine, which would help nobody
    report = json.loads((done.folder / "run.json").read_text())
    assert report["done"]
    assert report["after"]["set"]["nDCG@10"] == done.after["nDCG@10"]
    assert capfd.readouterr().out == ""
    written = (done.folder / "model.safetensors").stat().st_mtime_ns
    again = train(made, progress=False)
    for name in ("history", "before", "after", "gain"):
        assert getattr(again, name) == getattr(done, name)
    judged = train(replace(made, evaluation=replace(made.evaluation, top=3)), progress=False)
    assert judged.report.top == 3
    assert (done.folder / "model.safetensors").stat().st_mtime_ns == written  # neither trained again


def test_an_interrupt_and_a_half_written_checkpoint(tmp_path, monkeypatch, whole, rows):
    made = recipe(whole[0], rows, tmp_path / "out")
    interrupted(monkeypatch, made)
    half = tmp_path / "out" / "checkpoints" / "checkpoint-6"
    half.mkdir()
    (half / "trainer_state.json").write_text('{"global_step": 6, ')
    (tmp_path / "out" / "checkpoints" / "checkpoint-x").mkdir()
    assert interrupting.AT == 5
    done = train(made, progress=False)
    assert [entry["step"] for entry in done.history if "loss" in entry] == [*range(1, 9)]
    assert same(weights(done.folder), whole[1])


def test_sigkill(tmp_path, whole, rows):
    """A second process, killed as soon as a checkpoint is whole."""
    made = recipe(whole[0], rows, tmp_path / "out", logging_steps=1)
    file = tmp_path / "r.toml"
    file.write_text(
        f'recipe = "cross-encoder"\nmodel = "{whole[0]}"\noutput = "{made.output}"\nseed = 7\n'
        f"[options]\nmax_length = 64\nheld_out = 0.0\n[data]\ntrain = ['{rows}']\n[arguments]\n"
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in made.arguments.items())
    )
    assert fingerprint(tamis.training.read_recipe(file)) == fingerprint(made)
    process = subprocess.Popen([sys.executable, "-m", "tamis", "train", str(file)], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 240
    while last_checkpoint(made.output / "checkpoints") is None and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = train(made, progress=False)
    assert same(weights(done.folder), whole[1])


def test_a_full_disk(tmp_path, monkeypatch, whole, rows):
    """/dev/full takes nothing: the run ends in a message, and goes on when there is room again."""
    made = recipe(whole[0], rows, tmp_path / "out")
    interrupted(monkeypatch, made)
    full = tmp_path / "out" / "checkpoints" / "checkpoint-6" / "optimizer.pt"
    full.parent.mkdir()
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match="is the disk full") as caught:
        train(made, progress=False)
    assert caught.value.errno == errno.ENOSPC
    full.unlink()
    assert same(weights(train(made, progress=False).folder), whole[1])


def test_another_recipe_in_the_same_folder(tmp_path, monkeypatch, whole, rows):
    made = recipe(whole[0], rows, tmp_path / "out")
    other = recipe(whole[0], rows, tmp_path / "out", {"loss": "bce"})
    with pytest.raises(tamis.InvalidInput, match="needs: a teacher"):
        train(recipe(whole[0], rows, tmp_path / "out", {"loss": "margin-mse"}), progress=False)
    interrupted(monkeypatch, made)  # what failed before its first step is in nobody's way
    with pytest.raises(tamis.InvalidInput, match="another recipe"):
        train(other, progress=False)
    short = replace(other, arguments={**other.arguments, "max_steps": 2})
    assert train(short, resume=False, progress=False).history[-1]["step"] == 2
    with pytest.raises(tamis.InvalidInput, match="another recipe"):
        train(made, progress=False)
    strange = tmp_path / "strange"
    (strange / "checkpoints").mkdir(parents=True)
    with pytest.raises(tamis.InvalidInput, match=r"no run\.json"):
        train(replace(made, output=strange), progress=False)


def test_bad_rows_of_training_and_evaluation_are_named_at_once(tmp_path, whole, collection):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"query": "a", "pos": ["p"]}\n{"query": "b"}\nno json\n')
    judged = beir.save_collection(tmp_path / "judged")
    with (judged / "qrels" / "dev.tsv").open("a") as file:
        file.write("q9\tzip\t1\n")
    made = replace(
        recipe(whole[0], bad, tmp_path / "out"), evaluation=EvaluationOptions((str(collection), str(judged)))
    )
    for action in (check, train):
        with pytest.raises(tamis.InvalidData) as caught:
            action(made)
        named = "\n".join(caught.value.problems)
        assert "bad.jsonl:2: lacks 'pos'" in named
        assert "bad.jsonl:3" in named
        assert "dev.tsv:8" in named
    assert not (tmp_path / "out").exists()


def test_check_counts_and_writes_nothing(tmp_path, whole, rows, collection):
    made = replace(recipe(whole[0], rows, tmp_path / "out"), evaluation=EvaluationOptions((str(collection),)))
    assert check(made) == "7 rows to train on; nothing is wrong with them."
    folder = beir.save_collection(tmp_path / "set", split="train")
    assert check(replace(made, data=DataOptions((str(folder),)))).startswith("3 rows")
    with pytest.raises(tamis.InvalidInput, match="did you mean 'loss'"):
        check(replace(made, options={"los": "bce"}))
    with pytest.raises(tamis.InvalidInput, match="There is no recipe 'cross'"):
        check(replace(made, recipe="cross"))
    assert not (tmp_path / "out").exists()


def test_a_folder_with_mined_negatives_and_a_teacher(tmp_path, whole):
    """What an LLM reranker's distillation does, with a cross-encoder for a teacher."""
    folder = beir.save_collection(tmp_path / "set", split="train")
    data = DataOptions((str(folder),), negatives=3, teacher=str(whole[0]), teacher_mode="cross-encoder")
    made = replace(recipe(whole[0], folder, tmp_path / "out", {"loss": "margin-mse"}, max_steps=2), data=data)
    train(made, progress=False)
    rows = [json.loads(line) for line in (tmp_path / "out" / "examples.jsonl").read_text().splitlines()]
    with tamis.load(whole[0], mode="cross-encoder") as teacher:
        for row in rows:
            assert row["scores"] == pytest.approx(teacher.logits(row["query"], row["passages"]), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "loss"),
    [(name, "contrastive") for name in ("cross-encoder", "llm-reranker", "bi-encoder", "late-interaction")]
    + [("bi-encoder", "triplet")],
)
def test_a_teacher_that_a_loss_does_not_read_is_refused(tmp_path, rows, name, loss):
    """Before it is asked for anything: there is none."""
    data = DataOptions((str(rows),), teacher="none", teacher_mode="cross-encoder")
    made = replace(tt.recipe(name, Path("model"), tmp_path / "out"), data=data, options={"loss": loss})
    with pytest.raises(tamis.InvalidInput, match=f"teacher, teacher_mode: the loss '{loss}' does not read that"):
        train(made, progress=False)


def test_two_processes(tmp_path, whole, rows):
    """`accelerate launch` on two CPU processes: each trains on half of the rows, and one writes."""
    import accelerate.commands.launch as launcher

    many = tmp_path / "many.jsonl"
    many.write_text(rows.read_text() * 4 + "".join(rows.read_text().splitlines(keepends=True)[:4]))  # 32 rows
    file = tmp_path / "r.toml"
    file.write_text(
        f"recipe = 'cross-encoder'\nmodel = '{whole[0]}'\noutput = '{tmp_path / 'out'}'\n"
        f"[options]\nmax_length = 64\nheld_out = 0.0\n[data]\ntrain = ['{many}']\n"
        "[arguments]\nper_device_train_batch_size = 4\nnum_train_epochs = 2\nlogging_steps = 1\nuse_cpu = true\n"
        "save_strategy = 'steps'\nsave_steps = 4\n"
    )
    command = [
        sys.executable, launcher.__file__, "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "tamis", "train",
        str(file), "--json",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    told = json.loads(ended.stdout)  # of one process
    steps = [entry["step"] for entry in told["history"] if "loss" in entry]
    assert steps == [*range(1, 9)]  # 32 rows in batches of 2 x 4, twice
    checkpoint = Path(tmp_path / "out" / "checkpoints" / "checkpoint-8")
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}
    with tamis.load(tmp_path / "out") as reranker:
        assert len(reranker.rank("zip", ["a", "b"])) == 2


def test_every_recipe_has_what_a_run_calls():
    for name in RECIPES:
        made = tt.recipe(name, Path("model"), Path("out"))
        module = recipe_module(made)
        assert name == module.NAME
        assert all(callable(getattr(module, part)) for part in ("Options", "arguments", "prepare", "save", "load"))


OPTIONS = {
    "embedding-distillation": {"teacher": "none"},
    "llm-preference": {"teacher": "none"},
    "rankrag": {"stage": "both", "sft": ["none.jsonl"]},
}


@pytest.mark.parametrize("name", RECIPES)
def test_arguments_are_tried_before_anything_is_read(name, tmp_path):
    """Neither the model nor the rows are there: what comes first is what fails."""
    options = OPTIONS.get(name, {})
    absent = str(tmp_path / "absent.jsonl")

    def asked(**arguments):
        made = tt.recipe(name, tmp_path / "model", tmp_path / "out", options, **arguments)
        return replace(made, data=DataOptions((absent,)), arguments=arguments)

    for run in (train, check):
        with pytest.raises(tamis.InvalidInput, match=r"\[arguments\] does not fit .*learning_rat"):
            run(asked(learning_rat=1e-3))
        with pytest.raises(tamis.InvalidInput, match=r"(?s)\[arguments\] does not fit .*sometimes"):
            run(asked(eval_strategy="sometimes"))
        with pytest.raises(tamis.InvalidInput, match="absent"):
            run(asked(bf16=True))  # which transformers refuses on a CPU unless it is told that it is on one
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name, said",
    [
        ("rankrag", {"guard_model": "embedded", "teacher": "embedded", "negatives_from": ("embedded",)}),
        ("rankrag", {"negatives": 3}),
        ("llm-preference", {"teacher": "embedded"}),
        ("layerwise", {"teacher_mode": "bi-encoder"}),
        ("embedding-distillation", {"teacher": "embedded"}),
        ("mrl-adaptor", {"teacher": "embedded"}),
    ],
    ids=str,
)
def test_data_that_a_recipe_does_not_read_is_refused(name, said, tmp_path):
    made = tt.recipe(name, tmp_path / "model", tmp_path / "out", OPTIONS.get(name, {}))
    made = replace(made, data=DataOptions((str(tmp_path / "absent.jsonl"),), **said))
    message = rf"\[data\] {', '.join(sorted(said))}: the recipe '{name}' does not read that"
    for run in (train, check):
        with pytest.raises(tamis.InvalidInput, match=message):
            run(made)


def test_arguments_of_stage_one_are_tried_too(tmp_path):
    options = {**OPTIONS["rankrag"], "sft_arguments": {"learning_rat": 1e-3}}
    with pytest.raises(tamis.InvalidInput, match="learning_rat"):
        check(tt.recipe("rankrag", tmp_path / "model", tmp_path / "out", options))
