"""monoT5: an encoder reads query and passage, a decoder says in one token whether they match (Nogueira et al. 2020).

The published code cuts the whole prompt at 512 tokens, and an over-long passage takes ` Relevant:` with it, which the
model was always asked with; here only the passage gives way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tamis.checkpoint import Checkpoint
from tamis.errors import CorruptCheckpoint, InvalidInput, UnknownFamily
from tamis.families import Family
from tamis.families.wordings import MONOT5
from tamis.options import LoadOptions
from tamis.scorers.base import Scorer

if TYPE_CHECKING:
    from tamis.tokenizing import TextTokenizer

LENGTH = 512  # tokens, in training and in all published code

TRUE_FALSE = ("▁true", "▁false")
YES_NO = ("▁yes", "▁no")

_PTT5 = ("10k-v1", "10k-v2", "100k-v1", "100k-v2")  # steps of fine-tuning
_ANSWERS: dict[tuple[str, str], Sequence[str]] = {  # pieces of the vocabulary (relevant, not relevant): the models
    TRUE_FALSE: (
        *(f"castorini/monot5-{name}-msmarco" for name in ("base", "large", "3b", "base-med", "3b-med")),
        *(f"castorini/monot5-{size}-msmarco-10k" for size in ("small", "base", "large", "3b")),
        "castorini/monot5-small-msmarco-100k",
        *(f"unicamp-dl/InRanker-{size}" for size in ("small", "base", "3B")),
    ),
    YES_NO: (
        "unicamp-dl/mt5-base-en-msmarco",
        *(f"unicamp-dl/mt5-base-{data}-v{n}" for data in ("en-pt-msmarco", "mmarco") for n in (1, 2)),
    ),
    ("▁sim", "▁não"): (
        *(f"unicamp-dl/ptt5-base-pt-msmarco-{steps}" for steps in _PTT5),
        *(f"unicamp-dl/ptt5-base-en-pt-msmarco-{steps}" for steps in ("10k-v1", "100k-v2")),
    ),
    ("▁Sim", "▁Não"): tuple(f"unicamp-dl/monoptt5-{size}" for size in ("small", "base", "large", "3b")),
    ("▁true", "▁"): ("unicamp-dl/mt5-3B-mmarco-en-pt",),
}
_DISPUTED = "unicamp-dl/mt5-13b-mmarco-100k"  # pygaggle reads ▁false and ▁true, rerankers ▁ and ▁true
_PIECES = {model: pieces for pieces, models in _ANSWERS.items() for model in models}
_BY_TYPE = {"t5": TRUE_FALSE, "mt5": YES_NO}  # of a folder, whose name says nothing


def build(checkpoint: Checkpoint, options: LoadOptions) -> Scorer:
    """Loads a T5 or mT5 that was trained to say whether a passage is relevant.

    transformers keeps T5's widest layers in float32 where dtype is float16, without which it overflows; where it
    overflows all the same, `InvalidScore` says so.

    Raises:
        UnknownFamily: It is no T5, or its vocabulary lacks the words that it would answer with.
        InvalidInput: `num_layers` is set: an encoder and a decoder cannot be cut as one.
    """
    from tamis import transformer
    from tamis.prompts import BoundPrompt
    from tamis.scorers.prompted import PromptedScorer, difference

    options.allow("causal-lm")
    if options.num_layers is not None:
        raise InvalidInput(f"{checkpoint.name} has an encoder and a decoder; num_layers= cannot cut it. Leave it out.")
    if checkpoint.model_type not in _BY_TYPE or not checkpoint.architecture.endswith(
        ("ForConditionalGeneration", "WithLMHeadModel")
    ):
        raise UnknownFamily(
            f"{checkpoint.name} holds {checkpoint.architecture or 'no architecture'}; monot5 is a T5 or mT5 with its "
            "decoder and its vocabulary's head (T5ForConditionalGeneration)."
        )
    return transformer.lease("seq2seq", checkpoint, options, _load, pieces_of(checkpoint)).hold(
        lambda lease: PromptedScorer(
            lease,
            model=checkpoint.name,
            mode="causal-lm",
            prompt=BoundPrompt(
                MONOT5,
                lease.loaded.tokenizer,
                max_length=transformer.chosen_length(options, lease.loaded.longest, checkpoint.name, LENGTH),
                policy=options.long_documents,
            ),
            read=difference,
        ),
    )


def _load(checkpoint: Checkpoint, options: LoadOptions, devices: Sequence[Any], dtype: Any) -> Any:
    from tamis import transformer
    from tamis.cache import ByteLRU
    from tamis.engine.loaded import Loaded
    from tamis.engine.seq2seq import seq2seq_runner

    config = transformer.read_config(checkpoint, options)
    tokenizer, tokenizer_length = transformer.load_tokenizer(checkpoint, options)
    longest = transformer.longest_of(checkpoint, config, tokenizer_length)
    rows = answers(tokenizer, checkpoint, config.vocab_size)

    def runner(device: Any) -> Any:
        model, missing = transformer.load_model("AutoModelForSeq2SeqLM", checkpoint, config, options, dtype)
        if missing:
            raise CorruptCheckpoint(
                f"{checkpoint.name} lacks {len(missing)} weights ({min(missing)}, ...): it was saved incompletely."
            )
        pack = options.attention == "auto"
        return seq2seq_runner(model.to(device), _first_token(model), longest, rows, pack=pack)

    engine = transformer.engine([runner(device) for device in devices], devices[0], checkpoint, options)
    return Loaded(engine, tokenizer, longest, len(rows), ByteLRU(0), transformer.facts(checkpoint, devices, dtype))


def pieces_of(checkpoint: Checkpoint) -> tuple[str, str]:
    """The two answers as the vocabulary spells them, the relevant one first.

    Raises:
        UnknownFamily: Nobody knows which they are.
    """
    if checkpoint.name == _DISPUTED:
        raise UnknownFamily(
            f"The published sources disagree on the words that {checkpoint.name} answers with, and the wrong ones "
            "rank at random. Register a family with the right ones; see tamis.register."
        )
    return _PIECES.get(checkpoint.name, _BY_TYPE[checkpoint.model_type])


def answers(tokenizer: TextTokenizer, checkpoint: Checkpoint, vocabulary: int) -> list[int]:
    """The ids of the two answers, the relevant one first: pieces of the vocabulary, not texts to tokenise.

    Raises:
        UnknownFamily: The vocabulary lacks one, or `pieces_of` knows none.
    """
    pieces = pieces_of(checkpoint)
    ids = [tokenizer.entry(piece) for piece in pieces]
    found = [row for row in ids if row is not None and row < vocabulary]
    if len(found) < len(pieces):
        raise UnknownFamily(
            f"The vocabulary of {checkpoint.name} lacks {pieces[0]!r} or {pieces[1]!r}, with which monot5 answers, so "
            "that it was not trained as one. Leave family= out, or register a family with its own words."
        )
    return found


def _first_token(model: Any) -> int:
    """What the decoder begins with; T5's is its padding token."""
    for config in (model.config, model.generation_config):
        if getattr(config, "decoder_start_token_id", None) is not None:
            return int(config.decoder_start_token_id)
    return int(model.config.pad_token_id or 0)


FAMILIES = (
    Family(
        "monot5",
        "causal-lm",
        "monoT5, InRanker, mMARCO's mT5 and Portuguese T5; a folder answers true/false if it is a T5, yes/no if an mT5",
        "sigmoid of true - false, or of yes - no in the checkpoint's language",
        build,
        hub_ids=frozenset(_PIECES),
        template=MONOT5.pieces[0],
        window=str(LENGTH),
    ),
)
