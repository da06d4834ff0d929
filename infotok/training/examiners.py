"""Training of the judge and of the perceptual features, both from attributes of the training images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from infotok.data.arrow import Split
from infotok.evaluation.networks import attribute_loss, to_unit
from infotok.training.loop import make_optimizer, run
from infotok.training.runtime import stream

ATTRIBUTES = ("shape", "color", "size")


def train_examiner(
    module: nn.Module,
    split: Split,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
    observe: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> list[dict]:
    """Train a network that maps images to attribute logits; returns the history."""
    module.to(device)
    labels = {name: torch.from_numpy(split.factors[name].copy()) for name in ("presence", *ATTRIBUTES)}

    def step_losses(step: int) -> dict[str, Tensor]:
        chosen = torch.randint(len(split), (batch,), generator=stream(torch.device("cpu"), seed, step))
        images = to_unit(torch.from_numpy(split.images[chosen.numpy()]).to(device))
        logits = module(images)
        return {"loss": attribute_loss(logits, {name: values[chosen].to(device) for name, values in labels.items()})}

    optimizer = make_optimizer([(list(module.parameters()), learning_rate)], 0.01, device)
    return run(module, optimizer, step_losses, steps=steps, warmup=min(20, steps), observe=observe)


@torch.no_grad()
def examine(module: nn.Module, images: torch.Tensor, batch: int = 500) -> dict[str, Tensor]:
    """Most likely values (n, Q) per attribute of uint8 images (n, S, S, 3); shape, color, size are -1 where the
    quadrant is judged empty."""
    device = next(module.parameters()).device
    parts = [
        {name: v.argmax(-1).cpu() for name, v in module(to_unit(chunk.to(device))).items()}
        for chunk in images.split(batch)
    ]
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    for name in ATTRIBUTES:
        found[name] = found[name].masked_fill(found["presence"] == 0, -1)
    return found


def objects_right(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Share of true objects whose quadrant is read with the right shape, color and size."""
    present = truth["presence"] == 1
    right = torch.stack([found[name] == truth[name] for name in ATTRIBUTES]).all(0)
    return (right & present).sum().item() / max(1, present.sum().item())


def accuracies(module: nn.Module, split: Split, prefix: str) -> dict[str, float]:
    """`objects_right` and the accuracy of every attribute where an object is, on a split; the judge's ceiling."""
    found = examine(module, torch.from_numpy(split.images.copy()))
    truth = {name: torch.from_numpy(split.factors[name].copy()).long() for name in ("presence", *ATTRIBUTES)}
    present = truth["presence"] == 1
    out = {f"{prefix}objects": objects_right(found, truth)}
    for name in ATTRIBUTES:
        out[f"{prefix}{name}"] = (found[name] == truth[name])[present].float().mean().item()
    out[f"{prefix}presence"] = (found["presence"] == truth["presence"]).float().mean().item()
    return out
