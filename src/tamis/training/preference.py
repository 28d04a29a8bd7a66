"""Recipe `llm-preference`: a retriever learns which passages a language model finds useful (REPLUG, arXiv 2301.12652).

For each question with known answers a first stage finds passages; the language model reads one of them at a time, in
the RankRAG answering prompt, and a passage is worth what it makes of the gold answer: RAG-Retrieval's mean probability
of its tokens, or the mean of their logarithms. The engine computes both. The bi-encoder is then trained on these
scores (`tamis.training.bi_encoder`, loss "preference"). `write` keeps them in RAG-Retrieval's shape, for other runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tamis.errors import InvalidInput
from tamis.training import bi_encoder
from tamis.training.recipe import EMBEDDED, Recipe
from tamis.training.rows import Example

if TYPE_CHECKING:
    from tamis.evaluation.collection import Collection, Query
    from tamis.rankrag.rag import RankRAG
    from tamis.steps import Steps

NAME = "llm-preference"
READS = ("train", "limit", "limits")
VALUES = ("probability", "log-likelihood")
UNDER_WAY = 32  # questions that are read at a time

arguments, prepare, save, load = bi_encoder.arguments, bi_encoder.prepare, bi_encoder.save, bi_encoder.load


@dataclass(frozen=True, slots=True)
class Options(bi_encoder.Options):
    """The table `[options]` of a preference recipe: a bi-encoder's, whose loss is "preference", and these.

    Attributes:
        teacher: A causal language model: a folder, a hub id, or "embedded", which is what `tamis.load_rankrag()` opens,
            SmolLM2-135M-Instruct with rankrag-smollm2.
        adapter: A LoRA adapter for it; "none" leaves the embedded model without ours.
        value: "probability", the mean of the answer's token probabilities, or "log-likelihood", the mean of their
            natural logarithms. `beta` divides it.
        passages: How many are judged for each question: relevant ones, half of them at most, and the first stage's
            best.
        max_answer: Answers of more tokens are judged by their beginning.
    """

    loss: str = "preference"
    teacher: str = EMBEDDED
    adapter: str | None = None
    value: str = "probability"
    passages: int = 8
    max_answer: int = 64

    def __post_init__(self) -> None:
        bi_encoder.Options.__post_init__(self)
        if self.value not in VALUES:
            raise InvalidInput(f"[options] value = {self.value!r}; pass one of {', '.join(VALUES)}.")
        if self.loss not in ("preference", "preference-flat"):
            raise InvalidInput(f'[options] loss = {self.loss!r}; pass "preference" or "preference-flat".')
        for name, least in (("passages", 2), ("max_answer", 1)):
            if getattr(self, name) < least:
                raise InvalidInput(f"[options] {name} = {getattr(self, name)!r}; pass a number of at least {least}.")


def examples(recipe: Recipe, options: Options, progress: bool | None = None) -> list[Example]:
    """Of each BEIR-shaped folder in `[data] train` the judged questions, of each .jsonl file its rows with scores.

    Raises:
        InvalidData: Bad rows, all of them.
        InvalidInput: No question of a folder has an answer.
    """
    from tamis.rankrag.loading import load_rankrag
    from tamis.training.examples import drawn, read_sources

    sources = read_sources(recipe.data.train)
    rng = np.random.default_rng(recipe.seed)
    made: list[Example] = []
    teacher = None if options.teacher == EMBEDDED else options.teacher
    folders = any(not isinstance(source, list) for _, source in sources)
    rag = load_rankrag(teacher, adapter=options.adapter) if folders else None
    try:
        for path, source in sources:
            limit = recipe.data.limit_of(path)
            if isinstance(source, list):
                made += drawn([e for e in source if e.scores], limit, rng)
            else:
                assert rag is not None  # noqa: S101 - there are folders
                made += judged(rag, source, options, limit, rng, progress)
    finally:
        if rag is not None:
            rag.close()
    return [made[i] for i in rng.permutation(len(made))]


def judged(
    rag: RankRAG,
    collection: Collection,
    options: Options,
    limit: int | None,
    rng: np.random.Generator,
    progress: bool | None = None,
) -> list[Example]:
    """What a language model makes of BM25's passages for a collection's questions; scores of the best answer count.

    Args:
        rag: The language model.
        collection: Questions with answers.
        options: Of the recipe.
        limit: Questions at most.
        rng: Draws them.
        progress: A bar on standard error; None shows it in a terminal.

    Raises:
        InvalidInput: No question has an answer.
    """
    from tqdm.auto import tqdm

    from tamis.evaluation.first_stage import bm25_run

    asked = [key for key, query in collection.queries.items() if query.answers]
    if not asked:
        raise InvalidInput(f"No question of {collection.name} has answers in its metadata; a preference needs them.")
    asked = [asked[i] for i in sorted(rng.permutation(len(asked))[:limit])]
    run = bm25_run(collection, options.passages, queries=asked)
    made = []
    with tqdm(
        total=len(asked), desc=f"judging {collection.name}", disable=None if progress is None else not progress
    ) as bar:
        for start in range(0, len(asked), UNDER_WAY):
            some = [collection.queries[key] for key in asked[start : start + UNDER_WAY]]
            pools = [_pool(collection, query, run[query.id], options.passages) for query in some]
            requests = [
                (query.text, text, answer)
                for query, pool in zip(some, pools, strict=True)
                for text in pool
                for answer in dict.fromkeys(query.answers or ())
            ]
            found = dict(zip(requests, likelihoods(rag, requests, options.value, options.max_answer), strict=True))
            for query, pool in zip(some, pools, strict=True):
                scores = [max(found[query.text, text, answer] for answer in query.answers or ()) for text in pool]
                if len(pool) > 1:
                    made.append(Example(query.text, tuple(pool), scores=tuple(scores), source=collection.name))
            bar.update(len(some))
    return made


def _pool(collection: Collection, query: Query, found: Iterable[str], count: int) -> list[str]:
    """What is judged for a question: relevant passages, half of them at most, and the best that were found."""
    relevant = [p for p, grade in collection.qrels[query.id].items() if grade > 0][: count // 2]
    ids = list(dict.fromkeys([*relevant, *found]))[:count]
    return [collection.corpus[p].text for p in ids]


def likelihoods(
    rag: RankRAG, requests: Sequence[tuple[str, str, str]], value: str = "probability", max_answer: int = 64
) -> list[float]:
    """How likely a language model finds an answer to a question, having read one passage.

    Args:
        rag: The language model; its engine batches the requests with everything else.
        requests: Triples of question, passage and answer.
        value: See `Options`.
        max_answer: Tokens of an answer that are judged.
    """
    rows = rag.reranker.run("likelihoods", len(requests), _rows(rag, requests, max_answer))
    return [mean_of(row, value) for row in rows]


def mean_of(logarithms: NDArray[np.float32], value: str) -> float:
    """One number of the log-probabilities of an answer's tokens.

    >>> halves = np.log(np.array([0.5, 0.25]))
    >>> round(mean_of(halves, "probability"), 4), round(mean_of(halves, "log-likelihood"), 4)
    (0.375, -1.0397)
    """
    wide = logarithms.astype(np.float64)
    return float(np.exp(wide).mean() if value == "probability" else wide.mean())


def write(examples: Sequence[Example], path: Path) -> None:
    """Judged questions as `{"query", "pos", "scores"}`, one a line: what RAG-Retrieval and `[data] train` read."""
    with path.open("w", encoding="utf-8") as file:
        for e in examples:
            row = {"query": e.query, "pos": list(e.passages), "scores": list(e.scores)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _rows(rag: RankRAG, requests: Sequence[tuple[str, str, str]], max_answer: int) -> Steps[list[NDArray[np.float32]]]:
    from tamis.engine.lm_sequences import Judged

    scorer = rag._scorer
    prompts, tokenizer = scorer.prompts, scorer.lease.loaded.tokenizer
    space = "" if prompts.wording.closing[-1:].isspace() else " "  # a chat's turn begins without one
    sequences = []
    for question, passage, answer in requests:
        said = tokenizer.encode([space + answer])[0][:max_answer]
        asked = prompts.replying(question, "short", ())
        room = scorer.max_length - len(prompts.system) - len(asked) - len(said)
        read = prompts.numbered([passage])[0]
        if len(read) > room:
            kept = max(1, prompts.count(passage) - (len(read) - room) - 4)
            read = prompts.numbered([passage[slice(*prompts.span(passage, slice(0, kept)))]])[0][: max(0, room)]
        ids = np.concatenate([prompts.system, read, asked, said])
        sequences.append(Judged(ids, system=len(prompts.system), said=len(said)))
    with scorer.lease.open() as session:
        if wait := session.backlog:
            yield wait
        future = session.submit(sequences)
        yield session.pending
        return [np.asarray(row, np.float32) for row in future.result()]


def described(options: Options) -> dict[str, Any]:
    """The options as plain values, for cards."""
    return asdict(options)
