"""The perceptual features that reconstructions are compared in.

Shapes: B images, S pixels a side, Q = 4 quadrants, P objects at free places.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infotok.examiners.attributes import attribute_loss
from infotok.options import Positive, Section, Weight
from infotok.tensors import load_module, read_tensors

LEAST = 1e-12  # a vector that is shorter is divided by it, as `F.normalize` does


class Distortion(Section):
    """Section `reconstruction`: D(x, dec(z)) = pixel * (MSE + perceptual * distance of perceptual features)."""

    pixel: Positive = 10.0
    perceptual: Weight = 0.5


class Perceptual(nn.Module):
    """Four convolutions whose normalized maps compare two images, as LPIPS (Zhang et al. 2018) does."""

    num_features = 128

    def __init__(self, classes: dict[str, int] | None, free: bool = False):
        """classes: as for `Judge`; None where no attributes are known, which leaves out the head that reads them. free:
        objects are read at their places (`at`) rather than by quadrant (`forward`)."""
        super().__init__()
        widths = [3, 16, 32, 48, 64]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, 1 if index == 1 else 2, 1)
            for index, (before, after) in enumerate(itertools.pairwise(widths))
        )
        if classes is not None:
            self.classes = classes if free else {"presence": 2, **classes}
            self.head = nn.Linear(sum(widths[1:]) if free else widths[-1], sum(self.classes.values()))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def maps(self, images: Tensor) -> list[Tensor]:
        out = []
        images = images.contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            images = F.silu(layer(images))
            out.append(images)
        return out

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, Q, values) per attribute, each quadrant read from its part of the last map."""
        return self._read(F.adaptive_avg_pool2d(self.maps(images)[-1], 2).flatten(2).transpose(1, 2))

    def at(self, images: Tensor, places: Tensor) -> dict[str, Tensor]:
        """Logits (B, P, values) per attribute of the objects whose centres `places` (B, P, 2) are, x and y in sides of
        the image, each read where it stands from all maps: the places of the last one are wider than small objects."""
        grid = 2 * places[:, :, None] - 1
        there = [F.grid_sample(layer, grid, align_corners=False) for layer in self.maps(images)]
        return self._read(torch.cat(there, 1).squeeze(-1).mT)

    def loss(self, images: Tensor, place: Tensor, attributes: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy of attributes (B, P), -1 where there is no object, read at places (B, P, 2), NaN there."""
        return attribute_loss(self.at(images, place.nan_to_num()), attributes)

    def _read(self, vectors: Tensor) -> dict[str, Tensor]:
        parts = self.head(vectors).split(list(self.classes.values()), dim=-1)
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
            maps = zip(self.maps(a.float()), wanted, strict=True)
            if torch.compiler.is_compiling():  # which derives a gradient and joins operations itself
                return torch.stack([_Apart.compute(x, y)[0] for x, y in maps]).sum()
            return torch.stack([_Apart.apply(x, y) for x, y in maps]).sum()


class _Apart(torch.autograd.Function):
    """Mean squared distance of the unit vectors along the channels of maps (B, C, H, W); scalar, its gradient for the
    first alone.

    From inner products, |u - v|² = |u|² + |v|² - 2 u v, so that no map of unit vectors is made, forward or backward.
    """

    @staticmethod
    def compute(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        lengths = [torch.linalg.vector_norm(z, dim=1, keepdim=True) for z in (x, y)]
        divisors = [length.clamp_min(LEAST) for length in lengths]
        inner = (x * y).sum(1, keepdim=True) / (divisors[0] * divisors[1])
        squares = [(length / divisor).square() for length, divisor in zip(lengths, divisors, strict=True)]
        return (squares[0] + squares[1] - 2 * inner).mean(), *divisors, inner, lengths[0] > LEAST

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        distance, *kept = _Apart.compute(x, y)
        ctx.save_for_backward(x, y, *kept)
        return distance

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        x, y, of_x, of_y, inner, long = ctx.saved_tensors
        share = 2 * upstream / of_x.numel() / of_x
        own = share / of_x * torch.where(long, inner, torch.ones_like(inner))
        return torch.addcmul(x * own, y, share / of_y, value=-1), None


def perceptual_distortion(perceptual: Perceptual, out: Tensor, images: Tensor, distortion: Distortion) -> Tensor:
    """`Distortion` of reconstructions and images (B, 3, S, S), mean over the batch (scalar)."""
    distance = F.mse_loss(out.float(), images)
    if distortion.perceptual:
        distance = distance + distortion.perceptual * perceptual.distance(out, images)
    return distortion.pixel * distance


def load_perceptual(path: Path, remedy: str) -> Perceptual:
    """Saved features, ready to compare with.

    Raises:
        InfotokError: the file is missing or damaged; `remedy` says what would help.
    """
    tensors, description = read_tensors(path, remedy)
    features = Perceptual(**description)
    load_module(features, tensors, path, remedy)
    return features.eval()
