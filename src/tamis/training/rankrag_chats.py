"""Chats to learn from: jsonl files of messages, and collections whose questions have long answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tamis.evaluation.collection import Collection
from tamis.evaluation.rows import Problems, read_jsonl
from tamis.rankrag.conversations import ROLES, Message

ANSWER_WORDS = 100  # of a collection's answer: as much as a reply to "a full and complete answer" has room for


def read_chats(path: Path, problems: Problems) -> list[tuple[Message, ...]]:
    """Conversations of a jsonl file, each up to its last assistant's turn: `{"messages": [{"role", "content"}, ...]}`.

    Args:
        path: The file.
        problems: Bad rows are added here.
    """
    chats: list[tuple[Message, ...]] = []
    for line, row in read_jsonl(path, problems):
        messages = row.get("messages")
        if not isinstance(messages, list) or not messages:
            problems.add(path, line, 'lacks "messages", a list of {"role", "content"} objects.')
            continue
        wrong = [i for i, message in enumerate(messages) if not _is_message(message)]
        if wrong:
            roles = ", ".join(ROLES)
            problems.add(path, line, f"message {wrong[0]} needs a role ({roles}) and a content that is not empty.")
            continue
        turns = [(message["role"], message["content"]) for message in messages]
        last = max((i for i, (role, _) in enumerate(turns) if role == "assistant"), default=0)
        if not any(role == "user" for role, _ in turns[:last]):
            problems.add(path, line, "has no assistant's turn after a user's, so that there is nothing to learn.")
            continue
        chats.append(tuple(turns[: last + 1]))
    return chats


def collection_chats(collection: Collection) -> list[tuple[Message, ...]]:
    """Each question and its longest answer; where a collection says none, its relevant passage is the answer."""
    chats: list[tuple[Message, ...]] = []
    for key, query in collection.queries.items():
        gold = [collection.corpus[one] for one, grade in collection.qrels.get(key, {}).items() if grade > 0]
        answer = max(query.answers or (), key=len, default="")
        if query.answers is None and gold:
            title = str(gold[0].metadata.get("title") or "")
            answer = gold[0].text.removeprefix(title).strip()
        if answer:
            chats.append((("user", query.text), ("assistant", sentences(answer))))
    return chats


def sentences(text: str, words: int = ANSWER_WORDS) -> str:
    """The first sentences of a text, up to about `words` words; its first words where no sentence ends there.

    >>> sentences("One two. Three four five. Six.", 5)
    'One two. Three four five.'
    """
    parts = text.split()
    if len(parts) <= words:
        return text
    ends = [i for i, part in enumerate(parts[:words], 1) if part.endswith((".", "?", "!"))]
    return " ".join(parts[: ends[-1] if ends else words])


def _is_message(message: Any) -> bool:
    if not isinstance(message, Mapping):
        return False
    content = message.get("content")
    return message.get("role") in ROLES and isinstance(content, str) and bool(content.strip())
