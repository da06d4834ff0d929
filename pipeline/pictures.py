"""Grids of images as PNG files."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from infotok.files import whole


def grid(images: Tensor, columns: int) -> np.ndarray:
    """Tile uint8 images (n, S, S, 3) row by row, without padding; n must be a multiple of `columns`."""
    count, height, width, channels = images.shape
    tiles = images.numpy().reshape(count // columns, columns, height, width, channels)
    return tiles.swapaxes(1, 2).reshape(count // columns * height, columns * width, channels)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W, 3) uint8 pixels, whole or not at all."""
    with whole(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
