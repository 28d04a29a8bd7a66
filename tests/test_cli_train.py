"""`tamis train`."""

import json

import pytest

import beir
import tiny_training as tt
from tamis.cli import main

pytestmark = pytest.mark.peers


@pytest.fixture
def recipe(tmp_path, classifier):
    """A recipe's file of two steps; its output is `tmp_path / "out"`."""
    rows = [{"query": e.query, "pos": [*e.positives], "neg": [*e.negatives]} for e in tt.labelled()]
    beir.write_jsonl(tmp_path / "rows.jsonl", rows)
    beir.save_collection(tmp_path / "set")
    file = tmp_path / "r.toml"
    file.write_text(
        f"recipe = 'cross-encoder'\nmodel = '{classifier('bert')}'\noutput = '{tmp_path / 'out'}'\n"
        f"[options]\nmax_length = 64\n[data]\ntrain = ['{tmp_path / 'rows.jsonl'}']\nlimits = {{ rows = 6 }}\n"
        "[arguments]\nmax_steps = 2\nlogging_steps = 1\nuse_cpu = true\nsave_strategy = 'steps'\nsave_steps = 1\n"
        f"[evaluation]\ndata = ['{tmp_path / 'set'}']\ntop = 4\n"
    )
    return file


def test_train(tmp_path, capsys, recipe):
    capsys.readouterr()  # of making the start
    assert main(["train", str(recipe)]) == 0
    out, err = capsys.readouterr()
    assert "before" in out
    assert "after" in out
    assert "tamis: trained in" in err
    assert "nDCG@10" in err
    assert "nDCG@10 against before" in out
    assert "95% of the difference: " in err
    assert "%|" not in err  # no bar outside of a terminal, neither ours nor the libraries'
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert main(["train", str(recipe), "--json"]) == 0  # done before: told again
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == str(tmp_path / "out")
    assert set(found["before"]) == set(found["after"]) == set(found["gain"]) >= {"nDCG@10"}
    assert set(found["gain"]["nDCG@10"]) == {"mean", "low", "high"}
    assert [entry["step"] for entry in found["history"] if "loss" in entry] == [1, 2]


def test_options_in_place_of_the_recipe_s(tmp_path, capsys, recipe):
    other = beir.save_collection(tmp_path / "other", split="train")
    command = ["train", str(recipe), "--output", str(tmp_path / "two"), "--steps", "1", "--seed", "3", "--json"]
    assert main([*command, "--data", str(other), "--eval-data", str(tmp_path / "set")]) == 0
    made = json.loads((tmp_path / "two" / "run.json").read_text())["recipe"]
    assert (made["seed"], made["arguments"]["max_steps"], made["data"]["train"]) == (3, 1, [str(other)])
    assert made["data"]["limits"] == {}  # of a file that is not there any more
    assert [entry["step"] for entry in json.loads(capsys.readouterr().out)["history"] if "loss" in entry] == [1]
    assert main(["train", str(recipe), "--output", str(tmp_path / "two")]) == 2
    assert "another recipe" in capsys.readouterr().err


def test_check(tmp_path, capsys, recipe):
    assert main(["train", str(recipe), "--check"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"tamis: {recipe}: 7 rows to train on; nothing is wrong with them.\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, said",
    [
        (("max_length = 64", "max_lenght = 64"), "did you mean 'max_length'"),
        (("recipe = 'cross-encoder'", "recipe = 'cross'"), "There is no recipe 'cross'"),
        (("top = 4", "top = 0"), "[evaluation] top = 0"),
        (("max_steps = 2", "max_steps = 2\nseed = 1"), "[arguments] seed is not for the trainer"),
        (("rows = 6", "row = 6"), "limits has 'row'"),
        (("rows.jsonl", "none.jsonl"), "none.jsonl"),
        (("[data]", "[data"), "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_one_line(tmp_path, capsys, recipe, change, said):
    recipe.write_text(recipe.read_text().replace(*change))
    assert main(["train", str(recipe)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_wrong_options(tmp_path, capsys, recipe):
    assert main(["train", str(tmp_path / "none.toml")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["train", str(recipe), "--steps", "0"]) == 2
    assert "--steps is 0" in capsys.readouterr().err
    recipe.write_text(recipe.read_text().split("[evaluation]")[0])
    assert main(["train", str(recipe), "--eval-data", str(tmp_path / "set")]) == 2
    assert "--eval-data" in capsys.readouterr().err


def test_bad_rows_are_a_line_each(tmp_path, capsys, recipe):
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"query": "x"}\n{"query": "y", "pos": []}\n')
    assert main(["train", str(recipe)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tamis: error: 2 bad rows:"
    assert "rows.jsonl:8: lacks 'pos'" in lines[1]
    assert "rows.jsonl:9: pos" in lines[2]
    assert not (tmp_path / "out").exists()
