"""Tokenizer pretraining: reconstruction with a healthy codebook, before any language."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infotok.data.pixels import to_unit
from infotok.distributed import ALONE, World
from infotok.examiners.perceptual import Distortion, Perceptual, perceptual_distortion
from infotok.information.channel import Categorical
from infotok.options import Count, Natural, Positive, Precision, Section, Weight
from infotok.random import Purpose, Source, stream
from infotok.tokenizer.base import Tokenizer
from infotok.tokenizer.discrete import DiscreteTokenizer
from infotok.training.checkpoints import Checkpoints, GatheredCheckpoints
from infotok.training.graph import Compile, one_graph, resolved
from infotok.training.inputs import Inputs
from infotok.training.loop import make_optimizer, run
from infotok.training.order import order
from infotok.training.parallel import Parallel, collect, gathered, sharded, to_train
from infotok.training.runtime import autocast, uses_bf16
from infotok.training.step import Losses


class PretrainConfig(Section):
    """Section `pretrain`.

    steps, batch (images a step), learning_rate and the `warmup` steps over which it rises; it falls by a cosine.
    usage_weight: bonus per nat of codebook-usage entropy, against collapse. revive_every: steps between moving dead
    codes onto live features (none in the last fifth, so that the codebook settles); 0 for never. Neither concerns
    continuous tokens. precision: bf16 autocast, fp32, or auto: bf16 where the processor has it. checkpoint_every:
    steps between resumable checkpoints. compile, parallel: as of `train`.
    """

    steps: Count = 1000
    batch: Count = 32
    learning_rate: Positive = 0.003
    warmup: Natural = 50
    usage_weight: Weight = 0.002
    revive_every: Natural = 50
    precision: Precision = "auto"
    compile: Compile = "auto"
    parallel: Parallel = "replicate"
    checkpoint_every: Count = 200


@dataclass
class Given:
    """What a step is given: images (B, S, S, 3) uint8, and what its random numbers come from."""

    images: Tensor
    noise: Source


def pretrain(
    tokenizer: Tokenizer,
    perceptual: Perceptual,
    images: np.ndarray,
    config: PretrainConfig,
    *,
    seed: int,
    device: torch.device,
    distortion: Distortion = Distortion(),
    checkpoints: Checkpoints | None = None,
    observe: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    world: World = ALONE,
) -> list[dict]:
    """Train a tokenizer on images (n, S, S, 3) uint8, in place, in every process of `world`; returns the history."""
    held = to_train(tokenizer, config.parallel, world, device)
    perceptual.to(device).requires_grad_(False).eval()
    codebook = _Codebook(held, config, world, device) if isinstance(held, DiscreteTokenizer) else None

    precision = "bf16" if uses_bf16(device, config.precision) else "fp32"  # asked once: no graph can ask

    def step_losses(given: Given) -> dict[str, Tensor]:
        batch = to_unit(given.images)
        with autocast(device, precision):
            posterior = held.encode(batch)
            tokens = held.sample(posterior, given.noise)
            out = held.decode(held.nested_dropout(tokens.vectors, given.noise))
        error = perceptual_distortion(perceptual, out.float(), batch, distortion)
        losses = {"loss": error, "reconstruction": error}
        if not isinstance(held, DiscreteTokenizer):
            return losses | {"posterior_entropy": posterior.entropy().sum(-1).mean()}
        assert codebook is not None
        assert tokens.codes is not None
        assert isinstance(posterior, Categorical)
        codebook.used[tokens.codes.flatten()] = True
        usage = held.usage_entropy(posterior, world)
        losses["loss"] = error - config.usage_weight * usage
        return losses | {"usage_entropy": usage, "logit_scale": held.log_scale.exp()}

    def shown(step: int) -> Tensor:
        chosen = order(len(images), config.batch, seed, step)[world.rows(config.batch)]
        return torch.from_numpy(images[chosen])

    losses: Losses = step_losses
    if held is not tokenizer:
        losses = sharded(held, step_losses, world)
        checkpoints = checkpoints and GatheredCheckpoints(checkpoints.folder, world)

    def after_step(step: int) -> None:
        if codebook is not None and config.revive_every and (step + 1) % config.revive_every == 0:
            with gathered(losses):
                features = codebook.features(shown(step).to(device))
            codebook.tend(step, features, stream(device, seed, step, Purpose.REVIVAL))

    compile, extra = resolved(config.compile, "pretrain.compile", device, world), {}
    if codebook is not None:
        extra["used"] = codebook.used
    inputs = Inputs(
        lambda step, sources: Given(shown(step), *sources),
        lambda step: [stream(device, seed, step, Purpose.PRETRAINING, world=world)],
        device,
    )
    in_graph = compile != "never"
    if in_graph:
        inputs.rehearse(held, step_losses, list(extra.values()))
    optimizer = make_optimizer(
        [(list(held.parameters()), config.learning_rate)], 0.01, device, in_graph, fused=compile != "fuse"
    )
    history = run(
        held,
        optimizer,
        losses,
        steps=config.steps,
        warmup=config.warmup,
        final=0.03,
        checkpoints=checkpoints,
        checkpoint_every=config.checkpoint_every,
        extra=extra,
        given=inputs,
        whole=lambda step: one_graph(step, compile, device),
        after_step=after_step,
        observe=observe,
        world=world,
    )
    if held is not tokenizer:
        collect(tokenizer, held, device)
    return history


class _Codebook:
    """Which codes were used since the last revival."""

    def __init__(self, tokenizer: DiscreteTokenizer, config: PretrainConfig, world: World, device: torch.device):
        self.tokenizer, self.last, self.world = tokenizer, 0.8 * config.steps, world
        self.used = torch.zeros(tokenizer.config.codebook, dtype=torch.bool, device=device)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Those of the images (B, S, S, 3) uint8 of all processes."""
        return self.world.gather(self.tokenizer.features(to_unit(images)))

    @torch.no_grad()
    def tend(self, step: int, features: Tensor, generator: torch.Generator) -> None:
        """Move the codes that no step used since the last time onto features of a step's images."""
        if step + 1 <= self.last:
            used = self.world.gather(self.used[None]).any(0)
            self.tokenizer.revive(~used, features, generator)
        self.used.zero_()
