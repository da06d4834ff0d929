"""Which examples a step shows, and whose captions it drops: a matter of the step alone, alike for every arm and
process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from infotok.mllm.batches import Example
from infotok.random import Purpose, stream
from infotok.training.order import check_images, order


class StepExamples(Protocol):
    """What a training shows. Images of one step become one size by the model's processor."""

    def examples(self, step: int) -> tuple[list[Example], list[bool]]:
        """All B examples of a step, those of all processes, and of which the caption is dropped."""


class Shuffled:
    """Examples in memory, in epochs of seeded permutations.

    Raises:
        InfotokError: they do not fill a batch.
    """

    def __init__(self, examples: Sequence[Example], batch: int, caption_dropout: float, seed: int):
        check_images(len(examples), batch, "batch")
        self.all, self.batch, self.caption_dropout, self.seed = examples, batch, caption_dropout, seed

    def examples(self, step: int) -> tuple[list[Example], list[bool]]:
        numbers = stream(torch.device("cpu"), self.seed, step, Purpose.TEXTS)
        dropped = torch.rand(self.batch, generator=numbers) < self.caption_dropout
        chosen = order(len(self.all), self.batch, self.seed, step).tolist()
        return [self.all[index] for index in chosen], dropped.tolist()
