"""Learned priors r(z) of the tokens."""

from __future__ import annotations

import torch
from torch import nn

from infotok.information.channel import Categorical


class CategoricalPrior(nn.Module):
    """One categorical distribution per position, without condition: (K, C) logits."""

    def __init__(self, tokens: int, codebook: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(tokens, codebook))

    def forward(self) -> Categorical:
        return Categorical(self.logits)
