"""Priors over large codebooks, and the logits of a few tokens at a time.

A prior r(z) of K positions over C codes is dense logits or a product of two factors; the second never has its K * C
logits all at once. Both give the logits of some tokens, and take back the gradient of those logits.
Shapes: B images, K tokens, N = B * K, C codes, R the rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infotok.information.channel import Categorical


@dataclass
class Factored:
    """Categorical tokens with logits left @ right.T + bias.

    left: (K, R), or (B, K, R) given something of the image. right: (C, R). bias: (C,) or None. A language model's
    p(z | text) has this form: its hidden states, and the rows of its head that belong to codes.
    """

    left: Tensor
    right: Tensor
    bias: Tensor | None = None

    def detach(self) -> Factored:
        return Factored(self.left.detach(), self.right.detach(), None if self.bias is None else self.bias.detach())

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its logits: K, C or B, K, C."""
        return *self.left.shape[:-1], len(self.right)

    def first(self, count: int) -> Factored:
        """Of the first `count` tokens; where all share one row, itself."""
        return self if self.left.shape[-2] == 1 else Factored(self.left[..., :count, :], self.right, self.bias)

    def dense(self) -> Categorical:
        """The same with all logits, (K, C) or (B, K, C)."""
        logits = self.left @ self.right.T
        return Categorical(logits if self.bias is None else logits + self.bias)


class SharedPrior(nn.Module):
    """One categorical distribution for all positions, without condition: C logits."""

    def __init__(self, codebook: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(1, codebook))

    def forward(self, vectors: Tensor | None = None) -> Categorical:
        return Categorical(self.logits)


class LowRankPrior(nn.Module):
    """One categorical distribution per position, without condition: logits that positions share, and a product of
    factors, (K + C) * R + C parameters in all. It begins uniform."""

    def __init__(self, tokens: int, codebook: int, rank: int):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(tokens, rank))
        self.codes = nn.Parameter(torch.randn(codebook, rank) * rank**-0.5)
        self.bias = nn.Parameter(torch.zeros(codebook))

    def forward(self, vectors: Tensor | None = None) -> Factored:
        return Factored(self.positions, self.codes, self.bias)


class Rows:
    """log r of a few of a batch's tokens, and the gradient of the prior's tensors, summed over calls of `add`.

    The prior has one row of logits for all tokens, one a position, or one a token.
    """

    def __init__(self, prior: Categorical | Factored, images: int, tokens: int, dtype: torch.dtype = torch.float32):
        parts = [part.to(dtype) for part in tensors_of(prior)]
        first = parts[0]
        self._first = first.reshape(-1, first.shape[-1])
        if len(self._first) not in (1, tokens, images * tokens):
            raise ValueError(
                f"a prior of shape {tuple(parts[0].shape)} does not belong to {tokens} tokens of {images} images: give "
                "it one row for all tokens, one a position, or one a token"
            )
        self._right = parts[1] if len(parts) > 1 else None
        self._bias = parts[2] if len(parts) > 2 else None
        self._shapes = [part.shape for part in parts]
        self._sums = [torch.zeros_like(part) for part in (self._first, self._right, self._bias) if part is not None]
        same = len(self._first) == 1
        self._shared = self._logits(slice(0, 1)).log_softmax(-1) if same else None

    def log_probabilities(self, part: slice) -> Tensor:
        """log r of the tokens `part` of N, (n, C), or (1, C) where all tokens share it."""
        return self._logits(part).log_softmax(-1) if self._shared is None else self._shared

    def add(self, part: slice, gradient: Tensor) -> None:
        """Take in the gradient of the logits of the tokens `part`, (n, C)."""
        if self._right is not None:
            self._sums[1] += gradient.T @ self._lefts(part).expand(len(gradient), -1)
            if self._bias is not None:
                self._sums[2] += gradient.sum(0)
            gradient = gradient @ self._right
        if len(self._first) == 1:
            self._sums[0] += gradient.sum(0)
        else:
            self._sums[0].index_add_(0, self._positions(part), gradient)

    def gradients(self) -> list[Tensor]:
        """The sums, in the order and shapes of `tensors_of`."""
        return [total.view(shape) for total, shape in zip(self._sums, self._shapes, strict=True)]

    def _logits(self, part: slice) -> Tensor:
        logits = self._lefts(part)
        if self._right is not None:
            logits = logits @ self._right.T
        return logits if self._bias is None else logits + self._bias

    def _lefts(self, part: slice) -> Tensor:
        return self._first if len(self._first) == 1 else self._first[self._positions(part)]

    def _positions(self, part: slice) -> Tensor:
        return torch.arange(part.start, part.stop, device=self._first.device) % len(self._first)


def tensors_of(prior: Categorical | Factored) -> list[Tensor]:
    """What a prior's gradient goes to."""
    if isinstance(prior, Categorical):
        return [prior.logits]
    return [part for part in (prior.left, prior.right, prior.bias) if part is not None]


def wide(tensor: Tensor) -> Tensor:
    """In float32 or wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
