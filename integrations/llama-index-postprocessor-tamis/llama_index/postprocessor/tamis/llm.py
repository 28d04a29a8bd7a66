"""`RankRAGLLM`: a RankRAG model as a LlamaIndex language model, which writes from prompts alone."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from llama_index.core.base.llms.generic_utils import (
    astream_completion_response_to_chat_response,
    completion_response_to_chat_response,
    messages_to_prompt,
    stream_completion_response_to_chat_response,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
)
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
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.llm import default_completion_to_prompt
from pydantic.json_schema import SkipJsonSchema

import tamis
from tamis.lazy import LazyRankRAG
from tamis.long_documents import LongDocuments
from tamis.options import QUEUE_TOKENS, LoadOptions, Overload
from tamis.rankrag.options import PASSAGE_BYTES, RankRAGOptions, Style
from tamis.rankrag.prompts import Wording

LOAD = tuple(inspect.signature(tamis.load_rankrag).parameters)
_COMMON = tuple(field.name for field in fields(LoadOptions) if field.name in LOAD)
_OWN = tuple(field.name for field in fields(RankRAGOptions) if field.name in LOAD and field.name != "wording")
_CALL = ("max_new_tokens", "stop", "timeout")
_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.CHATBOT: "assistant",
}  # all others speak for the user

Count = Annotated[int, Field(ge=1, strict=True)]


class RankRAGLLM(CustomLLM):
    """Writes with a RankRAG model: what chat engines, agents and query transforms ask of a language model.

    It ranks nothing; `RankRAGSynthesizer` and `TamisRerank(mode="rankrag")` do. One model serves them all: pass the
    same `rag=`, or the same arguments. Its texts share the batches of everything else that the model does.

    The fields are the arguments of `tamis.load_rankrag` and of `RankRAG.complete`. The model is loaded by the first
    call, never before, and shared by copies. Asynchronous methods are: none of them blocks the event loop, cancelling
    one ends its text, and so does leaving a stream. Texts are greedy.

    `chat` words its messages as the model's chat template does, or as its `wording` where that has turns of its own,
    unless `messages_to_prompt` was given. `complete` makes one message of the user of its prompt, as LlamaIndex wants
    it of a chat model; with `formatted=True` or a `completion_to_prompt` the model reads the prompt as it is. Calls
    take `max_new_tokens`, `stop` and `timeout`, which go before the fields, and nothing else.

    `metadata` has the model's length, so that it waits for the load unless `max_length` is set. Chat engines ask for
    it: in a server, `await llm.aload()` first.

    Raises:
        tamis.InvalidInput: An argument that means nothing to the model. It is a `ValueError`.
        tamis.InputTooLong: A prompt that the model cannot read whole. LlamaIndex counts with `Settings.tokenizer`;
            where that counts too few, set it to one that counts as the model does.
        tamis.TamisError: From the first call: the model cannot be loaded, as `tamis.load_rankrag` says.
    """

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
    passage_dir: str | Path | None = Field(default=None, description="A folder for what leaves both.")
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
        default=False, description="Set in what is restored from the dump or pickle of an instance with a rag."
    )

    _lazy: LazyRankRAG = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Prepares the load, and loads nothing."""
        super().model_post_init(context)
        self._lazy = LazyRankRAG(tamis.load_rankrag, self._fields(LOAD))

    @classmethod
    def class_name(cls) -> str:
        """The name in dumps."""
        return "RankRAGLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """See the class: it waits for the load, unless `max_length` is set."""
        window = self.max_length or self.load().max_length
        return LLMMetadata(context_window=window, **self._known())

    def to_payload(self) -> dict[str, Any]:
        """What events say of the model: `metadata` as far as it is known without a load."""
        window = self.max_length or (self.rag.max_length if self.rag else None)
        return {"class_name": self.class_name(), **self._known(), **({"context_window": window} if window else {})}

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

    def _known(self) -> dict[str, Any]:
        name = self.rag.model if self.rag else str(self.model or "SmolLM2-135M-Instruct")
        return {"num_output": self.max_new_tokens, "is_chat_model": True, "model_name": name}

    # -- texts --------------------------------------------------------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The text that follows a prompt."""
        return self._complete(self._prompt(prompt, formatted), kwargs)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As `complete`."""
        return await self._acomplete(self._prompt(prompt, formatted), kwargs)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """As `complete`, as it is written; the last response repeats the text and has its usage."""
        return self._stream(self._prompt(prompt, formatted), kwargs)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """As `stream_complete`."""
        return await self._astream(self._prompt(prompt, formatted), kwargs)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """What the assistant says next."""
        return completion_response_to_chat_response(self._complete(self._conversation(messages), kwargs))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`."""
        return completion_response_to_chat_response(await self._acomplete(self._conversation(messages), kwargs))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """As `chat`, as it is written."""
        return stream_completion_response_to_chat_response(self._stream(self._conversation(messages), kwargs))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """As `stream_chat`."""
        stream = await self._astream(self._conversation(messages), kwargs)
        return astream_completion_response_to_chat_response(stream)

    def _complete(self, prompt: Any, given: dict[str, Any]) -> CompletionResponse:
        return _response(self.load().complete(prompt, **self._options(given)))

    async def _acomplete(self, prompt: Any, given: dict[str, Any]) -> CompletionResponse:
        options = self._options(given)
        rag = await self.aload()
        return _response(await rag.acomplete(prompt, **options))

    def _stream(self, prompt: Any, given: dict[str, Any]) -> CompletionResponseGen:
        return _responses(self.load().stream_complete(prompt, **self._options(given)))

    async def _astream(self, prompt: Any, given: dict[str, Any]) -> CompletionResponseAsyncGen:
        options = self._options(given)
        rag = await self.aload()
        return _aresponses(rag.astream_complete(prompt, **options))

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(given) - set(_CALL)):
            raise tamis.InvalidInput(f"A call of RankRAGLLM takes {', '.join(_CALL)}, not {', '.join(unknown)}.")
        return {**self._fields(_CALL), **given}

    def _prompt(self, prompt: str, formatted: bool) -> Any:
        assert self.completion_to_prompt is not None  # noqa: S101 - the base class sets it
        if formatted:
            return prompt
        if self.completion_to_prompt is not default_completion_to_prompt:
            return self.completion_to_prompt(prompt)
        return turns_of(self._extend_messages([ChatMessage(role=MessageRole.USER, content=prompt)]))

    def _conversation(self, messages: Sequence[ChatMessage]) -> Any:
        assert self.messages_to_prompt is not None  # noqa: S101 - the base class sets it
        custom = self.messages_to_prompt is not messages_to_prompt
        return self.messages_to_prompt(messages) if custom else turns_of(messages)

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
    def _no_empty_stop(cls, value: Any) -> Any:
        if isinstance(value, str) or not all(value):
            raise tamis.InvalidInput(f"stop={value!r}; pass a list of strings that are not empty.")
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
        return super(RankRAGLLM, self.model_copy(update=update)).__getstate__()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        memo[id(self.callback_manager)] = self.callback_manager  # handlers are where events go, and may hold locks
        return super().__deepcopy__(memo)

    def _fields(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}


