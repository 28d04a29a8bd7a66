"""What a `TamisRerank` is told: the arguments of `tamis.load` and of `tamis.Reranker.rank` as a component's fields."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from llama_index.core.bridge.pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from llama_index.core.callbacks import CallbackManager
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode
from pydantic.json_schema import SkipJsonSchema

import tamis
from tamis.checkpoint import check_model
from tamis.inputs import Cut, check_timeout
from tamis.lazy import LazyReranker
from tamis.long_documents import LongDocuments
from tamis.options import (
    CACHE_BYTES,
    QUEUE_TOKENS,
    ApiName,
    Attention,
    CacheDtype,
    Head,
    HeadIndex,
    LoadOptions,
    Overload,
    Scale,
    Similarity,
)

_CHECKED = (  # what LoadOptions can judge one by one
    "num_layers",
    "max_length",
    "dim",
    "layer",
    "instruction",
    "long_documents",
    "batch_tokens",
    "attention",
    "head",
    "cache_bytes",
    "score_cache_bytes",
    "weight",
    "overload",
    "queue_tokens",
    "similarity",
    "cache_dtype",
    "compress_ratio",
    "compress_layers",
    "head_index",
    "mode",
    "dtype",
    "device",
    "api",
    "api_key",
    "server_model",
    "request_passages",
    "connections",
    "deadline",
    "retries",
    "verify",
    "allow_http",
    "scale",
)
_LOAD = ("model", "family", "revision", "trust_remote_code", "passage_model", *_CHECKED)
RANK = ("top_n", "min_score", "max_tokens", "tokenizer", "timeout")

Count = Annotated[int, Field(ge=1, strict=True)]


class RerankArguments(BaseNodePostprocessor):
    """The fields: how they are checked, dumped, pickled and copied, and the reranker that they make."""

    model_config = ConfigDict(
        arbitrary_types_allowed=True,
        extra="forbid",
        validate_assignment=True,
        protected_namespaces=(),
        hide_input_in_errors=True,  # it may be a key, under a name that was mistyped
    )

    model: str | Path | None = Field(
        default=None, description="Hub id or local folder; None is the embedded model, which needs no network."
    )
    mode: str | None = Field(default=None, description="As in tamis.load; read from the checkpoint if None.")
    family: str | None = Field(default=None, description="One of tamis.list_families(); read from the checkpoint.")
    num_layers: int | None = Field(default=None, description="Keep only the first n layers of a deeper model.")
    device: str | Sequence[str] | None = Field(
        default=None,
        description='"cpu", "cuda:0", ...; or several, a copy on each; the first CUDA device, else the CPU.',
    )
    dtype: str = Field(default="auto", description='"auto", "float32", "bfloat16" or "float16".')
    max_length: int | None = Field(default=None, description="Tokens of a sequence that is read at once.")
    dim: int | Sequence[int] | None = Field(
        default=None, description="bi-encoder: leading dimensions that are compared; a growing list is a funnel."
    )
    layer: int | Sequence[int] | None = Field(default=None, description="Layerwise models: the layer that scores.")
    instruction: str | None = Field(default=None, description="Put before the query, instead of the model's own.")
    long_documents: LongDocuments = Field(
        default="truncate", description="What is done with a passage that does not fit the model."
    )
    batch_tokens: int | None = Field(default=None, description="What one batch may cost; chosen for the device.")
    attention: Attention = Field(default="auto", description='"auto" packs without padding; "padded" never does.')
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub id.")
    head: Head = Field(default="require", description='"require" refuses a checkpoint without a trained head.')
    trust_remote_code: bool = Field(default=False, description="Run Python code that the checkpoint brings along.")
    cache_bytes: int = Field(default=CACHE_BYTES, description="Memory for passage vectors between calls.")
    score_cache_bytes: int = Field(default=0, description="Memory for the outcome of sequences between calls.")
    weight: float | None = Field(default=None, description="This reranker's own share of the device; 2 is twice 1.")
    overload: Overload = Field(default="error", description='A full queue: "error" refuses at once, "wait" waits.')
    queue_tokens: int = Field(default=QUEUE_TOKENS, description="Tokens that may wait before the queue is full.")
    passage_model: str | Path | None = Field(
        default=None, description="bi-encoder: what reads the passages, where model reads queries only."
    )
    similarity: Similarity | None = Field(default=None, description='bi-encoder: "cosine" or "dot".')
    cache_dtype: CacheDtype | None = Field(default=None, description="What passage vectors are kept in.")
    compress_ratio: int | None = Field(default=None, description="Lightweight layerwise: tokens that become one.")
    compress_layers: int | Sequence[int] | None = Field(
        default=None, description="Lightweight layerwise: the layers before which tokens are compressed."
    )
    head_index: HeadIndex | None = Field(default=None, description='Lightweight layerwise: "reference" or "layer".')
    api: ApiName | None = Field(default=None, description="remote: what the server speaks; found out if None.")
    api_key: SecretStr | None = Field(
        default=None,
        exclude=True,
        description="remote: the key that the server wants, else the environment's. Neither dumps nor pickles hold it.",
    )
    server_model: str | None = Field(default=None, description="remote: which of the server's models.")
    request_passages: int | None = Field(default=None, description="remote: passages of one request to the server.")
    connections: int | None = Field(default=None, description="remote: requests under way at once; 8 if None.")
    deadline: float | None = Field(
        default=None, description="remote: seconds that a call without timeout may take; 60 if None."
    )
    retries: int | None = Field(default=None, description="remote: repetitions of a failed request; 4 if None.")
    verify: bool | str | Path = Field(
        default=True, description="remote: a file of certificate authorities; False trusts any certificate."
    )
    allow_http: bool = Field(default=False, description="remote: send the key over http:// to another machine.")
    scale: Scale | None = Field(
        default=None, description='remote: what the server\'s numbers are: "logit", "probability" or "cosine".'
    )

    top_n: Count | None = Field(default=None, description="Keep this many nodes at most; None is no limit.")
    min_score: float | None = Field(
        default=None, ge=0, le=1, allow_inf_nan=False, description="Keep only nodes with at least this score."
    )
    max_tokens: Count | None = Field(
        default=None, description="Keep the longest run of best nodes whose texts have at most this many tokens."
    )
    tokenizer: Any = Field(
        default=None,
        description="What max_tokens counts with, as in Reranker.rank. Only a name is kept in dumps.",
    )

    timeout: float | None = Field(
        default=None, gt=0, description="Seconds after which a call raises tamis.DeadlineExceeded."
    )

    metadata_mode: MetadataMode = Field(
        default=MetadataMode.EMBED, description="Which metadata the model reads with a node's text."
    )
    keep_retrieval_score: bool = Field(
        default=False,
        description="Return copies of the nodes with the score they came with in metadata['retrieval_score'], which "
        "neither prompts nor embeddings show. A value that is there already stays.",
    )
    reranker: SkipJsonSchema[tamis.Reranker | None] = Field(
        default=None,
        exclude=True,
        description="A loaded reranker, used instead of loading one. Neither dumps nor pickles hold it: what is "
        "restored loads what model, mode or family say, or asks for a reranker.",
    )
    needs_reranker: bool = Field(
        default=False,
        description="Set in an instance with a reranker, and in what is restored from its dump or pickle.",
    )

    _lazy: LazyReranker = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Prepares the load, and loads nothing."""
        super().model_post_init(context)
        self._lazy = LazyReranker(tamis.load, self._fields(_LOAD))
        if self.reranker is not None:
            self.needs_reranker = True  # set, and no default: dumps without these tell it too

    def _loader(self) -> LazyReranker:
        if self.needs_reranker and self.model is self.mode is self.family is None:
            raise tamis.InvalidInput(
                "This TamisRerank was restored from a dump or a pickle of one that was made with reranker=, which "
                "neither can hold. Assign its reranker, or make it with model=, mode= or family= beside reranker=."
            )
        self._lazy = self._lazy.over(self._fields(_LOAD))
        return self._lazy

    # -- checking, dumping, copying ---------------------------------------------------------------------------------

    @model_validator(mode="before")
    @classmethod
    def _without_class_name(cls, data: Any) -> Any:
        """Takes what `model_dump` gives, which has the class's name in it."""
        return {k: v for k, v in data.items() if k != "class_name"} if isinstance(data, dict) else data

    @field_validator(*_CHECKED, mode="before")
    @classmethod
    def _checked_by_the_core(cls, value: Any, info: ValidationInfo) -> Any:
        LoadOptions(**{str(info.field_name): value})
        return value

    @field_validator("model", mode="before")
    @classmethod
    def _a_name(cls, value: Any) -> Any:
        if value is not None:
            check_model(value)
        return value

    @field_validator("min_score", mode="before")
    @classmethod
    def _in_range(cls, value: Any) -> Any:
        Cut(min_score=value)
        return value

    @field_validator("timeout", mode="before")
    @classmethod
    def _clocks_can_wait(cls, value: Any) -> Any:
        check_timeout(value)
        return value

    @field_validator("callback_manager", mode="before")
    @classmethod
    def _never_none(cls, value: Any) -> Any:
        return CallbackManager() if value is None else value

    @field_serializer("model", "passage_model", "verify")
    def _as_text(self, value: str | Path | bool | None) -> str | bool | None:
        return str(value) if isinstance(value, Path) else value

    @field_serializer("tokenizer")
    def _name_only(self, value: Any) -> str | None:
        return value if isinstance(value, str) else None

    @field_serializer("needs_reranker")
    def _remembered(self, value: bool) -> bool:
        return value or self.reranker is not None

    def __getstate__(self) -> dict[str, Any]:
        # Of a copy: the base class deletes what cannot be pickled from the very dict of the object.
        update = {"reranker": None, "api_key": None, "needs_reranker": self._remembered(self.needs_reranker)}
        return super(RerankArguments, self.model_copy(update=update)).__getstate__()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        for shared in (self.callback_manager, self.tokenizer):  # handlers are where events go, and may hold locks
            memo[id(shared)] = shared
        return super().__deepcopy__(memo)

    def _fields(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}
