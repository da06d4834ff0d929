"""Shapes and materials as functions of the place inside an object.

An object's own coordinates u (to the right) and v (down) are 0 at its centre and ±1 at the sides of its box.
"""

from __future__ import annotations

import numpy as np


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points, one up: the plane is folded to half a point, whose edge is a line from tip to notch."""
    sector, notch = np.pi / 5, 0.42
    angle = np.abs((np.arctan2(u, -v) + sector) % (2 * sector) - sector)
    distance = np.hypot(u, v)
    x, y = distance * np.cos(angle), distance * np.sin(angle)  # the tip lies at (1, 0)
    edge = np.array([notch * np.cos(sector) - 1.0, notch * np.sin(sector)])
    return ((x - 1.0) * edge[1] - y * edge[0]) / np.hypot(*edge)


# Signed distance from the edge, negative inside.
DISTANCE = {
    "circle": lambda u, v: np.hypot(u, v) - 1.0,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.88,
    "triangle": lambda u, v: np.maximum(0.894 * np.abs(u) - 0.447 * (v + 1.0), v - 0.9),  # apex up
    "cross": lambda u, v: np.minimum(
        np.maximum(np.abs(u) - 0.36, np.abs(v) - 1.0), np.maximum(np.abs(u) - 1.0, np.abs(v) - 0.36)
    ),
    "diamond": lambda u, v: 0.707 * (np.abs(u) + np.abs(v) - 1.0),
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.72) - 0.28,
    "star": _star,
    "bar": lambda u, v: np.maximum(np.abs(u) - 1.0, np.abs(v) - 0.36),
}


def _stripes(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    along, period = (u + v) * 0.707, 0.9
    return np.abs((along / period) % 1.0 - 0.5) * period - period / 4


def _dots(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    period = 0.7  # with a dot in the centre, so that bars and crosses have some
    return np.hypot((u / period + 0.5) % 1.0 - 0.5, (v / period + 0.5) % 1.0 - 0.5) * period - 0.22


# Signed distance from the edge of the pattern in a second tone, negative inside.
PATTERN = {"striped": _stripes, "dotted": _dots}


def covered(distance: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Share of each pixel that is inside, of distances in units of `radius`, which is in pixels."""
    return np.clip(0.5 - distance * radius, 0.0, 1.0)
