"""Ray Serve: one deployment owns the model, and its replicas answer HTTP.

A replica is one process with one engine. What is under way in it at once shares batches there, so that Serve batches
nothing; it only spreads requests over replicas, starts others when there is more to do, and replaces those that die.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from tamis.errors import InvalidInput, MissingExtra
from tamis_ray.web.key import VARIABLE, read_key
from tamis_ray.web.limits import Limits
from tamis_ray.web.service import Source

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

NAME = "tamis"
DRAIN = 30.0  # seconds


class Replica:
    """What Serve asks about a replica, besides its answers."""

    app: FastAPI  # Serve's own attribute

    async def check_health(self) -> None:
        """Raises where only a new process helps; Serve then starts one.

        Raises:
            RuntimeError: The device was lost.
        """
        if self.app.state.service.lost:
            raise RuntimeError("The device was lost.")


def build_app(
    model: str | None = None,
    *,
    rankrag: bool = False,
    names: Sequence[str] = (),
    limits: Limits | None = None,
    replicas: int = 1,
    autoscale: tuple[int, int] | None = None,
    cpus: float = 1.0,
    gpus: float = 0.0,
    api_key_file: str | None = None,
    drain: float = DRAIN,
    **load_options: Any,
) -> Application:
    """A Serve application over a model; `ray.serve.run` starts it.

    Args:
        model: As in `tamis.load` or `tamis.load_rankrag`; every machine that runs a replica must find it.
        rankrag: Load it as a RankRAG model, which answers at /v1/rankrag/answer, too.
        names: What requests may call it under `model`; its own name if empty.
        limits: What a request may cost.
        replicas: How many processes have the model.
        autoscale: Fewest and most of them, instead; by how many requests are under way.
        cpus: Of a replica. Ray gives torch as many threads, rounded up.
        gpus: Of a replica. With 0.5 two share one.
        api_key_file: A file with the key that callers must show, on every machine. Without it the environment's
            TAMIS_SERVE_KEY; if this process has one, every replica must have one.
        drain: Seconds that a replica which is stopped has for what is under way.
        load_options: The other arguments of `tamis.load` or `tamis.load_rankrag`.

    Raises:
        InvalidInput: An argument is wrong.
        MissingExtra: Ray Serve is not installed.
    """
    serve = _serve()
    limits = limits or Limits()
    source = Source(model, rankrag, tuple(names), dict(load_options))
    keyed = read_key(api_key_file) is not None if api_key_file else bool(os.environ.get(VARIABLE, "").strip())

    def make() -> FastAPI:  # in the replica
        from tamis_ray.web.app import create_app

        _log_where_serve_does()
        key = read_key(api_key_file, required=keyed)
        return create_app(source.load(), limits=limits, key=key, closes=True)

    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": cpus, "num_gpus": gpus},
        # The replica's own limit, with room above it: what is too much is refused there, and probes get through.
        "max_ongoing_requests": 2 * limits.requests + 16,
        "max_queued_requests": 2 * limits.requests,
        "graceful_shutdown_timeout_s": drain,
        "graceful_shutdown_wait_loop_s": 0.5,
        "logging_config": {"enable_access_log": False},  # it has paths, which callers choose; the guard logs routes
        **_scaled(replicas, autoscale, limits),
    }
    if "backpressure_config" in inspect.signature(serve.deployment).parameters:  # older Ray answers 503
        options["backpressure_config"] = {"status_code": 429, "retry_after_s": 1}
    bound: Application = serve.deployment(serve.ingress(make)(Replica), name=NAME, **options).bind()
    return bound


def app(args: Mapping[str, Any]) -> Application:
    """As `build_app`, from flat arguments: what `serve run tamis_ray.serve:app` and Serve's config files take.

    Args:
        args: Those of `build_app`; limits by their own names (`passages`, `timeout`, ...); `autoscale` as "1:4" or a
            pair; numbers may be strings, as `serve run` has them.

    Raises:
        InvalidInput: An argument is wrong.
    """
    given = {name: _read(value) for name, value in args.items()}
    limits = Limits(**{field.name: given.pop(field.name) for field in fields(Limits) if field.name in given})
    if isinstance(pair := given.get("autoscale"), str):
        given["autoscale"] = tuple(_read(part) for part in pair.split(":"))
    if isinstance(names := given.get("names"), str):
        given["names"] = names.split(",")
    return build_app(limits=limits, **given)


def _log_where_serve_does() -> None:
    serves, ours = logging.getLogger("ray.serve"), logging.getLogger("tamis_ray.serve")
    ours.setLevel(serves.getEffectiveLevel())
    ours.handlers[:] = serves.handlers


def _serve() -> Any:
    try:
        from ray import serve
    except ImportError as error:
        raise MissingExtra('A server needs Ray Serve: pip install "ray[serve]".') from error
    return serve


def _scaled(replicas: int, autoscale: Sequence[int] | None, limits: Limits) -> dict[str, Any]:
    if autoscale is None:
        if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 1:
            raise InvalidInput(f"replicas={replicas!r}; pass an int of at least 1.")
        return {"num_replicas": replicas}
    pair = list(autoscale)
    if len(pair) != 2 or not all(type(count) is int for count in pair) or not 0 <= pair[0] <= pair[1] or pair[1] < 1:
        raise InvalidInput(f"autoscale={autoscale!r}; pass the fewest and the most replicas, (1, 4).")
    target = max(1.0, limits.requests / 8)
    return {"autoscaling_config": {"min_replicas": pair[0], "max_replicas": pair[1], "target_ongoing_requests": target}}


def _read(value: Any) -> Any:
    """The number or truth value that a string says, as command lines have them."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for number in (int, float):
        try:
            return number(value)
        except ValueError:
            pass
    return value
