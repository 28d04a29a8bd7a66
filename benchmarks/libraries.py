"""Other libraries as contenders: a checkpoint loaded by each in its own way.

Raises ImportError where one is not installed. FlagEmbedding and infinity are installed without what they depend on,
since infinity pins older releases; `make bench` does it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contender import Logits, Padded, Ready, fastest, sorted_batches
from exports import exported, quantised
from workload import Workload


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


def flag_embedding(workload: Workload) -> Ready:
    """FlagEmbedding's `FlagReranker`, which sorts by length; on a CPU it computes in float32 alone."""
    from FlagEmbedding import FlagReranker

    model = FlagReranker(str(workload.checkpoint), devices=["cpu"], max_length=workload.shape.longest)

    def run(passages: Sequence[str], size: int) -> Logits:
        pairs = [(workload.query, text) for text in passages]
        with redirect_stderr(StringIO()):  # bars that no setting hides
            return np.asarray(model.compute_score_single_gpu(pairs, batch_size=size, device="cpu"), np.float64)

    size = fastest(workload, run)
    return Ready(lambda passages: run(passages, size), lambda: {"batch": size})


def infinity(workload: Workload, dtype: str) -> Ready:
    """Infinity's engine in an event loop of its own, with its default batches, sorted by length within its queue."""
    engine = infinity_engine(workload.checkpoint, dtype)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.astart())

    def run(passages: Sequence[str]) -> Logits:
        answer = engine.rerank(query=workload.query, docs=list(passages), raw_scores=True)
        results, _ = loop.run_until_complete(answer)
        return placed((result.index, result.relevance_score) for result in results)

    def close() -> None:
        loop.run_until_complete(engine.astop())
        loop.close()

    return Ready(run, close=close)


def infinity_engine(checkpoint: Path, dtype: str) -> Any:
    """Not started; it uses BetterTransformer only where it finds optimum below 2.0."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    arguments = EngineArgs(
        model_name_or_path=str(checkpoint), engine="torch", device="cpu", dtype=dtype, model_warmup=False
    )
    return AsyncEmbeddingEngine.from_args(arguments)


def placed(pairs: Iterable[tuple[int, float]]) -> Logits:
    """Logits in the order of their passages."""
    found = dict(pairs)
    return np.array([found[i] for i in range(len(found))], np.float64)


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
