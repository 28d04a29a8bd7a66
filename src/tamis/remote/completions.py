"""A language model behind an OpenAI-compatible `/v1/completions`: what it thinks of two labels, and what it writes.

vLLM, SGLang and llama.cpp's server speak it. Prompts go out as token ids, so that the model reads what a model in this
process would, and what prompts have in common at their beginning is found in the server's own prefix cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from tamis.errors import RemoteError
from tamis.remote.answers import BadAnswer, detail, parse
from tamis.remote.server import Server

Top: TypeAlias = "dict[int | str, float]"
"""The likeliest next tokens, by id where the server tells it, else by text, with their log-probabilities."""
Row: TypeAlias = tuple[float, float, float]

TOP = (20, 5)  # tokens: vLLM's limit unless it was started with another, and OpenAI's
LONGEST_EVENT = 1 << 20  # bytes
SURE = -1e-3  # a log-probability above it says little of what is left: float32 rounds it


@dataclass(frozen=True, slots=True)
class Label:
    """The first token of an answer: its id, and its text as servers may write it."""

    id: int
    texts: tuple[str, ...]

    def found(self, top: Top) -> float | None:
        """Its log-probability; None if it is not among the likeliest."""
        return top.get(self.id, next((top[text] for text in self.texts if text in top), None))


def row_of(top: Top, true: Label, false: Label) -> Row:
    """Log-probabilities of both labels, and of everything but `true`: what a local model's readout gives.

    What is not among the likeliest is no likelier than the last of them, and gets that.

    >>> yes, no = Label(1, ("True",)), Label(2, ("False",))
    >>> top = {"True": math.log(0.7), 2: math.log(0.2), 3: math.log(0.1)}
    >>> [round(math.exp(one), 3) for one in row_of(top, yes, no)]
    [0.7, 0.2, 0.3]
    >>> [round(one, 2) for one in row_of({1: -1e-9, 2: -20.0, 3: -22.0}, yes, no)]
    [-0.0, -20.0, -19.87]
    """
    least = min(top.values())
    one, other = true.found(top), false.found(top)
    p, q = min(least if one is None else one, 0.0), min(least if other is None else other, 0.0)
    if p < SURE:
        return p, q, math.log(-math.expm1(p))
    others = sorted(top.values())[:-1]  # `true` is the likeliest by far
    return p, q, float(np.logaddexp.reduce(others)) if others else math.log(-math.expm1(min(p, -1e-12)))


def top_of(choice: Any) -> Top:
    """The likeliest first tokens of a choice, in OpenAI's form, vLLM's `token_id:` keys, or llama.cpp's list.

    Raises:
        BadAnswer: There are none.

    >>> top_of({"logprobs": {"top_logprobs": [{"token_id:7": -0.5, " No": -1.5}]}})
    {7: -0.5, ' No': -1.5}
    >>> top_of({"logprobs": {"content": [{"top_logprobs": [{"id": 7, "token": "Yes", "logprob": -0.5}]}]}})
    {7: -0.5}
    """
    given = choice.get("logprobs") if isinstance(choice, dict) else None
    found: Top = {}
    if isinstance(given, dict) and isinstance(given.get("top_logprobs"), list) and given["top_logprobs"]:
        first = given["top_logprobs"][0]
        for key, value in first.items() if isinstance(first, dict) else ():
            found[_key(key)] = _logprob(value)
    elif isinstance(given, dict) and isinstance(given.get("content"), list) and given["content"]:
        rows = given["content"][0].get("top_logprobs") if isinstance(given["content"][0], dict) else None
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict):
                key = row.get("id", row.get("token"))
                if isinstance(key, int | str):
                    found[key] = _logprob(row.get("logprob"))
    if not found:
        raise BadAnswer(
            "has no log-probabilities, which ranking is made from; the server must allow logprobs= in /v1/completions"
        )
    return found


def _key(key: str) -> int | str:
    number = key.removeprefix("token_id:")
    return int(number) if number != key and number.isdecimal() else key


def _logprob(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value > 0.1:
        raise BadAnswer("has a log-probability that is none")
    return max(float(value), -1e5)  # some servers write -inf, or -9999


class Completions:
    """One model of a server.

    Args:
        server: Where it is.
        model: Its name there.
        top: How many of the likeliest tokens are asked for.
    """

    def __init__(self, server: Server, model: str, top: int = TOP[0]) -> None:
        self.server = server
        self.model = model
        self.top = top

    async def first_tokens(self, prompts: Sequence[Sequence[int]], end: float) -> list[Top]:
        """The likeliest tokens after each prompt.

        Raises:
            RemoteError: The server failed, or does not tell.
        """
        body = {**self._body(prompts), "max_tokens": 1, "logprobs": self.top, "return_tokens_as_token_ids": True}
        answer = await self.server.post(body, end)
        try:
            return [top_of(choice) for choice in _choices(answer.json, len(prompts))]
        except BadAnswer as error:
            raise self.server.error(str(error), status=200) from None

    async def read(self, prompts: Sequence[Sequence[int]], end: float) -> None:
        """Has prompts read, for the server's prefix cache."""
        await self.server.post({**self._body(prompts), "max_tokens": 1}, end)

    async def write(self, prompt: Sequence[int], limit: int, more: Callable[[str], bool], end: float) -> None:
        """Goes on after a prompt, greedily.

        Args:
            prompt: Token ids.
            limit: Tokens at most.
            more: Called with each piece of text, and with an empty one where the server has ended; False ends it.
            end: By `time.monotonic`.

        Raises:
            RemoteError: The server failed, or broke off.
        """
        events, enough, over = Events(), False, False

        def took(piece: bytes) -> bool:
            nonlocal enough, over
            for data in events.feed(piece):
                text, last = _chunk(data)
                if text and not more(text):
                    enough = True
                    return False
                over = over or last
            return True

        try:
            await self.server.stream({**self._body([prompt]), "max_tokens": limit, "stream": True}, took, end)
        except BadAnswer as error:
            raise self.server.error(str(error), status=200) from None
        if enough:
            return
        if not over:
            raise RemoteError(f"{self.server.address.shown} broke off in the middle of a text.", status=200)
        more("")

    def _body(self, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        ids = [list(map(int, prompt)) for prompt in prompts]
        # A server's defaults may be the model's own, which sample and penalise.
        greedy = {"temperature": 0, "top_p": 1, "repetition_penalty": 1}
        return {"model": self.model, "prompt": ids if len(ids) > 1 else ids[0], **greedy}


class Events:
    r"""Server-sent events: the data of each, as it is complete.

    >>> events = Events()
    >>> events.feed(b'data: {"a"'), events.feed(b': 1}\r\n\r\n: a comment\n\ndata: [DONE]\n\n')
    ([], ['{"a": 1}', '[DONE]'])
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[str]:
        """What a piece of the stream completes.

        Raises:
            BadAnswer: An event is too long, or not UTF-8.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > LONGEST_EVENT:
            raise BadAnswer("has an event without an end")
        try:
            texts = [line.decode("utf-8").strip() for line in lines]
        except UnicodeDecodeError:
            raise BadAnswer("is not UTF-8") from None
        return [text.removeprefix("data:").strip() for text in texts if text.startswith("data:")]


def _chunk(data: str) -> tuple[str, bool]:
    """The text of an event, and whether it is the last."""
    if data == "[DONE]":
        return "", True
    chunk = parse(data.encode())
    choices = chunk.get("choices") if isinstance(chunk, dict) else None
    if not isinstance(choices, list):
        raise BadAnswer(f"broke off: {detail(data.encode()) or 'an event without choices'}")
    if not choices:
        return "", False  # usage alone
    choice = choices[0] if isinstance(choices[0], dict) else {}
    text = choice.get("text")
    if not isinstance(text, str):
        raise BadAnswer("has an event without text")
    return text, choice.get("finish_reason") is not None


def _choices(answer: Any, count: int) -> list[Any]:
    """The choices of `count` prompts, in their order."""
    rows = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(rows, list) or len(rows) != count:
        raise BadAnswer(f"has {len(rows) if isinstance(rows, list) else 'no'} choices for {count} prompts")
    found: dict[int, Any] = {}
    for row in rows:
        index = row.get("index") if isinstance(row, dict) else None
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count or index in found:
            raise BadAnswer(f"has a choice for no prompt, or two for one, among {count}")
        found[index] = row
    return [found[index] for index in range(count)]
