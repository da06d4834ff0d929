"""Captions and questions of CLEVR's families about scenes of objects.

An object is a dict with `shape`, `color`, `size` and its place: `row` and `column` of a grid, row 0 on top, or `x` and
`y` of its centre in sides of the image. On a grid A is left of B when its column is smaller, above B when its row is;
at free places when its centre is farther to that side by more than MARGIN. All else that is said of free scenes stands
in `infotok.data.free`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np

Scene = list[dict[str, Any]]
FAMILIES = ("exist", "count", "color", "shape", "size", "relation")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OPEN = "a picture with "  # begins what leaves open which objects there are beside those named
MARGIN = 0.1  # sides of the image; nearer along an axis, free objects stand in no relation along it


def related(a: dict, b: dict, relation: str) -> bool:
    """Whether object a stands in this relation to object b."""
    across = relation in ("left of", "right of")
    if "x" in a:
        axis, least = "x" if across else "y", MARGIN
    else:
        axis, least = "column" if across else "row", 0
    ahead = b[axis] - a[axis] if relation in ("left of", "above") else a[axis] - b[axis]
    return ahead > least


def name(thing: dict, *attributes: str) -> str:
    """`a small red circle`, with the attributes named, in English order."""
    return " ".join(["a", *(thing[a] for a in ("size", "color") if a in attributes), thing["shape"]])


def article(words: str) -> str:
    """`a red circle`, `an orange circle`."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """True captions of one scene, from shapes alone to all attributes; each names every object."""
    things = [scene[i] for i in rng.permutation(len(scene))]
    out = [join([name(t, *attributes) for t in things]) for attributes in ((), ("color",), ("size", "color"))]
    counts = Counter(t["shape"] for t in things)
    if max(counts.values()) > 1:
        out.append(join([f"{NUMBERS[n]} {plural(s)}" if n > 1 else f"a {s}" for s, n in counts.items()]))
    if len(things) == 1:
        out.append(name(things[0], "size"))
    if len(things) == 2:
        a, b = things
        holding = [relation for relation in RELATIONS if related(a, b, relation)]
        for attributes in ((), ("color",)):
            relation = holding[rng.integers(len(holding))]
            out.append(f"{name(a, *attributes)} {relation} {name(b, *attributes)}")
    return out


def _pick(items, rng):
    return items[rng.integers(len(items))]


def _exist(scene, vocabulary, rng):
    """Half yes, half no. A `no` differs from an object of the scene in one attribute: it cannot be guessed."""
    shapes, colors, _ = vocabulary
    thing = _pick(scene, rng)
    color, shape = thing["color"], thing["shape"]
    if rng.random() < 0.5:
        return f"is there a {color} {shape}?", "yes"
    present = {(t["color"], t["shape"]) for t in scene}
    changes = [(c, shape) for c in colors] + [(color, s) for s in shapes]
    color, shape = _pick([pair for pair in changes if pair not in present], rng)
    return f"is there a {color} {shape}?", "no"


def _count(scene, vocabulary, rng):
    """Counts are drawn evenly over the values that the scene offers."""
    counts = Counter(t["shape"] for t in scene)
    by_value: dict[int, list[str]] = {}
    for shape in vocabulary[0]:
        by_value.setdefault(counts[shape], []).append(shape)
    value = _pick(sorted(by_value), rng)
    return f"how many {plural(_pick(by_value[value], rng))} are there?", NUMBERS[value]


def _unique(scene, key):
    counts = Counter(tuple(t[k] for k in key) for t in scene)
    return [t for t in scene if counts[tuple(t[k] for k in key)] == 1]


def _color(scene, vocabulary, rng):
    things = _unique(scene, ("shape",))
    if things:
        thing = _pick(things, rng)
        return f"what color is the {thing['shape']}?", thing["color"]
    return None


def _shape(scene, vocabulary, rng):
    things = _unique(scene, ("color",))
    if things:
        thing = _pick(things, rng)
        return f"what shape is the {thing['color']} thing?", thing["shape"]
    return None


def _size(scene, vocabulary, rng):
    things = _unique(scene, ("shape",))
    if things:
        thing = _pick(things, rng)
        return f"what size is the {thing['shape']}?", thing["size"]
    return None


def _relation(scene, vocabulary, rng):
    """Half yes, half no, between two uniquely named objects that differ along the asked axis."""
    things = _unique(scene, ("color", "shape"))
    pairs = [
        (a, b, r)
        for a, b in itertools.permutations(things, 2)
        for r in RELATIONS
        if related(a, b, r) or related(b, a, r)
    ]
    if not pairs:
        return None
    wanted = rng.random() < 0.5
    a, b, relation = _pick([p for p in pairs if related(*p) == wanted], rng)
    text = f"is the {a['color']} {a['shape']} {relation} the {b['color']} {b['shape']}?"
    return text, "yes" if wanted else "no"


_ASK = dict(zip(FAMILIES, (_exist, _count, _color, _shape, _size, _relation), strict=True))


def ask(scene: Scene, number: int, vocabulary: tuple, rng: np.random.Generator) -> list[dict[str, str]]:
    """`number` questions about one scene: each family that applies in turn, in random order.

    Returns:
        dicts with `question`, `answer`, `family`.
    """
    out: list[dict[str, str]] = []
    while len(out) < number:
        for index in rng.permutation(len(FAMILIES)):
            family = FAMILIES[index]
            if len(out) < number and (pair := _ASK[family](scene, vocabulary, rng)):
                out.append({"question": pair[0], "answer": pair[1], "family": family})
    return out
