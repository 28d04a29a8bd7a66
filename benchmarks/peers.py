"""The contenders: each loads one checkpoint and answers with the logits of a query's passages, from texts.

sentence-transformers is run as its users run it. The others get what suits the machine: passages sorted by length, and
the batch size that was fastest on a part of them. A peer is shown at its best, not at its default.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import machine
import models
import numpy as np
import torch
from exports import exported, quantised
from machine import synchronise
from models import Shape
from numpy.typing import NDArray
from workload import Workload

Logits: TypeAlias = NDArray[np.float64]
Run: TypeAlias = Callable[[Sequence[str]], Logits]
Inputs: TypeAlias = dict[str, NDArray[np.int64]]

SENTENCES, WHOLE = "sentence-transformers float32", "transformers float32, whole vocabulary"
BATCHES = (1, 4, 8, 16, 32)
FITS = 32_768  # tokens of a padded batch
TRIED = 32  # passages that batch sizes are tried on


@dataclass
class Ready:
    """A contender that is loaded.

    Attributes:
        run: From passages to logits.
        facts: What else it knows of its runs: "padding", the share of the tokens computed that was padding; "batch".
        close: Lets go of what does not go by itself.
    """

    run: Run
    facts: Callable[[], dict[str, Any]] = dict
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        name: In the table and for `--only`.
        rate: The matrix rate that its share is counted of; None where it computes in another format.
        load: Makes it ready to run, with so many threads. Raises ImportError where its library is missing.
        prepare: What must be made once for a checkpoint, in a process of its own.
    """

    name: str
    rate: str | None
    load: Callable[[Workload, int], Ready]
    prepare: Callable[[Workload], Any] | None = None


@dataclass
class Padded:
    """Counts tokens that are computed, and those among them that are padding."""

    computed: int = 0
    read: list[Any] = field(default_factory=list)  # where they are: no GPU is waited for
    more: dict[str, Any] = field(default_factory=dict)

    def add(self, mask: Any) -> None:
        """A batch."""
        self.computed += int(np.prod(mask.shape))
        self.read.append(mask.sum())

    def facts(self) -> dict[str, Any]:
        """Of all batches so far."""
        return {"padding": 1 - sum(map(int, self.read)) / self.computed if self.computed else None, **self.more}


def contenders(shape: Shape) -> list[Contender]:
    """All that can load a model of this kind, the baseline first."""
    return [*(_readers_of_pairs() if shape.kind == "pair" else _loops(shape)), *_tamis()]


def absent(shape: Shape) -> list[str]:
    """Why others are not among them."""
    if shape.kind == "pair":
        return []
    reads = "a causal model's next word" if shape.kind == "yes-no" else "the model type llama_bidirec without its code"
    return [
        f"sentence-transformers (it does not read {reads})",
        "ONNX Runtime and OpenVINO (only encoders are exported here)",
    ]


def _readers_of_pairs() -> list[Contender]:
    return [
        Contender(SENTENCES, "float32", lambda w, _: sentence_transformers(w, "float32")),
        Contender("sentence-transformers bfloat16", "bfloat16", lambda w, _: sentence_transformers(w, "bfloat16")),
        Contender("transformers float32, sorted", "float32", lambda w, _: padded_loop(w, "float32")),
        Contender("transformers bfloat16, sorted", "bfloat16", lambda w, _: padded_loop(w, "bfloat16")),
        Contender("ONNX Runtime float32, sorted", "float32", lambda w, n: onnx_runtime(w, n, int8=False), exported),
        Contender("ONNX Runtime int8, sorted", None, lambda w, n: onnx_runtime(w, n, int8=True), quantised),
        Contender("OpenVINO float32, sorted", "float32", lambda w, n: open_vino(w, n, "f32"), exported),
        Contender("OpenVINO bfloat16, sorted", "bfloat16", lambda w, n: open_vino(w, n, "bf16"), exported),
    ]


