"""RankRAG done plainly, to compare with: the paper's prompts written out, whole and padded, by transformers alone.

And a model whose answer is known beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import tiny
import tiny_lm

QUESTION = "how is a zip archive read?"
PASSAGES = [tiny.text(words, seed) for seed, words in enumerate([1, 3, 8, 21, 40, 21, 60])] + ["", "Ja, äöü 日本 €."]

SYSTEM = (
    "This is a chat between a user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions based on the context. The assistant should also indicate when the "
    "answer cannot be found in the context."
)
OPENINGS = {
    "plain": f"System: {SYSTEM}\n\n",
    "chat": f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n",
}
LAST = {"plain": ("User: ", "\n\nAssistant:"), "chat": ("", "<|im_end|>\n<|im_start|>assistant\n")}


def ranking_pieces(style: str, question: str, passage: str) -> list[str]:
    """The ranking prompt of open-domain questions, in the pieces that are tokenised apart."""
    before, after = LAST[style]
    asked = (
        f"For the question {question}, access whether the passage is relevant to the question. "
        "Return True if relevant, otherwise False. "
    )
    return [OPENINGS[style], f"Passage: {passage}\n\n", before + asked + after]


def answering_pieces(style: str, question: str, passages: Sequence[str]) -> list[str]:
    """The answering prompt of open-domain questions, likewise."""
    before, after = LAST[style]
    listed = [f"Passage {number}: {passage}\n\n" for number, passage in enumerate(passages, 1)]
    asked = f"{question}. Answer the above question with a short phrase."
    return [OPENINGS[style], *listed, before + asked + after]


class Plain:
    """A checkpoint as transformers runs it: padded, nothing kept, nothing shared; float32."""

    def __init__(self, folder: Path, model: Any = None) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = model or AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        self.model.eval()

    def ids(self, pieces: Sequence[str], style: str) -> list[int]:
        """Each piece tokenised apart, the beginning-of-text token before them where the paper's own form has one."""
        bos = [self.tokenizer.bos_token_id] if style == "plain" and self.tokenizer.bos_token_id is not None else []
        return bos + [i for piece in pieces for i in self.tokenizer(piece, add_special_tokens=False).input_ids]

    @torch.inference_mode()
    def last_logits(self, prompts: Sequence[Sequence[int]], size: int = 4) -> torch.Tensor:
        """Of the whole vocabulary after each prompt, float64, (n, V); `size` prompts a batch, padded on the right."""
        rows = []
        for start in range(0, len(prompts), size):
            batch = prompts[start : start + size]
            longest = max(map(len, batch))
            ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in batch])
            mask = torch.tensor([[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in batch])
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            rows += [logits[i, len(prompt) - 1].double() for i, prompt in enumerate(batch)]
        return torch.stack(rows)

    def log_odds(self, prompts: Sequence[Sequence[int]], true: str) -> list[float]:
        """The logit of p(True), from p(True) itself."""
        token = self.tokenizer(true, add_special_tokens=False).input_ids[0]
        p = self.last_logits(prompts).softmax(1)[:, token]
        return torch.logit(p).tolist()

    def relevances(self, style: str, question: str, passages: Sequence[str], true: str = "True") -> list[float]:
        """What ranking must give."""
        return self.log_odds([self.ids(ranking_pieces(style, question, p), style) for p in passages], true)

    def written(self, ids: Sequence[int], count: int) -> list[int]:
        """What `generate` writes, greedily, the token that ends it left out."""
        out = self.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )[0, len(ids) :].tolist()
        ends = self.model.generation_config.eos_token_id
        return out[:-1] if out and out[-1] in (ends if isinstance(ends, list) else [ends]) else out


def save_speaker(folder: Path, said: Sequence[str | bytes], *, forever: bool = False) -> Path:
    """A Llama that says this, whatever it is asked, and then stops: each token has one successor.

    Args:
        folder: Where to.
        said: Tokens; a `str` becomes a token of its own, of `bytes` every byte is one. None may come twice.
        forever: Then the first token follows the last, instead of an end.
    """
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm.save(folder, "llama", "Model"))
    bytes_of = {byte: mark for mark, byte in _bytes_of_marks().items()}
    ids: list[int] = []
    for part in said:
        if isinstance(part, str):
            tokenizer.add_tokens([AddedToken(part, special=False, normalized=False)])
            ids.append(tokenizer.convert_tokens_to_ids(part))
        else:
            ids += [tokenizer.convert_tokens_to_ids(bytes_of[byte]) for byte in part]
    assert len(set(ids)) == len(ids)
    size = 640
    config = LlamaConfig(
        **{**tiny_lm.SIZES, "hidden_size": size, "num_hidden_layers": 1, "vocab_size": len(tokenizer)},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.zero_()  # so that a layer adds nothing, and the last state is the last token's own
        model.model.embed_tokens.weight[:, : len(tokenizer)] = torch.eye(len(tokenizer))
        for before, after in zip(ids, [*ids[1:], ids[0] if forever else tokenizer.eos_token_id], strict=True):
            model.lm_head.weight[after, before] = 1
        for piece in ("\n", ":"):  # what prompts end with
            last = tokenizer(piece, add_special_tokens=False).input_ids[-1]
            assert last not in ids
            model.lm_head.weight[ids[0], last] = 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _bytes_of_marks() -> dict[str, int]:
    """How byte-level tokenizers spell bytes: printable ones as themselves, the others from U+0100 on (GPT-2)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    marks = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if byte not in plain]
    return marks | {chr(0x100 + n): byte for n, byte in enumerate(others)}
