"""Free scenes as images. Deterministic from the seed on any machine: float64 arithmetic of NumPy."""

from __future__ import annotations

import numpy as np

from infotok.data.background import background, to_bytes
from infotok.data.free.shapes import DISTANCE, PATTERN, covered
from infotok.data.free.vocabulary import COLORS, Vocabulary


def _tone(color: np.ndarray) -> np.ndarray:
    """The second tone of a material: a darker one of bright colors, a brighter one of dark ones."""
    dark = color.max(-1, keepdims=True) < 0.5
    return np.where(dark, 0.35 * color + 0.65, 0.4 * color)


def render(
    f: dict[str, np.ndarray], vocabulary: Vocabulary, size: int, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw scenes from their factors, later objects over earlier ones.

    Args:
        f: factors of `objects.sample`, n scenes.
        size: side of the square image in pixels. strength: of the nuisance; 0 leaves a plain colored ground.

    Returns:
        (n, size, size, 3) uint8.
    """
    image = background(f, size, strength, rng)
    palette = np.array([COLORS[name] for name in vocabulary.colors])
    wide = min(size, int(np.ceil(2 * f["radius"].max() * size)) + 2)  # a window that holds any object
    window = np.arange(wide)
    for slot in range(f["shape"].shape[1]):
        for index, shape in enumerate(vocabulary.shapes):
            for material in range(len(vocabulary.materials)):
                is_it = (f["shape"][:, slot] == index) & (f["material"][:, slot] == material)
                scenes = np.flatnonzero(is_it & (slot < f["number"]))
                if len(scenes):
                    one = {name: f[name][scenes, slot] for name in ("x", "y", "radius", "color")}
                    _draw(image, scenes, one, palette, window, shape, vocabulary.materials[material])
    return to_bytes(image)


def _draw(
    image: np.ndarray,
    scenes: np.ndarray,
    one: dict[str, np.ndarray],
    palette: np.ndarray,
    window: np.ndarray,
    shape: str,
    material: str,
) -> None:
    """Draw an object of one shape and material into each of these scenes, in place."""
    size, radius = image.shape[1], (one["radius"] * image.shape[1])[:, None, None]
    corner = [np.clip(np.floor((one[a] - one["radius"]) * size), 0, size - len(window)).astype(np.int64) for a in "xy"]
    columns, rows = (start[:, None] + window for start in corner)
    u = (columns[:, None, :] + 0.5 - (one["x"] * size)[:, None, None]) / radius
    v = (rows[:, :, None] + 0.5 - (one["y"] * size)[:, None, None]) / radius
    u, v = np.broadcast_arrays(u, v)
    cover = covered(DISTANCE[shape](u, v), radius)[..., None]
    color = palette[one["color"]][:, None, None, :]
    if material in PATTERN:
        color = color + covered(PATTERN[material](u, v), radius)[..., None] * (_tone(color) - color)
    place = (scenes[:, None, None], rows[:, :, None], columns[:, None, :])
    image[place] += cover * (color - image[place])
