"""Who is asked, and how: everybody at once, one small request under a huge one, or arrivals at random.

All contenders load one checkpoint, and each answers a request with the logits of its passages, in their order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import workload as loads
from contender import Logits
from libraries import infinity_engine, placed

from tamis import Reranker
from tamis.engine.sequences import Tokens, cut, in_order
from tamis.evaluation.prose import SHORTEST, sample_passages

SHARE = 3  # a passage is this part of one of the speed benchmark's: a round takes about a minute on two cores
QUERY_WORDS = 8
WARM = 4  # requests
HEAD_START = 0.3  # seconds that a huge request has before the first small one


@dataclass(frozen=True)
class Request:
    """A query and its passages."""

    query: str
    passages: list[str]


Ask: TypeAlias = Callable[[Request], Awaitable[Logits]]


@dataclass(frozen=True)
class Contender:
    """One way to serve requests.

    Attributes:
        name: In the tables.
        ask: Answers one request, any number of them at a time.
        around: Entered before the clock starts and left after it: a library that has threads starts them here.
    """

    name: str
    ask: Ask
    around: Callable[[], AbstractAsyncContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class Outcome:
    """Seconds in all, and to each answer."""

    seconds: float
    latencies: list[float]


def quantiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """p50 and p99, by the nearest rank; None where there is nothing."""
    found = np.percentile(seconds, (50, 99), method="inverted_cdf").tolist() if seconds else (None, None)
    return {"p50": found[0], "p99": found[1]}


# -- requests ---------------------------------------------------------------------------------------------------------


def texts(count: int, seed: int) -> Iterator[str]:
    """Passages of mixed lengths, all different."""
    for text in sample_passages(count, seed):
        words = text.split()
        yield " ".join(words[: max(SHORTEST, len(words) // SHARE)])


def requests(source: Iterator[str], count: int, passages: int) -> list[Request]:
    """The next requests from `texts`, each with a query of its own: `count` times `passages` + 1 of them."""
    return [
        Request(" ".join(next(source).split()[:QUERY_WORDS]), [next(source) for _ in range(passages)])
        for _ in range(count)
    ]


def unlike(requests: Sequence[Request], number: int) -> Request:
    """Request `number` of an endless row that repeats no pair for a long time: equal ones would be computed once."""
    again, place = divmod(number, len(requests))
    return Request(requests[(place + again) % len(requests)].query, requests[place].passages)


# -- contenders -------------------------------------------------------------------------------------------------------


def executor(checkpoint: Path) -> Contender:
    """What LlamaIndex and LangChain do by default: `CrossEncoder.predict` on a thread of the loop's own pool."""
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(checkpoint), device="cpu", model_kwargs={"dtype": torch.float32})

    def predict(request: Request) -> Logits:
        pairs = [(request.query, passage) for passage in request.passages]
        logits = model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)
        return np.asarray(logits, np.float64)

    return Contender("sentence-transformers in threads", lambda request: asyncio.to_thread(predict, request))


def infinity(checkpoint: Path) -> Contender:
    """Infinity's engine with its defaults."""
    engine = infinity_engine(checkpoint, "float32")

    async def ask(request: Request) -> Logits:
        results, _ = await engine.rerank(query=request.query, docs=request.passages, raw_scores=True)
        return placed((result.index, result.relevance_score) for result in results)

    return Contender("infinity", ask, lambda: engine)


def tamis_arank(reranker: Reranker, dtype: str) -> Contender:
    """Tamis with its defaults."""

    async def ask(request: Request) -> Logits:
        ranking = await reranker.arank(request.query, request.passages)
        return placed((hit.index, hit.logit) for hit in ranking)

    return Contender(f"Tamis arank {dtype}", ask)


