"""`measure_speed`: how long models take on this machine, side by side; whether they rank well plays no part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tamis.errors import InvalidInput
from tamis.evaluation.collection import check_seed
from tamis.evaluation.prose import prose, sample_passages
from tamis.inputs import check_query

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tamis.reranker import Reranker

Model: TypeAlias = "Reranker | Callable[[str, list[str]], object]"
Request: TypeAlias = tuple[str, list[str]]

PASSAGES = (20, 100)
ROUNDS = 5
SEED = 0
QUERY_WORDS = 12


@dataclass(frozen=True, slots=True)
class Timing:
    """One model on requests of one size.

    Attributes:
        model: Its name.
        passages: Of each request.
        requests: At once.
        seconds: Of each round, from the start of the first request to the end of the last one.
        latencies: Of each request of all rounds, in seconds.
        ratio: The first model's seconds over this one's, the median over rounds.
        tokens: What went through the model in all rounds; 0 if nobody counts.
        cached: Passages in all rounds whose vectors it had already.
    """

    model: str
    passages: int
    requests: int
    seconds: tuple[float, ...]
    latencies: tuple[float, ...] = field(repr=False)
    ratio: float
    tokens: int
    cached: int

    @property
    def passages_per_second(self) -> float:
        """Of the median round."""
        return self.passages * self.requests / median(self.seconds)

    @property
    def tokens_per_second(self) -> float:
        """Over all rounds; 0 if nobody counts."""
        return self.tokens / sum(self.seconds)


@dataclass(frozen=True, slots=True)
class SpeedReport:
    """What `measure_speed` found.

    Attributes:
        timings: By size, and in the order of the models.
        about: By model, what `Reranker.stats` says of where it ran; nothing of a function.
        rounds: How often each was timed.
        seed: What the passages were drawn with.
    """

    timings: tuple[Timing, ...]
    about: Mapping[str, Mapping[str, Any]]
    rounds: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `json.dump`."""
        from tamis import __version__

        rows = [
            {
                **asdict(one),
                "median": median(one.latencies),
                "best": min(one.latencies),
                "passages_per_second": one.passages_per_second,
                "tokens_per_second": one.tokens_per_second,
            }
            for one in self.timings
        ]
        return {
            "tamis": __version__,
            "rounds": self.rounds,
            "seed": self.seed,
            "models": {name: dict(facts) for name, facts in self.about.items()},
            "timings": rows,
        }

    def table(self) -> RenderableType:
        """For a terminal of 80 columns; `rich.print` shows it."""
        from tamis.evaluation.tables import speed_table

        return speed_table(self)

    def save_plots(self, folder: str | Path) -> list[Path]:
        """Writes `speed.png`.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        from tamis.evaluation.plots import speed_plots

        return speed_plots(self, Path(folder))


def measure_speed(
    models: Mapping[str, Model],
    texts: Sequence[str] | None = None,
    *,
    queries: Sequence[str] | None = None,
    passages: Sequence[int] = PASSAGES,
    requests: Sequence[int] = (1,),
    rounds: int = ROUNDS,
    seed: int = SEED,
    progress: bool = False,
) -> SpeedReport:
    """Times models on requests of several sizes, in rounds: each round another order, all models the same requests.

    Each model answers one request of each size first, which is not counted. Every request is drawn anew; what a model
    keeps of passages helps it where they come again: load it with `cache_bytes=0` if that is not wanted. Where texts or
    queries are few, requests at once have sequences in common, which an engine runs once.

    Args:
        models: By the names that they have in the report, the one to compare with first: rerankers, or any functions
            of a query and a list of passages.
        texts: What passages are drawn from, for each request anew; prose of lognormal length (median 66 words) if None.
        queries: Taken in turn; prose of 12 words, for each request another, if None.
        passages: Of a request; each number is measured.
        requests: At once; each number is measured.
        rounds: How often each is timed.
        seed: Of what is drawn.
        progress: Show a progress bar on a terminal's standard error.

    Raises:
        InvalidInput: There is no model, a number is below 1, or there are fewer texts than passages of a request.
    """
    from tqdm.auto import tqdm

    check_speed(texts, queries, passages, requests, rounds, seed)
    if not models:
        raise InvalidInput("There is no model to time; pass some, by their names.")
    sizes = [(count, at_once) for count in passages for at_once in requests]
    drawn = _Drawn(texts, queries, seed)
    begun = {(name, size): _Begun() for size in sizes for name in models}
    names = list(models)
    total = len(sizes) * (rounds + 1) * len(names)
    with tqdm(total=total, desc="timing", unit="run", disable=None if progress else True) as bar:
        for turn in range(rounds + 1):
            for size in sizes:
                asked = list(drawn.requests(*size))
                first = turn % len(names)
                for name in names[first:] + names[:first]:
                    timed = _timed(models[name], asked[:1] if turn == 0 else asked)
                    if turn:
                        begun[name, size].add(*timed)
                    bar.update()
    timings = [begun[name, size].timing(name, size, begun[names[0], size]) for size in sizes for name in names]
    return SpeedReport(tuple(timings), {name: _facts(model) for name, model in models.items()}, rounds, seed)


def check_speed(
    texts: Sequence[str] | None,
    queries: Sequence[str] | None,
    passages: Sequence[int],
    requests: Sequence[int],
    rounds: int,
    seed: int,
) -> None:
    """Raises InvalidInput where `measure_speed` would, but for the models, which take their time to load."""
    for name, values in (("passages", passages), ("requests", requests), ("rounds", [rounds])):
        if not values:
            raise InvalidInput(f"There are no numbers of {name}; pass some.")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInput(f"{name} is {value!r}; pass an int of at least 1.")
    most = max(passages)
    if texts is not None and len(texts) < most:
        raise InvalidInput(f"There are {len(texts)} texts, too few for a request of {most} passages; pass more.")
    if queries is not None and not queries:
        raise InvalidInput("There is no query; pass some, or None.")
    for query in queries or ():
        check_query(query)
    if texts is None or queries is None:
        prose()
    check_seed(seed)


class _Drawn:
    """Requests, each drawn anew; the same ones for the same seed."""

    def __init__(self, texts: Sequence[str] | None, queries: Sequence[str] | None, seed: int) -> None:
        self._texts = texts
        self._queries = queries
        self._seed = seed
        self._count = 0

    def requests(self, passages: int, at_once: int) -> Iterator[Request]:
        for _ in range(at_once):
            self._count += 1
            yield self._query(), self._passages(passages)

    def _query(self) -> str:
        if self._queries is not None:
            return self._queries[self._count % len(self._queries)]
        return " ".join(sample_passages(1, (self._seed, self._count, 1))[0].split()[:QUERY_WORDS])

    def _passages(self, count: int) -> list[str]:
        seed = (self._seed, self._count)
        if self._texts is None:
            return sample_passages(count, seed)
        return [self._texts[i] for i in np.random.default_rng(seed).choice(len(self._texts), count, replace=False)]


@dataclass(slots=True)
class _Begun:
    """What was timed so far of one model and size."""

    seconds: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    tokens: int = 0
    cached: int = 0

    def add(self, seconds: float, answers: Sequence[tuple[float, int, int]]) -> None:
        self.seconds.append(seconds)
        for latency, tokens, cached in answers:
            self.latencies.append(latency)
            self.tokens += tokens
            self.cached += cached

    def timing(self, name: str, size: tuple[int, int], first: _Begun) -> Timing:
        ratio = median(a / b for a, b in zip(first.seconds, self.seconds, strict=True))
        return Timing(name, *size, tuple(self.seconds), tuple(self.latencies), ratio, self.tokens, self.cached)


def _timed(model: Model, asked: Sequence[Request]) -> tuple[float, list[tuple[float, int, int]]]:
    """Seconds that all requests took, and of each its own, its tokens, and the passages that it had already."""
    if len(asked) == 1:
        answer = _answered(model, asked[0])
        return answer[0], [answer]
    with ThreadPoolExecutor(len(asked)) as threads:
        list(threads.map(time.sleep, [0.01] * len(asked)))  # so that all threads are there
        start = time.perf_counter()
        answers = list(threads.map(lambda request: _answered(model, request), asked))
        return time.perf_counter() - start, answers


def _answered(model: Model, request: Request) -> tuple[float, int, int]:
    start = time.perf_counter()
    answer = model(*request) if callable(model) else model.rank(*request)
    seconds = time.perf_counter() - start
    usage = getattr(answer, "usage", None)
    return seconds, getattr(usage, "tokens", 0), getattr(usage, "cached", 0)


def _facts(model: Model) -> Mapping[str, Any]:
    if callable(model):
        return {}
    said = model.stats()
    return {name: said[name] for name in ("mode", "device", "dtype") if name in said}
