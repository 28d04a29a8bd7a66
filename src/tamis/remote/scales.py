"""What vLLM's numbers are: measured, since its versions and models differ and its answers do not say.

Asked with `use_activation: false`, newer versions give logits; older ones ignore that and give the sigmoid all the
same; checkpoints whose own activation is the identity give logits either way. Taking one for the other keeps the
order, and ruins every score. So at load two pairs are scored both ways, and compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tamis.options import Scale
from tamis.remote.answers import values
from tamis.remote.apis import Api
from tamis.remote.server import Server
from tamis.scores import sigmoid

QUERY = "What is the capital of France?"
PASSAGES = ("The capital of France is Paris.", "A zip archive holds files.")  # no sigmoid has two fixed points
CLOSE = 0.02  # how much a bfloat16 model's own noise may move a probability


async def measure(server: Server, api: Api, model: str, end: float) -> Scale:
    """Whether the server's numbers are logits or probabilities.

    Raises:
        RemoteError: They are neither.
        BadAnswer: They are no numbers.
    """
    raw = api.body(model, QUERY, PASSAGES, False)
    plain = {name: value for name, value in raw.items() if name != "use_activation"}
    one, other = await asyncio.gather(server.post(raw, end), server.post(plain, end))
    return judge(values(one.json, api, len(PASSAGES)), values(other.json, api, len(PASSAGES)), server)


def judge(raw: Sequence[float], plain: Sequence[float], server: Server) -> Scale:
    """The scale of `raw`, from the same pairs' numbers as the server gives them by itself."""
    if all(abs(one - other) < CLOSE / 2 for one, other in zip(raw, plain, strict=True)):
        return "probability" if all(0.0 <= one <= 1.0 for one in raw) else "logit"
    if all(abs(sigmoid(one) - other) < CLOSE for one, other in zip(raw, plain, strict=True)):
        return "logit"
    raise server.error('has scores that are neither logits nor their sigmoid; pass scale= "logit" or "probability"')
