"""Consistency of tokens and text: lower bounds on I(Z;T), by a critic or by a language model.

Shapes: B images, K tokens, D dimensions of a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 64


class InfoNCE(nn.Module):
    """log B less the cross-entropy of finding each image's text among the batch's (van den Oord et al. 2018).

    At most log B nats, and in expectation at most I(Z;T).
    """

    def __init__(self, tokens: int, dimension: int, text_width: int):
        super().__init__()
        self.of_tokens, self.of_text = nn.Linear(tokens * dimension, WIDTH), nn.Linear(text_width, WIDTH)
        self.log_scale = nn.Parameter(torch.tensor([math.log(10.0)]))  # with a dimension, by which it can be sharded

    def forward(self, vectors: Tensor, text: Tensor, present: Tensor | None = None) -> Tensor:
        """Nats per image (scalar) of vectors (B, K, D) and text states (B, text_width), over the images whose text is
        `present` (B,) bool; None: all are."""
        with torch.autocast(vectors.device.type, enabled=False):
            tokens = F.normalize(self.of_tokens(vectors.float().flatten(1)), dim=-1)
            texts = F.normalize(self.of_text(text.float()), dim=-1)
            scores = self.log_scale.exp().clamp_max(100.0) * tokens @ texts.T
            target = torch.arange(len(scores), device=scores.device)
            if present is None:
                return math.log(len(scores)) - F.cross_entropy(scores, target)
            scores = scores.masked_fill(~present, torch.finfo(scores.dtype).min)
            losses = F.cross_entropy(scores, target, reduction="none")
            count = present.sum().clamp_min(1)
            return count.log() - torch.where(present, losses, 0.0).sum() / count


def emphasized(vectors: Tensor, emphasis: Tensor) -> Tensor:
    """The same vectors, whose gradient is `emphasis` (scalar) times as large before them as behind.

    A language model that reads them learns from the loss as it stands, and what makes the vectors from a multiple of
    it: gamma is to change what tokens hold, not what else the model has to learn.
    """
    return _Emphasized.apply(vectors, emphasis.detach())


class _Emphasized(torch.autograd.Function):
    @staticmethod
    def forward(ctx, vectors: Tensor, emphasis: Tensor) -> Tensor:
        ctx.save_for_backward(emphasis)
        return vectors.view_as(vectors)

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:
        (emphasis,) = ctx.saved_tensors
        return upstream * emphasis.to(upstream.dtype), None
