"""What a model's answers are read by: its prompts' wording, the tokens of the two labels, and those that end a text."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tamis.errors import UnknownFamily
from tamis.rankrag.prompts import PAPER, Tokenised, Wording, chat_wording

if TYPE_CHECKING:
    from tamis.rankrag.options import RankRAGOptions

logger = logging.getLogger(__name__)

UNSAID = 1e-3  # of the probability; chat models that were never tuned give the two labels tens of times as much
PROBES = (
    ("Which planet is known as the Red Planet?", "Mars is often called the Red Planet because of its colour."),
    ("Which planet is known as the Red Planet?", "A stable sort keeps the order of records that compare equal."),
)


def wording_of(more: RankRAGOptions, tokenizer: Any, name: str) -> Wording:
    """The prompts that were asked for, or that the style has."""
    chat = more.style == "chat" or (more.style == "auto" and tokenizer.chat is not None)
    wording = more.wording or (chat_wording(tokenizer, name) if chat else PAPER)
    return wording if more.best_passage is None else replace(wording, best=more.best_passage)


def forms_of(prompts: Tokenised, tokenizer: Any, name: str) -> list[tuple[int, int]]:
    """The first tokens of the two labels, with a space before them and without, where they differ.

    Raises:
        UnknownFamily: They begin with the same token either way.
    """
    wording = prompts.wording
    forms: list[tuple[int, int]] = []
    for space in (" ", ""):
        pair = tokenizer.encode([space + wording.true, space + wording.false])
        if all(map(len, pair)) and pair[0][0] != pair[1][0]:
            forms.append((int(pair[0][0]), int(pair[1][0])))
    if not forms:
        raise UnknownFamily(
            f"{wording.true!r} and {wording.false!r} begin with the same token for {name}, so that one token does not "
            "tell them apart. Pass wording= with two labels that do."
        )
    return list(dict.fromkeys(forms))


def likeliest(runner: Any, prompts: Tokenised, forms: list[tuple[int, int]], name: str) -> tuple[int, int]:
    """The form in which the model really answers: the one that has more of the probability after two prompts.

    Where both have next to none, a warning is logged: the model would say something else, and its scores mean little.
    """
    import numpy as np

    from tamis.engine.sequences import Tokens

    mass = np.zeros(len(forms))
    task = next(iter(prompts.wording.tasks))
    for question, passage in PROBES:
        parts = [prompts.system, prompts.ranked([passage])[0], prompts.asking(question, task, ())]
        p = runner.logits(Tokens(np.concatenate(parts))).softmax(0)
        mass += [float(p[list(form)].sum()) for form in forms]
    if mass.max() < UNSAID * len(PROBES):
        logger.warning(
            "After a ranking prompt, %s gives %r and %r together %.0e of the probability: it was never tuned to rank, "
            "or says something else first, such as a thought. Its ranking will be near chance. Load one that was "
            "tuned, or pass wording= with the labels that it knows.",
            name, prompts.wording.true, prompts.wording.false, mass.max() / len(PROBES),
        )  # fmt: skip
    return forms[int(np.argmax(mass))]


def ends_of(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a text: those of the model's generation config and the tokenizer's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = configured if isinstance(configured, list) else [configured]
    return tuple(dict.fromkeys(int(token) for token in [*found, tokenizer.eos_id] if token is not None))
