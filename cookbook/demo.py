"""What a reranker changes: one question-answering pipeline, in LlamaIndex and in LangChain, without and with Tamis.

The passages are the docstrings of Python's standard library. BM25 fetches 100 for each question, and Tamis' embedded
model puts them in order. For each question it was settled beforehand, from the library's documentation, which entries
answer it. Then the embedded RankRAG model ranks the best and answers from them; see `demo_answers`. Nothing is
downloaded, and no GPU is needed.

    python cookbook/demo.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from demo_answers import answer_all
from demo_answers import problems as problems_of_answers
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever as LangChainRetriever
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.retrievers import BaseRetriever as LlamaIndexRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from stdlib_corpus import Entry, FirstStage, read_corpus

import langchain_tamis
from llama_index.postprocessor import tamis as llama_index_tamis

FETCHED = 100  # by BM25, for each question: no reranker finds what is not among them
SHOWN = 5  # after reranking: what a generator would read
SMALLEST_CORPUS = 2000
ANSWERED = 3  # of the questions, the last ones

Ranked: TypeAlias = list[tuple[str, float]]  # ids and scores, best first


@dataclass(frozen=True)
class Question:
    """A question, and the ids of the entries that answer it."""

    text: str
    expected: tuple[str, ...]


QUESTIONS = (
    Question(
        "How do I read one file inside a zip archive without extracting the whole archive?",
        ("zipfile.ZipFile.open", "zipfile.ZipFile.read"),
    ),
    Question(
        "How can I remember the results of a slow function so that they are not computed twice?",
        ("functools.cache", "functools.lru_cache"),
    ),
    Question(
        "I have several lists that are sorted already. How do I go through all of them in order?",
        ("heapq.merge",),
    ),
    Question(
        "How do I show which lines changed between two versions of a text?",
        (
            "difflib.unified_diff", "difflib.context_diff", "difflib.ndiff", "difflib.Differ",
            "difflib.Differ.compare",
        ),
    ),
    Question(
        "I need a scratch folder that is removed by itself when I am done with it.",
        ("tempfile.TemporaryDirectory",),
    ),
    Question(
        "How do I run another program and get what it printed?",
        ("subprocess.run", "subprocess.check_output"),
    ),
    Question(
        "How do I make a password reset link that nobody can guess?",
        ("secrets.token_urlsafe", "secrets.token_hex"),
    ),
    Question(
        "What is the easiest way to count how often each word occurs in a list?",
        ("collections.Counter",),
    ),
)  # fmt: skip


class LlamaIndexBM25(LlamaIndexRetriever):
    """The first stage as LlamaIndex sees it."""

    def __init__(self, stage: FirstStage) -> None:
        super().__init__()
        self._stage = stage

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self._stage.search(query_bundle.query_str, FETCHED)
        return [NodeWithScore(node=TextNode(id_=entry.id, text=entry.text), score=score) for entry, score in found]


class LangChainBM25(LangChainRetriever):
    """The first stage as LangChain sees it."""

    stage: Any

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [Document(id=entry.id, page_content=entry.text) for entry, _ in self.stage.search(query, FETCHED)]


class LlamaIndexPipeline:
    """A query engine; its answers come from a mock, for the demo is about the sources."""

    def __init__(self, stage: FirstStage) -> None:
        self._engine = RetrieverQueryEngine(
            retriever=LlamaIndexBM25(stage),
            response_synthesizer=get_response_synthesizer(llm=MockLLM(max_tokens=1)),  # your LLM goes here
            node_postprocessors=[llama_index_tamis.TamisRerank(top_n=SHOWN)],
        )

    def __call__(self, question: str) -> Ranked:
        """The sources of the answer."""
        return [(node.node_id, node.score) for node in self._engine.query(question).source_nodes]


class LangChainPipeline:
    """A retriever, as it stands in front of a chain."""

    def __init__(self, stage: FirstStage) -> None:
        self._retriever = ContextualCompressionRetriever(
            base_compressor=langchain_tamis.TamisRerank(top_n=SHOWN), base_retriever=LangChainBM25(stage=stage)
        )

    def __call__(self, question: str) -> Ranked:
        """The documents that the chain would read."""
        return [(doc.id, doc.metadata["relevance_score"]) for doc in self._retriever.invoke(question)]


@dataclass(frozen=True)
class Outcome:
    """What became of one question, and how many seconds each way took."""

    question: Question
    before: Ranked  # BM25's 50
    llama_index: Ranked
    langchain: Ranked
    seconds: tuple[float, float, float]

    def rank_before(self) -> int | None:
        """From 1; None where BM25 did not fetch it."""
        return rank_of(self.before, self.question.expected)

    def rank_after(self) -> int | None:
        """From 1; None where it is not among those shown."""
        return rank_of(self.llama_index, self.question.expected)

    def agree(self) -> bool:
        """Whether both frameworks gave the same entries in the same order, with the same scores."""
        same = [name for name, _ in self.llama_index] == [name for name, _ in self.langchain]
        pairs = zip(self.llama_index, self.langchain, strict=False)
        return same and all(abs(a - b) < 1e-4 for (_, a), (_, b) in pairs)


def rank_of(ranked: Ranked, expected: Iterable[str]) -> int | None:
    """The place of the first expected entry, from 1.

    >>> rank_of([("a", 0.9), ("b", 0.1)], ("b", "c")), rank_of([], ("b",))
    (2, None)
    """
    return next((place for place, (name, _) in enumerate(ranked, 1) if name in expected), None)


def count_within(ranks: Iterable[int | None], limit: int) -> int:
    """
    >>> count_within([1, None, 3], 1), count_within([1, None, 3], 5)
    (1, 2)
    """
    return sum(rank is not None and rank <= limit for rank in ranks)


def ask(
    question: Question, stage: FirstStage, llama_index: LlamaIndexPipeline, langchain: LangChainPipeline
) -> Outcome:
    """One question, asked in all three ways."""
    start = time.perf_counter()
    before = [(entry.id, score) for entry, score in stage.search(question.text, FETCHED)]
    searched = time.perf_counter()
    nodes = llama_index(question.text)
    answered = time.perf_counter()
    documents = langchain(question.text)
    seconds = (searched - start, answered - searched, time.perf_counter() - answered)
    return Outcome(question, before, nodes, documents, seconds)


def problems(entries: Sequence[Entry], outcomes: Sequence[Outcome]) -> list[str]:
    """What must not be; empty when all is well. Where the expected entries rank is a result, and no such thing."""
    ids = {entry.id for entry in entries}
    found = [f"there are only {len(entries)} passages"] if len(entries) < SMALLEST_CORPUS else []
    for outcome in outcomes:
        missing = [name for name in outcome.question.expected if name not in ids]
        scores = [score for _, score in outcome.llama_index]
        if missing:
            found.append(f"the corpus lacks {', '.join(missing)}")
        if len(scores) != SHOWN or scores != sorted(scores, reverse=True):
            found.append(f"{len(scores)} sources instead of {SHOWN}, or in a wrong order: {outcome.question.text}")
        if not outcome.agree():
            found.append(f"LlamaIndex and LangChain differ: {outcome.question.text}")
    return found


def show_question(console: Console, number: int, outcome: Outcome) -> None:
    """The first five before and after, side by side."""
    width = (console.width - 26) // 2
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("")
    for heading in ("BM25", "BM25, then Tamis"):
        table.add_column(heading, width=width, no_wrap=True)
        table.add_column("score", justify="right", no_wrap=True)
    for place, ((old, bm25), (new, score)) in enumerate(zip(outcome.before, outcome.llama_index, strict=False), 1):
        left, right = (marked(name, outcome.question.expected, width) for name in (old, new))
        table.add_row(str(place), left, f"{bm25:.1f}", right, f"{score:.3f}")
    console.print(f"{number}. {outcome.question.text}", style="bold", markup=False, highlight=False)
    console.print(table)
    console.print(f"   * {verdict(outcome)}\n", markup=False, highlight=False)


def verdict(outcome: Outcome) -> str:
    """Where the expected entries stood before and after."""
    expected = ", ".join(outcome.question.expected)
    before, after = outcome.rank_before(), outcome.rank_after()
    if before is None:
        return f"{expected}: not among the {FETCHED} that BM25 fetched."
    return f"{expected}: {before} by BM25, {after or f'not among the first {SHOWN}'} by Tamis."


def marked(name: str, expected: Iterable[str], width: int) -> Text:
    """An id, cut on the left to fit, with a star and in green where it is expected."""
    room = width - 2
    short = name if len(name) <= room else "…" + name[1 - room :]
    return Text(f"* {short}", style="bold green") if name in expected else Text(f"  {short}")


def show_summary(console: Console, outcomes: Sequence[Outcome], stages: Sequence[tuple[str, float]]) -> None:
    """Hits before and after, time by stage, and whether the frameworks agree."""
    before = [outcome.rank_before() for outcome in outcomes]
    after = [outcome.rank_after() for outcome in outcomes]
    total = len(outcomes)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in ("an expected entry (*) is", "BM25", "BM25, then Tamis"):
        table.add_column(heading, justify="left" if heading.startswith("an") else "right")
    for label, limit in (("first", 1), (f"among the first {SHOWN}", SHOWN)):
        table.add_row(label, *(f"{count_within(ranks, limit)} of {total}" for ranks in (before, after)))
    table.add_row(f"among the {FETCHED} that BM25 fetched", f"{count_within(before, FETCHED)} of {total}", "")
    console.print(table)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for label, seconds in stages:
        table.add_row(label, f"{seconds:.3f}")
    console.print(table)
    agreed = sum(outcome.agree() for outcome in outcomes)
    console.print(f"LlamaIndex and LangChain gave the same order for {agreed} of {total} questions.", highlight=False)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main(questions: Sequence[Question] = QUESTIONS, answered: int = ANSWERED) -> int:
    """Runs everything and returns the exit code: 1 where something is wrong.

    Args:
        questions: For the reranker.
        answered: How many of them are answered too.
    """
    out = Console(width=min(Console().width, 100))
    progress = partial(track, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    start = time.perf_counter()
    entries = read_corpus(partial(progress, description="Reading the library"))
    read = time.perf_counter()
    stage = FirstStage(entries)
    indexed = time.perf_counter()
    out.print(f"{len(entries)} passages: the documentation in Python's standard library.\n", highlight=False)
    ways = (stage, LlamaIndexPipeline(stage), LangChainPipeline(stage))
    outcomes = [ask(question, *ways) for question in progress(questions, description="Asking")]
    for number, outcome in enumerate(outcomes, 1):
        show_question(out, number, outcome)
    bm25, llama_index, langchain = zip(*(outcome.seconds for outcome in outcomes), strict=True)
    stages = (
        ("reading the passages", read - start),
        ("indexing them for BM25", indexed - read),
        (f"BM25 search for {FETCHED}, each question", mean(bm25)),
        ("LlamaIndex, first question: the model is loaded", llama_index[0]),
        ("LlamaIndex, each further question", mean(llama_index[1:] or llama_index)),
        ("LangChain, each question: same engine, vectors kept from before", mean(langchain)),
        ("all of it, so far", time.perf_counter() - start),
    )
    show_summary(out, outcomes, stages)
    wrong = problems(entries, outcomes)
    if answered:
        out.print("\nRankRAG: one model ranks and answers.\n", style="bold")
        asked = [question.text for question in questions[-answered:]]
        wrong += problems_of_answers(answer_all(out, asked, LlamaIndexBM25(stage), LangChainBM25(stage=stage)))
        out.print(f"All of it took {time.perf_counter() - start:.0f} seconds.", highlight=False)
    for problem in wrong:
        out.print(f"Wrong: {problem}", style="bold red", markup=False, highlight=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
