"""The registry of checkpoint families: which there are, and which one a checkpoint belongs to.

A family is found by the config that the checkpoint ships, or by a table of exact hub ids, or it is named by the
caller. It is never guessed from a part of a name: a model that is scored with another family's template or head ranks
almost at random, and nobody notices.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points

from tamis.advice import closest
from tamis.checkpoint import Checkpoint
from tamis.errors import InvalidInput, UnknownFamily
from tamis.options import MODES, LoadOptions
from tamis.scorers.base import Scorer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Family:
    """One way to score with a kind of checkpoint.

    Attributes:
        name: The published series' own name, in small letters.
        mode: One of `tamis.options.MODES`.
        summary: Which checkpoints, in a line.
        score: How its logit becomes a score, in a line.
        build: Makes the scorer. Heavy imports belong inside it.
        fallback: Whether it is taken only if the caller names its mode and no other family fits.
        template: What the model reads, in a line.
        window: How many tokens it reads, in a line.
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
    fallback: bool = False
    template: str = ""
    window: str = "the checkpoint's own"


_BUILT_IN = (
    "lexical",
    "causal_lm",
    "rankrag",
    "seq2seq",
    "listwise",
    "layerwise",
    "decoders",
    "bce",
    "jina",
    "fusion",
    "sequence_classification",
    "late_interaction",
    "dual_encoders",
    "sentence_encoders",
    "remote",
)  # modules; the more special come first

_FAMILIES: dict[str, Family] = {}


_lock = threading.RLock()
_loaded = False


def register(family: Family, *, replace: bool = False) -> None:
    """Adds a family, before all that are there: its `matches` and `hub_ids` are asked first.

    A package does the same for its users with an entry point of the group `tamis.families`, which names a `Family` or
    a list of them.

    Args:
        family: The new one.
        replace: Whether it may take the place of one of the same name.

    Raises:
        InvalidInput: The name is taken, or the mode is none of `tamis.options.MODES`.
    """
    if not isinstance(family, Family):
        raise InvalidInput(f"A family is a tamis.families.Family, not a {type(family).__name__}.")
    if family.mode not in MODES:
        raise InvalidInput(f"Family {family.name!r} has the mode {family.mode!r}; pass one of {', '.join(MODES)}.")
    with _lock:
        _load()
        if family.name in _FAMILIES and not replace:
            raise InvalidInput(f"There is a family {family.name!r} already; choose another name, or pass replace=True.")
        rest = {name: other for name, other in _FAMILIES.items() if name != family.name}
        _FAMILIES.clear()
        _FAMILIES.update({family.name: family, **rest})


def families() -> tuple[Family, ...]:
    """All families; one that is more special stands before one that is less."""
    with _lock:
        _load()
        return tuple(_FAMILIES.values())


def claimed(checkpoint: Checkpoint) -> bool:
    """Whether a family's files or ids say how to score with a checkpoint, so that no fallback is a guess for it."""
    return any(checkpoint.name in f.hub_ids or f.matches(checkpoint) for f in families() if not f.fallback)


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
        if not family.fallback and family.matches(checkpoint):
            return family
    for family in fitting:
        if family.fallback and options.mode is not None and family.matches(checkpoint):
            return family
    raise UnknownFamily(_advice(checkpoint, options))


def named(name: str, mode: str | None = None) -> Family:
    """The family of a name that the caller gave.

    Raises:
        InvalidInput: There is none, or it does not belong to `mode`.
    """
    known = {family.name: family for family in families()}
    if name not in known:
        near = closest(name, known)
        raise InvalidInput(f"family={name!r} is unknown; tamis.list_families() names {', '.join(known)}.{near}")
    if mode not in (None, known[name].mode):
        raise InvalidInput(f"family={name!r} is a {known[name].mode} family, but mode={mode!r}; leave one of them out.")
    return known[name]


def _advice(checkpoint: Checkpoint, options: LoadOptions) -> str:
    what = f"{checkpoint.name} holds {checkpoint.architecture or checkpoint.model_type or 'no architecture'}"
    if options.mode is not None:
        other = next((f for f in families() if not f.fallback and f.matches(checkpoint)), None)
        headless = ", which has no classification head" if options.mode == "cross-encoder" else ""
        advice = f"If you know its prompt and head, pass family=, one of {', '.join(list_families())}."
        if other is not None:
            advice = f"Its files say {other.mode!r}: leave mode= out."
        elif headless and _only_if_named(checkpoint, "bi-encoder"):
            advice = 'Pass mode="bi-encoder" if it is an embedding model.'
        return f"{what}{headless}; it cannot be scored in the mode {options.mode!r}. {advice}"
    if _only_if_named(checkpoint, "causal-lm"):
        return (
            f"{what}, and neither its files nor its id say with which prompt it ranks; the wrong one ranks at random. "
            'Pass family= if it is one of a known series, or mode="causal-lm" to ask it as a chat model, untuned.'
        )
    encodes = 'mode="bi-encoder" for an encoder of texts, or ' if _only_if_named(checkpoint, "bi-encoder") else ""
    return (
        f"{what}, and neither its files nor its id say how it scores. Pass {encodes}family= one of "
        f"{', '.join(list_families())}. docs/families.md names what is not supported."
    )


def _only_if_named(checkpoint: Checkpoint, mode: str) -> bool:
    """Whether it would be taken in a mode that the caller names, so that the advice to do so leads somewhere."""
    return any(family.fallback and family.mode == mode and family.matches(checkpoint) for family in families())


def _load() -> None:
    """The built-in families, the special ones first, then those of installed packages before them."""
    global _loaded
    if _loaded:
        return
    modules = [import_module(f"tamis.families.{name}") for name in _BUILT_IN]
    _loaded = True
    for module in reversed(modules):
        for family in reversed(module.FAMILIES):
            register(family)
    for entry in entry_points(group="tamis.families"):
        try:
            found = entry.load()
            for family in [found] if isinstance(found, Family) else list(found):
                register(family)
        except Exception:  # another package's fault must not take the built-in families away
            logger.exception("The entry point %s of the group tamis.families cannot be used.", entry.value)
