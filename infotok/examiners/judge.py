"""The judge, which reads objects out of images as GenEval's detector does.

It differs from the perceptual features in architecture and seed, so that no arm trains against its examiner. Both learn
from the attributes of the training images, and where no objects are known from their texts (`matching`); that
supervision is given to every arm alike. Shapes: B images, S pixels a side, Q = 4 quadrants.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def maps(self, images: Tensor) -> Tensor:
        return self.read(self.trunk(images.contiguous(memory_format=torch.channels_last)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, Q, values) per attribute of images (B, 3, S, S) in [-1, 1]."""
        parts = self.head(self.maps(images)).flatten(2).transpose(1, 2).split(list(self.classes.values()), dim=-1)
        return dict(zip(self.classes, parts, strict=True))

    def features(self, images: Tensor) -> Tensor:
        """(B, 128) features for FID and KID: the mean over quadrants of the last hidden map."""
        return self.maps(images).mean((2, 3))
