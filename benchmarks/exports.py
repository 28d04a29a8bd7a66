"""The checkpoint as an ONNX file beside it, whole and with int8 weights, each made once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workload import Workload

LARGE = 1_900_000_000  # bytes; a file of more needs its weights beside it


def exported(workload: Workload) -> Path:
    """The model as transformers runs it."""
    file = workload.checkpoint / "onnx" / "model.onnx"
    if not file.exists():
        _export(workload.checkpoint, file)
    return file


def quantised(workload: Workload) -> Path:
    """With int8 weights; activations become uint8 at run time."""
    file = workload.checkpoint / "onnx" / "model_int8.onnx"
    if not file.exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        large = (workload.checkpoint / "model.safetensors").stat().st_size > LARGE
        source = exported(workload)
        quantize_dynamic(source, file, weight_type=QuantType.QInt8, use_external_data_format=large)
    return file


def _export(checkpoint: Path, file: Path) -> None:
    import onnx  # noqa: F401 - the exporter needs it, and says so only half-way through
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, attn_implementation="eager").eval()
    sample = AutoTokenizer.from_pretrained(checkpoint)(["a b", "c"], ["d", "e f g"], padding=True, return_tensors="pt")
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in sample]
    file.parent.mkdir(exist_ok=True)

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.requires_grad_(False)

        def forward(self, *given: torch.Tensor) -> torch.Tensor:
            return self.model(**dict(zip(names, given, strict=True))).logits

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