def _loops(shape: Shape) -> list[Contender]:
    if shape.kind == "question":
        return [
            Contender(f"transformers {dtype}, sorted", dtype, lambda w, _, dtype=dtype: padded_loop(w, dtype))
            for dtype in machine.DTYPES
        ]
    return [
        Contender(
            f"transformers {dtype}, {what}", dtype,
            lambda w, _, dtype=dtype, keep=keep: padded_loop(w, dtype, **keep),
        )
        for dtype in machine.DTYPES
        for what, keep in (("whole vocabulary", {}), ("logits_to_keep=1", {"logits_to_keep": 1}))
    ]  # fmt: skip


def _tamis() -> list[Contender]:
    ways = [*([(", plain", plain)] if kernels_level() else []), ("", tamis_run)]
    rates = {"float32": "float32", "auto": tamis_auto_dtype()}
    return [_own(f"Tamis {dtype}{suffix}", rates[dtype], run, dtype) for dtype in rates for suffix, run in ways]


def _own(name: str, rate: str, run: Callable[[Workload, str], Ready], dtype: str) -> Contender:
    return Contender(name, rate, lambda workload, _: run(workload, dtype))


def kernels_level() -> str | None:
    """What tamis-kernels is compiled for here; None where Tamis does without it."""
    from tamis.engine.kernels import compiled

    found = compiled()
    return found.level() if found is not None else None


def plain(workload: Workload, dtype: str) -> Ready:
    """Tamis as it is where tamis-kernels is not installed; in a process of its own, as every contender is."""
    from tamis.engine.kernels import compiled

    sys.modules["tamis_kernels"] = None  # type: ignore[assignment]
    compiled.cache_clear()
    return tamis_run(workload, dtype)


def tamis_auto_dtype(device: str = "cpu") -> str:
    """What dtype="auto" is on this machine."""
    from tamis.engine.devices import choose_device, choose_dtype

    return str(choose_dtype("auto", choose_device(device))).removeprefix("torch.")


def tamis_run(workload: Workload, dtype: str, device: str = "cpu") -> Ready:
    """Tamis with its defaults."""
    import tamis

    family = {"family": "qwen3-reranker"} if workload.shape.kind == "yes-no" else {}
    reranker = tamis.load(workload.checkpoint, device=device, dtype=dtype, **family)

    def facts() -> dict[str, Any]:
        stats = reranker.stats()
        shared = stats["prefix_tokens_reused"] / stats["tokens"] if stats["tokens"] else 0.0
        known = {name: stats[name] for name in ("padding", "packed", "device_seconds")}
        return {**known, "shared": shared}

    return Ready(lambda passages: np.asarray(reranker.logits(workload.query, passages)), facts, reranker.close)


def sentence_transformers(workload: Workload, dtype: str, device: str = "cpu") -> Ready:
    """`CrossEncoder.predict` with its defaults, but for the activation."""
    from sentence_transformers import CrossEncoder
    from transformers import PreTrainedModel

    model = CrossEncoder(str(workload.checkpoint), device=device, model_kwargs={"dtype": getattr(torch, dtype)})
    options = {"activation_fn": torch.nn.Identity(), "show_progress_bar": False}
    count = Padded()
    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    words, pad = inner.get_input_embeddings(), inner.config.pad_token_id
    words.register_forward_pre_hook(lambda _, ids: count.add(ids[0] != pad))

    def run(passages: Sequence[str]) -> Logits:
        return np.asarray(model.predict([(workload.query, text) for text in passages], **options), np.float64)

    return Ready(run, count.facts)


def padded_loop(workload: Workload, dtype: str, device: str = "cpu", **forward: Any) -> Ready:
    """The loop that one writes with transformers alone, sorted by length; `forward` goes to the model."""
    model, read = _loaded(workload, dtype)
    model = model.to(device).eval()

    @torch.inference_mode()
    def batch(inputs: Inputs) -> Any:
        given = {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}
        return read(model, given, forward).float().cpu().numpy()

    return sorted_batches(workload, batch, device)


