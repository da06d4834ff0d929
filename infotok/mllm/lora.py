"""Low-rank updates of the language model (LoRA; Hu et al. 2021), by peft: of its layers and none of the tokenizer's."""

from __future__ import annotations

from typing import Any

from infotok.errors import SettingError
from infotok.mllm.adapter import Adapter


def attach(adapter: Adapter, rank: int, alpha: int) -> Any:
    """Freeze the model, and put updates of a rank, scaled by alpha / rank, into the language model's layers.

    Returns what `merge` takes.

    Raises:
        SettingError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise SettingError("train", "lora needs the package peft; run `pip install 'infotok[mllm]'`") from None
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=adapter.lm_layers, lora_dropout=0.0)
    return get_peft_model(adapter.model, settings)


def merge(adapter: Adapter, attached: Any) -> None:
    """Add the updates to the weights, for good: the model is again one that transformers alone can load."""
    adapter.model = attached.merge_and_unload()
