"""Servers: the family whose checkpoint is somewhere else."""

from __future__ import annotations

from tamis.checkpoint import Checkpoint
from tamis.errors import InvalidInput
from tamis.families import Family
from tamis.options import LoadOptions
from tamis.scorers.base import Scorer


def build(checkpoint: Checkpoint, options: LoadOptions) -> Scorer:
    """Refuses: a server has a URL, and no files; `tamis.load` connects to it."""
    raise InvalidInput(f'{checkpoint.name} is a checkpoint; mode="remote" takes a server\'s URL.')


FAMILIES = (
    Family(
        "remote",
        "remote",
        'a server: NIM, TEI, vLLM, Cohere, Jina, Voyage; only with mode="remote", see docs/remote.md',
        "sigmoid of the server's logit, or its probability where it gives no logit",
        build,
        template="what the server makes of query and passages",
        window="the server's own",
    ),
)
