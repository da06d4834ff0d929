"""What an examiner of objects reads out of images, and how often it is right."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from infotok.data.arrow import Split
from infotok.data.pixels import to_unit

ATTRIBUTES = ("shape", "color", "size")


def attribute_classes(manifest: dict) -> dict[str, int]:
    """Attribute name -> number of values, for the heads of examiners of objects."""
    return {name: manifest["factors"]["structure"][name] for name in ATTRIBUTES}


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
    found = examine(module, torch.from_numpy(split.images[np.arange(len(split))]))
    truth = {name: torch.from_numpy(split.factors[name].copy()).long() for name in ("presence", *ATTRIBUTES)}
    present = truth["presence"] == 1
    out = {f"{prefix}objects": objects_right(found, truth)}
    for name in ATTRIBUTES:
        out[f"{prefix}{name}"] = (found[name] == truth[name])[present].float().mean().item()
    out[f"{prefix}presence"] = (found["presence"] == truth["presence"]).float().mean().item()
    return out
