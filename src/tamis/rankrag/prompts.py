"""What a RankRAG model reads, in the paper's words to the character (appendix D), and how that becomes tokens.

Every prompt is system text, passages, question, in this order, each tokenised apart: so that nothing is merged over a
border, and a passage's keys and values do not depend on the question. A chat model reads the same in its own template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from tamis.errors import InvalidInput, UnknownFamily
from tamis.families.chat import rendered, thoughtless
from tamis.tokenizing import Ids

if TYPE_CHECKING:
    from tamis.tokenizing import TextTokenizer

SYSTEM = (
    "System: This is a chat between a user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions based on the context. The assistant should also indicate "
    "when the answer cannot be found in the context."
)
NOT_FOUND = (
    r"\b(not|cannot|(ca|could|is|are|was)n['\u2019]t) (be )?"
    r"(found|mentioned|provided|stated|specified|given|answered|determined)\b"
    r"|\bno (answer|information)\b|\b(not enough|insufficient) (context|information)\b"
    r"|\b(do(es)? not|do(es)?n['\u2019]t) (contain|mention|provide|specify|state|know)\b"
    r"|\bunanswerable\b|^\W*unknown\W*$"
)
"""What an answer says when the context does not hold it; case-insensitive."""


Best: TypeAlias = Literal["first", "last"]


def check_best(name: str, value: str) -> None:
    """Raises InvalidInput unless it is a place where the best passage may stand."""
    if value not in get_args(Best):
        raise InvalidInput(f"{name} is {value!r}; pass {' or '.join(map(repr, get_args(Best)))}.")


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of question.

    Attributes:
        rank: The user's turn that asks whether a passage is relevant, with {question}.
        answer: The user's turn that asks for the answer, with {question}.
        max_new_tokens: The paper's limit for the answer.
    """

    rank: str
    answer: str
    max_new_tokens: int


_RANK = (
    "For the question {question}, access whether the passage is relevant to the question. "  # "access" is the paper's
    "Return True if relevant, otherwise False. "
)
TASKS: Mapping[str, Task] = {
    "short": Task(_RANK, "{question}. Answer the above question with a short phrase.", 32),
    "full": Task(_RANK, "Please give a full and complete answer for the question. {question}", 128),
    "claim": Task(
        "For the claim {question}, access whether the passage is relevant to the claim. "
        "Return True if relevant, otherwise False. ",
        "Answer the following question with True or False. Is the claim '{question}' correct?",
        8,
    ),
    "conversation": Task(_RANK, "{question}", 128),
}


@dataclass(frozen=True, slots=True)
class Wording:
    """The frame around passages and turns.

    Attributes:
        opening: Before everything: system text, in the model's own form.
        ranked: A passage that is ranked, with {passage}.
        numbered: A passage that is answered from, with {passage} and {number}, from 1 in the order of the prompt.
        best: Where the best of them stands: "first", as in the paper, or "last", beside the question.
        turn: A turn of the user, with {text}.
        reply: A turn of the assistant, with {text}.
        closing: What the model's own turn begins with.
        bos: Whether the tokenizer's token for a beginning stands before all.
        stop: Where a text ends that the model goes on with.
        tasks: By name.
        true: What the model says of a passage that is relevant, and `false` of one that is not.
        not_found: Matches an answer that says there is none.
    """

    opening: str = SYSTEM + "\n\n"
    ranked: str = "Passage: {passage}\n\n"
    numbered: str = "Passage {number}: {passage}\n\n"
    best: Best = "first"
    turn: str = "User: {text}\n\n"
    reply: str = "Assistant: {text}\n\n"
    closing: str = "Assistant:"
    bos: bool = True
    stop: tuple[str, ...] = ("\n\nUser:", "\nUser:", "\n\nPassage")
    tasks: Mapping[str, Task] = field(default_factory=lambda: TASKS, hash=False)
    true: str = "True"
    false: str = "False"
    not_found: str = NOT_FOUND

    def __post_init__(self) -> None:
        for name, slot in (("ranked", "{passage}"), ("numbered", "{passage}"), ("turn", "{text}"), ("reply", "{text}")):
            if getattr(self, name).count(slot) != 1:
                raise InvalidInput(f"Wording.{name} is {getattr(self, name)!r}; it needs {slot} once.")
        check_best("Wording.best", self.best)
        for name, task in self.tasks.items():
            if "{question}" not in task.rank or "{question}" not in task.answer:
                raise InvalidInput(f"The task {name!r} needs {{question}} in both of its turns.")

    def task(self, name: str) -> Task:
        """The task of a name.

        Raises:
            InvalidInput: There is none.
        """
        if name not in self.tasks:
            raise InvalidInput(f"task={name!r}; pass one of {', '.join(map(repr, self.tasks))}.")
        return self.tasks[name]

    def ranking(self, question: str, passage: str, task: str = "short", history: Sequence[Turn] = ()) -> str:
        """The whole ranking prompt."""
        return self.opening + _fill(self.ranked, passage=passage) + self.asking(question, task, history)

    def answering(
        self, question: str, passages: Sequence[str], task: str = "short", history: Sequence[Turn] = ()
    ) -> str:
        """The whole answering prompt; the passages as they stand in it."""
        listed = [_fill(self.numbered, passage=text, number=str(i)) for i, text in enumerate(passages, 1)]
        return "".join([self.opening, *listed, self.replying(question, task, history)])

    def asking(self, question: str, task: str, history: Sequence[Turn] = ()) -> str:
        """What follows the passage when it is ranked."""
        return self._turns(history) + self._last(_fill(self.task(task).rank, question=question))

    def replying(self, question: str, task: str, history: Sequence[Turn] = ()) -> str:
        """What follows the passages when the question is answered."""
        return self._turns(history) + self._last(_fill(self.task(task).answer, question=question))

    def _turns(self, history: Sequence[Turn]) -> str:
        return "".join(_fill(self.turn if role == "user" else self.reply, text=text) for role, text in history)

    def _last(self, text: str) -> str:
        return _fill(self.turn, text=text) + self.closing


