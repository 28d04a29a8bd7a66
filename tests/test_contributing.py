"""CONTRIBUTING.md: its family works as printed, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import tamis
import tiny
import tiny_lm
from tamis.families import _FAMILIES, families

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
QUERY = "how is a zip archive read?"
PASSAGES = ["the rain", tiny.text(60, 1), "zipfile reads a zip archive", tiny.text(7, 2), ""]


@pytest.fixture
def family():
    """The module of the page, registered for one test."""
    [block] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    before = {one.name: one for one in families()}
    names = {}
    try:
        exec(compile(block, "CONTRIBUTING.md", "exec"), names)
        yield names
    finally:
        _FAMILIES.clear()
        _FAMILIES.update(before)


def test_the_family_of_the_page_equals_transformers(family, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_lm.save(tmp_path, "llama", "ForCausalLM", bos=True)
    with pytest.raises(tamis.UnknownFamily):
        tamis.load(folder)
    tiny_lm.edit(folder / "config.json", judge_version=1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])

    def expected(passage):
        ids = [tokenizer.bos_token_id]
        for piece in family["PROMPT"].pieces:
            text = piece.replace("{query}", QUERY).replace("{passage}", passage)
            ids += tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, -1]
        return float(logits[yes] - logits[no])

    with tamis.load(folder, dtype="float32") as reranker:
        logits = reranker.logits(QUERY, PASSAGES)
        assert logits == pytest.approx([expected(passage) for passage in PASSAGES], abs=1e-4)
        assert [reranker.logits(QUERY, [passage])[0] for passage in PASSAGES] == pytest.approx(logits, abs=1e-5)
        assert len(set(logits)) == len(PASSAGES)


def test_the_snippet_is_as_short_as_it_says():
    [block] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    code = [line for line in block.splitlines() if line.strip()]
    assert len(code) <= 22


def test_what_the_pages_name_is_there():
    pages = {ROOT / "CONTRIBUTING.md": TEXT, ROOT / "docs/architecture.md": (ROOT / "docs/architecture.md").read_text()}
    for page, text in pages.items():
        for link in re.findall(r"\]\(([^)h#][^)#]*)", text):
            assert (page.parent / link).exists(), link
        for path in re.findall(r"`((?:src|tests|tools|docs|integrations|cookbook|benchmarks)/[\w./]*)`", text):
            assert (ROOT / path).exists(), path
        for path in re.findall(r"`((?:cli|engine|families|remote|scorers)/[\w.]*|\w+\.py)`", text):
            assert any(ROOT.glob(f"src/tamis/**/{path}")) or any(ROOT.glob(f"*/{path}")), path
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", TEXT, re.MULTILINE):
        assert f"\n{target}:" in makefile, target
