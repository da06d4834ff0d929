"""The judge of free scenes: a detector that reads a set of objects with their places out of an image.

As CenterNet (Zhou et al. 2019) it tells, for every cell of a grid, how near the centre of an object is, where that
centre lies, and what the object is. Like the judge of quadrants it differs from the perceptual features in architecture
and seed. Shapes: B images, S pixels a side, H cells a side, P objects at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NEAR = 0.6  # deviation of the heat around a centre, in cells
FOUND = 0.3  # heat from which a cell may be an object; a centre that is four cells' corner has 0.5 in each
SAME = 0.6  # of the least distance of two objects: cells whose centres are nearer speak of one object


@dataclass
class Detections:
    """What is read out of B images. score: (B, P), 0 where there is no object. place: (B, P, 2), x and y of centres in
    sides of the image. attributes: name -> (B, P) values."""

    score: Tensor
    place: Tensor
    attributes: dict[str, Tensor]


class Detector(nn.Module):
    """A convolutional detector with one scale and no anchors."""

    num_features = 128

    def __init__(self, classes: dict[str, int], image_size: int, most: int, apart: float):
        """classes: attribute name -> number of values. most: objects in a scene. apart: least distance of two objects'
        centres along one axis at least, in sides of the image; the grid's cells must be smaller."""
        super().__init__()
        self.classes, self.most, self.apart = dict(classes), most, apart
        stride = 4 if image_size <= 64 else 8
        self.cells = image_size // stride
        layers = _layer(3, 32, 5, 2) + _layer(32, 48, 3, 1) + _layer(48, 64, 3, 2)
        if stride == 8:
            layers += _layer(64, 64, 3, 2)
        self.read = nn.Sequential(*layers, *_layer(64, 96, 3, 1), *_layer(96, self.num_features, 3, 1))
        self.head = nn.Conv2d(self.num_features, 3 + sum(self.classes.values()), 1)
        assert self.head.bias is not None
        with torch.no_grad():
            self.head.bias[0] = -3.0  # most cells are empty
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def maps(self, images: Tensor) -> Tensor:
        return self.read(images.contiguous(memory_format=torch.channels_last))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps of images (B, 3, S, S) in [-1, 1]: `heat` logits (B, H * H); `place` (B, H * H, 2), x and y of a centre
        in sides of the image; of every attribute logits (B, H * H, values)."""
        parts = self.head(self.maps(images)).flatten(2).mT.split([1, 2, *self.classes.values()], dim=-1)
        out = dict(zip(("heat", "place", *self.classes), parts, strict=True))
        middle = cell_centres(self.cells, images.device)
        return out | {"heat": out["heat"].squeeze(-1), "place": middle + out["place"] / self.cells}

    def loss(self, images: Tensor, place: Tensor, attributes: dict[str, Tensor]) -> Tensor:
        """`detection_loss` of images (B, 3, S, S) in [-1, 1] and their objects."""
        return detection_loss(self(images), place, attributes)

    def features(self, images: Tensor) -> Tensor:
        """(B, 128) features for FID and KID: the mean over cells of the last hidden map."""
        return self.maps(images).mean((2, 3))

    @torch.no_grad()
    def detect(self, images: Tensor) -> Detections:
        """The objects of images (B, 3, S, S) in [-1, 1]: hot cells, the hottest first, without those whose centre a
        hotter one has told already."""
        maps = self(images)
        number = min(2 * self.most, self.cells**2)
        score, cell = maps["heat"].sigmoid().topk(number)
        rows = torch.arange(len(images), device=images.device)[:, None]
        place = maps["place"][rows, cell]
        near = (place[:, :, None] - place[:, None]).abs().amax(-1) < SAME * self.apart
        score = torch.where(score >= FOUND, score, 0.0)
        for index in range(number - 1):  # a cell that is left silences the cooler ones near it
            silent = near[:, index, index + 1 :] & (score[:, index, None] > 0)
            score[:, index + 1 :] = score[:, index + 1 :].masked_fill(silent, 0.0)
        return Detections(score, place, {name: maps[name][rows, cell].argmax(-1) for name in self.classes})


def _layer(before: int, after: int, size: int, stride: int) -> list[nn.Module]:
    # Without normalization the same training misreads 8 % of the objects, with it 0.4 %.
    return [nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


def cell_centres(cells: int, device: torch.device) -> Tensor:
    """(H * H, 2) x and y in sides of the image, row by row."""
    middle = (torch.arange(cells, device=device) + 0.5) / cells
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], -1)


def detection_loss(maps: dict[str, Tensor], place: Tensor, attributes: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of the heat with exp(-d² / 2 NEAR²), d cells from the next centre; distance of places and
    cross-entropies of attributes, of the object with the next centre, weighted by that heat (scalar).

    Args:
        maps: of `Detector.forward`. place: (B, P, 2), NaN where there is no object. attributes: name -> (B, P) values.
    """
    heat = maps["heat"]
    cells = math.isqrt(heat.shape[1])
    middle = cell_centres(cells, heat.device)
    away = (middle[:, None] - place[:, None]).square().sum(-1).nan_to_num(torch.inf)  # (B, H * H, P)
    nearest, owner = away.min(-1)
    wanted = torch.exp(-nearest * cells**2 / (2 * NEAR**2))
    weight = wanted * (wanted > FOUND)
    weight = weight / weight.sum().clamp(min=1.0)
    rows = torch.arange(len(place), device=heat.device)[:, None]
    error = (maps["place"] - place[rows, owner].nan_to_num()).abs().sum(-1) * cells
    loss = F.binary_cross_entropy_with_logits(heat, wanted) * 10 + (error * weight).sum()
    for name, values in attributes.items():
        each = F.cross_entropy(maps[name].flatten(0, 1), values[rows, owner].flatten(), reduction="none")
        loss = loss + (each.view_as(weight) * weight).sum()
    return loss
