"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) through PEFT: put into a transformer, and merged at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tamis.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Lora:
    """What an adapter is.

    Attributes:
        rank: Of the two factors.
        alpha: The update is scaled by alpha / rank.
        dropout: On the adapter's input while it trains.
        modules: Names of the linear layers that get one; "all-linear" is every one but the head.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    modules: str | tuple[str, ...] = "all-linear"

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise InvalidInput(f"[options] lora: rank = {self.rank!r}; pass a whole number of at least 1.")
        if not isinstance(self.modules, str):
            object.__setattr__(self, "modules", tuple(self.modules))


def adapt(model: Any, lora: Lora, heads: Sequence[str] = ()) -> None:
    """Freezes the transformer of a sentence-transformers model and puts an adapter into it.

    Args:
        model: A SentenceTransformer or CrossEncoder, changed in place.
        lora: The adapter.
        heads: Modules of the transformer that are trained whole, as a new head has to be.
    """
    from peft import LoraConfig

    model.add_adapter(
        LoraConfig(
            task_type="SEQ_CLS" if heads else "FEATURE_EXTRACTION",
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.modules if isinstance(lora.modules, str) else list(lora.modules),
            modules_to_save=list(heads) or None,
        )
    )


def merge(model: Any) -> None:
    """Adds an adapter's updates to the weights that it was put into, and takes it out.

    Args:
        model: What `adapt` changed, changed back in place.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    body = model.transformers_model
    for name, module in list(body.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            body.set_submodule(name, module.modules_to_save[module.active_adapter])
    for name, layer in list(body.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            body.set_submodule(name, layer.get_base_layer())
    body._hf_peft_config_loaded = False
