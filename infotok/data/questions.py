"""Captions, questions of CLEVR's families, and GenEval prompts about scenes of objects.

An object is a dict with `shape`, `color`, `size`, `row`, `column` (grid place, row 0 on top). A is left of B when
its column is smaller, above B when its row is.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

Scene = list[dict[str, Any]]
FAMILIES = ("exist", "count", "color", "shape", "size", "relation")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = ("zero", "one", "two", "three", "four")


def related(a: dict, b: dict, relation: str) -> bool:
    """Whether object a stands in this relation to object b."""
    axis = "column" if relation in ("left of", "right of") else "row"
    return a[axis] < b[axis] if relation in ("left of", "above") else a[axis] > b[axis]


def name(thing: dict, *attributes: str) -> str:
    """`a small red circle`, with the attributes named, in English order."""
    return " ".join(["a", *(thing[a] for a in ("size", "color") if a in attributes), thing["shape"]])


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


class Guess:
    """The best answers without the image: the most frequent training answer to the same text, else to the same first
    three words, else to the same family, else overall, which is the majority."""

    def __init__(self, train: Iterable[list[dict[str, str]]]):
        """train: per image its questions."""
        seen: dict = {}
        for pair in itertools.chain.from_iterable(train):
            for key in self._keys(pair):
                seen.setdefault(key, Counter())[pair["answer"]] += 1
        self.answers = set(seen[None]) if seen else set()
        self._guesses = {key: counts.most_common(1)[0][0] for key, counts in seen.items()}

    @staticmethod
    def _keys(pair: dict) -> list:
        return [pair["question"], tuple(pair["question"].split()[:3]), ("family", pair["family"]), None]

    def accuracies(self, test: Iterable[list[dict[str, str]]]) -> dict[str, float]:
        """Shares that are right: `question_only` and `majority`."""
        number = right = majority = 0
        for pair in itertools.chain.from_iterable(test):
            number += 1
            guess = next(self._guesses[key] for key in self._keys(pair) if key in self._guesses)
            right += guess == pair["answer"]
            majority += self._guesses[None] == pair["answer"]
        return {"question_only": right / number, "majority": majority / number}


def _all_prompts(tag: str, shapes, colors, sizes, most: int) -> list[dict]:
    """Every prompt of one tag as GenEval metadata: tag, prompt, include, exclude."""

    def thing(shape, **extra):
        return {"class": shape, "count": 1, **extra}

    out: list[dict] = []

    def add(prompt, include, exclude=()):
        out.append({"tag": tag, "prompt": prompt, "include": include, "exclude": list(exclude)})

    pairs = [(c, s) for c in colors for s in shapes]
    if tag == "single_object":
        for shape in shapes:
            add(f"a {shape}", [thing(shape)])
            for size in sizes:
                add(f"a {size} {shape}", [thing(shape)])
    elif tag == "two_object" and most >= 2:
        for a, b in itertools.permutations(shapes, 2):
            add(f"a {a} and a {b}", [thing(a), thing(b)])
    elif tag == "counting":
        for shape, n in itertools.product(shapes, range(2, most + 1)):
            include = [{"class": shape, "count": n}]
            add(f"{NUMBERS[n]} {plural(shape)}", include, [{"class": shape, "count": n + 1}])
    elif tag == "colors":
        for color, shape in pairs:
            add(f"a {color} {shape}", [thing(shape, color=color)])
    elif tag == "position" and most >= 2:
        for a, b in itertools.permutations(shapes, 2):
            for relation in RELATIONS:
                add(f"a {a} {relation} a {b}", [thing(b), thing(a, position=[relation, 0])])
    elif tag == "color_attr" and most >= 2:
        for (ca, sa), (cb, sb) in itertools.permutations(pairs, 2):
            if sa != sb and ca != cb:
                add(f"a {ca} {sa} and a {cb} {sb}", [thing(sa, color=ca), thing(sb, color=cb)])
    return out


def is_novel(prompt: dict, novel_pairs: set[tuple[str, str]]) -> bool:
    """Whether a prompt asks for a color-shape pair that training never shows."""
    return any((item.get("color"), item["class"]) in novel_pairs for item in prompt["include"])


def prompts(split: str, per_tag: int, metadata: dict, most: int, seed: int) -> list[dict]:
    """GenEval prompts of one split (`validation`, `test`, `novel`), at most `per_tag` of each tag.

    Validation and test prompts are disjoint wherever a tag has at least twice `per_tag` of them; the small tags
    (single_object, counting) share prompts and differ in sampling noise. `novel` holds only prompts with an unseen
    color-shape pair, the others only seen ones.
    """
    novel_pairs = {tuple(pair) for pair in metadata["novel_pairs"]}
    rng = np.random.default_rng(seed)
    chosen = []
    for tag in TAGS:
        pool = _all_prompts(tag, metadata["shapes"], metadata["colors"], metadata["sizes"], most)
        pool = [p for p in pool if is_novel(p, novel_pairs) == (split == "novel")]
        pool = [pool[i] for i in rng.permutation(len(pool))]
        if split == "test" and len(pool) >= 2 * per_tag:
            pool = pool[per_tag:]
        chosen += pool[:per_tag]
    return chosen


def satisfies(scene: Scene, prompt: dict) -> bool:
    """GenEval's check of the objects found in an image against a prompt's metadata.

    Every included class must be found at least `count` times (with the color and relative position asked for), no
    excluded class as often as its `count`.
    """
    matched: list[Scene] = []
    for item in prompt["include"]:
        found = [t for t in scene if t["shape"] == item["class"] and t["color"] == item.get("color", t["color"])]
        if "position" in item:
            relation, target = item["position"]
            found = [t for t in found if any(related(t, other, relation) for other in matched[target])]
        if len(found) < item["count"]:
            return False
        matched.append(found)
    counts = Counter(t["shape"] for t in scene)
    return all(counts[item["class"]] < item["count"] for item in prompt["exclude"])
