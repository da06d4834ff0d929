"""The judge, which reads objects out of images as GenEval's detector does, and the perceptual features.

They differ in architecture and seed, so that no arm trains against its examiner. Both learn from the attributes of
the training images, and where no objects are known from their texts (`matching`); that supervision is given to every
arm alike. Shapes: B images, S pixels a side, Q = 4 quadrants.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def to_unit(images_uint8: Tensor) -> Tensor:
    """(B, S, S, 3) uint8 to (B, 3, S, S) float in [-1, 1]."""
    return images_uint8.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_bytes(images: Tensor) -> Tensor:
    """(B, 3, S, S) float around [-1, 1] to (B, S, S, 3) uint8."""
    return (images.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


class Judge(nn.Module):
    """A convolutional detector on the 2 x 2 grid of quadrants."""

    def __init__(self, classes: dict[str, int], image_size: int):
        """classes: attribute name -> number of values (shape, color, size); presence is always judged."""
        super().__init__()
        self.classes = {"presence": 2, **classes}
        downs = max(1, (image_size // 8).bit_length() - 1)  # to a map of about 8 x 8
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 5, 2, 2), nn.ReLU(), nn.Conv2d(32, 48, 3, 1, 1), nn.ReLU()]
        for index in range(1, downs):
            layers += [nn.Conv2d(48 if index == 1 else 64, 64, 3, 2, 1), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(8))
        self.read = nn.Sequential(nn.Conv2d(64 if downs > 1 else 48, 128, 4, 4), nn.ReLU())
        self.head = nn.Conv2d(128, sum(self.classes.values()), 1)
        self.num_features = 128  # read by torchmetrics
        self.to(memory_format=torch.channels_last)

    def maps(self, images: Tensor) -> Tensor:
        return self.read(self.trunk(images.contiguous(memory_format=torch.channels_last)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, Q, values) per attribute of images (B, 3, S, S) in [-1, 1]."""
        parts = self.head(self.maps(images)).flatten(2).transpose(1, 2).split(list(self.classes.values()), dim=-1)
        return dict(zip(self.classes, parts, strict=True))

    def features(self, images: Tensor) -> Tensor:
        """(B, 128) features for FID and KID: the mean over quadrants of the last hidden map."""
        return self.maps(images).mean((2, 3))


class Perceptual(nn.Module):
    """Four convolutions whose normalized maps compare two images, as LPIPS (Zhang et al. 2018) does."""

    num_features = 128

    def __init__(self, classes: dict[str, int] | None):
        """classes: as for `Judge`; None where no attributes are known, which leaves out the head that reads them."""
        super().__init__()
        widths = [3, 16, 32, 48, 64]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, 1 if index == 1 else 2, 1)
            for index, (before, after) in enumerate(itertools.pairwise(widths))
        )
        if classes is not None:
            self.classes = {"presence": 2, **classes}
            self.head = nn.Linear(64, sum(self.classes.values()))
        self.to(memory_format=torch.channels_last)

    def maps(self, images: Tensor) -> list[Tensor]:
        out = []
        images = images.contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            images = F.silu(layer(images))
            out.append(images)
        return out

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, Q, values) per attribute, each quadrant read from its part of the last map."""
        pooled = F.adaptive_avg_pool2d(self.maps(images)[-1], 2).flatten(2).transpose(1, 2)
        parts = self.head(pooled).split(list(self.classes.values()), dim=-1)
        return dict(zip(self.classes, parts, strict=True))

    def features(self, images: Tensor) -> Tensor:
        """(B, 128): mean and maximum over places of the last map, which learn from texts (`matching.Towers`)."""
        last = self.maps(images)[-1]
        return torch.cat([last.mean((2, 3)), last.amax((2, 3))], 1)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Mean squared distance of unit feature vectors, averaged over places, summed over layers; (scalar)."""
        # float32: convolutions this small are slower in bf16 on CPU.
        with torch.autocast(a.device.type, enabled=False):
            with torch.no_grad():
                wanted = self.maps(b.float())
            distances = [
                (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean()
                for x, y in zip(self.maps(a.float()), wanted, strict=True)
            ]
            return torch.stack(distances).sum()


def attribute_loss(logits: dict[str, Tensor], factors: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy over attributes; empty quadrants (-1) count for presence alone. factors: (B, Q) each."""
    losses = [
        F.cross_entropy(values.flatten(0, 1), factors[name].flatten().long(), ignore_index=-1)
        for name, values in logits.items()
    ]
    return torch.stack(losses).mean()


def perceptual_distortion(perceptual: Perceptual, out: Tensor, images: Tensor, pixel: float, weight: float):
    """pixel * (MSE + weight * feature distance), the distortion D(x, dec(z)) of the objective (scalar)."""
    distance = F.mse_loss(out.float(), images)
    if weight:
        distance = distance + weight * perceptual.distance(out, images)
    return pixel * distance
