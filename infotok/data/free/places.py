"""Where objects stand: at free places or in the cells of a grid, apart from each other or, with occlusion, one partly
behind another.

Lengths are in sides of the image. An object of radius r has a box of side 2 r around its centre, which is inside the
image. Apart means that boxes are, along one axis at least, GAP from each other.
"""

from __future__ import annotations

import numpy as np

from infotok.data.free.shapes import DISTANCE

GAP = 1 / 32
LARGEST = 0.215  # radius of the largest size, where few objects leave room
FILLED = 0.42  # of the image by the boxes, where all objects are of the largest size
RATIOS = {1: (1.0,), 2: (0.68, 1.0), 3: (0.6, 0.78, 1.0)}  # radii of the sizes, relative to the largest
MOST_COVERED = 1 / 3  # of an object, by all later ones together
NEAREST = 0.13  # with occlusion, between centres along one axis at least, and
NEAREST_RADII = 0.6  # the same in radii of both
TRIES = 40  # of an object, before its scene begins anew
_GRID = (np.arange(10) + 0.5) / 5 - 1  # inside an object's box, where it is looked whether it is covered


def radii(objects: int, sizes: int, grid: int = 0) -> np.ndarray:
    """Radius of each size, the smallest first, (sizes,). grid: cells a side, one object in each; 0, there are none.

    The largest is min(LARGEST, sqrt(FILLED / (4 objects))): objects shrink with their number, so that as many of the
    largest size fill the same share of the image however many they are.
    """
    largest = min(LARGEST, (FILLED / (4 * objects)) ** 0.5)
    if grid:
        largest = min(largest, (1 / grid - GAP) / 2)
    return largest * np.array(RATIOS[sizes])


def apart(objects: int, sizes: int, occlusion: bool, grid: int = 0) -> float:
    """Least distance of two objects' centres along one axis at least."""
    if grid:
        return 1 / grid
    least = radii(objects, sizes)[0]
    return float(max(NEAREST, NEAREST_RADII * 2 * least) if occlusion else 2 * least + GAP)


def place(
    rng: np.random.Generator,
    radius: np.ndarray,
    number: np.ndarray,
    shape: np.ndarray | None,
    shapes: tuple[str, ...],
    grid: int = 0,
) -> np.ndarray:
    """Centres of objects.

    Args:
        radius: (n, slots) of every object. number: (n,) objects of each scene, its first slots.
        shape: (n, slots) indices into `shapes`, with which objects may cover each other; None, they stand apart.
        grid: cells a side in whose middles objects stand; 0, they stand anywhere.

    Returns:
        (n, slots, 2) x and y. Each is uniform over the places that the earlier objects of its scene leave; where they
        leave too little, the scene begins anew.
    """
    count, slots = radius.shape
    centres = np.zeros((count, slots, 2))
    placed, failed = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    cover = None if shape is None else Cover(radius, shape, shapes)
    while len(scenes := np.flatnonzero(placed < number)):
        slot = placed[scenes]
        own = radius[scenes, slot]
        candidate = rng.random((len(scenes), 2))
        if grid:
            candidate = (np.floor(candidate * grid) + 0.5) / grid
        else:
            candidate = own[:, None] + (1 - 2 * own[:, None]) * candidate
        away = np.abs(centres[scenes] - candidate[:, None]).max(-1)
        both = radius[scenes] + own[:, None]
        later = np.arange(slots) >= slot[:, None]
        if cover is None:
            least = 0.5 / grid if grid else both + GAP  # of two cells, more than their rounded centres differ by
            fits = ((away >= least) | later).all(1)
        else:
            fits = ((away >= np.maximum(NEAREST, NEAREST_RADII * both)) | later).all(1)
            fits[fits] = cover.add(scenes[fits], slot[fits], centres[scenes[fits]], candidate[fits])
        centres[scenes[fits], slot[fits]] = candidate[fits]
        placed[scenes[fits]] += 1
        failed[scenes] = np.where(fits, 0, failed[scenes] + 1)
        lost = scenes[failed[scenes] >= TRIES]
        placed[lost] = failed[lost] = 0
    return centres


class Cover:
    """Which parts of the objects of scenes can still be seen, on a grid of points inside each object's box."""

    def __init__(self, radius: np.ndarray, shape: np.ndarray, shapes: tuple[str, ...]):
        self.radius, self.shape, self.shapes = radius, shape, shapes
        v, u = (axis.ravel() for axis in np.meshgrid(_GRID, _GRID, indexing="ij"))
        self._points = np.stack([u, v], -1)
        self._inside = np.stack([DISTANCE[name](u, v) <= 0 for name in shapes])
        self.seen = self._inside[shape]  # (n, slots, points)

    def add(self, scenes: np.ndarray, slot: np.ndarray, centres: np.ndarray, candidate: np.ndarray) -> np.ndarray:
        """Put an object into each of m scenes, (m,), unless that covers too much of an earlier one; whether it did.

        Args:
            slot: (m,) of the objects. centres: (m, slots, 2) of the earlier ones. candidate: (m, 2), the objects' own.
        """
        radius, shape = self.radius[scenes], self.shape[scenes]
        self.seen[scenes, slot] = self._inside[shape[np.arange(len(scenes)), slot]]  # nothing is later yet
        points = centres[:, :, None] + radius[:, :, None, None] * self._points
        own = self.radius[scenes, slot]
        u, v = np.moveaxis((points - candidate[:, None, None]) / own[:, None, None, None], -1, 0)
        hidden = np.zeros(u.shape, dtype=bool)
        for index, name in enumerate(self.shapes):
            of_it = shape[np.arange(len(scenes)), slot] == index
            hidden[of_it] = DISTANCE[name](u[of_it], v[of_it]) <= 0
        earlier = np.arange(radius.shape[1]) < slot[:, None]
        left = self.seen[scenes] & ~(hidden & earlier[..., None])
        enough = left.sum(-1) >= (1 - MOST_COVERED) * self._inside[shape].sum(-1)
        fits = (enough | ~earlier).all(1)
        self.seen[scenes[fits]] = left[fits]
        return fits
