"""Cross-entropy over vocabularies so large that logits of all tokens would not fit in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

ROWS = 64  # of logits that are made at once: of a vocabulary of 200,000, 50 MB


def cross_entropies(head: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor, rows: int = ROWS) -> Tensor:
    """Cross-entropy (N,) of each target (N,) given states (N, width), whose N * V logits are never all there."""

    def part(some: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(head(some).float(), wanted, reduction="none")

    pieces = zip(states.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(part, some, wanted, use_reentrant=False) for some, wanted in pieces])


def cross_entropy(head: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor, rows: int = ROWS) -> Tensor:
    """Their mean (scalar)."""
    return cross_entropies(head, states, targets, rows).mean()
