"""The training loop that every network here goes through.

It is a generator, which stands still between steps: several trainings can take turns in one process
(`infotok.training.together`). `at_once` makes of it a function that trains to the end.
"""

from __future__ import annotations

import functools
import math
import signal
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn, optim

from infotok.distributed import ALONE, World
from infotok.errors import InfotokError
from infotok.stopping import Stopped, deferred
from infotok.tensors import is_sharded, module_tensors, state_digest
from infotok.training.checkpoints import Checkpoints
from infotok.training.parallel import replicated
from infotok.training.step import Losses, Step

LOG_EVERY = 10  # steps; logged values are means over them
P = ParamSpec("P")

# A training, which stands still before every step and once more after the last. It goes on when it is sent None; sent
# the number of a signal, it writes a checkpoint and raises `Stopped`. It returns its history.
Training = Generator[None, int | None, list[dict]]


def cosine(step: int, steps: int, warmup: int, final: float) -> float:
    """Learning-rate factor of a step: linear warm-up, then a half cosine from 1 to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(
    groups: list[tuple[list[nn.Parameter], float]],
    weight_decay: float,
    device: torch.device,
    in_graph: bool = False,
    fused: bool = True,
) -> optim.AdamW:
    """AdamW (0.9, 0.95) over (parameters, learning rate) groups; vectors and scalars do not decay, and scalars are a
    group of their own, since they are not sharded where vectors are. in_graph: learning rates are tensors, which a
    graph reads anew. fused: by a kernel of the library, which no compiler looks into."""
    settings = []
    for parameters, rate in groups:
        for dimensions in (2, 1, 0):
            chosen = [p for p in parameters if p.requires_grad and min(p.ndim, 2) == dimensions]
            if chosen:
                decay = weight_decay if dimensions == 2 else 0.0
                start: float | Tensor = torch.tensor(rate, device=device) if in_graph else rate
                settings.append({"params": chosen, "lr": start, "peak": rate, "weight_decay": decay})
    return optim.AdamW(settings, betas=(0.9, 0.95), fused=fused, foreach=not fused, capturable=in_graph)


def at_once(steps: Callable[P, Training]) -> Callable[P, list[dict]]:
    """A training as a function that takes what it takes and trains to the end; a signal stops it after a step."""

    @functools.wraps(steps)
    def trained(*arguments: P.args, **settings: P.kwargs) -> list[dict]:
        return to_the_end(steps(*arguments, **settings))

    return trained


def to_the_end(training: Training) -> list[dict]:
    """Train without a stop but for signals; returns the history."""
    next(training)
    with deferred() as signals:
        try:
            while True:
                training.send(signals[0] if signals else None)
        except StopIteration as ended:
            return ended.value


def step_by_step(
    module: nn.Module,
    optimizer: optim.Optimizer,
    step_losses: Losses,
    *,
    steps: int,
    warmup: int,
    final: float = 0.0,
    clip: float = 1.0,
    unclipped: list[nn.Parameter] | None = None,
    ema: float = 0.0,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 0,
    keep_end: bool = False,
    extra: dict[str, Tensor] | None = None,
    given: Callable[[int], Any] = lambda step: step,
    whole: Callable[[Step], Callable[[Any], dict[str, Tensor]]] = lambda step: step,
    after_step: Callable[[int], None] = lambda step: None,
    observe: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    world: World = ALONE,
    own_backward: bool = False,
    careful: bool = False,
) -> Training:
    """Train `module` in place, from its newest checkpoint where there is one.

    Args:
        step_losses: what a step is given -> named scalars; `loss` is minimized, all are logged. Must depend on that and
            the module's weights (and `extra`) alone, so that a resumed run repeats an undisturbed one bit for bit.
        unclipped: parameters whose gradient neither counts for the norm that `clip` bounds nor is scaled.
        checkpoint_every: steps between checkpoints; 0 for none but that of a signal. keep_end: one after the last step
            too, from which who trains with it again has nothing left to do.
        extra: tensors outside the module that carry over from step to step, changed in place.
        ema: decay of a moving average of the weights, which replaces them at the end; 0 for none.
        given: what a step is given, a matter of its number alone, which is the default. A step is asked for once, while
            the one before may still be under way.
        whole: makes of a step one graph: `infotok.training.graph`.
        observe: called with the step and mean values every `LOG_EVERY` steps.
        world: the processes that train together. The loss is the average of theirs; the first writes checkpoints.
            Gradients are averaged here, unless the module is sharded, `step_losses` then being what
            `infotok.training.parallel.sharded` makes.
        own_backward: `step_losses` has left the gradients itself, averaged, as where micro-batches share a step.
        careful: look at the numbers of every step before the weights move, where steps are so long that this costs
            nothing.

    Returns:
        The history: {"step": n, "<name>": mean, ...}.

    Raises:
        InfotokError: a loss or gradient is not finite, which is looked at every `LOG_EVERY` steps and before each
            checkpoint, or a checkpoint cannot be written; the last good one stays, weights are left as they are.
        Stopped: SIGTERM or SIGINT came; the step was finished and a checkpoint written.
    """
    average = {n: t.detach().clone() for n, t in module_tensors(module).items()} if ema else {}
    extra = extra or {}
    start, history, unlogged = checkpoints.restore(module, optimizer, average, extra) if checkpoints else (0, [], [])
    free = {id(p) for p in unclipped or []}
    every = [p for group in optimizer.param_groups for p in group["params"]]
    if world.size > 1:
        sharded = any(map(is_sharded, every))
        world.require_alike(f"{start:x}" if sharded else state_digest(module, start))
        if not (sharded or own_backward):
            step_losses = replicated(module, step_losses)
    followed = module_tensors(module) if ema else {}
    step_of = whole(
        Step(
            step_losses,
            optimizer,
            [p for p in every if id(p) not in free],
            clip=clip,
            average=[(average[n], t) for n, t in followed.items() if t.is_floating_point()],
            ema=ema,
            world=world,
            own_backward=own_backward,
            careful=careful,
        )
    )
    numbers = _Numbers(start, unlogged, checkpoints)
    kept: dict[int, Path] = {}

    def keep(step: int) -> None:
        unlogged = numbers.read()
        if checkpoints and (world.first or checkpoints.by_all) and step not in kept:
            kept[step] = checkpoints.save(step, module, optimizer, average, history, unlogged, extra)

    module.train()
    for step in range(start, steps + 1):
        number = yield
        if world.any(number is not None):  # all stop after the same step
            keep(step)
            said = f"step {step} of {steps} is kept in {kept[step]}" if step in kept else ""
            raise Stopped(number or signal.SIGTERM, said)
        if step == steps:
            break
        set_rates(optimizer, cosine(step, steps, warmup, final))
        numbers.add(step_of(given(step)))
        if careful:
            numbers.read()
        after_step(step)
        last = step + 1 == steps
        if (step + 1) % LOG_EVERY == 0 or last:
            means = numbers.means()
            history.append({"step": step + 1, **{n: float(f"{v:.6g}") for n, v in means.items()}})
            observe(step + 1, means)
        if keep_end if last else checkpoint_every and (step + 1) % checkpoint_every == 0:
            keep(step + 1)
    if ema:
        module.load_state_dict(average, strict=False)
    module.eval()
    return history


run = at_once(step_by_step)


def set_rates(optimizer: optim.Optimizer, factor: float) -> None:
    """Set the learning rates of a step, in place where they are tensors that a graph reads."""
    for group in optimizer.param_groups:
        rate = group["peak"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class _Numbers:
    """The numbers of the steps since the last line of the history. Those of a step lie where it computed them until
    somebody reads: a device that is asked for one waits for nothing else to do meanwhile."""

    def __init__(self, step: int, unlogged: list[dict[str, float]], checkpoints: Checkpoints | None):
        """step: how many are done. unlogged: of those of them that no line of the history averages."""
        self.step, self.known, self.checkpoints = step, list(unlogged), checkpoints
        self.unread: list[dict[str, Tensor]] = []

    def add(self, values: dict[str, Tensor]) -> None:
        self.unread.append(values)

    def read(self) -> list[dict[str, float]]:
        """All of them, a dict for each step.

        Raises:
            InfotokError: one of a step is not finite; it names the first such step.
        """
        if self.unread:
            table = torch.stack([value.float() for values in self.unread for value in values.values()]).tolist()
            for values in self.unread:
                found = dict(zip(values, table, strict=False))
                table = table[len(found) :]
                self.step += 1
                self._require_finite(found)
                self.known.append(found)
            self.unread = []
        return self.known

    def means(self) -> dict[str, float]:
        """By name, over the steps, which count no more from here on."""
        rows, self.known = self.read(), []
        return {name: torch.tensor([row[name] for row in rows]).mean().item() for name in rows[0]}

    def _require_finite(self, values: dict[str, float]) -> None:
        if math.isfinite(values["gradient_norm"]) and math.isfinite(values["loss"]):
            return
        bad = [name for name, value in values.items() if not math.isfinite(value) and name != "gradient_norm"]
        kept = self.checkpoints.latest() if self.checkpoints else None
        raise InfotokError(
            f"training stopped at step {self.step}: {', '.join(bad or ['the gradient'])} is not finite; lower the "
            f"learning rate or use precision fp32" + (f" (the last good checkpoint stays: {kept})" if kept else "")
        )
