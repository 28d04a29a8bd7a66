"""Nodes in and out: what the model reads of them, and scored copies that remember who ranked them, and for what."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

import tamis

logger = logging.getLogger(__name__)

RETRIEVAL_SCORE = "retrieval_score"


class RankedNode(NodeWithScore):
    """A `NodeWithScore` that remembers its ranking, so that nothing that follows ranks it again.

    The mark is private: copies keep it, no dump has it, and it equals what has the same fields. It is the ranking's
    signature, of which see `tamis.Reranker.signature`, and the node's hit, with the text that was ranked.
    """

    _mark: tuple[str, tamis.Hit] | None = PrivateAttr(default=None)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NodeWithScore):
            return NotImplemented
        return self.node == other.node and self.score == other.score


def checked(nodes: list[NodeWithScore], query: QueryBundle | None) -> QueryBundle:
    """The query, which is there.

    Raises:
        tamis.InvalidInput: It is not, or something among the nodes is none.
    """
    if query is None:
        raise tamis.InvalidInput("A reranker needs the query: pass query_bundle= or query_str= beside the nodes.")
    for index, node in enumerate(nodes):
        if not isinstance(node, NodeWithScore):
            what = type(node).__name__
            inner = "..." if isinstance(node, BaseNode) else "TextNode(text=...)"
            raise tamis.InvalidInput(f"Node {index} is a {what}; wrap it: NodeWithScore(node={inner}).")
    return query


def texts_of(nodes: Sequence[NodeWithScore], mode: MetadataMode) -> list[str]:
    """What the model reads of each. Nodes without text that should have some, such as images, are told in the log."""
    texts = [node.node.get_content(metadata_mode=mode) for node in nodes]
    blank = [type(node.node).__name__ for node, text in zip(nodes, texts, strict=True) if not text.strip()]
    if blank and (len(blank) == len(nodes) or set(blank) != {"TextNode"}):
        logger.warning(
            "%d of %d nodes (%s) have no text in metadata_mode %r: each is ranked as an empty passage. Rank images by "
            "a caption in their text, or choose another metadata_mode.",
            len(blank), len(nodes), ", ".join(sorted(set(blank))), mode.value,
        )  # fmt: skip
    return texts


def rescored(
    nodes: Sequence[NodeWithScore], hits: Sequence[tamis.Hit], signature: str | None, *, keep_retrieval_score: bool
) -> list[NodeWithScore]:
    """Copies of the nodes that were hit, in the order of the hits, with their scores.

    Args:
        nodes: Those that were ranked.
        hits: Some of their ranking.
        signature: Of the ranking; None leaves no mark.
        keep_retrieval_score: Copy the inner nodes too, with the score they came with among their metadata.
    """
    out = []
    for hit in hits:
        node = _with_retrieval_score(nodes[hit.index]) if keep_retrieval_score else nodes[hit.index]
        score = float(hit.score)
        if signature is None:
            out.append(node.model_copy(update={"score": score}))
            continue
        ranked = RankedNode(node=node.node, score=score)
        ranked._mark = (signature, hit)
        out.append(ranked)
    return out


def ranked_before(
    nodes: Sequence[NodeWithScore], texts: Sequence[str], signature: str, model: str
) -> tamis.Ranking | None:
    """The ranking that the nodes come from, if all come from one with this signature, and with these texts."""
    hits = []
    for index, (node, text) in enumerate(zip(nodes, texts, strict=True)):
        mark = node._mark if isinstance(node, RankedNode) else None
        if mark is None or mark[0] != signature or mark[1].passage.text != text:
            return None
        hits.append(replace(mark[1], index=index))
    return tamis.Ranking(sorted(hits, key=lambda hit: -hit.logit), model)


def _with_retrieval_score(node: NodeWithScore) -> NodeWithScore:
    inner = node.node
    if RETRIEVAL_SCORE in inner.metadata:
        return node
    score = None if node.score is None else float(node.score)  # other postprocessors assign numpy's
    update = {
        "metadata": {**inner.metadata, RETRIEVAL_SCORE: score},
        "excluded_llm_metadata_keys": [*inner.excluded_llm_metadata_keys, RETRIEVAL_SCORE],
        "excluded_embed_metadata_keys": [*inner.excluded_embed_metadata_keys, RETRIEVAL_SCORE],
    }
    return node.model_copy(update={"node": inner.model_copy(update=update)})
