"""What RankRAG's training data ask of a passage: does it hold the answer, and which part of it is read.

Ranking pairs without judgements are told apart as in Yu et al. 2024 (arXiv 2407.02485, section 4.2.2): long documents
are cut into chunks of 150 words, and a chunk is relevant by how many of the answer's 4-grams it has.
"""

from __future__ import annotations

import re

CHUNK_WORDS = 150
GRAM = 4
RELEVANT = 0.5  # above this recall a chunk is relevant
IRRELEVANT = 0.1  # below this one it is not; between them it is no example


def normalised(text: str) -> list[str]:
    """Lower-case words without punctuation.

    >>> normalised("It's 2,100 km.")
    ['it', 's', '2', '100', 'km']
    """
    return re.findall(r"\w+", text.casefold())


def recall(answer: str, passage: str, n: int = GRAM) -> float:
    """The share of the answer's n-grams that the passage has, in [0, 1]; a shorter answer is one gram as a whole.

    >>> recall("a b c d e", "x a b c d y")  # "a b c d" is there, "b c d e" is not
    0.5
    >>> recall("over half", "represents over half of"), recall("", "anything")
    (1.0, 0.0)
    """
    wanted, there = normalised(answer), normalised(passage)
    if not wanted:
        return 0.0
    n = min(n, len(wanted))
    grams = {tuple(wanted[i : i + n]) for i in range(len(wanted) - n + 1)}
    return len(grams & {tuple(there[i : i + n]) for i in range(len(there) - n + 1)}) / len(grams)


def chunks(text: str, size: int = CHUNK_WORDS) -> list[str]:
    """A text in pieces of `size` words, the last one shorter, each as it stands in the text.

    >>> chunks("one two  three", 2)
    ['one two', 'three']
    """
    places = [match.span() for match in re.finditer(r"\S+", text)]
    return [text[places[i][0] : places[min(i + size, len(places)) - 1][1]] for i in range(0, len(places), size)]


def shortened(text: str, words: int, around: str = "") -> str:
    """At most `words` words of a text: its beginning, or the part with `around` where that lies further on.

    >>> shortened("one two three four", 2), shortened("one two three four", 2, around="four")
    ('one two', 'three four')
    """
    places = [match.span() for match in re.finditer(r"\S+", text)]
    if len(places) <= words:
        return text
    at = text.find(around) if around else -1
    last = next((i for i, (_, stop) in enumerate(places) if stop >= at + len(around)), 0) if at >= 0 else 0
    middle = last + words // 4  # some words behind it too
    stop = words if last < words else min(len(places), middle + 1)
    return text[places[stop - words][0] : places[stop - 1][1]]
