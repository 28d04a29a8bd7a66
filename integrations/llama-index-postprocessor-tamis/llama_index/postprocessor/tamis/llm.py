"""`RankRAGLLM`: a RankRAG model as a LlamaIndex language model, which writes from prompts alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any

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
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import default_completion_to_prompt

import tamis
from llama_index.postprocessor.tamis.llm_arguments import CALL, RankRAGArguments, checked_stop

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.CHATBOT: "assistant",
}  # all others speak for the user


class RankRAGLLM(RankRAGArguments):
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
        if unknown := sorted(set(given) - set(CALL)):
            raise tamis.InvalidInput(f"A call of RankRAGLLM takes {', '.join(CALL)}, not {', '.join(unknown)}.")
        options = {**self._fields(CALL), **given}
        return {**options, "stop": checked_stop(options["stop"])}

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
