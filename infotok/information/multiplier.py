"""Capacity by target: beta as a Lagrange multiplier that drives the rate to a number of bits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SPEED = 0.05  # change of log beta a step per unit of relative error
MEMORY = 0.9  # of the moving average of the rate
RANGE = (1e-6, 1e3)


class Multiplier(nn.Module):
    """beta of the constraint rate <= target, in the manner of GECO (Rezende & Viola 2018).

    A step multiplies beta by exp(SPEED * (rate - target) / target), the rate being a moving average. The target comes
    down from the first step's rate over `warmup` steps: a rate that lags far behind it would drive beta far beyond what
    the target needs, and come back slowly. Its state is in buffers, so that a resumed training goes on from it.
    """

    steps: Tensor
    first_bits: Tensor
    log_beta: Tensor
    average_bits: Tensor

    def __init__(self, target_bits: float, beta: float, warmup: int = 0):
        super().__init__()
        self.target_bits, self.warmup = target_bits, warmup
        self.register_buffer("steps", torch.tensor(0.0))
        self.register_buffer("first_bits", torch.tensor(math.nan))
        self.register_buffer("log_beta", torch.tensor(math.log(beta)))
        self.register_buffer("average_bits", torch.tensor(math.nan))

    @torch.no_grad()
    def update(self, rate_bits: Tensor) -> Tensor:
        """Take in one step's rate, bits per image (scalar); returns the beta to use (scalar)."""
        rate = rate_bits.detach().float()
        moved = MEMORY * self.average_bits + (1 - MEMORY) * rate
        self.average_bits.copy_(torch.where(self.average_bits.isnan(), rate, moved))
        self.first_bits.copy_(torch.where(self.first_bits.isnan(), rate, self.first_bits))
        self.steps += 1
        ahead = (1 - self.steps / self.warmup).clamp_min(0) if self.warmup else torch.zeros_like(self.steps)
        target = self.target_bits + ahead * (self.first_bits - self.target_bits)
        error = ((self.average_bits - target) / target).clamp(-1, 1)
        self.log_beta.add_(SPEED * error).clamp_(math.log(RANGE[0]), math.log(RANGE[1]))
        return self.log_beta.exp()
