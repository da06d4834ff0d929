"""The language model that all families share: a tiny Llama, or any causal LM of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import model_validator
from torch import Tensor, nn

from infotok.data.text import TextCodec
from infotok.errors import SettingError
from infotok.models.attention import use
from infotok.models.packing import Part, pack
from infotok.options import Count, Section

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TINY = "llama"


class BackboneConfig(Section):
    """name: `llama` for a new tiny one of these sizes, or a pretrained causal LM by hub name or folder, whose own
    sizes and text tokenizer then hold. width: of the hidden states; divided by heads it is even, since rotary positions
    turn pairs."""

    name: str = TINY
    width: Count = 64
    layers: Count = 3
    heads: Count = 4

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> BackboneConfig:
        if self.name == TINY and (self.width % self.heads or (self.width // self.heads) % 2):
            raise ValueError(f"width must be an even multiple of heads ({self.heads}), got {self.width}")
        return self


class Backbone(nn.Module):
    """A causal LM fed with embeddings and an explicit attention pattern."""

    model: PreTrainedModel

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model, self.written_out = model, False
        # Dropout would draw from the global random stream: a resumed run would not repeat an undisturbed one, nor a
        # twin see the noise of its baseline.
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if model.config.model_type == TINY:
            use(model)
            from infotok.models import llama

            self.written_out = llama.suits(model.config)
            if self.written_out:
                llama.write_out(model.base_model)
        for name in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop"):
            if hasattr(model.config, name):
                setattr(model.config, name, 0.0)

    @classmethod
    def create(cls, config: BackboneConfig, vocabulary: int) -> Backbone:
        """A new tiny Llama, or the pretrained LM that `config.name` names.

        Raises:
            InfotokError: the named model cannot be loaded.
        """
        from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

        if config.name == TINY:
            sizes = LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=config.width,
                intermediate_size=8 * config.width // 3,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                max_position_embeddings=2048,
                pad_token_id=0,
                bos_token_id=None,
                eos_token_id=1,
                # Llama's 0.02 suits widths in the thousands; a narrow model learns much faster from unit activations.
                initializer_range=config.width**-0.5,
                attn_implementation="eager",
            )
            return cls(LlamaForCausalLM(sizes))
        try:
            return cls(
                AutoModelForCausalLM.from_pretrained(config.name, attn_implementation="eager", dtype=torch.float32)
            )
        except (OSError, ValueError) as error:
            raise _cannot_load(config.name, error) from None

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Backbone:
        """An untrained backbone with the architecture of `describe`, to be filled with saved weights."""
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(**description)
        return cls(AutoModelForCausalLM.from_config(config, attn_implementation="eager"))

    def describe(self) -> dict[str, Any]:
        """The architecture as JSON."""
        return self.model.config.to_dict()

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    @property
    def layers(self) -> list[nn.Module]:
        """The transformer layers: the members of the list of modules that holds the most weights."""
        lists: list[nn.ModuleList] = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]

        def size(module: nn.Module) -> int:
            return sum(weight.numel() for weight in module.parameters())

        return [*max(lists, key=size)]

    def embed_text(self, ids: Tensor) -> Tensor:
        """(..., width) of token ids (...)."""
        return self.model.get_input_embeddings()(ids)

    def forward(self, embeddings: Tensor, allowed: Tensor, positions: Tensor, cache: Any = None) -> Tensor:
        """Hidden states (B, S, width).

        Args:
            embeddings: (B, S, width). positions: (B, S).
            allowed: (B, S, T), True where a row may attend; T counts the cache's columns too.
            cache: a key-value cache of transformers, extended in place; None for none.
        """
        mask = torch.zeros(allowed.shape, dtype=torch.float32, device=allowed.device)
        mask.masked_fill_(~allowed, torch.finfo(torch.bfloat16).min)
        return self.model.base_model(
            inputs_embeds=embeddings,
            attention_mask=mask[:, None],
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def read(self, parts: list[Part]) -> list[Tensor]:
        """Hidden states (B, L, width) of each part of a packed sequence."""
        if self.written_out:
            from infotok.models import llama

            return llama.read(self.model.base_model, parts)
        return list(self(*pack(parts)).split([part.embeddings.shape[1] for part in parts], 1))

    def text_logits(self, hidden: Tensor) -> Tensor:
        """(..., vocabulary)."""
        return self.model.get_output_embeddings()(hidden)


def text_codec(config: BackboneConfig, trained: Path) -> TextCodec:
    """The text tokenizer: the one that `prepare` trained, or the pretrained backbone's own.

    Raises:
        InfotokError: it cannot be loaded.
    """
    if config.name == TINY:
        return TextCodec.from_file(trained)
    from transformers import AutoTokenizer

    try:
        own = AutoTokenizer.from_pretrained(config.name)
    except (OSError, ValueError) as error:
        raise _cannot_load(config.name, error) from None
    end = own.eos_token_id
    if end is None or not own.is_fast or len(own) <= len(own.all_special_ids):
        raise SettingError(
            "backbone.name", f"{config.name} has no fast tokenizer with an end token; choose another model"
        )
    return TextCodec(own.backend_tokenizer, own.pad_token_id if own.pad_token_id is not None else end, end)


def _cannot_load(name: str, error: Exception) -> SettingError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return SettingError(
        "backbone.name",
        f"'{name}' cannot be loaded ({reason}); use '{TINY}', a folder of a saved causal LM with its tokenizer, or the "
        "name of one on the Hugging Face hub",
    )
