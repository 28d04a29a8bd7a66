"""What a notebook in the cookbook must be to be read and kept; `pytest --nbmake cookbook` runs them."""

import ast
import json
import re
from pathlib import Path

import pytest

COOKBOOK = Path(__file__).parents[1] / "cookbook"
NOTEBOOKS = sorted(COOKBOOK.glob("*.ipynb"))

TEXT = 100_000  # bytes of a notebook without its pictures
WHOLE = 400_000
ABSOLUTE = re.compile(r"(?<![\w.:/])/(home|Users|root|tmp|var|usr|opt|work|mnt|private)/|[A-Z]:\\\\?[Uu]sers")

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def notebook(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def code(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(code):
    return [output for cell in code for output in cell["outputs"]]


def joined(text):
    """Text as notebooks have it: in one piece, or in lines."""
    return "".join(text) if isinstance(text, list) else str(text)


def said(output):
    """All text of an output: what was printed, and what was shown in whatever form but pictures."""
    shown = [value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")]
    return "\n".join(map(joined, [output.get("text", ""), *shown]))


def pictures(code):
    shown = [item for output in outputs(code) for item in output.get("data", {}).items()]
    return [joined(value) for kind, value in shown if kind.startswith("image/")]


def test_small(path, code):
    size = path.stat().st_size
    assert size < WHOLE
    assert size - sum(map(len, pictures(code))) < TEXT


def test_begins_with_a_title(notebook):
    first = notebook["cells"][0]
    assert first["cell_type"] == "markdown"
    assert re.match(r"# \S", "".join(first["source"]))
    titles = [line for cell in notebook["cells"] if cell["cell_type"] == "markdown" for line in cell["source"]]
    assert sum(line.startswith("# ") for line in titles) == 1
    assert any(line.startswith("## ") for line in titles)


def test_was_run_from_top_to_bottom(code):
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert outputs(code)


def test_nothing_went_wrong(code):
    assert not [output for output in outputs(code) if output["output_type"] == "error"]
    assert not [said(output) for output in outputs(code) if output.get("name") == "stderr"], "warnings and logs"


def test_nothing_of_the_machine_it_ran_on(notebook, code):
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook["metadata"] == {"kernelspec": kernel, "language_info": {"name": "python"}}
    assert not any(cell["metadata"] for cell in notebook["cells"])
    text = "\n".join([*map(said, outputs(code)), *("".join(cell["source"]) for cell in notebook["cells"])])
    assert not ABSOLUTE.search(text)
    assert "\x1b" not in text
    assert "site-packages" not in text


def test_code_is_python_and_installs_nothing(code):
    for cell in code:
        source = "".join(cell["source"])
        compile(source, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        assert not re.search(r"^\s*[%!]", source, re.MULTILINE)


def test_links_lead_somewhere(notebook, path):
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("https://") or (path.parent / target).exists(), target
