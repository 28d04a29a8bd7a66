"""RankRAG's ranking half, as a mode of `tamis.load`; `tamis.load_rankrag` gives the whole."""

from __future__ import annotations

from tamis.checkpoint import Checkpoint
from tamis.families import Family
from tamis.options import LoadOptions
from tamis.scorers.base import Scorer


def build(checkpoint: Checkpoint, options: LoadOptions) -> Scorer:
    """See `tamis.rankrag.loading.make_scorer`."""
    from tamis.rankrag import loading

    return loading.build(checkpoint, options)


FAMILIES = (
    Family(
        "rankrag",
        "rankrag",
        'any causal LM, only with mode="rankrag"; tamis.load_rankrag answers too. One that was not tuned ranks badly',
        "p(True) over the whole vocabulary",
        build,
        matches=lambda checkpoint: checkpoint.gguf is not None or checkpoint.architecture.endswith("ForCausalLM"),
        fallback=True,
        template="Passage: {passage} / For the question {question}, access whether the passage is relevant ...",
    ),
)
