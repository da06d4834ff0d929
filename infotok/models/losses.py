"""Losses over some of the columns of a batch, in tensors of one shape whichever these are: a graph has fixed shapes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # the target that `cross_entropy` leaves out


def chosen_cross_entropy(logits: Tensor, wanted: Tensor, chosen: Tensor) -> Tensor:
    """Mean nats over the chosen places (scalar). logits: (B, L, C); wanted: (B, L) ids; chosen: (B, L) bool."""
    targets = wanted.masked_fill(~chosen, IGNORED)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
