"""The contenders: each loads one checkpoint and answers with the logits of a query's passages, from texts.

All but sentence-transformers, which is run as its users run it, get the sorting by length and the small batches that
suit a CPU: a peer is shown at its best, not at its default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from workload import MAX_LENGTH, Workload

Logits: TypeAlias = NDArray[np.float64]
Run: TypeAlias = Callable[[], Logits]

BASELINE = "sentence-transformers float32"
BATCH = 8  # of the padded, sorted loops


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        name: In the table and for `--only`.
        rate: The matrix rate that its share is counted of; None where it computes in another format.
        load: Makes it ready to run. Raises ImportError where its library is missing.
    """

    name: str
    rate: str | None
    load: Callable[[Workload, int], Run]


def contenders() -> list[Contender]:
    """All of them."""
    return [
        Contender(BASELINE, "float32", lambda w, _: sentence_transformers(w, "float32")),
        Contender("sentence-transformers bfloat16", "bfloat16", lambda w, _: sentence_transformers(w, "bfloat16")),
        Contender("transformers float32, sorted", "float32", lambda w, _: padded_loop(w, "float32")),
        Contender("transformers bfloat16, sorted", "bfloat16", lambda w, _: padded_loop(w, "bfloat16")),
        Contender("ONNX Runtime float32, sorted", "float32", lambda w, threads: onnx_runtime(w, threads, int8=False)),
        Contender("ONNX Runtime int8, sorted", None, lambda w, threads: onnx_runtime(w, threads, int8=True)),
        Contender("OpenVINO float32, sorted", "float32", lambda w, threads: open_vino(w, threads, "f32")),
        Contender("OpenVINO bfloat16, sorted", "bfloat16", lambda w, threads: open_vino(w, threads, "bf16")),
        Contender("Tamis float32", "float32", lambda w, _: tamis_run(w, "float32")),
        Contender("Tamis auto", tamis_auto_dtype(), lambda w, _: tamis_run(w, "auto")),
    ]


def tamis_auto_dtype() -> str:
    """What dtype="auto" is on this machine."""
    from tamis.engine.devices import choose_device, choose_dtype

    return str(choose_dtype("auto", choose_device("cpu"))).removeprefix("torch.")


def tamis_run(workload: Workload, dtype: str) -> Run:
    """Tamis with its defaults."""
    import tamis

    reranker = tamis.load(workload.checkpoint, device="cpu", dtype=dtype)
    return lambda: np.asarray(reranker.logits(workload.query, workload.passages))


def sentence_transformers(workload: Workload, dtype: str) -> Run:
    """`CrossEncoder.predict` with its defaults, but for the activation."""
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(workload.checkpoint), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    pairs = [(workload.query, passage) for passage in workload.passages]
    options = {"activation_fn": torch.nn.Identity(), "show_progress_bar": False}
    return lambda: model.predict(pairs, **options).astype(np.float64)


def padded_loop(workload: Workload, dtype: str) -> Run:
    """The loop that one writes with transformers alone, sorted by length."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(workload.checkpoint, dtype=getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def forward(inputs: dict[str, NDArray[np.int64]]) -> Any:
        return model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.float().numpy()

    return sorted_batches(workload, forward)


def onnx_runtime(workload: Workload, threads: int, *, int8: bool) -> Run:
    """ONNX Runtime; `int8` is its dynamic quantisation: int8 weights, uint8 activations scaled at run time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    file = quantised(workload) if int8 else exported(workload)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return sorted_batches(workload, lambda inputs: session.run(None, inputs)[0])


def open_vino(workload: Workload, threads: int, precision: str) -> Run:
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


def sorted_batches(workload: Workload, forward: Callable[[dict[str, Any]], Any]) -> Run:
    """Tokenises all pairs, sorts them by length and pads batches of `BATCH`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(workload.checkpoint)

    def batches(lengths: list[int]) -> Iterator[list[int]]:
        ranked = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        yield from (ranked[start : start + BATCH] for start in range(0, len(ranked), BATCH))

    def run() -> Logits:
        queries = [workload.query] * len(workload.passages)
        encoded = tokenizer(queries, workload.passages, truncation=True, max_length=MAX_LENGTH)
        logits = np.zeros(len(queries))
        for rows in batches([len(ids) for ids in encoded["input_ids"]]):
            padded = tokenizer.pad({name: [values[i] for i in rows] for name, values in encoded.items()})
            inputs = {name: np.asarray(values, np.int64) for name, values in padded.items()}
            logits[rows] = np.asarray(forward(inputs))[:, 0]
        return logits

    return run


def exported(workload: Workload) -> Path:
    """The checkpoint as an ONNX file beside it, exported once."""
    file = workload.checkpoint / "onnx" / "model.onnx"
    if not file.exists():
        _export(workload.checkpoint, file)
    return file


def quantised(workload: Workload) -> Path:
    """The ONNX file with int8 weights, made once."""
    file = workload.checkpoint / "onnx" / "model_int8.onnx"
    if not file.exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(exported(workload), file, weight_type=QuantType.QInt8)
    return file


def _export(checkpoint: Path, file: Path) -> None:
    import onnx  # noqa: F401 - the exporter needs it, and says so only half-way through
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, attn_implementation="eager").eval()
    sample = AutoTokenizer.from_pretrained(checkpoint)(["a b", "c"], ["d", "e f g"], padding=True, return_tensors="pt")
    names = ["input_ids", "attention_mask", "token_type_ids"]
    file.parent.mkdir(exist_ok=True)

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.requires_grad_(False)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits

    torch.onnx.export(
        Positional(),
        tuple(sample[name] for name in names),
        file,
        input_names=names,
        output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "length"} for name in names} | {"logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
