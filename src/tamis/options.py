"""The arguments of `tamis.load`, checked once and handed on as one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from tamis.advice import closest
from tamis.errors import InvalidInput
from tamis.long_documents import LongDocuments, check_policy
from tamis.secret import Secret
from tamis.tenants import check_weight

Attention: TypeAlias = Literal["auto", "padded"]
Head: TypeAlias = Literal["require", "new"]
Overload: TypeAlias = Literal["error", "wait"]
Similarity: TypeAlias = Literal["cosine", "dot"]
CacheDtype: TypeAlias = Literal["float32", "float16"]
HeadIndex: TypeAlias = Literal["reference", "layer"]
Scale: TypeAlias = Literal["logit", "probability", "cosine"]
ApiName: TypeAlias = Literal["nim", "tei", "vllm", "cohere", "jina", "voyage"]

MODES = (
    "lexical", "cross-encoder", "causal-lm", "layerwise", "bi-encoder", "fusion", "late-interaction", "rankrag",
    "remote",
)  # fmt: skip
DTYPES = ("auto", "float32", "bfloat16", "float16")
QUEUE_TOKENS = 8 * 2**20
CACHE_BYTES = 64 * 2**20
SPECIAL = (  # what not every mode has a use for
    "num_layers", "device", "max_length", "dim", "layer", "instruction", "weight", "passage_model", "similarity",
    "cache_dtype", "compress_ratio", "compress_layers", "head_index", "api", "api_key", "server_model",
    "request_passages", "connections", "deadline", "retries", "verify", "allow_http", "scale",
)  # fmt: skip
_EVERYWHERE = ("num_layers", "device", "max_length", "weight")  # wherever there is a model
_CHOICES = {
    "similarity": ("cosine", "dot"),
    "cache_dtype": ("float32", "float16"),
    "compress_ratio": (1, 2, 4, 8),
    "head_index": ("reference", "layer"),
    "scale": get_args(Scale),
    "api": get_args(ApiName),
}
SMALLEST_LENGTH = 32  # below it little is left beside a query and the special tokens


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """See `tamis.load`, whose keyword arguments these are."""

    mode: str | None = None
    family: str | None = None
    num_layers: int | None = None
    device: str | tuple[str, ...] | None = None
    dtype: str = "auto"
    max_length: int | None = None
    dim: int | tuple[int, ...] | None = None
    layer: int | tuple[int, ...] | None = None
    instruction: str | None = None
    long_documents: LongDocuments = "truncate"
    batch_tokens: int | None = None
    attention: Attention = "auto"
    revision: str | None = None
    head: Head = "require"
    trust_remote_code: bool = False
    cache_bytes: int = CACHE_BYTES
    score_cache_bytes: int = 0
    weight: float | None = None
    overload: Overload = "error"
    queue_tokens: int = QUEUE_TOKENS
    passage_model: str | None = None
    similarity: Similarity | None = None
    cache_dtype: CacheDtype | None = None
    compress_ratio: int | None = None
    compress_layers: tuple[int, ...] | None = None
    head_index: HeadIndex | None = None
    api: ApiName | None = None
    api_key: Secret | str | None = None
    server_model: str | None = None
    request_passages: int | None = None
    connections: int | None = None
    deadline: float | None = None
    retries: int | None = None
    verify: bool | str = True
    allow_http: bool = False
    scale: Scale | None = None

    def __post_init__(self) -> None:
        check_policy(self.long_documents)
        if self.mode is not None and self.mode not in MODES:
            near = closest(self.mode, MODES)
            raise InvalidInput(f"mode={self.mode!r}; pass one of {', '.join(map(repr, MODES))}.{near}")
        if self.dtype not in DTYPES:
            near = closest(self.dtype, DTYPES)
            raise InvalidInput(f"dtype={self.dtype!r}; pass one of {', '.join(map(repr, DTYPES))}.{near}")
        for name in ("num_layers", "batch_tokens", "request_passages", "connections"):
            _at_least(name, getattr(self, name), 1)
        _at_least("retries", self.retries, 0)
        _at_least("max_length", self.max_length, SMALLEST_LENGTH)
        _at_least("cache_bytes", self.cache_bytes, 0)
        _at_least("score_cache_bytes", self.score_cache_bytes, 0)
        _at_least("queue_tokens", self.queue_tokens, 1)
        if self.weight is not None:
            check_weight(self.weight)
        if self.overload not in ("error", "wait"):
            raise InvalidInput(f'overload={self.overload!r}; pass "error" to refuse at once, or "wait".')
        object.__setattr__(self, "device", _names(self.device))
        for name in ("dim", "layer", "compress_layers"):
            object.__setattr__(self, name, _growing(name, getattr(self, name)))
        if isinstance(self.compress_layers, int):
            object.__setattr__(self, "compress_layers", (self.compress_layers,))
        if self.attention not in ("auto", "padded"):
            raise InvalidInput(f'attention={self.attention!r}; pass "auto" or "padded".')
        if self.head not in ("require", "new"):
            raise InvalidInput(f'head={self.head!r}; pass "require", or "new" for a freshly initialised head to train.')
        object.__setattr__(self, "api_key", Secret.of(self.api_key))
        if isinstance(self.verify, Path):
            object.__setattr__(self, "verify", str(self.verify))
        _check_wire(self.deadline, self.verify, self.allow_http)
        for name in ("instruction", "passage_model", "server_model"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InvalidInput(f"{name} is a {type(value).__name__}; pass a str.")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in (None, *allowed):
                raise InvalidInput(f"{name}={getattr(self, name)!r}; pass {' or '.join(map(repr, allowed))}.")

    def allow(self, mode: str, *names: str) -> None:
        """Raises InvalidInput if the caller set an option that `mode` has no use for.

        Args:
            mode: For the message.
            names: Those of `SPECIAL` that it has a use for; besides those that every model has.
        """
        everywhere = () if mode in ("lexical", "remote") else _EVERYWHERE
        defaults = {field.name: field.default for field in fields(self)}
        for name in defaults if mode == "remote" else SPECIAL:  # a server decides on everything but how it is reached
            if name not in (*names, *everywhere) and getattr(self, name) != defaults[name]:
                raise InvalidInput(f"{name}= means nothing in {mode} mode; leave it out.")


def _at_least(name: str, value: object, least: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise InvalidInput(f"{name}={value!r}; pass an int of at least {least}.")


def _check_wire(deadline: object, verify: object, allow_http: object) -> None:
    seconds = isinstance(deadline, int | float) and not isinstance(deadline, bool) and deadline > 0
    if deadline is not None and not seconds:
        raise InvalidInput(f"deadline={deadline!r}; pass seconds above 0.")
    if not isinstance(verify, bool) and not (isinstance(verify, str) and verify):
        raise InvalidInput(f"verify={verify!r}; pass the file of a certificate authority, True, or False for no check.")
    if not isinstance(allow_http, bool):
        raise InvalidInput(f"allow_http={allow_http!r}; pass True or False.")


def _names(device: object) -> str | tuple[str, ...] | None:
    if device is None or isinstance(device, str):
        return device
    if not isinstance(device, Sequence) or not device or not all(isinstance(name, str) for name in device):
        named = f" Here: {str(device)!r}." if hasattr(device, "type") and hasattr(device, "index") else ""
        raise InvalidInput(f'device={device!r}; pass a name such as "cpu" or "cuda:0", or a list of names.{named}')
    return tuple(device)


def _growing(name: str, value: object) -> int | tuple[int, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence):
        _at_least(name, value, 1)
        return value  # type: ignore[return-value]
    for one in value:
        _at_least(name, one, 1)
    if not value or any(a >= b for a, b in pairwise(value)):
        raise InvalidInput(f"{name}={value!r}; pass an int, or a list of ints that grow.")
    return tuple(value)
