"""`tools/compat_check.py`: the range's ends are those of the wheels, and what is run is what the READMEs print.

Installing and running is the script's own business: `make compat`.
"""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def check():
    sys.path.insert(0, str(ROOT / "tools"))  # it imports its neighbour
    try:
        spec = importlib.util.spec_from_file_location("compat_check", ROOT / "tools/compat_check.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(ROOT / "tools"))


@pytest.fixture
def wheel(tmp_path):
    def make(name, *requires):
        path = tmp_path / f"{name}-0.1.0-py3-none-any.whl"
        about = [
            "Metadata-Version: 2.4",
            f"Name: {name}",
            "Version: 0.1.0",
            *(f"Requires-Dist: {one}" for one in requires),
        ]
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{name}-0.1.0.dist-info/METADATA", "\n".join(about) + "\n\nText.\n")
        return path

    return make


def test_the_oldest_end(check, wheel):
    wheels = {
        "tamis": wheel("tamis", "numpy>=1.26", "torch>=2.10", "Py_Yaml>=6,!=6.1", "peft>=0.17; extra == 'rankrag'"),
        "langchain-tamis": wheel("langchain_tamis", "langchain-core>=1.0,<2", "tamis>=0.1,<0.2", "numpy>=2", "rich"),
    }
    assert check.constraints("oldest", wheels, "torch==2.13.0") == [
        "torch==2.13.0", "langchain-classic==1.0", "langchain-core==1.0", "numpy==2", "peft==0.17", "py-yaml==6",
    ]  # fmt: skip
    assert check.constraints("newest", wheels, "torch==2.13.0") == ["torch==2.13.0"]


def test_extras_and_markers_that_do_not_hold_here(check, wheel):
    path = wheel("tamis", "a>=1; extra == 'train'", "b>=2; extra == 'embedded'", "c>=3; python_version < '3'")
    assert [one.name for one in check.requirements(path, ["embedded"])] == ["b"]


def test_torch_is_the_one_that_is_tested(check):
    assert check.tested_torch() in (ROOT / "constraints.txt").read_text().splitlines()


def test_what_is_run_is_what_is_printed(check):
    pages = check.readmes()
    blocks = [block for page in pages for block in check.blocks(page)]
    assert len(blocks) == sum(page.read_text().count("```python\n") for page in pages) > len(pages)
    assert check.commands(ROOT / "README.md")[0] == "tamis doctor"
    assert {line.split()[1] for line in check.commands(ROOT / "README.md")} == {"doctor", "rank", "models", "answer"}
    for piece in check.PRINTS:
        assert any(piece in block for block in blocks), f"{piece} is in no README any more"


def test_a_block_is_judged_by_what_it_does(check, tmp_path, monkeypatch):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    monkeypatch.setattr(check, "PRINTS", {"greet": r"hello \d"})
    problem = lambda code: check.block_problem(tmp_path, "README.md, block 1", code)  # noqa: E731
    assert problem("greet = 'hello 1'\nprint(greet)") is None
    assert "hello you" in problem("greet = 'hello you'\nprint(greet)")
    assert "ValueError: odd" in problem("raise ValueError('odd')")
    assert "is not quiet: a warning" in problem("import sys\nprint('a warning', file=sys.stderr)")


def test_nothing_of_the_caller_reaches_a_user(check, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "src")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("TAMIS_SERVE_KEY", "secret")
    environment = check._as_a_user(tmp_path)
    assert environment["HOME"] == str(tmp_path)
    assert not {"PYTHONPATH", "HF_TOKEN", "TAMIS_SERVE_KEY"} & set(environment)
