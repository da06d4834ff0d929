"""What an examiner of quadrants reads out of images, and how often it is right."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from infotok.data.arrow import Split
from infotok.data.pixels import to_unit


def attribute_classes(manifest: dict) -> dict[str, int]:
    """Attribute name -> number of values, for the heads of examiners of quadrants; they read presence too."""
    return {name: values for name, values in manifest["factors"]["structure"].items() if name != "presence"}


@torch.no_grad()
def examine(module: nn.Module, images: torch.Tensor, batch: int = 500) -> dict[str, Tensor]:
    """Most likely values (n, Q) of `presence` and each attribute of uint8 images (n, S, S, 3); attributes are -1 where
    the quadrant is judged empty."""
    device = next(module.parameters()).device
    parts = [
        {name: v.argmax(-1).cpu() for name, v in module(to_unit(chunk.to(device))).items()}
        for chunk in images.split(batch)
    ]
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    empty = found["presence"] == 0
    return {name: v if name == "presence" else v.masked_fill(empty, -1) for name, v in found.items()}


def objects_right(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Share of true objects whose every attribute is read right."""
    present = truth["presence"] == 1
    right = torch.stack([found[name] == truth[name] for name in truth if name != "presence"]).all(0)
    return (right & present).sum().item() / max(1, present.sum().item())


def accuracies(module: nn.Module, split: Split, prefix: str) -> dict[str, float]:
    """`objects_right` and the accuracy of every attribute where an object is, on a split; the judge's ceiling."""
    found = examine(module, torch.from_numpy(split.images[np.arange(len(split))]))
    truth = {name: torch.from_numpy(split.factors[name].copy()).long() for name in found}
    right = {name: found[name] == truth[name] for name in found}
    presence, present = right.pop("presence"), truth["presence"] == 1
    out = {f"{prefix}objects": objects_right(found, truth)}
    out |= {prefix + name: values[present].float().mean().item() for name, values in right.items()}
    return out | {f"{prefix}presence": presence.float().mean().item()}
