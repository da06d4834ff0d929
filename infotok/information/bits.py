"""Lookup-free codes (LFQ; Yu et al. 2024): a code is D bits, and 2 ** D codes are never listed.

The code nearest to a feature z among {-s, s}^D is its signs, and the softmax over codes of -|z - c|^2 / (2 variance) is
a product over bits: the rate is the sum of D binary ones, exactly.
Shapes: B images, K tokens, D bits of a code. Information in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infotok.information.factored import wide


@dataclass
class Bits:
    """Independent tokens of independent bits. logits: log odds that a bit is 1, (B, K, D), or (1, D) or (K, D) for a
    prior without condition. relaxation: as of `Categorical`."""

    logits: Tensor
    relaxation: float = 1.0

    @property
    def tokens(self) -> int:
        """K."""
        return self.logits.shape[-2]

    def detach(self) -> Bits:
        return Bits(self.logits.detach(), self.relaxation)

    def first(self, tokens: int) -> Bits:
        """The distributions of the first tokens alone; where all share one, itself."""
        return self if self.tokens == 1 else Bits(self.logits[..., :tokens, :], self.relaxation)

    def code_length(self, prior: Bits) -> Tensor:
        """E_q[-log r], nats, (B, K)."""
        q, r = wide(self.logits), wide(prior.logits)
        exact = _length(q, r)
        if self.relaxation == 1.0 or not q.requires_grad:
            return exact
        softened = _length(q / self.relaxation, r)
        return softened + (exact - softened).detach()

    def entropy(self) -> Tensor:
        """H(q), nats, (B, K)."""
        return _length(wide(self.logits), wide(self.logits))

    def codes(self) -> Tensor:
        """The most probable code, (B, K), whose first bit counts most."""
        places = 2 ** torch.arange(self.logits.shape[-1] - 1, -1, -1, device=self.logits.device)
        return ((self.logits > 0) * places).sum(-1)


class BitPrior(nn.Module):
    """Independent bits without condition: one distribution per position, or one for all (`tokens` 1)."""

    def __init__(self, bits: int, tokens: int = 1):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(tokens, bits))

    def forward(self, vectors: Tensor | None = None) -> Bits:
        return Bits(self.logits)


def make_bit_prior(kind: str, tokens: int | None, bits: int) -> BitPrior:
    """A prior of K tokens, by what `InformationBottleneck` calls it.

    Raises:
        ValueError: there is no such prior of bits, or K is missing.
    """
    if kind not in ("marginal", "shared"):
        raise ValueError(f"the {kind} prior is not of bits: choose marginal or shared, or hand one in by prior='given'")
    if tokens is None:
        raise ValueError("give `tokens`")
    return BitPrior(bits, tokens if kind == "marginal" else 1)


def lookup_free(features: Tensor, variance: float, scale: float = 1.0, relaxation: float = 1.0) -> Bits:
    """q(z|x) of features (B, K, D) before their signs are taken.

    scale: s, the size of a quantized dimension. variance: of the codes' Gaussians, held.

    Raises:
        ValueError: variance or scale is not above 0.
    """
    if not (variance > 0 and scale > 0):
        raise ValueError(f"variance and scale must be above 0, got {variance} and {scale}")
    return Bits(wide(features) * (2 * scale / variance), relaxation)


def _length(q: Tensor, r: Tensor) -> Tensor:
    """E_q[-log r] from log odds; softplus(r) - q r is the binary cross-entropy without a logarithm of 0."""
    return (F.softplus(r) - q.sigmoid() * r).sum(-1)
