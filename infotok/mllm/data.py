"""Images and texts of prepared splits as a tuning shows them: images at their own size, opened when they are needed.

Pixels of a large data set at the size that these models read would not fit a disk: 200,000 images of 512 x 512 have
157 GB. A prepared split keeps them small, for the judge, and says where each image's own file lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from infotok.data.arrow import Split, read_manifest, texts_about
from infotok.data.images import Unreadable, open_image, parse_color
from infotok.errors import InfotokError, SettingError
from infotok.mllm.batches import Example
from infotok.random import Purpose, stream

DESCRIBE = "Describe the image."  # asked of an image that no question is about
Grid = Callable[[int, int], tuple[int, int]]


def background_of(folder: Path) -> str:
    """What a prepared data set lays its images over where they are transparent."""
    return str(read_manifest(folder)["config"].get("background", "white"))


class Pictures(Sequence[Image.Image]):
    """The images of a split: their own files, or what was prepared of those that have none, such as scenes."""

    def __init__(self, split: Split, background: str = "white"):
        """background: behind what is transparent."""
        self.split, self.color = split, parse_color(background)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: Any) -> Any:
        """
        Raises:
            InfotokError: the image's file is gone or damaged since it was prepared.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        file = self.split.files[index] if self.split.files else ""
        if not file:
            return Image.fromarray(self.split.images[index])
        try:
            return open_image(Path(file), self.color)
        except Unreadable as error:
            raise InfotokError(f"{file}: {error}; bring it back as it was when the data were prepared") from None


class Deferred:
    """An image of Pillow that is opened when something of it is asked for: of several processes each opens its own."""

    def __init__(self, pictures: Pictures, row: int):
        self._pictures, self._row = pictures, row

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pictures[self._row], name)


class Shown:
    """What each step of a tuning shows: of a seed always the same, whatever the arm. groups: rows of the images of each
    size that the processor gives, (height, width).

    Images of a step have one size once the model's processor has resized them, so that they can be one tensor: a step's
    images are of one group. Every epoch shows each image at most once; what does not fill a batch of its group waits
    for the next.

    Args:
        grid: (width, height) of an image to the size that the processor gives it. key: of the params file, that sets
            the batch.

    Raises:
        SettingError: no group fills a batch. InfotokError: the processor refuses an image.
    """

    def __init__(
        self,
        split: Split,
        grid: Grid,
        *,
        batch: int,
        caption_dropout: float,
        seed: int,
        key: str = "batch",
        background: str = "white",
    ):
        self.split, self.batch, self.dropout, self.seed = split, batch, caption_dropout, seed
        self.pictures, self.grid = Pictures(split, background), grid
        made = by_size(split, range(len(split)), grid)
        self.groups = {size: np.array(rows) for size, rows in made.items()}
        self.per_epoch = sum(len(rows) // batch for rows in made.values())
        if not self.per_epoch:
            found = f"there are {len(split)} training images"
            if len(made) > 1:
                most = max(map(len, made.values()))
                found = f"of the {len(split)} training images, of {len(made)} sizes, no more than {most} have the same"
            raise SettingError(
                key, f"{batch} images of one size are needed, and {found}; lower {key}, or bring more images"
            )

    @property
    def never(self) -> int:
        """Images that no step shows, since fewer than a batch have their size."""
        return sum(len(rows) for rows in self.groups.values() if len(rows) < self.batch)

    def rows(self, step: int) -> np.ndarray:
        """(batch,) which images a step shows."""
        epoch, position = divmod(step, self.per_epoch)
        return self._epoch(epoch)[position]

    def examples(self, step: int) -> tuple[list[Example], list[bool]]:
        """What a step shows, and whose captions the model does not see."""
        numbers = stream(torch.device("cpu"), self.seed, step, Purpose.TEXTS)
        draws = torch.rand(self.batch, 3, generator=numbers).tolist()
        rows = self.rows(step).tolist()
        shown = [self._example(row, *draw[:2]) for row, draw in zip(rows, draws, strict=True)]
        dropped = [
            draw[2] < self.dropout or not self.split.captions[row] for row, draw in zip(rows, draws, strict=True)
        ]
        return shown, dropped

    def _example(self, row: int, which_question: float, which_caption: float) -> Example:
        captions, questions = self.split.captions[row], self.split.questions[row]
        caption = captions[int(which_caption * len(captions))] if captions else ""
        pair = questions[int(which_question * len(questions))] if questions else _description(captions)
        return Example(Deferred(self.pictures, row), pair["question"], pair["answer"], caption)

    @lru_cache(2)  # noqa: B019 - of one tuning, which lives as long as its data
    def _epoch(self, epoch: int) -> list[np.ndarray]:
        numbers = np.random.default_rng([self.seed, epoch])
        batches = []
        for rows in self.groups.values():
            mixed = numbers.permutation(rows)
            batches += list(mixed[: len(rows) // self.batch * self.batch].reshape(-1, self.batch))
        return [batches[i] for i in numbers.permutation(len(batches))]


def _description(captions: list[str]) -> dict[str, str]:
    return {"question": DESCRIBE, "answer": texts_about(captions, [])[0]}


def size_of(split: Split, row: int) -> tuple[int, int]:
    """Width and height of an image as it is read."""
    width, height = (split.images.shape[2], split.images.shape[1]) if split.sizes is None else split.sizes[row]
    return int(width), int(height)


def by_size(split: Split, rows: Iterable[int], grid: Grid) -> dict[tuple[int, int], list[int]]:
    """Rows of a split by the size that the processor gives their images.

    Raises:
        InfotokError: it refuses one, which is named.
    """
    made: dict[tuple[int, int], list[int]] = {}
    for row in rows:
        width, height = size_of(split, row)
        try:
            size = grid(width, height)
        except InfotokError as error:
            where = f"{place}: " if (place := split.place(row)) else ""
            raise InfotokError(f"{where}an image of {width} x {height} pixels: {error}") from None
        made.setdefault(size, []).append(row)
    return made
