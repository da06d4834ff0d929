"""Masked discrete diffusion (Show-o, MMaDA): codes at masked places are predicted from the others, all at once.

Training masks m of K tokens, m by the cosine schedule, and decodes as MaskGIT does (Chang et al. 2022).
Shapes: B images, K tokens, C codes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from infotok.information.channel import Categorical, gumbel
from infotok.models import family
from infotok.models.backbone import Backbone
from infotok.models.decoding import Prompted, truncated
from infotok.models.family import Predicted, Sampling
from infotok.models.losses import chosen_cross_entropy
from infotok.random import Source, shared_random, world_of
from infotok.tokenizer.base import Tokens
from infotok.tokenizer.discrete import DiscreteTokenizer


class Family(family.Family[DiscreteTokenizer]):
    """Every place holds its own code or a mask."""

    tokenizer_class = DiscreteTokenizer
    bidirectional = True

    def __init__(self, tokenizer: DiscreteTokenizer, width: int):
        super().__init__(tokenizer, width)
        self.mask = nn.Parameter(torch.randn(width) * 0.5)
        self.head = nn.Linear(width, tokenizer.config.codebook, bias=False)

    def generation_inputs(self, tokens: Tokens, generator: Source) -> tuple[Tensor, Tensor]:
        batch, count = tokens.vectors.shape[:2]
        ratio = torch.cos(0.5 * math.pi * shared_random(torch.rand, (batch, 1), generator))
        masked = (ratio * count).ceil().clamp(1, count)
        order = shared_random(torch.rand, (batch, count), generator).argsort(1).argsort(1)
        asked = order < masked
        return self._inputs(self.project(tokens.vectors.detach()), asked), asked

    def predict(self, hidden: Tensor, tokens: Tokens, asked: Tensor, generator: Source) -> Predicted:
        assert tokens.codes is not None
        logits = self.head(hidden).float()
        loss = chosen_cross_entropy(logits, tokens.codes, asked)
        loss = world_of(generator).weighted(loss, asked.sum())
        return Predicted(loss, Categorical(logits), order_agnostic_weight(asked))

    @torch.no_grad()
    def draw(
        self,
        backbone: Backbone,
        tokenizer: DiscreteTokenizer,
        captions: Tensor,
        valid: Tensor,
        sampling: Sampling,
        generator: torch.Generator,
    ) -> Tokens:
        prompted = Prompted(backbone, captions, valid, sampling)
        batch, count = len(captions), self.tokens
        codes = torch.zeros(batch, count, dtype=torch.long, device=captions.device)
        asked = torch.ones_like(codes, dtype=torch.bool)
        steps = min(sampling.decoding_steps, count)
        for step, left in enumerate(masked_after(count, steps)):
            hidden = prompted.whole(self._inputs(self.project(tokenizer.embed(codes)), asked))
            logits = truncated(prompted.guide(self.head(hidden).float().log_softmax(-1)), sampling)
            drawn = (logits + gumbel(logits, generator)).argmax(-1)
            codes = torch.where(asked, drawn, codes)
            confidence = logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0]
            # The noise on the choice cools as fewer masks are left, as in MaskGIT.
            noise = sampling.choice_temperature * (1 - (step + 1) / steps) * gumbel(confidence, generator)
            confidence = (confidence + noise).masked_fill(~asked, torch.inf)
            asked = confidence.argsort(-1).argsort(-1) < left
        return Tokens(tokenizer.embed(codes), codes)

    def _inputs(self, vectors: Tensor, asked: Tensor) -> Tensor:
        return torch.where(asked[..., None], self.mask.to(vectors.dtype), vectors) + self.place[1]


def order_agnostic_weight(asked: Tensor) -> Tensor:
    """(B, K): how often each code length counts, so that in expectation over masks their sum is the code length of an
    order-agnostic model, which bounds -log p(z) (Uria et al. 2014; Hoogeboom et al. 2022).

    That code length asks for every number of masks m alike and counts K / m; the cosine schedule asks for m with
    probability P(m), which the weight 1 / (m P(m)) makes good.
    """
    count = asked.shape[1]
    masks = torch.arange(count + 1, device=asked.device) / count
    chance = 2 / math.pi * (masks[:-1].acos() - masks[1:].acos())
    masked = asked.sum(1, keepdim=True)
    return asked / (masked * chance[masked - 1])


def masked_after(count: int, steps: int) -> list[int]:
    """How many of `count` tokens are still masked after each decoding step: a cosine, at least one less every step."""
    left, out = count, []
    for step in range(1, steps + 1):
        wanted = math.floor(count * math.cos(0.5 * math.pi * step / steps) + 1e-9)
        left = max(min(left - 1, wanted), steps - step)
        out.append(left)
    return out
