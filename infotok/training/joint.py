"""IB-regularized joint training of tokenizer, prior and language model: the objective of the paper.

    L = w_u answers + w_g drawing + w_r D(x, dec(z)) + beta * penalty(estimator) - gamma * consistency(estimator)

plus the priors' own code lengths, whose gradients reach the priors alone, so that every arm, the baseline too, trains
them and reports a rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infotok.data.pixels import to_unit
from infotok.distributed import ALONE, World
from infotok.examiners.perceptual import Perceptual, perceptual_distortion
from infotok.information.consistency import InfoNCE
from infotok.information.kernels import Kernels
from infotok.information.multiplier import Multiplier
from infotok.information.objective import Observed, code_cost, consistency_of, independent_of, penalty_of
from infotok.models.unified import UnifiedModel
from infotok.training.batches import Batches
from infotok.training.checkpoints import Checkpoints
from infotok.training.loop import make_optimizer, run
from infotok.training.runtime import autocast, stream

NATS = math.log(2)  # nats in a bit
FEWEST = 4  # captions that consistency needs: fewer, after caption dropout, say nothing of it


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """estimator: `none` or a module of `infotok.information.estimators`. beta: loss per unit of its penalty (a nat per
    image), reached linearly over the first `beta_warmup` of the steps. target_bits: with a number above 0 beta is where
    a multiplier starts that drives the rate to it; over `beta_warmup` the target comes down from the first step's rate.
    consistency: gamma. prior: marginal or autoregressive, the one that penalties use."""

    estimator: str
    beta: float
    target_bits: float
    consistency: float
    prior: str
    kernels: Kernels
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
    world: World = ALONE,
) -> list[dict]:
    """Train in place, in every process of `world`, whose rows `batches` gives; returns the history.

    Raises:
        InfotokError: a loss is not finite, or a checkpoint is damaged.
    """
    model.to(device)
    perceptual.to(device).requires_grad_(False).eval()
    trained = _Trained(model, config).to(device)

    def step_losses(step: int) -> dict[str, Tensor]:
        images, texts = to_unit(batches.images(step).to(device)), batches.texts(step).to(device)
        with autocast(device, config.precision):
            out = model(images, texts, stream(device, seed, step, 5, world=world))
            decoded = model.tokenizer.decode(out.read)
        distortion = perceptual_distortion(perceptual, decoded.float(), images, config.pixel, config.perceptual)
        posterior, priors = model.tokenizer.channel_of(out.posterior.detach()), model.priors(out.tokens.vectors)
        lengths = {kind: code_cost(posterior, prior, entropy_weight=0.0) for kind, prior in priors.items()}
        prior_cost, entropy = sum(lengths.values()), posterior.entropy().sum(-1).mean()
        rates = world.averages({kind: (length.detach() - entropy) / NATS for kind, length in lengths.items()})
        loss = (
            config.understanding * out.answer_loss
            + config.generation * out.drawing.loss
            + config.reconstruction * distortion
        )
        parts = {
            "understanding": out.answer_loss,
            "generation": out.drawing.loss,
            "reconstruction": distortion,
            "rate_bits": rates["marginal"],
            "autoregressive_rate_bits": rates["autoregressive"],
        }
        if trained.penalty is not None:
            observed = Observed(
                posterior=out.posterior,
                prior=priors[config.prior].detach(),
                conditional=out.drawing.distribution.detach(),
                weight=out.drawing.weight,
                images=images,
                vectors=out.tokens.vectors,
                text=out.text.detach(),
                told=out.told,
                critic=trained.critic,
                kernels=config.kernels,
                generator=stream(device, seed, step, 8),
                gather=world.gather,
            )
            term, terms = trained.information(observed, rates[config.prior], step)
            loss, parts = loss + term, parts | terms
        return {"loss": loss + prior_cost - prior_cost.detach(), **parts}

    prior = list(model.priors.parameters())
    tokenizer = list(model.tokenizer.parameters())
    special = {id(p) for p in prior + tokenizer}
    language = [p for p in trained.parameters() if id(p) not in special]
    groups = [
        (language, config.learning_rate),
        (tokenizer, config.tokenizer_learning_rate),
        (prior, config.prior_learning_rate),
    ]
    return run(
        trained,
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
        world=world,
    )


class _Trained(nn.Module):
    """The model with what only its training has: the critic of the consistency term and the multiplier of beta."""

    def __init__(self, model: UnifiedModel, config: JointConfig):
        super().__init__()
        self.model, self.config = model, config
        self.penalty, self.independent = penalty_of(config.estimator), independent_of(config.estimator)
        self.consistency = None
        self.critic = self.multiplier = None
        if self.penalty is None:
            return
        if config.consistency:
            self.consistency = consistency_of(config.estimator)
            tokens = model.tokenizer.config
            self.critic = InfoNCE(tokens.tokens, tokens.dimension, model.backbone.width)
        if config.target_bits:
            self.multiplier = Multiplier(config.target_bits, config.beta, round(config.beta_warmup * config.steps))

    def information(self, observed: Observed, rate_bits: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """beta * penalty - gamma * consistency, a scalar, and its parts for the log."""
        rise = min(1.0, (step + 1) / max(1.0, self.config.beta_warmup * self.config.steps))
        beta = self.multiplier.update(rate_bits) if self.multiplier else torch.tensor(self.config.beta * rise)
        cost = self.penalty(observed)
        term, parts = beta * cost, {"penalty": cost, "beta": beta}
        if self.independent is not None:
            parts["penalty_independent"] = self.independent(observed)
        if self.consistency is not None:
            gain = self.consistency(observed) if observed.gather(observed.told).sum() >= FEWEST else cost.new_zeros(())
            term, parts = term - self.config.consistency * rise * gain, parts | {"consistency": gain}
        return term, parts
