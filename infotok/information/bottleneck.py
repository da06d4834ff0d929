"""The regularizer by itself, for a tokenizer and a training loop of your own.

Shapes: B images, K tokens, C codes, D dimensions of a feature. Information in nats, summed over the tokens of an image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infotok.information.channel import Categorical, Channel, Gaussian
from infotok.information.consistency import InfoNCE
from infotok.information.kernels import Kernels
from infotok.information.multiplier import Multiplier
from infotok.information.objective import Observed, code_cost, estimator_names, penalty_of
from infotok.information.priors import KINDS, AutoregressivePrior, CategoricalPrior, GaussianPrior

NATS = math.log(2)  # nats in a bit


@dataclass
class Regularization:
    """loss: add it to yours (scalar). parts: `penalty` and `beta`, but for hsic `rate_bits` and `code_length_bits`, and
    where it is asked for `consistency`, per image, detached, for the log."""

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
    """beta * estimate of I(X;Z) for the tokens of any tokenizer, with a prior of its own.

    Put its parameters, the prior's, into an optimizer: the prior learns what tokens are frequent by a loss whose
    gradient reaches nothing else. Where the tokenizer is frozen the term has no gradient to give: it takes what comes
    before quantization, never ids.

    Args:
        estimator: `vib` (rate; for a channel that samples its tokens), `dib` (code length; also for a deterministic
            quantizer), `ceb` (code length under your generator's own p(z | text)) or `hsic` (kernel dependence of
            inputs and token vectors, without a prior). The code length of Gaussian tokens falls with their scale:
            unless your tokenizer bounds their noise from below, take `vib`.
        beta: loss per nat per image, or per unit of dependence.
        tokens: K. codebook: C of discrete tokens. dimension: D of Gaussian tokens; of discrete ones, D of their
            vectors, which the autoregressive prior and consistency need.
        prior: `marginal`, or `autoregressive`, which is tighter where tokens depend on each other.
        warmup: training steps over which beta rises linearly from 0, or the target comes down from the first rate.
        target_bits: drive the rate to these bits per image by a multiplier that starts at beta.
        kernels: of hsic.
        consistency: reward per nat of a learned lower bound on I(tokens; text), whose critic is a part of this module.
            text_width: of the text states that it compares the tokens with.

    Raises:
        ValueError: the estimator is unknown, sizes are missing, or two settings exclude each other.
    """

    def __init__(
        self,
        estimator: str = "dib",
        *,
        beta: float,
        tokens: int | None = None,
        codebook: int | None = None,
        dimension: int | None = None,
        prior: str = "marginal",
        warmup: int = 0,
        target_bits: float | None = None,
        kernels: Kernels = Kernels(),
        consistency: float = 0.0,
        text_width: int | None = None,
    ):
        super().__init__()
        if estimator not in estimator_names():
            raise ValueError(f"unknown estimator {estimator!r}: choose one of {', '.join(estimator_names())}")
        if not beta >= 0:
            raise ValueError(f"beta must be at least 0, got {beta}")
        self.estimator, self.beta, self.warmup, self.kernels = estimator, beta, warmup, kernels
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.multiplier = None if target_bits is None else self._make_multiplier(target_bits)
        self.prior = None if estimator == "hsic" else _make_prior(prior, tokens, codebook, dimension)
        self.kind, self.sizes = (
            (Gaussian, (tokens, dimension)) if codebook is None else (Categorical, (tokens, codebook))
        )
        self.read = (tokens, dimension)  # what the autoregressive prior reads of an image
        self.consistency = consistency
        self.critic = self._make_critic(text_width) if consistency else None

    def _make_multiplier(self, target_bits: float) -> Multiplier:
        if self.estimator == "hsic":
            raise ValueError("target_bits needs a rate, and hsic has none: choose another estimator")
        if not (target_bits > 0 and self.beta > 0):
            raise ValueError(f"target_bits and beta must be above 0, got {target_bits} and {self.beta}")
        return Multiplier(target_bits, self.beta, self.warmup)

    def _make_critic(self, text_width: int | None) -> InfoNCE:
        if not self.consistency > 0:
            raise ValueError(f"consistency must be at least 0, got {self.consistency}")
        if None in (*self.read, text_width):
            raise ValueError("consistency needs `tokens`, `dimension` and `text_width`, the sizes of what it compares")
        return InfoNCE(*self.read, text_width)

    def forward(
        self,
        posterior: Tensor | Channel | None = None,
        conditional: Tensor | Channel | None = None,
        *,
        inputs: Tensor | None = None,
        vectors: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Regularization:
        """The term of one step; in training mode it counts the step for warm-up or multiplier.

        Args:
            posterior: q(z|x), logits (B, K, C) of discrete tokens or `Gaussian(mean, log_variance)`, each (B, K, D).
            conditional: what your generator says of the same tokens given their text, for `ceb`, in the same form; its
                gradients are stopped.
            vectors: (B, K, D), the tokens that flowed, for `hsic`, the autoregressive prior and consistency.
            inputs: (B, ...), the images that `hsic` compares them with.
            text: (B, text_width), states of the images' texts, for consistency; its gradients are stopped.

        Raises:
            ValueError: something is missing, or has a shape that does not belong to this tokenizer.
        """
        term = self._compression(posterior, conditional, inputs, vectors)
        if self.critic is None:
            return term
        if text is None or vectors is None:
            raise ValueError("consistency needs `vectors` and `text`, the tokens that flowed and the texts' states")
        gain = self.critic(vectors, text.detach())
        return Regularization(term.loss - self.consistency * gain, term.parts | {"consistency": gain.detach()})

    def _compression(
        self,
        posterior: Tensor | Channel | None,
        conditional: Tensor | Channel | None,
        inputs: Tensor | None,
        vectors: Tensor | None,
    ) -> Regularization:
        """beta * penalty, and the prior's own loss."""
        if self.prior is None:
            if inputs is None or vectors is None:
                raise ValueError("hsic needs `inputs` and `vectors`, the images and the vectors of their tokens")
            cost = penalty_of("hsic")(Observed(images=inputs, vectors=vectors, kernels=self.kernels))
            beta = self._next_beta(cost)
            return Regularization(beta * cost, {"penalty": cost.detach(), "beta": beta})
        q = self._channel(posterior, "the posterior")
        if self.estimator == "ceb" and conditional is None:
            raise ValueError("ceb needs `conditional`, what the generator says of these tokens given their text")
        given = None if conditional is None else self._channel(conditional, "`conditional`").detach()
        r = self.prior(self._read(vectors))
        cost = penalty_of(self.estimator)(Observed(posterior=q, prior=r.detach(), conditional=given))
        length = code_cost(q.detach(), r, entropy_weight=0.0)
        with torch.no_grad():
            rate = code_cost(q, r, entropy_weight=1.0) / NATS
        beta = self._next_beta(rate)
        bits = {"rate_bits": rate, "code_length_bits": length.detach() / NATS}
        return Regularization(beta * cost + length - length.detach(), {"penalty": cost.detach(), "beta": beta} | bits)

    def _next_beta(self, rate_bits: Tensor) -> Tensor:
        if self.multiplier is not None:
            return self.multiplier.update(rate_bits) if self.training else self.multiplier.log_beta.exp()
        if self.training:
            self.steps += 1
        return torch.tensor(self.beta * min(1.0, self.steps.item() / self.warmup) if self.warmup else self.beta)

    def _channel(self, given: Tensor | Channel | None, name: str) -> Channel:
        """Logits or a distribution as a distribution over this tokenizer's tokens."""
        if self.kind is Categorical and isinstance(given, Tensor):
            given = Categorical(given)
        wanted = "logits" if self.kind is Categorical else "Gaussian(mean, log_variance), each"
        shape = f"(B, {self.sizes[0]}, {self.sizes[1]})"
        if not isinstance(given, self.kind):
            raise ValueError(f"{name} must be {wanted} {shape}, got {type(given).__name__}")
        for part in vars(given).values():
            if isinstance(part, Tensor) and (part.ndim != 3 or part.shape[1:] != self.sizes):
                raise ValueError(f"{name} must be {wanted} {shape}, got {tuple(part.shape)}")
        return given

    def _read(self, vectors: Tensor | None) -> Tensor | None:
        """The vectors that the autoregressive prior reads; a marginal prior reads none."""
        if isinstance(self.prior, AutoregressivePrior) and (vectors is None or vectors.shape[1:] != self.read):
            found = None if vectors is None else tuple(vectors.shape)
            wanted = f"`vectors` (B, {self.read[0]}, {self.read[1]})"
            raise ValueError(f"the autoregressive prior needs {wanted}, got {found}")
        return vectors


def _make_prior(kind: str, tokens: int | None, codebook: int | None, dimension: int | None) -> nn.Module:
    if kind not in KINDS:
        raise ValueError(f"unknown prior {kind!r}: choose one of {', '.join(KINDS)}")
    if tokens is None or (codebook is None and dimension is None):
        raise ValueError("give `tokens` and, of discrete tokens, `codebook`, of Gaussian ones, `dimension`")
    marginal = GaussianPrior(tokens, dimension) if codebook is None else CategoricalPrior(tokens, codebook)
    if kind == "marginal":
        return marginal
    if dimension is None:
        raise ValueError("the autoregressive prior needs `dimension`, of the token vectors that it reads")
    return AutoregressivePrior(marginal, tokens, dimension)
