"""Language models that rank by what they would say next: one or two rows of the vocabulary at the prompt's end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from tamis.checkpoint import Checkpoint
from tamis.errors import InvalidInput, UnknownFamily
from tamis.families import Family, claimed
from tamis.families.chat import is_logit_score, logit_score_ids, logit_score_prompt, yes_no_ids, zero_shot_prompt
from tamis.families.sequence_classification import look_at_activation
from tamis.families.wordings import BGE, CTXL, MXBAI, QWEN3, ZERANK, ZERO_SHOT_TURN
from tamis.options import LoadOptions
from tamis.prompts import Prompt
from tamis.scorers.base import Scorer
from tamis.scorers.prompted import Read, difference, only

if TYPE_CHECKING:
    from tamis.tokenizing import TextTokenizer

Wording: TypeAlias = "Prompt | Callable[[TextTokenizer, Checkpoint, LoadOptions], Prompt]"
Answers: TypeAlias = "Sequence[str | int] | Callable[[TextTokenizer, Checkpoint], Sequence[int]]"


def causal_lm(
    wording: Wording, answers: Answers, read: Read | None = None, *, length: int | None = None
) -> Callable[[Checkpoint, LoadOptions], Scorer]:
    """The `build` of a family of causal language models.

    Args:
        wording: The prompt; or what makes it from the tokenizer, the checkpoint and the options (its instruction
            among them).
        answers: What the model may say next, each one token, by its text or its id; or what finds their ids. Their
            logits are the values that `read` gets, in this order.
        read: From the answers' logits, (n, k) float64, to one logit each; by default the only one, or the first less
            the second.
        length: Tokens of a sequence that the published code allows, where the checkpoint itself reads more.
    """
    if not callable(answers):
        answers = tuple(answers)
    return partial(_build, wording, answers, read, length)


def _build(
    wording: Wording,
    answers: Answers,
    read: Read | None,
    length: int | None,
    checkpoint: Checkpoint,
    options: LoadOptions,
) -> Scorer:
    from tamis import transformer
    from tamis.prompts import BoundPrompt
    from tamis.scorers.prompted import PromptedScorer

    options.allow("causal-lm", "instruction")
    transformer.check_causal(checkpoint)

    def scorer(lease: Any) -> Scorer:
        loaded = lease.loaded
        made = wording if isinstance(wording, Prompt) else wording(loaded.tokenizer, checkpoint, options)
        return PromptedScorer(
            lease,
            model=checkpoint.name,
            mode="causal-lm",
            prompt=BoundPrompt(
                made,
                loaded.tokenizer,
                max_length=transformer.chosen_length(options, loaded.longest, checkpoint.name, length),
                policy=options.long_documents,
                instruction=options.instruction if made is wording else None,
            ),
            read=read or (only if loaded.width == 1 else difference),
        )

    lease = transformer.lease("causal-lm", checkpoint, options, partial(_load, answers), answers)
    return lease.hold(scorer)


def _load(answers: Answers, checkpoint: Checkpoint, options: LoadOptions, devices: Sequence[Any], dtype: Any) -> Any:
    from tamis import transformer
    from tamis.cache import ByteLRU
    from tamis.engine.causal import causal_runner
    from tamis.engine.loaded import Loaded

    config = transformer.read_config(checkpoint, options)
    tokenizer, tokenizer_length = transformer.load_tokenizer(checkpoint, options)
    longest = transformer.longest_of(checkpoint, config, tokenizer_length)
    architecture = transformer.architecture_of(config, options)
    ids = answers(tokenizer, checkpoint) if callable(answers) else one_token_each(answers, tokenizer, checkpoint.name)
    vocabulary = config.get_text_config().vocab_size
    if not all(0 <= row < vocabulary for row in ids):
        raise UnknownFamily(f"{checkpoint.name} has no rows {ids} in its vocabulary of {vocabulary}.")

    def runner(device: Any) -> Any:
        model, missing = transformer.load_model("AutoModelForCausalLM", checkpoint, config, options, dtype)
        transformer.check_missing(model, missing, checkpoint, options)
        return causal_runner(model.to(device), architecture, tokenizer.pad_id, longest, ids)

    engine = transformer.engine([runner(device) for device in devices], devices[0], checkpoint, options)
    return Loaded(engine, tokenizer, longest, len(ids), ByteLRU(0), transformer.facts(checkpoint, devices, dtype))


def one_token_each(answers: Sequence[str | int], tokenizer: TextTokenizer, name: str) -> list[int]:
    """The ids of answers.

    Raises:
        InvalidInput: An answer is not one token of this model.
    """
    ids = [answer if isinstance(answer, int) else tokenizer.id_of(answer) for answer in answers]
    for answer, found in zip(answers, ids, strict=True):
        if found is None:
            raise InvalidInput(
                f"The answer {answer!r} is not one token for {name}, so that its logit says nothing. The checkpoint "
                "belongs to another family, or its tokenizer was changed."
            )
    return [found for found in ids if found is not None]


def _logit_score(checkpoint: Checkpoint, options: LoadOptions) -> Scorer:
    look_at_activation(
        checkpoint,
        'If it is a copy of a published model, pass its family=, which has the scale too: "zerank" scores by the '
        "sigmoid of a fifth of the logit.",
    )
    return causal_lm(logit_score_prompt, logit_score_ids)(checkpoint, options)


def _hub(organisation: str, *names: str) -> frozenset[str]:
    return frozenset(f"{organisation}/{name}" for name in names)


def _with(ending: str, *names: str) -> tuple[str, ...]:
    return names + tuple(name + ending for name in names)


FAMILIES = (
    Family(
        "logit-score",
        "causal-lm",
        "any causal LM with sentence-transformers' 1_LogitScore/config.json and a chat template for query and document",
        "sigmoid of the logit, or of the difference of two",
        _logit_score,
        matches=is_logit_score,
        template="the checkpoint's chat template, roles query and document",
    ),
    Family(
        "bge-reranker-v2-gemma",
        "causal-lm",
        "bge-reranker-v2-gemma",
        "sigmoid of the logit of Yes",
        causal_lm(BGE, ["Yes"]),
        hub_ids=_hub("BAAI", "bge-reranker-v2-gemma"),
        template="A: {query} / B: {passage} / task",
    ),
    Family(
        "qwen3-reranker",
        "causal-lm",
        "Qwen3-Reranker-0.6B, -4B, -8B; instruction= says the task",
        "sigmoid of yes - no",
        causal_lm(QWEN3, ["yes", "no"], length=8192),
        hub_ids=_hub("Qwen", "Qwen3-Reranker-0.6B", "Qwen3-Reranker-4B", "Qwen3-Reranker-8B"),
        template="system task, <Instruct>, <Query>, <Document>, empty thoughts",
        window="8192",
    ),
    Family(
        "mxbai-rerank-v2",
        "causal-lm",
        "mxbai-rerank-base-v2, -large-v2; instruction= optional",
        "sigmoid of 1 - 0",
        causal_lm(MXBAI, ["1", "0"], length=8192),
        hub_ids=_hub("mixedbread-ai", "mxbai-rerank-base-v2", "mxbai-rerank-large-v2"),
        template="[instruction:] query: / document: / task",
        window="8192",
    ),
    Family(
        "zerank",
        "causal-lm",
        "zerank-1, zerank-1-small, zerank-2",
        "sigmoid of a fifth of the logit of Yes",
        causal_lm(ZERANK, ["Yes"], lambda rows: rows[:, 0] / 5.0),
        hub_ids=_hub("zeroentropy", *_with("-reranker", "zerank-1", "zerank-1-small", "zerank-2")),
        template="query as the system's turn, passage as the user's",
    ),
    Family(
        "ctxl-rerank-v2",
        "causal-lm",
        "ctxl-rerank-v2-instruct-multilingual-1b, -2b, -6b; instruction= optional",
        "sigmoid of the logit of the vocabulary's row 0",
        causal_lm(CTXL, [0], length=8192),
        hub_ids=_hub("ContextualAI", *(f"ctxl-rerank-v2-instruct-multilingual-{size}" for size in ("1b", "2b", "6b"))),
        template="<Document> {passage} <Query> {query} ??",
        window="8192",
    ),
    Family(
        "zero-shot",
        "causal-lm",
        'any chat model, only with mode="causal-lm"; instruction= is the task. One that was not tuned ranks badly',
        "sigmoid of yes - no",
        causal_lm(zero_shot_prompt, yes_no_ids),
        matches=lambda checkpoint: (
            checkpoint.gguf is not None or (checkpoint.architecture.endswith("ForCausalLM") and not claimed(checkpoint))
        ),
        fallback=True,
        template=f"the checkpoint's chat template around a task and {ZERO_SHOT_TURN.splitlines()[0]!r} ...",
    ),
)
