"""Prompts that a checkpoint's own chat template words: sentence-transformers' LogitScore contract, and zero-shot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tamis.checkpoint import Checkpoint
from tamis.errors import InvalidInput, UnknownFamily
from tamis.families.wordings import ZERO_SHOT_TASK, ZERO_SHOT_TURN
from tamis.options import LoadOptions
from tamis.prompts import Prompt

if TYPE_CHECKING:
    from tamis.tokenizing import TextTokenizer

DATE = "26 Jul 2024"  # for templates that tell the model the date: a score must not change overnight
_PARTS = {  # of strftime, on that day at midnight
    "Y": "2024", "y": "24", "B": "July", "b": "Jul", "h": "Jul", "m": "07", "A": "Friday", "a": "Fri", "d": "26",
    "e": "26", "j": "208", "F": "2024-07-26", "D": "07/26/24", "x": "07/26/24", "u": "5", "w": "5", "H": "00",
    "I": "12", "M": "00", "S": "00", "p": "AM", "T": "00:00:00", "X": "00:00:00", "f": "000000", "Z": "", "z": "",
    "c": "Fri Jul 26 00:00:00 2024",
}  # fmt: skip
_CLOCK = "strftime_now"
# A macro of that name, for transformers takes no function from the caller. The line break behind it is dropped
# (trim_blocks), so that the template still begins on a line of its own.
_STOPPED = f"{{%- macro {_CLOCK}(format) -%}}{{{{ format" + "".join(
    f'|replace("%-{letter}", "{part.lstrip("0") or "0"}")|replace("%{letter}", "{part}")'
    for letter, part in _PARTS.items()
) + " }}{%- endmacro %}\n"  # fmt: skip

THOUGHTS = {
    "<think>": "</think>",  # Qwen, DeepSeek R1, GLM, Nemotron, SmolLM3 and most others
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",  # EXAONE Deep
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",  # Seed-OSS
    "[THINK]": "[/THINK]",  # Magistral
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command A Reasoning
    "<|begin_of_thought|>": "<|end_of_thought|>",  # OpenThinker
    "<|channel>thought": "<channel|>",  # Gemma 4
    "\u25c1think\u25b7": "\u25c1/think\u25b7",  # Kimi
}
"""What opens a thought, and what closes it."""

Messages = Sequence[dict[str, Any]]


def rendered(tokenizer: TextTokenizer, messages: Messages, **settings: Any) -> str:
    """A conversation in the checkpoint's chat template, which takes every day for the same one, that of `DATE`.

    Args:
        tokenizer: One that has a template.
        messages: The conversation.
        settings: What the template is told besides.
    """
    assert tokenizer.chat is not None  # noqa: S101 - the caller asked
    if _CLOCK in tokenizer.chat_template:
        settings = {"chat_template": _STOPPED + tokenizer.chat_template, **settings}
    return tokenizer.chat(list(messages), **{"date_string": DATE, **settings})


def thoughtless(prompt: str) -> str:
    r"""A prompt whose end opens a thought, with an empty one: the model answers behind it, as it is to, at once.

    Some templates open one whatever `enable_thinking` says; what is read inside is no answer.

    >>> thoughtless("<|im_start|>assistant\n<think>\n")  # as Qwen's template does without thinking
    '<|im_start|>assistant\n<think>\n\n</think>\n\n'
    >>> thoughtless("<|CHATBOT_TOKEN|><|START_THINKING|>")
    '<|CHATBOT_TOKEN|><|START_THINKING|><|END_THINKING|>'
    >>> thoughtless("<|im_start|>assistant\n")
    '<|im_start|>assistant\n'
    """
    begun = prompt.rstrip()
    for mark, end in THOUGHTS.items():
        if begun.endswith(mark):
            lines = "\n\n" if "\n" in prompt[len(begun) :] else ""  # or none, where the template puts none
            return f"{begun}{lines}{end}{lines}"
    return prompt


def is_logit_score(checkpoint: Checkpoint) -> bool:
    """Whether the folder has sentence-transformers' modules Transformer and LogitScore."""
    return [module.kind for module in checkpoint.modules] == ["Transformer", "LogitScore"]


def logit_score_ids(tokenizer: TextTokenizer, checkpoint: Checkpoint) -> list[int]:
    """`true_token_id`, and `false_token_id` if there is one, of `1_LogitScore/config.json`."""
    config = checkpoint.modules[1].config
    ids = [config.get("true_token_id"), config.get("false_token_id")]
    if not isinstance(ids[0], int):
        raise UnknownFamily(f"{checkpoint.name}: {checkpoint.modules[1].folder}/config.json names no true_token_id.")
    return [row for row in ids if row is not None]


