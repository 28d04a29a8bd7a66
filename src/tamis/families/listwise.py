"""jina-reranker-v3: a Qwen3 that reads query and passages in one prompt, and a projector over marked tokens.

Its checkpoints bring code of their own, which is not run: the body is transformers' Qwen3, and the projector two
matrices beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tamis.checkpoint import Checkpoint
from tamis.errors import CorruptCheckpoint, UnknownFamily, UntrainedHead
from tamis.families import Family
from tamis.families.wordings import JINA_PASSAGE_MARK, JINA_QUERY_MARK, jina_reranker_v3
from tamis.options import LoadOptions
from tamis.scorers.base import Scorer

if TYPE_CHECKING:
    from tamis.tokenizing import TextTokenizer

LENGTH = 131072  # tokens of a block
MARKS = (JINA_PASSAGE_MARK, JINA_QUERY_MARK)
_PROJECTOR = ("projector.0.weight", "projector.2.weight")


def listwise(query: int, passage: int, block: int) -> Callable[[Checkpoint, LoadOptions], Scorer]:
    """The `build` of jina-reranker-v3 and its kin.

    Args:
        query: Tokens of a query that are read.
        passage: Tokens of a passage that are read.
        block: Passages in one prompt.
    """
    return partial(_build, query, passage, block)


def _build(query: int, passage: int, block: int, checkpoint: Checkpoint, options: LoadOptions) -> Scorer:
    from tamis import transformer
    from tamis.scorers.listwise import Limits, ListwiseScorer

    options.allow("causal-lm", "instruction")
    if checkpoint.model_type != "qwen3":
        raise UnknownFamily(
            f"{checkpoint.name} holds {checkpoint.architecture or 'no architecture'}; jina-reranker-v3 is a Qwen3 "
            "with a projector (JinaForRanking)."
        )
    return transformer.lease("listwise", checkpoint, options, _load).hold(
        lambda lease: ListwiseScorer(
            lease,
            model=checkpoint.name,
            render=jina_reranker_v3,
            marks=MARKS,
            limits=Limits(query, passage, block),
            max_length=transformer.chosen_length(options, lease.loaded.longest, checkpoint.name, LENGTH),
            exact=options.max_length is not None,
            policy=options.long_documents,
            instruction=options.instruction,
        ),
    )


def _load(checkpoint: Checkpoint, options: LoadOptions, devices: Sequence[Any], dtype: Any) -> Any:
    from tamis import transformer
    from tamis.cache import ByteLRU
    from tamis.engine.listwise import listwise_runner
    from tamis.engine.loaded import Loaded

    config = transformer.read_config(checkpoint, options)
    tokenizer, tokenizer_length = transformer.load_tokenizer(checkpoint, options)
    longest = transformer.longest_of(checkpoint, config, tokenizer_length)
    architecture = transformer.architecture_of(config, options)
    marks = _marks(tokenizer, checkpoint, config.vocab_size)
    weights = projector_weights(checkpoint, config.hidden_size)

    def runner(device: Any) -> Any:
        model, missing = transformer.load_model("AutoModel", checkpoint, config, options, dtype)
        if missing:
            raise CorruptCheckpoint(
                f"{checkpoint.name} lacks {len(missing)} weights ({min(missing)}, ...): it was saved incompletely."
            )
        return listwise_runner(model.to(device), architecture, tokenizer.pad_id, longest, weights, marks)

    engine = transformer.engine([runner(device) for device in devices], devices[0], checkpoint, options)
    width = len(weights[-1])
    return Loaded(engine, tokenizer, longest, width, ByteLRU(0), transformer.facts(checkpoint, devices, dtype))


def _marks(tokenizer: TextTokenizer, checkpoint: Checkpoint, vocabulary: int) -> list[int]:
    """The ids of the tokens at which vectors are read.

    Raises:
        UnknownFamily: The tokenizer lacks one.
    """
    ids = [tokenizer.entry(mark) for mark in MARKS]
    found = [row for row in ids if row is not None and row < vocabulary]
    if len(found) < len(MARKS):
        raise UnknownFamily(
            f"The tokenizer of {checkpoint.name} lacks {' or '.join(MARKS)}, at which jina-reranker-v3's vectors are "
            "read. Fetch the tokenizer's files again, or leave family= out."
        )
    return found


def projector_weights(checkpoint: Checkpoint, hidden_size: int) -> list[Any]:
    """The projector's two matrices, (m, d) and (k, m), as stored.

    Raises:
        UntrainedHead: The checkpoint has none.
        CorruptCheckpoint: Their sizes do not fit, or a file is damaged.
    """
    from safetensors import safe_open

    checkpoint.check_weights()
    found: dict[str, Any] = {}
    for path in sorted(checkpoint.body.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {key: file.get_tensor(key) for key in file.keys() if key in _PROJECTOR}  # noqa: SIM118
    if len(found) < len(_PROJECTOR):
        raise UntrainedHead(
            f"{checkpoint.name} has no projector ({', '.join(_PROJECTOR)}), without which its vectors mean nothing. "
            "transformers drops it when it saves the body alone; convert the original files as a whole."
        )
    first, second = (found[key] for key in _PROJECTOR)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != hidden_size or second.shape[1] != first.shape[0]:
        raise CorruptCheckpoint(
            f"The projector of {checkpoint.name} is {tuple(first.shape)} and {tuple(second.shape)}, which does not fit "
            f"a model of {hidden_size} dimensions. Fetch the model again."
        )
    return [first, second]


def _is_jina(checkpoint: Checkpoint) -> bool:
    return checkpoint.architecture == "JinaForRanking" and checkpoint.model_type == "qwen3"


def _jina(name: str, query: int, passage: int, **own: Any) -> Family:
    return Family(
        name,
        "causal-lm",
        f"{name}: listwise, so that a score depends on its neighbours and their order; instruction= optional",
        "(1 + cos) / 2",
        listwise(query, passage, block=125),
        template="query, all passages, and the query again, in one prompt",
        window=f"{LENGTH} for up to 125 passages of {passage} and a query of {query}; a longer list is split",
        **own,
    )


FAMILIES = (
    _jina(
        "jina-reranker-v3.5",
        1024,
        8192,
        matches=lambda checkpoint: _is_jina(checkpoint) and bool(checkpoint.config.get("use_sliding_window")),
        hub_ids=frozenset({"jinaai/jina-reranker-v3.5"}),
    ),
    _jina("jina-reranker-v3", 512, 2048, matches=_is_jina, hub_ids=frozenset({"jinaai/jina-reranker-v3"})),
)