class Direct:
    """Tamis's runner called by hand: no queue, no threads, no futures, and all that is to come is known.

    Args:
        checkpoint: Loaded once more, beside the reranker's own.
        dtype: As `tamis.load` takes it.
        batch_tokens: Tokens of a batch.
    """

    def __init__(self, checkpoint: Path, dtype: str, batch_tokens: int) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from tamis.engine.architectures import ARCHITECTURES
        from tamis.engine.attention import registered
        from tamis.engine.classifier import classifier_runner
        from tamis.engine.devices import choose_device, choose_dtype
        from tamis.tokenizing import TextTokenizer

        chosen = choose_dtype(dtype, choose_device("cpu"))
        model = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, dtype=chosen, attn_implementation=registered()
        ).eval()
        self._tokenizer = TextTokenizer(AutoTokenizer.from_pretrained(checkpoint))
        self._template = self._tokenizer.template(2)
        self._runner = classifier_runner(model, ARCHITECTURES["bert"], self._tokenizer.pad_id, loads.MAX_LENGTH)
        self.batch_tokens = batch_tokens

    def sequences(self, request: Request) -> list[Tokens]:
        """One for each passage."""
        query = self._tokenizer.encode([request.query])[0]
        return [self._template.fill(query, passage) for passage in self._tokenizer.encode(request.passages)]

    def logits(self, sequences: Sequence[Tokens]) -> Logits:
        """Of all sequences, sorted by length together, batch by batch."""
        ranked = in_order(sequences)
        batches = cut([sequences[i] for i in ranked], self.batch_tokens, padded=self._runner.padded)
        logits = np.zeros(len(sequences))
        for batch in batches:
            logits[ranked[batch]] = [row[0] for row in self._runner.run([sequences[i] for i in ranked[batch]])]
        return logits

    def full_batch(self, sequences: Sequence[Tokens]) -> list[Tokens]:
        """Exactly `batch_tokens` tokens, the last sequence cut to fit."""
        ends = list(accumulate(map(len, sequences)))
        last = next(i for i, end in enumerate(ends) if end >= self.batch_tokens)
        left = len(sequences[last]) - (ends[last] - self.batch_tokens)
        ids, types = sequences[last].ids, sequences[last].type_ids
        return [*sequences[:last], Tokens(ids[:left], None if types is None else types[:left])]


# -- shapes -----------------------------------------------------------------------------------------------------------


async def serve(contender: Contender, requests: Sequence[Request], due: Sequence[float]) -> Outcome:
    """A request for each second in `due`; latencies are counted from then, whenever it really left."""
    async with contender.around():
        start = time.perf_counter()

        async def one(number: int) -> float:
            await asyncio.sleep(start + due[number] - time.perf_counter())
            await contender.ask(unlike(requests, number))
            return time.perf_counter() - start - due[number]

        latencies = await asyncio.gather(*map(one, range(len(due))))
        return Outcome(time.perf_counter() - start, latencies)


async def warmed(contender: Contender, requests: Sequence[Request]) -> Logits:
    """Its answer to the first request, after a few others."""
    await serve(contender, requests, [0.0] * WARM)
    async with contender.around():
        return await contender.ask(requests[0])


def poisson(rate: float, count: int, seed: int) -> list[float]:
    """Open loop: `rate` a second on average, whatever is still waiting."""
    return list(accumulate(np.random.default_rng(seed).exponential(1 / rate, count).tolist()))


async def offline(direct: Direct, requests: Sequence[Request]) -> Outcome:
    """All pairs in one go, tokenised and sorted together: no engine can be faster than that."""
    start = time.perf_counter()
    direct.logits([tokens for request in requests for tokens in direct.sequences(request)])
    return Outcome(time.perf_counter() - start, [])


async def under(
    contender: Contender, huge: Request, small: Sequence[Request], pause: float, limit: float, seed: int
) -> Outcome:
    """Small requests one after another while a huge one runs, each after up to `pause` seconds.

    The huge one is withdrawn after `limit` seconds. Small ones count that were answered before it ended.
    """
    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    job = asyncio.ensure_future(contender.ask(huge))
    await asyncio.sleep(HEAD_START)
    latencies: list[float] = []
    while not job.done() and time.perf_counter() - start < limit:
        await asyncio.sleep(rng.uniform(0, pause))
        before = time.perf_counter()
        await contender.ask(unlike(small, len(latencies)))
        if not job.done():
            latencies.append(time.perf_counter() - before)
    job.cancel()
    await asyncio.wait({job})
    if not job.cancelled():
        job.result()  # its error, if it has one
    return Outcome(time.perf_counter() - start, latencies)


async def alone(
    reranker: Reranker, direct: Direct, requests: Sequence[Request], pause: float
) -> dict[str, list[float]]:
    """Seconds of each request on an idle engine, from the runner alone to `arank`; and of a full batch."""
    full = direct.full_batch([tokens for request in requests for tokens in direct.sequences(request)])
    seconds: dict[str, list[float]] = {
        name: [] for name in ("runner", "tokenise and runner", "rank", "arank", "full batch")
    }
    for turn, request in enumerate(requests):
        sequences = direct.sequences(request)
        for place in range(len(seconds)):
            name = list(seconds)[(turn + place) % len(seconds)]
            await asyncio.sleep(pause)
            start = time.perf_counter()
            if name == "runner":
                direct.logits(sequences)
            elif name == "tokenise and runner":
                direct.logits(direct.sequences(request))
            elif name == "rank":
                reranker.rank(request.query, request.passages)
            elif name == "arank":
                await reranker.arank(request.query, request.passages)
            else:
                direct.logits(full)
            seconds[name].append(time.perf_counter() - start)
    return seconds
