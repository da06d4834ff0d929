"""The training loop that every network here goes through."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim

from infotok.distributed import ALONE, World
from infotok.errors import InfotokError
from infotok.stopping import Stopped, deferred
from infotok.tensors import module_tensors, state_digest
from infotok.training.checkpoints import Checkpoints

LOG_EVERY = 10  # steps; logged values are means over them


def cosine(step: int, steps: int, warmup: int, final: float) -> float:
    """Learning-rate factor of a step: linear warm-up, then a half cosine from 1 to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(
    groups: list[tuple[list[nn.Parameter], float]], weight_decay: float, device: torch.device
) -> optim.AdamW:
    """AdamW (0.9, 0.95) over (parameters, learning rate) groups; vectors and scalars do not decay."""
    settings = []
    for parameters, rate in groups:
        for decays in (True, False):
            chosen = [p for p in parameters if p.requires_grad and (p.ndim >= 2) == decays]
            if chosen:
                decay = weight_decay if decays else 0.0
                settings.append({"params": chosen, "lr": rate, "peak": rate, "weight_decay": decay})
    return optim.AdamW(settings, betas=(0.9, 0.95), fused=True)


def run(
    module: nn.Module,
    optimizer: optim.Optimizer,
    step_losses: Callable[[int], dict[str, Tensor]],
    *,
    steps: int,
    warmup: int,
    final: float = 0.0,
    clip: float = 1.0,
    unclipped: list[nn.Parameter] | None = None,
    ema: float = 0.0,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 0,
    extra: dict[str, Tensor] | None = None,
    after_step: Callable[[int], None] = lambda step: None,
    observe: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    world: World = ALONE,
    own_backward: bool = False,
    sharded: bool = False,
) -> list[dict]:
    """Train `module` in place, from its newest checkpoint where there is one.

    Args:
        step_losses: step -> named scalars; `loss` is minimized, all are logged. Must depend on the step and the
            module's weights (and `extra`) alone, so that a resumed run repeats an undisturbed one bit for bit.
        unclipped: parameters whose gradient neither counts for the norm that `clip` bounds nor is scaled.
        checkpoint_every: steps between checkpoints; 0 for none but that of a signal.
        extra: tensors outside the module that carry over from step to step, changed in place.
        ema: decay of a moving average of the weights, which replaces them at the end; 0 for none.
        observe: called with the step and mean values every `LOG_EVERY` steps.
        world: the processes that train together. The loss is the average of theirs; the first writes checkpoints.
        own_backward: `step_losses` has left the gradients itself, as where micro-batches share a step.
        sharded: parameters and gradients are those that `fully_shard` has spread over the processes and averaged.

    Returns:
        The history: {"step": n, "<name>": mean, ...}.

    Raises:
        InfotokError: a loss or gradient is not finite, or a checkpoint cannot be written; the last good one stays.
        Stopped: SIGTERM or SIGINT came; the step was finished and a checkpoint written.
    """
    average = {n: t.detach().clone() for n, t in module_tensors(module).items()} if ema else {}
    extra = extra or {}
    start, history, unlogged = checkpoints.restore(module, optimizer, average, extra) if checkpoints else (0, [], [])
    if world.size > 1:
        world.require_alike(f"{start:x}" if sharded else state_digest(module, start))
    free = {id(p) for p in unclipped or []}
    every = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = [p for p in every if id(p) not in free]
    pending = [{n: torch.tensor(v) for n, v in values.items()} for values in unlogged]
    kept = None
    module.train()
    with deferred() as signals:
        for step in range(start, steps):
            factor = cosine(step, steps, warmup, final)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.zero_grad(set_to_none=True)
            losses = step_losses(step)
            if not own_backward:
                losses["loss"].backward()
            if not sharded:
                world.average_gradients(every)
            losses = world.averages(losses)
            norm: Any = nn.utils.clip_grad_norm_(parameters, clip)
            norm = norm.full_tensor() if sharded else norm
            _require_finite(losses, norm, step, checkpoints)
            optimizer.step()
            after_step(step)
            if ema:
                for name, tensor in module_tensors(module).items():
                    if tensor.is_floating_point():
                        average[name].lerp_(tensor, 1 - ema)
            pending.append({name: value.detach() for name, value in losses.items()} | {"gradient_norm": norm})
            if (step + 1) % LOG_EVERY == 0 or step + 1 == steps:
                means = {n: torch.stack([p[n].float() for p in pending]).mean().item() for n in pending[0]}
                pending = []
                history.append({"step": step + 1, **{n: float(f"{v:.6g}") for n, v in means.items()}})
                observe(step + 1, means)
            stopping = world.any(bool(signals))  # all stop after the same step
            due = checkpoint_every and (step + 1) % checkpoint_every == 0 and step + 1 < steps
            if checkpoints and (world.first or checkpoints.by_all) and (due or stopping):
                unlogged = [{n: v.item() for n, v in p.items()} for p in pending]
                kept = checkpoints.save(step + 1, module, optimizer, average, history, unlogged, extra)
            if stopping:
                number = signals[0] if signals else signal.SIGTERM
                raise Stopped(number, f"step {step + 1} of {steps} is kept in {kept}" if kept else "")
    if ema:
        module.load_state_dict(average, strict=False)
    module.eval()
    return history


def _require_finite(losses: dict[str, Tensor], norm: Tensor, step: int, checkpoints: Checkpoints | None) -> None:
    if math.isfinite(norm.item()) and math.isfinite(losses["loss"].item()):
        return
    bad = [name for name, value in losses.items() if not math.isfinite(value.item())] or ["the gradient"]
    kept = checkpoints.latest() if checkpoints else None
    raise InfotokError(
        f"training stopped at step {step + 1}: {', '.join(bad)} is not finite; lower the learning rate or use "
        f"precision fp32" + (f" (the last good checkpoint stays: {kept})" if kept else "")
    )
