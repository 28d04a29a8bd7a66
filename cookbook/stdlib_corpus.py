"""A corpus that is on every machine, the docstrings of Python's standard library, and BM25 over it.

Modules written in Python are parsed, never imported. Some that are written in C are imported and looked at.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import bm25s

WORDS = 120  # of a docstring's beginning: about what a passage of a chunked manual has

COMPILED = (
    "array", "atexit", "binascii", "builtins", "bz2", "cmath", "collections", "datetime", "decimal", "functools", "gc",
    "io", "itertools", "lzma", "marshal", "math", "mmap", "os", "pickle", "random", "re", "select", "signal", "socket",
    "sqlite3", "ssl", "struct", "sys", "threading", "time", "unicodedata", "weakref", "zlib",
)  # fmt: skip
LEFT_OUT = {  # tests, tools, tables, and what newer Pythons no longer have
    "__phello__", "antigravity", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests", "this", "turtledemo",
}  # fmt: skip

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Entry:
    """One passage: a module, class, function or method with its documentation.

    Attributes:
        id: The qualified name, such as `zipfile.ZipFile.open`.
        text: Name, signature and the beginning of the docstring.
    """

    id: str
    text: str


def read_corpus(track: Callable[[list[Path]], Iterable[Path]] = iter) -> list[Entry]:
    """Every documented public name, in order of the modules' names; ids are unique.

    Args:
        track: Wraps the list of source files, to show progress.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, Entry] = {}
    for path in track(source_files(root)):
        for entry in parsed(path, module_name(path.relative_to(root))):
            found.setdefault(entry.id, entry)
    for name in COMPILED:
        for entry in imported(name):
            found.setdefault(entry.id, entry)
    return [found[key] for key in sorted(found)]


def source_files(root: Path) -> list[Path]:
    """The source files of public modules."""
    files = []
    for name in sorted(sys.stdlib_module_names):
        files += [root / f"{name}.py"] if (root / f"{name}.py").is_file() else sorted((root / name).rglob("*.py"))
    return [file for file in files if all(map(is_public, module_name(file.relative_to(root)).split(".")))]


def module_name(path: Path) -> str:
    """
    >>> module_name(Path("json/__init__.py")), module_name(Path("json/decoder.py"))
    ('json', 'json.decoder')
    """
    return ".".join(part for part in path.with_suffix("").parts if part != "__init__")


def is_public(name: str) -> bool:
    return not name.startswith("_") and name not in LEFT_OUT


def parsed(path: Path, module: str) -> Iterator[Entry]:
    """The entries of a source file, which is not run."""
    with warnings.catch_warnings(), tokenize.open(path) as stream:
        warnings.simplefilter("ignore")  # of the parser, about old string escapes
        tree = ast.parse(stream.read())
    if doc := ast.get_docstring(tree):
        yield entry(module, "", doc)
    yield from definitions(tree.body, module)


def definitions(body: Iterable[ast.stmt], prefix: str) -> Iterator[Entry]:
    """Classes, functions and methods, also those under an `if` or a `try`; not those inside functions."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from definitions([*node.body, *node.orelse], prefix)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and is_public(node.name):
            name = f"{prefix}.{node.name}"
            if doc := ast.get_docstring(node):
                yield entry(name, "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})", doc)
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, name)


def imported(module: str) -> Iterator[Entry]:
    """What a module written in C, or partly in C, offers under its own name."""
    for name, value in vars(importlib.import_module(module)).items():
        if not is_public(name) or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        if inspect.getmodule(value) in (None, sys.modules[module]) or is_compiled(value):
            yield from documented(f"{module}.{name}", value)
            for method, inner in vars(value).items() if inspect.isclass(value) else ():
                if is_public(method):
                    yield from documented(f"{module}.{name}.{method}", inner)


def is_compiled(value: object) -> bool:
    """Whether it comes from an accelerator such as `_socket` or `posix`, which nobody imports by that name."""
    home = str(getattr(value, "__module__", None) or "")
    return home.startswith("_") or home in ("nt", "posix")


def documented(name: str, value: object) -> Iterator[Entry]:
    doc = getattr(value, "__doc__", None)
    if isinstance(doc, str) and doc.strip() and (callable(value) or inspect.isdatadescriptor(value)):
        signature = " ".join((getattr(value, "__text_signature__", None) or "").split())
        yield entry(name, re.sub(r"\$\w+(, /)?(, )?", "", signature), inspect.cleandoc(doc))


def entry(name: str, signature: str, doc: str) -> Entry:
    words = doc.split()
    beginning = " ".join(words[:WORDS]) + (" ..." if len(words) > WORDS else "")
    return Entry(name, f"{name}{signature}\n{beginning}")


class FirstStage:
    """BM25 over all entries: quick, and it knows nothing but words."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self._words = partial(bm25s.tokenize, stopwords="en", show_progress=False)
        self._index = bm25s.BM25()
        self._index.index(self._words([entry.text for entry in entries]), show_progress=False)

    def search(self, question: str, k: int) -> list[tuple[Entry, float]]:
        """The k entries with the highest scores, and their scores."""
        places, scores = self._index.retrieve(self._words([question]), k=k, show_progress=False)
        return [(self.entries[i], float(score)) for i, score in zip(places[0], scores[0], strict=True)]
