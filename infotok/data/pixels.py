"""Pixels as bytes on disk and as numbers for networks."""

from __future__ import annotations

import torch
from torch import Tensor


def to_unit(images_uint8: Tensor) -> Tensor:
    """(B, S, S, 3) uint8 to (B, 3, S, S) float in [-1, 1]."""
    return images_uint8.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_bytes(images: Tensor) -> Tensor:
    """(B, 3, S, S) float around [-1, 1] to (B, S, S, 3) uint8."""
    return (images.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
