"""Learned priors r(z) of the tokens: one distribution per position, or one given the tokens before it.

A prior is called with the token vectors of a batch and returns a distribution over every token. The autoregressive one
bounds I(X;Z) more tightly: a marginal prior pays again for what one token has already said about the next.
Shapes: B images, K tokens, C codes, D dimensions.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from infotok.information.channel import Categorical, Channel, Gaussian

HIDDEN = 64  # units per position of the autoregressive prior
LEAST_LOG_VARIANCE = -8.0
KINDS = ("marginal", "autoregressive")


class CategoricalPrior(nn.Module):
    """One categorical distribution per position, without condition: (K, C) logits."""

    def __init__(self, tokens: int, codebook: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(tokens, codebook))

    def forward(self, vectors: Tensor | None = None) -> Categorical:
        return Categorical(self.logits)


class GaussianPrior(nn.Module):
    """One diagonal Gaussian per position, without condition: (K, D) means and log variances."""

    def __init__(self, tokens: int, dimension: int):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(tokens, dimension))
        self.log_variance = nn.Parameter(torch.zeros(tokens, dimension))

    def forward(self, vectors: Tensor | None = None) -> Gaussian:
        return Gaussian(self.mean, self.log_variance.clamp_min(LEAST_LOG_VARIANCE))


class AutoregressivePrior(nn.Module):
    """r(z_k | z_<k) by one masked hidden layer (MADE; Germain et al. 2015) on top of a marginal prior.

    It begins as the marginal prior and is read from given vectors without gradient: it learns to predict them.
    """

    mask: Tensor

    def __init__(self, marginal: CategoricalPrior | GaussianPrior, tokens: int, dimension: int):
        super().__init__()
        self.marginal, self.tokens = marginal, tokens
        outputs = sum(parameter.shape[1] for parameter in marginal.parameters())
        self.inward = nn.Linear(tokens * dimension, tokens * HIDDEN)
        self.outward = nn.Parameter(torch.zeros(tokens, HIDDEN, outputs))
        before = torch.ones(tokens, tokens).tril(-1)
        mask = before.repeat_interleave(HIDDEN, 0).repeat_interleave(dimension, 1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, vectors: Tensor) -> Channel:
        """r of every token (B, k, ...) given the vectors (B, k, D) of those before it, for any k up to K."""
        with torch.autocast(vectors.device.type, enabled=False):
            count = vectors.shape[1]
            flat = padded(vectors.detach().float(), self.tokens).flatten(1)
            hidden = nn.functional.linear(flat, self.inward.weight * self.mask, self.inward.bias).relu()
            hidden = hidden.view(len(vectors), -1, HIDDEN)[:, :count]
            shift = torch.einsum("bkh,kho->bko", hidden, self.outward[:count])
            base = self.marginal().first(count)
            if isinstance(base, Categorical):
                return Categorical(base.logits + shift)
            mean, log_variance = shift.chunk(2, -1)
            return Gaussian(base.mean + mean, (base.log_variance + log_variance).clamp(LEAST_LOG_VARIANCE, 8.0))


class Priors(nn.Module):
    """Both priors of a tokenizer's tokens, learned side by side so that every run reports both rates."""

    def __init__(self, marginal: CategoricalPrior | GaussianPrior, tokens: int, dimension: int):
        super().__init__()
        self.tokens, self.dimension = tokens, dimension
        self.marginal = marginal
        self.autoregressive = AutoregressivePrior(copy.deepcopy(marginal), tokens, dimension)

    @property
    def codebook(self) -> int | None:
        """C of discrete tokens, None of Gaussian ones."""
        return self.marginal.logits.shape[1] if isinstance(self.marginal, CategoricalPrior) else None

    def forward(self, vectors: Tensor) -> dict[str, Channel]:
        """Prior by kind, given the vectors (B, k, D) of a batch, of the first k tokens."""
        marginal = self.marginal().first(vectors.shape[1])
        return {"marginal": marginal, "autoregressive": self.autoregressive(vectors)}


def padded(vectors: Tensor, tokens: int) -> Tensor:
    """Vectors (B, k, D) of the first k tokens as (B, tokens, D), the others 0, which no token is."""
    missing = tokens - vectors.shape[1]
    return nn.functional.pad(vectors, (0, 0, 0, missing)) if missing else vectors
