"""LLM preference: likelihoods against transformers' own forward, and a retriever that learns them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tamis
import tiny
import tiny_lm
import tiny_training as tt
from tamis.errors import InvalidInput
from tamis.evaluation.collection import Collection, Query
from tamis.training import preference
from tamis.training.preference import Options, likelihoods
from tamis.training.rows import read_jsonl
from tamis.types import Passage

ANSWERS = ["futures", "the zipfile module", "stable, several keys"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_lm.save(tmp_path_factory.mktemp("llama"), "llama", "ForCausalLM")


def by_transformers(folder, rag, question, passage, answer):
    """Each prompt alone, unpadded, all logits: the probabilities of the answer's tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = rag._scorer.prompts
    ids = np.concatenate([prompt.system, prompt.numbered([passage])[0], prompt.replying(question, "short", ())])
    said = tokenizer(answer, add_special_tokens=False)["input_ids"]
    whole = torch.tensor([[*ids.tolist(), *said]])
    with torch.no_grad():
        p = model(whole).logits[0].log_softmax(-1)
    return [p[len(ids) - 1 + i, token].item() for i, token in enumerate(said)]


def test_likelihoods_equal_transformers(teacher):
    requests = [(tt.QUERIES[i], tiny.TEXT[j], ANSWERS[i]) for i in range(3) for j in range(4)]
    with tamis.load_rankrag(teacher, dtype="float32") as rag:
        given = likelihoods(rag, requests)
        logarithms = likelihoods(rag, requests, "log-likelihood")
        expected = [by_transformers(teacher, rag, *request) for request in requests]
        alone = likelihoods(rag, requests[5:6])
        short = likelihoods(rag, requests[8:9], max_answer=1)
        rag.rank(tt.QUERIES[0], tiny.TEXT)  # shares its batches
        assert likelihoods(rag, requests) == pytest.approx(given, rel=1e-4)
    np.testing.assert_allclose(given, [np.exp(row).mean() for row in expected], rtol=1e-3)
    np.testing.assert_allclose(logarithms, [np.mean(row) for row in expected], atol=1e-3)
    assert alone == pytest.approx([given[5]], rel=1e-4)
    assert short == pytest.approx([np.exp(expected[8][0])], rel=1e-3)


def test_a_passage_that_does_not_fit_is_read_from_its_beginning(teacher):
    long = " ".join(tiny.TEXT * 40)
    with tamis.load_rankrag(teacher, dtype="float32", max_length=512) as rag:
        [value] = likelihoods(rag, [(tt.QUERIES[0], long, "futures")])
    assert 0 < value < 1


@pytest.fixture
def collection():
    corpus = {str(i): Passage(text, str(i)) for i, text in enumerate([*tiny.TEXT, *tt.PASSAGES])}
    queries = {str(i): Query(str(i), tt.QUERIES[i], (ANSWERS[i], "futures")) for i in range(3)}
    queries["3"] = Query("3", tt.QUERIES[3], ())
    return Collection("tiny", "train", corpus, queries, {str(i): {str(i): 1} for i in range(4)})


def write(collection, folder):
    import json

    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": key, "title": "", "text": passage.text} for key, passage in collection.corpus.items()]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = [
        {"_id": key, "text": query.text, "metadata": {"answers": list(query.answers or ())}}
        for key, query in collection.queries.items()
    ]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, asked)))
    lines = [f"{query}\t{passage}\t1" for query, judged in collection.qrels.items() for passage in judged]
    (folder / "qrels" / "train.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    return folder


@pytest.mark.peers
def test_the_recipe(tmp_path, teacher, collection):
    from dataclasses import replace

    from tamis.training.recipe import DataOptions

    encoder = tiny.save_encoder(tmp_path / "bert", "bert", **tt.STILL)
    rows = tmp_path / "more.jsonl"
    rows.write_text('{"query": "who?", "pos": ["he", "she"], "scores": [0.25, 0.5]}\n{"query": "x", "pos": ["y"]}\n')
    options = Options(teacher=str(teacher), passages=3, temperature=0.5, beta=0.01)
    recipe = tt.recipe("llm-preference", encoder, tmp_path / "out", max_steps=20)
    recipe = replace(recipe, data=DataOptions((str(write(collection, tmp_path / "tiny")), str(rows))))
    examples = preference.examples(recipe, options, progress=False)
    assert {e.query for e in examples} == {*tt.QUERIES[:3], "who?"}
    with tamis.load_rankrag(teacher) as rag:
        asked = next(e for e in examples if e.query == tt.QUERIES[1])
        for passage, score in zip(asked.passages, asked.scores, strict=True):
            both = likelihoods(rag, [(asked.query, passage, answer) for answer in (ANSWERS[1], "futures")])
            assert score == pytest.approx(max(both), rel=1e-2)
    trainer = preference.prepare(recipe, options, examples, recipe.output / "checkpoints")
    trainer.train()
    assert tt.falls(trainer)
    preference.save(trainer, recipe.output, options)
    with preference.load(recipe.output, options) as reranker:
        assert len(reranker.rank("who?", ["he", "she"])) == 2


def test_limits_of_files_are_drawn(tmp_path):
    """By their names too, and not the first ones."""
    from dataclasses import replace

    from tamis.training.recipe import DataOptions

    for name in ("some", "all"):
        rows = [f'{{"query": "{name} {i}", "pos": ["a", "b"], "scores": [0.1, 0.2]}}\n' for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    data = DataOptions((str(tmp_path / "some.jsonl"), str(tmp_path / "all.jsonl")), limits={"some": 5})
    recipe = replace(tt.recipe("llm-preference", tmp_path, tmp_path / "out"), data=data)
    found = [e.query for e in preference.examples(recipe, Options())]
    some = sorted(int(query.split()[1]) for query in found if query.startswith("some"))
    assert len(found) == 25
    assert some != [*range(5)]
    assert found != [e.query for e in preference.examples(replace(recipe, seed=8), Options())]


def test_questions_without_answers_are_refused(collection, teacher):
    from dataclasses import replace

    queries = {key: Query(key, query.text, ()) for key, query in collection.queries.items()}
    with tamis.load_rankrag(teacher) as rag, pytest.raises(InvalidInput, match="answers"):
        preference.judged(rag, replace(collection, queries=queries), Options(), None, np.random.default_rng(0))


def test_wrong_options():
    for wrong in ({"value": "perplexity"}, {"loss": "triplet"}, {"passages": 1}):
        with pytest.raises(InvalidInput):
            Options(**wrong)


def test_the_file_that_rag_retrieval_reads(tmp_path):
    path = tmp_path / "rows.jsonl"
    preference.write([next(iter(tt.scored()))], path)
    [row] = read_jsonl(path)
    assert (row.passages, row.scores) == (tt.scored()[0].passages, tt.scored()[0].scores)
