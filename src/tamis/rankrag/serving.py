"""`load_rankrag(server=...)`: the tokenizer and the prompts are here, the weights behind `/v1/completions`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tamis.checkpoint import Checkpoint
from tamis.errors import InvalidInput, RemoteError
from tamis.options import LoadOptions
from tamis.rankrag.labels import PROBES, forms_of, wording_of
from tamis.rankrag.options import RankRAGOptions
from tamis.rankrag.prompts import Tokenised
from tamis.remote.address import Address, parse
from tamis.remote.batches import wants_less
from tamis.remote.completions import TOP, Completions, Label
from tamis.remote.connecting import DEADLINE, asked, server_at
from tamis.remote.detecting import model_of
from tamis.remote.served import PROMPTS, ServerLease
from tamis.remote.server import Server

if TYPE_CHECKING:
    from tamis.rankrag.rag import RankRAG

ALLOWED = (
    "mode", "max_length", "long_documents", "revision", "trust_remote_code", "api_key", "server_model",
    "request_passages", "connections", "deadline", "retries", "verify", "allow_http",
)  # fmt: skip
HERE = ("adapter", "passage_bytes", "host_bytes", "passage_dir", "disk_bytes")  # of RankRAGOptions: the server's affair


def serve(model: Any, url: str, options: LoadOptions, more: RankRAGOptions) -> RankRAG:
    """A `RankRAG` whose model a server runs.

    Raises:
        InvalidInput: An argument is wrong, or means nothing here.
        RemoteError: The server failed, gives no log-probabilities, or has another model.
        LoadError: The checkpoint has no tokenizer.
    """
    from tamis import transformer
    from tamis.rankrag.rag import RankRAG
    from tamis.scorers.rankrag import RankRAGScorer

    options.allow("remote", *ALLOWED)
    for name in HERE:
        if getattr(more, name) != getattr(RankRAGOptions(), name):
            raise InvalidInput(f"{name}= means nothing where a server runs the model; leave it out.")
    if model is None:
        raise InvalidInput("Pass model=, the checkpoint that the server runs: its tokenizer is needed here.")
    checkpoint = Checkpoint.find(model, options.revision, weights=False)
    tokenizer, length = transformer.load_tokenizer(checkpoint, options)
    config = transformer.read_config(checkpoint, options)
    prompts = Tokenised(wording_of(more, tokenizer, checkpoint.name), tokenizer)
    forms = forms_of(prompts, tokenizer, checkpoint.name)
    server = server_at(_door(parse(url)), None, options)
    completions, longest, form = asked(server, options, lambda end: _meet(server, options, prompts, forms, end))
    known = min(transformer.longest_of(checkpoint, config, length), longest or length)
    lease = ServerLease(
        completions,
        tokenizer,
        _labels(tokenizer, form),
        ("server", server.address.shown, completions.model, checkpoint.name, repr(prompts.wording)),
        prompts=options.request_passages or PROMPTS,
        patience=options.deadline or DEADLINE,
    )
    scorer = RankRAGScorer(
        cast(Any, lease),  # it has a lease's shape, and no engine behind it
        model=completions.model,
        prompts=prompts,
        task=more.task,
        max_length=transformer.chosen_length(options, known, checkpoint.name),
        relevance=more.relevance,
        long_documents=options.long_documents,
    )
    join: Any = "".join
    return RankRAG(scorer, join, cast(Any, ("",)))  # texts come in pieces of text; the empty one is the end


async def _meet(
    server: Server, options: LoadOptions, prompts: Tokenised, forms: list[tuple[int, int]], end: float
) -> tuple[Completions, int | None, tuple[int, int]]:
    """The server's model, the tokens it takes, and the form of the labels in which it answers.

    Raises:
        RemoteError: It answers in neither, so that it is another model, or one that cannot rank.
    """
    name, longest = await model_of(server, options.server_model, end)
    task = next(iter(prompts.wording.tasks))
    probes = [
        np.concatenate([prompts.system, prompts.ranked([passage])[0], prompts.asking(question, task, ())]).tolist()
        for question, passage in PROBES
    ]
    completions = Completions(server, name)
    tops = []
    for probe in probes:  # one at a time, which every server takes
        try:
            tops += await completions.first_tokens([probe], end)
        except RemoteError as error:
            if completions.top == TOP[-1] or not (wants_less(error) or "logprob" in error.detail.lower()):
                raise
            completions = Completions(server, name, TOP[-1])
            tops += await completions.first_tokens([probe], end)
    masses = []
    for form in forms:
        found = [label.found(top) for top in tops for label in _labels(prompts.tokenizer, form)]
        masses.append(sum(float(np.exp(one)) for one in found if one is not None))
    if not max(masses):
        wording = prompts.wording
        raise RemoteError(
            f"{server.address.shown}: after a ranking prompt, {name} has neither {wording.true!r} nor "
            f"{wording.false!r} among its {completions.top} likeliest tokens. It is another model than model= names, "
            "or was never tuned to rank; pass wording= with the labels that it knows."
        )
    return completions, longest, forms[int(np.argmax(masses))]


def _labels(tokenizer: Any, form: tuple[int, int]) -> tuple[Label, Label]:
    true, false = (Label(token, _texts(tokenizer, token)) for token in form)
    return true, false


def _texts(tokenizer: Any, token: int) -> tuple[str, ...]:
    """How servers that tell no ids may write a token: sentencepiece's decoders drop a leading space, some keep it."""
    text = tokenizer.decode([token])
    return tuple(dict.fromkeys((text, " " + text.lstrip(), text.lstrip())))


def _door(address: Address) -> Address:
    """The address of `/v1/completions`, from that, from an OpenAI client's base URL, or from the server's own."""
    path = address.path.removesuffix("/completions").removesuffix("/v1")
    return replace(address, path=f"{path}/v1/completions")
