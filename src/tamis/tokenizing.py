"""Text to token ids, in pieces: the texts alone, and the special tokens that go around them.

A fast tokenizer treats the two texts of a pair apart and then puts its template around them. Tamis learns the
template from a probe and applies it itself, so that a query is tokenised once for all its passages, a long passage
is cut or windowed with the query whole, and nothing in the tokenizer is ever changed: concurrent calls are safe,
where `transformers` tokenizers raise "Already borrowed".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamis.engine.sequences import Tokens
from tamis.errors import UnknownFamily
from tamis.long_documents import CHARACTERS_PER_TOKEN

Ids = NDArray[np.int32]

_MARGIN = 64  # tokens thrown away behind a guess, in case its last words were cut


def clean(text: str) -> str:
    r"""Text without lone surrogates, which no tokenizer takes; a split pair is joined again.

    >>> clean("a\ud83d\ude00b") == "a\U0001f600b", clean("a\udc80b") == "a\ufffdb"
    (True, True)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


@dataclass(frozen=True, slots=True)
class Template:
    """The special tokens around one text or two, and each part's token type.

    `parts` has one piece more than there are texts: before, (between,) after.
    """

    parts: tuple[Ids, ...]
    part_types: tuple[Ids, ...]
    text_types: tuple[int, ...]
    typed: bool

    @property
    def overhead(self) -> int:
        """How many special tokens it adds."""
        return sum(map(len, self.parts))

    def fill(self, *texts: Ids) -> Tokens:
        """One sequence."""
        ids = [self.parts[0]]
        types = [self.part_types[0]]
        for text, kind, part, part_type in zip(
            texts, self.text_types, self.parts[1:], self.part_types[1:], strict=True
        ):
            ids += [text, part]
            if self.typed:
                types += [np.full(len(text), kind, np.int32), part_type]
        return Tokens(np.concatenate(ids), np.concatenate(types) if self.typed else None)


class TextTokenizer:
    """A tokenizer's Rust core, used without ever changing it.

    Args:
        tokenizer: A transformers tokenizer with a `tokenizers` backend, or a `tamis.bert_files.BertTokenizer`.
        lowercase: Lower-case texts first, as old sentence-transformers configs ask.

    Raises:
        UnknownFamily: The tokenizer has no such backend.
    """

    def __init__(self, tokenizer: Any, *, lowercase: bool = False) -> None:
        from tokenizers import Tokenizer
        from tokenizers.normalizers import Lowercase, Sequence

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise UnknownFamily(
                f"Its tokenizer ({type(tokenizer).__name__}) has no fast implementation, which Tamis needs; convert "
                "it once with transformers (AutoTokenizer.from_pretrained(...).save_pretrained(...))."
            )
        self._backend = Tokenizer.from_str(backend.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        if lowercase:
            before = self._backend.normalizer
            self._backend.normalizer = Sequence([Lowercase(), before]) if before else Lowercase()
        self._typed = "token_type_ids" in tokenizer.model_input_names
        self.pad_id: int | None = tokenizer.pad_token_id
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.unk_id: int | None = tokenizer.unk_token_id
        self.mask_id: int | None = tokenizer.mask_token_id
        self.nothing: Ids = np.array([next((i for i in (self.pad_id, self.eos_id) if i is not None), 0)], np.int32)
        special = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
        self.chat: Callable[..., str] | None = None  # a conversation's text in the checkpoint's own template
        self.chat_template = ""  # the template; of several, the one that is taken where none is named
        if found := getattr(tokenizer, "chat_template", None):
            self.chat = partial(tokenizer.apply_chat_template, tokenize=False)
            self.chat_template = found if isinstance(found, str) else found.get("default", "")
        self._special = re.compile("|".join(map(re.escape, special))) if special else None

    def encode(self, texts: Sequence[str], limit: int | None = None) -> list[Ids]:
        """Token ids of each text, without special tokens.

        Args:
            texts: Any strings; lone surrogates become U+FFFD.
            limit: Give the first `limit` + 1 tokens at most: one above the limit says that there were more. Of a
                very long text only as much is tokenised as that takes.
        """
        cleaned = [clean(text) for text in texts]
        if limit is None:
            return self._encode(cleaned)
        characters = (limit + _MARGIN) * CHARACTERS_PER_TOKEN
        heads = [text if len(text) <= characters else _head(text, characters) for text in cleaned]
        encoded = self._encode(heads)
        for i, (text, head) in enumerate(zip(cleaned, heads, strict=True)):
            if len(head) < len(text) and len(encoded[i]) < limit + _MARGIN:
                encoded[i] = self._encode([text])[0]
        return [ids[: limit + 1] for ids in encoded]

    def offsets(self, text: str) -> NDArray[np.int64]:
        """Where each token of a text lies in it, as characters (start, stop), shape (n, 2)."""
        spans = self._backend.encode(clean(text), add_special_tokens=False).offsets
        places = [i for i, c in enumerate(text) if not ("\udc00" <= c <= "\udfff" and i and _is_high(text[i - 1]))]
        return np.array([*places, len(text)])[np.array(spans, np.int64).reshape(-1, 2)]

    def beginning(self, text: str, limit: int) -> str:
        """The characters of the first `limit` tokens of a text that has more; of a character in pieces, none."""
        places = self.offsets(text[: (limit + _MARGIN) * CHARACTERS_PER_TOKEN])
        if len(places) < limit + _MARGIN:
            places = self.offsets(text)
        return text[: int(places[limit, 0])]

    def plain(self, text: str) -> str:
        """Text with spaces where it spells a special token, so that no text can end a turn or open one."""
        while self._special is not None and self._special.search(text):
            text = self._special.sub(lambda match: " " * len(match[0]), text)
        return text

    def entry(self, token: str) -> int | None:
        """The id of a token that the vocabulary spells exactly like this; None if it has none."""
        return self._backend.token_to_id(token)

    def id_of(self, token: str) -> int | None:
        """The id of a text that is one token; None if it is not."""
        ids = self._encode([token])[0]
        return int(ids[0]) if len(ids) == 1 else None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens, without special ones; half a character is U+FFFD."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def count(self, text: str) -> int:
        """How many tokens a text has, without special tokens."""
        return len(self._encode([clean(text)])[0])

    def template(self, texts: int) -> Template:
        """What the tokenizer puts around one text or a pair."""
        probe = self._backend.encode("a", "b" if texts == 2 else None)
        pieces: list[tuple[list[int], list[int]]] = [([], [])]
        kinds: list[int] = []
        for token, owner, kind in zip(probe.ids, probe.sequence_ids, probe.type_ids, strict=True):
            if owner is None:
                pieces[-1][0].append(token)
                pieces[-1][1].append(kind)
            elif owner == len(kinds):
                kinds.append(kind)
                pieces.append(([], []))
        return Template(
            parts=tuple(np.array(ids, np.int32) for ids, _ in pieces),
            part_types=tuple(np.array(types, np.int32) for _, types in pieces),
            text_types=tuple(kinds),
            typed=self._typed,
        )

    def _encode(self, texts: Sequence[str]) -> list[Ids]:
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]


def _is_high(character: str) -> bool:
    return "\ud800" <= character <= "\udbff"


def _head(text: str, characters: int) -> str:
    """About the first `characters` of a text, ending at a space where there is one: tokens do not span words."""
    space = text.rfind(" ", characters // 2, characters)
    return text[: space if space > 0 else characters]
