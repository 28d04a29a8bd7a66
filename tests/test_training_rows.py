"""Rows for training: shapes, bad rows, mining, labels."""

import json
from dataclasses import replace

import numpy as np
import pytest

import beir
import tamis
from tamis.evaluation.collection import Collection, Query
from tamis.training.examples import headless, read_examples
from tamis.training.mining import holds_answer, mine
from tamis.training.ranking_losses import soft
from tamis.training.recipe import DataOptions, Recipe, read_recipe
from tamis.training.rows import Example, read_back, read_jsonl, scaled, write_jsonl
from tamis.types import Passage


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_shape(tmp_path):
    file = jsonl(
        tmp_path / "rows.jsonl",
        {"query": "a", "pos": ["p"], "neg": ["n", "m"], "prompt_for_query": "ask: "},
        {"query": "b", "pos": ["p"]},
        {"query": "c", "pos": ["p", "q"], "scores": [0.9, 0.1], "prompt_for_query": "ask: "},
        {"query": "c", "pos": ["p"], "neg": ["n", "m"], "scores": [3, 2, -1]},
        {"query": "d", "hits": [{"content": "p", "label": 2}, {"content": "q", "label": 0}]},
        {"query": "e", "content": "p", "label": 1},
        {"query": "e", "content": "q", "label": 0},
        {"query": "e", "content": "q", "label": 0, "prompt_for_query": "ask: "},
        {"query": "f", "content": "p", "score": -0.5},
        {"query": "f", "content": "p", "label": 1, "score": -0.5},
        {"query": "f", "content": "q", "label": 0, "score": -1.5},
        {"query": "g", "hits": [{"content": "p", "label": 1, "score": 4}, {"content": "q", "label": 0, "score": 3}]},
        {"query": "g", "hits": [{"content": "p", "score": 4}, {"content": "q", "score": 3}]},
    )
    rows = [
        Example("a", ("p", "n", "m"), (1.0, 0.0, 0.0), prompt="ask: "),
        Example("b", ("p",), (1.0,)),
        Example("c", ("p", "q"), scores=(0.9, 0.1), prompt="ask: "),
        Example("c", ("p", "n", "m"), (1.0, 0.0, 0.0), (3.0, 2.0, -1.0)),
        Example("d", ("p", "q"), (2.0, 0.0)),
        Example("g", ("p", "q"), (1.0, 0.0), (4.0, 3.0)),
        Example("g", ("p", "q"), scores=(4.0, 3.0)),
        Example("e", ("p", "q"), (1.0, 0.0)),
        Example("e", ("q",), (0.0,), prompt="ask: "),
        Example("f", ("p",), scores=(-0.5,)),
        Example("f", ("p", "q"), (1.0, 0.0), (-0.5, -1.5)),
    ]
    assert read_jsonl(file) == [replace(row, source=str(file)) for row in rows]


