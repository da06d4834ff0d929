"""A tiny model with the interface of Lumina-DiMOO's own code, as a folder of the hub would bring it.

It reads both ways, with rotary positions and without attention masks, and is written for transformers 4, in that
`post_init` is never called.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel


class TinyConfig(PretrainedConfig):
    model_type = "llada"

    def __init__(self, vocab_size=512, d_model=64, n_heads=4, n_layers=2, **others):
        super().__init__(**others)
        self.vocab_size, self.d_model, self.n_heads, self.n_layers = vocab_size, d_model, n_heads, n_layers


class Output(NamedTuple):
    logits: torch.Tensor
    hidden_states: tuple | None


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, self.heads = config.d_model, config.n_heads
        self.attn_norm, self.ff_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q_proj, self.k_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.v_proj, self.attn_out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.ff_proj, self.up_proj = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.ff_out = nn.Linear(2 * width, width, bias=False)

    def forward(self, x):
        normed = self.attn_norm(x)
        q, k, v = (
            layer(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(rotated(q), rotated(k), v)
        x = x + self.attn_out(mixed.transpose(1, 2).flatten(2))
        normed = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(normed)) * self.up_proj(normed))


def rotated(x):
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * 10000.0 ** -(torch.arange(half) / half)
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Inner(nn.Module):
    def __init__(self, config):
        super().__init__()
        parts = {
            "wte": nn.Embedding(config.vocab_size, config.d_model),
            "blocks": nn.ModuleList(Block(config) for _ in range(config.n_layers)),
            "ln_f": nn.RMSNorm(config.d_model),
            "ff_out": nn.Linear(config.d_model, config.vocab_size, bias=False),
        }
        self.transformer = nn.ModuleDict(parts)

    def forward(self, input_ids, input_embeddings=None, output_hidden_states=None):
        x = self.transformer["wte"](input_ids) if input_embeddings is None else input_embeddings
        hidden = [x]
        for block in self.transformer["blocks"].children():
            x = block(x)
            hidden.append(x)
        hidden[-1] = x = self.transformer["ln_f"](x)
        return Output(self.transformer["ff_out"](x), tuple(hidden) if output_hidden_states else None)


class TinyModel(PreTrainedModel):
    config_class = TinyConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = Inner(config)

    def forward(self, input_ids=None, infer=False):
        return self.model(torch.tensor(input_ids.tolist()))

    def get_input_embeddings(self):
        return self.model.transformer["wte"]

    def get_output_embeddings(self):
        return self.model.transformer["ff_out"]
