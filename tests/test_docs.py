"""The documentation: its Python runs and prints what it says, its generated parts are the code's, its site builds."""

from __future__ import annotations

import ast
import base64
import doctest
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from tamis.families import _FAMILIES, families

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(
    r"^(?P<unrun><!-- not run: [^\n]+ -->\n)?```python\n(?P<code>.*?)^```\n(?:\n^```text\n(?P<out>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"\d+\.\d+")
NEAR = 0.02  # scores in bfloat16, where the pages' were made, and in float32


def module(name):
    """A script of docs, which are no package."""
    spec = spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    found = module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses look their module up
    spec.loader.exec_module(found)
    return found


# -- Python on the pages ----------------------------------------------------------------------------------------------


@pytest.fixture
def as_before(request):
    """Global settings that a page makes, undone; and its model shared with the other tests of the run."""
    before = {family.name: family for family in families()}
    if "load_rankrag(" in request.node.callspec.params["page"].read_text(encoding="utf-8"):
        request.getfixturevalue("embedded_rag")
    yield
    _FAMILIES.clear()
    _FAMILIES.update(before)
    if "llama_index.core" in sys.modules:
        from llama_index.core import Settings

        Settings._llm = Settings._embed_model = None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_on_a_page_runs_and_prints_what_stands_under_it(page, as_before, capsys):
    text = page.read_text(encoding="utf-8")
    scope = {"__name__": "__main__"}  # one for the page: a later block goes on where an earlier one stopped
    for block in BLOCK.finditer(text):
        lines = "\n" * text[: block.start("code")].count("\n")  # so that a traceback names the page's own line
        code = compile(lines + block["code"], str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if block["unrun"]:
            continue
        exec(code, scope)
        printed = capsys.readouterr().out
        if block["out"] is not None:
            where = f"{page.name}:{len(lines) + 1}"
            assert NUMBER.sub("#", printed) == NUMBER.sub("#", block["out"]), where
            says, is_so = (list(map(float, NUMBER.findall(text))) for text in (block["out"], printed))
            assert is_so == pytest.approx(says, abs=NEAR), where


def test_blocks_that_print_are_found():
    found = [block for page in PAGES for block in BLOCK.finditer(page.read_text(encoding="utf-8"))]
    assert len(found) == sum(page.read_text(encoding="utf-8").count("```python\n") for page in PAGES)
    assert sum(block["out"] is not None for block in found) >= 15
    assert sum(block["unrun"] is None for block in found) >= 18


# -- parts that are generated -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_generated_parts_are_up_to_date(page):
    text = page.read_text(encoding="utf-8")
    # By words: Pythons differ in where argparse breaks lines.
    assert module("generate").filled(text).split() == text.split(), "run: python docs/generate.py"


def test_there_is_something_to_generate():
    generate = module("generate")
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert all(f"<!-- generated: {name} -->" in text for name in generate.PARTS)
    assert generate.filled("<!-- generated: families -->\nold\n<!-- end -->\n").count("\n| `") == len(families())
    assert "## tamis rank\n\n```text\nusage: tamis rank" in generate.commands()


def test_plots_show_the_tables_of_the_results():
    image = pytest.importorskip("PIL.Image")
    plots = module("plots")
    drawn = {path.stem: image.open(path).text["Figures"] for path in (DOCS / "plots").glob("*.png")}
    assert drawn == {name: plots.digest(name) for name in plots.PLOTS}, "run: python docs/plots.py"
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    assert all(f"(plots/{name}.png)" in text for name in plots.PLOTS)


@pytest.mark.parametrize(("name", "needs"), [("plots", "matplotlib"), ("doctests", "griffe")])
def test_examples_in_the_scripts(name, needs):
    pytest.importorskip(needs)
    found = doctest.testmod(module(name))
    assert found.attempted
    assert not found.failed


def test_figures_that_pages_repeat_stand_in_the_results():
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    for name in ("performance.md", "engine.md"):
        text = (DOCS / name).read_text(encoding="utf-8")
        text = text[text.index("## What was measured") :] if name == "engine.md" else text
        figures = re.findall(r"\d+\.\d\d+x?|\d+\.\d(?= s\b)", text)
        assert len(figures) > 5
        assert [figure for figure in figures if figure not in results] == [], name


# -- the site ---------------------------------------------------------------------------------------------------------


class Html(HTMLParser):
    """What a page of the site links to, what it loads, and its tables."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loaded, self.widths = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in ("img", "script", "iframe") and found.get("src"):
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loaded.append(found["href"])
        if tag == "table":
            self.widths.append([])
        if tag == "tr" and self.widths:
            self.widths[-1].append(0)
        if tag in ("td", "th") and self.widths and self.widths[-1]:
            self.widths[-1][-1] += 1


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly: a warning is an error."""
    if not all(map(find_spec, ("mkdocs", "material", "mkdocstrings"))):
        pytest.skip("mkdocs is not installed: pip install --group docs")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        build, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def test_the_site_is_whole(site):
    pages = {name: Html(path.read_text(encoding="utf-8")) for name, path in site.items() if name.endswith(".html")}
    del pages["404.html"]  # its links are absolute, since it may be shown for any address
    assert {page.with_suffix(".html").name for page in PAGES} <= set(pages)
    wrong = []
    for name, page in pages.items():
        for link in [*page.links, *page.loaded]:
            if re.match(r"[a-z]+:", link):
                continue
            file, _, anchor = link.partition("#")
            target = os.path.normpath(os.path.join(os.path.dirname(name), file)) if file else name
            if target not in site or (anchor and target in pages and anchor not in pages[target].ids):
                wrong.append(f"{name}: {link}")
        wrong += [
            f"{name}: {what} is fetched from elsewhere" for what in page.loaded if re.match(r"(https?:)?//", what)
        ]
        wrong += [
            f"{name}: a table with rows of {sorted(set(rows))} cells" for rows in page.widths if len(set(rows)) > 1
        ]
    assert not wrong
    assert sum(len(page.widths) for page in pages.values()) > 30


def test_the_site_says_what_the_code_says(site):
    text = site["api/tamis.html"].read_text(encoding="utf-8")
    assert "Two loads of one checkpoint share one engine" in text
    assert "trust_remote_code" in text
    values = site["api/values.html"].read_text(encoding="utf-8")
    assert "DeadlineExceeded" in values
    assert values.count('class="gp"') >= 3  # the prompts of examples in docstrings
    assert "keep_retrieval_score" in site["api/llama-index.html"].read_text(encoding="utf-8")


def test_every_page_has_its_place(site):
    index = Html(site["index.html"].read_text(encoding="utf-8"))
    pages = {page.relative_to(DOCS).with_suffix(".html").as_posix() for page in DOCS.rglob("*.md")}
    assert pages - {"index.html"} <= set(index.links)


def test_notebooks_become_pages():
    pytest.importorskip("mkdocs")
    pages = module("pages")
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["\x1b[1mone\x1b[0m\n", "two\n"]},
        {"output_type": "stream", "name": "stderr", "text": "a warning"},
        {"output_type": "display_data", "data": {"image/png": base64.b64encode(b"png").decode(), "text/plain": "Fig"}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Text."]},
        {"cell_type": "code", "source": "print(1)", "outputs": outputs},
    ]
    text, images = pages.as_markdown(json.loads(json.dumps({"cells": cells})), "mine")
    assert text == "# Title\nText.\n\n```python\nprint(1)\n```\n\n```text\none\ntwo\n```\n\n![](mine-1.png)\n"
    assert images == {"mine-1.png": b"png"}


def test_links_are_bent_for_the_site():
    pytest.importorskip("mkdocs")
    relinked = module("pages").relinked
    assert relinked("[r](../benchmarks/RESULTS.md#a) [x](https://x.org/y)", "engine.md") == (
        "[r](results.md#a) [x](https://x.org/y)"
    )
    assert relinked("![i](latency_against_load.png)", "results.md").startswith("![i](files/benchmarks/latency")
    assert relinked("[e](../evaluation.md)", "api/evaluation.md") == "[e](../evaluation.md)"
    assert relinked("```\n[r](../CHANGELOG.md)\n```\n", "engine.md") == "```\n[r](../CHANGELOG.md)\n```\n"