def _worded(info: ValidationInfo) -> dict[str, Any]:
    """The wording, which says what tasks there are."""
    return {"wording": info.data.get("wording")} if info.field_name == "task" else {}


def turns_of(messages: Sequence[ChatMessage]) -> list[tuple[str, str]]:
    """Messages as `tamis` takes them.

    Raises:
        tamis.InvalidInput: One has more than text.
    """
    for number, message in enumerate(messages):
        for block in message.blocks:
            if not isinstance(block, TextBlock):
                raise tamis.InvalidInput(
                    f"Message {number} has a {type(block).__name__}, and the model reads text alone; leave it out."
                )
    return [(_ROLES.get(message.role, "user"), message.content or "") for message in messages]


def _response(answer: tamis.Answer) -> CompletionResponse:
    return CompletionResponse(text=answer.text, raw=_raw(answer))


def _responses(pieces: Iterator[Any]) -> Generator[CompletionResponse]:
    text = ""
    with closing(pieces):  # type: ignore[type-var]
        for piece in pieces:
            text += piece
            yield _so_far(text, piece)


async def _aresponses(pieces: AsyncGenerator[Any]) -> AsyncGenerator[CompletionResponse]:
    text = ""
    async with aclosing(pieces):
        async for piece in pieces:
            text += piece
            yield _so_far(text, piece)


def _so_far(text: str, piece: Any) -> CompletionResponse:
    return CompletionResponse(text=text, delta=str(piece), raw=None if piece.answer is None else _raw(piece.answer))


def _raw(answer: tamis.Answer) -> dict[str, Any]:
    """As LlamaIndex's token counters read it."""
    usage = {"prompt_tokens": answer.usage.prompt_tokens, "completion_tokens": answer.usage.completion_tokens}
    return {"usage": usage}
