"""What the two adapters share: the fields that say which reranker, and its loading on first use."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationInfo,
    field_serializer,
    field_validator,
)
from pydantic.json_schema import SkipJsonSchema

import tamis
from tamis.checkpoint import check_model
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

OPTIONS = tuple(field.name for field in fields(LoadOptions))
CONFIG = ConfigDict(
    extra="forbid",
    validate_assignment=True,
    arbitrary_types_allowed=True,
    protected_namespaces=(),
    hide_input_in_errors=True,  # it may be a key, under a name that was mistyped
)


class TamisModel(BaseModel):
    """The arguments of `tamis.load`, which is called on first use, or a loaded reranker.

    Attributes:
        reranker: A loaded reranker, which is used instead of loading one. Dumps and pickles leave it out; where no
            other field names a model, what is restored raises `tamis.InvalidInput` on first use.
        needs_reranker: Set in an instance with a reranker, and in what is restored from its dump or pickle.
        api_key: With `mode="remote"`: the key that the server wants. Dumps and pickles leave it out; what is restored
            reads it from the environment, as `tamis.load` does.
    """

    model_config = CONFIG

    model: str | Path | None = None
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
    passage_model: str | Path | None = None
    similarity: Similarity | None = None
    cache_dtype: CacheDtype | None = None
    compress_ratio: int | None = None
    compress_layers: int | tuple[int, ...] | None = None
    head_index: HeadIndex | None = None
    api: ApiName | None = None
    api_key: SecretStr | None = Field(default=None, exclude=True)
    server_model: str | None = None
    request_passages: int | None = None
    connections: int | None = None
    deadline: float | None = None
    retries: int | None = None
    verify: bool | str | Path = True
    allow_http: bool = False
    scale: Scale | None = None
    reranker: SkipJsonSchema[tamis.Reranker | None] = Field(default=None, exclude=True, repr=False)
    needs_reranker: bool = Field(default=False, repr=False)

    _lazy: LazyReranker = PrivateAttr(default_factory=lambda: LazyReranker(tamis.load, {}))

    @field_validator(*OPTIONS, mode="before")
    @classmethod
    def _check_option(cls, value: Any, info: ValidationInfo) -> Any:
        given: Any = str(value) if isinstance(value, Path) else value
        LoadOptions(**{str(info.field_name): given})
        return value

    @field_validator("model", mode="before")
    @classmethod
    def _check_model(cls, value: Any) -> Any:
        if value is not None:
            check_model(value)
        return value

    @field_serializer("needs_reranker")
    def _remembered(self, value: bool) -> bool:
        return value or self.reranker is not None

    def model_post_init(self, context: Any, /) -> None:
        """Remembers that there was a reranker, where dumps leave out what was not set, or is the default."""
        super().model_post_init(context)
        if self.reranker is not None:
            self.needs_reranker = True

    def load(self) -> tamis.Reranker:
        """The reranker, loaded if it is not yet: to warm up before the first request, or to read its `stats()`.

        Raises:
            tamis.TamisError: What `tamis.load` raises.
            tamis.InvalidInput: The instance was restored without the reranker that it had been made with.
        """
        return self.reranker or self._loader().get()

    async def aload(self) -> tamis.Reranker:
        """As `load`, without loading on the event loop's thread."""
        return self.reranker or await self._loader().aget()

    def _loader(self) -> LazyReranker:
        if self.needs_reranker and self.model is self.mode is self.family is None:
            raise tamis.InvalidInput(
                f"This {type(self).__name__} was restored from a dump or a pickle of one that was made with reranker=, "
                "which neither can hold. Assign its reranker, or make it with model=, mode= or family= beside "
                "reranker=."
            )
        self._lazy = self._lazy.over({name: getattr(self, name) for name in ("model", *OPTIONS)})
        return self._lazy

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        update = {"reranker": None, "api_key": None, "needs_reranker": self._remembered(self.needs_reranker)}
        state["__dict__"] = {**state["__dict__"], **update}
        return state
