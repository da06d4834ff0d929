"""Objects at free places as tensors, and how well features read them where they stand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from infotok.data.arrow import Split
from infotok.data.pixels import to_unit
from infotok.data.scene_texts import Scene
from infotok.examiners.perceptual import Perceptual

ATTRIBUTES = ("shape", "color", "size", "material")  # of which quadrants have no material


def attribute_names(metadata: dict) -> dict[str, list[str]]:
    """Attribute name -> its values, of the manifest of data with objects."""
    return {name: metadata[f"{name}s"] for name in ATTRIBUTES if f"{name}s" in metadata}


def as_tensors(scenes: Sequence[Scene], names: dict[str, list[str]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Objects at free places as (n, P, 2), their x and y, NaN where there is none; and by attribute as (n, P) places in
    the lists that `names` holds, -1 where there is none."""
    slots = max(map(len, scenes))
    place = np.full((len(scenes), slots, 2), np.nan, dtype=np.float32)
    attributes = {name: np.full((len(scenes), slots), -1) for name in names}
    for row, scene in enumerate(scenes):
        for slot, thing in enumerate(scene):
            place[row, slot] = thing["x"], thing["y"]
            for name, values in attributes.items():
                values[row, slot] = names[name].index(thing[name])
    return torch.from_numpy(place), {name: torch.from_numpy(values) for name, values in attributes.items()}


@torch.no_grad()
def accuracies_at_places(
    features: Perceptual, split: Split, metadata: dict, prefix: str, batch: int = 500
) -> dict[str, float]:
    """How well perceptual features read objects where they stand: the share with every attribute right, `objects`, and
    the accuracy of each attribute."""
    place, truth = as_tensors(split.objects, attribute_names(metadata))
    there, device = truth["shape"] >= 0, next(features.parameters()).device
    read: dict[str, list[Tensor]] = {name: [] for name in features.classes}
    for start in range(0, len(split), batch):
        rows = np.arange(start, min(start + batch, len(split)))
        images = to_unit(torch.from_numpy(split.images[rows]).to(device))
        for name, logits in features.at(images, place[rows].nan_to_num().to(device)).items():
            read[name].append(logits.argmax(-1).cpu())
    right = {name: (torch.cat(parts) == truth[name])[there] for name, parts in read.items()}
    every = torch.stack(list(right.values())).all(0)
    return {prefix + name: values.float().mean().item() for name, values in ({"objects": every} | right).items()}
