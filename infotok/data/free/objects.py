"""The factors of free scenes: how many objects, what each is, where it stands; and the background behind them."""

from __future__ import annotations

from typing import Any

import numpy as np

from infotok.data.background import binned
from infotok.data.free.places import place, radii
from infotok.data.free.vocabulary import Vocabulary

ALIKE = 0.5  # share of scenes in which shapes repeat
THIRDS = 3  # of the image, by which probes tell columns and rows
CHUNK = 2000  # scenes placed at once


def sample(
    rng: np.random.Generator,
    count: int,
    vocabulary: Vocabulary,
    least: int,
    most: int,
    occlusion: bool,
    pairs: str,
    grid: int = 0,
) -> dict[str, np.ndarray]:
    """Draw the factors of `count` scenes.

    The number of objects is uniform over least..most. Shapes are uniform, but in half of the scenes every object has
    with a probability, itself uniform over [0, 1) and of the scene, the shape of the first one: otherwise there would
    be no scenes of many equal shapes to count. Colors are uniform over those that the shape is seen with.

    Args:
        grid: as of `place`.
        pairs: `seen`, no color-shape pair of `vocabulary.novel`; `novel`, every scene holds at least one; `all`, any.

    Returns:
        Arrays of shape (count, most) for objects, whose first `number` are there; (count,) for the background, and
        `number`. Places and radii are in sides of the image.
    """
    number = rng.integers(least, most + 1, count)
    shape = rng.integers(0, len(vocabulary.shapes), (count, most))
    # Row s: whether a color is seen with shape s.
    novel = np.array([[(color, name) in vocabulary.novel for color in vocabulary.colors] for name in vocabulary.shapes])
    if pairs == "novel":  # the first object takes a novel pair
        shapes, colors = np.nonzero(novel)
        chosen = rng.integers(0, len(shapes), count)
        shape[:, 0] = shapes[chosen]
    alike = np.where(rng.random(count) < ALIKE, rng.random(count), 0.0)
    shape = np.where(rng.random((count, most)) < alike[:, None], shape[:, :1], shape)
    allowed = ~novel if pairs != "all" else np.ones_like(novel)
    order = np.argsort(~allowed, axis=1, kind="stable")  # of each shape, its allowed colors first
    pick = (rng.random((count, most)) * allowed.sum(1)[shape]).astype(np.int64)
    color = order[shape, pick]
    if pairs == "novel":
        color[:, 0] = colors[chosen]
    size = rng.integers(0, len(vocabulary.sizes), (count, most))
    material = rng.integers(0, len(vocabulary.materials), (count, most))
    radius = radii(most, len(vocabulary.sizes), grid)[size]
    centres = np.empty((count, most, 2))
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        covering = shape[part] if occlusion else None
        centres[part] = place(rng, radius[part], number[part], covering, vocabulary.shapes, grid)
    objects = {"shape": shape, "color": color, "size": size, "material": material, "radius": radius}
    ground = {name: rng.random(count) for name in ("hue", "gradient", "texture", "phase", "noise")}
    return {"number": number, **objects, "x": centres[..., 0], "y": centres[..., 1], **ground}


def objects_of(f: dict[str, np.ndarray], index: int, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """The objects of one scene, those behind first: shape, color, size, material; x, y and radius in sides of the
    image, rounded to a ten-thousandth."""
    return [
        {name: values[f[name][index, slot]] for name, values in vocabulary.values.items()}
        | {name: round(float(f[name][index, slot]), 4) for name in ("x", "y", "radius")}
        for slot in range(f["number"][index])
    ]


def factor_sizes(vocabulary: Vocabulary) -> dict[str, int]:
    """Structure factors of the probes and their numbers of categories."""
    told = {name: len(vocabulary.values[name]) for name in vocabulary.told if name != "color"}
    return {"presence": 2, **told, "column": THIRDS, "row": THIRDS}


def probe_factors(f: dict[str, np.ndarray], vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """Categories that the probes predict. A slot is a color, wherever the object of this color stands: `presence`,
    whether an object has it; shape, size, material, and the third of the image that holds the centre (`column`, `row`),
    where exactly one object has it, and -1 elsewhere. (n, colors); background factors (n, 1)."""
    slots = np.arange(f["color"].shape[1])
    there = slots < f["number"][:, None]
    has = there[..., None] & (f["color"][..., None] == np.arange(len(vocabulary.colors)))  # (n, slots, colors)
    only, first = has.sum(1) == 1, has.argmax(1)
    out = {"presence": has.any(1)}
    thirds = {"column": (f["x"] * THIRDS).astype(np.int64), "row": (f["y"] * THIRDS).astype(np.int64)}
    for name in list(factor_sizes(vocabulary))[1:]:
        values = thirds[name] if name in thirds else f[name]
        out[name] = np.where(only, np.take_along_axis(values, first, 1), -1)
    return {name: values.astype(np.int8) for name, values in (out | binned(f)).items()}
