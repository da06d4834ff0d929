"""Tokenizer pretraining: reconstruction with a healthy codebook, before any language."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infotok.evaluation.networks import Perceptual, perceptual_distortion, to_unit
from infotok.information.rate import code_statistics
from infotok.tokenizer.discrete import DiscreteTokenizer
from infotok.training.batches import order
from infotok.training.checkpoints import Checkpoints
from infotok.training.loop import make_optimizer, run
from infotok.training.runtime import autocast, stream


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """usage_weight: bonus per nat of codebook-usage entropy. revive_every: steps between revivals of dead codes
    (none in the last fifth, so that the codebook settles); 0 for never."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int
    usage_weight: float
    revive_every: int
    pixel: float
    perceptual: float
    precision: str


def pretrain(
    tokenizer: DiscreteTokenizer,
    perceptual: Perceptual,
    images: np.ndarray,
    config: PretrainConfig,
    *,
    seed: int,
    device: torch.device,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 0,
    observe: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> list[dict]:
    """Train a tokenizer on images (n, S, S, 3) uint8, in place; returns the history."""
    tokenizer.to(device)
    perceptual.to(device).requires_grad_(False).eval()
    used = torch.zeros(tokenizer.config.codebook, dtype=torch.bool, device=device)
    latest: dict[str, Tensor] = {}

    def step_losses(step: int) -> dict[str, Tensor]:
        batch = to_unit(torch.from_numpy(images[order(len(images), config.batch, seed, step)]).to(device))
        with autocast(device, config.precision):
            features = tokenizer.features(batch)
            posterior = tokenizer.posterior_of(features)
            tokens = tokenizer.sample(posterior, stream(device, seed, step, 2))
            out = tokenizer.decode(tokens.vectors)
        distortion = perceptual_distortion(perceptual, out.float(), batch, config.pixel, config.perceptual)
        usage = tokenizer.usage_entropy(posterior)
        used[tokens.codes.flatten()] = True
        latest["features"] = features.detach()
        return {
            "loss": distortion - config.usage_weight * usage,
            "reconstruction": distortion,
            "usage_entropy": usage,
            "logit_scale": tokenizer.log_scale.exp(),
        }

    def after_step(step: int) -> None:
        if config.revive_every and (step + 1) % config.revive_every == 0:
            if step + 1 <= 0.8 * config.steps:
                tokenizer.revive(~used, latest["features"], stream(device, seed, step, 3))
            used.zero_()

    optimizer = make_optimizer([(list(tokenizer.parameters()), config.learning_rate)], 0.01, device)
    # A checkpoint falls on a revival, where the usage count starts anew and needs no saving.
    every = max(1, round(checkpoint_every / config.revive_every)) * config.revive_every if config.revive_every else 0
    return run(
        tokenizer,
        optimizer,
        step_losses,
        steps=config.steps,
        warmup=config.warmup,
        final=0.03,
        checkpoints=checkpoints,
        checkpoint_every=every or checkpoint_every,
        after_step=after_step,
        observe=observe,
    )


@torch.no_grad()
def codebook_health(tokenizer: DiscreteTokenizer, images: np.ndarray, seed: int, batch: int = 500) -> dict[str, float]:
    """`code_statistics` of images (n, S, S, 3) sent through the channel."""
    device, codes = next(tokenizer.parameters()).device, []
    for start in range(0, len(images), batch):
        posterior = tokenizer.encode(to_unit(torch.from_numpy(images[start : start + batch].copy()).to(device)))
        codes.append(tokenizer.sample(posterior, stream(device, seed, start, 4)).codes)
    return code_statistics(torch.cat(codes), tokenizer.config.codebook)


def collapse_warning(health: dict[str, float], codebook: int) -> str | None:
    """A sentence when the codebook has collapsed: under a tenth of its codes carry the usage."""
    if health["perplexity"] >= 0.1 * codebook:
        return None
    return (
        f"codebook collapse: perplexity {health['perplexity']:.1f} of {codebook} codes, "
        f"{health['dead_codes']:.0f} never used; raise pretrain.usage_weight or lower tokenizer.codebook"
    )
