"""What `RankRAG` and its compressor share: the fields that say which RankRAG model, and its loading on first use."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, SecretStr, ValidationInfo, field_serializer, field_validator
from pydantic.json_schema import SkipJsonSchema

import tamis
from langchain_tamis.model import CONFIG
from tamis.lazy import LazyRankRAG
from tamis.long_documents import LongDocuments
from tamis.options import QUEUE_TOKENS, LoadOptions, Overload
from tamis.rankrag.options import PASSAGE_BYTES, RankRAGOptions, Style
from tamis.rankrag.prompts import PAPER, Best, Wording

if TYPE_CHECKING:
    from tamis.rankrag.rag import RankRAG

PER_CALL = "task"  # of the arguments of `load_rankrag`: the one that every call may name too
OPTIONS = tuple(name for name in inspect.signature(tamis.load_rankrag).parameters if name != PER_CALL)
_COMMON = tuple(name for name in OPTIONS if name in {field.name for field in fields(LoadOptions)})
_OWN = tuple(name for name in OPTIONS if name not in (*_COMMON, "model", "wording"))


class RankRAGModel(BaseModel):
    """The arguments of `tamis.load_rankrag`, which is called on first use, or a loaded RankRAG model.

    Attributes:
        task: "short", "full", "claim" or "conversation", for every call; by default what `tamis.RankRAG` chooses.
        rag: What `tamis.load_rankrag` returned, which is used instead of loading one. Where none was given it is the
            handle that loads it, which copies share. Dumps and pickles leave it out; where no other field names a
            model, what is restored of an instance that had one raises `tamis.InvalidInput` on first use.
        needs_rag: Set in an instance with a model, and in what is restored from its dump or pickle.
        api_key: With `server=`: the key that it wants. Dumps and pickles leave it out.
    """

    model_config = CONFIG

    model: str | Path | None = None
    adapter: str | Path | None = None
    style: Style = "auto"
    wording: Wording | None = None
    best_passage: Best | None = None
    relevance: Literal["probability", "margin"] = "probability"
    task: str | None = None
    num_layers: int | None = None
    device: str | None = None
    dtype: str = "auto"
    max_length: int | None = None
    long_documents: LongDocuments = "truncate"
    batch_tokens: int | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    passage_bytes: int = PASSAGE_BYTES
    host_bytes: int = 0
    passage_dir: str | Path | None = None
    disk_bytes: int = 8 << 30
    weight: float | None = None
    overload: Overload = "error"
    queue_tokens: int = QUEUE_TOKENS
    server: str | None = None
    server_model: str | None = None
    api_key: SecretStr | None = Field(default=None, exclude=True)
    request_passages: int | None = None
    connections: int | None = None
    deadline: float | None = None
    retries: int | None = None
    verify: bool | str | Path = True
    allow_http: bool = False
    rag: SkipJsonSchema[Any] = Field(default=None, exclude=True, repr=False)
    needs_rag: bool = Field(default=False, repr=False)

    @field_validator(*_COMMON, mode="before")
    @classmethod
    def _check_common(cls, value: Any, info: ValidationInfo) -> Any:
        LoadOptions(**{str(info.field_name): value})
        return value

    @field_validator(*_OWN, mode="before")
    @classmethod
    def _check_own(cls, value: Any, info: ValidationInfo) -> Any:
        RankRAGOptions(**{str(info.field_name): value})
        return value

    @field_validator("task")
    @classmethod
    def _check_task(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            (info.data.get("wording") or PAPER).task(value)
        return value

    @field_validator("rag")
    @classmethod
    def _check_rag(cls, value: Any) -> Any:
        if value is None or isinstance(value, LazyRankRAG):
            return value
        from tamis.rankrag.rag import RankRAG

        if not isinstance(value, RankRAG):
            raise tamis.InvalidInput(f"rag= is a {type(value).__name__}; pass what tamis.load_rankrag() returned.")
        return value

    @field_serializer("needs_rag")
    def _remembered(self, value: bool) -> bool:
        return value or not (self.rag is None or isinstance(self.rag, LazyRankRAG))

    def model_post_init(self, context: Any, /) -> None:
        """Makes the handle that loads the model, as a field: `configurable_fields` hands on nothing else."""
        if self.rag is None:
            self.__dict__["rag"] = LazyRankRAG(tamis.load_rankrag, self._options())
        elif not isinstance(self.rag, LazyRankRAG):
            self.needs_rag = True  # set, and no default: dumps without these tell it too

    def load(self) -> RankRAG:
        """The model, loaded if it is not yet: to warm up before the first request, or to read its `stats()`.

        Raises:
            tamis.TamisError: What `tamis.load_rankrag` raises.
            tamis.InvalidInput: The instance was restored without the model that it had been made with.
        """
        handle = self._handle()
        return handle.get() if isinstance(handle, LazyRankRAG) else handle

    async def aload(self) -> RankRAG:
        """As `load`, without loading on the event loop's thread."""
        handle = self._handle()
        return await handle.aget() if isinstance(handle, LazyRankRAG) else handle

    def _handle(self) -> RankRAG | LazyRankRAG:
        handle: RankRAG | LazyRankRAG | None = self.rag
        if handle is not None and not isinstance(handle, LazyRankRAG):
            return handle
        if self.needs_rag and self.model is self.adapter is None:
            raise tamis.InvalidInput(
                f"This {type(self).__name__} was restored from a dump or a pickle of one that was made with rag=, "
                "which neither can hold. Assign its rag, or make it with model= or adapter= beside rag=."
            )
        if handle is None:
            handle = LazyRankRAG(tamis.load_rankrag, self._options())
        self.__dict__["rag"] = handle = handle.over(self._options())
        return handle

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in OPTIONS}

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        handle = self.rag if isinstance(self.rag, LazyRankRAG) else None
        update = {"rag": handle, "api_key": None, "needs_rag": self._remembered(self.needs_rag)}
        state["__dict__"] = {**state["__dict__"], **update}
        return state
