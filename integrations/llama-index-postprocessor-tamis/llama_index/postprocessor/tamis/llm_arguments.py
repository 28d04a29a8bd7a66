"""What a `RankRAGLLM` is told: the arguments of `tamis.load_rankrag` and of `RankRAG.complete` as an LLM's fields."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

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
from llama_index.core.llms.custom import CustomLLM
from pydantic.json_schema import SkipJsonSchema

import tamis
from tamis.inputs import check_timeout
from tamis.lazy import LazyRankRAG
from tamis.long_documents import LongDocuments
from tamis.options import QUEUE_TOKENS, LoadOptions, Overload
from tamis.rankrag.options import PASSAGE_BYTES, RankRAGOptions, Style
from tamis.rankrag.prompts import Best, Wording

LOAD = tuple(inspect.signature(tamis.load_rankrag).parameters)
_COMMON = tuple(field.name for field in fields(LoadOptions) if field.name in LOAD)
_OWN = tuple(field.name for field in fields(RankRAGOptions) if field.name in LOAD and field.name != "wording")
CALL = ("max_new_tokens", "stop", "timeout")

Count = Annotated[int, Field(ge=1, strict=True)]


class RankRAGArguments(CustomLLM):
    """The fields: how they are checked, dumped, pickled and copied, and the model that they make."""

    model_config = ConfigDict(
        arbitrary_types_allowed=True,
        extra="forbid",
        validate_assignment=True,
        protected_namespaces=(),
        hide_input_in_errors=True,  # it may be a key, under a name that was mistyped
    )

    model: str | Path | None = Field(
        default=None, description="A causal language model: hub id, folder or .gguf file; None is the embedded one."
    )
    adapter: str | Path | None = Field(default=None, description="A LoRA adapter (PEFT) for it.")
    style: Style = Field(default="auto", description='"plain" is the paper\'s own form, "chat" the chat template.')
    wording: Wording | None = Field(default=None, description="Instead of both.")
    best_passage: Best | None = Field(default=None, description='Where answers read the best: "first" or "last".')
    relevance: Literal["probability", "margin"] = Field(
        default="probability", description='"probability" is the paper\'s p(True), "margin" True less False.'
    )
    task: str = Field(default="short", description='"short", "full", "claim" or "conversation": how it ranks.')
    num_layers: int | None = Field(default=None, description="Keep only the first n layers of a deeper model.")
    device: str | None = Field(default=None, description='"cpu", "cuda:0", ...; the first CUDA device, else the CPU.')
    dtype: str = Field(default="auto", description='"auto", "float32", "bfloat16" or "float16".')
    max_length: int | None = Field(default=None, description="Tokens of a prompt and its answer together.")
    long_documents: LongDocuments = Field(default="truncate", description="What is done with too long a passage.")
    batch_tokens: int | None = Field(default=None, description="What one batch may cost; chosen for the device.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub id.")
    trust_remote_code: bool = Field(default=False, description="Run Python code that the checkpoint brings along.")
    passage_bytes: int = Field(default=PASSAGE_BYTES, description="Device memory for passages between calls.")
    host_bytes: int = Field(default=0, description="Pinned memory of the host for what leaves a GPU.")
    passage_dir: str | Path | None = Field(
        default=None, description="A folder for what leaves the device, instead of host_bytes."
    )
    disk_bytes: int = Field(default=8 << 30, description="How much of it.")
    weight: float | None = Field(default=None, description="This object's own share of the device; 2 is twice 1.")
    overload: Overload = Field(default="error", description='A full queue: "error" refuses at once, "wait" waits.')
    queue_tokens: int = Field(default=QUEUE_TOKENS, description="Tokens that may wait before the queue is full.")
    server: str | None = Field(default=None, description="URL of a server that runs the model: /v1/completions.")
    server_model: str | None = Field(default=None, description="server: which of its models.")
    api_key: SecretStr | None = Field(
        default=None,
        exclude=True,
        description="server: the key that it wants, else the environment's. Neither dumps nor pickles hold it.",
    )
    request_passages: int | None = Field(default=None, description="server: prompts of one request; 16 if None.")
    connections: int | None = Field(default=None, description="server: requests under way at once; 8 if None.")
    deadline: float | None = Field(default=None, description="server: seconds that a call without timeout may take.")
    retries: int | None = Field(default=None, description="server: repetitions of a failed request; 4 if None.")
    verify: bool | str | Path = Field(default=True, description="server: a file of certificate authorities.")
    allow_http: bool = Field(default=False, description="server: send the key over http:// to another machine.")

    max_new_tokens: Count = Field(default=256, description="Tokens of a text at most.")
    stop: tuple[str, ...] = Field(default=(), description="Strings that end a text.")
    timeout: float | None = Field(
        default=None, gt=0, description="Seconds after which a call raises tamis.DeadlineExceeded."
    )

    rag: SkipJsonSchema[Any] = Field(
        default=None,
        exclude=True,
        repr=False,
        description="What tamis.load_rankrag returned, used instead of loading. Neither dumps nor pickles hold it: "
        "what is restored loads what model or adapter say, or asks for a model.",
    )
    needs_rag: bool = Field(
        default=False, description="Set in an instance with a rag, and in what is restored from its dump or pickle."
    )

    _lazy: LazyRankRAG = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Prepares the load, and loads nothing."""
        super().model_post_init(context)
        self._lazy = LazyRankRAG(tamis.load_rankrag, self._fields(LOAD))
        if self.rag is not None:
            self.needs_rag = True  # set, and no default: dumps without these tell it too

    # -- the model ----------------------------------------------------------------------------------------------------

    def load(self) -> Any:
        """The `RankRAG`, loaded if it is not yet: to warm up, to read its `stats()`, or for its other methods."""
        return self.rag or self._loader().get()

    async def aload(self) -> Any:
        """As `load`, without blocking the event loop."""
        return self.rag or await self._loader().aget()

    def _loader(self) -> LazyRankRAG:
        if self.needs_rag and self.model is self.adapter is None:
            raise tamis.InvalidInput(
                "This RankRAGLLM was restored from a dump or a pickle of one that was made with rag=, which neither "
                "can hold. Assign its rag, or make it with model= beside rag=."
            )
        self._lazy = self._lazy.over(self._fields(LOAD))
        return self._lazy

    # -- checking, dumping, copying -----------------------------------------------------------------------------------

    @model_validator(mode="before")
    @classmethod
    def _without_class_name(cls, data: Any) -> Any:
        """Takes what `model_dump` gives, which has the class's name in it."""
        return {k: v for k, v in data.items() if k != "class_name"} if isinstance(data, dict) else data

    @field_validator(*_COMMON, mode="before")
    @classmethod
    def _checked_by_load(cls, value: Any, info: ValidationInfo) -> Any:
        LoadOptions(**{str(info.field_name): value})
        return value

    @field_validator(*_OWN, mode="before")
    @classmethod
    def _checked_by_rankrag(cls, value: Any, info: ValidationInfo) -> Any:
        RankRAGOptions(**{str(info.field_name): value}, **_worded(info))
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def _no_empty_stop(cls, value: Any) -> tuple[str, ...]:
        return checked_stop(value)

    @field_validator("timeout", mode="before")
    @classmethod
    def _clocks_can_wait(cls, value: Any) -> Any:
        check_timeout(value)
        return value

    @field_validator("rag", mode="before")
    @classmethod
    def _is_rag(cls, value: Any) -> Any:
        if value is not None:
            from tamis.rankrag.rag import RankRAG

            if not isinstance(value, RankRAG):
                raise tamis.InvalidInput(f"rag= is a {type(value).__name__}; pass what tamis.load_rankrag() returned.")
        return value

    @field_validator("callback_manager", mode="before")
    @classmethod
    def _never_none(cls, value: Any) -> Any:
        return CallbackManager() if value is None else value

    @field_serializer("model", "adapter", "passage_dir", "verify")
    def _as_text(self, value: str | Path | bool | None) -> str | bool | None:
        return str(value) if isinstance(value, Path) else value

    @field_serializer("needs_rag")
    def _remembered(self, value: bool) -> bool:
        return value or self.rag is not None

    def __getstate__(self) -> dict[str, Any]:
        # Of a copy: the base class deletes what cannot be pickled from the very dict of the object.
        update = {"rag": None, "api_key": None, "needs_rag": self._remembered(self.needs_rag)}
        return super(RankRAGArguments, self.model_copy(update=update)).__getstate__()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        memo[id(self.callback_manager)] = self.callback_manager  # handlers are where events go, and may hold locks
        return super().__deepcopy__(memo)

    def _fields(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}


def checked_stop(stop: Any) -> tuple[str, ...]:
    """Strings that end a text, as `tamis.rankrag.completing.checked_stop` has them, without importing torch.

    Raises:
        tamis.InvalidInput: They are something else, or one is empty.

    >>> checked_stop(["Passage"])
    ('Passage',)
    >>> checked_stop("Passage")
    Traceback (most recent call last):
    ...
    tamis.errors.InvalidInput: stop='Passage'; pass a list of strings that are not empty.
    """
    if isinstance(stop, Iterable) and not isinstance(stop, str | Mapping):
        ends = tuple(stop)
        if all(isinstance(end, str) and end for end in ends):
            return ends
    raise tamis.InvalidInput(f"stop={stop!r}; pass a list of strings that are not empty.")


def _worded(info: ValidationInfo) -> dict[str, Any]:
    """The wording, which says what tasks there are."""
    return {"wording": info.data.get("wording")} if info.field_name == "task" else {}
