"""Which images a training step sees: a matter of (seed, step) alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from infotok.errors import SettingError


def check_images(images: int, batch: int, key: str) -> None:
    """Raises SettingError where the training images do not fill a batch, whose size `key` of the params file sets."""
    if images < batch:
        raise SettingError(
            key, f"{images} training images are fewer than one batch of {batch}; lower {key}, or bring more images"
        )


def order(count: int, batch: int, seed: int, step: int) -> np.ndarray:
    """Indices of the images of one step: epochs of seeded permutations, cut into whole batches."""
    epoch, position = divmod(step, count // batch)
    return _permutation(count, seed, epoch)[position * batch : (position + 1) * batch]


@lru_cache(2)  # of the images' epoch and the texts': a permutation of a large data set takes longer than a step
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
