"""One step of training on the device: losses, gradients, clip, optimizer and the moving average of the weights.

It reads tensors and writes tensors, and never waits for a number: so it can be compiled, or recorded once as a CUDA
graph and replayed (`infotok.training.graph`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim

from infotok.distributed import ALONE, World
from infotok.tensors import is_sharded, own_part, whole

Losses = Callable[[Any], dict[str, Tensor]]


class Step:
    """Changes parameters in place; a call takes what a step is given and returns its numbers, detached scalars: the
    losses and `gradient_norm`.

    losses: from what a step is given; `loss` is minimized. bound: the parameters whose gradient's norm `clip` bounds.
    average: pairs of moving averages and what they follow, with the decay `ema`. own_backward: `losses` has left the
    gradients itself. careful: wait for loss and norm, and leave the weights where one is not finite. world: the
    processes whose losses are averaged; gradients are already (`infotok.training.parallel`).
    """

    def __init__(
        self,
        losses: Losses,
        optimizer: optim.Optimizer,
        bound: Iterable[nn.Parameter],
        *,
        clip: float,
        average: list[tuple[Tensor, Tensor]],
        ema: float,
        world: World = ALONE,
        own_backward: bool = False,
        careful: bool = False,
    ):
        self.losses, self.optimizer, self.bound, self.clip = losses, optimizer, list(bound), clip
        self.average, self.ema = average, ema
        self.world, self.own_backward, self.careful = world, own_backward, careful
        self.move: Callable[[], Any] = optimizer.step
        self.update: Callable[[Tensor], Tensor] = self._update

    def __call__(self, given: Any) -> dict[str, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.losses(given)
        if not self.own_backward:
            losses["loss"].backward()
        losses = self.world.averages(losses)
        return {name: value.detach() for name, value in losses.items()} | {
            "gradient_norm": self.update(losses["loss"].detach())
        }

    @torch.no_grad()
    def _update(self, loss: Tensor) -> Tensor:
        norm = clip_gradients(self.bound, self.clip)
        if self.careful and not (norm.isfinite() & loss.isfinite()):
            return norm
        self.move()
        if self.average:
            followers, followed = zip(*self.average, strict=True)
            torch._foreach_lerp_([own_part(t) for t in followers], [own_part(t) for t in followed], 1 - self.ema)
        return norm


def clip_gradients(parameters: list[nn.Parameter], most: float) -> Tensor:
    """Scale gradients in place so that their common norm is at most `most`; returns the norm before, a scalar.

    Some may be sharded and others not, as scalars are, which no function of PyTorch takes together.
    """
    kinds = [[p for p in parameters if is_sharded(p) == kind] for kind in (False, True)]
    if not (kinds[0] and kinds[1]):
        return whole(nn.utils.clip_grad_norm_(parameters, most))
    gradients = [[p.grad for p in kind if p.grad is not None] for kind in kinds]
    norm = torch.stack([whole(nn.utils.get_total_norm(some)) for some in gradients]).norm()
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, most, norm)
    return norm
