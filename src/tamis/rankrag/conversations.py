"""What the model reads where there are no passages: a text as it is, or a conversation in its own form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from tamis.errors import InvalidInput
from tamis.families.chat import rendered, thoughtless
from tamis.rankrag.prompts import SYSTEM, Wording
from tamis.tokenizing import Ids, TextTokenizer

Message: TypeAlias = tuple[str, str]
"""("system", "user" or "assistant", what was said)."""

ROLES = ("system", "user", "assistant")
_SAID = SYSTEM.removeprefix("System: ")


def checked_prompt(prompt: str | Sequence[Any]) -> str | tuple[Message, ...]:
    """A text, or messages from pairs or from {"role", "content"} mappings.

    Raises:
        InvalidInput: It is something else, or empty.
    """
    if isinstance(prompt, str):
        if not prompt:
            raise InvalidInput("The prompt is empty; pass the text that the model goes on with.")
        return prompt
    if isinstance(prompt, bytes | Mapping) or not isinstance(prompt, Sequence):
        raise InvalidInput(f"The prompt is a {type(prompt).__name__}; pass a str, or a list of messages.")
    if not prompt:
        raise InvalidInput("The conversation has no message; pass what the user says.")
    return tuple(_message(number, given) for number, given in enumerate(prompt))


def prompt_ids(prompt: str | Sequence[Message], wording: Wording, tokenizer: TextTokenizer) -> Ids:
    """The prompt's tokens.

    A conversation is worded by the checkpoint's chat template, unless the wording has turns of its own, as the
    paper's has; in these it opens with the wording's system text if it brings none.

    Raises:
        InvalidInput: The chat template does not take such a conversation.
    """
    if isinstance(prompt, str):
        return _begun(tokenizer, prompt)
    said = [(role, tokenizer.plain(text)) for role, text in prompt]  # no message can end its turn
    if wording.turn == "{text}" and tokenizer.chat is not None:
        return tokenizer.encode([_templated(said, tokenizer)])[0]
    bos = [tokenizer.bos_id] if wording.bos and tokenizer.bos_id is not None else []
    opening = _opening(wording, "\n\n".join(text for role, text in said if role == "system"))
    frames = {"user": wording.turn, "assistant": wording.reply}
    turns = [frames[role].replace("{text}", text) for role, text in said if role != "system"]
    parts = tokenizer.encode([opening, "".join(turns) + wording.closing])  # apart, as in every prompt of the wording
    return np.concatenate([np.array(bos, np.int32), *parts])


def _message(number: int, given: Any) -> Message:
    if isinstance(given, Mapping):
        role, text = given.get("role"), given.get("content")
    elif isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2:
        role, text = given
    else:
        raise InvalidInput(f"Message {number} is {given!r}; pass a pair of role and text.")
    if role not in ROLES or not isinstance(text, str):
        raise InvalidInput(
            f"Message {number} is {role!r} with a {type(text).__name__}; the role is one of "
            f"{', '.join(map(repr, ROLES))}, and what was said is a str."
        )
    return role, text


def _begun(tokenizer: TextTokenizer, text: str) -> Ids:
    """A text's tokens, behind what the tokenizer puts before every text; once, if the text begins with it too."""
    before = tokenizer.template(1).parts[0]
    ids = tokenizer.encode([text])[0]
    return ids if np.array_equal(ids[: len(before)], before) else np.concatenate([before, ids])


def _opening(wording: Wording, system: str) -> str:
    """The wording's beginning, with another system text if there is one."""
    if not system:
        return wording.opening
    if wording.opening.count(_SAID) == 1:
        return wording.opening.replace(_SAID, system)
    return f"{wording.opening}{system}\n\n"


def _templated(said: Sequence[Message], tokenizer: TextTokenizer) -> str:
    from jinja2 import TemplateError

    turns: list[dict[str, str]] = []
    for role, text in said:
        if turns and turns[-1]["role"] == role:  # many templates insist on turns that alternate
            turns[-1]["content"] += "\n\n" + text
        else:
            turns.append({"role": role, "content": text})
    try:
        return thoughtless(rendered(tokenizer, turns, add_generation_prompt=True, enable_thinking=False))
    except (TemplateError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"The model's chat template does not take this conversation ({error}). Many want one system message at "
            "most, at the beginning, and turns that alternate from the user's on."
        ) from error