def test_bad_rows_are_named_all_at_once(tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text(
        '{"query": "a", "pos": ["p"]}\nnot json\n[1]\n{"pos": ["p"]}\n{"query": "b", "pos": []}\n\n'
        '{"query": "c", "pos": ["p"], "scores": [1, 2]}\n{"query": "d", "content": "p", "label": "high"}\n'
        '{"query": " ", "pos": ["p"]}\n{"query": "e", "pos": ["p"], "neg": ["n"], "scores": [1]}\n',
        encoding="utf-8",
    )
    some = [{"content": "p", "label": 1, "score": 1}, {"content": "q", "label": 0}]
    other = jsonl(tmp_path / "other.jsonl", {"query": "a", "hits": []}, {"query": "a", "hits": some})
    with pytest.raises(tamis.InvalidInput) as caught:
        read_examples(DataOptions((str(file), str(other))), 0)
    lines = str(caught.value)
    for place in (
        "bad.jsonl:2",
        "bad.jsonl:3",
        "bad.jsonl:4",
        "bad.jsonl:5",
        "bad.jsonl:7",
        "bad.jsonl:8",
        "bad.jsonl:9",
        "bad.jsonl:10: 1 scores for 2 passages in pos and neg",
    ):
        assert place in lines
    assert "other.jsonl:1" in lines
    assert "other.jsonl:2: lacks 'score'" in lines
    assert "bad.jsonl:1:" not in lines
    assert "bad.jsonl:6" not in lines


def test_flag_embeddings_scores(tmp_path):
    """Its teacher's scores stand in two lists, those of pos and those of neg."""
    judged = {"query": "a", "pos": ["p"], "neg": ["n", "m"], "prompt": ""}
    file = jsonl(
        tmp_path / "flag.jsonl",
        {**judged, "pos_scores": [2.5], "neg_scores": [-1, 0.5]},
        {**judged, "pos_scores": None, "neg_scores": None, "prompt": None},
        {"query": "b", "pos": ["p", "q"], "pos_scores": [2, 1]},
        {"query": "b", "pos": ["p", "q"], "neg": [], "pos_scores": [2, 1], "neg_scores": []},
    )
    assert read_jsonl(file) == [
        Example("a", ("p", "n", "m"), (1.0, 0.0, 0.0), (2.5, -1.0, 0.5), source=str(file)),
        Example("a", ("p", "n", "m"), (1.0, 0.0, 0.0), source=str(file)),
        Example("b", ("p", "q"), scores=(2.0, 1.0), source=str(file)),
        Example("b", ("p", "q"), scores=(2.0, 1.0), source=str(file)),
    ]


@pytest.mark.parametrize(
    "more, message",
    [
        ({"pos_scores": [1]}, "lacks 'neg_scores'"),
        ({"neg_scores": [1, 2]}, "lacks 'pos_scores'"),
        ({"pos_scores": None, "neg_scores": [1, 2]}, "pos_scores has to be a list of numbers"),
        ({"pos_scores": [1, 1], "neg_scores": [0, 0]}, "2 pos_scores for 1 passages in pos"),
        ({"pos_scores": [1], "neg_scores": [0]}, "1 neg_scores for 2 passages in neg"),
        ({"pos_scores": [1], "neg_scores": [0, "low"]}, "neg_scores has to be a number"),
        ({"scores": [1, 0, 0], "pos_scores": [1]}, "has scores and pos_scores"),
        ({"prompt": "Given a query, find passages."}, "has a 'prompt', and does not say where it stands"),
        ({"query_prompt": "A: "}, "has a 'query_prompt', and does not say where it stands"),
        ({"passage_prompt": "B: "}, "has a 'passage_prompt', and does not say where it stands"),
    ],
)
def test_flag_embeddings_keys_that_cannot_be_kept(tmp_path, more, message):
    file = jsonl(tmp_path / "flag.jsonl", {"query": "a", "pos": ["p"], "neg": ["n", "m"], **more})
    with pytest.raises(tamis.InvalidInput, match=message):
        read_jsonl(file)


def test_written_rows_come_back(tmp_path):
    rows = [Example("q é", ("a", "b"), (1.0, 0.0), (0.5, 0.25), "p", "s"), Example("q", ("a",), scores=(1.0,))]
    write_jsonl(rows, tmp_path / "rows.jsonl")
    assert read_back(tmp_path / "rows.jsonl") == rows


def test_labels_become_zero_to_one_a_source():
    rows = [
        Example("a", ("p", "q"), (3.0, 1.0), source="graded"),
        Example("b", ("p", "q"), (1.0, 0.0), source="binary"),
        Example("c", ("p",), scores=(7.0,), source="graded"),
    ]
    assert [e.labels for e in scaled(rows)] == [(1.0, 1 / 3), (1.0, 0.0), ()]


def test_files_of_one_name_are_scaled_apart(tmp_path):
    """Labels 0 to 3 in one, 0 and 1 in the other; logits in one, probabilities in the other."""
    for folder, label, scores in (("graded", 3, [4.0, -4.0]), ("binary", 1, [0.9, 0.1])):
        (tmp_path / folder).mkdir()
        judged = {"query": folder, "hits": [{"content": "p", "label": label}, {"content": "q", "label": 0}]}
        told = {"query": f"{folder} scores", "pos": ["p", "q"], "scores": scores}
        jsonl(tmp_path / folder / "train.jsonl", judged, told)
        asked = {folder: ("how do I read a zip archive", {"zip": label}, None)}
        beir.save_collection(tmp_path / folder / "set", queries=asked, split="train")
    for file in ("train.jsonl", "set"):
        train = (str(tmp_path / "graded" / file), str(tmp_path / "binary" / file))
        found = soft(read_examples(DataOptions(train, negatives=1), 0))
        assert [e.labels for e in found if e.labels] == [(1.0, 0.0)] * 2
        for e in found:
            if e.query == "binary scores":
                assert e.scores == (0.9, 0.1)
            elif e.scores:
                assert e.scores == pytest.approx((0.982014, 0.017986), abs=1e-6)
        limited = DataOptions(train, limits={file.removesuffix(".jsonl"): 1})
        assert len(read_examples(limited, 0)) == 2  # one of each that is called so


def test_a_row_s_own_scores_stay_beside_a_teacher_s(tmp_path, classifier):
    told = {"query": "a", "pos": ["p", "q"], "scores": [0.9, 0.1]}
    file = jsonl(tmp_path / "rows.jsonl", told, {"query": "b", "pos": ["zip"], "neg": ["a table", "an item"]})
    data = DataOptions((str(file),), teacher=str(classifier("bert")), teacher_mode="cross-encoder")
    own, other = sorted(read_examples(data, 0, progress=False), key=lambda e: e.query)
    assert own.scores == (0.9, 0.1)
    assert len(other.scores) == 3
    logits = replace(other, scores=(-5.0, 5.0, 0.0))  # whatever the teacher's are
    assert soft([own, logits])[0].scores == (0.9, 0.1)
    assert soft([own, logits])[1].scores == pytest.approx((0.006693, 0.993307, 0.5), abs=1e-6)


@pytest.fixture
def collection():
    corpus = {
        name: Passage(text, id=name)
        for name, text in {
            "right": "Paris is the capital of France.",
            "same": "The capital of France? paris, of course.",
            "near": "France has a capital.",
            "far": "Cows eat grass.",
            "judged": "Lyon is in France.",
        }.items()
    }
    queries = {"q": Query("q", "capital of France", answers=("Paris",))}
    return Collection("c", "train", corpus, queries, {"q": {"right": 1, "judged": 0}})


def test_negatives_leave_out_what_may_answer(collection):
    run = {"q": {"right": 4.0, "same": 3.0, "near": 2.0, "judged": 1.5, "far": 1.0}}
    near = {"q": {"right": 0.8, "same": 0.79, "near": 0.78, "judged": 0.5, "far": 0.1}}
    rng = np.random.default_rng(0)
    found = mine(collection, [run], negatives=9, top=9, rng=rng, similarities=near, guard=0.95)
    assert set(found["q"]) == {"judged", "far"}  # near is above 0.95 * 0.8; same holds the answer
    assert set(mine(collection, [run], negatives=9, top=9, rng=rng)["q"]) == {"near", "judged", "far"}
    assert set(mine(collection, [run], negatives=9, top=3, rng=rng)["q"]) == {"near"}
    assert len(mine(collection, [run], negatives=1, top=9, rng=rng)["q"]) == 1


def test_answers_that_say_nothing_guard_nothing():
    assert holds_answer(Query("q", "?", answers=("Paris",)), "in paris")
    assert not holds_answer(Query("q", "?", answers=("yes", "x", "")), "yes, x")
    assert not holds_answer(Query("q", "?", answers=None), "anything")


def test_examples_of_a_folder(tmp_path):
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    rivers = [
        {"_id": f"d{i}", "title": f"About river number {i}", "text": f"The river {name} is long. It flows {i}."}
        for i, name in enumerate(["Po", "Ob", "Don", "Aar", "Inn"])
    ]
    jsonl(folder / "corpus.jsonl", *rivers)
    jsonl(
        folder / "queries.jsonl", {"_id": "q", "text": "How long is the river Po?"}, {"_id": "r", "text": "river Inn"}
    )
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\td0\t1\nr\td4\t1\n")
    data = DataOptions((str(folder),), negatives=2, titles=2)
    examples = read_examples(data, 3)
    assert examples == read_examples(data, 3)
    asked = {e.query: e for e in examples}
    assert asked["How long is the river Po?"].positives == ("About river number 0\nThe river Po is long. It flows 0.",)
    assert all(len(e.passages) == 3 for e in examples)
    titles = [e for e in examples if e.source == f"{folder}, titles"]
    assert len(titles) == 2
    assert all(e.query.startswith("About river number") and "About" not in e.positives[0] for e in titles)


def test_headless():
    assert headless(Passage("A title of words\nBody.", metadata={"title": "A title of words"})) == (
        "A title of words",
        "Body.",
    )
    assert headless(Passage("Title\nBody.", metadata={"title": "Title"})) == ("", "Body.")
    assert headless(Passage("No title is here. None.")) == ("", "No title is here. None.")


def test_a_recipe_is_checked(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('recipe = "cross-encoder"\nmodel = "m"\noutput = "o"\n[data]\ntrain = ["x"]\nnegative = 3\n')
    with pytest.raises(tamis.InvalidInput, match="'negatives'"):
        read_recipe(path)
    path.write_text('recipe = "cross-encoder"\nmodel = "m"\n[data]\ntrain = ["x"]\n')
    with pytest.raises(tamis.InvalidInput, match="lacks output"):
        read_recipe(path)
    path.write_text("recipe = ")
    with pytest.raises(tamis.InvalidInput, match="cannot be read"):
        read_recipe(path)
    whole = 'recipe = "cross-encoder"\nmodel = "m"\noutput = "o"\nseed = 7\n[data]\ntrain = ["x"]\n'
    path.write_text(whole + "limits = 5\n")
    with pytest.raises(tamis.InvalidInput, match=r"limits = 5; pass a table"):
        read_recipe(path)
    path.write_text(whole + "[evaluation]\n")
    with pytest.raises(tamis.InvalidInput, match=r"\[evaluation\] lacks data"):
        read_recipe(path)
    path.write_text(whole)
    assert read_recipe(path) == Recipe("cross-encoder", "m", "o", DataOptions(("x",)), 7)
