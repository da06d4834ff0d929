"""Patch encoder and its mirror-image decoder: one patch a token, an MLP, and a few transformer blocks.

Shapes: B images, K tokens, D width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 4


class Block(nn.Module):
    """A pre-norm transformer block. Attention is written out: on CPU its backward is several times faster than
    the fused kernel's on sequences this short."""

    def __init__(self, width: int):
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BKD: Tensor) -> Tensor:
        batch, tokens, width = x_BKD.shape
        qkv = self.qkv(self.norm_attention(x_BKD)).view(batch, tokens, 3, HEADS, width // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) * (width // HEADS) ** -0.5).softmax(-1)
        mixed = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(batch, tokens, width)
        x_BKD = x_BKD + self.out(mixed)
        return x_BKD + self.down(F.gelu(self.up(self.norm_mlp(x_BKD))))


class PatchEncoder(nn.Module):
    """Images (B, 3, S, S) in [-1, 1] to features (B, K, dimension), one per patch."""

    def __init__(self, *, image_size: int, grid: tuple[int, int], width: int, hidden: int, blocks: int, dimension: int):
        super().__init__()
        self.grid, pixels = grid, 3 * image_size**2 // (grid[0] * grid[1])
        self.embed = nn.Sequential(nn.Linear(pixels, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.position = nn.Parameter(torch.randn(grid[0] * grid[1], width) * 0.02)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dimension))

    def forward(self, images: Tensor) -> Tensor:
        batch, channels, size, _ = images.shape
        rows, columns = self.grid
        patches = images.view(batch, channels, rows, size // rows, columns, size // columns)
        x = self.embed(patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class PatchDecoder(nn.Module):
    """Token vectors (B, K, dimension) to images (B, 3, S, S), unbounded around [-1, 1]."""

    def __init__(self, *, image_size: int, grid: tuple[int, int], width: int, hidden: int, blocks: int, dimension: int):
        super().__init__()
        self.grid, self.image_size = grid, image_size
        pixels = 3 * image_size**2 // (grid[0] * grid[1])
        self.embed = nn.Linear(dimension, width)
        self.position = nn.Parameter(torch.randn(grid[0] * grid[1], width) * 0.02)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, pixels))

    def forward(self, vectors: Tensor) -> Tensor:
        x = self.embed(vectors) + self.position
        for block in self.blocks:
            x = block(x)
        rows, columns = self.grid
        size, batch = self.image_size, len(x)
        patches = self.head(x).view(batch, rows, columns, 3, size // rows, size // columns)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, 3, size, size)
