"""How texts name the objects of a free scene: by attributes in English order, `small striped red circle`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from infotok.data.scene_texts import NUMBERS, Scene, article, plural

Thing = dict[str, Any]
Way = tuple[str, ...]  # attributes that an object is named by


def phrase(thing: Thing, way: Way) -> str:
    """`small red circle`; `red thing` where the shape is not named."""
    words = [thing[name] for name in ("size", "material", "color") if name in way]
    return " ".join([*words, thing["shape"] if "shape" in way else "thing"])


def counted(shape: str, number: int) -> str:
    """`a circle`, `two circles`."""
    return article(shape) if number == 1 else f"{NUMBERS[number]} {plural(shape)}"


def named(scene: Scene, ways: list[Way]) -> list[tuple[Thing, str]]:
    """Every object that one of the ways singles out, with its name by the first that does."""
    out: dict[int, tuple[Thing, str]] = {}
    for way in ways:
        counts = Counter(tuple(thing[name] for name in way) for thing in scene)
        for index, thing in enumerate(scene):
            if index not in out and counts[tuple(thing[name] for name in way)] == 1:
                out[index] = (thing, phrase(thing, way))
    return list(out.values())
