"""The high-entropy background that all procedural scenes share: hue gradient, oriented texture and pixel noise."""

from __future__ import annotations

import numpy as np

BINS = 8  # of each continuous nuisance factor, for the probes
NUISANCE = ("hue", "gradient", "texture", "noise")


def binned(f: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Categories 0..BINS-1 of the nuisance factors, (n, 1) each."""
    return {name: np.minimum((f[name] * BINS).astype(np.int64), BINS - 1)[:, None] for name in NUISANCE}


def _hsv(hue: np.ndarray, saturation: float, value: float) -> np.ndarray:
    """Hue in [0, 1) to RGB, shape (..., 3)."""
    offsets = np.array([5.0, 3.0, 1.0])
    k = (offsets + hue[..., None] * 6.0) % 6.0
    return value - value * saturation * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0)


def background(f: dict[str, np.ndarray], size: int, strength: float, rng: np.random.Generator) -> np.ndarray:
    """The ground of n images, (n, size, size, 3), values about [0, 0.7].

    Args:
        f: `hue`, `gradient`, `texture`, `phase` and `noise`, each (n,) in [0, 1).
        strength: of gradient, texture and noise; 0 leaves a plain colored ground.
    """
    axis = (np.arange(size) + 0.5) / size - 0.5
    y, x = np.meshgrid(axis, axis, indexing="ij")
    angle = 2 * np.pi * f["gradient"][:, None, None]
    ramp = x * np.cos(angle) + y * np.sin(angle)
    base = _hsv(f["hue"], 0.7, 0.45)[:, None, None, :]
    image = base * (1.0 + 0.9 * strength * ramp[..., None])
    turn = np.pi * f["texture"][:, None, None]
    wave = np.sin(2 * np.pi * (6.0 * (x * np.cos(turn) + y * np.sin(turn)) + f["phase"][:, None, None]))
    image = image + 0.10 * strength * wave[..., None]
    grain = rng.random((len(image), size, size, 3)) - 0.5
    return image + 0.3 * strength * f["noise"][:, None, None, None] * grain


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Images of floats, 0 black and 1 white, as uint8."""
    return np.round(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)
