"""The contenders: who they are for a model, Tamis itself, and the loops that one writes with transformers alone.

sentence-transformers and infinity are run as their users run them. The others get what suits the machine: passages
sorted by length, and the batch size that was fastest on a part of them. A peer is shown at its best, not at its
default.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import machine
import numpy as np
import torch
from contender import Contender, Inputs, Ready, sorted_batches
from exports import exported, quantised
from libraries import flag_embedding, infinity, onnx_runtime, open_vino, sentence_transformers
from models import Shape
from workload import Workload

SENTENCES, WHOLE = "sentence-transformers float32", "transformers float32, whole vocabulary"


def contenders(shape: Shape) -> list[Contender]:
    """All that can load a model of this kind, the baseline first."""
    return [*(_readers_of_pairs() if shape.kind == "pair" else _loops(shape)), *_tamis()]


def absent(shape: Shape) -> list[str]:
    """Why others are not among them."""
    if shape.kind == "pair":
        return []
    reads = "a causal model's next word" if shape.kind == "yes-no" else "the model type llama_bidirec without its code"
    return [
        f"sentence-transformers and infinity (they do not read {reads})",
        "FlagEmbedding (it has prompts of its own; see llm_rerank.py)",
        "ONNX Runtime and OpenVINO (only encoders are exported here)",
    ]


def _readers_of_pairs() -> list[Contender]:
    return [
        Contender(SENTENCES, "float32", lambda w, _: sentence_transformers(w, "float32")),
        Contender("sentence-transformers bfloat16", "bfloat16", lambda w, _: sentence_transformers(w, "bfloat16")),
        Contender("FlagEmbedding float32", "float32", lambda w, _: flag_embedding(w)),
        Contender("infinity float32", "float32", lambda w, _: infinity(w, "float32")),
        Contender("infinity bfloat16", "bfloat16", lambda w, _: infinity(w, "bfloat16")),
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
