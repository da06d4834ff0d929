"""What examiners that know where to look learn of objects: their attributes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attribute_loss(logits: dict[str, Tensor], factors: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy over attributes; what is not there (-1) counts for
    presence alone. logits: (B, Q, values), factors: (B, Q) each; Q quadrants or objects."""
    losses = [
        F.cross_entropy(values.flatten(0, 1), factors[name].flatten().long(), ignore_index=-1)
        for name, values in logits.items()
    ]
    return torch.stack(losses).mean()
