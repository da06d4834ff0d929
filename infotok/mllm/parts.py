"""The equal parts that a step's batch is shared out in: micro-batches, of every process.

What is a mean over images is averaged over the parts. What compares images, as kernels and contrast do, needs the rows
of all parts at once, whose graphs would not fit in memory. So they are collected first, without a graph; then each part
puts its own rows, with gradient, among those of the others, which are constants to it (gradient caching; Gao et al.
2021). The sum of the parts' gradients is exactly that of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from infotok.distributed import World
from infotok.random import Purpose, stream


@dataclass(frozen=True)
class Part:
    """Rows `index * n` to `(index + 1) * n` of a step's batch of `count * n`.

    answer_tokens: of a part, the mean over all parts; None where this is the only one. seed, step: what random numbers
    depend on.
    """

    index: int = 0
    count: int = 1
    answer_tokens: float | None = None
    seed: int = 0
    step: int = 0

    def weighted(self, mean: Tensor, tokens: int) -> Tensor:
        """A mean over this part's answer tokens (scalar), scaled so that the average over the parts is the mean over
        the tokens of all."""
        return mean if self.answer_tokens is None else mean * (tokens / self.answer_tokens)

    def stream(self, device: torch.device, purpose: Purpose) -> torch.Generator:
        """Numbers of the whole batch, of which `infotok.random.shared_random` gives this part its rows."""
        return stream(device, self.seed, self.step, purpose, world=World(self.index, self.count))

    def common_stream(self, device: torch.device, purpose: Purpose) -> torch.Generator:
        """Numbers that all parts of the step draw alike."""
        return stream(device, self.seed, self.step, purpose)


ONLY = Part()


@torch.no_grad()
def rows_of_all(collected: list[dict[str, Tensor]], world: World) -> dict[str, Tensor]:
    """By name the rows (count * n, ...) of all parts, from those (n, ...) of this process's parts."""
    return {name: world.gather(torch.cat([rows[name] for rows in collected])) for name in collected[0]}


def among(whole: dict[str, Tensor], part: Part) -> Callable[[Tensor], Tensor]:
    """`gather` of an `InformationBottleneck` for one call of it: puts a part's own rows among those of all, in the
    order of `InformationBottleneck.compared`."""
    remaining = iter(whole.values())
    return lambda rows: _Among.apply(rows, next(remaining), part)


class _Among(torch.autograd.Function):
    """Rows of all parts, in which a part's own are those with a graph. Backward: their gradient times the number of
    parts, since that of parameters is averaged over the parts afterwards."""

    @staticmethod
    def forward(ctx, rows: Tensor, whole: Tensor, part: Part) -> Tensor:
        ctx.count, ctx.own = part.count, slice(part.index * len(rows), (part.index + 1) * len(rows))
        filled = whole.to(rows.dtype, copy=True)
        filled[ctx.own] = rows
        if not rows.is_floating_point():
            ctx.mark_non_differentiable(filled)
        return filled

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.own] * ctx.count, None, None
