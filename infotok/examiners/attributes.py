"""What examiners that read slots learn of objects: their attributes, one value a slot."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attribute_loss(logits: dict[str, Tensor], factors: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy over attributes; empty slots (-1) count for presence alone. factors: (B, Q) each."""
    losses = [
        F.cross_entropy(values.flatten(0, 1), factors[name].flatten().long(), ignore_index=-1)
        for name, values in logits.items()
    ]
    return torch.stack(losses).mean()
