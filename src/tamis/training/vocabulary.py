"""A smaller vocabulary for a WordPiece encoder: the rows of its embedding that are worth their bytes.

A word that is cut out falls apart into pieces that stay, since every ASCII character does: no ASCII text that was known
becomes unknown. Other characters do.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEEN_OFTEN = 3  # times in the texts, to be kept before what stands first in the vocabulary


def kept_pieces(vocabulary: dict[str, int], counts: Counter[int], special: Iterable[str], size: int) -> list[str]:
    """The pieces to keep, in the order of their old ids: special ones, ASCII characters, then by use.

    Args:
        vocabulary: Old id by piece.
        counts: How often each old id was seen in the texts that matter.
        special: Special tokens.
        size: How many pieces to keep at most.
    """
    order = sorted(vocabulary, key=vocabulary.__getitem__)
    first = set(special) | {p for p in order if len(p.removeprefix("##")) == 1 and p.isascii()}
    usable = [p for p in order if p.isascii() and not p.startswith("[unused") and p not in first]
    often = [p for p in usable if counts[vocabulary[p]] >= SEEN_OFTEN]
    often.sort(key=lambda p: -counts[vocabulary[p]])
    chosen = dict.fromkeys([*(p for p in order if p in first), *often, *usable])
    return sorted(list(chosen)[:size], key=vocabulary.__getitem__)


def trim(model: PreTrainedModel, tokenizer_file: Path, texts: Iterable[str], size: int) -> None:
    """Cuts a model's word embeddings, and its `tokenizer.json` beside them, to `size` pieces.

    Args:
        model: Changed in place.
        tokenizer_file: A `tokenizer.json` with a WordPiece vocabulary, rewritten.
        texts: What the vocabulary is to serve; pieces seen there come before others.
        size: Pieces that stay.

    Raises:
        InvalidInput: The tokenizer is no WordPiece, or `size` is out of range.
    """
    import torch
    from tokenizers import Tokenizer

    if not tokenizer_file.is_file():
        raise InvalidInput("The model has no tokenizer.json; only WordPiece vocabularies in one can be cut.")
    content = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    kind = content["model"].get("type")
    if kind != "WordPiece" or content["model"].get("continuing_subword_prefix") != "##":
        raise InvalidInput(f"The tokenizer is a {kind}; only WordPiece vocabularies, with ##, can be cut.")
    vocabulary = content["model"]["vocab"]
    special = [token["content"] for token in content["added_tokens"]]
    if not len(special) + 200 <= size <= len(vocabulary):
        raise InvalidInput(f"vocabulary = {size}; pass a number from {len(special) + 200} to {len(vocabulary)}.")
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    counts: Counter[int] = Counter()
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        counts.update(encoding.ids)
    pieces = kept_pieces(vocabulary, counts, special, size)
    ids = {piece: new for new, piece in enumerate(pieces)}
    rows = torch.tensor([vocabulary[piece] for piece in pieces])
    old = model.get_input_embeddings()
    new = torch.nn.Embedding(len(pieces), old.embedding_dim, padding_idx=ids.get("[PAD]"))
    with torch.no_grad():
        new.weight.copy_(old.weight[rows])
    model.set_input_embeddings(new)
    model.config.vocab_size = len(pieces)
    names = {old_id: piece for piece, old_id in vocabulary.items()}
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        value = getattr(model.config, name, None)
        if isinstance(value, int) and names.get(value) in ids:
            setattr(model.config, name, ids[names[value]])
    tokenizer_file.write_text(json.dumps(_renumbered(content, ids), ensure_ascii=False), encoding="utf-8")
    settings_file = tokenizer_file.with_name("tokenizer_config.json")
    if settings_file.is_file():
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        added = settings.pop("added_tokens_decoder", {})  # by old ids
        if added:
            settings["added_tokens_decoder"] = {str(ids[token["content"]]): token for token in added.values()}
        settings_file.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")


def _renumbered(content: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """A `tokenizer.json` whose vocabulary is `ids`; its own content is changed."""
    content["model"]["vocab"] = ids
    for token in content["added_tokens"]:
        token["id"] = ids[token["content"]]
    if isinstance(content.get("padding"), dict):
        content["padding"]["pad_id"] = ids[content["padding"]["pad_token"]]
    first = content.get("post_processor") or {}
    for processor in first.get("processors", [first]):
        for token in (processor.get("special_tokens") or {}).values():
            token["ids"] = [ids[name] for name in token["tokens"]]
        for name in ("cls", "sep"):  # of BERT's own processor: a token and its id
            if name in processor:
                processor[name] = [processor[name][0], ids[processor[name][0]]]
    return content
