"""A recipe: what to train, from what, on what, and how it is judged; read from TOML, or made in Python.

A recipe file has a few keys and four tables::

    recipe = "cross-encoder"             # one of tamis.training.RECIPES
    model = "embedded"                   # a folder, a hub id, or "embedded"
    output = "runs/my-reranker"
    seed = 42
    [options]                            # the recipe's own: see its `Options`
    [data]                               # train = [folders and .jsonl files], and how negatives are found
    [arguments]                          # handed to the trainer's own arguments: learning_rate, ...
    [evaluation]                         # data = [BEIR folders], split, top, limit
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from tamis.errors import InvalidInput

EMBEDDED = "embedded"
BM25 = "bm25"
OURS = ("output_dir", "seed", "data_seed", "resume_from_checkpoint")  # arguments of a trainer that a run sets itself
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DataOptions:
    """The table `[data]`: which rows there are, and how negatives are found where the data bring none.

    Attributes:
        train: BEIR-shaped folders (their train split) and `.jsonl` files, in the order in which they are read.
        limit: Rows of each entry of `train` at most, drawn with the recipe's seed; None is all.
        limits: The same for single entries, by folder or file name.
        negatives: Hard negatives for each query of a folder.
        negatives_from: Where they are looked for: "bm25", or a bi-encoder (a folder, a hub id or "embedded"), or both.
        negatives_top: They are drawn from this many of the best of each run.
        guard: A passage whose similarity to the query is above `guard` times that of the query's weakest positive may
            well be relevant, and is no negative.
        guard_model: The bi-encoder that says how similar; without one (None) there is no such guard.
        positives: Positives of a query that are used at most; each makes an example of its own.
        titles: For folders: besides the queries, this many titles of four words or more ask for their own passage.
        teacher: A reranker that scores every pair: a folder, a hub id or "embedded".
        teacher_mode: Its `mode` for `tamis.load`.
    """

    train: tuple[str, ...]
    limit: int | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    negatives: int = 7
    negatives_from: tuple[str, ...] = ("bm25",)
    negatives_top: int = 50
    guard: float = 0.95
    guard_model: str | None = None
    positives: int = 1
    titles: int = 0
    teacher: str | None = None
    teacher_mode: str | None = None

    def __post_init__(self) -> None:
        for name in ("train", "negatives_from"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if not self.train:
            raise InvalidInput("[data] train is empty; name a BEIR-shaped folder or a .jsonl file.")
        for name, least in (("negatives", 0), ("negatives_top", 1), ("positives", 1), ("titles", 0)):
            _whole(f"[data] {name}", getattr(self, name), least)
        if not isinstance(self.limits, Mapping):
            raise InvalidInput(f"[data] limits = {self.limits!r}; pass a table of names of train, {{ NAME = 100 }}.")
        limits = {"limit": self.limit, **{f"limits: {name}": value for name, value in self.limits.items()}}
        for name, value in limits.items():
            if value is not None:
                _whole(f"[data] {name}", value, 1)
        names = {name for path in map(Path, self.train) for name in (path.name, path.stem)}
        for name in self.limits:
            if name not in names:
                raise InvalidInput(f"[data] limits has {name!r}, which is none of train; there are {_listed(names)}.")
        if isinstance(self.guard, bool) or not isinstance(self.guard, int | float) or not self.guard > 0:
            raise InvalidInput(f"[data] guard = {self.guard!r}; pass a number above 0.")

    def limit_of(self, entry: Path) -> int | None:
        """Rows of one entry of `train` at most: its own limit, or that of all."""
        return self.limits.get(entry.name, self.limits.get(entry.stem, self.limit))

    def check_read(self, keys: Collection[str], by: str) -> None:
        """Raises InvalidInput if anything but these keys, which `by` reads, says something: it would be left out."""
        usual = DataOptions(self.train)
        others = [f.name for f in fields(self) if f.name not in keys]
        unread = [name for name in others if getattr(self, name) != getattr(usual, name)]
        if unread:
            raise InvalidInput(f"[data] {_listed(unread)}: {by} does not read that; it reads {_listed(keys)}.")


NO_TEACHER = tuple(f.name for f in fields(DataOptions) if not f.name.startswith("teacher"))
"""The keys of `[data]` for a recipe that has no use for a teacher's scores."""
LABELLED = ("contrastive", "triplet")
"""The losses, of all recipes that have several, that have no use for them either."""


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """The table `[evaluation]`: what the run is judged by, before and after.

    Attributes:
        data: BEIR-shaped folders.
        split: Which of their qrels.
        top: Passages of the first stage (BM25) that are reranked.
        limit: Queries of each folder at most; None is all.
    """

    data: tuple[str, ...]
    split: str = "dev"
    top: int = 100
    limit: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", (self.data,) if isinstance(self.data, str) else tuple(self.data))
        if not self.data:
            raise InvalidInput("[evaluation] data is empty; name BEIR-shaped folders, or leave the table out.")
        _whole("[evaluation] top", self.top, 1)
        if self.limit is not None:
            _whole("[evaluation] limit", self.limit, 1)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training run, as its TOML says it.

    Attributes:
        recipe: The name of the recipe, one of `tamis.training.RECIPES`.
        model: What it starts from: a folder, a hub id or "embedded".
        output: The folder of the result; checkpoints stand in `output/checkpoints` while it runs.
        data: Which rows it trains on.
        seed: Of everything that is drawn.
        options: The recipe's own options, checked against its `Options`.
        arguments: For the trainer's own TrainingArguments.
        evaluation: What it is judged by; None is nothing.
    """

    recipe: str
    model: str
    output: Path
    data: DataOptions
    seed: int = 42
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    evaluation: EvaluationOptions | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", Path(self.output).expanduser())
        for name in ("options", "arguments"):
            table = getattr(self, name)
            if not isinstance(table, Mapping):
                raise InvalidInput(f"{name} is {table!r}; it has to be a table.")
            object.__setattr__(self, name, MappingProxyType(dict(table)))
        _whole("seed", self.seed, 0)
        for name in OURS:
            if name in self.arguments:
                raise InvalidInput(f"[arguments] {name} is not for the trainer; the recipe's own output and seed are.")


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidInput(f"{name} = {value!r}; pass a whole number of at least {least}.")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def read_recipe(path: str | Path) -> Recipe:
    """A recipe from a TOML file. Relative folders in it are relative to where the program runs.

    Raises:
        InvalidInput: The file cannot be read, is not TOML, or has a key that no recipe has.
    """
    try:
        with Path(path).open("rb") as file:
            content = tomllib.load(file)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"The recipe {path} cannot be read: {error}.") from error
    tables: dict[str, Any] = {}
    if "data" in content:
        tables["data"] = from_table(DataOptions, content.pop("data"), f"{path}: [data]")
    if "evaluation" in content:
        tables["evaluation"] = from_table(EvaluationOptions, content.pop("evaluation"), f"{path}: [evaluation]")
    return from_table(Recipe, {**content, **tables}, str(path))


def from_table(kind: type[T], table: object, where: str) -> T:
    """A frozen dataclass from a table of its fields.

    Args:
        kind: The dataclass.
        table: Its fields by name.
        where: For messages.

    Raises:
        InvalidInput: A key that is no field (the nearest one is named), or a field without a default is missing.
    """
    if not isinstance(table, Mapping):
        raise InvalidInput(f"{where} is a {type(table).__name__}; it has to be a table.")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}."
            raise InvalidInput(f"{where} has no key {key!r}{hint}")
    missing = [
        name for name, f in known.items() if name not in table and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise InvalidInput(f"{where} lacks {', '.join(missing)}.")
    try:
        return kind(**table)
    except TypeError as error:
        raise InvalidInput(f"{where}: {error}.") from error
