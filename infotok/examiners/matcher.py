"""The judge of data whose objects are not known: whether image and text match.

Shapes: B rows, S pixels a side.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from infotok.examiners.matching import Towers


def _convolution(before: int, after: int, size: int, stride: int) -> list[nn.Module]:
    # Without normalization the same training finds half as many captions of held-out images.
    return [nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after), nn.SiLU()]


class ImageTower(nn.Module):
    """Convolutions that come with few channels to a map of about 16 x 16, and look closely from there on."""

    num_features = 128

    def __init__(self, image_size: int):
        super().__init__()
        halvings = max(1, math.ceil(math.log2(image_size / 16)))
        stem = [3, *[16] * (halvings - 1), 32]
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(itertools.pairwise(stem)):
            layers += _convolution(before, after, 3 if index else 5, 2)
        layers += _convolution(32, 32, 3, 1)
        layers += _convolution(32, 64, 3, 2) + _convolution(64, 64, 3, 1)
        layers += _convolution(64, 96, 3, 2) + _convolution(96, self.num_features, 3, 2)
        self.layers = nn.Sequential(*layers)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, images: Tensor) -> Tensor:
        """(B, num_features) of images (B, 3, S, S) in [-1, 1]: the mean over places of the last map."""
        return self.layers(images.contiguous(memory_format=torch.channels_last)).mean((2, 3))


class Matcher(Towers):
    """The judge of matching; its images' features serve FID and KID."""

    num_features = ImageTower.num_features

    def __init__(self, image_size: int, vocabulary: int):
        super().__init__(ImageTower(image_size), vocabulary)

    def features(self, images: Tensor) -> Tensor:
        """(B, 128) features of images (B, 3, S, S) in [-1, 1]."""
        return self.image.features(images)
