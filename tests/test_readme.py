"""The README's Python runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


RANKING = [block for block in BLOCKS if "zip archive" in block]  # the others are tested with what they show


@pytest.mark.parametrize("block", RANKING, ids=range(len(RANKING)))
def test_python_blocks_run(block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    assert "zipfile" in capsys.readouterr().out.splitlines()[0]


def test_the_rankrag_block_runs(embedded_rag, capsys):
    [block] = [block for block in BLOCKS if "load_rankrag" in block]
    exec(compile(block, "README.md", "exec"), {})
    assert re.search(r"(True|False) \[\(\d, 0\.\d+\), \(\d, 0\.\d+\)\]\n\S", capsys.readouterr().out)


def test_blocks_of_the_rankrag_page_run(capsys):
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/rankrag.md").read_text(), re.DOTALL)
    exec(compile(block, "rankrag.md", "exec"), {})
    assert "Summarise what is said about zip archives.\n\nAssistant:" in capsys.readouterr().out


def test_commands_are_targets_and_files():
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake (\w+)", text):
        assert f"\n{target}:" in makefile
    for link in re.findall(r"\]\(([^)h][^)]*)\)", text):
        assert (ROOT / link).exists(), link
    assert len(RANKING) == 3
    assert len(BLOCKS) == 5
