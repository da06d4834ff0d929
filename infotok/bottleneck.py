"""The regularizer by itself, for a tokenizer and a training loop of your own.

Shapes: B images, K tokens, C codes, D dimensions of a feature. Information in nats, summed over the tokens of an image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infotok.information.channel import Categorical
from infotok.information.objective import Observed, code_cost, estimator_names, penalty_of
from infotok.information.priors import CategoricalPrior

NATS = math.log(2)  # nats in a bit


@dataclass
class Regularization:
    """loss: add it to yours (scalar). parts: `penalty_nats`, `beta`, `rate_bits` and `code_length_bits` per image,
    detached, for the log."""

    loss: Tensor
    parts: dict[str, Tensor]


def posterior_logits(features: Tensor, codebook: Tensor) -> Tensor:
    """What a nearest-neighbour quantizer implies about its codes: log p(feature | code), up to a constant.

    Every code is taken as a Gaussian around its vector, with the variance that maximizes the likelihood of the nearest
    codes: the mean squared quantization error per dimension, detached.

    Args:
        features: (B, K, D), before quantization. codebook: (C, D).

    Returns:
        (B, K, C), for `InformationBottleneck`.
    """
    squared = torch.cdist(features.float().flatten(0, 1), codebook.float()).square()
    variance = (squared.detach().amin(-1).mean() / features.shape[-1]).clamp_min(1e-8)
    return (-squared / (2 * variance)).view(*features.shape[:2], -1)


class InformationBottleneck(nn.Module):
    """beta * estimate of I(X;Z) for the discrete tokens of any tokenizer, with a marginal prior of its own.

    Put its parameters, the prior's, into an optimizer: the prior learns the codes' frequencies by a loss whose gradient
    reaches nothing else. Where the tokenizer is frozen the term has no gradient to give: it takes what comes before
    quantization, never ids.

    Args:
        estimator: `vib` (rate; for a channel that samples its codes), `dib` (code length; also for a deterministic
            quantizer) or `ceb` (code length under your generator's own p(z | text)).
        beta: loss per nat per image.
        tokens, codebook: K and C.
        warmup: training steps over which beta rises linearly from 0.

    Raises:
        ValueError: the estimator is unknown, or beta is negative.
    """

    def __init__(self, estimator: str = "dib", *, beta: float, tokens: int, codebook: int, warmup: int = 0):
        super().__init__()
        if estimator not in estimator_names():
            raise ValueError(f"unknown estimator {estimator!r}: choose one of {', '.join(estimator_names())}")
        if not beta >= 0:
            raise ValueError(f"beta must be at least 0, got {beta}")
        self.estimator, self.beta, self.warmup = estimator, beta, warmup
        self.prior = CategoricalPrior(tokens, codebook)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, logits: Tensor, conditional: Tensor | None = None) -> Regularization:
        """The term of one step; in training mode it counts the step for the warm-up.

        Args:
            logits: (B, K, C), unnormalized log q(z|x).
            conditional: (B, K, C), the generator's logits of the same tokens given their text, for `ceb`; its gradients
                are stopped.

        Raises:
            ValueError: `ceb` without `conditional`, or shapes that do not belong to this tokenizer.
        """
        if logits.ndim != 3 or logits.shape[1:] != self.prior.logits.shape:
            raise ValueError(
                f"logits must be (B, {self.prior.logits.shape[0]}, {self.prior.logits.shape[1]}), "
                f"got {tuple(logits.shape)}"
            )
        if self.estimator == "ceb" and conditional is None:
            raise ValueError("ceb needs `conditional`, the generator's logits of these tokens given their text")
        posterior, prior = Categorical(logits), self.prior()
        if self.training:
            self.steps += 1
        beta = self.beta * min(1.0, self.steps.item() / self.warmup) if self.warmup else self.beta
        given = None if conditional is None else Categorical(conditional.detach())
        # The estimators of discrete tokens read the three distributions alone.
        cost = penalty_of(self.estimator)(Observed(posterior=posterior, prior=prior.detach(), conditional=given))
        length = code_cost(posterior.detach(), prior, entropy_weight=0.0)
        with torch.no_grad():
            rate = code_cost(posterior, prior, entropy_weight=1.0)
        parts = {
            "penalty_nats": cost.detach(),
            "beta": torch.tensor(beta),
            "rate_bits": rate / NATS,
            "code_length_bits": length.detach() / NATS,
        }
        return Regularization(beta * cost + length - length.detach(), parts)
