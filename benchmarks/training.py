"""A data set and models of the real sizes, and joint training steps with a clock: what several benchmarks measure on.

Weights are untrained and data few: neither changes how long a step takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.common import now
from benchmarks.data import few_scenes
from infotok.data.arrow import Split, read_split
from infotok.data.prepare import prepare
from infotok.data.text import TextCodec
from infotok.examiners.perceptual import Distortion, Perceptual
from infotok.models.backbone import Backbone, BackboneConfig
from infotok.models.unified import UnifiedModel
from infotok.training.batches import Batches
from infotok.training.joint import JointConfig, train_jointly
from infotok.training.runtime import start
from pipeline.config.cells import Cell
from pipeline.config.params import Params
from pipeline.running.artifacts import attribute_classes, new_tokenizer

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
    tokenizer = new_tokenizer(params, Cell(family, "none", 0.0, 0.0, tokens, SEED))
    backbone = Backbone.create(BackboneConfig(**params.backbone.model_dump()), codec.vocabulary)
    return UnifiedModel(family, tokenizer, backbone).to(start())


@dataclass
class Trainer:
    """One model with what its joint training needs."""

    config: JointConfig
    distortion: Distortion
    model: UnifiedModel
    perceptual: Perceptual
    batches: Batches

    @classmethod
    def create(cls, params: Params, family: str, data: Prepared, batch: int) -> Trainer:
        """A trainer at the largest token budget of the grid, with batches as stage `train` makes them."""
        config = JointConfig(**params.train.model_dump() | {"batch": batch})
        distortion = Distortion(**params.reconstruction.model_dump())
        model = new_model(params, family, max(params.grid.tokens), data.codec)
        batches = Batches(data.split, data.codec, config, seed=SEED)
        return cls(config, distortion, model, Perceptual(data.classes), batches)

    def run(self, arm: dict[str, Any], steps: int, begin: Callable[[], None] = lambda: None) -> list[float]:
        """Train and return the seconds of each step. The batches are the same in every call: the first ones.

        arm: estimator, beta, gamma and kernels, as `train_jointly` takes them. begin: called at the start of every
        step, and once more after the last.
        """
        starts, images = [], self.batches.images

        def first_thing_in_a_step(step: int) -> torch.Tensor:
            begin()
            starts.append(now())
            return images(step)

        # One step more, whose start ends the last one.
        config = self.config.model_copy(update={"steps": steps + 1})
        with mock.patch.object(self.batches, "images", first_thing_in_a_step):
            shared = {"seed": SEED, "device": start(), "distortion": self.distortion}
            train_jointly(self.model, self.perceptual, self.batches, config, **arm, **shared)
        return np.diff(starts).tolist()
