"""How right an answer is: exact match and F1 by SQuAD's rules, and whether it holds a right answer.

Rajpurkar et al. 2016 (arXiv 1606.05250), section 6.1: without punctuation, articles and differences of case and white
space, the best over all right answers counts. Rajpurkar et al. 2018 (arXiv 1806.03822): a question without an answer is
answered rightly by nothing at all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from string import punctuation

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", punctuation)


def normalised(text: str) -> str:
    """In small letters, without punctuation, articles and superfluous white space, in this order.

    >>> normalised("  The U.S.A.,  an ally!")
    'usa ally'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(text: str, answers: Sequence[str]) -> float:
    """1 if the text is one of the right answers after normalising, else 0; () is right for no text.

    >>> exact("the Amazonia", ["Amazonia", "Amazon Jungle"]), exact("", []), exact("Amazonia", [])
    (1.0, 1.0, 0.0)
    """
    return max(float(normalised(text) == answer) for answer in _right(answers))


def f1(text: str, answers: Sequence[str]) -> float:
    """The best harmonic mean of precision and recall of words, each counted as often as it stands there.

    Where the text or the answer has no words, 1 if neither has any, else 0.

    >>> round(f1("in the Amazon rainforest", ["Amazon rainforest", "Brazil"]), 3)
    0.8
    """
    return max(_overlap(normalised(text).split(), answer.split()) for answer in _right(answers))


def holds(text: str, answers: Sequence[str]) -> float:
    """1 if a right answer stands in the text, as whole words after normalising, else 0; () is right for no text.

    >>> holds("It is called the Amazonia.", ["Amazonia"]), holds("Amazonian", ["Amazonia"]), holds("x", [])
    (1.0, 0.0, 0.0)
    """
    words = normalised(text)
    return max(float(f" {answer} " in f" {words} " if answer else not words) for answer in _right(answers))


def _right(answers: Sequence[str]) -> list[str]:
    """Normalised; nothing at all where there is no answer, or none with a word in it."""
    return [answer for answer in map(normalised, answers) if answer] or [""]


def _overlap(said: Sequence[str], right: Sequence[str]) -> float:
    if not said or not right:
        return float(list(said) == list(right))
    common = (Counter(said) & Counter(right)).total()
    return 2 * common / (len(said) + len(right))  # = 2pr / (p + r), with p = common/said and r = common/right
