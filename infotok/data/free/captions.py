"""Captions of free scenes.

A caption names every object, but one that begins with OPEN, which names some and says nothing of the others.
"""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np

from infotok.data.free.naming import counted, phrase
from infotok.data.free.vocabulary import Vocabulary
from infotok.data.scene_texts import OPEN, RELATIONS, Scene, article, join, related


def captions(scene: Scene, vocabulary: Vocabulary, open_too: bool, rng: np.random.Generator) -> list[str]:
    """True captions of one scene, objects in random order:

    - the shapes, equal ones counted: `two circles and a square`;
    - every object by color and shape, and by all attributes;
    - of a single object its size: `a small circle`;
    - the relation of two objects, by shape and by color and shape; of more objects the relation of the first two, then
      the others: `a red circle above a blue square, with a green cross and a white bar`;
    - with `open_too` two open captions about one or two objects, or about all of one shape: `a picture with two bars`.
    """
    things = [scene[i] for i in rng.permutation(len(scene))]
    out = [join([counted(shape, number) for shape, number in Counter(t["shape"] for t in things).items()])]
    ways = [("color", "shape"), vocabulary.told]
    out += [join([article(phrase(thing, way)) for thing in things]) for way in dict.fromkeys(ways)]
    if len(things) == 1 and "size" in vocabulary.told:
        out.append(article(phrase(things[0], ("size", "shape"))))
    if pair := _related(things, rng):
        a, b, relation = pair
        rest = [article(phrase(thing, ("color", "shape"))) for thing in things if thing is not a and thing is not b]
        if not rest:
            out.append(f"a {a['shape']} {relation} a {b['shape']}")
        told = [article(phrase(thing, ("color", "shape"))) for thing in (a, b)]
        out.append(f" {relation} ".join(told) + (f", with {join(rest)}" if rest else ""))
    if open_too:
        out += _open(things, vocabulary, rng)
    return out


def _related(things: Scene, rng: np.random.Generator) -> tuple | None:
    """Two objects and a relation in which they stand, if there are any: the first two, where they do."""
    for a, b in itertools.combinations(things, 2):
        if holding := [relation for relation in RELATIONS if related(a, b, relation)]:
            return a, b, holding[rng.integers(len(holding))]
    return None


def _open(things: Scene, vocabulary: Vocabulary, rng: np.random.Generator) -> list[str]:
    """Two of the kinds that GenEval's prompts are of; `things` in random order."""
    first, color = things[0], ("color", "shape")
    kinds = [first["shape"], phrase(first, color)]
    if "size" in vocabulary.told:
        kinds.append(phrase(first, ("size", "shape")))
    texts = [article(kind) for kind in kinds]
    if len(things) > 1:
        texts += [join([article(phrase(thing, way)) for thing in things[:2]]) for way in (("shape",), color)]
    if pair := _related(things, rng):
        texts.append(f"a {pair[0]['shape']} {pair[2]} a {pair[1]['shape']}")
    if (number := sum(thing["shape"] == first["shape"] for thing in things)) > 1:
        texts.append(counted(first["shape"], number))
    return [OPEN + texts[i] for i in rng.permutation(len(texts))[:2]]
