"""The registry of checkpoint families: which there are, and which one a checkpoint belongs to.

A family is found by the config that the checkpoint ships, or by a table of exact hub ids, or it is named by the
caller. It is never guessed from a part of a name: a model that is scored with another family's template or head ranks
almost at random, and nobody notices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tamis.checkpoint import Checkpoint
from tamis.errors import InvalidInput, UnknownFamily
from tamis.options import LoadOptions
from tamis.scorers.base import Scorer


@dataclass(frozen=True, slots=True)
class Family:
    """One way to score with a kind of checkpoint.

    Attributes:
        name: The published series' own name, in small letters.
        mode: One of `tamis.options.MODES`.
        summary: Which checkpoints, in a line.
        score: How its logit becomes a score, in a line.
        build: Makes the scorer. Heavy imports belong inside it.
        matches: Whether a checkpoint's own files say that it belongs here.
        hub_ids: Exact ids of checkpoints whose files do not say it.
    """

    name: str
    mode: str
    summary: str
    score: str
    build: Callable[[Checkpoint, LoadOptions], Scorer]
    matches: Callable[[Checkpoint], bool] = field(default=lambda _: False)
    hub_ids: frozenset[str] = frozenset()


_FAMILIES: dict[str, Family] = {}


def families() -> tuple[Family, ...]:
    """All families; one that is more special stands before one that is less."""
    _load_built_ins()
    return tuple(_FAMILIES.values())


def list_families() -> list[str]:
    """The names that `tamis.load(..., family=)` takes.

    >>> "sequence-classification" in list_families()
    True
    """
    return [family.name for family in families()]


def resolve(checkpoint: Checkpoint, options: LoadOptions) -> Family:
    """The family of a checkpoint.

    Raises:
        InvalidInput: The caller's family is unknown, or contradicts the mode.
        UnknownFamily: Nothing says how to score with the checkpoint.
    """
    if options.family is not None:
        return named(options.family, options.mode)
    fitting = [family for family in families() if options.mode in (None, family.mode)]
    for family in fitting:
        if checkpoint.name in family.hub_ids:
            return family
    for family in fitting:
        if family.matches(checkpoint):
            return family
    if options.mode == "bi-encoder":
        return _FAMILIES["plain-encoder"]
    raise UnknownFamily(_advice(checkpoint, options))


def named(name: str, mode: str | None = None) -> Family:
    """The family of a name that the caller gave.

    Raises:
        InvalidInput: There is none, or it does not belong to `mode`.
    """
    known = {family.name: family for family in families()}
    if name not in known:
        raise InvalidInput(f"family={name!r} is unknown; tamis.list_families() names {', '.join(known)}.")
    if mode not in (None, known[name].mode):
        raise InvalidInput(f"family={name!r} is a {known[name].mode} family, but mode={mode!r}; leave one of them out.")
    return known[name]


def _advice(checkpoint: Checkpoint, options: LoadOptions) -> str:
    what = checkpoint.architecture or checkpoint.model_type or "no architecture"
    if options.mode == "cross-encoder":
        return (
            f"{checkpoint.name} holds {what}, which has no classification head, so that it cannot be a cross-encoder. "
            'Pass mode="bi-encoder" if it is an embedding model.'
        )
    return (
        f"{checkpoint.name} holds {what}, and neither its files nor its id say how it scores. Pass "
        'mode="bi-encoder" for an encoder of texts, or family= one of ' + ", ".join(list_families()) + "."
    )


def _load_built_ins() -> None:
    if not _FAMILIES:
        from tamis.families import lexical, sentence_encoders, sequence_classification

        for family in (*lexical.FAMILIES, *sequence_classification.FAMILIES, *sentence_encoders.FAMILIES):
            _FAMILIES[family.name] = family