Turn = tuple[str, str]
"""("user" or "assistant", what was said)."""

PAPER = Wording()


def checked_history(history: Sequence[Any]) -> tuple[Turn, ...]:
    """Turns from pairs or from {"role", "content"} mappings.

    Raises:
        InvalidInput: Something else, or turns that do not alternate from the user on and end with the assistant.
    """
    if isinstance(history, str | bytes | Mapping) or not isinstance(history, Sequence):
        raise InvalidInput('history is a list of turns, ("user", text) and ("assistant", text).')
    turns: list[Turn] = []
    for number, turn in enumerate(history):
        if isinstance(turn, Mapping):
            role, text = turn.get("role"), turn.get("content")
        elif isinstance(turn, Sequence) and not isinstance(turn, str) and len(turn) == 2:
            role, text = turn
        else:
            raise InvalidInput(f"Turn {number} of history is {turn!r}; pass a pair of role and text.")
        expected = ("user", "assistant")[number % 2]
        if role != expected or not isinstance(text, str):
            raise InvalidInput(
                f"Turn {number} of history is {role!r} with a {type(text).__name__}; turns alternate between 'user' "
                f"and 'assistant', beginning with 'user', each with a str: here {expected!r} is due."
            )
        turns.append((role, text))
    if len(turns) % 2:
        raise InvalidInput("history ends with the user's turn; pass that one as the question.")
    return tuple(turns)


def chat_wording(tokenizer: TextTokenizer, name: str) -> Wording:
    """The paper's words in a chat model's own template: passages and question are one turn of the user.

    Raises:
        UnknownFamily: The template does not take a system text and a user's turn.
    """
    if tokenizer.chat is None:
        raise UnknownFamily(f'{name} has no chat template; load it with style="plain", the paper\'s own form.')
    system = SYSTEM.removeprefix("System: ")

    from jinja2 import TemplateError

    def render(*messages: tuple[str, str]) -> str:
        listed = [{"role": role, "content": content} for role, content in messages]
        return thoughtless(rendered(tokenizer, listed, add_generation_prompt=True, enable_thinking=False))

    try:
        text = render(("system", system), ("user", "{body}"))
        longer = render(("system", system), ("user", "{body}"), ("assistant", "{reply}"), ("user", "{next}"))
    except (TemplateError, TypeError, ValueError):
        text = longer = ""
    opening, _, end = text.partition("{body}")
    between, _, rest = longer.partition("{body}")[2].partition("{reply}")
    after, _, last = rest.partition("{next}")
    if system not in opening or not end or last != end:
        raise UnknownFamily(f'The chat template of {name} takes no system text and user\'s turn; pass style="plain".')
    reply = between + "{text}" + after
    return replace(PAPER, opening=opening, turn="{text}", reply=reply, closing=end, bos=False, stop=())


def _fill(piece: str, **values: str) -> str:
    """Slots replaced, and nothing else read as one: texts have braces too."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), piece)


class Tokenised:
    """A wording with a tokenizer: each part's ids.

    Args:
        wording: The frame.
        tokenizer: Of the model.
    """

    def __init__(self, wording: Wording, tokenizer: TextTokenizer) -> None:
        self.wording = wording
        self.tokenizer = tokenizer
        bos = [tokenizer.bos_id] if wording.bos and tokenizer.bos_id is not None else []
        self.system: Ids = np.concatenate([np.array(bos, np.int32), tokenizer.encode([wording.opening])[0]])

    def texts(self, texts: Sequence[str]) -> list[str]:
        """Without what could end a turn."""
        return [self.tokenizer.plain(text) for text in texts]

    def ranked(self, passages: Sequence[str]) -> list[Ids]:
        """Each passage as it is ranked."""
        return self.tokenizer.encode([_fill(self.wording.ranked, passage=text) for text in self.texts(passages)])

    def numbered(self, passages: Sequence[str], first: int = 1) -> list[Ids]:
        """Each passage as it is answered from; the first one's number is `first`."""
        filled = [
            _fill(self.wording.numbered, passage=text, number=str(i))
            for i, text in enumerate(self.texts(passages), first)
        ]
        return self.tokenizer.encode(filled)

    def asking(self, question: str, task: str, history: Sequence[Turn]) -> Ids:
        """What follows the passage when it is ranked."""
        return self.tokenizer.encode([self.wording.asking(*self._plain(question, task, history))])[0]

    def replying(self, question: str, task: str, history: Sequence[Turn]) -> Ids:
        """What follows the passages when the question is answered."""
        return self.tokenizer.encode([self.wording.replying(*self._plain(question, task, history))])[0]

    def count(self, text: str) -> int:
        """Tokens of a passage alone."""
        return self.tokenizer.count(self.tokenizer.plain(text))

    def places(self, text: str) -> NDArray[np.int64]:
        """The characters (start, stop) of each of a passage's tokens, (n, 2)."""
        return self.tokenizer.offsets(self.tokenizer.plain(text))

    def span(self, text: str, tokens: slice) -> tuple[int, int]:
        """The characters of some of a passage's tokens."""
        places = self.places(text)
        return int(places[tokens.start, 0]), int(places[tokens.stop - 1, 1])

    def _plain(self, question: str, task: str, history: Sequence[Turn]) -> tuple[str, str, list[Turn]]:
        return self.tokenizer.plain(question), task, [(role, self.tokenizer.plain(text)) for role, text in history]
