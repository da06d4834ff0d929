"""Several texts and images of one example packed into one sequence that the backbone reads in one pass.

Shapes: B examples, L columns of a part, S columns of the whole sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Part:
    """Consecutive columns. embeddings: (B, L, width). valid: (B, L), False on padding. start: (B,) position of the
    first column. sees: indices of earlier parts that every column attends to. Within the part attention is causal
    unless `bidirectional`."""

    embeddings: Tensor
    valid: Tensor
    start: Tensor
    sees: tuple[int, ...] = ()
    bidirectional: bool = False


def pack(parts: list[Part]) -> tuple[Tensor, Tensor, Tensor]:
    """Join parts.

    Returns:
        embeddings (B, S, width); allowed (B, S, S), True where a row may attend to a column; positions (B, S).
        Every column attends at least to itself, so that no softmax runs over nothing.
    """
    device = parts[0].embeddings.device
    lengths = [part.embeddings.shape[1] for part in parts]
    offsets = [sum(lengths[:i]) for i in range(len(parts) + 1)]
    pattern = torch.zeros(offsets[-1], offsets[-1], dtype=torch.bool, device=device)
    for index, part in enumerate(parts):
        rows = slice(offsets[index], offsets[index + 1])
        own = torch.ones(lengths[index], lengths[index], dtype=torch.bool, device=device)
        pattern[rows, rows] = own if part.bidirectional else own.tril()
        for seen in part.sees:
            pattern[rows, offsets[seen] : offsets[seen + 1]] = True
    valid = torch.cat([part.valid for part in parts], 1)
    itself = torch.eye(offsets[-1], dtype=torch.bool, device=device)
    allowed = (pattern & valid[:, None, :]) | itself
    # Padding stands at the end of a part, so counting columns gives every real one its place.
    positions = [part.start[:, None] + torch.arange(n, device=device) for part, n in zip(parts, lengths, strict=True)]
    return torch.cat([part.embeddings for part in parts], 1), allowed, torch.cat(positions, 1)
