"""How much of a query's words a passage has, rare ones counting more: BM25 with what is known of words beforehand.

BM25's statistics (Robertson and Zaragoza 2009) come from the collection that is searched, which a reranker does not
see; from its candidates alone a passage's value would depend on its neighbours. Here they were counted once, in other
texts, by pieces of a tokenizer, whose words are never unknown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.errors import CorruptCheckpoint
from tamis.tokenizing import clean

FILE = "piece_counts.safetensors"
TOKENIZER = "tokenizer.json"
K1, B = 0.5, 0.4
HEAD = 16_384  # characters, about eight times what a cross-encoder reads
_CHUNK = 256  # texts that are tokenised at a time where pieces are counted


@dataclass(frozen=True, eq=False, slots=True)
class Counts:
    """What is known of pieces.

    Attributes:
        texts: In how many texts each piece occurs, (vocabulary,) int64.
        total: How many texts there were.
        length: Their mean length in pieces.
    """

    texts: NDArray[np.int64]
    total: int
    length: float

    def write(self, folder: Path) -> None:
        """Into the folder of the tokenizer's checkpoint."""
        from safetensors.numpy import save_file

        arrays: dict[str, NDArray[Any]] = {
            "texts": self.texts.astype(np.int32),
            "total": np.array([self.total], np.int64),
            "length": np.array([self.length], np.float32),
        }
        save_file(arrays, folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> Counts:
        """What `write` wrote.

        Raises:
            CorruptCheckpoint: The file is not there, or is another.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            arrays = load_file(folder / FILE)
            return cls(arrays["texts"].astype(np.int64), int(arrays["total"][0]), float(arrays["length"][0]))
        except (OSError, SafetensorError, KeyError, IndexError) as error:
            raise CorruptCheckpoint(
                f"{folder / FILE} cannot be read ({error}); `tamis fuse FOLDER --lexical ...` writes it."
            ) from error


class Overlap:
    """The share of a query's pieces that a passage has, weighted by how rare they are; from 0 to 1.

    The sum over the query's distinct pieces of `idf * f / (f + k1 (1 - b + b n / mean))`, over the sum of `idf`: f is
    how often the passage of n pieces has one, and `idf = ln(1 + (N - c + 0.5) / (c + 0.5))` of c among N texts.
    k1 = 0.5 and b = 0.4 were chosen on collections on which the cross-encoder beside it had not been trained.

    Args:
        folder: Of the checkpoint whose `tokenizer.json` splits the texts.
        counts: Of the same tokenizer's pieces.
        head: Characters of a text that are read; None is all of them.

    Raises:
        CorruptCheckpoint: There is no tokenizer, or the counts belong to another.
    """

    def __init__(self, folder: Path, counts: Counts, head: int | None = HEAD) -> None:
        self._tokenizer = tokenizer_of(folder)
        pieces = self._tokenizer.get_vocab_size()
        if len(counts.texts) != pieces:
            raise CorruptCheckpoint(
                f"{folder / FILE} counts {len(counts.texts)} pieces, {TOKENIZER} has {pieces}; write it anew with "
                "`tamis fuse`."
            )
        self._rarity = np.log1p((counts.total - counts.texts + 0.5) / (counts.texts + 0.5))
        self._rarity[_wordless(self._tokenizer)] = 0.0  # two unknown words are hardly the same
        self._head = head
        self._length = max(1.0, counts.length)

    def __call__(self, query: str, passages: Sequence[str]) -> NDArray[np.float64]:
        """One value for each passage, (n,); 0 where the query has no word that is known."""
        asked, *read = pieces_of(self._tokenizer, [text[: self._head] for text in (query, *passages)])
        terms = np.unique(asked)
        rarity = self._rarity[terms]
        total = rarity.sum()
        if not total > 0:
            return np.zeros(len(passages))
        return np.array([self._value(ids, terms, rarity) / total for ids in read], np.float64)

    def _value(self, ids: NDArray[np.int64], terms: NDArray[np.int64], rarity: NDArray[np.float64]) -> float:
        often = np.bincount(ids, minlength=len(self._rarity))[terms]
        held_back = K1 * (1 - B + B * len(ids) / self._length)
        return float((rarity * often / (often + held_back)).sum())


def count(folder: Path, texts: Iterable[str]) -> Counts:
    """Counts the pieces of texts.

    Args:
        folder: Of the checkpoint whose tokenizer splits them.
        texts: At least one.

    Raises:
        CorruptCheckpoint: It has no `tokenizer.json`.
    """
    tokenizer = tokenizer_of(folder)
    found = np.zeros(tokenizer.get_vocab_size(), np.int64)
    texts = list(texts)
    length = 0
    for start in range(0, len(texts), _CHUNK):
        for ids in pieces_of(tokenizer, texts[start : start + _CHUNK]):
            found[np.unique(ids)] += 1
            length += len(ids)
    return Counts(found, len(texts), length / max(1, len(texts)))


def tokenizer_of(folder: Path) -> Any:
    """The Rust core of a checkpoint's tokenizer, which cuts and pads nothing."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # the library raises nothing narrower
        raise CorruptCheckpoint(f"{folder / TOKENIZER} cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _wordless(tokenizer: Any) -> list[int]:
    """The ids of what the vocabulary lacks, and of SentencePiece's mark of a word's beginning, standing alone."""
    found = [tokenizer.token_to_id("\u2581")]
    if (token := getattr(tokenizer.model, "unk_token", None)) is not None:
        found.append(tokenizer.token_to_id(token))
    else:  # a Unigram model tells it in its file alone
        found.append(json.loads(tokenizer.to_str())["model"].get("unk_id"))
    return [place for place in found if place is not None]


def pieces_of(tokenizer: Any, texts: Sequence[str]) -> list[NDArray[np.int64]]:
    """The ids of each text's pieces, without special tokens."""
    encoded = tokenizer.encode_batch_fast([clean(text) for text in texts], add_special_tokens=False)
    return [np.array(one.ids, np.int64) for one in encoded]
