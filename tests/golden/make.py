"""Golden values from the reference packages, for the tiny checkpoints of `checkpoints.py`.

The packages need an old transformers, so they get an environment of their own (CPU only):

    python3.11 -m venv /tmp/reference
    /tmp/reference/bin/pip install torch==2.13.0 "numpy<2.3" transformers==4.46.0 sentencepiece protobuf \\
        accelerate peft datasets "sentence_transformers<4"
    /tmp/reference/bin/pip install --no-deps FlagEmbedding==1.4.2 BCEmbedding==0.1.5
    HF_HUB_OFFLINE=1 /tmp/reference/bin/python tests/golden/make.py            # all, or the names of some families
    HF_HUB_OFFLINE=1 /tmp/reference/bin/python tests/golden/make.py tokenizers # retrains the tokenizers (once)

Everything runs in float32 on the CPU, by the packages' own classes and methods; a hook on the model notes the token
ids that reach it. Scores are those of a batch of one; `batched` holds those of one large batch where they differ.
Floats keep 7 significant digits.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints

HERE = Path(__file__).parent
CORPUS = [
    "Yes, the passage answers the query. No, the passage does not answer the query.",
    "Given a query and a passage, predict whether the passage contains an answer by providing a prediction.",
    "The lighthouse keeper climbs the stairs every evening and lights the lamp before the fog comes in.",
    "How many stairs does the lighthouse have? It has one hundred and ninety-nine stairs of grey stone.",
    "Which birds nest on the cliff? Gulls, puffins and a pair of falcons that hunt over the harbour.",
    "The ferry leaves the harbour at 7:45 in the morning and returns at 18:30, except in a storm.",
    "Bread is baked with flour, water, salt and time; the oven must be hot before the dough goes in.",
    "A: what is a tide? B: a tide is the rise and fall of the sea that the moon and the sun bring about.",
    "Der Leuchtturm steht auf einer Insel im Meer, und die Fähre fährt nur bei ruhigem Wetter.",
    "Le phare éclaire la côte pendant la nuit, été comme hiver, depuis plus de cent ans.",
    "Prices: 12.50 for an adult, 6.25 for a child, free under 5 (or with a member's card).",
]
SHORT = "The lighthouse has 199 stairs."
LONG = " ".join(CORPUS[2:8])
QUERY = "how many stairs does the lighthouse have?"
LONG_QUERY = " ".join(["Which birds nest on the cliff, and when does the ferry leave the harbour in the morning?"] * 8)
PAIRS = [
    (QUERY, SHORT),
    (QUERY, "Bread is baked with flour, water, salt and time."),
    (QUERY, LONG),
    (QUERY, ""),
    ("", SHORT),
    ("ferry", "7:45"),
    (
        "Où est le phare ? 灯台はどこですか 🗼",
        "Der Leuchtturm – “Größe” 199 Stufen – steht auf einer Insel. 灯台は島にあります。🌊",
    ),
    ("  spaces   and\ttabs ", "line one\nline two\n\n  line three  "),
    (LONG_QUERY, SHORT),
    (LONG_QUERY, LONG + " " + LONG),
    ("what is a tide?", " ".join([LONG] * 4)),
]


def rounded(values: Any) -> Any:
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return float(f"{values:.7g}")


class Seen:
    """The rows of token ids (without padding) of every forward pass of a model."""

    def __init__(self, model: Any) -> None:
        self.calls: list[list[list[int]]] = []
        self.arguments: list[dict[str, Any]] = []
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _module: Any, _args: Any, given: dict[str, Any]) -> None:
        rows = zip(given["input_ids"].tolist(), given["attention_mask"].tolist(), strict=True)
        self.calls.append([[i for i, kept in zip(ids, mask, strict=True) if kept] for ids, mask in rows])
        self.arguments.append({key: given.get(key) for key in ["query_lengths", "prompt_lengths"]})

    def last(self) -> list[list[int]]:
        return self.calls[-1]


def transposed(scores: list[Any]) -> list[Any]:
    """From one entry per pair to one per output, where a pair has several."""
    return [list(column) for column in zip(*scores, strict=True)] if isinstance(scores[0], list) else scores


def apart(one: Any, other: Any) -> float:
    if isinstance(one, list):
        return max(apart(a, b) for a, b in zip(one, other, strict=True))
    return abs(one - other)


def scored(pairs: list[tuple[str, str]], score: Callable[[list[Any]], Any], settings: dict[str, Any]) -> dict[str, Any]:
    """One run: by batches of one, and once as one batch."""
    singly = []
    for pair in pairs:
        got = score([list(pair)])  # [s], or [[s], [s]] for two cutoffs, or a bare float
        if isinstance(got, list):
            got = got[0] if not isinstance(got[0], list) else [column[0] for column in got]
        singly.append(got)
    single, batch = transposed(singly), score([list(pair) for pair in pairs])
    off = apart(single, batch)
    kept = None if off < 2e-5 else rounded(batch)
    return {"settings": settings, "scores": rounded(single), "batched": kept, "batched_off": rounded(off)}


def versions(*names: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in [*names, "transformers", "tokenizers", "torch"]}


def pair_entries(pairs: list[tuple[str, str]], seen: Seen, score: Callable[[list[Any]], Any]) -> list[dict[str, Any]]:
    entries = []
    for query, passage in pairs:
        score([[query, passage]])
        entry = {"query": query, "passage": passage, "input_ids": seen.last()[0]}
        lengths = seen.arguments[-1]
        if lengths["query_lengths"] is not None:
            entry["query_length"], entry["prompt_length"] = (int(value[0]) for value in lengths.values())
        entries.append(entry)
    return entries


def write(name: str, golden: dict[str, Any]) -> None:
    path = HERE / f"{name}.json"
    path.write_text(laid_out(golden) + "\n", encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == golden
    sys.stdout.write(f"{path.name}: {path.stat().st_size} bytes\n")


def laid_out(value: Any, indent: str = "") -> str:
    """JSON with a line for each entry, but lists of numbers, and small dicts, on one."""
    flat = json.dumps(value, ensure_ascii=False)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    plain = not any(isinstance(item, dict | list | str) for item in items)
    if not items or plain or len(flat) < 100:
        return flat
    deeper = indent + " "
    if isinstance(value, dict):
        lines = [f"{deeper}{json.dumps(key)}: {laid_out(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(deeper + laid_out(item, deeper) for item in value) + f"\n{indent}]"


def _decoder(name: str, cls: Any, runs: list[dict[str, Any]], lengths: list[int], **options: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save(name, folder)
        reranker = cls(folder, use_fp16=False, devices="cpu", batch_size=64, **options)
        assert next(reranker.model.parameters()).dtype.itemsize == 4
        seen = Seen(reranker.model)
        sets = []
        for length in lengths:

            def score(pairs: list[Any], **more: Any) -> Any:
                return reranker.compute_score(pairs, max_length=length, **more)  # noqa: B023

            entries = pair_entries(PAIRS, seen, score)
            made = [scored(PAIRS, lambda pairs, run=run: score(pairs, **run), run) for run in runs]
            sets.append({"max_length": length, "pairs": entries, "runs": made})
        tokenizer = reranker.tokenizer
        pieces = {"padding_side": tokenizer.padding_side, "attention": reranker.model.config._attn_implementation}
        if "LLM" in cls.__name__:
            pieces["yes"] = tokenizer("Yes", add_special_tokens=False)["input_ids"]
            pieces["separator"] = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return {"checkpoint": name, "reference": versions("FlagEmbedding"), **pieces, "sets": sets}


def bge_gemma() -> None:
    from FlagEmbedding import FlagLLMReranker

    write("bge_gemma", _decoder("bge_gemma", FlagLLMReranker, [{}], [512, 128]))


def bge_minicpm() -> None:
    from FlagEmbedding import LayerWiseFlagLLMReranker

    cutoffs = [None, [3], [5], [8], [3, 4, 5, 6, 7, 8], [4, 6], [6, 4], [8, 3], [1, 5, 9]]
    runs = [{"cutoff_layers": layers} for layers in cutoffs]
    write("bge_minicpm", _decoder("bge_minicpm", LayerWiseFlagLLMReranker, runs, [512, 128]))


def bge_gemma2_lightweight() -> None:
    from FlagEmbedding import LightWeightFlagLLMReranker
    from FlagEmbedding.inference.reranker.decoder_only.models.gemma_config import CostWiseGemmaConfig

    plain = [None, [3], [5], [8], [3, 4, 5, 6, 7, 8], [4, 6], [6, 4], [5, 8]]
    runs = [{"cutoff_layers": layers, "compress_ratio": 1, "compress_layers": [2, 4]} for layers in plain]
    for ratio, at in [(2, [2, 4]), (4, [2, 4]), (2, [4]), (8, [2]), (2, [0, 5])]:
        runs += [
            {"cutoff_layers": layers, "compress_ratio": ratio, "compress_layers": at}
            for layers in [[5], [8], [3, 4, 5, 6, 7, 8]]
        ]
    golden = _decoder("bge_gemma2_lightweight", LightWeightFlagLLMReranker, runs, [512, 128])
    # The same in eager attention, the one implementation here that caps the attention's logits.
    few = [run for run in runs if run["cutoff_layers"] in ([5], [3, 4, 5, 6, 7, 8])]
    kept = CostWiseGemmaConfig.__init__

    def eager(self: Any, **options: Any) -> None:
        kept(self, **{**options, "attn_implementation": "eager"})

    CostWiseGemmaConfig.__init__ = eager
    try:
        other = _decoder("bge_gemma2_lightweight", LightWeightFlagLLMReranker, few, [512, 128])
    finally:
        CostWiseGemmaConfig.__init__ = kept
    assert (golden["attention"], other["attention"]) == ("sdpa", "eager")
    for mine, eagerly in zip(golden["sets"], other["sets"], strict=True):
        assert mine["pairs"] == eagerly["pairs"]
        mine["runs_eager"] = eagerly["runs"]
    write("bge_gemma2_lightweight", golden)


def bge_base() -> None:
    from FlagEmbedding import FlagReranker

    write("bge_base", _decoder("bge_base", FlagReranker, [{}], [512, 64]))


def windows(query: int, passages: list[list[int]], length: int, overlap: int) -> list[tuple[int, int, int]]:
    """(passage, start, stop) of each slice that is fed, by our reading of the reference; `bce` asserts it."""
    room = length - query - 2  # the query's ids have their <s> and </s>
    step = room - min(overlap, room // 4)
    spans = []
    for i, ids in enumerate(passages):
        start = 0
        while start + room < len(ids):
            spans.append((i, start, start + room))
            start += step
        spans.append((i, start, len(ids)))
    return spans


def bce() -> None:
    from BCEmbedding import RerankerModel

    passages = [
        SHORT, "", " ".join([LONG] * 5), LONG, " ".join(["tide"] * 300) + " " + SHORT, SHORT,
        " ".join(reversed((" ".join([LONG] * 9)).split())),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save("bce", folder)
        reranker = RerankerModel(folder, use_fp16=False, device="cpu")
        seen = Seen(reranker.model)
        sets = []
        for length in [512, 64]:

            def score(pairs: list[Any]) -> Any:
                return reranker.compute_score(pairs, max_length=length, enable_tqdm=False)  # noqa: B023

            entries = pair_entries(PAIRS, seen, score)
            sets.append({"max_length": length, "pairs": entries, "runs": [scored(PAIRS, score, {})]})
        rerank = []
        middling = " ".join(["Which birds nest on the cliff?"] * 18)
        ids = [reranker.tokenizer(text, add_special_tokens=False)["input_ids"] for text in passages]
        kept = [i for i, text in enumerate(passages) if text]  # what rerank_ids count
        for query, length, overlap in [
            (QUERY, 512, 80), (QUERY, 256, 80), (QUERY, 200, 20), (middling, 512, 80), ("灯台 🗼?", 512, 80),
        ]:  # fmt: skip
            reranker.max_length, reranker.overlap_tokens = length, overlap
            seen.calls.clear()
            got = reranker.rerank(query, passages, batch_size=1)
            fed = [call[0] for call in seen.calls]
            batched = reranker.rerank(query, passages)
            assert batched["rerank_ids"] == got["rerank_ids"]
            first = reranker.tokenizer(query)["input_ids"]
            spans = windows(len(first), [ids[i] for i in kept], length, overlap)
            assert fed == [[*first, 2, *ids[kept[i]][start:stop], 2] for i, start, stop in spans]
            rerank.append(
                {
                    "query": query, "max_length": length, "overlap_tokens": overlap, "query_ids": first,
                    "windows": [[kept[i], start, stop] for i, start, stop in spans],
                    "rerank_ids": got["rerank_ids"], "rerank_scores": rounded(got["rerank_scores"]),
                    "ranked": [kept[i] for i in got["rerank_ids"]],
                    "batched_off": rounded(apart(got["rerank_scores"], batched["rerank_scores"])),
                }
            )  # fmt: skip
        try:
            reranker.rerank(LONG_QUERY + " " + LONG_QUERY, passages)
            refused = None
        except AssertionError as error:
            refused = str(error)
        golden = {
            "checkpoint": "bce", "reference": versions("BCEmbedding"), "scores_are": "sigmoid(logit)",
            "sets": sets, "passages": passages, "passage_ids": ids, "rerank": rerank, "query_too_long": refused,
        }  # fmt: skip
    write("bce", golden)


def tokenizers() -> None:
    """Trains the three and writes them as the published ones are laid out."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    text = CORPUS * 3 + ["▁Yes", "Yes", "No", "▁No"] * 40

    def merges(vocabulary: int, words: list[str]) -> dict[str, Any]:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        core.train_from_iterator(words, trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False))
        return json.loads(core.to_str())["model"]

    def byte_fallback(size: int, special: list[str], more: list[str], words: list[str]) -> dict[str, Any]:
        first = [*special, *(f"<0x{i:02X}>" for i in range(256)), *more]
        trained = merges(size - len(first), words)
        pieces = [*first, *(piece for piece in trained["vocab"] if piece not in first)]
        assert len(pieces) == size, len(pieces)
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        return {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocabulary, "merges": [" ".join(pair) for pair in trained["merges"]],
        }  # fmt: skip

    def added(special: list[str], ids: dict[str, int]) -> list[dict[str, Any]]:
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        return [{"id": ids[token], "content": token, **flags} for token in special]

    def template(single: list[str], pair: list[str], ids: dict[str, int]) -> dict[str, Any]:
        def pieces(tokens: list[str]) -> list[dict[str, Any]]:
            return [
                {"Sequence": {"id": token[1], "type_id": 0}} if token[0] == "$"
                else {"SpecialToken": {"id": token, "type_id": 0}}
                for token in tokens
            ]  # fmt: skip

        names = sorted({token for token in pair if token[0] != "$"})
        return {
            "type": "TemplateProcessing", "single": pieces(single), "pair": pieces(pair),
            "special_tokens": {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in names},
        }  # fmt: skip

    def put(name: str, model: dict[str, Any], special: list[str], ids: dict[str, int], **parts: Any) -> None:
        whole = {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": added(special, ids),
            "normalizer": None, "pre_tokenizer": None, **parts, "model": model,
        }  # fmt: skip
        text = json.dumps(whole, ensure_ascii=False, separators=(",", ":")).replace('],["', '],\n["')
        Tokenizer.from_str(text)
        (HERE / f"{name}_tokenizer.json").write_text(text + "\n", encoding="utf-8")

    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    fallback = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}]
    gemma_words = [line.replace(" ", "▁") for line in text]
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    model = byte_fallback(checkpoints.GEMMA_VOCABULARY, special, ["\n", "\n\n", "\t"], gemma_words)
    # runs of line breaks are tokens of their own in the real vocabulary
    model["merges"].append("\n \n")
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    put(
        "gemma", model, special, model["vocab"], normalizer=space, pre_tokenizer=split,
        post_processor=template(["<bos>", "$A"], ["<bos>", "$A", "<bos>", "$B"], model["vocab"]),
        decoder={"type": "Sequence", "decoders": [*fallback, {"type": "Fuse"}]},
    )  # fmt: skip

    special = ["<unk>", "<s>", "</s>"]
    llama_words = ["▁" + line.replace(" ", "▁").lstrip("▁") for line in text]
    model = byte_fallback(checkpoints.LLAMA_VOCABULARY, special, [], llama_words)
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    put(
        "llama", model, special, model["vocab"],
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]},
        post_processor=template(["<s>", "$A"], ["<s>", "$A", "<s>", "$B"], model["vocab"]),
        decoder={"type": "Sequence", "decoders": [*fallback, {"type": "Fuse"}, strip]},
    )  # fmt: skip

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    size = checkpoints.XLMR_VOCABULARY
    core.train_from_iterator(
        CORPUS * 3,
        trainers.UnigramTrainer(vocab_size=size, special_tokens=special[:4], unk_token="<unk>", show_progress=False),
    )
    whole = json.loads(core.to_str())
    pieces = whole["model"]["vocab"][: size - 1]
    pieces += [[f"<extra{i}>", -20.0] for i in range(size - 1 - len(pieces))] + [["<mask>", 0.0]]
    whole["model"]["vocab"] = pieces
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    put(
        "xlmr", whole["model"], special, ids, pre_tokenizer=whole["pre_tokenizer"],
        post_processor=template(["<s>", "$A", "</s>"], ["<s>", "$A", "</s>", "</s>", "$B", "</s>"], ids),
        decoder={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    )  # fmt: skip


FAMILIES = {
    "bge_gemma": bge_gemma,
    "bge_minicpm": bge_minicpm,
    "bge_gemma2_lightweight": bge_gemma2_lightweight,
    "bce": bce,
    "bge_base": bge_base,
}

if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    for chosen in sys.argv[1:] or FAMILIES:
        {**FAMILIES, "tokenizers": tokenizers}[chosen]()
