"""The decoder of a VQGAN (Esser et al. 2021), of which Chameleon in transformers has the encoder alone.

Its weights are named as in the original checkpoint, `vqgan.ckpt` beside Chameleon's and Anole's weights, and as in
checkpoints of transformers that have it, Anole's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.chameleon import modeling_chameleon as chameleon

Block, Attention = chameleon.ChameleonVQVAEEncoderResnetBlock, chameleon.ChameleonVQVAEEncoderAttnBlock


class Decoder(nn.Module):
    """Latents (B, latent_channels, h, w) to pixels (B, 3, H, W), the mirror of the encoder of a configuration."""

    def __init__(self, config: Any):
        super().__init__()
        widths = [config.base_channels * multiplier for multiplier in config.channel_multiplier]
        width, side = widths[-1], config.resolution // 2 ** (len(widths) - 1)
        attends = set(config.attn_resolutions or ()) if config.attn_type == "vanilla" else set()
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = nn.ModuleDict(
            {
                "block_1": Block(config=config, in_channels=width, out_channels=width),
                "attn_1": Attention(width) if config.attn_type == "vanilla" else nn.Identity(),
                "block_2": Block(config=config, in_channels=width, out_channels=width),
            }
        )
        levels: list[_Level] = []
        for level in reversed(range(len(widths))):
            levels.insert(0, _Level(config, width, widths[level], side in attends, grows=level > 0))
            width, side = widths[level], side * 2
        self.up = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(32, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, config.in_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.mid["block_2"](self.mid["attn_1"](self.mid["block_1"](self.conv_in(latents))))
        for level in reversed(self.up):
            hidden = level(hidden)
        return self.conv_out(F.silu(self.norm_out(hidden)))


class _Level(nn.Module):
    """Blocks of one resolution, and the way to the next."""

    def __init__(self, config: Any, width: int, out: int, attends: bool, grows: bool):
        super().__init__()
        widths = [width] + [out] * config.num_res_blocks
        self.block = nn.ModuleList(Block(config=config, in_channels=one, out_channels=out) for one in widths)
        self.attn = nn.ModuleList(Attention(out) for _ in widths if attends)
        self.upsample = _Upsample(out) if grows else None

    def forward(self, hidden: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            hidden = block(hidden)
            if len(self.attn):
                hidden = self.attn[index](hidden)
        return hidden if self.upsample is None else self.upsample(hidden)


class _Upsample(nn.Module):
    """Twice the sides."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))


def decoder_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of a `Decoder` among the weights of a model or a VQGAN; empty where it has none."""
    places = ("model.vqmodel.decoder.", "vqmodel.decoder.", "decoder.")
    for place in places:
        found = {name[len(place) :]: value for name, value in state.items() if name.startswith(place)}
        if found:
            return found
    return {}
