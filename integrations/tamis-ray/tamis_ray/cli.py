"""The command `tamis-serve`: a server of one model, on this machine or on a Ray cluster.

Exit codes are those of `tamis`: 0, ended; 2, something is wrong with what was asked for; 130, interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import threading
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from tamis.cli.model_options import EMBEDDED, OPTIONS, add_model_options
from tamis.cli.output import say
from tamis.errors import InvalidInput, LoadError, TamisError
from tamis_ray.serve import DRAIN, NAME, build_app
from tamis_ray.web.key import VARIABLE
from tamis_ray.web.limits import Limits

FOR_RANKRAG = ("adapter", "style", "num_layers", "dtype", "device", "max_length", "long_documents", "server_model")
HELP = {
    "passages": "passages of a request",
    "characters": "characters of a text",
    "body_bytes": "bytes of a body",
    "header_bytes": "bytes of a request's headers",
    "requests": "requests under way in a replica; more are refused with 429",
    "new_tokens": "RankRAG: tokens of an answer",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server until it is told to end.

    Args:
        argv: The arguments after the program's name; those of the process if None.

    Returns:
        The exit code.
    """
    arguments = _parser().parse_args(argv)
    try:
        _serve(arguments)
    except TamisError as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def application(arguments: argparse.Namespace, cores: float | None = None) -> Any:
    """The Serve application that the arguments describe.

    Args:
        arguments: As parsed.
        cores: That are free on a machine of its own: without `--cpus` and `--gpus` the replicas share them.

    Raises:
        InvalidInput: They do not fit together.
    """
    model = None if arguments.model in (None, EMBEDDED) else arguments.model
    names = FOR_RANKRAG if arguments.rankrag else OPTIONS
    options = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    limits = Limits(**{field.name: getattr(arguments, f"max_{field.name}") for field in fields(Limits)
                       if hasattr(arguments, f"max_{field.name}")},
                    timeout=arguments.timeout, read_timeout=arguments.read_timeout)  # fmt: skip
    return build_app(
        model,
        rankrag=arguments.rankrag,
        names=arguments.name or (),
        limits=limits,
        replicas=arguments.replicas,
        autoscale=arguments.autoscale,
        cpus=_cpus(arguments, cores),
        gpus=arguments.gpus,
        api_key_file=arguments.api_key_file,
        drain=arguments.drain,
        **_own(arguments),
        **options,
    )


def _cpus(arguments: argparse.Namespace, cores: float | None) -> float:
    if arguments.cpus is not None or not cores or arguments.gpus:
        return 1.0 if arguments.cpus is None else float(arguments.cpus)
    each = cores / (arguments.autoscale[1] if arguments.autoscale else arguments.replicas)
    return float(int(each)) or each


