"""Many images through a tokenizer's channel, in batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from infotok.data.pixels import to_bytes, to_unit
from infotok.information.channel import Channel
from infotok.random import Purpose, stream
from infotok.tokenizer.base import Tokenizer, Tokens


@torch.no_grad()
def through(tokenizer: Tokenizer, images: np.ndarray, seed: int, batch: int = 500) -> tuple[Tokens, Channel]:
    """Send images (n, S, S, 3) uint8 through the channel as in training.

    Returns:
        their tokens, and the distribution that the tokens follow.
    """
    device, tokens = next(tokenizer.parameters()).device, []
    channels: list[Any] = []  # all of one kind
    for start in range(0, len(images), batch):
        posterior = tokenizer.encode(to_unit(torch.from_numpy(images[start : start + batch].copy()).to(device)))
        tokens.append(tokenizer.sample(posterior, stream(device, seed, start, Purpose.CHANNEL)))
        channels.append(tokenizer.channel_of(posterior))
    return Tokens.cat(tokens), type(channels[0]).cat(channels)


@torch.no_grad()
def mean_psnr(tokenizer: Tokenizer, images: np.ndarray, vectors: Tensor, batch: int = 500) -> float:
    """Peak signal-to-noise ratio, dB, of what comes back from the vectors (n, K, D) of images (n, S, S, 3) uint8; the
    mean over images."""
    total = 0.0
    for start in range(0, len(images), batch):
        decoded = to_bytes(tokenizer.decode(vectors[start : start + batch])).cpu().double()
        wanted = torch.from_numpy(images[start : start + batch].copy()).double()
        error = (decoded - wanted).square().flatten(1).mean(1).clamp_min(1e-10)  # 148 dB where nothing is lost
        total += float((10 * torch.log10(255**2 / error)).sum())
    return total / len(images)
