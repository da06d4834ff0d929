"""Distributions of tokens: what an encoder says q(z|x) and what a prior says r(z).

One class per kind of token, with the same methods, so that estimators and evaluation know no kind.
Shapes: B images, K tokens, C codes. Information in nats, per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infotok.information.rate import categorical_code_length, categorical_entropy


@dataclass
class Categorical:
    """Independent categorical tokens. logits: (B, K, C), or (K, C) for a prior without condition."""

    logits: Tensor

    def detach(self) -> Categorical:
        return Categorical(self.logits.detach())

    def code_length(self, prior: Categorical) -> Tensor:
        """E_q[-log r], nats, (B, K)."""
        return categorical_code_length(self.logits, prior.logits)

    def entropy(self) -> Tensor:
        """H(q), nats, (B, K)."""
        return categorical_entropy(self.logits)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Codes (B, K) by the Gumbel-max trick."""
        uniform = torch.rand(self.logits.shape, generator=generator, device=self.logits.device)
        # The clamp keeps both logarithms finite at the ends of [0, 1).
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-9, 1 - 1e-7)))
        return (self.logits.float() + gumbel).argmax(-1)

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
