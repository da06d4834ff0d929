"""What an object of a free scene can be, as far as the options of the data let it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

# The first ones are those that data of few shapes and colors have.
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring", "star", "bar")
COLORS = {
    "red": (0.93, 0.15, 0.15),
    "green": (0.15, 0.80, 0.20),
    "blue": (0.20, 0.30, 0.98),
    "yellow": (0.98, 0.90, 0.15),
    "purple": (0.75, 0.20, 0.90),
    "white": (0.98, 0.98, 0.98),
    "orange": (0.98, 0.52, 0.06),
    "cyan": (0.15, 0.92, 0.95),
    "pink": (1.00, 0.60, 0.80),
    "black": (0.03, 0.03, 0.03),
}
SIZES = {1: ("large",), 2: ("small", "large"), 3: ("small", "medium", "large")}
MATERIALS = ("plain", "striped", "dotted")


@dataclass(frozen=True)
class Vocabulary:
    """Names of attributes' values; an object's attributes are indices into them."""

    shapes: tuple[str, ...]
    colors: tuple[str, ...]
    sizes: tuple[str, ...]
    materials: tuple[str, ...]

    @classmethod
    def of(cls, shapes: int, colors: int, sizes: int, materials: int) -> Vocabulary:
        """The first so many of each."""
        return cls(SHAPES[:shapes], tuple(COLORS)[:colors], SIZES[sizes], MATERIALS[:materials])

    @cached_property
    def values(self) -> dict[str, tuple[str, ...]]:
        """Attribute name -> its values, of all attributes."""
        return {"shape": self.shapes, "color": self.colors, "size": self.sizes, "material": self.materials}

    @cached_property
    def told(self) -> tuple[str, ...]:
        """The attributes that texts speak of: those with more than one value."""
        return tuple(name for name, values in self.values.items() if len(values) > 1)

    @cached_property
    def novel(self) -> frozenset[tuple[str, str]]:
        """Color-shape pairs that no training image shows. Every shape, and every color but two, loses a partner; with
        four shapes and six colors they are those of `sources.scenes`."""
        losing = self.colors[:-2]
        number = max(len(self.shapes), len(losing))
        return frozenset((losing[i % len(losing)], self.shapes[-1 - i % len(self.shapes)]) for i in range(number))
