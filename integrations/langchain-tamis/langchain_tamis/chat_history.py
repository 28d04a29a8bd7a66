"""From LangChain's messages to the turns of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_messages

import tamis

_THOUGHTS = ("reasoning", "reasoning_content", "thinking", "redacted_thinking")  # blocks that are no part of a reply


def turns_of(chat_history: Any) -> list[tuple[str, str]]:
    """("user", text) and ("assistant", text) in turn; whether they alternate is for the model's own check.

    Args:
        chat_history: `HumanMessage` and `AIMessage`, or what LangChain takes for them: ("human", text), ("ai", text),
            {"role": "user", "content": text}. None is no history.

    Raises:
        tamis.InvalidInput: It is something else, or a message that is not text of one of the two.

    >>> turns_of([HumanMessage("Who wrote it?"), ("ai", "Jane Austen.")])
    [('user', 'Who wrote it?'), ('assistant', 'Jane Austen.')]
    """
    if chat_history is None:
        return []
    if isinstance(chat_history, str | bytes | Mapping) or not isinstance(chat_history, Sequence):
        raise tamis.InvalidInput(
            f"chat_history is a {type(chat_history).__name__}; pass a list of HumanMessage and AIMessage."
        )
    return [_turn(number, message) for number, message in enumerate(chat_history)]


def _turn(number: int, given: Any) -> tuple[str, str]:
    message = _message(number, given)
    if isinstance(message, HumanMessage):
        return "user", _text(number, message, ())
    if isinstance(message, AIMessage) and not message.tool_calls:
        return "assistant", _text(number, message, _THOUGHTS)
    what = "an AIMessage with tool calls" if isinstance(message, AIMessage) else f"a {type(message).__name__}"
    raise tamis.InvalidInput(
        f"chat_history[{number}] is {what}; a RankRAG model reads what the user asked and what was answered: leave "
        "out all but HumanMessage and AIMessage with text."
    )


def _message(number: int, given: Any) -> BaseMessage:
    remedy = (
        f"chat_history[{number}] is {given!r}; pass a HumanMessage or AIMessage, or a pair such as ('human', text)."
    )
    if isinstance(given, str):  # LangChain would take it for the user's
        raise tamis.InvalidInput(remedy)
    try:
        [message] = convert_to_messages([given])
    except (NotImplementedError, TypeError, ValueError) as error:
        raise tamis.InvalidInput(remedy) from error
    return message


def _text(number: int, message: BaseMessage, passed_over: tuple[str, ...]) -> str:
    blocks = [] if isinstance(message.content, str) else message.content
    kinds = {"text" if isinstance(block, str) else str(block.get("type")) for block in blocks}
    if other := kinds - {"text", *passed_over}:
        raise tamis.InvalidInput(
            f"chat_history[{number}] holds {', '.join(sorted(other))}; a RankRAG model reads text and nothing else."
        )
    return str(message.text)
