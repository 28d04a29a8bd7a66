"""An OpenAI-compatible `/v1/completions` over a real tiny model, run plainly by transformers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch

from rankrag_reference import Plain
from remote_stubs import Refusal, Stub, shape


class CompletionsStub(Stub):
    """Prompts are token ids, one or several; texts are greedy.

    Attributes:
        top: How many log-probabilities are given; None for all, whatever was asked.
        limit: Above it, asking is refused, as vLLM's --max-logprobs does.
        form: "ids" as vLLM, "texts" as others, "llama.cpp" as that.
        tear: Called in the middle of a stream, with the handler; False ends it there.
    """

    path = "/v1/completions"

    def __init__(
        self, plain: Plain, *, top: int | None = None, limit: int = 20, form: str = "ids", **options: Any
    ) -> None:
        super().__init__(**options)
        self.plain, self.top, self.limit, self.form = plain, top, limit, form
        self.tear: Callable[[Any], bool] = lambda handler: True
        self.pause = 0.0

    def get(self, path):
        if path == "/v1/models":
            rows = [{"id": name, "object": "model", "owned_by": "vllm", "max_model_len": 4096} for name in self.models]
            return {"object": "list", "data": rows}
        return super().get(path)

    def answer(self, path, body):
        optional = {
            "temperature": int, "top_p": int, "repetition_penalty": int, "logprobs": int, "stream": bool,
            "return_tokens_as_token_ids": bool,
        }  # fmt: skip
        shape(body, {"model": str, "prompt": list, "max_tokens": int}, optional)
        if body["model"] not in self.models:
            raise Refusal(404, {"error": {"message": "no such model"}})
        if body.get("logprobs", 0) > self.limit:
            said = f"Requested sample logprobs of {body['logprobs']}, which is greater than max allowed: {self.limit}"
            raise Refusal(400, {"error": {"message": said}})
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        assert all(type(token) is int for prompt in prompts for token in prompt)
        if body.get("stream"):
            [prompt] = prompts
            return lambda handler: self.stream(handler, prompt, body["max_tokens"]), {}
        assert body["max_tokens"] == 1
        choices = [{"index": index, "text": "?", "finish_reason": "length"} for index in range(len(prompts))]
        if "logprobs" in body:
            for choice, prompt in zip(choices, prompts, strict=True):
                choice["logprobs"] = self.logprobs(prompt)
        return {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": choices[::-1]}, {}

    def logprobs(self, prompt):
        row = self.plain.last_logits([prompt]).log_softmax(1)[0]
        values, tokens = row.topk(self.top or len(row))
        pairs = list(zip(tokens.tolist(), values.tolist(), strict=True))
        text = self.plain.tokenizer.decode
        if self.form == "llama.cpp":
            rows = [{"id": token, "token": text([token]), "bytes": [], "logprob": value} for token, value in pairs]
            return {"content": [{**rows[0], "top_logprobs": rows}]}
        named = {f"token_id:{token}" if self.form == "ids" else text([token]): value for token, value in pairs[::-1]}
        return {"tokens": ["?"], "token_logprobs": [pairs[0][1]], "top_logprobs": [named], "text_offset": [0]}

    @torch.inference_mode()
    def stream(self, handler, prompt, limit):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        handler.close_connection = True
        written: list[int] = []
        shown = ""
        ends = self.plain.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends]) | {self.plain.tokenizer.eos_token_id}
        reason = None
        while reason is None:
            token = int(self.plain.last_logits([[*prompt, *written]])[0].argmax())
            if token not in ends:
                written.append(token)
            whole = self.plain.tokenizer.decode(written)
            piece = "" if whole.endswith("\ufffd") else whole[len(shown) :]
            shown += piece
            reason = "stop" if token in ends else "length" if len(written) == limit else None
            self.event(handler, {"choices": [{"index": 0, "text": piece, "finish_reason": reason}]})
            time.sleep(self.pause)
            if len(written) == 2 and not self.tear(handler):
                return
        self.event(handler, {"choices": [], "usage": {"completion_tokens": len(written)}})
        handler.wfile.write(b": over\r\n\r\ndata: [DONE]\r\n\r\n")

    def event(self, handler, data):
        for part in (b"data: ", json.dumps({"id": "cmpl-1", "object": "text_completion", **data}).encode(), b"\n\n"):
            handler.wfile.write(part)
            handler.wfile.flush()
