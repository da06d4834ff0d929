"""Sets of objects that a judge reads out of images, and how they are matched with others.

An object is a dict as in `infotok.data.scene_texts`. Two are at one place when their centres are within NEAR; an object
on the grid is in the middle of its quadrant.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from infotok.data.arrow import Split
from infotok.data.pixels import to_unit
from infotok.data.scene_texts import MARGIN, Scene
from infotok.examiners.detector import Detector
from infotok.examiners.judges import ObjectJudge
from infotok.examiners.places import ATTRIBUTES, attribute_names
from infotok.examiners.reading import examine

NEAR = MARGIN / 2  # sides of the image: no relation turns into its opposite when both objects are off by less


def read_scenes(judge: ObjectJudge, images: Tensor, metadata: dict, batch: int = 500) -> list[Scene]:
    """The objects that the judge finds in uint8 images (n, S, S, 3). metadata: manifest of the data."""
    names = attribute_names(metadata)
    if not isinstance(judge, Detector):
        found = {name: values.tolist() for name, values in examine(judge, images, batch).items()}
        return [
            [
                {a: names[a][found[a][i][q]] for a in names} | {"row": q // 2, "column": q % 2}
                for q in range(4)
                if found["presence"][i][q]
            ]
            for i in range(len(images))
        ]
    device, scenes = next(judge.parameters()).device, []
    for chunk in images.split(batch):
        read = judge.detect(to_unit(chunk.to(device)))
        there, place = (read.score > 0).tolist(), read.place.tolist()
        values = {name: part.tolist() for name, part in read.attributes.items()}
        scenes += [
            [
                {a: names[a][values[a][i][slot]] for a in names} | dict(zip("xy", place[i][slot], strict=True))
                for slot in range(len(there[i]))
                if there[i][slot]
            ]
            for i in range(len(chunk))
        ]
    return scenes


def centre(thing: dict) -> tuple[float, float]:
    """x and y in sides of the image."""
    return (thing["x"], thing["y"]) if "x" in thing else ((thing["column"] + 0.5) / 2, (thing["row"] + 0.5) / 2)


def wrong(a: dict, b: dict) -> list[str]:
    """The attributes in which two objects differ."""
    return [name for name in ATTRIBUTES if name in a and a[name] != b[name]]


def same(a: dict, b: dict) -> bool:
    """Whether two objects at one place have the same attributes."""
    return not wrong(a, b)


def matched(found: Scene, truth: Scene) -> list[tuple[int, int]]:
    """Pairs (index into found, index into truth) of objects at one place, each in one pair at most: as many pairs as
    there can be, among those the fewest wrong attributes, among those the least distance (Hungarian algorithm)."""
    if not found or not truth:
        return []
    distance = np.array([[np.hypot(*np.subtract(centre(a), centre(b))) for b in truth] for a in found])
    differ = np.array([[len(wrong(a, b)) for b in truth] for a in found])
    most = min(len(found), len(truth))
    worse = most + 1.0  # more than all distances together, each of which is 1 at most
    apart = (len(ATTRIBUTES) + 1) * worse * (most + 1)
    cost = np.where(distance <= NEAR, differ * worse + distance / NEAR, apart)
    rows, columns = linear_sum_assignment(cost)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if distance[i, j] <= NEAR]


def scene_accuracies(judge: Detector, split: Split, metadata: dict, prefix: str) -> dict[str, float]:
    """What the judge reads of a split's images, its ceiling: the share of `objects` that are read at their place with
    every attribute right, of those that are `found` at all, and the accuracy of each attribute among these; `spurious`,
    the share of what is read where nothing is."""
    scenes = read_scenes(judge, torch.from_numpy(split.images[np.arange(len(split))]), metadata)
    names = [name for name, values in attribute_names(metadata).items() if len(values) > 1]
    objects, read, mistakes = 0, 0, []
    for found, truth in zip(scenes, split.objects, strict=True):
        objects, read = objects + len(truth), read + len(found)
        mistakes += [wrong(found[i], truth[j]) for i, j in matched(found, truth)]
    out = {
        "objects": sum(not mistake for mistake in mistakes) / max(1, objects),
        "found": len(mistakes) / max(1, objects),
        "spurious": 1 - len(mistakes) / read if read else 0.0,
    }
    out |= {name: sum(name not in mistake for mistake in mistakes) / max(1, len(mistakes)) for name in names}
    return {prefix + name: value for name, value in out.items()}
