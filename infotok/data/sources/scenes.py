"""Procedural scenes: objects on a 2 x 2 grid over a high-entropy background, every factor known.

Structure is what language can ask for (presence, shape, color, size of the object in each quadrant). Nuisance is
everything else that the pixels carry (background hue, gradient, texture, noise, jitter). Deterministic from the
seed on any machine: NumPy's PCG64 uniforms and float64 arithmetic only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from infotok.data import scene_texts
from infotok.data.arrow import Split
from infotok.data.background import BINS, NUISANCE, background, binned, to_bytes
from infotok.data.free import vocabulary
from infotok.data.options import MadeOptions
from infotok.data.rejects import Rejects
from infotok.options import Count, Weight

WORDS = vocabulary.Vocabulary.of(shapes=4, colors=6, sizes=2, materials=1)
SHAPES, SIZES = WORDS.shapes, WORDS.sizes
COLORS = {name: vocabulary.COLORS[name] for name in WORDS.colors}
NOVEL = WORDS.novel  # color-shape pairs that no training image shows
SPLITS = ("train", "validation", "test", "novel", "judge")

METADATA = {
    "has_objects": True,
    "shapes": list(SHAPES),
    "colors": list(COLORS),
    "sizes": list(SIZES),
    "novel_pairs": sorted(list(pair) for pair in NOVEL),
    "factors": {
        "structure": {"presence": 2, "shape": len(SHAPES), "color": len(COLORS), "size": len(SIZES)},
        "nuisance": {**dict.fromkeys(NUISANCE, BINS), "jitter": 4},
    },
}
CHUNK = 2000  # images rendered at once


class Options(MadeOptions):
    """objects: at most, per scene. nuisance: strength of the background. train to novel: images. questions: per
    image."""

    source: Literal["scenes"] = "scenes"
    objects: Annotated[int, Field(ge=1, le=4)] = 2
    nuisance: Weight = 1.0
    questions: Count = 6


def sample_factors(rng: np.random.Generator, count: int, most: int, pairs_from: str) -> dict[str, np.ndarray]:
    """Draw the factors of `count` scenes.

    Args:
        most: objects per scene are uniform over 1..most (most <= 4, one per quadrant).
        pairs_from: `seen`, no color-shape pair of `NOVEL`; `novel`, every scene holds at least one; `all`, any.

    Returns:
        Arrays of shape (count, 4) for object factors by quadrant (row-major; values where `presence` is 0 mean
        nothing) and (count,) for the background.
    """
    number = rng.integers(1, most + 1, count)
    order = np.argsort(rng.random((count, 4)), axis=1)
    presence = np.zeros((count, 4), dtype=np.int64)
    np.put_along_axis(presence, order, (np.arange(4) < number[:, None]).astype(np.int64), axis=1)

    pairs = [(color, shape) for color in range(len(COLORS)) for shape in range(len(SHAPES))]
    is_novel = np.array([(WORDS.colors[c], SHAPES[s]) in NOVEL for c, s in pairs])
    seen_ids, novel_ids = np.flatnonzero(~is_novel), np.flatnonzero(is_novel)
    allowed = np.arange(len(pairs)) if pairs_from == "all" else seen_ids
    pair = allowed[rng.integers(0, len(allowed), (count, 4))]
    if pairs_from == "novel":
        # One object at a random occupied quadrant takes a novel pair.
        where = order[:, 0]
        pair[np.arange(count), where] = novel_ids[rng.integers(0, len(novel_ids), count)]
    table = np.array(pairs)
    return {
        "presence": presence,
        "color": table[pair, 0],
        "shape": table[pair, 1],
        "size": rng.integers(0, len(SIZES), (count, 4)),
        "dx": rng.random((count, 4)),
        "dy": rng.random((count, 4)),
        "hue": rng.random(count),
        "gradient": rng.random(count),
        "texture": rng.random(count),
        "phase": rng.random(count),
        "noise": rng.random(count),
    }


def render(f: dict[str, np.ndarray], size: int, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Draw scenes from their factors.

    Args:
        f: factors of `sample_factors`, n scenes.
        size: side of the square image in pixels.
        strength: of the nuisance; 0 leaves a plain colored ground.

    Returns:
        (n, size, size, 3) uint8.
    """
    image = background(f, size, strength, rng)
    palette, half = np.array(list(COLORS.values())), size // 2
    coordinates = np.arange(half) + 0.5
    y, x = np.meshgrid(coordinates, coordinates, indexing="ij")
    for quadrant in range(4):  # an object stays inside its quadrant, so only that part is touched
        row, column = divmod(quadrant, 2)
        part = image[:, row * half : (row + 1) * half, column * half : (column + 1) * half]
        radius = np.where(f["size"][:, quadrant] == 1, 0.43, 0.30) * half
        # Jitter is a nuisance too: at strength 1 it takes half of the room that the quadrant leaves.
        room = (half - 2 * radius - 1) * min(1.0, 0.5 * strength)
        cx = (half / 2 + room * (f["dx"][:, quadrant] - 0.5))[:, None, None]
        cy = (half / 2 + room * (f["dy"][:, quadrant] - 0.5))[:, None, None]
        u, v = (x - cx) / radius[:, None, None], (y - cy) / radius[:, None, None]
        au, av = np.abs(u), np.abs(v)
        # Signed distance in units of the radius, negative inside.
        distances = (
            np.sqrt(u * u + v * v) - 1.0,
            np.maximum(au, av) - 0.88,
            np.maximum(0.894 * au - 0.447 * (v + 1.0), v - 0.9),  # apex up; slope 2 in units of the radius
            np.minimum(np.maximum(au - 0.36, av - 1.0), np.maximum(au - 1.0, av - 0.36)),
        )
        distance = np.choose(f["shape"][:, quadrant][:, None, None], distances)
        cover = np.clip(0.5 - distance * radius[:, None, None], 0.0, 1.0) * f["presence"][:, quadrant][:, None, None]
        color = palette[f["color"][:, quadrant]][:, None, None, :]
        part += cover[..., None] * (color - part)
    return to_bytes(image)


