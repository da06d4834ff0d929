"""A data set and models of the real sizes, and joint training steps with a clock: what several benchmarks measure on.

Weights are untrained and data few: neither changes how long a step takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from benchmarks.data import few_scenes
from benchmarks.device import device, now
from infotok.data.arrow import Split, read_split
from infotok.data.prepare import prepare
from infotok.data.text import TextCodec
from infotok.examiners.perceptual import Perceptual
from infotok.examiners.reading import attribute_classes
from infotok.models.backbone import Backbone
from infotok.models.files import new_tokenizer
from infotok.models.unified import UnifiedModel
from infotok.training.batches import Batches
from infotok.training.joint import train_jointly
from pipeline.config.params import Params

FAMILIES = ("ar", "mask", "flow")
SEED = 0


@dataclass
class Prepared:
    """A training split, its text tokenizer, and the attributes that the perceptual features learn from."""

    split: Split
    codec: TextCodec
    classes: dict[str, int]


def prepared(params: Params, folder: Path, images: int) -> Prepared:
    """A small data set, made as stage `prepare` makes it."""
    manifest = prepare(few_scenes(params, images), folder)
    codec = TextCodec.from_file(folder / "text.json")
    return Prepared(read_split(folder, "train"), codec, attribute_classes(manifest))


def new_model(params: Params, family: str, tokens: int, codec: TextCodec) -> UnifiedModel:
    """An untrained model of a family."""
    tokenizer = new_tokenizer(family, params.tokenizer, image_size=params.data.image_size, tokens=tokens, seed=SEED)
    backbone = Backbone.create(params.backbone, codec.vocabulary)
    return UnifiedModel(family, tokenizer, backbone).to(device())


def new_batches(params: Params, data: Prepared, batch: int) -> Batches:
    """Batches as stage `train` makes them."""
    return Batches(data.split, data.codec, params.train.model_copy(update={"batch": batch}), seed=SEED)


@dataclass(frozen=True)
class Arm:
    """What an arm adds to a step. kernels: the estimator of hsic."""

    estimator: str = "none"
    beta: float = 0.0
    gamma: float = 0.0
    kernels: str = "unbiased"


@dataclass
class Trainer:
    """One model with what its joint training needs."""

    params: Params
    model: UnifiedModel
    perceptual: Perceptual
    batches: Batches

    @classmethod
    def create(cls, params: Params, family: str, data: Prepared, batch: int) -> Trainer:
        """A trainer at the largest token budget of the grid."""
        model = new_model(params, family, max(params.grid.tokens), data.codec)
        return cls(params, model, Perceptual(data.classes), new_batches(params, data, batch))

    def run(
        self, arm: Arm, steps: int, begin: Callable[[int], None] = lambda step: None, waits: bool = True
    ) -> list[float]:
        """Train and return the seconds of each step. The batches are the same in every call: the first ones.

        begin: called with the number of a step at its start; with `steps` after the last, for one more is done; with 0
        once more where random numbers are rehearsed. waits: for the device at the start of a step, without which the
        seconds are those in which it got its work.
        """
        starts, images = [], self.batches.images

        def first_thing_in_a_step(step: int) -> torch.Tensor:
            begin(step)
            starts.append(now() if waits else time.perf_counter())
            return images(step)

        params = self.params
        # One step more, whose start ends the last one.
        config = params.train.model_copy(update={"steps": steps + 1})
        with mock.patch.object(self.batches, "images", first_thing_in_a_step):
            train_jointly(
                self.model,
                self.perceptual,
                self.batches,
                config,
                estimator=arm.estimator,
                beta=arm.beta,
                gamma=arm.gamma,
                kernels=params.kernels.model_copy(update={"estimator": arm.kernels}),
                distortion=params.reconstruction,
                seed=SEED,
                device=device(),
            )
        return np.diff(starts[-steps - 1 :]).tolist()
