"""The registry: one door for the built-ins, for a user, and for a package; and the page that lists them."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tamis
import tiny_lm
from tamis.cli.models import markdown
from tamis.families import _FAMILIES, families

ROOT = Path(__file__).resolve().parent.parent
QUERY, PASSAGES = "which one?", ["this", "that one", "neither of them"]


@pytest.fixture
def own():
    """The registry as it was, afterwards."""
    before = {family.name: family for family in families()}
    yield
    _FAMILIES.clear()
    _FAMILIES.update(before)


def readme_example():
    """The README's own family, as it stands there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.search(r"```python\n(from tamis\.families\.causal_lm.*?)```", text, re.S)[1]


def test_a_family_in_twenty_lines(tmp_path, own):
    folder = tiny_lm.save(tmp_path, "llama", "ForCausalLM", template=None)
    example = readme_example()
    assert len(example.splitlines()) <= 20
    scope = {}
    exec(example, scope)
    name = next(family.name for family in families())  # the newest is asked first
    assert name in example
    assert tamis.list_families()[0] == name
    with tamis.load(folder, family=name, dtype="float32") as reranker:
        assert reranker.mode == "causal-lm"
        logits = reranker.logits(QUERY, PASSAGES)
    assert np.ptp(logits) > 0.01
    with pytest.raises(tamis.InvalidInput, match="already"):
        exec(example, scope)


def test_a_registered_family_finds_its_checkpoints(tmp_path, own):
    folder = tiny_lm.save(tmp_path, "qwen3", "ForCausalLM")
    built_in = next(family for family in families() if family.name == "qwen3-reranker")
    tamis.register(replace(built_in, name="ours", hub_ids=frozenset({str(folder)})))
    with (
        tamis.load(folder, dtype="float32") as ours,
        tamis.load(folder, family="qwen3-reranker", dtype="float32") as same,
    ):
        assert ours.logits(QUERY, PASSAGES) == pytest.approx(same.logits(QUERY, PASSAGES), abs=1e-6)


def test_what_is_no_family_is_refused(own):
    built_in = families()[0]
    with pytest.raises(tamis.InvalidInput, match="not a str"):
        tamis.register("qwen")
    with pytest.raises(tamis.InvalidInput, match="'guess'"):
        tamis.register(replace(built_in, name="x", mode="guess"))
    tamis.register(replace(built_in, summary="mine"), replace=True)
    assert [family.summary for family in families() if family.name == built_in.name] == ["mine"]


def test_packages_register_by_entry_point(monkeypatch, own, caplog):
    import tamis.families as registry

    built_in = families()[0]

    class Entry:
        value = "a_package:FAMILY"

        def __init__(self, found):
            self._found = found

        def load(self):
            if isinstance(self._found, Exception):
                raise self._found
            return self._found

    found = [Entry(replace(built_in, name="one")), Entry([replace(built_in, name="two")]), Entry(ImportError("broken"))]
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "tamis.families" else [])
    monkeypatch.setattr(registry, "_loaded", False)
    _FAMILIES.clear()
    assert tamis.list_families()[:2] == ["two", "one"]
    assert "bm25" in tamis.list_families()
    assert "a_package:FAMILY" in caplog.text
    assert importlib.metadata.entry_points(group="tamis.families") is not None  # the real one takes that argument


def test_names_that_are_a_contract():
    promised = {
        "nemotron-rerank", "rerank-qa-mistral", "bge-reranker-v2-gemma", "bge-reranker-v2-minicpm-layerwise",
        "bge-reranker-v2.5-gemma2-lightweight", "qwen3-reranker", "mxbai-rerank-v2", "zerank", "ctxl-rerank-v2",
        "jina-reranker-v3", "monot5", "colbert",
    }  # fmt: skip
    assert promised <= set(tamis.list_families())


def test_every_family_says_what_it_reads_and_how_it_scores():
    for family in families():
        assert all((family.summary, family.score, family.window)), family.name
        assert family.template or family.mode == "lexical", family.name


def test_the_page_of_families_is_the_registry():
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert markdown(families()) in page, "run: tamis models --markdown, and put it into docs/families.md"