def logit_score_prompt(tokenizer: TextTokenizer, checkpoint: Checkpoint, options: LoadOptions) -> Prompt:
    """The checkpoint's chat template with a `query` and a `document`, after a `system` message if there is a prompt.

    Raises:
        UnknownFamily: The template does not put both into its text, or the files say that it is not used at all.
    """
    if "message" not in (checkpoint.transformer_config.get("modality_config") or {}):
        raise UnknownFamily(
            f"{checkpoint.name} has a LogitScore module, but its sentence_bert_config.json has no message modality, "
            "so that query and document would be glued together without a prompt. Save it with "
            "sentence-transformers 5.4 or newer, or pass family=."
        )
    config = checkpoint.sentence_config
    prompt = options.instruction
    if prompt is None:
        prompt = (config.get("prompts") or {}).get(config.get("default_prompt_name"), "")
    settings = dict((checkpoint.transformer_config.get("processing_kwargs") or {}).get("chat_template") or {})
    for key in ("restore_suffix", "tokenize", "return_dict", "return_tensors"):
        settings.pop(key, None)
    system = [{"role": "system", "content": prompt}] if prompt else []
    pair = [{"role": "query", "content": " {query} "}, {"role": "document", "content": " {passage} "}]
    refusals: list[Exception] = []
    for messages in (system + pair, _structured(system + pair)):
        found = _prompt(tokenizer, messages, settings, refusals)
        if found is not None:
            return found
    raise UnknownFamily(
        f"The chat template of {checkpoint.name} does not carry the roles 'query' and 'document', which its "
        "LogitScore module needs. Fetch the tokenizer's files again, or pass family=."
    ) from next(iter(refusals), None)


def yes_no_ids(tokenizer: TextTokenizer, checkpoint: Checkpoint) -> list[int]:
    """The ids of yes and no, or of Yes and No.

    Raises:
        InvalidInput: Neither pair is one token each.
    """
    for pair in (("yes", "no"), ("Yes", "No")):
        ids = [tokenizer.id_of(word) for word in pair]
        if None not in ids:
            return [row for row in ids if row is not None]
    raise InvalidInput(
        f"Neither yes and no nor Yes and No are one token each for {checkpoint.name}, so that it cannot be asked that "
        "way. Register a family with answers that are; see tamis.register."
    )


def zero_shot_prompt(tokenizer: TextTokenizer, checkpoint: Checkpoint, options: LoadOptions) -> Prompt:
    """A task and a question in the checkpoint's own chat template.

    Raises:
        UnknownFamily: It has none, or one that loses the question.
    """
    task = options.instruction or ZERO_SHOT_TASK
    turn = {"role": "user", "content": ZERO_SHOT_TURN}
    merged = {"role": "user", "content": f"{task}\n\n{ZERO_SHOT_TURN}"}
    refusals: list[Exception] = []
    if tokenizer.chat is not None:
        for messages in ([{"role": "system", "content": task}, turn], [merged]):  # some templates have no system
            found = _prompt(tokenizer, messages, {"add_generation_prompt": True, "enable_thinking": False}, refusals)
            if found is not None and task.strip() in found.pieces[0]:
                return replace(found, pieces=(thoughtless(found.pieces[0]),))
    raise UnknownFamily(
        f"{checkpoint.name} has no chat template that takes a question, so that it cannot be asked as a chat model. "
        "If you know the prompt that it was trained with, register a family with it; see tamis.register."
    ) from next(iter(refusals), None)


def _prompt(
    tokenizer: TextTokenizer, messages: Messages, settings: dict[str, Any], refusals: list[Exception]
) -> Prompt | None:
    """The template's text with the slots where the contents go; None if it loses one, or fails, as `refusals` tells."""
    if tokenizer.chat is None:
        return None
    try:
        text = rendered(tokenizer, messages, **settings)
    except Exception as error:  # noqa: BLE001 - a template is a program, and may fail in any way
        refusals.append(error)
        return None
    if text.count("{passage}") != 1 or "{query}" not in text:
        return None
    kept = " {query} " in text or "Query: {query}" in text
    for slot in ("query", "passage"):
        text = text.replace(f" {{{slot}}} ", f"{{{slot}}}")
    return Prompt((text,), strip=not kept)


def _structured(messages: Messages) -> Messages:
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
