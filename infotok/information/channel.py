"""Distributions of tokens: what an encoder says q(z|x) and what a prior says r(z).

One class per kind of token, with the same methods, so that estimators and evaluation know no kind. `values` are what a
distribution gives probability to: codes (B, K) of categorical tokens, vectors (B, K, D) of Gaussian ones.
Shapes: B images, K tokens, C codes, D dimensions. Information in nats, per token; of Gaussian tokens log-probabilities,
code lengths and entropies are differential, and only their differences are information.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from infotok.information.rate import categorical_code_length, categorical_entropy, gaussian_rate
from infotok.random import Source, shared_random

LOG_2_PI = math.log(2 * math.pi)


@dataclass
class Categorical:
    """Independent categorical tokens. logits: (B, K, C), or (K, C) for a prior without condition.

    relaxation: temperature of the softmax through which the gradient of a code length passes, its value being exact.
    A sharp q, nearly one code, has no gradient of its own but at the borders between codes.
    """

    logits: Tensor
    relaxation: float = 1.0

    def detach(self) -> Categorical:
        return Categorical(self.logits.detach(), self.relaxation)

    @staticmethod
    def cat(parts: list[Categorical]) -> Categorical:
        """Distributions of several batches as one."""
        return Categorical(torch.cat([part.logits for part in parts]), parts[0].relaxation)

    def __getitem__(self, images: slice | Tensor) -> Categorical:
        return Categorical(self.logits[images], self.relaxation)

    @property
    def tokens(self) -> int:
        """K."""
        return self.logits.shape[-2]

    def first(self, tokens: int) -> Categorical:
        """The distributions of the first tokens alone."""
        return self if tokens == self.tokens else Categorical(self.logits[..., :tokens, :], self.relaxation)

    def code_length(self, prior: Channel) -> Tensor:
        """E_q[-log r], nats, (B, K)."""
        assert isinstance(prior, Categorical)
        exact = categorical_code_length(self.logits, prior.logits)
        if self.relaxation == 1.0 or not self.logits.requires_grad:
            return exact
        softened = categorical_code_length(self.logits / self.relaxation, prior.logits)
        return softened + (exact - softened).detach()

    def entropy(self) -> Tensor:
        """H(q), nats, (B, K)."""
        return categorical_entropy(self.logits)

    def sample(self, generator: Source) -> Tensor:
        """Codes (B, K) by the Gumbel-max trick."""
        return modes(self.logits.float() + gumbel(self.logits, generator))

    def log_prob(self, codes: Tensor) -> Tensor:
        """log q(codes), nats, (B, K)."""
        return self.logits.float().log_softmax(-1).gather(-1, codes[..., None])[..., 0]

    def cross_log_prob(self, codes: Tensor) -> Tensor:
        """The matrix log q(z_i|x_j) of whole images, nats, (N, B) for codes (N, K)."""
        log_q = self.logits.float().log_softmax(-1)
        total = torch.zeros(len(codes), len(log_q), device=log_q.device)
        for position in range(log_q.shape[1]):
            total += log_q[:, position].T[codes[:, position]]
        return total

    def aggregate(self) -> Categorical:
        """The mean of q over the batch, per position: the prior that makes the rate sum_k I(X;Z_k)."""
        return Categorical(self.logits.float().softmax(-1).mean(0).clamp_min(1e-12).log())


@dataclass
class Gaussian:
    """Independent tokens with diagonal Gaussian distributions. mean, log_variance: (B, K, D), or (K, D) for a prior
    without condition."""

    mean: Tensor
    log_variance: Tensor

    def detach(self) -> Gaussian:
        return Gaussian(self.mean.detach(), self.log_variance.detach())

    @staticmethod
    def cat(parts: list[Gaussian]) -> Gaussian:
        """Distributions of several batches as one."""
        return Gaussian(torch.cat([p.mean for p in parts]), torch.cat([p.log_variance for p in parts]))

    def __getitem__(self, images: slice | Tensor) -> Gaussian:
        return Gaussian(self.mean[images], self.log_variance[images])

    @property
    def tokens(self) -> int:
        """K."""
        return self.mean.shape[-2]

    def first(self, tokens: int) -> Gaussian:
        """The distributions of the first tokens alone."""
        return (
            self if tokens == self.tokens else Gaussian(self.mean[..., :tokens, :], self.log_variance[..., :tokens, :])
        )

    def code_length(self, prior: Channel) -> Tensor:
        """E_q[-log r], nats, (B, K)."""
        assert isinstance(prior, Gaussian)
        return gaussian_rate(self.mean, self.log_variance, prior.mean, prior.log_variance) + self.entropy()

    def entropy(self) -> Tensor:
        """H(q), nats, (B, K)."""
        return 0.5 * (self.log_variance.float() + 1 + LOG_2_PI).sum(-1)

    def sample(self, generator: Source) -> Tensor:
        """Vectors (B, K, D), reparametrized: gradients reach mean and variance."""
        noise = shared_random(torch.randn, self.mean.shape, generator)
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def log_prob(self, vectors: Tensor) -> Tensor:
        """log q(vectors), nats, (B, K)."""
        squared = (vectors.float() - self.mean.float()).square() * (-self.log_variance.float()).exp()
        return -0.5 * (squared + self.log_variance.float() + LOG_2_PI).sum(-1)

    def cross_log_prob(self, vectors: Tensor) -> Tensor:
        """The matrix log q(z_i|x_j) of whole images, nats, (N, B) for vectors (N, K, D)."""
        # In float64, since the square is written out: images times images times dimensions would not fit in memory.
        mean, precision = self.mean.double().flatten(1), (-self.log_variance.double()).exp().flatten(1)
        flat = vectors.double().flatten(1)
        squared = flat.square() @ precision.T - 2 * flat @ (mean * precision).T + (mean.square() * precision).sum(1)
        volume = (self.log_variance.double() + LOG_2_PI).flatten(1).sum(1)
        return (-0.5 * (squared + volume)).float()

    def aggregate(self) -> Gaussian:
        """The Gaussian with the mean and variance of z over the batch, per position and dimension: of diagonal
        Gaussian priors the one with the smallest rate."""
        mean = self.mean.float().mean(0)
        variance = self.log_variance.float().exp().mean(0) + (self.mean.float() - mean).square().mean(0)
        return Gaussian(mean, variance.log())


Channel = Categorical | Gaussian


def gumbel(like: Tensor, generator: Source) -> Tensor:
    """Standard Gumbel noise of a tensor's shape, float32."""
    uniform = shared_random(torch.rand, like.shape, generator)
    # The clamp keeps both logarithms finite at the ends of [0, 1).
    return uniform.clamp(1e-9, 1 - 1e-7).log_().neg_().log_().neg_()


def modes(logits: Tensor) -> Tensor:
    """The most likely codes (B, K) of logits (B, K, C), the first of equals: what `argmax(-1)` gives, which takes a CPU
    two to three times as long."""
    return logits.max(-1).indices


def one_hot(codes: Tensor, codebook: int) -> Categorical:
    """All mass on given codes (B, K)."""
    return Categorical(F.one_hot(codes, codebook).float().clamp_min(1e-12).log())