def _loaded(workload: Workload, dtype: str) -> tuple[Any, Callable[[Any, dict[str, torch.Tensor], Any], torch.Tensor]]:
    """The model as transformers loads it, and its logits of a batch, shape (B, 1)."""
    import transformers

    kind, chosen = workload.shape.kind, getattr(torch, dtype)
    if kind == "pair":
        model = transformers.AutoModelForSequenceClassification.from_pretrained(workload.checkpoint, dtype=chosen)
        return model, lambda model, given, forward: model(**given, **forward).logits
    tokenizer = transformers.AutoTokenizer.from_pretrained(workload.checkpoint)
    if kind == "yes-no":
        answers = tokenizer.convert_tokens_to_ids(["yes", "no"])
        model = transformers.AutoModelForCausalLM.from_pretrained(workload.checkpoint, dtype=chosen)

        def next_word(model: Any, given: dict[str, torch.Tensor], forward: Any) -> torch.Tensor:
            found = model(**given, use_cache=False, **forward).logits[:, -1, answers].float()
            return found[:, :1] - found[:, 1:]

        return model, next_word
    config = workload.shape.config(tokenizer)  # plain Llama: the masks below read in both directions
    model = transformers.LlamaForSequenceClassification.from_pretrained(
        workload.checkpoint, config=config, dtype=chosen
    )

    def mean(model: Any, given: dict[str, torch.Tensor], _: Any) -> torch.Tensor:
        mask = given["attention_mask"].bool()
        hidden = model.model(given["input_ids"], attention_mask=mask[:, None, None].expand(-1, -1, mask.shape[1], -1))
        weight = mask[..., None].float()
        pooled = (hidden[0].float() * weight).sum(1) / weight.sum(1)
        return torch.nn.functional.linear(pooled, model.score.weight.float())

    return model, mean


def onnx_runtime(workload: Workload, threads: int, *, int8: bool) -> Ready:
    """ONNX Runtime; `int8` is its dynamic quantisation: int8 weights, uint8 activations scaled at run time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    file = quantised(workload) if int8 else exported(workload)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return sorted_batches(workload, lambda inputs: session.run(None, inputs)[0])


def open_vino(workload: Workload, threads: int, precision: str) -> Ready:
    """OpenVINO, computing in `precision`."""
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = core.compile_model(core.read_model(exported(workload)), "CPU", settings)
    used = str(model.get_property("INFERENCE_PRECISION_HINT"))
    if precision not in used and {"f32": "float", "bf16": "bfloat16"}[precision] not in used:
        raise ImportError(f"this processor computes in {used}, not in {precision}")
    return sorted_batches(workload, lambda inputs: model(inputs)[0])


def sorted_batches(workload: Workload, forward: Callable[[Inputs], Any], device: str = "cpu") -> Ready:
    """Tokenises, sorts by length, pads batches of the size that is the fastest for the workload."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(workload.checkpoint)

    def loop(passages: Sequence[str], size: int, count: Padded) -> Logits:
        encoded = models.encode(workload.shape, tokenizer, workload.query, passages)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        ranked = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        logits = np.zeros(len(lengths))
        for start in range(0, len(ranked), size):
            rows = ranked[start : start + size]
            padded = tokenizer.pad({name: [values[i] for i in rows] for name, values in encoded.items()})
            inputs = {name: np.asarray(values, np.int64) for name, values in padded.items()}
            count.add(inputs["attention_mask"])
            logits[rows] = np.asarray(forward(inputs))[:, 0]
        return logits

    def fastest() -> int:
        sample = workload.passages[:: -(-len(workload.passages) // TRIED)]
        fit = [n for n in BATCHES if n == 1 or n * max(workload.lengths) <= FITS]
        sizes = [n for n in fit if n < 2 * len(sample)]
        seconds: dict[int, float] = {}
        for size in 2 * sizes if len(sizes) > 1 else ():  # the first time some libraries compile for a shape
            start = time.perf_counter()
            loop(sample, size, Padded())
            synchronise(device)
            seconds[size] = time.perf_counter() - start
        return min(seconds, key=seconds.__getitem__) if seconds else sizes[0]

    size = fastest()
    count = Padded(more={"batch": size})
    return Ready(lambda passages: loop(passages, size, count), count.facts)
