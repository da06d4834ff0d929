"""Convolutional encoder and its mirror-image decoder: what lies across the borders of patches is seen whole.

Convolutions bring an image to a map of 8 x 8 places, of which every token takes its cell; transformer blocks follow as
in `infotok.tokenizer.patches`. Shapes: B images, S pixels a side, K tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infotok.tokenizer import MAP, halvings
from infotok.tokenizer.patches import Block

CHANNELS = 48
GROUPS = 8


class Residual(nn.Module):
    """Two normalized 3 x 3 convolutions beside the identity."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*_normalized(), *_normalized())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _normalized() -> list[nn.Module]:
    return [nn.GroupNorm(GROUPS, CHANNELS), nn.SiLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1)]


class ConvolutionEncoder(nn.Module):
    """Images (B, 3, S, S) in [-1, 1] to features (B, K, dimension), one per cell of the map."""

    def __init__(self, *, image_size: int, grid: tuple[int, int], width: int, hidden: int, blocks: int, dimension: int):
        super().__init__()
        self.grid, layers = grid, []
        for index in range(halvings(image_size, grid)):
            layers += [nn.Conv2d(CHANNELS if index else 3, CHANNELS, 4, 2, 1), nn.SiLU()]
        self.layers = nn.Sequential(*layers, Residual())
        self.embed = nn.Linear(CHANNELS * MAP**2 // (grid[0] * grid[1]), width)
        self.position = nn.Parameter(torch.randn(grid[0] * grid[1], width) * 0.02)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dimension))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = self.grid
        with torch.autocast(images.device.type, enabled=False):  # convolutions this small are slower in bf16 on CPU
            cells = self.layers(images.float().contiguous(memory_format=torch.channels_last))
        cells = cells.reshape(len(images), CHANNELS, rows, MAP // rows, columns, MAP // columns)
        x = self.embed(cells.permute(0, 2, 4, 1, 3, 5).reshape(len(images), rows * columns, -1)) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class ConvolutionDecoder(nn.Module):
    """Token vectors (B, K, dimension) to images (B, 3, S, S), unbounded around [-1, 1]."""

    def __init__(self, *, image_size: int, grid: tuple[int, int], width: int, hidden: int, blocks: int, dimension: int):
        super().__init__()
        self.grid, cell = grid, CHANNELS * MAP**2 // (grid[0] * grid[1])
        self.embed = nn.Linear(dimension, width)
        self.position = nn.Parameter(torch.randn(grid[0] * grid[1], width) * 0.02)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, cell))
        layers: list[nn.Module] = [Residual()]
        for index in reversed(range(halvings(image_size, grid))):
            layers += [nn.SiLU(), nn.ConvTranspose2d(CHANNELS, CHANNELS if index else 3, 4, 2, 1)]
        self.layers = nn.Sequential(*layers)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, vectors: Tensor) -> Tensor:
        x = self.embed(vectors) + self.position
        for block in self.blocks:
            x = block(x)
        rows, columns = self.grid
        cells = self.head(x).view(len(x), rows, columns, CHANNELS, MAP // rows, MAP // columns)
        cells = cells.permute(0, 3, 1, 4, 2, 5).reshape(len(x), CHANNELS, MAP, MAP)
        with torch.autocast(vectors.device.type, enabled=False):
            return self.layers(cells.float().contiguous(memory_format=torch.channels_last))
