"""The second half of the demo: one language model ranks the passages and answers from the best, in both frameworks.

BM25 fetches, Tamis's embedded reranker keeps eight, and the embedded RankRAG model (SmolLM2-135M) ranks those and
answers. It is small, and was tuned for that on encyclopedias and abstracts: its answers show how this works and not how
well. Without the package that carries it, this half is left out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeAlias

from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.retrievers import BaseRetriever as LangChainRetriever
from langchain_core.runnables import Runnable, RunnablePassthrough
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever as LlamaIndexRetriever
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import langchain_tamis
import tamis
from llama_index.postprocessor import tamis as llama_index_tamis

CANDIDATES = 8  # that the reranker leaves, for each question
READ = 3  # of them, for the answer
NOTE = (
    "The answers are by a model of 135 million parameters, tuned on encyclopedias and abstracts. "
    "They show how it works, not how well; load a larger one with tamis.load_rankrag(MODEL)."
)

Sources: TypeAlias = list[tuple[str, float]]  # ids and p(True), best first


@dataclass(frozen=True)
class Answered:
    """A question, and what it was answered with and from: by LlamaIndex, and by LangChain; and in how many seconds."""

    question: str
    texts: tuple[str, str]
    sources: tuple[Sources, Sources]
    seconds: tuple[float, float]

    def agree(self) -> bool:
        """Whether both frameworks gave the same answer, from the same passages with the same scores."""
        (one, other), (left, right) = self.texts, self.sources
        same = one == other and [name for name, _ in left] == [name for name, _ in right]
        return same and all(abs(a - b) < 1e-4 for (_, a), (_, b) in zip(left, right, strict=False))


def answer_all(
    console: Console, questions: Sequence[str], llama_index: LlamaIndexRetriever, langchain: LangChainRetriever
) -> list[Answered]:
    """Asks each question in both frameworks, and shows what came of it; nothing where there is no model."""
    start = time.perf_counter()
    try:
        rag = tamis.load_rankrag()
    except tamis.MissingExtra as error:
        console.print(f"Answers are left out. {error}", markup=False, highlight=False)
        return []
    with rag:
        loaded = time.perf_counter()
        retriever = ContextualCompressionRetriever(
            base_compressor=langchain_tamis.TamisRerank(top_n=CANDIDATES), base_retriever=langchain
        )
        chain = RunnablePassthrough.assign(context=itemgetter("input") | retriever) | langchain_tamis.RankRAG(
            rag=rag, top_k=READ
        )
        engine = llama_index_tamis.rankrag_query_engine(
            llama_index, rag, top_k=READ, node_postprocessors=[llama_index_tamis.TamisRerank(top_n=CANDIDATES)]
        )
        candidates = [document.page_content for question in questions for document in retriever.invoke(question)]
        retrieved = time.perf_counter()
        rag.warm(candidates)
        warmed = time.perf_counter()
        answered = [_ask(question, engine, chain) for question in questions]
        stats = rag.stats()
    for number, one in enumerate(answered, 1):
        show_answer(console, number, one)
    console.print(NOTE, style="dim")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for label, seconds in (
        ("loading the language model", loaded - start),
        (f"running {len(candidates)} passages once, as when they are indexed", warmed - retrieved),
        ("LlamaIndex: ranking and answering, each question", _mean([one.seconds[0] for one in answered])),
        ("LangChain: the same", _mean([one.seconds[1] for one in answered])),
    ):
        table.add_row(label, f"{seconds:.3f}")
    console.print(table)
    console.print(
        f"Of {stats['tokens_asked']} tokens that were asked for {stats['tokens_computed']} were computed: passages and "
        "system text are run once.",
        highlight=False,
    )
    return answered


def problems(answered: Sequence[Answered]) -> list[str]:
    """What must not be; whether an answer is right is no such thing."""
    found = []
    for one in answered:
        scores = [score for _, score in one.sources[0]]
        if len(scores) != READ or scores != sorted(scores, reverse=True):
            found.append(f"{len(scores)} sources of an answer instead of {READ}, or in a wrong order: {one.question}")
        if not one.agree():
            found.append(f"LlamaIndex and LangChain answer differently: {one.question}")
    return found


def show_answer(console: Console, number: int, one: Answered) -> None:
    """The question, its answer, and the passages that were read."""
    console.print(f"{number}. {one.question}", style="bold", markup=False, highlight=False)
    read = ", ".join(f"{name} ({score:.3f})" for name, score in one.sources[0])
    for text, style in ((" ".join(one.texts[0].split()) or "(no answer)", ""), (f"from {read}\n", "dim")):
        console.print(Padding(Text(text, style=style), (0, 0, 0, 3)))


def _ask(question: str, engine: RetrieverQueryEngine, chain: Runnable[Any, Any]) -> Answered:
    start = time.perf_counter()
    response = engine.query(question)
    middle = time.perf_counter()
    output = chain.invoke({"input": question})
    seconds = (middle - start, time.perf_counter() - middle)
    nodes: Sources = [(node.node_id, node.score) for node in response.source_nodes]
    documents: Sources = [(doc.id, doc.metadata["relevance_score"]) for doc in output["context"]]
    return Answered(question, (str(response), output["answer"]), (nodes, documents), seconds)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