def _probe_factors(f: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Categories that the probes predict, shape (n, slots); -1 where a quadrant is empty."""
    absent = f["presence"] == 0
    out = {"presence": f["presence"]}
    for name in ("shape", "color", "size"):
        out[name] = np.where(absent, -1, f[name])
    jitter = (f["dx"] >= 0.5).astype(np.int64) * 2 + (f["dy"] >= 0.5)
    out["jitter"] = np.where(absent, -1, jitter)
    return {name: values.astype(np.int8) for name, values in (out | binned(f)).items()}


def objects_of(f: dict[str, np.ndarray], index: int) -> list[dict[str, Any]]:
    """The objects of one scene: shape, color, size, row, column."""
    return [
        {
            "shape": SHAPES[f["shape"][index, q]],
            "color": WORDS.colors[f["color"][index, q]],
            "size": SIZES[f["size"][index, q]],
            "row": q // 2,
            "column": q % 2,
        }
        for q in range(4)
        if f["presence"][index, q]
    ]


def make_split(name: str, count: int, config: dict) -> Split:
    """One split; its random stream depends on the seed and the split's name alone."""
    stream = SPLITS.index(name)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([config["seed"], stream])))
    pairs_from = {"novel": "novel", "judge": "all"}.get(name, "seen")
    factors = sample_factors(rng, count, config["objects"], pairs_from)
    images = np.empty((count, config["image_size"], config["image_size"], 3), dtype=np.uint8)
    for start in range(0, count, CHUNK):
        part = {key: values[start : start + CHUNK] for key, values in factors.items()}
        images[start : start + CHUNK] = render(part, config["image_size"], config["nuisance"], rng)
    objects = [objects_of(factors, index) for index in range(count)]
    told = (SHAPES, WORDS.colors, SIZES)
    return Split(
        images=images,
        captions=[scene_texts.captions(scene, rng) for scene in objects],
        questions=[scene_texts.ask(scene, config["questions"], told, rng) for scene in objects],
        objects=objects,
        factors=_probe_factors(factors),
    )


def prepare(options: Options, rejects: Rejects, found: dict) -> Iterator[tuple[str, Split]]:
    """Yield (split name, split); `judge` has every color-shape pair and is seen by the judge alone. Nothing is read."""
    found["most_objects"] = options.objects
    config = options.model_dump()
    for name in SPLITS:
        yield name, make_split(name, config["train" if name == "judge" else name], config)
