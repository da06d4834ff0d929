"""IB-regularized joint training of tokenizer, prior and language model: the objective of the paper.

    L = w_u answers + w_g drawing + w_r D(x, dec(z)) + beta * penalty(estimator)

plus the prior's own code length, whose gradient reaches the prior alone, so that every arm, the baseline too, trains
one and reports a rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from infotok.evaluation.networks import Perceptual, perceptual_distortion, to_unit
from infotok.information.objective import Observed, code_cost, penalty_of
from infotok.models.unified import UnifiedModel
from infotok.training.batches import Batches
from infotok.training.checkpoints import Checkpoints
from infotok.training.loop import make_optimizer, run
from infotok.training.runtime import autocast, stream

NATS = math.log(2)  # nats in a bit


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """estimator: `none` or a module of `infotok.information.estimators`; beta: loss per nat per image, reached
    linearly over the first `beta_warmup` of the steps."""

    estimator: str
    beta: float
    steps: int
    learning_rate: float
    tokenizer_learning_rate: float
    prior_learning_rate: float
    warmup: int
    final_fraction: float
    beta_warmup: float
    clip: float
    weight_decay: float
    understanding: float
    generation: float
    reconstruction: float
    pixel: float
    perceptual: float
    ema: float
    precision: str


def train_jointly(
    model: UnifiedModel,
    perceptual: Perceptual,
    batches: Batches,
    config: JointConfig,
    *,
    seed: int,
    device: torch.device,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 0,
    observe: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> list[dict]:
    """Train in place; returns the history.

    Raises:
        InfotokError: a loss is not finite, or a checkpoint is damaged.
    """
    model.to(device)
    perceptual.to(device).requires_grad_(False).eval()
    penalty = penalty_of(config.estimator)

    def step_losses(step: int) -> dict[str, Tensor]:
        images, texts = to_unit(batches.images(step).to(device)), batches.texts(step).to(device)
        with autocast(device, config.precision):
            out = model(images, texts, stream(device, seed, step, 5))
            decoded = model.tokenizer.decode(out.tokens.vectors)
        distortion = perceptual_distortion(perceptual, decoded.float(), images, config.pixel, config.perceptual)
        posterior, prior = model.tokenizer.channel_of(out.posterior), model.prior()
        prior_cost = code_cost(posterior.detach(), prior, entropy_weight=0.0)
        with torch.no_grad():
            rate = code_cost(posterior, prior, entropy_weight=1.0)
        loss = (
            config.understanding * out.answer_loss
            + config.generation * out.generation_loss
            + config.reconstruction * distortion
        )
        parts = {
            "understanding": out.answer_loss,
            "generation": out.generation_loss,
            "reconstruction": distortion,
            "rate_bits": rate / NATS,
        }
        if penalty is not None:
            observed = Observed(
                images, out.tokens.vectors, out.posterior, prior.detach(), out.conditional.detach(), out.text
            )
            cost = penalty(observed)
            beta = config.beta * min(1.0, (step + 1) / max(1.0, config.beta_warmup * config.steps))
            loss = loss + beta * cost
            parts |= {"penalty_nats": cost, "beta": torch.tensor(beta)}
        return {"loss": loss + prior_cost - prior_cost.detach(), **parts}

    prior = list(model.prior.parameters())
    tokenizer = list(model.tokenizer.parameters())
    special = {id(p) for p in prior + tokenizer}
    language = [p for p in model.parameters() if id(p) not in special]
    groups = [
        (language, config.learning_rate),
        (tokenizer, config.tokenizer_learning_rate),
        (prior, config.prior_learning_rate),
    ]
    return run(
        model,
        make_optimizer(groups, config.weight_decay, device),
        step_losses,
        steps=config.steps,
        warmup=config.warmup,
        final=config.final_fraction,
        clip=config.clip,
        unclipped=prior,  # its loss is apart from the objective, and must not shrink the others' steps
        ema=config.ema,
        checkpoints=checkpoints,
        checkpoint_every=checkpoint_every,
        observe=observe,
    )
