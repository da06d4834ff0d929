"""Questions about free scenes.

    exist      is there a red circle?
    count      how many circles are there?                  how many red things are there?
    color      what color is the circle?                    shape, size and material alike
    where      is the red circle on the left or on the right?        at the top or at the bottom?
    relation   is the red circle left of the blue square?
    compare    are there more circles than squares?         is the red circle larger than the blue square?

An object is named by the fewest attributes that single it out. Nothing is asked about places that differ by MARGIN or
less along the asked axis, of two objects or of an object and the middle of the image. Of the answers that a scene
offers, that is asked for which was given least often so far: the question alone gives little away.
"""

from __future__ import annotations

import itertools
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np

from infotok.data.free.naming import Way, named
from infotok.data.free.vocabulary import Vocabulary
from infotok.data.scene_texts import MARGIN, NUMBERS, RELATIONS, Scene, article, plural, related

# How often each family is asked where it can be; a scene of one object offers no relation.
WEIGHTS = {
    "exist": 10.0,
    "count": 12.0,
    "color": 12.0,
    "shape": 12.0,
    "size": 8.0,
    "material": 8.0,
    "where": 14.0,
    "relation": 24.0,
    "compare": 10.0,
}
TRIES = 20  # at another question, before one is repeated
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SIDES = {
    "x": ("on the left or on the right", "left", "right"),
    "y": ("at the top or at the bottom", "top", "bottom"),
}

Offers = dict[str, list[str]]  # answer -> questions that have it


class Asker:
    """Asks about the scenes of one split, one after the other."""

    def __init__(self, vocabulary: Vocabulary, weights: dict[str, float], seen_alone: bool, rng: np.random.Generator):
        """weights: of families, those left out have the default. seen_alone: whether no question may name a novel pair
        of color and shape: training would show that nothing ever has one."""
        self.vocabulary, self.rng = vocabulary, rng
        self.unasked = vocabulary.novel if seen_alone else frozenset()
        self.given: dict[str, Counter[str]] = defaultdict(Counter)  # kind of question -> answers
        asks: dict[str, Callable[[Scene], tuple[str, Offers]]] = {
            "exist": self._exist,
            "count": self._count,
            "where": self._where,
            "relation": self._relation,
            "compare": self._compare,
            **{name: partial(self._attribute, name) for name in vocabulary.told},
        }
        weighed = {family: weights.get(family, default) for family, default in WEIGHTS.items() if family in asks}
        self._families = [(family, asks[family]) for family, weight in weighed.items() if weight]
        self._until = np.cumsum([weight for weight in weighed.values() if weight]).tolist()

    def ask(self, scene: Scene, number: int) -> list[dict[str, str]]:
        """`number` questions about a scene, no two alike if that can be: dicts with question, answer, family."""
        out: list[dict[str, str]] = []
        asked: set[str] = set()
        tries = 0
        while len(out) < number:
            family, offer = self._families[bisect(self._until, self.rng.random() * self._until[-1])]
            kind, offers = offer(scene)
            if not offers:
                continue
            answer = self._least_given(kind, list(offers))
            question = self._pick(offers[answer])
            tries += 1
            if question in asked and tries < TRIES:
                continue
            self.given[kind][answer] += 1
            asked.add(question)
            out.append({"question": question, "answer": answer, "family": family})
            tries = 0
        return out

    def _pick(self, items: list):
        return items[int(self.rng.random() * len(items))]

    def _least_given(self, kind: str, answers: list[str]) -> str:
        given = self.given[kind]
        least = min(given[answer] for answer in answers)
        return self._pick([answer for answer in answers if given[answer] == least])

    def _ways(self, *ways: Way) -> list[Way]:
        """Those that name no attribute of which there is one value alone."""
        return [way for way in ways if set(way) <= {"color", "shape", *self.vocabulary.told}]

    def _by_color_and_shape(self, scene: Scene, size: bool = True) -> list:
        ways: list[Way] = [("color", "shape")]
        if size:
            ways.append(("size", "color", "shape"))
        ways.append(("material", "color", "shape"))
        if size:
            ways.append(("size", "material", "color", "shape"))
        return named(scene, self._ways(*ways))

    def _exist(self, scene: Scene):
        """A `no` differs from an object of the scene in color or in shape."""
        present = {(t["color"], t["shape"]) for t in scene}
        color, shape = self._pick(sorted(present))
        changes = [(c, shape) for c in self.vocabulary.colors] + [(color, s) for s in self.vocabulary.shapes]
        absent = [pair for pair in changes if pair not in present and pair not in self.unasked]
        offers = {"yes": [(color, shape)]} | ({"no": absent} if absent else {})
        return "exist", {a: [f"is there {article(' '.join(pair))}?" for pair in pairs] for a, pairs in offers.items()}

    def _count(self, scene: Scene):
        by = self._pick(["shape", "color"])
        counts, offers = Counter(thing[by] for thing in scene), defaultdict(list)
        for value in self.vocabulary.values[by]:
            offers[NUMBERS[counts[value]]].append(f"how many {_several(by, value)} are there?")
        return f"count {by}", offers

    def _attribute(self, name: str, scene: Scene):
        short: Way = ("color",) if name == "shape" else ("shape",)
        ways = [short, ("size", *short), ("material", *short), ("size", "material", *short)]
        if name in ("size", "material"):
            ways = [short, ("color", *short)] + [(other, "color", *short) for other in ("size", "material")]
        offers = defaultdict(list)
        for thing, words in named(scene, self._ways(*[way for way in ways if name not in way])):
            offers[thing[name]].append(f"what {name} is the {words}?")
        return name, offers

    def _where(self, scene: Scene):
        offers = defaultdict(list)
        for thing, words in self._by_color_and_shape(scene):
            for axis, (sides, low, high) in SIDES.items():
                if abs(thing[axis] - 0.5) > MARGIN:
                    offers[low if thing[axis] < 0.5 else high].append(f"is the {words} {sides}?")
        return "where", offers

    def _relation(self, scene: Scene):
        """A `no` asks for the opposite of what holds."""
        offers = defaultdict(list)
        for (a, first), (b, second) in itertools.permutations(self._by_color_and_shape(scene), 2):
            for relation in RELATIONS:
                if related(a, b, relation):
                    offers["yes"].append(f"is the {first} {relation} the {second}?")
                    offers["no"].append(f"is the {first} {OPPOSITE[relation]} the {second}?")
        return "relation", offers

    def _compare(self, scene: Scene):
        """Of two numbers at least one is not zero; equal ones are not more."""
        by = self._pick(["shape", "color", *(["size"] if "size" in self.vocabulary.told else [])])
        offers = defaultdict(list)
        if by == "size":
            sizes = self.vocabulary.sizes.index
            for (a, first), (b, second) in itertools.permutations(self._by_color_and_shape(scene, size=False), 2):
                if a["size"] != b["size"]:
                    larger = "yes" if sizes(a["size"]) > sizes(b["size"]) else "no"
                    offers[larger].append(f"is the {first} larger than the {second}?")
        else:
            counts = Counter(thing[by] for thing in scene)
            for a, b in itertools.permutations(self.vocabulary.values[by], 2):
                if counts[a] or counts[b]:
                    more = "yes" if counts[a] > counts[b] else "no"
                    offers[more].append(f"are there more {_several(by, a)} than {_several(by, b)}?")
        return f"compare {by}", offers


def _several(by: str, value: str) -> str:
    return plural(value) if by == "shape" else f"{value} things"