def _own(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.server is not None and not arguments.rankrag:
        raise InvalidInput("--server runs a RankRAG model; pass --rankrag, or a URL as MODEL with --mode remote.")
    names, others = (FOR_RANKRAG, OPTIONS) if arguments.rankrag else (OPTIONS, FOR_RANKRAG)
    wrong = [name for name in others if name not in names and getattr(arguments, name) is not None]
    if wrong:
        says = "means nothing with --rankrag; leave it out" if arguments.rankrag else "is for RankRAG; pass --rankrag"
        raise InvalidInput(f"--{wrong[0].replace('_', '-')} {says}.")
    return {} if arguments.server is None else {"server": arguments.server}


def _serve(arguments: argparse.Namespace) -> None:
    application(arguments)  # what does not fit together is told before Ray starts
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    import ray
    from ray import serve

    ray.init(address=arguments.address, include_dashboard=False if arguments.address is None else None,
             log_to_driver=arguments.verbose)  # fmt: skip
    app = application(arguments, _free_cores(arguments))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray's own, which would end the process where it stands
        signal.signal(number, lambda *_: stop.set())
    try:
        quiet = {"enable_access_log": False}  # paths are the callers' text; a replica logs the routes' names
        serve.start(http_options={"host": arguments.host, "port": arguments.port}, logging_config=quiet)
        try:
            serve.run(app, name=NAME, route_prefix="/", logging_config=quiet)
        except RuntimeError as error:  # Serve's own says only that it failed
            raise LoadError(f"No replica could start: {why(NAME) or error}") from error
        say(f"serving at http://{arguments.host}:{arguments.port}")
        if arguments.host not in ("127.0.0.1", "localhost", "::1") and not _keyed(arguments):
            say(f"whoever reaches {arguments.host}:{arguments.port} may use it: there is no key. Set {VARIABLE}.")
        stop.wait()
        say("ending; what is under way is answered first")
    finally:
        serve.delete(NAME)  # drains; `shutdown` alone would end the proxies, too
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _free_cores(arguments: argparse.Namespace) -> float | None:
    """Of this machine, if Ray runs on no other; a cluster's are for others, too, and no replica spans machines."""
    import ray

    if arguments.address is not None or "RAY_ADDRESS" in os.environ or len(ray.nodes()) != 1:  # type: ignore[no-untyped-call]
        return None
    return float(ray.available_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]


def why(name: str) -> str:
    """What the replicas of an application said when they could not start: the error's text, without its traceback."""
    from ray import serve

    app = serve.status().applications.get(name)
    told = [] if app is None else [deployed.message.strip() for deployed in app.deployments.values()]
    message = next(filter(None, told), "")
    ours = re.search(r"^tamis\.errors\.\w+: (.+)", message, re.MULTILINE | re.DOTALL)
    return ours[1] if ours else message.rpartition("\n")[2]


def _keyed(arguments: argparse.Namespace) -> bool:
    return arguments.api_key_file is not None or bool(os.environ.get(VARIABLE, "").strip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tamis-serve",
        allow_abbrev=False,  # --api-key, by habit, would be taken for --api-key-file
        description="Serve a reranker over HTTP, in the shapes of Cohere, Jina, vLLM, TEI and NVIDIA NIM. A key that "
        f"callers must show is read from {VARIABLE} or a file, never from the command line.",
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="a folder or hub id (default: the embedded model)")
    add("--name", action="append", metavar="N", help="what requests may call it; may be repeated")
    add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine only)")
    add("--port", type=int, default=8000, help="(default: 8000)")
    add("--api-key-file", metavar="FILE", help="a file with the key that callers must show, on every machine")
    _add_rankrag(parser.add_argument_group("RankRAG").add_argument)
    _add_replicas(parser.add_argument_group("replicas").add_argument)
    _add_limits(parser.add_argument_group("limits").add_argument)
    add_model_options(parser.add_argument_group("model"))
    return parser


def _add_rankrag(add: Any) -> None:
    add("--rankrag", action="store_true", help="load it as a RankRAG model, which answers, too")
    add("--adapter", metavar="A", help="a LoRA adapter for it")
    add("--style", choices=("auto", "chat", "plain"), help="default: auto")
    add("--server", metavar="URL", help="an inference server that runs its weights; see docs/remote.md")


def _add_replicas(add: Any) -> None:
    add("--replicas", type=int, default=1, metavar="N", help="processes that have the model (default: 1)")
    add("--autoscale", type=_pair, metavar="MIN:MAX", help="fewest and most of them, instead")
    shared = "default: this machine's, shared; 1 with a GPU or on a cluster"
    add("--cpus", type=float, metavar="C", help=f"CPU cores of each, torch's threads ({shared})")
    add("--gpus", type=float, default=0.0, metavar="F", help="GPUs of each; with 0.5 two share one (default: 0)")
    add("--drain", type=float, default=DRAIN, metavar="S", help=f"seconds to finish at the end (default: {DRAIN:g})")
    add("--address", metavar="A", help='a Ray cluster: "auto", ray://...; RAY_ADDRESS if set; else one is started')
    add("--verbose", action="store_true", help="show the replicas' logs here")


def _add_limits(add: Any) -> None:
    defaults = Limits()
    for name, text in HELP.items():
        default = getattr(defaults, name)
        flag = f"--max-{name.replace('_', '-')}"
        add(flag, type=int, default=default, metavar="N", help=f"{text} (default: {default})")
    add("--timeout", type=float, default=defaults.timeout, metavar="S",
        help=f"seconds until a request is answered with 504 (default: {defaults.timeout:g})")  # fmt: skip
    add("--read-timeout", type=float, default=defaults.read_timeout, metavar="S",
        help=f"seconds in which a body must have come (default: {defaults.read_timeout:g})")  # fmt: skip


def _pair(text: str) -> tuple[int, int]:
    least, _, most = text.partition(":")
    if not (least.isdecimal() and most.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN:MAX, such as 1:4")
    return int(least), int(most)
