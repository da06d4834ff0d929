"""GenEval's prompts about scenes of objects, and its check of what an image holds (Ghosh et al. 2023).

A prompt asks for all objects of a scene: `a red circle`. Where no scene is of so few, since each holds two objects or
more, prompts are open, as some captions are: `a picture with a red circle` says nothing of the other objects. The check
is the same, since GenEval allows other objects than those that are asked for. Its `left of` and the like need centres
apart by a tenth of both objects' widths; ours by `scene_texts.MARGIN`, as captions and questions do.
"""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np

from infotok.data.scene_texts import NUMBERS, OPEN, RELATIONS, Scene, article, plural, related

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def _all_prompts(tag: str, shapes, colors, sizes, most: int, opening: str) -> list[dict]:
    """Every prompt of one tag as GenEval metadata: tag, prompt (behind `opening`), include, exclude."""

    def thing(shape, **extra):
        return {"class": shape, "count": 1, **extra}

    out: list[dict] = []

    def add(prompt, include, exclude=()):
        out.append({"tag": tag, "prompt": opening + prompt, "include": include, "exclude": list(exclude)})

    pairs = [(c, s) for c in colors for s in shapes]
    if tag == "single_object":
        for shape in shapes:
            add(f"a {shape}", [thing(shape)])
            for size in sizes if len(sizes) > 1 else ():
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
            add(article(f"{color} {shape}"), [thing(shape, color=color)])
    elif tag == "position" and most >= 2:
        for a, b in itertools.permutations(shapes, 2):
            for relation in RELATIONS:
                add(f"a {a} {relation} a {b}", [thing(b), thing(a, position=[relation, 0])])
    elif tag == "color_attr" and most >= 2:
        for (ca, sa), (cb, sb) in itertools.permutations(pairs, 2):
            if sa != sb and ca != cb:
                text = f"{article(f'{ca} {sa}')} and {article(f'{cb} {sb}')}"
                add(text, [thing(sa, color=ca), thing(sb, color=cb)])
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
    opening = OPEN if metadata.get("least_objects", 1) > 1 else ""
    rng = np.random.default_rng(seed)
    chosen = []
    for tag in TAGS:
        pool = _all_prompts(tag, metadata["shapes"], metadata["colors"], metadata["sizes"], most, opening)
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
