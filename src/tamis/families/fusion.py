"""Fusion: a cross-encoder whose folder names a bi-encoder, in `fusion.json`, whose similarity is added to its logit.

    {"bi_encoder": "embedded", "weight": 14.0, "lexical": 5.0, "scale": 0.9, "offset": -3.1}

`bi_encoder` is a folder beside that file, a folder, a hub id, or "embedded". The others are those of
`tamis.scorers.fusion.Blend`; where `lexical` is above 0, `piece_counts.safetensors` lies beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tamis.checkpoint import Checkpoint, read_json
from tamis.errors import CorruptCheckpoint
from tamis.families import Family, resolve
from tamis.options import LoadOptions
from tamis.scorers.base import Scorer

if TYPE_CHECKING:
    from tamis.scorers.fusion import Blend

FILE = "fusion.json"
_USUAL = {"weight": None, "scale": 1.0, "offset": 0.0, "lexical": 0.0}
_FITS: Mapping[str, Callable[[float], bool]] = {
    "weight": lambda value: value >= 0,
    "scale": lambda value: value > 0,
    "offset": lambda value: True,
    "lexical": lambda value: value >= 0,
}


def build(checkpoint: Checkpoint, options: LoadOptions) -> Scorer:
    """Both models, with the caller's options as far as each has a use for them.

    `max_length` and `num_layers` are the cross-encoder's. The bi-encoder is read whole, and reads what it always does.

    Raises:
        CorruptCheckpoint: `fusion.json` does not say what is needed, or a file that it needs is damaged.
        InvalidInput: An option means nothing here.
        MissingExtra: The bi-encoder is the embedded one, which is not installed.
    """
    from tamis.scorers.fusion import FusionScorer
    from tamis.scorers.overlap import HEAD, Counts, Overlap

    options.allow("fusion", "dim", "cache_dtype")
    other, blend = _read(checkpoint)
    head = None if options.long_documents == "max_window" else HEAD
    overlap = Overlap(checkpoint.root, Counts.read(checkpoint.root), head) if blend.lexical else None
    alone = replace(options, family=None, mode="cross-encoder", dim=None, cache_dtype=None)
    beside = replace(options, family=None, mode="bi-encoder", max_length=None, num_layers=None)
    beside = replace(beside, revision=None, trust_remote_code=False)  # said of the one that the caller named
    with ExitStack() as stack:
        cross = resolve(checkpoint, alone).build(checkpoint, alone)
        stack.callback(cross.close)
        similar = resolve(other, beside).build(other, beside)
        stack.pop_all()
    return FusionScorer(cross, similar, model=checkpoint.name, blend=blend, overlap=overlap)


def _read(checkpoint: Checkpoint) -> tuple[Checkpoint, Blend]:
    from tamis.scorers.fusion import Blend

    file = checkpoint.root / FILE
    said = read_json(file)
    if not isinstance(said, Mapping) or not isinstance(said.get("bi_encoder"), str):
        raise CorruptCheckpoint(f'{file} names no bi-encoder; write {{"bi_encoder": FOLDER_OR_HUB_ID, "weight": ...}}.')
    numbers = {name: said.get(name, usual) for name, usual in _USUAL.items()}
    for name, value in numbers.items():
        if not _is_number(value) or not _FITS[name](value):
            raise CorruptCheckpoint(
                f"{file}: {name} is {value!r}; weight and lexical are numbers of at least 0, scale one above 0, and "
                "offset any."
            )
    return _named(checkpoint, said["bi_encoder"]), Blend(**numbers)


def _named(checkpoint: Checkpoint, name: str) -> Checkpoint:
    if name == "embedded":
        return Checkpoint.embedded()
    inside = checkpoint.root / name
    return Checkpoint.find(inside if name and inside.is_dir() else name)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


FAMILIES = (
    Family(
        "fusion",
        "fusion",
        "a cross-encoder whose fusion.json names a bi-encoder: tamis-mini, which tamis.load() opens",
        "sigmoid of scale * (logit + weight * similarity + lexical * overlap) + offset",
        build,
        template="what its two models read",
        matches=lambda checkpoint: (checkpoint.root / FILE).is_file(),
    ),
)
