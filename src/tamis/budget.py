"""How many passages fit a generator's context."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from numbers import Integral
from typing import Any, TypeAlias

from tamis.errors import InvalidInput, MissingExtra, ModelNotFound

TokenCounter: TypeAlias = Callable[[str], int]
Tokenizer: TypeAlias = Any

DEFAULT_ENCODING = "cl100k_base"


def fit(texts: Iterable[str], max_tokens: int, count: TokenCounter) -> int:
    """The length of the longest run of texts, from the first on, that has at most `max_tokens` tokens.

    It stops at the first text that does not fit, even where a later one would: what is kept is a prefix of the
    ranking, so that no passage is passed over for a worse one.

    >>> fit(["one two", "three", "four five six"], 4, lambda text: len(text.split()))
    2
    """
    used = kept = 0
    for text in texts:
        used += count(text)
        if used > max_tokens:
            break
        kept += 1
    return kept


def token_counter(tokenizer: Tokenizer) -> TokenCounter:
    """A function that counts tokens as `tokenizer` does.

    Args:
        tokenizer: The name of a tiktoken encoding or of an OpenAI model; a tiktoken encoding; a Hugging Face
            tokenizer; or a function from text to its tokens (as LlamaIndex's `Settings.tokenizer`) or their number.

    Raises:
        MissingExtra: A name was given, and tiktoken is not installed.
        ModelNotFound: tiktoken has no such encoding, or cannot read its file (it downloads it once).
        InvalidInput: It is none of these.
    """
    if isinstance(tokenizer, str):
        tokenizer = _tiktoken(tokenizer)
    if hasattr(tokenizer, "encode_ordinary"):  # tiktoken: special tokens in a user's text are text
        return lambda text: len(tokenizer.encode_ordinary(text))
    if hasattr(tokenizer, "convert_ids_to_tokens"):  # transformers
        return lambda text: len(tokenizer.encode(text, add_special_tokens=False))
    if callable(tokenizer):
        return lambda text: _number(tokenizer(text))
    raise InvalidInput(
        f"tokenizer= is a {type(tokenizer).__name__}; pass the name of a tiktoken encoding, a tiktoken or "
        "Hugging Face tokenizer, or a function that counts the tokens of a text."
    )


def _number(counted: Any) -> int:
    return int(counted) if isinstance(counted, Integral) else len(counted)


@lru_cache(maxsize=8)
def _tiktoken(name: str) -> Any:
    try:
        import tiktoken
    except ImportError as error:
        raise MissingExtra(
            'Counting tokens by a tiktoken name needs tiktoken: pip install "tamis[tiktoken]". '
            "Or pass tokenizer= a function that counts the tokens of a text."
        ) from error
    try:
        return (
            tiktoken.encoding_for_model(name)
            if name in tiktoken.model.MODEL_TO_ENCODING
            else tiktoken.get_encoding(name)
        )
    except ValueError as error:
        known = ", ".join(tiktoken.list_encoding_names())
        raise ModelNotFound(f"tiktoken has no encoding {name!r}; it has {known}.") from error
    except Exception as error:
        raise ModelNotFound(
            f"tiktoken could not read its file for {name!r} ({type(error).__name__}). It downloads the file on first "
            "use; on a machine without a network, set TIKTOKEN_CACHE_DIR to a folder that holds it."
        ) from error
