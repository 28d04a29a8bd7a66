"""Keeps transformers from doing the same work several times when it loads a GGUF file.

Its parser reads the whole header, vocabulary included, each time that somebody asks for the config or the weights,
which a load does four times at two to three seconds each; it builds a table of all weights' names for every module of
the model; and its reader slices a `numpy.memmap` a million times, which costs several times what slicing an array does.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import numpy as np

_configs: dict[tuple[str, int, int], Any] = {}  # of the file that was read last
_readers: dict[tuple[str, int, int], Any] = {}  # of that file, between its config and its weights


@contextmanager
def parsing_once() -> Iterator[None]:
    """Within it, configs and tables of names are remembered, and no bars are drawn; one thread at a time."""
    gguf: Any = sys.modules.get("gguf")
    if gguf is None:  # whoever loads such a file has imported it
        yield
        return
    from transformers import modeling_gguf_pytorch_utils as utils

    parse, names, reader = utils.load_gguf_checkpoint, gguf.get_tensor_name_map, gguf.GGUFReader
    bar = utils.tqdm
    utils.tqdm = partial(bar, disable=True)  # it asks nobody
    utils.load_gguf_checkpoint = partial(_parsed, parse)
    gguf.get_tensor_name_map = lru_cache(maxsize=8)(names)
    gguf.GGUFReader = partial(_opened, type("GGUFReader", (_PlainData, reader), {}))
    try:
        yield
    finally:
        utils.load_gguf_checkpoint, gguf.get_tensor_name_map, gguf.GGUFReader = parse, names, reader
        utils.tqdm = bar


class _PlainData:
    """A reader's file as an ordinary array over the same memory map."""

    @property
    def data(self) -> Any:
        return self._data

    @data.setter
    def data(self, mapped: Any) -> None:
        self._data = mapped.view(np.ndarray)


def _opened(reader: Callable[..., Any], path: Any, *mode: Any) -> Any:
    key = _key(path)
    if key not in _readers:
        _readers.clear()
        _readers[key] = reader(path, *mode)
    return _readers[key]


def _parsed(parse: Callable[..., Any], path: Any, return_tensors: bool = False, **options: Any) -> Any:
    key = _key(path)
    if return_tensors:
        if key in _readers:  # the vocabulary has been read, and is no part of the weights
            fields = _readers[key].fields
            for name in [name for name in fields if name.startswith("tokenizer.")]:
                del fields[name]
        try:
            return parse(path, return_tensors=True, **options)
        finally:
            _readers.clear()
    if key not in _configs:
        config = parse(path, return_tensors=False, **options)["config"]
        _configs.clear()
        _configs[key] = config
    return {"config": copy.deepcopy(_configs[key])}


def _key(path: Any) -> tuple[str, int, int]:
    stat = os.stat(path)
    return os.path.realpath(path), stat.st_mtime_ns, stat.st_size
