"""The actors of a bulk job: how many, and what each may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tamis.errors import InvalidInput, MissingExtra

if TYPE_CHECKING:
    from ray.data import Dataset


@dataclass(frozen=True, slots=True)
class Pool:
    """Actors of Ray Data, each with a reranker of its own.

    Attributes:
        actors: How many; (least, most) for a pool that grows with the work; None for one up to what the cluster has
            room for.
        num_cpus: Of each. Ray has as many threads compute in it; one, without a GPU, if None.
        num_gpus: Of each; 0.5 puts two on a GPU.
        runtime_env: Ray's own: environment variables and packages of the actors.
        progress: Ray's progress bars.
    """

    actors: int | tuple[int, int] | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    runtime_env: Mapping[str, Any] | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        ends = (self.actors or 1,) * 2 if not isinstance(self.actors, tuple) else self.actors
        if self.actors == 0 or len(ends) != 2 or not all(map(_counts, ends)) or ends[0] > ends[1]:
            raise InvalidInput(f"actors={self.actors!r}; pass an int of at least 1, or (least, most).")
        for name in ("num_cpus", "num_gpus"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
            if value is not None and not number:
                raise InvalidInput(f"{name}={value!r}; pass a number of at least 0.")

    def map(self, ds: Dataset, actor: type, arguments: tuple[Any, ...], batch_size: int) -> Dataset:
        """`ds.map_batches` over the pool; batches are Arrow tables."""
        from ray.data import ActorPoolStrategy

        if isinstance(self.actors, int):
            compute = ActorPoolStrategy(size=self.actors)
        else:
            least, most = self.actors or (1, None)
            compute = ActorPoolStrategy(min_size=least, max_size=most)
        ds.context.enable_progress_bars = self.progress
        return ds.map_batches(
            actor,
            batch_size=batch_size,
            batch_format="pyarrow",
            compute=compute,
            fn_constructor_args=arguments,
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
            runtime_env=None if self.runtime_env is None else dict(self.runtime_env),
        )


def _counts(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_batch_size(value: object) -> None:
    """Raises InvalidInput for what is no number of rows."""
    if not _counts(value):
        raise InvalidInput(f"batch_size={value!r}; pass an int of at least 1.")


def need_ray() -> ModuleType:
    """Ray, with its Data library imported.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import ray.data
    except ImportError as error:
        raise MissingExtra('Bulk scoring needs Ray Data: pip install "tamis-ray[data]".') from error
    return ray
