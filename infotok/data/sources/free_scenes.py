"""Procedural scenes of objects at free places over a high-entropy background, every factor known.

They scale where the quadrants of `sources.scenes` end: up to nine objects, eight shapes, ten colors, three sizes, three
materials. Deterministic from the seed on any machine: NumPy's PCG64 uniforms and float64 arithmetic only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from infotok.data.arrow import Split
from infotok.data.background import BINS, NUISANCE
from infotok.data.free.captions import captions
from infotok.data.free.objects import factor_sizes, objects_of, probe_factors, sample
from infotok.data.free.places import apart
from infotok.data.free.questions import WEIGHTS, Asker
from infotok.data.free.rendering import render
from infotok.data.free.vocabulary import Vocabulary
from infotok.data.options import MadeOptions
from infotok.data.rejects import Rejects
from infotok.options import Count, Weight

METADATA = {"has_objects": True, "layout": "free"}
SPLITS = ("train", "validation", "test", "novel", "judge")
CHUNK = 1 << 21  # pixels rendered at once


class Options(MadeOptions):
    """objects: at most, per scene, and `objects_at_least`. shapes, colors, sizes, materials: how many of each there
    are. grid: objects stand in the middles of so many cells a side; 0, anywhere. occlusion: whether later objects may
    cover up to a third of earlier ones. question_weights: how often each
    family of questions is asked, where that is not the default, such as {relation: 40}. nuisance: strength of the
    background. train to novel: images. questions: per image."""

    source: Literal["free_scenes"] = "free_scenes"
    image_size: Annotated[int, Field(ge=32, le=128, multiple_of=8)] = 32
    objects: Annotated[int, Field(ge=1, le=9)] = 4
    objects_at_least: Annotated[int, Field(ge=1, le=9)] = 1
    shapes: Annotated[int, Field(ge=4, le=8)] = 4
    colors: Annotated[int, Field(ge=6, le=10)] = 6
    sizes: Annotated[int, Field(ge=1, le=3)] = 2
    materials: Annotated[int, Field(ge=1, le=3)] = 1
    grid: Annotated[int, Field(ge=0, le=8)] = 0
    occlusion: bool = False
    question_weights: dict[str, Weight] = Field(default_factory=dict)
    nuisance: Weight = 1.0
    questions: Count = 6

    @field_validator("question_weights")
    @classmethod
    def _of_families(cls, value: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(set(value) - set(WEIGHTS)):
            raise ValueError(f"knows no family {unknown[0]!r}; the families are {', '.join(WEIGHTS)}")
        # Every scene can be asked what exists and how much; a single object in the middle perhaps nothing else.
        if not any((WEIGHTS | value)[family] for family in ("exist", "count")):
            raise ValueError("leaves scenes without a question; give exist or count a weight")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Options:
        if self.objects_at_least > self.objects:
            raise ValueError(f"objects_at_least ({self.objects_at_least}) is more than objects ({self.objects})")
        if self.grid and self.occlusion:
            raise ValueError(
                "occlusion needs free places, but grid puts every object into a cell of its own; set one of them"
            )
        if 0 < self.grid**2 < self.objects:
            raise ValueError(f"grid has {self.grid} x {self.grid} cells, too few for {self.objects} objects")
        single = {"size": self.sizes, "material": self.materials, "relation": self.objects}
        for family in self.question_weights:
            if single.get(family) == 1:
                option = "objects" if family == "relation" else f"{family}s"
                raise ValueError(f"question_weights names {family}, of which nothing can be asked: {option} is 1")
        return self

    @property
    def words(self) -> Vocabulary:
        return Vocabulary.of(self.shapes, self.colors, self.sizes, self.materials)


def make_split(name: str, count: int, options: Options) -> Split:
    """One split; its random stream depends on the seed and the split's name alone."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([options.seed, SPLITS.index(name)])))
    pairs, words = {"novel": "novel", "judge": "all"}.get(name, "seen"), options.words
    factors = sample(
        rng, count, words, options.objects_at_least, options.objects, options.occlusion, pairs, options.grid
    )
    size = options.image_size
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    step = max(1, CHUNK // size**2)
    for start in range(0, count, step):
        part = {key: values[start : start + step] for key, values in factors.items()}
        images[start : start + step] = render(part, words, size, options.nuisance, rng)
    objects = [objects_of(factors, index, words) for index in range(count)]
    asker = Asker(words, options.question_weights, pairs == "seen", rng)
    return Split(
        images=images,
        captions=[captions(scene, words, options.objects_at_least > 1, rng) for scene in objects],
        questions=[asker.ask(scene, options.questions) for scene in objects],
        objects=objects,
        factors=probe_factors(factors, words),
    )


def describe(options: Options) -> dict:
    """What the manifest says of these data."""
    words = options.words
    return {
        "most_objects": options.objects,
        "least_objects": options.objects_at_least,
        "centres_apart": apart(options.objects, options.sizes, options.occlusion, options.grid),
        **{f"{name}s": list(values) for name, values in words.values.items()},
        "novel_pairs": sorted(list(pair) for pair in words.novel),
        "factors": {"structure": factor_sizes(words), "nuisance": dict.fromkeys(NUISANCE, BINS)},
    }


def prepare(options: Options, rejects: Rejects, found: dict) -> Iterator[tuple[str, Split]]:
    """Yield (split name, split); `judge` has every color-shape pair and is seen by the judge alone. Nothing is read."""
    found |= describe(options)
    for name in SPLITS:
        yield name, make_split(name, getattr(options, "train" if name == "judge" else name), options)
