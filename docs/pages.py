"""A hook of mkdocs: what is documentation but does not lie in `docs` becomes pages too.

CONTRIBUTING.md, CHANGELOG.md, the measurements and the cookbook's notebooks stay where a reader of the repository looks
for them. Links are written as they work there, `../benchmarks/RESULTS.md`, and are bent for the site; a file outside of
`docs` that they point at, a recipe say, is copied into it.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {  # in the repository, in the site
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
    "benchmarks/RESULTS.md": "results.md",
    "README.md": "index.md",
    "integrations/tamis-kernels/README.md": "tamis-kernels.md",
    "src/tamis/models/tamis-mini/README.md": "tamis-mini.md",
    "src/tamis/models/mrl-adaptor/README.md": "mrl-adaptor.md",
}
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"^( *)(```+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie elsewhere, and what pages link to."""
    for source, target in PAGES.items():
        if (ROOT / source).is_file() and files.get_file_from_path(target) is None:
            files.append(File.generated(config, target, content=(ROOT / source).read_text(encoding="utf-8")))
    for notebook in sorted((ROOT / "cookbook").glob("*.ipynb")):
        name = f"cookbook/{notebook.stem}"
        text, images = as_markdown(json.loads(notebook.read_text(encoding="utf-8")), notebook.stem)
        files.append(File.generated(config, f"{name}.md", content=text))
        for image, content in images.items():
            files.append(File.generated(config, f"cookbook/{image}", content=content))
    for page in list(files.documentation_pages()):
        for target in _targets(page):
            uri = in_site(target)
            if not target.startswith("docs/") and files.get_file_from_path(uri) is None and (ROOT / target).is_file():
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between files of the repository become links between pages of the site."""
    return relinked(markdown, page.file.src_uri)


def relinked(markdown: str, uri: str) -> str:
    """The text of a page with its links bent.

    Args:
        markdown: As it stands in the repository.
        uri: The page's place in the site's sources.
    """
    source = in_repository(uri)

    def bent(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        if not (ROOT / target).is_file():
            return found[0]
        return f"{found[1]}{posixpath.relpath(in_site(target), posixpath.dirname(uri) or '.')}{found[3] or ''})"

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(bent, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(bent, markdown[end:])])


def in_repository(uri: str) -> str:
    """Where a page of the site comes from."""
    if uri.startswith("cookbook/"):
        return str(Path(uri).with_suffix(".ipynb"))
    if uri.startswith("files/"):
        return uri.removeprefix("files/")
    return next((source for source, target in PAGES.items() if target == uri and uri != "index.md"), f"docs/{uri}")


def in_site(path: str) -> str:
    """Where a file of the repository stands in the site's sources."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return str(Path(path).with_suffix(".md")) if path.endswith(".ipynb") else f"files/{path}"


def as_markdown(notebook: Mapping[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as a page, with the outputs that were saved in it, and its images by name.

    Args:
        notebook: As nbformat 4 has it.
        name: Of the notebook: images are called after it.
    """
    parts: list[str] = []
    images: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source.strip():
            parts.append(_fenced(source, "python"))
            for output in cell.get("outputs", []):
                if output.get("name") != "stderr":  # warnings of the machine that it ran on
                    parts += _shown(output, name, images)
    return "\n\n".join(parts) + "\n", images


def _shown(output: Mapping[str, Any], name: str, images: dict[str, bytes]) -> Iterator[str]:
    data = output.get("data", {})
    if "image/png" in data:
        image = f"{name}-{len(images) + 1}.png"
        images[image] = base64.b64decode("".join(data["image/png"]))
        yield f"![]({image})"
    elif "text/markdown" in data:
        yield "".join(data["text/markdown"])
    else:
        text = "".join(output.get("text", data.get("text/plain", output.get("traceback", ""))))
        if text.strip():
            yield _fenced(ESCAPES.sub("", text).rstrip(), "text")


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"


def _targets(page: File) -> Iterator[str]:
    """Files of the repository that a page links to."""
    source = in_repository(page.src_uri)
    for found in LINK.finditer(FENCE.sub("", page.content_string)):
        yield posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
