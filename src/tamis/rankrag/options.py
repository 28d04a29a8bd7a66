"""What `load_rankrag` takes besides what `load` takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from tamis.errors import InvalidInput
from tamis.rankrag.prompts import PAPER, Best, Wording, check_best

if TYPE_CHECKING:
    from tamis.scorers.rankrag import Relevance

Style: TypeAlias = Literal["auto", "chat", "plain"]

PASSAGE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class RankRAGOptions:
    """What `load_rankrag` takes besides `LoadOptions`; see there."""

    adapter: str | None = None
    style: Style = "auto"
    wording: Wording | None = None
    best_passage: Best | None = None
    relevance: Relevance = "probability"
    task: str = "short"
    passage_bytes: int = PASSAGE_BYTES
    host_bytes: int = 0
    passage_dir: str | None = None
    disk_bytes: int = 8 << 30
    server: str | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("style", self.style, ("auto", "chat", "plain")),
            ("relevance", self.relevance, ("probability", "margin")),
        ):
            if value not in allowed:
                raise InvalidInput(f"{name}={value!r}; pass {', '.join(map(repr, allowed))}.")
        if self.best_passage is not None:
            check_best("best_passage", self.best_passage)
        for name in ("passage_bytes", "host_bytes", "disk_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InvalidInput(f"{name}={value!r}; pass a number of bytes, 0 for none.")
        if self.host_bytes and self.passage_dir is not None:
            raise InvalidInput("What leaves the device goes to host_bytes= or to passage_dir=; pass one of them.")
        if self.server is not None and not isinstance(self.server, str):
            raise InvalidInput(f"server is a {type(self.server).__name__}; pass a URL.")
        (self.wording or PAPER).task(self.task)
